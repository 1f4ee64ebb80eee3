"""What a Model section says of LoRA factors: rank, scale, which linear maps.

A name is the end of where a map stands, as in PEFT: "q_proj",
"self_attn.q_proj" or "layers.3.mlp.down_proj", in the words of the model's
family or in ours. Where a family stores several maps as one (c_attn,
query_key_value, qkv_proj, gate_up_proj), its name means all of them, each with
factors of its own. A regular expression matches the whole name, as there:
".*layers\\.[0-3]\\..*(q|v)_proj".

Left out: embeddings and the output head, which PEFT's "all-linear" leaves out
too.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection
from typing import Any

from rlhf_jax.models import families, lora, peft, transformer
from rlhf_jax.schema import FieldError, UserError

ALL = "all-linear"
FIELD = "lora_targets"
_NAMES = re.compile(r"[\w./-]+(,[\w./-]+)*")
_ENDS = ("lm_head", "embed_tokens", "embed_out", "embed_in", "wte", "wpe")


def check_settings(model: Any) -> None:
  """Raises FieldError for what a Model section may not say of factors."""
  if model.lora_dropout:
    raise FieldError(
      f"lora_dropout={model.lora_dropout}: must be 0. The sampler, the "
      "reference and the update have to give one probability to one token; "
      "dropout in any of them moves the first ratio off 1. Against "
      "overfitting lower lora_rank or the rate, or stop earlier."
    )
  alpha = model.lora_alpha
  if alpha is None:
    if model.lora_is_rank_stabilised:
      raise FieldError(
        "lora_is_rank_stabilised=True: it divides lora_alpha by the root of "
        "the rank, and lora_alpha=None. Set lora_alpha=16, say."
      )
    return
  if not 0.0 < alpha < math.inf:
    raise FieldError(f"lora_alpha={alpha}: must be above 0.")
  if model.lora_scale != 1.0:
    raise FieldError(
      f"lora_alpha={alpha}, lora_scale={model.lora_scale}: both say what the "
      "product of the factors is multiplied by. Set one of them."
    )
  if not model.lora_rank:
    raise FieldError(
      f"lora_alpha={alpha}: it is divided by the rank, and lora_rank=0. Set "
      "lora_rank=16, say."
    )


def said(model: Any) -> str:
  """Returns what a Model section sets beside the rank, "" for nothing."""
  fields = ("lora_scale", "lora_alpha", "lora_targets")
  return ", ".join(
    f"model.{field.name}={getattr(model, field.name)}"
    for field in dataclasses.fields(model)
    if field.name in fields and getattr(model, field.name) != field.default
  )


def adapted(config: transformer.Config, model: Any) -> transformer.Config:
  """Returns an architecture with the factors of a Model section.

  Raises:
    UserError: no map has such a name, or the rank is above one's.
  """
  if not model.lora_rank:
    return dataclasses.replace(config, lora_scale=model.lora_scale)
  scale, targets = model.lora_scale, resolve(config, model.lora_targets)
  if model.lora_alpha is not None:
    scale = lora.scale_of(
      model.lora_alpha, model.lora_rank, model.lora_is_rank_stabilised
    )
  config = dataclasses.replace(
    config, lora_rank=model.lora_rank, lora_scale=scale, lora_targets=targets
  )
  check_rank(config)
  return config


def maps(config: transformer.Config) -> dict[str, str]:
  """Returns {our name of each map of a block: its name in a family's files}.

  Args:
    config: "layer_0/attention/q_proj" is a name of ours, scanned or not.
  """
  return {
    stem: module.name
    for module in peft.modules(config).values()
    for stem in module.stems
  }


def resolve(config: transformer.Config, targets: str) -> tuple[str, ...]:
  """Returns Config.lora_targets of what a Model section says.

  Args:
    config: architecture.
    targets: "all-linear", names with commas between, or a regular expression.

  Raises:
    UserError: a name, or the expression, that matches no map.
  """
  if targets == ALL:
    return ()
  there, plain = maps(config), targets.replace(" ", "")
  if _NAMES.fullmatch(plain):
    return shortest(config, _named(there, plain.split(","), config.family))
  try:
    pattern = re.compile(targets)
  except re.error as error:
    raise UserError(
      f"{FIELD}={targets!r}: neither names with commas between nor a regular "
      f"expression ({error})."
    ) from error
  found = {
    ours
    for ours, theirs in there.items()
    if pattern.fullmatch(theirs) or pattern.fullmatch(_dotted(ours))
  }
  if not found:
    raise UserError(
      f"{FIELD}={targets!r}: no linear map has such a name. A regular "
      f"expression must match all of it, {next(iter(there.values()))!r} for "
      f"example. {_known(there, config.family)}"
    )
  return shortest(config, found)


def _dotted(ours: str) -> str:
  return ours.replace("/", ".")


def _named(
  there: dict[str, str], names: Collection[str], family: str
) -> set[str]:
  """Returns our names of the maps that names end with."""
  found = set()
  for name in names:
    end = f".{_dotted(name)}"
    chosen = {
      ours
      for ours, theirs in there.items()
      if f".{theirs}".endswith(end) or f".{_dotted(ours)}".endswith(end)
    }
    if not chosen:
      why = "no linear map has such a name"
      if _dotted(name).rpartition(".")[2] in _ENDS:
        why = "embeddings and the output head have no factors here"
      raise UserError(f"{FIELD}={name!r}: {why}. {_known(there, family)}")
    found |= chosen
  return found


def _known(there: dict[str, str], family: str) -> str:
  """Returns a sentence that lists the names that could be meant."""
  ends = dict.fromkeys(
    name.rpartition(".")[2]
    for ours, theirs in there.items()
    for name in (theirs, _dotted(ours))
  )
  return f"The {family} family has {', '.join(ends)}, and {ALL!r}."


def shortest(
  config: transformer.Config, found: set[str], first_layer: int = 0
) -> tuple[str, ...]:
  """Returns the shortest Config.lora_targets that chooses some maps.

  Args:
    config: architecture.
    found: our names, "layer_0/attention/q_proj".
    first_layer: layers below have no factors anyway.

  Raises:
    UserError: layers that differ and are scanned.
  """
  there = [x for x in maps(config) if _layer(x) >= first_layer]
  kinds = {_kind(x) for x in found}
  if found == {x for x in there if _kind(x) in kinds}:
    return () if len(found) == len(there) else tuple(sorted(kinds))
  if config.scan_layers:
    raise UserError(
      f"{FIELD}: other maps in some layers than in others, with scan_layers: "
      "scanned layers share one program. Choose the same in all, or set "
      "model.scan_layers=False."
    )
  return tuple(sorted(found))


def from_layer(
  config: transformer.Config, first_layer: int
) -> transformer.Config:
  """Returns the config with targets said shortest for layers from one up."""
  if not any(name.startswith("layer_") for name in config.lora_targets):
    return config
  found = {x for x in config.lora_targets if _layer(x) >= first_layer}
  if not found:
    return config
  targets = shortest(config, found, first_layer)
  return dataclasses.replace(config, lora_targets=targets)


def _layer(ours: str) -> int:
  return int(ours.partition("/")[0].removeprefix("layer_"))


def _kind(ours: str) -> str:
  return ours.partition("/")[2]


def check_rank(config: transformer.Config) -> None:
  """Raises UserError for a rank above that of a matrix with factors.

  Args:
    config: with lora_rank and lora_targets.
  """
  chosen = config.lora_targets
  one_layer = dataclasses.replace(config, n_layers=1, lora_targets=())
  for path, sizes in families.shapes(one_layer).items():
    stem, _, leaf = path.rpartition("/")
    kind = _kind(stem)
    is_map = leaf == "kernel" and stem.startswith("layer_0/")
    is_adapted = not chosen or any(name.endswith(kind) for name in chosen)
    if is_map and is_adapted and config.lora_rank > min(sizes):
      raise UserError(
        f"lora_rank={config.lora_rank}: {kind} is {sizes[0]} x {sizes[1]}, so "
        f"no change of it has a rank above {min(sizes)}. Lower lora_rank, or "
        f"leave this map out of {FIELD}."
      )
