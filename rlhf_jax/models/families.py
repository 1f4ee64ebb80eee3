"""Model families: a table of names and a reader of config.json each.

What the decoder can do is in transformer.Config; a family is a reader that
fills it (family_configs.py) and the names of its weights (family_names.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rlhf_jax.models import family_configs, family_names, transformer, trees
from rlhf_jax.models.config_fields import Fields
from rlhf_jax.models.family_names import Names, Stored
from rlhf_jax.schema import UserError


@dataclasses.dataclass(frozen=True)
class Family:
  """How checkpoints of a family are read and written.

  names: path in our tree -> where it is stored.
  read: entries of config.json -> architecture.
  prefix: that names of the base model begin with; some folders leave it out.
  ignored: ends of names that hold no weights (masks, tables of positions).
  """

  names: Names
  read: Callable[[Fields], transformer.Config]
  prefix: str = "model."
  ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)

  def config(self, name: str, hf: Mapping[str, Any]) -> transformer.Config:
    """Returns the architecture that a config.json means.

    Raises:
      UserError: an entry is missing, of another kind, or not implemented.
    """
    fields = Fields(hf, name)
    config = self.read(fields)
    fields.check_all_seen()
    return config


_NAMES: dict[str, tuple[Names, dict[str, Any]]] = {
  "gemma": (family_names.LLAMA, {}),
  "gemma2": (family_names.GEMMA2, {}),
  "gemma3_text": (family_names.GEMMA2, {}),
  "gpt2": (
    family_names.GPT2,
    {"prefix": "transformer.", "ignored": (".attn.bias", ".attn.masked_bias")},
  ),
  "gpt_neox": (
    family_names.GPT_NEOX,
    {
      "prefix": "gpt_neox.",
      "ignored": (
        ".attention.bias",
        ".attention.masked_bias",
        "rotary_emb.inv_freq",
      ),
    },
  ),
  "olmo2": (family_names.OLMO2, {}),
  "phi3": (family_names.PHI3, {}),
}

# model_type -> family
FAMILIES = {
  name: Family(names, read, **more)
  for name, read in family_configs.READERS.items()
  for names, more in [_NAMES.get(name, (family_names.LLAMA, {}))]
}


def names_of_layers(
  table: Names, config: transformer.Config
) -> dict[str, Stored]:
  """Returns the table with {i} written out, of the weights that a model has.

  Args:
    table: of family_names.py.
    config: tied weights and biases that it lacks are left out.
  """
  there = set(shapes(config))
  names = {}
  for path, stored in table.items():
    for i in range(config.n_layers if "{i}" in path else 1):
      if path.format(i=i) in there:
        names[path.format(i=i)] = dataclasses.replace(
          stored,
          name=stored.name.format(i=i),
          part=None if stored.part is None else stored.part(config),
        )
  nowhere = sorted(there - set(names))
  if nowhere:
    raise UserError(
      f"{nowhere[0]} has no name in the {config.family} family. Extend "
      "rlhf_jax/models/family_names.py."
    )
  return names


def shapes(config: transformer.Config) -> dict[str, tuple[int, ...]]:
  """Returns {path in our tree: shape}, layers unrolled."""
  return _shapes(
    dataclasses.replace(config, scan_layers=False, lora_rank=0, lora_targets=())
  )


@functools.lru_cache(maxsize=16)
def _shapes(config: transformer.Config) -> dict[str, tuple[int, ...]]:
  expected = jax.eval_shape(
    functools.partial(transformer.init, config), jax.random.key(0)
  )
  flat = trees.flatten(expected["params"])
  return {path: leaf.shape for path, leaf in flat.items()}


def check_shapes(
  flat: Mapping[str, Any], config: transformer.Config, source: str
) -> None:
  """Raises ValueError unless every weight has the shape that config gives.

  Args:
    flat: {path in our tree: array}.
    config: layers unrolled, as read from `source`.
    source: file or folder, for the message.
  """
  for path, shape in shapes(config).items():
    if tuple(flat[path].shape) != shape:
      place = getattr(flat[path], "place", source)
      raise UserError(
        f"{place}: {path} has shape {flat[path].shape} where the config "
        f"gives {shape}. The weights do not belong to this config."
      )
