"""Rounds of rejection sampling by hand: what is drawn, kept, trained on."""

import dataclasses
import json
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import generate
from rlhf_jax.algorithms import best_of_n
from rlhf_jax.pipelines import rejection
from rlhf_jax.programs import rejection_samples, rollouts
from rlhf_jax.programs.rejection_rounds import KEPT_FILE, folder_of
from rlhf_jax.runs.loop import Schedule
from rlhf_jax.types import FINISH_EOS, FINISH_LENGTH, Rollout
from tests.letters import Letters

# Two prompts, "a" padded and "bc", and two answers to each: "d", "ef" without
# an end; "g", "h".
TOKENS = np.array(
  [
    [[2, 97, 100, 2], [2, 97, 101, 102]],
    [[98, 99, 103, 2], [98, 99, 104, 2]],
  ]
)
RESPONSE = np.broadcast_to(np.float32([0, 0, 1, 1]), TOKENS.shape)
VALID = np.array([[[0, 1, 1, 1]] * 2, [[1, 1, 1, 1]] * 2], np.float32)
SCORE = np.float32([[1.0, 3.0], [2.0, -1.0]])


def a_pool(**changes):
  fields = dict(
    tokens=TOKENS,
    valid_mask=VALID,
    response_mask=RESPONSE,
    score=SCORE,
    logprob=np.full((2, 2), -2.0),
    kl=np.zeros((2, 2)),
    ended=np.array([[True, False], [True, True]]),
  )
  return rejection_samples.Pool(**fields | changes)


def select(pool, **rounds):
  found, row = rejection_samples.select(
    pool,
    rejection_samples.Rounds(**rounds),
    best_of_n.Config(rule="all", minimum_score=-9.0),
  )
  return found.tolist(), row


def test_each_filter_at_its_limit():
  pool = a_pool()
  everything = [[True, True], [True, True]]
  assert select(pool, keep_truncated=True, min_tokens=2)[0] == everything
  assert select(pool, keep_truncated=True, max_tokens=2)[0] == everything
  found, row = select(pool)
  assert found == [[True, False], [True, True]]
  assert row["rejection/truncated_share"] == 1 / 4
  found, row = select(pool, min_tokens=3)
  assert not np.any(found) and row["rejection/length_share"] == 1.0
  twice = a_pool(tokens=np.stack([TOKENS[0], TOKENS[1, [0, 0]]]))
  found, row = select(twice, keep_truncated=True)
  assert found == [[True, True], [True, False]]
  assert row["rejection/duplicate_share"] == 1 / 4
  found, _ = select(twice, keep_truncated=True, keep_duplicates=True)
  assert found == everything


def test_what_is_kept_is_what_was_sampled():
  rows = rejection_samples.kept_rows(
    a_pool(), np.array([[True, False], [False, True]]), Letters(), 3
  )
  assert rows == [
    {
      "round": 3,
      "prompt": "a",
      "response": "d",
      "score": 1.0,
      "prompt_tokens": [97],
      "response_tokens": [100, 2],
    },
    {
      "round": 3,
      "prompt": "bc",
      "response": "h",
      "score": -1.0,
      "prompt_tokens": [98, 99],
      "response_tokens": [104, 2],
    },
  ]


def write(folder, *pairs):
  """Writes a kept.jsonl of (prompt tokens, response tokens)."""
  path = folder / KEPT_FILE
  rows = [{"prompt_tokens": p, "response_tokens": r} for p, r in pairs]
  rejection_samples.write_kept(path, rows)
  assert [json.loads(line) for line in path.open()] == rows
  return path


def test_trap_05_17_sampled_tokens_are_the_targets(tmp_path):
  one = write(tmp_path / "1", ([5, 6], [7, 2]), ([5], [8]), ([5], [8]))
  two = write(tmp_path / "2", ([5], [8]), ([9], [7, 7]))
  rows, digest = rejection_samples.read_kept([one])
  assert [row["tokens"].tolist() for row in rows] == [[5, 6, 7, 2], [5, 8]] + [
    [5, 8]  # one file holds a sample as often as its round kept it
  ]
  assert [row["loss_mask"].tolist() for row in rows] == [[0, 0, 1, 1]] + [
    [0, 1]
  ] * 2
  pooled, other = rejection_samples.read_kept([one, two])
  tokens = [row["tokens"].tolist() for row in pooled]
  assert tokens == [[5, 6, 7, 2], [5, 8], [9, 7, 7]]
  assert digest != other


class Crafted:
  """A source of two batches of one prompt, two answers each."""

  def __init__(self):
    self.keys = []

  def batch(self, policy, critic, key):
    assert (policy, critic) == ("params", {})
    number = len(self.keys)
    self.keys.append(tuple(np.ravel(jax.random.key_data(key)).tolist()))
    response = jnp.asarray(RESPONSE[number])
    rollout = Rollout(
      tokens=jnp.asarray(TOKENS[number]),
      valid_mask=jnp.asarray(VALID[number]),
      response_mask=response,
      behaviour_logprobs=-(1.0 + number) * response,
      finish_reason=jnp.asarray([FINISH_LENGTH, FINISH_EOS]),
      reference_logprobs=-3.0 * response,
      score=jnp.asarray(SCORE[number]),
    )
    scores = {"reward": rollout.score, "other": rollout.score + 10.0}
    return rollouts.Judged(rollout, scores)


def test_batches_of_a_round_are_drawn_with_keys_of_their_own():
  source = Crafted()
  pool = rejection_samples.collect(
    source, "params", jax.random.key(4), 2, 2, ["other"]
  )
  assert len(set(source.keys)) == 2
  np.testing.assert_array_equal(pool.tokens, TOKENS)
  np.testing.assert_array_equal(pool.score, SCORE)
  np.testing.assert_array_equal(pool.monitors["other"], SCORE + 10.0)
  np.testing.assert_array_equal(pool.logprob, [[-2.0, -2.0], [-4.0, -4.0]])
  np.testing.assert_array_equal(pool.kl, [[4.0, 4.0], [2.0, 2.0]])
  np.testing.assert_array_equal(pool.ended, [[False, True], [False, True]])


@dataclasses.dataclass(frozen=True)
class Wired:
  """A phase that nothing compiles."""

  params: Any
  steps: int
  shape: Any
  name: str = ""
  world: Any = None


@pytest.mark.parametrize(
  "start, is_pooled",
  [("base", False), ("base", True), ("previous", False)],
)
def test_what_a_round_starts_from_and_trains_on(
  tmp_path, monkeypatch, start, is_pooled
):
  for number, token in ((1, 7), (2, 8), (3, 9)):
    write(folder_of(tmp_path, number), ([5], [token]))
  seen, written = [], []

  def fit(phase, rows, frozen, **options):
    seen.append((phase, rows, frozen, options))
    options["told"]["steps"] = options["total_steps"]
    return "trained"

  monkeypatch.setattr(rejection, "wire", lambda s, opened, *rest: Wired(*rest))
  monkeypatch.setattr(rejection.language_model, "fit", fit)
  monkeypatch.setattr(
    rejection.stages, "write_stage", lambda *a, **k: written.append((a, k))
  )
  opened = types.SimpleNamespace(
    base="base",
    world=types.SimpleNamespace(
      workdir=tmp_path, at=lambda folder: folder, ways=1
    ),
    actors=types.SimpleNamespace(
      params={"policy": "begun"},
      plan=types.SimpleNamespace(policy="role"),
      merged_from="",
    ),
    frozen="frozen",
    identity={"model_fingerprint": "model"},
  )
  settings = rejection.Settings(
    rounds=rejection_samples.Rounds(start=start, pool=is_pooled),
    generate=generate.Config(max_new_tokens=4),
    schedule=Schedule(batch_size=1, steps=11),
    seed=40,
  )
  assert rejection.train_round(settings, opened, "last", 3, {}) == "trained"
  [(phase, rows, frozen, options)] = seen
  expected = [7, 8, 9] if is_pooled else [9]
  assert [row["tokens"].tolist() for row in rows] == [[5, t] for t in expected]
  assert phase.params == ("begun" if start == "base" else "last")
  assert (phase.steps, phase.shape.targets) == (11, 4)
  assert phase.world == folder_of(tmp_path, 3)
  assert frozen == "frozen"
  assert (options["seed"], options["total_steps"]) == (43, 11)
  assert options["identity"]["model_fingerprint"] == "model"
  assert options["identity"]["round"] == 3
  [(_, facts)] = written
  assert (facts["examples"], facts["steps"]) == (len(expected), 11)
