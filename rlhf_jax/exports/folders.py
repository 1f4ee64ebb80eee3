"""A model as a folder that other programs load; whole, or not there.

Forms: "model", safetensors for transformers and vLLM, LoRA factors merged (a
reward model as a sequence classifier); "adapter", the factors for peft; "gguf",
one file for llama.cpp. All is written into FOLDER.partial, which becomes FOLDER
at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed
from rlhf_jax.exports import card, classifier, tokenizer_files, weights
from rlhf_jax.exports.facts import Facts
from rlhf_jax.exports.opened import Leaving
from rlhf_jax.models import (
  folder_writer,
  gguf,
  gguf_writer,
  huggingface,
  members,
  peft,
  safetensors_writer,
  trees,
)
from rlhf_jax.runs import stage_file
from rlhf_jax.schema import FieldError, UserError, check_choice

FORMS = ("model", "adapter", "gguf")
GGUF_FILE = "model.gguf"
GGUF_DTYPES = {  # -> what gguf_writer calls it
  "float32": "f32",
  "float16": "f16",
  "bfloat16": "bf16",
  "q8_0": "q8_0",
}
PARTIAL = ".partial"  # end of the name of a folder that is being written
_MARK = ".rlhf_jax_export"  # in it: that it is ours to remove


@dataclasses.dataclass(frozen=True)
class How:
  """How a model is written."""

  form: str = "model"  # "model", "adapter" or "gguf"
  dtype: str = "float32"  # of the tensors: float32, bfloat16 or float16; of
  # form "gguf" q8_0 too
  max_shard_size: str = "5GB"  # of the tensors of a file
  base: str = ""  # folder or hub name that an adapter says it is for; "": where
  # the run had its base model from
  member: int | None = None  # of an ensemble of reward models, from 0

  def __post_init__(self) -> None:
    check_choice("form", self.form, FORMS)
    is_gguf = self.form == "gguf"
    known = tuple(GGUF_DTYPES) if is_gguf else folder_writer.DTYPES
    check_choice("dtype", self.dtype, known)
    safetensors_writer.parse_size(self.max_shard_size, "max_shard_size")
    usual = type(self).__dataclass_fields__
    if self.base and self.form != "adapter":
      raise FieldError(
        f"base={self.base!r}: only form='adapter' names one. Leave it out."
      )
    if (
      self.form != "model"
      and self.max_shard_size != usual["max_shard_size"].default
    ):
      what = "an adapter" if self.form == "adapter" else "form='gguf'"
      raise FieldError(
        f"max_shard_size={self.max_shard_size!r}: {what} is one file. "
        "Leave it out."
      )


def _where(leaving: Leaving) -> str:
  return leaving.run if leaving.run else "the model in memory"


def _member_of(leaving: Leaving, number: int | None) -> Leaving:
  """Returns the member of an ensemble that is named, or the model as it is.

  Raises:
    FieldError: no member, or one that is not there, or no ensemble.
  """
  role, where = leaving.role, _where(leaving)
  if role.members == 1 and number is None:
    return leaving
  if role.members == 1:
    raise FieldError(f"member={number}: {where} is no ensemble. Leave it out.")
  if number is None or not 0 <= number < role.members:
    raise FieldError(
      f"member={number}: {where} is an ensemble of {role.members} reward "
      "models, and a folder holds one. Set member to one of 0 to "
      f"{role.members - 1}; average_rewards makes one model of runs."
    )
  own, shared = members.parted(leaving.variables, own_factors=role.own_factors)
  own = jax.tree.map(lambda x: x[number], own)
  scale = stage_file.outputs(leaving.info)[number]
  info = {k: x for k, x in leaving.info.items() if k != "outputs"}
  return dataclasses.replace(
    leaving,
    role=role.alone,
    variables=shared | own,
    info=info | {"normalisation": scale},
  )


def check(leaving: Leaving, how: How) -> None:
  """Raises UserError for a model that cannot be written so.

  Args:
    leaving: the model.
    how: it would be written.
  """
  where = _where(leaving)
  if "process" in leaving.info:
    raise FieldError(
      f"run={where!r}: judges steps, and a classifier reads an answer at its "
      "end: its scores would be others. There is no form for it; export a "
      "policy, or a reward model of whole answers."
    )
  if leaving.is_reward and how.form == "model":
    classifier.check(leaving.role, where)
  elif leaving.is_reward:
    raise FieldError(
      f"form={how.form!r}: {where} is a reward model, whose head belongs to "
      "it. Set form='model'."
    )
  if how.form == "adapter":
    _check_adapter(leaving, how, where)
  elif how.form == "model":
    folder_writer.entries(leaving.role.model, _original(leaving))


def _check_adapter(leaving: Leaving, how: How, where: str) -> None:
  role = leaving.role
  if role.trainable != "lora":
    raise FieldError(
      f"form='adapter': {where} trained {card.trained(role)}, and an adapter "
      "holds LoRA factors. Set form='model'."
    )
  remedy = (
    "Export that first with form='model' and name its folder: "
    "--config.base=FOLDER."
  )
  if leaving.merged_from != "" and not how.base:
    whose = leaving.merged_from if leaving.merged_from else "a policy in memory"
    raise FieldError(
      f"base is empty: the factors of {where} stand on the weights of {whose}, "
      f"and not on {leaving.base.source}. {remedy}"
    )
  source = leaving.base.source
  if not how.base and (source.startswith("asset:") or source.endswith(".gguf")):
    raise FieldError(
      f"base is empty: peft loads no base model from {source}. "
      f"{remedy.replace('that', 'it')}"
    )


def _original(leaving: Leaving) -> dict[str, Any]:
  """Returns the entries of config.json that the base model comes with."""
  source = tokenizer_files.of_model(leaving.base)
  reader = huggingface if source.is_dir() else gguf
  return reader.read_entries(source)


def write(
  leaving: Leaving, folder: str | Path, how: How, facts: Facts
) -> list[str]:
  """Writes a model; returns the names of its files.

  Every process of the run must call it; the first one writes.

  Args:
    leaving: the model.
    folder: new, or empty.
    how: see How.
    facts: for the model card.

  Raises:
    UserError: something is in the folder, or it cannot be written so.
  """
  leaving = _member_of(leaving, how.member)
  check(leaving, how)
  with filled(Path(folder).expanduser()) as path:
    if how.form == "adapter":
      _write_adapter(leaving, path, how, facts)
    elif how.form == "gguf":
      _write_gguf(leaving, path, how, facts)
    elif leaving.is_reward:
      _write_classifier(leaving, path, how, facts)
    else:
      _write_model(leaving, path, how, facts)
  return sorted(x.name for x in Path(folder).expanduser().iterdir())


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[Path]:
  """Gives a folder to write into that gets its name when all is there.

  Args:
    folder: new, or empty.

  Raises:
    UserError: something is in it, or in FOLDER.partial that is not ours.
  """
  partial = folder.with_name(folder.name + PARTIAL)
  if distributed.is_first():
    check_new(folder)
    if partial.exists():
      if not (partial / _MARK).is_file():
        raise UserError(
          f"{partial}: is in the way, and no export that was interrupted left "
          "it. Move it away."
        )
      print(f"removing {partial}, which an export left that was interrupted")
      shutil.rmtree(partial)
    partial.mkdir(parents=True)
    (partial / _MARK).touch()
  distributed.barrier("export begins")
  try:
    yield partial
    if distributed.is_first():
      (partial / _MARK).unlink()
      os.replace(partial, folder)
  except Exception:
    if distributed.is_first():
      shutil.rmtree(partial, ignore_errors=True)
    raise
  distributed.barrier("export ends")


def check_new(folder: Path) -> None:
  """Raises UserError unless a folder is new or empty."""
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(
      f"{folder}: there is something already. Name a new or an empty folder."
    )


def _write_model(leaving: Leaving, path: Path, how: How, facts: Facts) -> None:
  tree = weights.of_role(leaving.role, leaving.variables)
  folder_writer.save(
    path,
    dataclasses.replace(leaving.role.model, scan_layers=False),
    tree,
    dtype=how.dtype,
    original=_original(leaving),
    further=tokenizer_files.token_ids(leaving.base),
    most_bytes=_most_bytes(how),
    is_writing=distributed.is_first(),
  )
  if distributed.is_first():
    tokenizer_files.write_generation(leaving.base, path)
    text = card.text(leaving, facts, form=how.form, dtype=how.dtype)
    _write_beside(leaving, path, text)


def _write_gguf(leaving: Leaving, path: Path, how: How, facts: Facts) -> None:
  licence = tokenizer_files.licence_of(leaving.base.source)
  general = {"name": f"{card.name_of(leaving)}, trained further"}
  gguf_writer.write(
    path / GGUF_FILE,
    dataclasses.replace(leaving.role.model, scan_layers=False),
    weights.of_role(leaving.role, leaving.variables),
    leaving.base.tokenizer,
    GGUF_DTYPES[how.dtype],
    general=general | ({"license": licence.lower()} if licence else {}),
    is_writing=distributed.is_first(),
  )
  if distributed.is_first():
    tokenizer_files.copy_licences(leaving.base, path)
    text = card.text(leaving, facts, form=how.form, dtype=how.dtype)
    (path / "README.md").write_text(text, encoding="utf-8")


def _most_bytes(how: How) -> int:
  return safetensors_writer.parse_size(how.max_shard_size, "max_shard_size")


def _write_beside(
  leaving: Leaving, path: Path, text: str, pad: str | None = None
) -> None:
  tokenizer_files.write(leaving.base, path, pad)
  tokenizer_files.copy_licences(leaving.base, path)
  (path / "README.md").write_text(text, encoding="utf-8")


def _write_classifier(
  leaving: Leaving, path: Path, how: How, facts: Facts
) -> None:
  role = leaving.role
  head = distributed.fetch(leaving.variables["head"])
  said = classifier.facts(leaving, head)
  reads_end = leaving.info.get("reads_end_token", True)
  pad, pad_text = classifier.padding(
    leaving.base.tokenizer, role.model, reads_end=reads_end
  )
  folder_writer.save(
    path,
    classifier.architecture(role),
    classifier.params(role, weights.of_role(role, leaving.variables)),
    dtype=how.dtype,
    original=classifier.original_entries(role, _original(leaving)),
    further=tokenizer_files.token_ids(leaving.base)
    | classifier.entries(leaving, pad)
    | said,
    score=np.ascontiguousarray(np.asarray(head["output"]["kernel"]).T),
    most_bytes=_most_bytes(how),
    is_writing=distributed.is_first(),
  )
  if not distributed.is_first():
    return
  if said["reward_bias"]:
    print(
      f"score.weight has no bias: rewards are logits + {said['reward_bias']:g} "
      "(reward_bias in config.json)"
    )
  reward = said | {"reads_end": reads_end, "pad_token_id": pad}
  text = card.text(
    leaving, facts, form=how.form, dtype=how.dtype, reward=reward
  )
  _write_beside(leaving, path, text, pad_text)


def _write_adapter(
  leaving: Leaving, path: Path, how: How, facts: Facts
) -> None:
  role = leaving.role
  base = how.base if how.base else leaving.base.source
  frozen = weights.of_role(role, leaving.variables, is_merged=False)
  if role.model.quantize != "none":
    print(
      f"base={base!r}: not compared, as the run had its base in "
      f"{role.model.quantize}; on other numbers the factors give others"
    )
  elif how.base:
    check_base(how.base, trees.flatten(frozen))
  factors = distributed.fetch(leaving.variables["lora"])
  if not distributed.is_first():
    return
  peft.write(
    path,
    role.model,
    factors,
    scale=role.model.lora_scale,
    base=base,
    dtype=how.dtype,
  )
  text = card.text(leaving, facts, form=how.form, dtype=how.dtype, base=base)
  _write_beside(leaving, path, text)


def check_base(base: str, frozen: dict[str, Any]) -> None:
  """Checks that a folder holds the weights that factors stand on.

  A name that is no folder is taken as one of the hub, which is not compared.

  Args:
    base: the folder.
    frozen: path -> weight, read one at a time.

  Raises:
    UserError: it holds others. Rounded to another dtype they are the same.
  """
  if not os.path.isdir(os.path.expanduser(base)):
    if base.count("/") != 1 or base.startswith((".", "~", "/")):
      raise FieldError(
        f"base={base!r}: no such folder, and no name of the hub, OWNER/NAME."
      )
    print(f"base={base!r} is not here: its weights were not compared")
    return
  _, tree = huggingface.load(os.path.expanduser(base))
  known = trees.flatten(tree)
  for path, leaf in frozen.items():
    theirs = known.get(path)
    ours = np.asarray(leaf, np.float32)
    if theirs is None or tuple(theirs.shape) != ours.shape:
      raise FieldError(f"base={base!r}: holds another model, see {path}.")
    theirs = np.asarray(theirs, np.float32)
    if np.array_equal(ours, theirs):
      continue
    rounded = (
      ours.astype(safetensors_writer.numpy_dtype(dtype)).astype(np.float32)
      for dtype in folder_writer.DTYPES
    )
    if not any(np.array_equal(x, theirs) for x in rounded):
      worst = float(np.abs(ours - theirs).max())
      raise FieldError(
        f"base={base!r}: its {path} differs by up to {worst:g} from the one "
        "that the factors stand on. Name the folder of that model."
      )
