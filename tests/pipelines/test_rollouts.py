"""Dynamic sampling: which groups a batch keeps, what is counted, resume."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.algorithms.policy_gradient import dapo
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import resampling, rollouts
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from rlhf_jax.types import FINISH_EOS, FINISH_LENGTH, Rollout
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_resume import (
  Killed,
  assert_same_run,
  kill_at,
)

GROUP = 3
LENGTH = 5


@dataclasses.dataclass
class Crafted:
  """A source whose scores were written by hand: [round, prompt, answer]."""

  scores: np.ndarray
  finish: np.ndarray | None = None
  keys: list = dataclasses.field(default_factory=list)
  mesh = mesh_lib.make_mesh(mesh_lib.Config(devices=1))

  def batch(self, policy, critic, key, usual):
    del policy, critic, usual
    number = len(self.keys)
    self.keys.append(jax.random.key_data(key).tolist())
    score = self.scores[number].reshape(-1).astype(np.float32)
    rows = len(score)
    # What was drawn where: round in the hundreds, row in the ones.
    tokens = np.broadcast_to(
      100 * number + np.arange(rows)[:, None], (rows, LENGTH)
    )
    ones = np.ones((rows, LENGTH), np.float32)
    finish = np.full(rows, FINISH_EOS, np.int32)
    if self.finish is not None:
      finish = self.finish[number].reshape(-1)
    rollout = Rollout(
      tokens=tokens.astype(np.int32),
      valid_mask=ones,
      response_mask=ones,
      behaviour_logprobs=-ones,
      finish_reason=finish,
      reference_logprobs=-ones,
      score=score,
    )
    rollout = jax.tree.map(jnp.asarray, rollout)
    return rollouts.Judged(rollout, {"reward": jnp.asarray(score)})

  def layout(self, samples, usual):
    del samples


def drawn(source, rounds, drops_truncated=False):
  """Returns the origins [P, G] of the batch, its scores, the metrics."""
  batch, row = resampling.informative_batch(
    source,
    {},
    {},
    jax.random.key(1),
    group_size=GROUP,
    rounds=rounds,
    drops_truncated=drops_truncated,
  )
  np.testing.assert_array_equal(batch.scores["reward"], batch.rollout.score)
  origin = np.asarray(batch.rollout.tokens)[:, 0].reshape(-1, GROUP)
  return origin, np.asarray(batch.rollout.score).reshape(-1, GROUP), row


SCORES = np.array(
  [
    [[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]],
    [[0, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]],
    [[1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0]],
  ]
)


def test_places_by_hand():
  is_new, source = resampling.places(
    np.array([True, False, True, False]), np.array([False, False, True, True])
  )
  assert is_new.tolist() == [False, True, False, True]
  assert source.tolist() == [0, 2, 2, 3]
  is_new, source = resampling.places(
    np.zeros(3, bool), np.array([0, 1, 0], bool)
  )
  assert is_new.tolist() == [True, False, False]
  assert source.tolist() == [1, 1, 2]


def test_uninformative_groups_are_replaced_in_order_and_counted():
  """Of 12 groups drawn, 1 + 1 + 3 are informative; the last is not used."""
  source = Crafted(SCORES)
  origin, scores, row = drawn(source, rounds=10)
  assert len(source.keys) == 3 == row["group/rounds"]
  assert len({str(key) for key in source.keys}) == 3
  assert origin.tolist() == [
    [106, 107, 108],
    [3, 4, 5],
    [200, 201, 202],
    [203, 204, 205],
  ]
  assert all(len(set(group)) > 1 for group in scores.tolist())
  assert row["group/accepted_share"] == 5 / 12
  assert row["group/unfilled_share"] == 0.0
  np.testing.assert_allclose(row["group/drawn_score"], SCORES.mean(), rtol=1e-6)


def test_what_stays_unfilled_is_said_and_kept_as_it_was():
  origin, _, row = drawn(Crafted(SCORES), rounds=2)
  assert origin[:, 0].tolist() == [106, 3, 6, 9]
  assert row["group/unfilled_share"] == 0.5
  assert row["group/accepted_share"] == 2 / 8
  assert row["group/rounds"] == 2.0


def test_truncated_answers_do_not_make_a_group_informative():
  """Where missing_eos="mask" takes them out of the loss."""
  finish = np.full(SCORES.shape, FINISH_EOS)
  finish[0, 1, 1] = FINISH_LENGTH  # the one right answer of group 1
  _, _, row = drawn(Crafted(SCORES, finish), rounds=1)
  assert row["group/accepted_share"] == 1 / 4
  _, _, row = drawn(Crafted(SCORES, finish), rounds=1, drops_truncated=True)
  assert row["group/accepted_share"] == 0.0


def test_rounds_below_one_are_refused():
  with pytest.raises(ValueError, match="resample_rounds=0: must be >= 1"):
    dapo.Config(resample_rounds=0)


def dapo_config(files, start, rounds):
  """DAPO on answers with the planted word; most groups are mixed or empty."""
  config = tiny_runs.policy_config(files, "lora", start, "")
  config.algorithm = defaults.policy("dapo").algorithm
  config.algorithm.resample_rounds = rounds
  config.value.pretrain_steps = 0
  config.schedule.update(
    steps=5, batch_size=4, save_every=2, asynchronous=False
  )
  config.shaping.update(kl_coefficient=0.0, kl_controller="fixed")
  config.generate.num_samples = 3
  config.epochs.update(epochs=1, minibatches=2)
  config.verifier.name = "pattern"
  config.verifier.settings.update(
    pattern=rf"\b{tiny_runs.PLANTED}\b", mode="search"
  )
  path = files.root / "questions_dapo.jsonl"
  prompts = tiny_runs.rows_of(files.root, "prompts.jsonl")
  path.write_text(
    "".join(json.dumps(row | {"reference": ""}) + "\n" for row in prompts)
  )
  config.prompts.source = str(path)
  return config


@pytest.mark.slow
def test_t20_trap_23_dapo_resumes_bit_for_bit(files, sft_lora, monkeypatch):
  """Also where a step draws several batches of prompts."""
  config = dapo_config(files, sft_lora, rounds=6)
  whole = files.root / "dapo_whole"
  pipelines.run(config, whole)
  rows = tiny_runs.rows_of(whole)
  assert max(row["group/rounds"] for row in rows) > 1
  for row in rows:
    assert row["ppo/first_ratio_error"] < 1e-4
    assert row["group/zero_variance_share"] == row["group/unfilled_share"]
    if row["group/rounds"] < 6:
      assert row["group/unfilled_share"] == 0.0
  position = tiny_runs.saved_meta(whole, 5)["iterators"]["prompts"]["position"]
  drawn = sum(row["group/rounds"] for row in rows)
  assert str(int(drawn)) in json.dumps(position)
  folder = files.root / "dapo_resumed"
  with monkeypatch.context() as patch:
    kill_at(patch, 4)
    with pytest.raises(Killed):
      pipelines.run(config, folder)
  pipelines.run(config, folder)
  assert_same_run(folder, whole, 5)


@pytest.mark.slow
def test_trap_12_dapo_on_eight_devices(files, sft_lora):
  config = dapo_config(files, sft_lora, rounds=4)
  config.schedule.update(steps=2, batch_size=8)
  config.epochs.minibatches = 1
  whole, split = files.root / "dapo_1", files.root / "dapo_8"
  pipelines.run(config, whole)
  config.mesh.update(devices=8, data=8)
  pipelines.run(config, split)
  tiny_runs.assert_close_rows(
    tiny_runs.rows_of(split), tiny_runs.rows_of(whole)
  )
  assert stages.read_stage(split)["steps"] == 2


def test_other_methods_do_not_resample(files, sft_lora):
  config = dapo_config(files, sft_lora, rounds=4)
  config.algorithm.name = "grpo"
  with pytest.raises(UserError, match="resample_rounds=4.*one of dapo"):
    tiny_runs.checked(config)
