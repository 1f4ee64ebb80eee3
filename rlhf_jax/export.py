"""A finished policy -> a Hugging Face folder.

    python -m rlhf_jax.export --run=runs/x --output=DIR [--dtype=bfloat16]

LoRA factors are merged. The folder holds config.json, model.safetensors, the
tokenizer's files and README.md, a model card with the base model, its licence
where that is known, and what was done to it; our own loader, and transformers,
read it. A run is named as everywhere: runs/x, runs/x@best, runs/x@12.

Exit codes: 0 written, 2 a mistake (one line says which value, which rule and
what to do).

Left out: reward models (no config.json describes their head), several files of
weights, and quantisation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import rlhf_jax
from rlhf_jax import lab, output
from rlhf_jax.data import assets, stops
from rlhf_jax.data.tokenizer_backends import HuggingFaceTokenizer
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models import huggingface
from rlhf_jax.models.pretrained import Base, locate
from rlhf_jax.notebook.models import Policy, new_folder
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs.world import World
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError, check_choice

EXIT_USAGE = 2
# Of a Hugging Face folder, beside the weights; copied where they are.
TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "generation_config.json",
)
TOKENIZER_CONFIG = "tokenizer_config.json"


def export(
  source: str | Path | Policy, folder: str | Path, *, dtype: str = "float32"
) -> Path:
  """Writes a policy as a Hugging Face folder; returns the folder.

  Args:
    source: folder of a finished policy run (@best, @STEP), or a lab.Policy.
    folder: new, or empty.
    dtype: of the weights, float32 or bfloat16.

  Raises:
    UserError: no policy there, an architecture that cannot be written, or
      something in the folder already.
  """
  check_choice("dtype", dtype, huggingface.DTYPES)
  policy, run = source, ""
  if isinstance(source, (str, Path)):
    if stages.read_stage(stages.place(source)[0]) is None:
      stages.need_stage(source, stages.POLICY)  # says what is there instead
    one = mesh_lib.Config(devices=1)
    policy, run = lab.load(source, mesh=one), str(source)
  if not isinstance(policy, Policy):
    raise UserError(
      f"a {type(policy).__name__} cannot be exported: only a policy is a model "
      "that config.json describes; a reward model has a head of its own. Use "
      "it from its stage: lab.load(FOLDER)."
    )
  original = _entries(policy.base)
  huggingface.entries(policy.base.config, original)  # refuses before any work
  path = new_folder(folder)
  weights = World(policy.mesh, Path()).merged(policy.stage)
  huggingface.save(
    path,
    policy.base.config,
    weights,
    dtype=dtype,
    original=original,
    further=_token_ids(policy.base),
  )
  write_tokenizer(policy.base, path)
  card = model_card(policy, run, dtype)
  (path / "README.md").write_text(card, encoding="utf-8")
  return path


def _entries(base: Base) -> dict[str, Any] | None:
  """Returns config.json of the folder that a base comes from; None of none."""
  source = locate(base.source)
  return huggingface.read_entries(source) if source.is_dir() else None


def _token_ids(base: Base) -> dict[str, int | list[int]]:
  """Returns the entries of config.json that name special tokens."""
  tokenizer = base.tokenizer
  ends = list(stops.end_ids(tokenizer))
  ids = {
    "bos_token_id": tokenizer.bos_id,
    "eos_token_id": ends if len(ends) > 1 else tokenizer.eos_id,
    "pad_token_id": tokenizer.pad_id,
  }
  return {name: i for name, i in ids.items() if i is not None}


def write_tokenizer(base: Base, folder: Path) -> None:
  """Writes the tokenizer of a base model, as it is where it comes from.

  What comes out of a GGUF file is written as tokenizer.json.

  Args:
    base: whose tokenizer.
    folder: to write into.
  """
  own = base.tokenizer_source
  source = Path(os.path.expanduser(own)) if own else locate(base.source)
  if source.suffix == ".model":
    shutil.copyfile(source, folder / "tokenizer.model")
    return
  if source.suffix == ".gguf":
    write_made(base.tokenizer, folder)
    return
  where = source if source.is_dir() else source.parent
  for name in TOKENIZER_FILES:
    if (where / name).is_file():
      shutil.copyfile(where / name, folder / name)
  template = base.tokenizer.chat_template
  if template is not None and template != load_tokenizer(source).chat_template:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def write_made(tokenizer: HuggingFaceTokenizer, folder: Path) -> None:
  """Writes tokenizer.json and tokenizer_config.json of a tokenizer."""
  text = tokenizer.to_json()
  (folder / "tokenizer.json").write_text(text, encoding="utf-8")
  names = {i: name for name, i in tokenizer.special_tokens.items()}
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": names[tokenizer.eos_id],
    "bos_token": names.get(tokenizer.bos_id),
    "pad_token": names[tokenizer.pad_id],
    "chat_template": tokenizer.chat_template,
  }
  config = {name: value for name, value in config.items() if value is not None}
  text = json.dumps(config, indent=2, ensure_ascii=False)
  (folder / TOKENIZER_CONFIG).write_text(text + "\n", encoding="utf-8")


def licence_of(source: str) -> str:
  """Returns the licence of a base model, "" where nothing says it.

  Args:
    source: of its Model section; a folder's README.md may say it.
  """
  if source.startswith("asset:"):
    return assets.ASSETS[source.removeprefix("asset:")].licence
  card = Path(os.path.expanduser(source)) / "README.md"
  if not card.is_file():
    return ""
  head = card.read_text(encoding="utf-8", errors="replace").split("---")
  lines = head[1].splitlines() if len(head) > 2 and not head[0].strip() else []
  for line in lines:
    name, _, value = line.partition(":")
    if name.strip() == "license":
      return value.strip().strip("'\"")
  return ""


def model_card(policy: Policy, run: str, dtype: str) -> str:
  """Returns the text of README.md.

  Args:
    policy: that is exported.
    run: its folder as it was named, "" for one in memory.
    dtype: of the weights.
  """
  base, licence = policy.base, licence_of(policy.base.source)
  name = base.source.removeprefix("asset:")
  if name == base.source:
    name = Path(name).name
  done = [f"{method} ({steps} steps)" for method, steps in policy.methods]
  # What is before the last "---" is read by the Hugging Face hub.
  head = [
    *([f"license: {licence.lower()}"] if licence else []),
    f"base_model: {name}",
    "library_name: transformers",
    "tags: [rlhf, rlhf_jax]",
  ]
  unknown = "not known here; look where the base model comes from"
  facts = {
    "base model": name,
    "licence of the base model": licence if licence else unknown,
    "trained by": ", then ".join(done) if done else "nothing: the base model",
    "what trained last": _trained(policy),
    "run": run if run else "in memory",
    "weights": f"{dtype}, LoRA factors merged",
    "written by": f"rlhf_jax {rlhf_jax.__version__}",
  }
  rows = [f"| {what} | {value} |" for what, value in facts.items()]
  return "\n".join(
    [
      "---",
      *head,
      "---",
      "",
      f"# {name}, trained further",
      "",
      "| | |",
      "|---|---|",
      *rows,
      "",
      "What it was trained on and how well it does are not written here: add "
      "both before you share it.",
      "",
    ]
  )


def _trained(policy: Policy) -> str:
  role = policy.role
  if role.trainable == "lora":
    what = f"LoRA of rank {role.model.lora_rank}"
  else:
    what = "all weights"
  return f"{what}, from layer {role.first_layer}"


def main(arguments: list[str] | None = None) -> int:
  """Runs the command; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m rlhf_jax.export",
    description="Writes a finished policy as a Hugging Face folder.",
  )
  add: Any = parser.add_argument
  add("--run", required=True, help="runs/x, runs/x@best or runs/x@STEP")
  add("--output", required=True, help="a new or an empty folder")
  add("--dtype", default="float32", help="float32 or bfloat16")
  given = parser.parse_args(arguments)
  try:
    path = export(given.run, given.output, dtype=given.dtype)
  except (UserError, OSError) as error:
    if os.environ.get("RLHF_JAX_TRACEBACK"):
      raise
    print(f"error: {error}", file=sys.stderr)
    return EXIT_USAGE
  print(f"{path}: {', '.join(sorted(p.name for p in path.iterdir()))}")
  return 0


if __name__ == "__main__":
  output.run_command(main)
