"""The samples of a round of rejection sampling: judged, selected, kept.

What is kept is a file of JSON lines with the sampled tokens, which are trained
on as they are, and their text, which is for reading. rejection.py has the
rounds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, strict_json, terminal
from rlhf_jax.algorithms import best_of_n
from rlhf_jax.programs import rollouts, sampled_steps
from rlhf_jax.rewards import combination, texts
from rlhf_jax.schema import FieldError
from rlhf_jax.types import FINISH_EOS, Components, PyTree


@dataclasses.dataclass(frozen=True)
class Rounds:
  """How often, from which prompts, and on what each round trains."""

  count: int = 3  # how many rounds; Llama 2 made four
  prompts: int = 256  # sampled in a round; RAFT 2,048
  batch_size: int = 32  # prompts sampled together
  start: str = "base"  # what each round trains: the policy that the run started
  # from (Llama 2, ReST-EM), or that of the round before (RAFT)
  pool: bool = False  # train on what all rounds so far kept (Llama 2)
  min_tokens: int = 1  # of an answer, its end included; shorter are left out
  max_tokens: int | None = None  # longer answers are left out; None: no limit
  keep_truncated: bool = False  # keep answers without an end, which teach not
  # to end
  keep_duplicates: bool = False  # keep each copy of one answer to one prompt

  def __post_init__(self) -> None:
    for name in ("count", "prompts", "batch_size", "min_tokens"):
      if getattr(self, name) < 1:
        raise FieldError(f"{name}={getattr(self, name)}: must be >= 1.")
    if self.start not in ("base", "previous"):
      raise FieldError(
        f"start={self.start!r}: must be 'base' (each round trains the start of "
        "the run) or 'previous' (the policy of the round before)."
      )
    if self.prompts % self.batch_size:
      raise FieldError(
        f"batch_size={self.batch_size}: must divide prompts={self.prompts}. "
        "Change one of them."
      )
    if self.max_tokens is not None and self.max_tokens < self.min_tokens:
      raise FieldError(
        f"max_tokens={self.max_tokens}: below min_tokens={self.min_tokens}, so "
        "nothing could be kept. Raise it, or set None."
      )


@dataclasses.dataclass(frozen=True)
class Pool:
  """The judged samples of a round, on the host: P prompts, K answers.

  tokens, valid_mask, response_mask: [P, K, L].
  score: [P, K] float32. logprob, kl: [P, K] nats of the whole answer, of the
    policy that sampled it, and its log-ratio to the start of the run.
  ended: [P, K] bool.
  monitors: name of a reward model that only watches -> [P, K] scores.
  parts: what several judges said of each answer, by the names of rewards/
    combination.py -> [P, K]; {} with one judge.
  state: of what combined them, after all samples; None with one judge.
  """

  tokens: np.ndarray
  valid_mask: np.ndarray
  response_mask: np.ndarray
  score: np.ndarray
  logprob: np.ndarray
  kl: np.ndarray
  ended: np.ndarray
  monitors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  parts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  state: PyTree = None


def collect(
  source: rollouts.Source,
  params: PyTree,
  key: jax.Array,
  count: int,
  num_samples: int,
  monitors: Iterable[str] = (),
  state: PyTree = None,
) -> Pool:
  """Returns the judged samples of the next `count` batches of prompts.

  What several judges say is combined once all of them are there, so that all
  samples of a round are on one scale.

  Args:
    source: open.
    params: trainable tree of the policy.
    key: random key of the round.
    count: batches of prompts.
    num_samples: K.
    monitors: names of reward models that only watch.
    state: of what combines several judges, before the round; None with one.
  """
  parts = []
  with terminal.Progress("sample", count) as progress:
    for number in range(count):
      several = {} if state is None else {"state": state}
      batch_key = jax.random.fold_in(key, number)
      batch = source.batch(params, {}, batch_key, **several)
      rollout, state = batch.rollout, batch.combination
      parts.append(
        distributed.fetch(
          {
            "tokens": rollout.tokens,
            "valid_mask": rollout.valid_mask,
            "response_mask": rollout.response_mask,
            "score": rollout.score,
            "logprob": jnp.sum(rollout.behaviour_logprobs, axis=-1),
            "kl": sampled_steps.kl_to_reference(rollout),
            "ended": rollout.finish_reason == FINISH_EOS,
          }
          | {f"eval/{name}": batch.scores[name] for name in monitors}
          | _said(batch)
        )
      )
      progress.update(number + 1)
  flat = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
  if state is not None:
    found = Components(*(flat.pop(name) for name in _COMPONENTS))
    flat |= distributed.fetch(source.panel.again(found, state))
  joined = {n: sampled_steps.by_prompt(x, num_samples) for n, x in flat.items()}
  watched = {name: joined.pop(f"eval/{name}") for name in monitors}
  said = {name: joined.pop(name) for name in flat if name.startswith(_PARTS)}
  return Pool(**joined, monitors=watched, parts=said, state=state)


_COMPONENTS = ("values", "mask", "tagged")  # of types.Components
_PARTS = (texts.COMPONENT, combination.COMBINATION)


def _said(batch: rollouts.Judged) -> dict[str, Any]:
  """Returns what several judges said of a batch, {} with one."""
  found = batch.rollout.components
  if found is None:
    return {}
  parts = {name: getattr(found, name) for name in _COMPONENTS}
  return parts | {
    name: x for name, x in batch.scores.items() if name.startswith(_PARTS)
  }


def write_state(path: Path, state: PyTree) -> None:
  """Writes the state of several judges after a round; all processes wait."""
  if distributed.is_first():
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves = [np.asarray(x).tolist() for x in jax.tree.leaves(state)]
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"leaves": leaves}) + "\n")
    os.replace(temporary, path)
  distributed.barrier(str(path.name))


def read_state(path: Path, like: PyTree) -> PyTree:
  """Returns what `write_state` wrote, in the form of `like`."""
  remedy = "Delete the round's folder."
  leaves = strict_json.read_object(path, remedy)["leaves"]
  found = [np.asarray(x, np.float32) for x in leaves]
  return jax.tree.unflatten(jax.tree.structure(like), found)


def select(
  pool: Pool, rounds: Rounds, rule: best_of_n.Config
) -> tuple[np.ndarray, dict[str, float]]:
  """Returns [P, K] bool, the samples to fine-tune on, and what fell out.

  Metrics:
    rejection/duplicate_share, rejection/length_share,
      rejection/truncated_share: shares of all samples that fell out. Up is
      bad: they were sampled for nothing.

  Args:
    pool: samples of a round.
    rounds: the filters.
    rule: what of the rest is kept.
  """
  lengths = pool.response_mask.sum(axis=-1)
  fits = lengths >= rounds.min_tokens
  if rounds.max_tokens is not None:
    fits &= lengths <= rounds.max_tokens
  ends = pool.ended | rounds.keep_truncated
  new = best_of_n.first_of_its_kind(pool.tokens, pool.response_mask)
  valid = fits & ends & (new | rounds.keep_duplicates)
  kept = best_of_n.rejection_sample(
    jnp.asarray(pool.score)[None], jnp.asarray(valid)[None], rule
  )
  return np.asarray(kept)[0], {
    "rejection/duplicate_share": float(np.mean(~new)),
    "rejection/length_share": float(np.mean(~fits)),
    "rejection/truncated_share": float(np.mean(~pool.ended)),
  }


def report(
  pool: Pool, kept: np.ndarray, panel: combination.Panel | None = None
) -> dict[str, float]:
  """Returns what a round's samples are worth, and how far they move.

  Metrics:
    rejection/score_mean, rejection/score_median, rejection/score_max: means
      over prompts of the mean, median and best of K. Falling is bad; a maximum
      that stays at the median leaves nothing to learn.
    rejection/kept, rejection/kept_score: samples kept, and their mean score;
      the latter is absent where none is.
    rejection/prompts_share: prompts with a sample that was kept. Falling is
      bad: what is hard leaves the training.
    rejection/best_of_N: score of the best of N, unbiased, N = 1, 2, 4, ... K.
    rejection/best_of_n_kl, rejection/best_of_n_kl_bound: estimate and bound of
      KL(best of K || one sample), nats.
    rejection/kl: nats an answer of the sampling policy to the start of the
      run. Up is drift.
    eval/NAME: mean score of each monitor. Falling while score_mean rises is
      overoptimisation.

  Args:
    pool: samples of a round.
    kept: [P, K] bool.
    panel: several judges, or None.
  """
  most = pool.score.shape[1]
  ns = best_of_n.curve_points(most)
  curve = best_of_n.best_of_n_curve(pool.score, pool.score, ns).mean(axis=0)
  winners = np.asarray(best_of_n.select_best(jnp.asarray(pool.score)))
  logprobs = np.take_along_axis(pool.logprob, winners[:, None], axis=1)[:, 0]
  estimate = best_of_n.kl_estimates(np.minimum(logprobs, 0.0), most)
  found = {
    "rejection/score_mean": float(pool.score.mean()),
    "rejection/score_median": float(np.median(pool.score, axis=1).mean()),
    "rejection/score_max": float(pool.score.max(axis=1).mean()),
    "rejection/kept": float(kept.sum()),
    "rejection/prompts_share": float(kept.any(axis=1).mean()),
    "rejection/best_of_n_kl": float(estimate.mean()),
    "rejection/best_of_n_kl_bound": best_of_n.kl_bound(most),
    "rejection/kl": float(pool.kl.mean()),
    **{
      f"rejection/best_of_{n}": float(x) for n, x in zip(ns, curve, strict=True)
    },
    **{f"eval/{name}": float(x.mean()) for name, x in pool.monitors.items()},
  }
  if panel is not None:
    said = {name: x.reshape(-1) for name, x in pool.parts.items()}
    found |= panel.means(said, most)
  if kept.any():
    found["rejection/kept_score"] = float(pool.score[kept].mean())
  return found


def texts_of(
  pool: Pool, prompt: int, sample: int, tokenizer: Any
) -> tuple[str, str]:
  """Returns the texts of a prompt and of one answer to it."""
  tokens = pool.tokens[prompt, sample]
  response = pool.response_mask[prompt, sample] > 0
  before = (pool.valid_mask[prompt, sample] > 0) & ~response
  known = tokens < tokenizer.vocab_size
  return (
    tokenizer.decode(tokens[before & known].tolist()),
    tokenizer.decode(tokens[response & known].tolist()),
  )


def kept_rows(
  pool: Pool, kept: np.ndarray, tokenizer: Any, number: int
) -> list[dict]:
  """Returns one JSON object for each sample that is kept, best rounds last.

  Args:
    pool: samples of a round.
    kept: [P, K] bool.
    tokenizer: for the texts, which are for reading only.
    number: of the round, from 1.
  """
  rows = []
  for prompt, sample in np.argwhere(kept):
    tokens = pool.tokens[prompt, sample]
    response = pool.response_mask[prompt, sample] > 0
    before = (pool.valid_mask[prompt, sample] > 0) & ~response
    asked, answered = texts_of(pool, prompt, sample, tokenizer)
    rows.append(
      {
        "round": number,
        "prompt": asked,
        "response": answered,
        "score": float(pool.score[prompt, sample]),
        "prompt_tokens": tokens[before].tolist(),
        "response_tokens": tokens[response].tolist(),
      }
    )
  return rows


def write_kept(path: Path, rows: list[dict]) -> None:
  """Writes kept.jsonl, which is absent or complete; all processes wait."""
  if distributed.is_first():
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(temporary, path)
  distributed.barrier(str(path.name))


KEPT = {"prompt_tokens": list, "response_tokens": list}  # of kept.jsonl


def read_kept(paths: list[Path]) -> tuple[list[dict], str]:
  """Returns training rows of the samples in files, each once, and a digest.

  Args:
    paths: kept.jsonl of one or several rounds.
  """
  rows, seen, digest = [], set(), hashlib.sha256()
  for path in paths:
    digest.update(path.read_bytes())
    for row in strict_json.read_rows(path, KEPT, "Delete the round's folder."):
      prompt, response = row["prompt_tokens"], row["response_tokens"]
      same = (tuple(prompt), tuple(response))
      if same in seen and len(paths) > 1:
        continue
      seen.add(same)
      mask = [0.0] * len(prompt) + [1.0] * len(response)
      rows.append(
        {
          "tokens": np.asarray(prompt + response, np.int32),
          "loss_mask": np.asarray(mask, np.float32),
        }
      )
  return rows, digest.hexdigest()
