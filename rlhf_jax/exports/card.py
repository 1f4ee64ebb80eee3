"""The model card: the base model, what was done to it, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rlhf_jax
from rlhf_jax.exports import tokenizer_files
from rlhf_jax.exports.facts import Facts
from rlhf_jax.exports.opened import Leaving
from rlhf_jax.models import hub
from rlhf_jax.models.roles import Role

UNKNOWN = "not known here; look where the base model comes from"
LOADED = {
  "model": (
    "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    "model = AutoModelForCausalLM.from_pretrained(FOLDER)\n"
    "tokenizer = AutoTokenizer.from_pretrained(FOLDER)"
  ),
  "adapter": (
    "from peft import AutoPeftModelForCausalLM\n"
    "model = AutoPeftModelForCausalLM.from_pretrained(FOLDER)"
  ),
  "reward": (
    "from transformers import AutoModelForSequenceClassification\n"
    "model = AutoModelForSequenceClassification.from_pretrained(FOLDER)\n"
    "score = model(ids).logits[:, 0]"
  ),
  "gguf": "from llama_cpp import Llama\nmodel = Llama(FILE)",
}


def name_of(leaving: Leaving) -> str:
  """Returns the base model's name, for people and for the hub."""
  source = _without_revision(leaving.base.source)
  name = source.removeprefix("asset:")
  return Path(name).name if name == source and Path(name).exists() else name


def _without_revision(source: str) -> str:
  named = hub.parse(source)
  return source if named is None else named.repository


def text(
  leaving: Leaving,
  facts: Facts,
  *,
  form: str,
  dtype: str,
  base: str = "",
  reward: dict[str, Any] | None = None,
) -> str:
  """Returns the text of README.md.

  Args:
    leaving: what is exported.
    facts: of its run.
    form: "model", "adapter" or "gguf".
    dtype: of the weights.
    base: that an adapter names.
    reward: bias, mean and deviation of a reward model's scores, and how its
      rows end.
  """
  licence = tokenizer_files.licence_of(leaving.base.source)
  name = name_of(leaving)
  done = [f"{method} ({steps} steps)" for method, steps in facts.trained_by]
  # What is before the last "---" is read by the Hugging Face hub.
  head = [
    *([f"license: {licence.lower()}"] if licence else []),
    f"base_model: {_without_revision(base) if base else name}",
    f"library_name: {'peft' if form == 'adapter' else 'transformers'}",
    "tags: [rlhf, rlhf_jax]",
  ]
  rows = {
    "base model": name,
    "licence of the base model": licence if licence else UNKNOWN,
    "trained by": ", then ".join(done) if done else "nothing: the base model",
    "what trained last": trained(leaving.role),
    "run": leaving.run if leaving.run else "in memory",
    "weights": _weights(form, dtype, leaving.role),
    "written by": f"rlhf_jax {rlhf_jax.__version__}",
  }
  loaded = LOADED["reward" if leaving.is_reward else form]
  title = "a reward model" if leaving.is_reward else "trained further"
  parts = [
    ["---", *head, "---", "", f"# {name}, {title}"],
    _table(rows.items()),
    ["```python", loaded, "```"],
    _reward(reward) if reward is not None else [],
    _section("What it learned from", [f"- {line}" for line in facts.data]),
    _section("Numbers of training", _table(facts.training)),
    _section(
      "Evaluation: answers of this policy against the one it started from",
      _table(facts.evaluation),
    ),
    _section("Note", [f"- {line}" for line in facts.notes]),
  ]
  if not (facts.data or facts.training or facts.evaluation):
    parts.append(
      [
        "What it was trained on and how well it does are not written here: "
        "add both before you share it."
      ]
    )
  return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _table(rows: Any) -> list[str]:
  lines = [f"| {what} | {value} |" for what, value in rows]
  return ["| | |", "|---|---|", *lines] if lines else []


def _section(title: str, lines: list[str]) -> list[str]:
  return [f"## {title}", "", *lines] if lines else []


def trained(role: Role) -> str:
  """Returns what of a role trained."""
  if role.trainable == "head":
    return "the head"
  what = "all weights"
  if role.trainable == "lora":
    what = f"LoRA of rank {role.model.lora_rank}"
  return f"{what}, from layer {role.first_layer}"


def _weights(form: str, dtype: str, role: Role) -> str:
  if form == "adapter":
    beside = role.model.quantize
    more = f", trained beside a base in {beside}" if beside != "none" else ""
    return f"{dtype}, LoRA factors alone{more}"
  merged = ", LoRA factors merged" if role.trainable == "lora" else ""
  return f"{dtype}{merged}"


def _reward(reward: dict[str, Any]) -> list[str]:
  """Returns how scores are read."""
  ends = "The row ends with the end token." if reward["reads_end"] else ""
  return [
    "## Scores",
    "",
    f"reward = logit + {reward['reward_bias']:g}; (reward - "
    f"{reward['reward_mean']:g}) / {reward['reward_std']:g} is the score in "
    "deviations of the answers that it was normalised on. It is read at the "
    "last token that is not the padding token, "
    f"{reward['pad_token_id']}. {ends}".rstrip(),
  ]
