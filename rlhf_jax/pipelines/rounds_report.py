"""summary.json, the printed table and report.html of rounds of labels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rlhf_jax import terminal
from rlhf_jax.evaluation import comparison
from rlhf_jax.evaluation.figures import Curve
from rlhf_jax.evaluation.report import (
  Report,
  Stage,
  write_overview_png,
  write_report,
)
from rlhf_jax.pipelines import evaluate, labelled_rounds, provenance, summary
from rlhf_jax.programs import iterated, iterated_settings
from rlhf_jax.runs import stages

KL_TITLE = "KL to the first policy"
# Numbers of a round -> its column.
COLUMNS = {
  "round": "round",
  "comparisons": "labels learnt",
  "agreement": "agreement",
  "reward_accuracy": "RM accuracy",
  "freshness": "on the next",
  "judge_before": "SFT",
  "judge_after": "policy",
  "win_rate": "win rate",
  "kl_nats": "KL (nats)",
}


def judge_of(settings: Any, objective: str = "") -> str:
  """Returns who says what answers are worth, as evaluation.json names it.

  The preference of simulated annotators; where it is not known, the function
  of the evaluation, if there is one, else the reward model of the round itself,
  which trained the policy.
  """
  if not settings.is_simulated:
    return "verifier" if settings.evaluation.settings.reward_fn else "proxy"
  preference = settings.labels.preferences[objective]
  names = {iterated_settings.GOLD: "gold", iterated_settings.LEXICON: "vader"}
  return names.get(preference, "verifier")


def numbers_of(
  settings: Any, workdir: Path, number: int, objective: str = ""
) -> dict[str, Any]:
  """Returns the numbers of a finished round, by one of several objectives.

  comparisons: that its reward model learnt first in this round.
  agreement: share of pairs on which two annotators agree.
  reward_accuracy: of its reward model, on held-out comparisons.
  freshness: accuracy of its reward model on the comparisons of the next round,
    made by the policy that it trained; None in the last round.
  judge_before, judge_after, win_rate: of the policy against the SFT's, by
    `judge_of`; kl_nats: to the SFT's.
  """
  folder = labelled_rounds.round_folder(workdir, number)
  agreement = labelled_rounds.agreement_of(folder)
  reward, evaluation = (
    folder / iterated.by_objective(name, objective)
    for name in ("reward", "evaluation")
  )
  reward, found = stages.read_stage(reward), evaluate.read_result(evaluation)
  judge = judge_of(settings, objective)
  win = found.get(f"{judge}_win_rate", found.get("proxy_win_rate"))
  right, total = freshness(workdir, number + 1, objective)
  return {
    "round": number,
    **({"objective": objective} if objective else {}),
    "comparisons": _learnt(workdir, folder),
    "judgements": agreement["records"],
    "annotators": agreement["annotators"],
    "agreement": agreement.get("objectives", {"": agreement})[objective]["raw"],
    "reward_accuracy": summary.diagnosis(reward)["accuracy"],
    "reward_pairs": summary.diagnosis(reward)["pairs"],
    "freshness": right / total if total else None,
    "freshness_pairs": total,
    "judge": judge,
    "judge_before": found.get(f"{judge}_before"),
    "judge_after": found.get(f"{judge}_after"),
    "judge_standard_error": found.get(f"{judge}_standard_error"),
    "win_rate": win,
    "kl_nats": found.get("kl_nats"),
    "proxy_after": found.get("proxy_after"),
    "reference": settings.rounds.reference,
    "policy_start": settings.rounds.policy_start,
  }


def _learnt(workdir: Path, folder: Path) -> int:
  """Returns how many comparisons of a round its reward model learns.

  Those that ask what the frozen test set asks are none of them.
  """
  test = labelled_rounds.round_folder(workdir, 1) / iterated.TEST
  tested = iterated.read(test) if test.is_file() else []
  asked = {json.dumps(row["prompt"]) for row in tested}
  found = iterated.read(folder / iterated.TRAINED)
  return sum(json.dumps(row["prompt"]) not in asked for row in found)


def freshness(
  workdir: Path, number: int, objective: str = ""
) -> tuple[int, int]:
  """Returns (right, all) pairs of a round that the model before orders."""
  folder = labelled_rounds.round_folder(workdir, number)
  path = folder / iterated.FRESHNESS
  if not path.is_file():
    return 0, 0
  found = json.loads(path.read_text())
  found = found[objective] if objective else found
  return found["right"], found["pairs"]


def curves(settings: Any, rows: list[dict[str, Any]]) -> list[Curve]:
  """Returns the pictures by round; the KL is of no objective and comes once."""
  found: list[Curve] = []
  for name in settings.objectives:
    own = [row for row in rows if row.get("objective", "") == name]
    for curve in _curves(settings, own, name):
      if curve.title != KL_TITLE:
        title = f"{curve.title}: {name}" if name else curve.title
        found.append(dataclasses.replace(curve, title=title))
      elif name == settings.objectives[0]:
        found.append(curve)
  return found


def _curves(
  settings: Any, rows: list[dict[str, Any]], objective: str
) -> list[Curve]:
  """Returns the pictures of one objective, "" of the answers as a whole."""
  steps = [row["round"] for row in rows]

  def series(**fields: str) -> dict:
    return {
      label.replace("_", " "): (steps, [row[name] for row in rows])
      for label, name in fields.items()
      if any(row[name] is not None for row in rows)
    }

  judge = judge_of(settings, objective)
  threshold = settings.agreement.threshold
  return [
    Curve(
      f"What answers are worth ({judge})",
      "score",
      series(policy="judge_after", before="judge_before"),
      xlabel="round",
      caption="Against the first policy's answers to the same prompts. Down is "
      "bad.",
    ),
    Curve(
      "Win rate against the first policy",
      "share",
      series(win_rate="win_rate"),
      {"no difference": 0.5},
      xlabel="round",
      caption="Down is bad.",
    ),
    Curve(
      KL_TITLE,
      "nats",
      series(KL="kl_nats"),
      xlabel="round",
      caption="Of an answer; far up, the reward model is left behind.",
    ),
    Curve(
      "Accuracy of the reward model",
      "share",
      series(
        held_out="reward_accuracy", comparisons_of_the_next_round="freshness"
      ),
      {"chance": 0.5},
      xlabel="round",
      caption="A model knows the answers less that its own policy gives: that "
      "is why the next round is labelled.",
    ),
    Curve(
      "Agreement of annotators",
      "share",
      series(two_annotators="agreement"),
      {"warn": threshold},
      xlabel="round",
      caption="On the same answers. Down is bad.",
    ),
  ]


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
  """Returns the names of columns, and the cells of each round."""
  several = any("objective" in row for row in rows)
  columns = ({"objective": "objective"} if several else {}) | COLUMNS

  def cell(value: Any) -> str:
    if value is None or isinstance(value, (int, str)):
      return "" if value is None else str(value)
    return terminal.decimal(value, 3)

  cells = [[cell(row[name]) for name in columns] for row in rows]
  return list(columns.values()), cells


def _title(row: dict) -> str:
  """Returns what a row is of: "round 1", or "round 1, safe"."""
  name = row.get("objective", "")
  return f"round {row['round']}{f', {name}' if name else ''}"


def _warnings(settings: Any, rows: list[dict]) -> list[tuple[str, str]]:
  found = [("note", summary.TRIAL)] if provenance.is_smoke() else []
  for row in rows:
    share = row["agreement"]
    if share is not None and share < settings.agreement.threshold:
      found.append(
        (
          "warn",
          f"{_title(row)}: two annotators agree in {share:.1%}, below "
          f"{settings.agreement.threshold:.0%}",
        )
      )
  return found


def write(settings: Any, workdir: Path) -> dict:
  """Writes summary.json, report.html and overview.png; prints the table."""
  rows = [
    numbers_of(settings, workdir, number, name)
    for number in range(1, settings.rounds.count + 1)
    for name in settings.objectives
  ]
  seconds = summary.phase_seconds(workdir)
  numbers = {
    "seed": settings.seed,
    "judge": judge_of(settings, settings.objectives[0]),
    "reference": settings.rounds.reference,
    "policy_start": settings.rounds.policy_start,
    "seconds_total": sum(seconds.values()),
    "phase_seconds": seconds,
    "rounds": rows,
  }
  report = _report(settings, workdir, rows, seconds)
  (workdir / summary.SUMMARY_FILE).write_text(
    json.dumps(numbers, indent=2) + "\n"
  )
  write_report(workdir / "report.html", report)
  write_overview_png(workdir / "overview.png", report)
  print(f"\n{report.title}: {report.subtitle}\n")
  print(terminal.format_table(*table(rows)))
  return numbers


def _report(
  settings: Any, workdir: Path, rows: list[dict], seconds: dict[str, float]
) -> Report:
  """Returns the page; answers and table are those of the last round."""
  count = settings.rounds.count
  last = labelled_rounds.round_folder(workdir, count) / iterated.by_objective(
    "evaluation", settings.objectives[0]
  )
  texts = evaluate.read_texts(last)
  summary_rows = comparison.summary_rows(
    evaluate.read_result(last), f"round {count}"
  )
  facts = [
    ("reference of each round", settings.rounds.reference),
    ("each round's policy starts from", settings.rounds.policy_start),
    ("each round's reward model", settings.rounds.reward_start),
    ("labels", settings.labels.by),
    ("who answers", settings.comparisons.policies),
  ]
  return Report(
    title=settings.title,
    subtitle=f"seed {settings.seed}, {count} rounds of "
    f"{settings.comparisons.count} comparisons",
    facts=[
      *((k.replace("_", " "), value) for k, value in settings.facts.items()),
      *facts,
      *provenance.facts(settings.jobs, settings.seed),
    ],
    caveats=list(settings.caveats),
    summary_rows=summary_rows,
    curves=curves(settings, rows),
    stages=[
      Stage(
        _title(row).capitalize(),
        [
          (
            name.replace("_", " "),
            value if isinstance(value, str) else terminal.short(value),
          )
          for name, value in row.items()
          if value is not None
        ],
      )
      for row in rows
    ],
    phase_seconds=seconds,
    samples=texts[: summary.TEXTS_SHOWN],
    warnings=_warnings(settings, rows),
    rounds=table(rows),
  )
