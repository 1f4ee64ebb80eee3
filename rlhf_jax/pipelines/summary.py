"""summary.json, the printed table and report.html of a finished run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import metrics, strict_json, terminal
from rlhf_jax.data import statistics
from rlhf_jax.evaluation import comparison, kl_law
from rlhf_jax.evaluation import reward_model as diagnostics
from rlhf_jax.evaluation.figures import MINUS, Histogram
from rlhf_jax.evaluation.report import (
  REWARD_MODEL,
  Report,
  Source,
  Stage,
  write_overview_png,
  write_report,
)
from rlhf_jax.pipelines import evaluate, provenance, stage_curves
from rlhf_jax.runs import stages

SUMMARY_FILE = "summary.json"
TIMES_FILE = "phase_seconds.jsonl"
TEXTS_SHOWN = 256  # in the browser of the report
# Stages with a tab of their own beside the policy's, and its name.
TABS = {"sft": "SFT", "reward": REWARD_MODEL, "gold": "Gold model"}
# Numbers of stage.json that a tab shows, and their names for people.
FACTS = {
  "steps": "steps",
  "examples": "examples",
  "comparisons": "comparisons",
  "validation_loss": "validation loss (nats a token)",
}
DIAGNOSIS = {
  "accuracy": "held-out accuracy",
  "pairs": "held-out pairs",
  "loss": "held-out loss",
  "expected_calibration_error": "calibration error",
  "length_spearman": "rank correlation of score and length",
}
TRIAL = "A short trial (--smoke): these numbers mean nothing."


def _label(job: Any) -> str:
  return job.pipeline.label(job.settings)


def phase_seconds(workdir: Path) -> dict[str, float]:
  """Returns phase -> seconds, summed over restarts."""
  total: dict[str, float] = {}
  path = workdir / TIMES_FILE
  if path.is_file():
    kinds = {"phase": str, "seconds": (int, float)}
    for row in strict_json.read_rows(path, kinds, "Remove the line."):
      total[row["phase"]] = total.get(row["phase"], 0.0) + row["seconds"]
  return total


def diagnosis(info: dict) -> dict[str, float]:
  """Returns the numbers of held-out pairs of a reward stage, without area.

  The area has the name rm in stages of before.
  """
  return {k.partition("/")[2]: x for k, x in info["diagnosis"].items()}


def reward_pictures(info: dict) -> tuple[dict, dict]:
  """Returns (calibration, length bias) of a reward stage's held-out pairs."""
  pairs = info["heldout_pairs"]
  difference = np.asarray(pairs["score_difference"])
  label = np.asarray(pairs["label"])
  rho = diagnosis(info)["length_spearman"]  # None where it is not defined
  return diagnostics.calibration(difference, label), {
    "length_difference": np.asarray(pairs["length_difference"]),
    "score_difference": difference,
    "rho": math.nan if rho is None else rho,
  }


def _steps(folder: Path, policy: dict) -> int:
  """Returns the steps of the policy stage as its schedule counts them.

  Those of metrics.jsonl and of the curves: rollouts, or rounds, where one of
  them has several gradient updates.
  """
  if policy["pipeline"] == "rejection":
    return policy["steps"]
  rows = metrics.read_metrics(folder / "metrics.jsonl")
  return max((row["step"] for row in rows), default=policy["steps"])


def _length(stage: Any, numbers: dict) -> str:
  """Returns how long the policy trained: "21 steps (84 gradient updates)"."""
  if hasattr(stage, "rounds"):
    return f"{numbers['policy_steps']} rounds"
  steps, updates = numbers["policy_steps"], numbers["policy_updates"]
  more = f" ({updates} gradient updates)" if updates != steps else ""
  return f"{steps} steps{more}"


def numbers_of(
  settings: Any, workdir: Path, folders: dict[str, Path]
) -> dict[str, Any]:
  """Returns the contents of summary.json."""
  reward = stages.read_stage(folders["reward"])
  gold = stages.read_stage(folders["gold"])
  policy = stages.read_stage(folders["policy"])
  seconds = phase_seconds(workdir)
  found = diagnosis(reward)
  law = _law(settings, folders)
  return {
    "seed": settings.seed,
    "seconds_total": sum(seconds.values()),
    "phase_seconds": seconds,
    "reward_model_accuracy": found["accuracy"],
    "reward_model_accuracy_low": found["accuracy_low"],
    "reward_model_accuracy_high": found["accuracy_high"],
    "reward_model_accuracy_ceiling": reward["ceiling"],
    "gold_model_accuracy": diagnosis(gold)["accuracy"],
    "policy_steps": _steps(folders["policy"], policy),
    "policy_updates": policy["steps"],
    "halted": policy.get("halted"),
    **({} if law is None else {"kl_law": law._asdict()}),
    **({"tax": policy["tax"]} if "tax" in policy else {}),
    **evaluate.read_result(folders["evaluation"]),
  }


def _law(settings: Any, folders: dict[str, Path]) -> kl_law.Law | None:
  """Returns the line of the policy's score against sqrt(KL), if it has one."""
  path = folders["policy"] / "metrics.jsonl"
  rows = metrics.read_metrics(path) if path.is_file() else []
  return stage_curves.kl_law_of(rows, settings.policy.settings)


def _stage_facts(info: dict) -> list[tuple[str, str]]:
  """Returns the numbers of a finished stage for its tab."""
  held = diagnosis(info) if "diagnosis" in info else {}
  named = [(FACTS, info), (DIAGNOSIS, held)]
  return [
    (text, terminal.short(numbers[name]).replace("-", MINUS))
    for names, numbers in named
    for name, text in names.items()
    if isinstance(numbers.get(name), int | float)
  ]


def _stages(folders: dict[str, Path]) -> list[Stage]:
  """Returns the tabs of the stages before the policy."""
  found = []
  for name, title in TABS.items():
    path = folders[name] / "metrics.jsonl"
    rows = metrics.read_metrics(path) if path.is_file() else []
    facts = _stage_facts(stages.read_stage(folders[name]))
    found.append(Stage(title, facts, stage_curves.of_supervised(rows)))
  return found


def _sources(folders: dict[str, Path]) -> list[Source]:
  """Returns what the stages read; older ones do not say."""
  found = []
  for stage, folder in folders.items():
    for name, entry in statistics.read(folder).items():
      found.append(Source(stage, name, **entry))
  return found


def _samples(folder: Path) -> list[dict]:
  """Returns the answers of an evaluation, with what is known of tokens."""
  pieces = evaluate.read_pieces(folder)
  return [
    text | {"pieces": pieces.get(i, ())}
    for i, text in enumerate(evaluate.read_texts(folder)[:TEXTS_SHOWN])
  ]


def make_report(
  settings: Any, workdir: Path, folders: dict[str, Path], numbers: dict
) -> Report:
  """Returns the Report of a finished run."""
  reward = stages.read_stage(folders["reward"])
  policy = stages.read_stage(folders["policy"])
  method = _label(settings.policy)
  texts = evaluate.read_texts(folders["evaluation"])
  rows = metrics.read_metrics(folders["policy"] / "metrics.jsonl")
  calibration, length_bias = reward_pictures(reward)
  warnings = [("note", TRIAL)] if provenance.is_smoke() else []
  start = stages.read_stage(folders["sft"])
  for info in (start, reward):  # older SFT runs do not say
    warnings += [tuple(guard) for guard in info.get("guards", [])]
  warnings += [
    ("warn", f"step {step}: {text}") for step, text in policy.get("alarms", [])
  ]
  warnings += [tuple(finding) for finding in policy.get("findings", [])]
  if policy.get("halted"):
    warnings.append(("warn", policy["halted"]))
  law = stage_curves.kl_law_of(rows, settings.policy.settings)
  if law is not None and law.is_too_steep:
    warnings.append(("warn", kl_law.warning(law)))
  return Report(
    title=settings.title,
    subtitle=f"seed {numbers['seed']}, "
    f"{_length(settings.policy.settings, numbers)} of {method}",
    facts=[
      *(
        (key.replace("_", " "), value) for key, value in settings.facts.items()
      ),
      *provenance.facts(settings.jobs, settings.seed),
      *(
        []
        if law is None
        else [("score against the root of the KL", kl_law.sentence(law))]
      ),
      ("wall time", f"{numbers['seconds_total']:.0f} s"),
    ],
    caveats=list(settings.caveats),
    summary_rows=comparison.summary_rows(numbers, method),
    curves=stage_curves.of_policy(rows, settings.policy.settings),
    stages=_stages(folders),
    data=_sources(folders),
    phase_seconds=numbers["phase_seconds"],
    calibration=calibration,
    length_bias=length_bias,
    histograms=[
      Histogram(
        f"{name} scores",
        "score (raw, normalised by its reference samples)",
        {
          "before": [row[f"{name}_before"] for row in texts],
          "after": [row[f"{name}_after"] for row in texts],
        },
      )
      for name in ("proxy", "gold")
    ],
    samples=_samples(folders["evaluation"]),
    warnings=warnings,
  )


def write(settings: Any, workdir: Path, folders: dict[str, Path]) -> dict:
  """Writes summary.json, report.html and overview.png; prints the table."""
  numbers = numbers_of(settings, workdir, folders)
  report = make_report(settings, workdir, folders, numbers)
  (workdir / SUMMARY_FILE).write_text(json.dumps(numbers, indent=2) + "\n")
  write_report(workdir / "report.html", report)
  write_overview_png(workdir / "overview.png", report)
  print(f"\n{report.title}: {report.subtitle}\n")
  comparison.show(
    report.summary_rows, evaluate.read_texts(folders["evaluation"])
  )
  print(
    f"\n{terminal.format_seconds(numbers['seconds_total'])} in all, commands "
    "before this one included"
  )
  return numbers
