"""What a run says of itself, for a model card: nothing that it did not write.

Numbers come from stage.json, from the row of metrics.jsonl of the very step
that leaves, and from an evaluation of this run, which its fingerprint tells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax import metrics, terminal
from rlhf_jax.data import assets
from rlhf_jax.exports import opened
from rlhf_jax.runs import checkpoint, history, stages

# Of a row of metrics.jsonl.
LOGGED = {
  "sft/loss": "loss (nats a token)",
  "reward_model/loss": "loss",
  "reward_model/accuracy": "pairs in the right order, training",
  "preference/loss": "loss",
  "preference/accuracy": "pairs in the right order, training",
  "rollout/score_mean": "score of samples",
  "eval/gold": "score of samples, held-out reward model",
  "rollout/kl_k1_sum": "KL to the reference (nats an answer)",
  "rollout/entropy": "entropy (nats a token)",
  "rollout/length_mean": "length of answers (tokens)",
  "heldout/score": "score of answers to held-out prompts",
  "heldout/pass1": "right answers to held-out prompts",
  "rejection/score_mean": "score of samples",
  "rejection/kl": "KL to the reference (nats an answer)",
}
# Of stage.json.
STAGE = {
  "validation_loss": "validation loss (nats a token)",
  "comparisons": "comparisons it was trained on",
  "examples": "demonstrations it was trained on",
}
HELD_OUT = {
  "accuracy": "held-out pairs in the right order",
  "pairs": "held-out pairs",
  "loss": "loss on held-out pairs",
  "length_spearman": "rank correlation of score and length differences",
}
# Of an evaluation: name -> (its standard error, words).
EVALUATED = {
  "proxy_win_rate": ("", "win rate, judged by the reward model it trained on"),
  "gold_win_rate": ("", "win rate, judged by a held-out reward model"),
  "verifier_win_rate": ("", "win rate, judged by the verifier"),
  "proxy_after": ("proxy_standard_error", "score, that reward model"),
  "gold_after": ("gold_standard_error", "score, held-out reward model"),
  "verifier_after": ("verifier_standard_error", "score of the verifier"),
  "kl_nats": ("kl_standard_error", "KL to the policy before (nats an answer)"),
  "length_after": ("", "length of answers (tokens)"),
  "distinct_2_after": ("", "distinct bigrams"),
}
DATA = ("data", "prompts", "pairs", "ptx")  # sections of records


@dataclasses.dataclass(frozen=True)
class Facts:
  """Rows of a model card.

  trained_by: (method, steps), from the first stage to the last.
  data: lines on what the stages learned from.
  training, evaluation: (what, number).
  notes: what a reader must know beside them.
  """

  trained_by: tuple[tuple[str, int], ...] = ()
  data: tuple[str, ...] = ()
  training: tuple[tuple[str, str], ...] = ()
  evaluation: tuple[tuple[str, str], ...] = ()
  notes: tuple[str, ...] = ()


def of_run(
  run: str, info: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> Facts:
  """Returns what a stage's folder says.

  Args:
    run: folder of the stage, with @STEP or not.
    info: its stage.json.
    evaluation: numbers of an evaluation of it; {} for none.
  """
  folder, _ = stages.place(run)
  step = stages.step_of(run)
  return Facts(
    trained_by=tuple(history.history(run)),
    data=tuple(_data(folder, info)),
    training=tuple(_training(folder, info, step)),
    evaluation=tuple(_evaluation(evaluation)),
    notes=tuple(_notes(folder, info, step)),
  )


def _data(folder: Path, info: Mapping[str, Any]) -> list[str]:
  """Returns what this stage and those before it read, the first stage first."""
  lines = []
  before = info.get("init_from") or info.get("merged_from")
  if before:
    earlier, _ = stages.place(folder / before)
    known = stages.read_stage(earlier) if earlier.is_dir() else None
    if known is not None:
      lines += _data(earlier, known)
  record = opened.recorded(folder)
  for name in DATA:
    section = record.get(name)
    source = section.get("source") if isinstance(section, dict) else None
    if source:
      lines.append(f"{info['pipeline']}: {_named(source)}")
  for name in ("reward", "reward_fn"):
    if isinstance(record.get(name), str) and record[name]:
      lines.append(f"{info['pipeline']}, judged by: {record[name]}")
  verifier = record.get("verifier")
  if isinstance(verifier, dict) and verifier.get("name"):
    lines.append(f"{info['pipeline']}, judged by: verifier {verifier['name']}")
  return list(dict.fromkeys(lines))


def _named(source: str) -> str:
  """Returns a source of records with what is known of it."""
  known = assets.ASSETS.get(str(source).removeprefix("asset:"))
  if not str(source).startswith("asset:") or known is None:
    return str(source)
  return f"{source} ({known.description}; licence {known.licence})"


def _training(
  folder: Path, info: Mapping[str, Any], step: int | None
) -> list[tuple[str, str]]:
  """Returns numbers of the step that leaves, and those of stage.json."""
  found: list[tuple[str, str]] = []
  path = folder / "metrics.jsonl"
  rows = metrics.read_metrics(path) if path.is_file() else []
  step = _newest(folder) if step is None else step
  row = next((row for row in reversed(rows) if row["step"] == step), {})
  for name, words in LOGGED.items():
    if _is_number(row.get(name)):
      found.append((f"{words}, step {step}", _shown(row[name])))
  for name, words in STAGE.items():
    if _is_number(info.get(name)):
      found.append((words, _shown(info[name])))
  for section in ("diagnosis", "heldout"):
    values = info.get(section)
    for key, value in values.items() if isinstance(values, dict) else ():
      words = HELD_OUT.get(key.rpartition("/")[2])
      if words is not None and _is_number(value):
        found.append((words, _shown(value)))
  return found


def _newest(folder: Path) -> int | None:
  with checkpoint.Checkpoints(
    str(folder / "checkpoints"), is_read_only=True
  ) as saved:
    kept = saved.steps()
  return max(kept, default=None)


def _evaluation(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns rows of an evaluation, with standard errors where it has them."""
  found = []
  for name, (error, words) in EVALUATED.items():
    error = error if error else f"{name}_standard_error"
    if not _is_number(numbers.get(name)):
      continue
    shown = f"{numbers[name]:.3f}"
    if _is_number(numbers.get(error)):
      shown += f" ± {numbers[error]:.3f}"
    found.append((words, shown))
  if found and _is_number(numbers.get("evaluation_prompts")):
    found.insert(0, ("held-out prompts", str(numbers["evaluation_prompts"])))
  return found


def _notes(
  folder: Path, info: Mapping[str, Any], step: int | None
) -> list[str]:
  """Returns what a reader must know."""
  notes = []
  if opened.was_trial(folder):
    notes.append(
      "The run was a short trial (--smoke): its numbers mean nothing."
    )
  if step is not None and step != _newest(folder):
    notes.append(
      f"This is step {step} of the run and not its last; numbers on held-out "
      "data are of the last."
    )
  if info.get("halted"):
    notes.append(f"Training was halted: {info['halted']}")
  notes += [str(text) for _, text in info.get("guards", [])]
  return notes


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: float) -> str:
  return str(value) if isinstance(value, int) else terminal.short(value)
