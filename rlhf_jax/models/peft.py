"""LoRA factors <-> a PEFT folder: names, shapes and adapter_config.json.

PEFT has W' = W + (alpha / r) B A with A [r, in] and B [out, r], one pair for
each module of transformers. A module that holds several of our linear maps (a
fused q, k, v) gets their factors side by side: A stacked, B block by block, so
its rank is the sum of theirs and the product is the same.

Mangrulkar et al. 2022, github.com/huggingface/peft, tuners/lora/config.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.models import families, hub, transformer, trees
from rlhf_jax.models.family_names import Stored
from rlhf_jax.schema import UserError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every tensor, before the module's name
LAYER = "layer_"


@dataclasses.dataclass(frozen=True)
class Module:
  """A linear module of transformers and our maps that it holds.

  stems: paths of ours, "layer_0/attention/q_proj", in the order of outputs.
  stored: stem -> where the kernel is; part is None where there is one stem.
  """

  name: str
  stems: tuple[str, ...]
  stored: Mapping[str, Stored]

  @property
  def is_conv(self) -> bool:
    """Whether it is a Conv1D, whose weight is [in, out] (GPT-2)."""
    return not self.stored[self.stems[0]].is_transposed


def modules(config: transformer.Config) -> dict[str, Module]:
  """Returns name -> module of all linear maps inside layers.

  Args:
    config: architecture; layers are counted one by one also when scanned.
  """
  table = families.names_of_layers(
    families.FAMILIES[config.family].names, config
  )
  found: dict[str, dict[str, Stored]] = {}
  for path, stored in table.items():
    if path.startswith(LAYER) and path.endswith("/kernel"):
      name = stored.name.removesuffix(".weight")
      found.setdefault(name, {})[path.removesuffix("/kernel")] = stored
  return {
    name: Module(name, tuple(stems), stems) for name, stems in found.items()
  }


def factors_of_layers(lora: Mapping, n_layers: int) -> dict[str, np.ndarray]:
  """Returns {"layer_0/attention/q_proj/lora_a": factor}, layers unstacked.

  Args:
    lora: the factor tree, of layer_0... or of scanned "layers".
    n_layers: of the architecture.
  """
  flat: dict[str, np.ndarray] = {}
  for path, leaf in trees.flatten(lora).items():
    head, _, rest = path.partition("/")
    whole = np.asarray(leaf)
    if head == "layers":
      flat |= {f"{LAYER}{i}/{rest}": whole[i] for i in range(n_layers)}
    else:
      flat[path] = whole
  return flat


def tensors(
  config: transformer.Config, lora: Mapping
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
  """Returns (PEFT's tensors, {module: its rank}) of a factor tree.

  Args:
    config: architecture.
    lora: factors, [in, r] as lora_a and [r, out] as lora_b.

  Raises:
    UserError: a factor that PEFT has no place for.
  """
  flat = factors_of_layers(lora, config.n_layers)
  found: dict[str, np.ndarray] = {}
  ranks: dict[str, int] = {}
  read: set[str] = set()
  for name, module in modules(config).items():
    stems = [stem for stem in module.stems if f"{stem}/lora_a" in flat]
    if not stems:
      continue
    downs = [flat[f"{stem}/lora_a"].T for stem in stems]
    ups = [flat[f"{stem}/lora_b"].T for stem in stems]
    read |= {f"{stem}/lora_{x}" for stem in stems for x in "ab"}
    ranks[name] = sum(down.shape[0] for down in downs)
    up = ups[0]
    if module.stored[stems[0]].part is not None:
      up = _side_by_side(config, module, dict(zip(stems, ups, strict=True)))
    found[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(
      np.concatenate(downs)
    )
    found[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(up)
  unread = sorted(set(flat) - read)
  if unread:
    raise UserError(
      f"{unread[0]}: no PEFT tensor is like it; factors lora_a and lora_b of "
      "linear maps can be written. Export the model with form='model', which "
      "merges it."
    )
  return found, ranks


def _side_by_side(
  config: transformer.Config, module: Module, ups: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Returns B [outputs, sum of ranks] of a fused module.

  Args:
    config: architecture.
    module: the fused one.
    ups: stem -> its own B [out, r]; maps without factors are left out.
  """
  outputs = sum(module.stored[stem].part.size for stem in module.stems)
  rank = sum(up.shape[1] for up in ups.values())
  whole = np.zeros((outputs, rank), next(iter(ups.values())).dtype)
  first = 0
  for stem, up in ups.items():
    part, last = module.stored[stem].part, first + up.shape[1]
    for mine, theirs in part.pieces(0, part.size):
      whole[theirs, first:last] = up[mine]
    first = last
  return whole


def adapter_config(
  config: transformer.Config,
  ranks: Mapping[str, int],
  *,
  rank: int,
  scale: float,
  base: str,
  task: str = "CAUSAL_LM",
) -> dict[str, Any]:
  """Returns the entries of adapter_config.json.

  Args:
    config: architecture.
    ranks: module -> rank, from `tensors`.
    rank: of one pair of factors.
    scale: s of W + s A B.
    base: what PEFT loads the base model from: a folder, or org/name@revision.
    task: PEFT's name of what the model does.
  """
  patterns = {name: r for name, r in ranks.items() if r != rank}
  known, named = modules(config), hub.parse(base)
  return {
    "peft_type": "LORA",
    "task_type": task,
    "base_model_name_or_path": base if named is None else named.repository,
    "revision": None if named is None else named.revision,
    "r": rank,
    "lora_alpha": _whole(scale * rank),
    "rank_pattern": patterns,
    "alpha_pattern": {name: _whole(scale * r) for name, r in patterns.items()},
    "target_modules": targets(config, ranks),
    "lora_dropout": 0.0,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "fan_in_fan_out": any(known[name].is_conv for name in ranks),
    "inference_mode": True,
  }


def _whole(value: float) -> int | float:
  """Returns a whole number as int, as PEFT writes alpha."""
  return int(value) if value == int(value) else value


def targets(config: transformer.Config, chosen: Mapping[str, Any]) -> list[str]:
  """Returns `target_modules` that match the chosen modules and no others.

  Ends of names ("q_proj") where every module with that end is chosen, whole
  names for the others.

  Args:
    config: architecture.
    chosen: names of modules.
  """
  ends: dict[str, list[str]] = {}
  for name in modules(config):
    ends.setdefault(name.rpartition(".")[2], []).append(name)
  found: list[str] = []
  for end, names in ends.items():
    taken = [name for name in names if name in chosen]
    found += [end] if len(taken) == len(names) else taken
  return found


def write(
  folder: Path,
  config: transformer.Config,
  lora: Mapping,
  *,
  scale: float,
  base: str,
  dtype: str = "float32",
) -> dict[str, Any]:
  """Writes a folder that peft loads; returns what adapter_config.json says.

  Args:
    folder: exists.
    config: architecture.
    lora: the factor tree.
    scale: s of W + s A B.
    base: folder or hub name of the model underneath.
    dtype: of the factors: float32, bfloat16 or float16.
  """
  import ml_dtypes
  from safetensors.numpy import save_file

  stored = np.dtype(getattr(ml_dtypes, dtype, dtype))
  found, ranks = tensors(config, lora)
  flat = trees.flatten(lora)
  rank = min(x.shape[-1] for name, x in flat.items() if name.endswith("lora_a"))
  said = adapter_config(config, ranks, rank=rank, scale=scale, base=base)
  save_file(
    {name: x.astype(stored) for name, x in found.items()},
    folder / WEIGHTS_FILE,
    metadata={"format": "pt"},
  )
  text = json.dumps(said, indent=2)
  (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
  return said
