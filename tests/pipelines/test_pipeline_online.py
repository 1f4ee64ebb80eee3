"""Online preferences and BOND as pipelines: learning, resume, eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.pipelines import bond, defaults
from rlhf_jax.programs import rollouts, sampled_steps, watch
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from rlhf_jax.types import FINISH_LENGTH, Rollout
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_resume import (
  Killed,
  assert_same_run,
  kill_at,
)

STEPS = 12
RATES = {"online_preference": 3e-2, "bond": 3e-2}


def make_config(files, pipeline, start, scorer, steps=STEPS):
  config = getattr(defaults, pipeline)()
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2)
  config.trainable.update(mode="lora", first_layer=tiny_runs.LORA_LAYER)
  config.init_from, config.reward = str(start), str(scorer)
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.update(
    max_new_tokens=tiny_runs.NEW_TOKENS,
    num_samples=2 if pipeline == "bond" else 4,
    temperature=0.9,
  )
  config.schedule.update(batch_size=8, steps=steps, save_every=5)
  config.optimizer.learning_rate = RATES[pipeline]
  config.guards.update(warn_nats=1e5, halt_nats=1e6)
  if pipeline == "bond":  # one sample a prompt, and best of two gains little
    config.schedule.batch_size = 16
    config.distillation.anchor_rate = 0.3
  return config


@pytest.fixture(scope="module")
def finished(files, sft_lora, reward_head):
  """Returns the folder of a finished run of a pipeline."""
  made = {}

  def folder(pipeline):
    if pipeline not in made:
      config = make_config(files, pipeline, sft_lora, reward_head)
      made[pipeline] = files.root / f"{pipeline}_whole"
      pipelines.run(config, made[pipeline])
    return made[pipeline]

  return folder


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", RATES)
def test_the_planted_word_is_learned(finished, pipeline):
  folder = finished(pipeline)
  rows = tiny_runs.rows_of(folder)
  score = [row["rollout/score_mean"] for row in rows]
  assert len(score) == STEPS
  assert np.mean(score[-3:]) > np.mean(score[:3]) + 0.3
  assert (
    abs(rows[0]["rollout/kl_k1_sum"]) < 1e-4 < rows[-1]["rollout/kl_k1_sum"]
  )
  # A policy to evaluate, and a start of further runs.
  info = stages.need_stage(folder, stages.POLICY)
  assert info["pipeline"] == pipeline and info["steps"] == STEPS


@pytest.mark.slow
def test_t11_the_first_online_step_is_at_the_reference(finished):
  """log 2 and no margin: both sides are at the sampler's temperature."""
  first = tiny_runs.rows_of(finished("online_preference"))[0]
  np.testing.assert_allclose(first["preference/loss"], np.log(2.0), atol=1e-4)
  np.testing.assert_allclose(first["preference/margin"], 0.0, atol=1e-4)
  assert first["pair/used_share"] > 0.9 and first["pair/gap"] > 0.0


@pytest.mark.slow
def test_the_first_bond_step_is_at_the_anchor(finished):
  rows = tiny_runs.rows_of(finished("bond"))
  np.testing.assert_allclose(rows[0]["bond/kl"], 0.0, atol=1e-4)
  anchor = [row["bond/anchor_score"] for row in rows]
  assert np.mean(anchor[-3:]) > np.mean(anchor[:3]) + 0.3  # it follows
  for row in rows:
    assert row["bond/best_score"] >= row["bond/anchor_score"]
    assert -np.log(16.0) <= row["bond/reward"] <= 0.0
  saved = tiny_runs.saved_arrays(finished("bond"))
  paths = [path for path in saved if path.startswith("anchor/")]
  start = tiny_runs.saved_arrays(
    finished("bond").parent / "sft_lora"
  )  # between the start and the policy
  far = near = 0.0
  for path in paths:
    name = path.removeprefix("anchor/")
    policy = saved[f"train/params/{name}"]
    begun = start[f"train/params/{name}"]
    far += float(np.sum((policy - begun) ** 2))
    near += float(np.sum((saved[path] - begun) ** 2))
  assert 0.0 < near < far


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", RATES)
def test_t20_trap_23_resume_bit_for_bit(
  files, sft_lora, reward_head, finished, pipeline, monkeypatch
):
  config = make_config(files, pipeline, sft_lora, reward_head)
  folder = files.root / f"{pipeline}_resumed"
  with monkeypatch.context() as patch:
    kill_at(patch, 8)
    with pytest.raises(Killed):
      pipelines.run(config, folder)
  pipelines.run(config, folder)
  assert_same_run(folder, finished(pipeline), STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", RATES)
def test_trap_12_eight_devices_give_the_same_numbers(
  files, sft_lora, reward_head, finished, pipeline
):
  """Up to the rollout of the second update, which reads the first one's.

  Later a token at the very edge of its interval of the cumulative distribution
  may fall on either side, as the weights differ by rounding.
  """
  config = make_config(files, pipeline, sft_lora, reward_head, steps=2)
  config.mesh.update(devices=8, data=8)
  folder = files.root / f"{pipeline}_8"
  pipelines.run(config, folder)
  found = tiny_runs.rows_of(folder)
  expected = tiny_runs.rows_of(finished(pipeline))[:2]
  for rows in (found, expected):
    rows[0].pop(
      "preference/accuracy", None
    )  # of margins that are 0 but for rounding
  tiny_runs.assert_close_rows(found, expected)


@pytest.mark.slow
def test_a_moved_reference_is_the_policy(files, sft_lora, reward_head):
  """Every second step starts at a loss of log 2 again, the others do not."""
  config = make_config(
    files, "online_preference", sft_lora, reward_head, steps=4
  )
  config.pairing.update(rule="random", reference_every=2)
  folder = files.root / "online_moved"
  pipelines.run(config, folder)
  rows = tiny_runs.rows_of(folder)
  is_there = [abs(row["preference/loss"] - np.log(2.0)) < 1e-4 for row in rows]
  assert is_there == [True, False, True, False]
  saved = tiny_runs.saved_arrays(folder)
  for path, leaf in saved.items():
    if path.startswith("reference/"):
      name = path.removeprefix("reference/")
      np.testing.assert_array_equal(leaf, saved[f"train/params/{name}"])


def test_ties_change_nothing(files, sft_lora, reward_head):
  config = make_config(
    files, "online_preference", sft_lora, reward_head, steps=2
  )
  config.pairing.minimum_gap = 1e6
  folder = files.root / "online_ties"
  pipelines.run(config, folder)
  for row in tiny_runs.rows_of(folder):
    assert row["pair/used_share"] == 0.0 and "preference/loss" not in row
  start = tiny_runs.saved_arrays(sft_lora)
  for path, leaf in tiny_runs.saved_arrays(folder).items():
    if path.startswith("train/params/"):
      np.testing.assert_array_equal(leaf, start[path])


def test_a_rank_is_not_made_of_rounding():
  """The same answers, judged in another batch, are as good as before."""

  def judged(scores):
    rows = np.ones((len(scores), 3), np.float32)
    rollout = Rollout(
      tokens=np.arange(len(scores) * 3).reshape(-1, 3),
      valid_mask=rows,
      response_mask=rows,
      behaviour_logprobs=-rows,
      finish_reason=np.zeros(len(scores), np.int32),
      reference_logprobs=-rows,
      score=np.asarray(scores, np.float32),
    )
    return jax.tree.map(jnp.asarray, rollout)

  anchor = judged([0.5, 0.5, 1.0, 2.0, 3.0, 1.0])
  own = judged([0.5 - 1e-6, 0.9, 2.0])
  best, ratio = bond.teach(anchor, own, bond.Target())
  np.testing.assert_allclose(ratio, [0.0, -np.log(16.0), 0.0], rtol=1e-6)
  np.testing.assert_array_equal(best.tokens[:, 0], [0, 9, 12])
  _, ratio = bond.teach(anchor, own, bond.Target(kind="bond"))
  at_most = np.log(np.array([3, 1, 2]) / 3)
  np.testing.assert_allclose(ratio, at_most + np.log(2), rtol=1e-5)
  # The best of two, though a third one is there for the rank.
  two = jax.tree.map(lambda x: x[:2], own)
  best, _ = bond.teach(anchor, two, bond.Target(kind="bond"))
  np.testing.assert_array_equal(best.tokens[:, 0], [0, 12])


def test_the_own_answer_is_sampled_however_those_of_the_anchor_are(files):
  config = make_config(files, "bond", "start", "judge")
  config.generate.update(batch_size=8, refill=True)
  how = bond.once(tiny_runs.settings_of(config))
  assert (how.num_samples, how.batch_size, how.refill) == (1, None, None)


@pytest.mark.slow
def test_bond_of_a_fixed_anchor(files, sft_lora, reward_head):
  config = make_config(files, "bond", sft_lora, reward_head, steps=3)
  config.generate.num_samples = 6
  config.target.update(kind="bond", n=4)
  config.distillation.anchor_rate = 0.0
  folder = files.root / "bond_fixed"
  pipelines.run(config, folder)
  rows = tiny_runs.rows_of(folder)
  # With the anchor at the start both KLs are of the same samples.
  for row in rows:
    np.testing.assert_allclose(
      row["bond/kl"], row["rollout/kl_k1_sum"], atol=1e-4
    )
    assert 3 * np.log(1 / 7) + np.log(4) <= row["bond/reward"] <= np.log(4)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", RATES)
def test_a_kl_out_of_hand_stops_the_run(
  files, sft_lora, reward_head, pipeline, capsys
):
  config = make_config(files, pipeline, sft_lora, reward_head)
  config.guards.update(warn_nats=0.02, halt_nats=0.05)
  folder = files.root / f"{pipeline}_halted"
  info = pipelines.run(config, folder)
  assert "guards.halt_nats=0.05" in info["halted"]
  assert info["steps"] < STEPS
  assert "stopped at step" in capsys.readouterr().out


def test_trap_16_a_negative_kl_is_an_alarm(capsys):
  row = {"rollout/kl_k1_sum": -0.3, "rollout/kl_k1_standard_error": 0.05}
  found = watch.guard({"alarms": []}, row, 4, watch.Guards(), "bond")
  assert found["alarms"][0][0] == 5 and "below 0" in found["alarms"][0][1]
  assert "warning at step 5" in capsys.readouterr().out
  again = watch.guard(found, row, 5, watch.Guards(), "bond")
  assert len(again["alarms"]) == 1
  noise = row | {"rollout/kl_k1_sum": -0.05}
  quiet = {"alarms": []}
  assert watch.guard(quiet, noise, 4, watch.Guards(), "bond") == quiet


def test_an_answer_without_an_end_loses_points(files, sft_lora):
  del files
  samples = tiny_runs.load_samples(sft_lora / "samples.npz")
  rows = len(samples.tokens)
  fields = {name: value for name, value in vars(samples).items()}
  rollout = Rollout(
    **fields,
    reference_logprobs=samples.behaviour_logprobs,
    score=jnp.ones(rows),
  )
  batch = rollouts.Judged(rollout, {"reward": rollout.score})
  assert sampled_steps.penalised(batch, watch.Guards()) is rollout
  found = sampled_steps.penalised(batch, watch.Guards(missing_eos_penalty=0.75))
  is_cut = np.asarray(samples.finish_reason) == FINISH_LENGTH
  assert 0 < is_cut.sum() < rows
  np.testing.assert_allclose(found.score, np.where(is_cut, 0.25, 1.0))
  with pytest.raises(ValueError, match="missing_eos_penalty=-1"):
    watch.Guards(missing_eos_penalty=-1.0)


@pytest.mark.parametrize(
  "pipeline, changes, message",
  [
    (
      "online_preference",
      {"algorithm.name": "kto"},
      "'kto': must be one of dpo.* which compare two answers of one policy",
    ),
    ("online_preference", {"algorithm.name": "dqo"}, "Did you mean 'dpo'"),
    ("online_preference", {"generate.num_samples": 1}, "num_samples=1.*>= 2"),
    ("online_preference", {"generate.top_p": 0.9}, "top_p=0.9"),
    ("online_preference", {"verifier.name": "exact"}, "one of them judges"),
    ("online_preference", {"pairing.rule": "two"}, "pairing.rule='two'"),
    (
      "online_preference",
      {"algorithm.name": "simpo", "pairing.reference_every": 5},
      "'simpo' has no reference",
    ),
    (
      "online_preference",
      {"accumulation.microbatches": 3},
      "multiple of accumulation.micro",
    ),
    ("bond", {"generate.num_samples": 3}, "J-BOND compares with two"),
    ("bond", {"target.n": 4}, "n=4: J-BOND"),
    (
      "bond",
      {"target.kind": "bond", "target.n": 8},
      "target.n=8: the best of n",
    ),
    ("bond", {"schedule.batch_size": 1}, "batch_size=1: the baseline"),
    ("bond", {"guards.warn_nats": 30.0}, "warn_nats=30.0 > halt_nats"),
  ],
)
def test_what_cannot_work_is_refused(
  files, sft_lora, reward_head, pipeline, changes, message
):
  config = make_config(files, pipeline, sft_lora, reward_head)
  config.guards.update(warn_nats=15.0, halt_nats=20.0)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    tiny_runs.checked(config)
