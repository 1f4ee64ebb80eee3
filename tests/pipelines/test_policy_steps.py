"""One step of a policy run: what it samples from, learns and carries on."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import metrics
from rlhf_jax.algorithms.policy_gradient import shaping
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import policy_step, policy_training, rollouts
from rlhf_jax.types import FINISH_EOS, FINISH_LENGTH, Rollout, TrainState
from tests.letters import Letters
from tests.pipelines import tiny_runs

KL = 0.3


def state_of(params):
  zero = jnp.int32(0)
  return TrainState(zero, params, {}, zero)


LAYOUT = types.SimpleNamespace(cell=np.zeros((6, 4)))  # six packed rows


def judged():
  """Returns two judged answers, "b" and "b", to "a"."""
  mask = jnp.asarray([[0.0, 1.0], [0.0, 1.0]])
  rollout = Rollout(
    tokens=jnp.asarray([[97, 98], [97, 98]]),
    valid_mask=jnp.ones((2, 2)),
    response_mask=mask,
    behaviour_logprobs=-mask,
    finish_reason=jnp.full((2,), FINISH_EOS),
    reference_logprobs=-2.0 * mask,
    score=jnp.asarray([1.0, 2.0]),
  )
  scores = {"reward": rollout.score, "gold": jnp.asarray([3.0, 6.0])}
  return rollouts.Judged(rollout, scores, {"greedy": "further"}, LAYOUT)


class Watched:
  """A step whose programs only count, and what they were called with."""

  def __init__(self, has_recompute=False, text=None, **shape):
    self.critics, self.prepared, self.updates, self.shown = [], [], [], []
    config = defaults.policy("ppo")
    config.value.pretrain_steps = 2
    config.shaping.update(kl_target=0.1, kl_horizon=20.0, kl_coefficient=0.5)
    config.shaping.update(shape)
    programs = {
      "prepare": self.prepare,
      "update": self.update,
      "value update": self.value_update,
    }
    if has_recompute:
      programs["recompute"] = self.recompute
    self.settings = tiny_runs.settings_of(config)
    self.step = policy_training.Step(
      settings=self.settings,
      phase=Phase(programs),
      actors=types.SimpleNamespace(
        frozen={"policy": {"base": 1.0}, "value": {"base": 2.0}},
        plan=types.SimpleNamespace(is_value_on_policy=False),
      ),
      draw=self.draw,
      text=text,
      tokenizer=Letters(),
      key=jax.random.key(0),
      timer=metrics.Timer(),
      monitors=("gold",),
      writer=types.SimpleNamespace(
        write_samples=lambda *rest: self.shown.append(rest)
      ),
    )

  def draw(self, params, critic, key, usual):
    assert usual == 0 or usual == 6  # rows of the step before
    del key
    with self.step.timer("rollout"):
      self.critics.append((float(params["w"]), float(critic["w"])))
    assert critic["base"] == 2.0
    return judged(), {"group/rounds": 1.0}

  def recompute(self, params, frozen, rollout, layout):
    assert frozen == self.step.actors.frozen
    return rollout.replace(score=rollout.score + 1.0), {"rollout/gap": KL}

  def prepare(self, rollout, moments, beta, layout, further):
    assert (layout, further) == (LAYOUT, {"greedy": "further"})
    self.prepared.append((float(beta), float(moments.count)))
    moments = moments.replace(count=moments.count + 2.0)
    row = {"rollout/kl_k1_sum": jnp.float32(KL)} | {
      "rollout/kl_k1_standard_error": jnp.float32(0.1),
      "rollout/eos_share": jnp.float32(1.0),
      "rollout/entropy": jnp.float32(1.0),
      "rollout/score_mean": jnp.mean(rollout.score),
    }
    return rollout, moments, row

  def update(self, state, frozen, rollout, key, *extra):
    self.updates.append(("both", *extra))
    params = jax.tree.map(lambda x: x + 1.0, state.params)
    return state.replace(params=params), {"ppo/loss": jnp.float32(1.0)}

  def value_update(self, state, frozen, rollout, key):
    self.updates.append(("critic",))
    assert frozen == {"base": 2.0}
    params = jax.tree.map(lambda x: x + 10.0, state.params)
    return state.replace(params=params, skipped=jnp.int32(1)), {}

  def run(self, steps, beta=0.5):
    """Returns arrays, facts and rows of steps from the start."""
    trained = {"policy": {"w": jnp.float32(0.0)}, "value": {"w": jnp.zeros(())}}
    arrays = {
      "train": state_of(trained),
      "critic": state_of(trained["value"]),
      "moments": shaping.init_moments(),
      "beta": jnp.float32(beta),
    }
    facts, rows = {"alarms": []}, []
    for number in range(steps):
      arrays, facts, row = self.step(number, arrays, facts)
      rows.append(row)
    return arrays, facts, rows


class Phase(dict):
  """Programs by name, on one device."""

  mesh = property(lambda self: mesh_lib.make_mesh(mesh_lib.Config(devices=1)))


def test_the_critic_trains_first_and_samples_are_valued_by_it():
  watched = Watched()
  arrays, _, _ = watched.run(4)
  assert watched.updates == [("critic",)] * 2 + [("both",)] * 2
  assert watched.critics == [(0, 0), (0, 10), (0, 20), (1, 21)]
  assert float(arrays["train"].params["value"]["w"]) == 22.0
  assert int(arrays["critic"].skipped) == 0  # a refused step ends with its part


def test_what_is_carried_from_step_to_step():
  """beta from 0.5: + 0.2 of 2 answers in 20 a step, error cut at 0.2."""
  watched = Watched()
  arrays, _, rows = watched.run(4)
  factor = 1.0 + 2 / 20 * 0.2
  betas = [0.5, 0.5, 0.5, 0.5 * factor]  # not while the critic trains alone
  np.testing.assert_allclose([b for b, _ in watched.prepared], betas, rtol=1e-6)
  np.testing.assert_allclose(arrays["beta"], 0.5 * factor**2, rtol=1e-6)
  assert [count for _, count in watched.prepared] == [0, 2, 4, 6]
  assert float(arrays["moments"].count) == 8.0
  assert rows[3]["eval/gold"] == 4.5
  assert rows[3]["group/rounds"] == 1.0 and rows[3]["ppo/loss"] == 1.0
  assert rows[3]["rollout/duplicate_share"] == 0.5
  assert [step for step, _, _ in watched.shown] == [1, 2, 3, 4]
  assert watched.shown[0][1][1] == {
    "prompt": "a",
    "response": "b",
    "reward": 2.0,
    "gold": 6.0,
  }


def test_a_fixed_beta_is_what_settings_say_now():
  """A checkpoint of before they changed has 0.5."""
  watched = Watched(kl_controller="fixed", kl_coefficient=0.25)
  arrays, _, _ = watched.run(3)
  assert [beta for beta, _ in watched.prepared] == [0.25] * 3
  assert float(arrays["beta"]) == 0.25
  watched = Watched()  # adaptive now, and off before: it would stay 0
  watched.run(2, beta=0.0)
  assert [beta for beta, _ in watched.prepared] == [0.5] * 2


def test_log_probabilities_are_recomputed_before_rewards():
  watched = Watched(has_recompute=True)
  _, _, [row] = watched.run(1)
  assert row["rollout/score_mean"] == 2.5
  assert row["rollout/gap"] == pytest.approx(KL)


def test_text_is_read_by_updates_of_the_policy_alone():
  text = iter([np.zeros((1, 2)), np.ones((1, 2)), np.full((1, 2), 2.0)])
  watched = Watched(text=text)
  watched.run(4)
  assert [len(update) for update in watched.updates] == [1, 1, 2, 2]
  assert [float(x[0, 0]) for _, x in watched.updates[2:]] == [0.0, 1.0]


def test_right_answers_are_shares_of_all_that_were_sampled():
  """One of two, though missing_eos="mask" takes the wrong one, cut, out."""
  config = defaults.policy("grpo")
  config.verifier.name, config.generate.num_samples = "exact", 2
  config.shaping.update(
    missing_eos="mask", kl_coefficient=0.0, kl_controller="fixed"
  )
  rollout = judged().rollout.replace(
    score=jnp.asarray([1.0, 0.0]),
    finish_reason=jnp.asarray([FINISH_EOS, FINISH_LENGTH]),
  )
  prepared, _, row = policy_step.prepare(
    rollout,
    shaping.init_moments(),
    jnp.float32(0.0),
    None,
    {},
    settings=tiny_runs.settings_of(config),
  )
  np.testing.assert_array_equal(prepared.response_mask, [[0, 1], [0, 0]])
  assert (row["group/pass1"], row["group/passG"]) == (0.5, 1.0)
