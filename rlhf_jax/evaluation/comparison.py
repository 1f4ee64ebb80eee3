"""Two policies side by side: the rows of the report, and the printed table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlhf_jax import terminal
from rlhf_jax.evaluation.report import SummaryRow
from rlhf_jax.evaluation.tasks import outcomes

TEXTS_PRINTED = 4
_SEVERAL = re.compile(r"(\w+?)_(pass|best_of)_(\d+)(_by_proxy)?_before")


def _accuracy_note(ceiling: float | None) -> str:
  if ceiling is None:
    return "Share of held-out comparisons ordered as people did."
  return (
    "Held-out comparisons of single raters; people's own ceiling here is "
    f"{ceiling:.3f}."
  )


def summary_rows(
  numbers: dict, method: str, start: str = "SFT"
) -> list[SummaryRow]:
  """Returns the table of a report, rows without a number left out.

  Args:
    numbers: of summary.json or evaluation.json.
    method: what trained the policy, for people.
    start: what it is compared with.
  """
  rows = _all_rows(numbers, method, start)
  return [row for row in rows if row.after is not None]


def _all_rows(numbers: dict, method: str, start: str) -> list[SummaryRow]:
  return [
    *_scores(numbers, method, start),
    *_several(numbers),
    *_tax(numbers),
    SummaryRow(
      "VADER sentiment",
      *_sides(numbers, "vader"),
      numbers.get("vader_standard_error"),
      "A lexicon that nobody trained here, from -1 to 1; error of the paired "
      "difference.",
    ),
    SummaryRow(
      f"KL to the {start} policy (nats)",
      0.0,
      numbers.get("kl_nats"),
      numbers.get("kl_standard_error"),
      f"Mean over answers of log {method} - log {start}, summed over tokens.",
      is_headline=True,
    ),
    *_texts(numbers),
    SummaryRow(
      "Reward model accuracy",
      None,
      numbers.get("reward_model_accuracy"),
      None,
      _accuracy_note(numbers.get("reward_model_accuracy_ceiling")),
      decimals=3,
      is_headline=True,
    ),
  ]


def _sides(numbers: dict, name: str) -> tuple[float | None, float | None]:
  """Returns a number before and after training, None where it is not there."""
  return numbers.get(f"{name}_before"), numbers.get(f"{name}_after")


def _scores(numbers: dict, method: str, start: str) -> list[SummaryRow]:
  """Returns the rows of what judges say of the answers."""
  judges = ("gold", "proxy", "verifier")
  judge = next((x for x in judges if f"{x}_win_rate" in numbers), "gold")
  return [
    SummaryRow(
      "Reward model score (proxy)",
      *_sides(numbers, "proxy"),
      numbers.get("proxy_standard_error"),
      "The model that judges what the policy samples; in deviations of the "
      f"{start} policy's answers; error of the paired difference.",
    ),
    SummaryRow(
      "Held-out reward model (gold)",
      *_sides(numbers, "gold"),
      numbers.get("gold_standard_error"),
      f"A reward model trained on other sentences that {method} never saw; "
      "same units, error of the paired difference.",
      is_headline=True,
    ),
    SummaryRow(
      f"Win rate against {start} ({judge})",
      0.5,
      numbers.get(f"{judge}_win_rate"),
      numbers.get(f"{judge}_win_rate_standard_error"),
      f"Share of held-out prompts on which the {judge} model prefers the "
      f"{method} answer to the {start} answer; 0.5 is no difference.",
      decimals=3,
      is_headline=True,
    ),
    SummaryRow(
      "Verifier score",
      *_sides(numbers, "verifier"),
      numbers.get("verifier_standard_error"),
      "As the verifier, or the function, gives it; error of the paired "
      "difference.",
      decimals=3,
      is_headline=True,
    ),
  ]


def _texts(numbers: dict) -> list[SummaryRow]:
  """Returns the rows of what the answers look like, whoever judges them."""
  return [
    SummaryRow(
      "Distinct bigrams",
      *_sides(numbers, "distinct_2"),
      None,
      "Unique over all bigrams of the answers, equal sample counts; lower "
      "means more alike.",
      decimals=3,
    ),
    SummaryRow(
      "Repeated trigrams",
      *_sides(numbers, "repeated_3grams"),
      None,
      "Share of an answer's trigrams that it held before; up is an answer that "
      "loops.",
      decimals=3,
    ),
    SummaryRow(
      "Answer length (tokens)",
      *_sides(numbers, "length"),
      None,
      "Mean, the end token included.",
      decimals=1,
    ),
    SummaryRow(
      "Answers that end by themselves",
      *_sides(numbers, "eos_share"),
      None,
      "The others hit the length limit.",
      decimals=3,
    ),
  ]


def _tax(numbers: dict) -> list[SummaryRow]:
  """Returns a row of each capability that was measured before and after."""
  found = []
  for task, told in numbers.get("tax", {}).items():
    is_share = told["name"] not in outcomes.RATES
    what = told["name"].replace("_", " ")
    low, high = told["low"], told["high"]
    moved, unit = told["change"], "points" if is_share else "nats or bits"
    interval = "" if low is None else f" ({low:+.2f} to {high:+.2f})"
    found.append(
      SummaryRow(
        "All capabilities" if task == "overall" else f"Capability: {task}",
        told["before"],
        told["after"],
        None,
        f"{'Mean share' if task == 'overall' else what.capitalize()} of "
        f"{told['items']} items, no part of the training; it moved by "
        f"{moved:+.2f} {unit}{interval}, 95 % interval, paired by item.",
        decimals=3,
      )
    )
  return found


def _several(numbers: dict) -> list[SummaryRow]:
  """Returns the rows of several answers to a prompt: pass@k, best of n."""
  rows = []
  for key in numbers:
    found = _SEVERAL.fullmatch(key)
    if found is None:
      continue
    judge, what, count, by = found.groups()
    name = f"pass@{count}" if what == "pass" else f"Best of {count} ({judge})"
    note = (
      "Chance that one of so many answers is right, without bias."
      if what == "pass"
      else f"Mean {judge} score of the best of so many answers by "
      f"{'the proxy' if by else 'that judge'}."
    )
    stem = key.removesuffix("_before")
    rows.append(
      SummaryRow(
        f"{name}, chosen by the proxy" if by else name,
        numbers[key],
        numbers[f"{stem}_after"],
        numbers[f"{stem}_standard_error"],
        f"{note} Error of the paired difference.",
        decimals=3,
      )
    )
  return rows


def show(
  rows: Sequence[SummaryRow], texts: Sequence[dict[str, str]] = ()
) -> None:
  """Prints the table, and a few answers below each other.

  Args:
    rows: of the table.
    texts: rows of texts.jsonl.
  """
  cells = []
  for row in rows:
    numbers = [
      "" if value is None else terminal.decimal(value, row.decimals)
      for value in (row.before, row.after, row.standard_error)
    ]
    cells.append([row.name, *numbers])
  print(terminal.format_table(["", "before", "after", "std. error"], cells))
  for text in texts[:TEXTS_PRINTED]:
    print(f"\n{text['prompt'].strip()} ...")
    print(f"  before: {text['before'].strip()}")
    print(f"  after:  {text['after'].strip()}")
