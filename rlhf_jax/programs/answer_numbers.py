"""The numbers of a policy's answers, and how those of two policies compare."""

from __future__ import annotations

import numpy as np

from rlhf_jax.algorithms import best_of_n
from rlhf_jax.evaluation import diversity, embeddings, lexicon, spread, win_rate
from rlhf_jax.programs.answers import Answers
from rlhf_jax.runs import finite

# What the report calls the scores of a judge -> its name.
SCORES = {"proxy": "reward", "gold": "gold", "verifier": "verifier"}


def summarise(
  before: Answers,
  after: Answers,
  uses_lexicon: bool,
  correct_above: float | None = None,
  embed: embeddings.Embed | None = None,
) -> dict[str, float]:
  """Returns the numbers of the report, by their names in summary.json.

  proxy_*, gold_*: normalised by mean and (population) deviation of `before`.
  verifier_*: as the verifier gave them; verifier_pass_K and *_best_of_N as in
  `of_several`, where they are known.
  *_standard_error: of the paired difference after - before. The unit is the
    prompt: several answers to one count as their mean.
  *_win_rate_low, *_win_rate_high: 95 % bootstrap interval over prompts.
  None: a statistic that these answers do not define (no bigrams, say).

  Args:
    before, after: answers to the same prompts.
    uses_lexicon: VADER sentiment of the texts too.
    correct_above: a verifier's score above it is a right answer; None: nobody
      knows.
    embed: as in of_texts.
  """
  facts: dict[str, float] = {
    "evaluation_prompts": len(before.texts) // before.group
  }
  if before.group > 1:
    facts["evaluation_samples"] = before.group
  columns: tuple[dict, dict] = ({}, {})
  for shown, name in SCORES.items():
    if name not in before.scores:
      continue
    raw = np.asarray(before.scores[name], np.float64)
    mean, std = np.mean(raw), np.std(raw)
    std = std if std > 0.0 else 1.0  # all answers scored alike
    if shown == "verifier":  # its units mean something
      mean, std = 0.0, 1.0
    for side, answers in zip(columns, (before, after), strict=True):
      side[shown] = answers.by_prompt((answers.scores[name] - mean) / std)
    old, new = (side[shown] for side in columns)
    facts |= {
      f"{shown}_before": float(np.mean(old)),
      f"{shown}_after": float(np.mean(new)),
      f"{shown}_standard_error": difference(new, old).standard_error,
    }
    facts |= win_rates(shown, new, old)
  old, new = (of_several(side, correct_above) for side in columns)
  for name in old:
    facts |= _sides(name, old[name], new[name])
  if uses_lexicon:
    facts |= _sides("vader", *(sentiment(x) for x in (before, after)))
  if after.kl is not None:
    kl = win_rate.mean_with_error(after.by_prompt(after.kl).mean(axis=1))
    facts |= {"kl_nats": kl.value, "kl_standard_error": kl.standard_error}
  for name, answers in (("before", before), ("after", after)):
    found = of_texts(answers, embed)
    facts |= {f"{key}_{name}": value for key, value in found.items()}
  return facts


def _sides(name: str, old: np.ndarray, new: np.ndarray) -> dict[str, float]:
  """Returns means of [P] or [P, G], and the error of their difference."""
  old, new = (x.reshape(len(x), -1) for x in (old, new))
  return {
    f"{name}_before": float(np.mean(old)),
    f"{name}_after": float(np.mean(new)),
    f"{name}_standard_error": difference(new, old).standard_error,
  }


def difference(new: np.ndarray, old: np.ndarray) -> win_rate.Estimate:
  """Returns the mean of new - old of scores [P, G], paired by prompt."""
  return win_rate.paired_difference(new.mean(axis=1), old.mean(axis=1))


def win_rates(shown: str, new: np.ndarray, old: np.ndarray) -> dict[str, float]:
  """Returns how often new answers [P, G] beat old ones, by a judge's scores."""
  outcomes = win_rate.group_outcomes(new, old)
  rate = win_rate.mean_with_error(outcomes)
  low, high = win_rate.bootstrap_interval(outcomes, seed=0)
  return {
    f"{shown}_win_rate": rate.value,
    f"{shown}_win_rate_standard_error": rate.standard_error,
    f"{shown}_win_rate_low": low,
    f"{shown}_win_rate_high": high,
  }


def of_several(
  columns: dict[str, np.ndarray], correct_above: float | None
) -> dict[str, np.ndarray]:
  """Returns name -> [P] what several answers to a prompt are worth.

  verifier_pass_K: chance that one of K answers is right, without bias out of
    G >= K (Chen et al. 2021, arXiv:2107.03374, eq. 1); K = 1, 2, 4, ... G.
  JUDGE_best_of_N: score of the best of N by that judge, likewise.
  gold_best_of_N_by_proxy: gold's score of the best of N by the proxy.

  Args:
    columns: "proxy", "gold", "verifier" -> scores [P, G].
    correct_above: a verifier's score above it is a right answer, or None.
  """
  found: dict[str, np.ndarray] = {}

  def add(name: str, chosen_by: np.ndarray, of: np.ndarray, first: int):
    points = [n for n in best_of_n.curve_points(of.shape[1]) if n >= first]
    if points:
      curve = best_of_n.best_of_n_curve(chosen_by, of, points)
      found.update({name.format(n): curve[:, i] for i, n in enumerate(points)})

  if "verifier" in columns and correct_above is not None:
    right = np.float64(columns["verifier"] > correct_above)
    add("verifier_pass_{}", right, right, 1)
  for shown, scores in columns.items():
    add(shown + "_best_of_{}", scores, scores, 2)
  if "proxy" in columns and "gold" in columns:
    proxy, gold = columns["proxy"], columns["gold"]
    add("gold_best_of_{}_by_proxy", proxy, gold, 2)
  return found


def sentiment(answers: Answers) -> np.ndarray:
  """Returns [P, G] VADER scores of prompts with their answers."""
  return answers.by_prompt(lexicon.vader_scores(full_texts(answers)))


def of_texts(
  answers: Answers, embed: embeddings.Embed | None = None
) -> dict[str, float | None]:
  """Returns diversity and length of a policy's answers.

  With several answers to a prompt also the diversity within prompts and across
  them, at equal counts (evaluation/spread.py). None where these answers do not
  define a statistic.

  Args:
    answers: of one policy.
    embed: texts -> vectors, for the mean distance of answers, or None.
  """
  texts, group = answers.texts, answers.group
  ead = diversity.expectation_adjusted_distinct(texts)
  found = {
    "distinct_2": diversity.distinct_n(texts, 2),
    "expectation_adjusted_distinct": ead,
    "bigram_entropy_nats": diversity.ngram_entropy(texts, 2),
    "self_bleu": diversity.self_bleu(texts[:64]),
    "duplicate_share": diversity.duplicate_share(texts),
    "repeated_3grams": diversity.repeated_ngram_rate(texts),
    "length": float(np.mean(answers.lengths)),
    "eos_share": float(np.mean(answers.ended)),
  }
  if embed is not None:
    found["embedding_distance"] = spread.embedding_distance(embed(texts))
  if group > 1:
    groups = [texts[i : i + group] for i in range(0, len(texts), group)]
    found |= spread.facts(groups, embed)
  return finite.or_none(found)


def full_texts(answers: Answers) -> list[str]:
  """Returns prompt and response as one text each."""
  return [
    prompt + text
    for prompt, text in zip(answers.prompts, answers.texts, strict=True)
  ]
