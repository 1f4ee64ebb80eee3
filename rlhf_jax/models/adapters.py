"""A PEFT folder as the start of a run: LoRA factors that another program made.

The folder (adapter_config.json, adapter_model.safetensors) stands wherever a
finished policy does. What changes the numbers is read, or refused by name; its
dropout is not applied, as nobody here drops anything. Where a family stores
several of our maps as one module, each of them gets the module's A and its own
part of B; folders that `peft.write` made of such maps are taken apart again.

Left out: DoRA (Liu et al. 2024, arXiv:2402.09353), whose column norms of W + s
A B every pass would compute again, from a base that may be split or quantised.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import strict_json
from rlhf_jax.models import (
  families,
  lora,
  lora_targets,
  peft,
  transformer,
  trees,
)
from rlhf_jax.models.roles import Role
from rlhf_jax.models.stored import StackedWeight, StoredWeight
from rlhf_jax.models.tensor_files import Tensor, TensorFile
from rlhf_jax.schema import UserError, absence

PIPELINE = "peft"  # in place of the name of what trained it
MERGE = (
  "Merge it into its base with peft (merge_and_unload, save_pretrained) and "
  "set model.source to that folder."
)
# Entries that say nothing of what a forward pass without dropout computes, or
# only which tensors there are, which the file itself says.
_HARMLESS = frozenset(
  """
  peft_type task_type auto_mapping peft_version base_model_name_or_path revision
  inference_mode r lora_alpha lora_dropout use_rslora fan_in_fan_out bias
  target_modules exclude_modules layers_to_transform layers_pattern
  init_lora_weights rank_pattern alpha_pattern megatron_core eva_config
  lora_ga_config corda_config loftq_config qalora_group_size runtime_config
  ensure_weight_tying
  """.split()
)
# Ways to begin that change the base model too.
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "mica", "lora_ga")
_TASKS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION")
_TENSOR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")


def is_adapter(folder: str | Path) -> bool:
  """Says whether a folder holds a PEFT adapter."""
  return (Path(folder) / peft.CONFIG_FILE).is_file()


@dataclasses.dataclass(frozen=True)
class Adapter:
  """What a folder says: of factors as Config has it, and the factors.

  first_layer: the lowest with factors.
  dropout: that it was trained with; nothing here drops anything.
  factors: flat, {"layer_0/attention/q_proj/lora_a": [in, r], ...}.
  """

  rank: int
  scale: float
  targets: tuple[str, ...]
  first_layer: int
  dropout: float
  factors: Mapping[str, Any]

  @property
  def tree(self) -> dict:
    """The factors as a tree {"lora": ...}, read when they are indexed."""
    return {"lora": trees.unflatten(self.factors)}

  def on(self, config: transformer.Config) -> transformer.Config:
    """Returns an architecture with these factors."""
    return dataclasses.replace(
      config,
      lora_rank=self.rank,
      lora_scale=self.scale,
      lora_targets=self.targets,
    )


def read_entries(folder: Path) -> dict[str, Any]:
  """Returns adapter_config.json, every entry of it known.

  Raises:
    UserError: an entry that means something which is not implemented.
  """
  path = folder / peft.CONFIG_FILE
  said = strict_json.read_object(path, "Save the adapter again.")

  def refuse(field: str, why: str) -> None:
    raise UserError(f"{path}: {field}={said.get(field)!r:.80}: {why} {MERGE}")

  if said.get("peft_type") != "LORA":
    refuse("peft_type", "only LORA is read.")
  if said.get("task_type") not in _TASKS:
    refuse("task_type", "only adapters of language models are read.")
  rank, alpha = said.get("r"), said.get("lora_alpha")
  if type(rank) is not int or rank < 1:
    refuse("r", "must be a whole number above 0.")
  if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
    refuse("lora_alpha", "must be a number.")
  if said.get("bias", "none") != "none":
    refuse("bias", "biases that were trained are not read.")
  start = said.get("init_lora_weights", True)
  if isinstance(start, str) and start.lower().startswith(_MOVES_BASE):
    refuse("init_lora_weights", "such factors begin with another base model.")
  if said.get("use_dora"):
    refuse("use_dora", "DoRA is not implemented.")
  for field, value in said.items():
    if field not in _HARMLESS and value not in (None, False, {}, [], ""):
      refuse(field, "not implemented, and it changes the numbers.")
  return said


def facts(folder: str | Path) -> dict[str, Any]:
  """Returns what stage.json would say of the folder, as far as it can.

  Raises:
    UserError: damaged, or an adapter that is not read.
  """
  said = read_entries(Path(folder))
  modules = sorted(_by_module(_open(Path(folder)), Path(folder)))
  layers = [re.search(r"\.(\d+)\.", f".{name}.") for name in modules]
  return {
    "pipeline": PIPELINE,
    "model_source": str(said.get("base_model_name_or_path") or ""),
    "model_fingerprint": "",
    "tokenizer_fingerprint": "",
    "steps": 0,
    "methods": [],
    "role": {
      "trainable": "lora",
      "first_layer": min((int(x[1]) for x in layers if x), default=0),
      "stop_layer": None,
      "lora_rank": said["r"],
      "lora_scale": _scale(said, said["r"], said["lora_alpha"]),
      "lora_targets": modules,
      "head": None,
    },
  }


def policy(
  folder: str | Path, info: Mapping, base: Any, placed: Callable[[dict], dict]
) -> tuple[Role, dict]:
  """Returns the role and the variables of the policy that a folder makes.

  Args:
    folder: of the adapter.
    info: its `facts`.
    base: pretrained.Base of the model underneath; its weights are passed on.
    placed: factors that are read when they are indexed -> arrays.
  """
  folder = Path(folder).expanduser()
  adapter, made_for = read(folder, base.config), info["model_source"]
  role = Role(adapter.on(base.config), "lora", adapter.first_layer)
  ends = [
    name.rstrip("/").rpartition("/")[2].partition("@")[0]
    for name in (made_for, base.source)
  ]
  if made_for and ends[0] != ends[1]:
    print(
      f"{folder}: warning: this adapter was made for {made_for!r} and is put "
      f"on {base.source!r}, whose shapes fit. Nothing else says that they are "
      "one."
    )
  if adapter.dropout:
    print(
      f"{folder}: lora_dropout={adapter.dropout:g} is not applied: every "
      "forward pass has to give one probability to one token."
    )
  return role, {"params": base.params} | placed(adapter.tree)


def fingerprint(folder: str | Path) -> str:
  """Returns a digest of both files."""
  digest = hashlib.sha256()
  for name in (peft.CONFIG_FILE, peft.WEIGHTS_FILE):
    digest.update((Path(folder) / name).read_bytes())
  return digest.hexdigest()


def read(folder: str | Path, config: transformer.Config) -> Adapter:
  """Returns an adapter, its factors read when they are indexed.

  Args:
    folder: with adapter_config.json and adapter_model.safetensors.
    config: architecture that it is put on.

  Raises:
    UserError: tensors that have no place there, or another shape; entries that
      are not implemented.
  """
  folder = Path(folder)
  said, tensors = read_entries(folder), _open(folder)
  known, found = peft.modules(config), {}
  prefix = families.FAMILIES[config.family].prefix
  for name, keys in _by_module(tensors, folder).items():
    module = known.get(name, known.get(prefix + name))
    if module is None:
      raise UserError(
        f"{folder / peft.WEIGHTS_FILE}: {name} is no linear map of a block of "
        f"this {config.family} model, {next(iter(known))} is one. Name the "
        "model that the adapter was made for in model.source, and leave "
        "embeddings and heads without factors."
      )
    found |= _factors(tensors, folder, said, module, keys)
  _check_shapes(found, config, folder)
  stems = {path.rpartition("/")[0] for path in found}
  first = min(int(x.partition("/")[0].removeprefix("layer_")) for x in stems)
  targets = lora_targets.shortest(config, stems, first)
  if config.scan_layers:
    found = _stacked(found, config.n_layers)
  scale = _scale(said, said["r"], said["lora_alpha"])
  dropout = float(said.get("lora_dropout") or 0.0)
  return Adapter(said["r"], scale, targets, first, dropout, found)


def _scale(said: Mapping[str, Any], rank: int, alpha: float) -> float:
  return lora.scale_of(alpha, rank, bool(said.get("use_rslora")))


def _open(folder: Path) -> Mapping[str, Tensor]:
  """Returns {name: tensor} of the file of tensors."""
  path = folder / peft.WEIGHTS_FILE
  if not path.is_file():
    raise UserError(
      f"{path}: {absence(path)}. Save the adapter in the safetensors format."
    )
  return TensorFile(path).tensors


def _by_module(
  tensors: Mapping[str, Tensor], folder: Path
) -> dict[str, dict[str, str]]:
  """Returns {module: {"A" and "B": its tensors}}."""
  path, found = folder / peft.WEIGHTS_FILE, {}
  for key in tensors:
    match = _TENSOR.fullmatch(key.removeprefix(peft.PREFIX))
    if match is None:
      raise UserError(
        f"{path}: tensor {key!r} is not read: only factors lora_A and lora_B "
        f"of linear maps are. {MERGE}"
      )
    found.setdefault(match[1], {})[match[2]] = key
  for name, keys in found.items():
    if len(keys) < 2:
      raise UserError(
        f"{path}: {name} has only one of its two factors. Save the adapter "
        "again."
      )
  if not found:
    raise UserError(f"{path}: holds no factors. Save the adapter again.")
  return found


def _of_pattern(patterns: Mapping[str, Any], name: str, usual: Any) -> Any:
  """Returns what rank_pattern or alpha_pattern says of a module."""
  for end, value in (patterns or {}).items():
    if re.match(rf"(.*\.)?({end})$", name):
      return value
  return usual


def _factors(
  tensors: Mapping[str, Tensor],
  folder: Path,
  said: Mapping[str, Any],
  module: peft.Module,
  keys: Mapping[str, str],
) -> dict[str, Any]:
  """Returns {"layer_0/attention/q_proj/lora_a": factor} of one module."""
  path = str(folder / peft.WEIGHTS_FILE)

  def stored(which: str, part: Any = None) -> StoredWeight:
    return StoredWeight(tensors[keys[which]], is_transposed=True, part=part)

  rank, a = said["r"], stored("A")
  mine = _of_pattern(said.get("rank_pattern"), module.name, rank)
  alpha = said["lora_alpha"]
  my_alpha = _of_pattern(said.get("alpha_pattern"), module.name, alpha)
  if a.shape[-1] != mine:
    raise UserError(
      f"{path}: {keys['A']} has rank {a.shape[-1]}, and {peft.CONFIG_FILE} "
      f"says {mine}. The files do not belong together."
    )
  if _scale(said, mine, my_alpha) != _scale(said, rank, alpha):
    raise UserError(
      f"{folder / peft.CONFIG_FILE}: alpha_pattern gives {module.name} a scale "
      f"of {_scale(said, mine, my_alpha):g}, others have "
      f"{_scale(said, rank, alpha):g}: one scale is read. {MERGE}"
    )
  parts = {stem: module.stored[stem].part for stem in module.stems}
  ups = {stem: stored("B", part) for stem, part in parts.items()}
  if mine == rank:
    pairs = {stem: (a, up) for stem, up in ups.items()}
  else:
    pairs = _taken_apart(a, ups, rank)
  if not pairs:
    raise UserError(
      f"{folder / peft.CONFIG_FILE}: rank_pattern gives {module.name} the rank "
      f"{mine}, others have {rank}: one rank is read. {MERGE}"
    )
  return {
    f"{stem}/lora_{which}": factor
    for stem, pair in pairs.items()
    for which, factor in zip("ab", pair, strict=True)
  }


def _taken_apart(
  a: StoredWeight, ups: Mapping[str, StoredWeight], rank: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns the factors of each map where `peft.write` put several together.

  Each has a block of A for itself, and B is 0 outside of blocks.

  Args:
    a: [in, R].
    ups: our name -> its part of B, [R, out].
    rank: of one map.

  Returns:
    {our name: (lora_a, lora_b)}, or {} where it is not so.
  """
  blocks, rest = divmod(a.shape[-1], rank)
  if rest or not 1 < blocks <= len(ups):
    return {}
  down, found, free = np.asarray(a), {}, list(range(blocks))
  for stem, stored in ups.items():
    up = np.asarray(stored).reshape(blocks, rank, -1)
    used = [i for i in range(blocks) if up[i].any()]
    if len(used) > 1 or set(used) - set(free):
      return {}
    if not used:
      continue
    free.remove(used[0])
    cut = slice(used[0] * rank, (used[0] + 1) * rank)
    found[stem] = (down[:, cut], np.ascontiguousarray(up[used[0]]))
  for stem in ups:  # those whose B is 0 take what is left, in order
    if free and stem not in found:
      i = free.pop(0)
      none = np.zeros((rank, ups[stem].shape[-1]), np.float32)
      found[stem] = (down[:, i * rank : (i + 1) * rank], none)
  return found


def _check_shapes(
  found: Mapping[str, Any], config: transformer.Config, folder: Path
) -> None:
  """Raises UserError for a factor that does not fit its matrix."""
  shapes = families.shapes(config)
  for path, factor in found.items():
    stem, _, which = path.rpartition("/")
    width, outputs = shapes[f"{stem}/kernel"]
    axis, size = (0, width) if which == "lora_a" else (-1, outputs)
    if len(factor.shape) != 2 or factor.shape[axis] != size:
      raise UserError(
        f"{folder / peft.WEIGHTS_FILE}: {path} has shape "
        f"{tuple(factor.shape)}, and the map is {width} x {outputs}: the "
        "adapter was made for another model. Name that in model.source."
      )


def _stacked(found: Mapping[str, Any], n_layers: int) -> dict[str, Any]:
  """Returns factors of all layers as those of scanned ones."""
  kinds = dict.fromkeys(path.partition("/")[2] for path in found)
  return {
    f"layers/{kind}": StackedWeight(
      [found[f"layer_{i}/{kind}"] for i in range(n_layers)]
    )
    for kind in kinds
  }
