"""What policies answer to the same prompts, and how two of them compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed, generate, terminal
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.evaluation import diversity, lexicon, win_rate
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import token_ratios
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


@dataclasses.dataclass(frozen=True)
class Answers:
  """What one policy said to every prompt.

  scores: scorer name -> [n], in units of that reward model's own reference.
  kl: [n] nats, sum over the response of log policy - log reference.
  pieces: of each answer, its tokens with their part of that; None for those
    beyond token_ratios.MOST_TOKENS, and where there is no reference.
  """

  prompts: list[str]
  texts: list[str]
  scores: dict[str, np.ndarray]
  kl: np.ndarray
  lengths: np.ndarray
  ended: np.ndarray
  pieces: Sequence[token_ratios.Pieces | None] = ()


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
) -> Answers:
  """Samples and judges the answers of one policy to batches of prompts.

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
  """
  prompts: list[str] = []
  texts: list[str] = []
  columns: dict[str, list] = {}
  pieces: list[token_ratios.Pieces | None] = []
  usual, room = 0, token_ratios.MOST_TOKENS
  total = sum(len(batch.tokens) for batch in prompt_batches)
  with terminal.Progress(f"evaluate {name}", total, unit="prompt") as progress:
    for batch in prompt_batches:
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
      pieces += token_ratios.of_samples(
        sampler.base.tokenizer, on_host, ratios, room if ratios.any() else 0
      )
      room -= int(np.sum(on_host.response_mask))
      rows = {f"score/{k}": v for k, v in scores.items()} | {
        "kl": np.sum(ratios, axis=1),
        "length": np.sum(on_host.response_mask, axis=1),
        "ended": on_host.finish_reason == FINISH_EOS,
      }
      for column, values in rows.items():
        columns.setdefault(column, []).append(values)
      progress.update(len(texts))
  joined = {name: np.concatenate(parts) for name, parts in columns.items()}
  return Answers(
    prompts=prompts,
    texts=texts,
    scores={
      name.removeprefix("score/"): values
      for name, values in joined.items()
      if name.startswith("score/")
    },
    kl=joined["kl"],
    lengths=joined["length"],
    ended=joined["ended"],
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
  before: Answers, after: Answers, uses_lexicon: bool
) -> dict[str, float]:
  """Returns the numbers of the report, by their names in summary.json.

  proxy_*, gold_*: normalised by mean and (population) deviation of `before`.
  verifier_*: as the verifier gave them.
  *_standard_error: of the paired difference after - before.
  *_win_rate_low, *_win_rate_high: 95 % bootstrap interval over prompts.
  None: a statistic that these answers do not define (no bigrams, say).
  """
  facts: dict[str, float] = {"evaluation_prompts": len(before.texts)}
  for shown, name in SCORES.items():
    if name not in before.scores:
      continue
    raw = np.asarray(before.scores[name], np.float64)
    mean, std = np.mean(raw), np.std(raw)
    std = std if std > 0.0 else 1.0  # all answers scored alike
    if shown == "verifier":  # its units mean something
      mean, std = 0.0, 1.0
    old = (raw - mean) / std
    new = (after.scores[name] - mean) / std
    change = win_rate.paired_difference(new, old)
    rate = win_rate.win_rate(new, old)
    low, high = win_rate.bootstrap_interval(win_rate.outcomes(new, old), seed=0)
    facts |= {
      f"{shown}_before": float(np.mean(old)),
      f"{shown}_after": float(np.mean(new)),
      f"{shown}_standard_error": change.standard_error,
      f"{shown}_win_rate": rate.value,
      f"{shown}_win_rate_standard_error": rate.standard_error,
      f"{shown}_win_rate_low": low,
      f"{shown}_win_rate_high": high,
    }
  if uses_lexicon:
    old = lexicon.vader_scores(full_texts(before))
    new = lexicon.vader_scores(full_texts(after))
    facts |= {
      "vader_before": float(np.mean(old)),
      "vader_after": float(np.mean(new)),
      "vader_standard_error": win_rate.paired_difference(
        new, old
      ).standard_error,
    }
  kl = win_rate.mean_with_error(after.kl)
  facts |= {"kl_nats": kl.value, "kl_standard_error": kl.standard_error}
  for name, answers in (("before", before), ("after", after)):
    facts |= finite.or_none(
      {
        f"distinct_2_{name}": diversity.distinct_n(answers.texts, 2),
        f"self_bleu_{name}": diversity.self_bleu(answers.texts[:64]),
        f"duplicate_share_{name}": diversity.duplicate_share(answers.texts),
        f"repeated_3grams_{name}": diversity.repeated_ngram_rate(answers.texts),
        f"length_{name}": float(np.mean(answers.lengths)),
        f"eos_share_{name}": float(np.mean(answers.ended)),
      }
    )
  return facts


def full_texts(answers: Answers) -> list[str]:
  """Returns prompt and response as one text each."""
  return [
    prompt + text
    for prompt, text in zip(answers.prompts, answers.texts, strict=True)
  ]
