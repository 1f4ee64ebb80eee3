"""What policies answer to the same prompts, and how two of them compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed, generate, terminal
from rlhf_jax.algorithms import best_of_n
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.evaluation import diversity, embeddings, lexicon, spread, win_rate
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import token_ratios
from rlhf_jax.programs.answer_parts import Parts
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.rewards import judge
from rlhf_jax.rewards import texts as texts_lib
from rlhf_jax.rewards.reader import Readers
from rlhf_jax.rewards.texts import sample_texts
from rlhf_jax.runs import finite
from rlhf_jax.schema import FieldError
from rlhf_jax.types import (
  FINISH_EOS,
  Array,
  PromptBatch,
  PyTree,
  Rollout,
  Samples,
)

# What the report calls the scores of a judge -> its name.
SCORES = {"proxy": "reward", "gold": "gold", "verifier": "verifier"}


def check_sampling(how: generate.Config) -> None:
  """Raises FieldError for sampling of which no KL or error can be told."""
  if how.min_new_tokens:
    raise FieldError(
      f"generate.min_new_tokens={how.min_new_tokens}: the KL compares full "
      "distributions. Set 0."
    )
  if how.temperature == 0.0 or how.is_truncated:
    raise FieldError(
      f"generate: temperature={how.temperature}, top_k={how.top_k}, "
      f"top_p={how.top_p}, min_p={how.min_p}: the KL compares full "
      "distributions, and "
      "greedy or truncated ones have none to the reference. Set a "
      "temperature > 0, top_k=0, top_p=1.0 and min_p=0.0."
    )
  if how.cache_dtype is not None:
    raise FieldError(
      f"generate.cache_dtype={how.cache_dtype!r}: the KL would carry what the "
      "cache rounds. Set None."
    )
  if how.num_samples > 1:
    raise FieldError(
      f"generate.num_samples={how.num_samples}: answers to one prompt are "
      "not independent, and the standard errors assume that they are. Set 1 "
      "and a larger count."
    )


def has_kl(how: generate.Config) -> bool:
  """Says whether the KL of answers that are sampled so can be told.

  Of greedy, truncated and forced answers and of a cache that rounds it cannot.
  """
  is_full = how.temperature > 0.0 and not how.is_truncated
  return is_full and not how.min_new_tokens and how.cache_dtype is None


@dataclasses.dataclass(frozen=True)
class Answers:
  """What one policy said to every prompt, n = prompts x group answers.

  scores: scorer name -> [n], in units of that reward model's own reference.
  kl: [n] nats, sum over the response of log policy - log reference; None where
    it cannot be told.
  group: answers to a prompt, which stand together.
  pieces: of each answer, its tokens with their part of the KL; None for those
    beyond token_ratios.MOST_TOKENS, and where there is no KL.
  """

  prompts: list[str]
  texts: list[str]
  scores: dict[str, np.ndarray]
  kl: np.ndarray | None
  lengths: np.ndarray
  ended: np.ndarray
  group: int = 1
  pieces: Sequence[token_ratios.Pieces | None] = ()

  def first(self, count: int) -> Answers:
    """Returns the answers to the first `count` prompts."""
    return self.of(np.arange(count))

  def of(self, numbers: np.ndarray) -> Answers:
    """Returns the answers to some of the prompts.

    Args:
      numbers: [P] int, of the prompts.
    """
    each = np.arange(self.group)
    kept = (np.asarray(numbers)[:, None] * self.group + each).reshape(-1)
    return self._kept(kept)

  def _kept(self, kept: np.ndarray) -> Answers:
    """Returns some of the answers, by their numbers."""
    return dataclasses.replace(
      self,
      prompts=[self.prompts[i] for i in kept],
      texts=[self.texts[i] for i in kept],
      scores={name: x[kept] for name, x in self.scores.items()},
      kl=None if self.kl is None else self.kl[kept],
      lengths=self.lengths[kept],
      ended=self.ended[kept],
      pieces=[self.pieces[i] for i in kept] if self.pieces else (),
    )

  def best(self, judge: str) -> Answers:
    """Returns the best answer to each prompt, the first of equals.

    Its KL is None: the log-ratio of what was chosen is not that of choosing.

    Args:
      judge: a name in `scores`.
    """
    scores = self.by_prompt(self.scores[judge])
    kept = np.arange(len(scores)) * self.group + np.argmax(scores, axis=1)
    return dataclasses.replace(
      self._kept(kept), kl=None, group=1, pieces=[None] * len(kept)
    )

  def by_prompt(self, values: np.ndarray) -> np.ndarray:
    """Returns [P, G] float64 of values [n]."""
    return np.asarray(values, np.float64).reshape(-1, self.group)


def answer(
  sampler: Sampler,
  params: PyTree,
  judge_samples: Callable[..., tuple[Rollout, dict[str, Array]]],
  weights: judge.Weights,
  prompt_batches: list[PromptBatch],
  key: jax.Array,
  *,
  name: str,
  mesh: jax.sharding.Mesh,
  packed: packing.Config,
  verifier: texts_lib.Judge | None = None,
  readers: Readers | None = None,
  tells_kl: bool = True,
  parts: Parts | None = None,
) -> Answers:
  """Samples and judges the answers of one policy to batches of prompts.

  Batches that are done already are not answered again.

  Args:
    sampler: of the policy.
    params: its trainable tree.
    judge_samples: from judge.make_judge; its reference is what the KL is to,
      and without one the KL is 0.
    weights: of the judge.
    prompt_batches: on the host.
    key: of the samples.
    name: for the progress line.
    mesh: where it runs.
    packed: of the rows that are judged.
    verifier: what judges texts, as scores "verifier"; None for nothing.
    readers: the reward models that read text, or None.
    tells_kl: whether log-probabilities of sampler and reference compare.
    parts: where each batch is kept when it is done, or None.
  """
  prompts: list[str] = []
  texts: list[str] = []
  columns: dict[str, list] = {}
  pieces: list[token_ratios.Pieces | None] = []
  usual, group, done = 0, 1, 0
  room = token_ratios.MOST_TOKENS
  total = sum(len(batch.tokens) for batch in prompt_batches)
  with terminal.Progress(f"evaluate {name}", total, unit="prompt") as progress:
    for number, batch in enumerate(prompt_batches):
      kept = None if parts is None else parts.read(name, number)
      if kept is not None:
        rows, said = kept
        prompts, texts = prompts + said["prompts"], texts + said["texts"]
        pieces += said["pieces"]
        room -= int(np.sum(rows["length"]))
        for column, values in rows.items():
          columns.setdefault(column, []).append(values)
        group = len(said["texts"]) // len(batch.tokens)
        done += len(batch.tokens)
        progress.update(done)
        continue
      placed = mesh_lib.spread_batch(mesh, batch)
      samples, streams = sampler.with_streams(params, placed, key)
      on_host: Samples = distributed.fetch(samples)
      layout = _layout(on_host, packed, sampler, mesh, usual)
      usual = usual if layout is None else layout.cell.shape[0]
      rollout, scores = judge_samples(weights, {}, samples, layout, streams)
      if readers is not None:
        scores = scores | readers(samples, batch.index)
      if verifier is not None:
        found, _ = verifier(samples, batch.index)
        scores = scores | {"verifier": found}
      found = sample_texts(sampler.base.tokenizer, on_host)
      prompts += [prompt for prompt, _ in found]
      texts += [text for _, text in found]
      scores, *logprobs = distributed.fetch(
        (scores, rollout.behaviour_logprobs, rollout.reference_logprobs)
      )
      ratios = np.subtract(*logprobs)
      own = token_ratios.of_samples(
        sampler.base.tokenizer, on_host, ratios, room if ratios.any() else 0
      )
      pieces += own
      room -= int(np.sum(on_host.response_mask))
      rows = {f"score/{k}": v for k, v in scores.items()} | {
        "kl": np.sum(ratios, axis=1),
        "length": np.sum(on_host.response_mask, axis=1),
        "ended": on_host.finish_reason == FINISH_EOS,
      }
      if parts is not None:
        asked, answered = ([row[i] for row in found] for i in (0, 1))
        told = {"prompts": asked, "texts": answered, "pieces": own}
        parts.write(name, number, rows, told)
      for column, values in rows.items():
        columns.setdefault(column, []).append(values)
      group = len(on_host.tokens) // len(batch.tokens)
      done += len(batch.tokens)
      progress.update(done)
  joined = {name: np.concatenate(parts) for name, parts in columns.items()}
  return Answers(
    prompts=prompts,
    texts=texts,
    scores={
      name.removeprefix("score/"): values
      for name, values in joined.items()
      if name.startswith("score/")
    },
    kl=joined["kl"] if tells_kl else None,
    lengths=joined["length"],
    ended=joined["ended"],
    group=group,
    pieces=pieces,
  )


def _layout(
  samples: Samples,
  packed: packing.Config,
  sampler: Sampler,
  mesh: Any,
  usual: int,
) -> packing.Packing | None:
  """Returns how answers share rows, None where each has its own."""
  if packed.row_tokens == 0:
    return None
  new, ways = sampler.config.max_new_tokens, mesh_lib.row_ways(mesh)
  shape = packing.shape_of(packed, *samples.tokens.shape, new, ways)
  return None if shape is None else packing.plan(samples, shape, usual)


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
