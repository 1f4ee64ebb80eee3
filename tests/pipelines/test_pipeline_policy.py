"""PPO as a pipeline: what it learns, what it leaves alone, when it stops."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.algorithms.policy_gradient import shaping
from rlhf_jax.interrupt import Stopped
from rlhf_jax.models import outputs, roles, trees
from rlhf_jax.models.rows import Rows
from rlhf_jax.pipelines import defaults, policy
from rlhf_jax.programs import watch
from rlhf_jax.runs import loop, stages
from rlhf_jax.runs.checkpoint import CheckpointError
from rlhf_jax.schema import UserError
from rlhf_jax.types import Samples
from tests.pipelines import tiny_runs

PRETRAIN = 2  # steps of the LoRA run that train the critic alone


def test_the_score_rises_on_the_planted_word(policy_lora):
  rows = tiny_runs.rows_of(policy_lora)
  assert [row["step"] for row in rows] == list(range(1, 21))
  scores = [row["rollout/score_mean"] for row in rows]
  assert np.mean(scores[-5:]) > np.mean(scores[: PRETRAIN + 1]) + 0.5
  samples = tiny_runs.rows_of(policy_lora, "samples.jsonl")
  share = {
    last: np.mean(
      [
        tiny_runs.PLANTED in row["response"]
        for row in samples
        if (row["step"] > 10) == last
      ]
    )
    for last in (False, True)
  }
  assert share[True] > share[False]


def test_t03_n11_trap_08_24_the_first_ratio_is_one(policy_lora, policy_full):
  """In every step: a sampler with stale or unmerged weights would show."""
  rows = tiny_runs.rows_of(policy_lora)[PRETRAIN:]
  rows += tiny_runs.rows_of(policy_full)
  assert len(rows) == 22
  for row in rows:
    assert row["ppo/first_ratio_error"] < 1e-4
    assert row["ppo/first_clip_fraction"] == 0.0
    assert row["ppo/ratio_error_max"] > 1e-3  # and later ones are not


@pytest.mark.parametrize("run", ["policy_lora", "policy_full"])
def test_t17_the_policy_starts_as_its_reference(run, request):
  rows = tiny_runs.rows_of(request.getfixturevalue(run))
  before = PRETRAIN + 1 if run == "policy_lora" else 1
  for row in rows[:before]:
    assert abs(row["rollout/kl_k1_sum"]) < 1e-5
    assert row["rollout/kl_k3_sum"] < 1e-5
  assert rows[before]["rollout/kl_k3_sum"] > 1e-3


def test_trap_30_31_only_trainable_leaves_are_saved_and_move(
  files, policy_lora, policy_full
):
  lora = tiny_runs.saved_arrays(policy_lora)
  for path in lora:
    if path.startswith("train/params/policy/"):
      assert "/lora_" in path
    if path.startswith("train/params/value/"):
      assert path.startswith("train/params/value/head/")
  moments = {p for p in lora if "opt_state" in p and lora[p].ndim > 0}
  assert moments
  assert all("/lora_" in path or "/head/" in path for path in moments)
  full = tiny_runs.saved_arrays(policy_full)
  start = tiny_runs.saved_arrays(files.root / "sft_full")
  moved = 0
  for path, leaf in start.items():
    if path.startswith("train/params/params/"):
      now = full[path.replace("train/params/", "train/params/policy/", 1)]
      moved += not np.array_equal(now, leaf)
  assert moved == sum(p.startswith("train/params/params/") for p in start)


@pytest.mark.parametrize("run", ["policy_lora", "policy_full"])
def test_trap_30_reference_and_reward_model_keep_their_bits(
  run, request, records
):
  """After the last step, in the arrays that the run held itself."""
  request.getfixturevalue(run)
  record = records[run]
  jax.tree.map(np.testing.assert_array_equal, record.before, record.frozen)
  assert len(jax.tree.leaves(record.before)) > 30


@pytest.mark.parametrize("run", ["policy_lora", "policy_full"])
def test_trap_32_a_rollout_is_fixed_for_all_its_epochs(run, request, records):
  rows = tiny_runs.rows_of(request.getfixturevalue(run))
  rollouts = records[run].rollouts
  assert len(rollouts) == sum("ppo/policy_loss" in row for row in rows)
  for before, after in rollouts:
    jax.tree.map(np.testing.assert_array_equal, before, after)
    mask = before.response_mask > 0
    assert before.behaviour_logprobs[mask].max() < 0.0
    assert not before.advantages[~mask].any()


def test_value_pretraining_trains_the_critic_alone(
  files, sft_lora, policy_lora
):
  after = tiny_runs.saved_arrays(policy_lora, PRETRAIN)
  start = tiny_runs.saved_arrays(sft_lora)
  compared = 0
  for path, leaf in after.items():
    if path.startswith("train/params/policy/"):
      old = start[path.replace("/policy/", "/", 1)]
      np.testing.assert_array_equal(leaf, old, err_msg=path)
      compared += 1
    if path.startswith("train/opt_state") and leaf.ndim:
      assert not leaf.any(), path
    if path.startswith("train/params/value/"):
      critic = path.replace("train/params/value/", "critic/params/")
      np.testing.assert_array_equal(leaf, after[critic])
  assert compared > 5
  assert after["train/step"] == 0 and after["critic/step"] > 0
  residual = after["train/params/value/head/residual/kernel"]
  assert np.abs(residual).max() > 0.0  # starts at 0
  rows = tiny_runs.rows_of(policy_lora)
  assert "ppo/policy_loss" not in rows[PRETRAIN - 1]
  assert "ppo/policy_loss" in rows[PRETRAIN]
  variance = [row["ppo/explained_variance"] for row in rows[: PRETRAIN + 1]]
  assert variance[-1] > variance[0]


def test_ptx_text_is_mixed_in(files, sft_full, reward_full, policy_full):
  """The first rollout's text costs what the start of the run says it does."""
  config = tiny_runs.full_policy_config(files, sft_full, reward_full)
  base, world = tiny_runs.load_base(config), tiny_runs.world_of(config)
  text = next(policy.ptx_loader(tiny_runs.settings_of(config), world, base))
  stage = stages.load(sft_full, stages.POLICY, base, world)
  rows = Rows.of(text)
  logprobs, _ = jax.jit(
    lambda variables: outputs.logprobs(
      stage.role, variables, rows, text.loss_mask
    )
  )(stage.variables)
  parts = [
    -np.sum(np.asarray(logprobs)[first::2]) / np.sum(text.loss_mask[first::2])
    for first in (0, 1)  # of two minibatches
  ]
  found = tiny_runs.rows_of(policy_full)
  # The first update's rate is 0, the next three move the weights a little.
  np.testing.assert_allclose(
    found[0]["ppo/ptx_loss"], np.mean(parts), rtol=0.02
  )
  for row in found:
    assert row["ppo/gradient_norm_ptx_ratio"] > 0.0
  assert set(tiny_runs.saved_meta(policy_full, 4)["iterators"]) == {
    "prompts",
    "ptx",
  }


def test_the_adaptive_coefficient_follows_the_kl_and_is_saved(policy_lora):
  rows = tiny_runs.rows_of(policy_lora)
  gain, target = 32 / 80.0, 6.0
  beta = 0.1
  for row in rows:
    np.testing.assert_allclose(row["ppo/kl_coefficient"], beta, rtol=1e-5)
    if row["step"] > PRETRAIN:
      error = np.clip(row["rollout/kl_k1_sum"] / target - 1.0, -0.2, 0.2)
      beta *= 1.0 + gain * error
  saved = tiny_runs.saved_arrays(policy_lora)
  np.testing.assert_allclose(saved["beta"], beta, rtol=1e-5)
  np.testing.assert_allclose(saved["moments/count"], 32 * 20)
  stage = stages.read_stage(policy_lora)
  np.testing.assert_allclose(stage["kl_coefficient"], beta, rtol=1e-5)
  assert stage["halted"] is None


def test_a_run_with_too_much_kl_stops_and_says_so(
  files, sft_lora, reward_head, capsys, monkeypatch
):
  config = tiny_runs.policy_config(files, "lora", sft_lora, reward_head)
  config.shaping.update(warn_nats=1e-3, halt_nats=2e-3)
  config.policy_optimizer.warmup_steps = 0
  config.schedule.steps = 18
  folder = files.root / "policy_halted"
  info = pipelines.run(config, folder)
  rows = tiny_runs.rows_of(folder)
  assert len(rows) < 20 and rows[-1]["rollout/kl_k1_sum"] > 2e-3
  assert info["halted"].startswith(f"stopped at step {len(rows)}: KL")
  assert "shaping.halt_nats=0.002" in info["halted"]
  assert info["halted"] in capsys.readouterr().out
  final = tiny_runs.saved_meta(folder, len(rows))
  assert final["facts"]["halt"] == info["halted"]

  def refuse(*args, **options):
    raise AssertionError("went on")

  monkeypatch.setattr(loop, "run_steps", refuse)
  assert pipelines.run(config, folder) == info


def test_loading_a_policy_gives_what_was_saved(files, policy_lora):
  config = tiny_runs.sft_config(files, "lora")
  base = tiny_runs.load_base(config)
  stage = stages.load(
    policy_lora, stages.POLICY, base, tiny_runs.world_of(config)
  )
  saved = tiny_runs.saved_arrays(policy_lora)
  flat = trees.flatten(stage.variables)
  trained = [p for p in flat if roles.is_trainable(stage.role, p)]
  assert trained
  for path in trained:
    np.testing.assert_array_equal(
      flat[path], saved[f"train/params/policy/{path}"]
    )
  for path, leaf in trees.flatten({"params": base.params}).items():
    np.testing.assert_array_equal(flat[path], leaf)


@pytest.mark.slow
def test_trap_06_below_float32_the_trainer_recomputes(
  files, sft_lora, reward_head, run_policy, records
):
  """In bfloat16 the sampler rounds otherwise; the first ratio is still 1.

  What the sampler was is in the importance weights, cut at their cap.
  """
  config = tiny_runs.policy_config(files, "lora", sft_lora, reward_head)
  config.model.dtype = "bfloat16"
  config.importance.cap = 1.002
  config.schedule.steps = 1
  run_policy(config, files.root / "policy_bfloat16")
  rows = tiny_runs.rows_of(files.root / "policy_bfloat16")
  assert all(row["rollout/sampler_gap"] > 1e-4 for row in rows)
  assert rows[-1]["ppo/first_ratio_error"] < 1e-5
  [(rollout, _)] = records["policy_bfloat16"].rollouts
  mask = rollout.response_mask > 0
  weights = rollout.importance_weights
  assert np.all(weights[~mask] == 0.0)
  assert 0.9 < np.min(weights[mask]) < 1.0 < np.max(weights[mask])
  is_capped = weights[mask] == np.float32(1.002)
  assert 0.0 < np.mean(is_capped) < 1.0
  found = rows[-1]
  for name, expected in (
    ("rollout/sampler_capped", np.mean(is_capped)),
    ("rollout/sampler_weight_mean", np.mean(weights[mask])),
  ):
    np.testing.assert_allclose(found[name], expected, rtol=1e-5)
  assert found["rollout/sampler_ratio_mean"] > np.mean(weights[mask])


def test_importance_weights_that_would_all_be_one_are_refused(
  files, sft_lora, reward_head
):
  config = tiny_runs.policy_config(files, "lora", sft_lora, reward_head)
  config.importance.cap = 2.0
  with pytest.raises(UserError, match="importance.cap=2.0.*float32"):
    tiny_runs.checked(config)


def test_another_reward_model_in_the_same_folder_is_noticed(
  files, sft_lora, reward_head, reward_lora, monkeypatch, tmp_path
):
  start = tmp_path / "reward"
  shutil.copytree(reward_head, start)
  config = tiny_runs.policy_config(files, "lora", sft_lora, start)
  with monkeypatch.context() as patch:
    patch.setattr(loop.Interrupt, "should_stop", lambda self, now: now == 1)
    with pytest.raises(Stopped):
      pipelines.run(config, tmp_path / "run")
  info = json.loads((start / "stage.json").read_text())
  info["normalisation"]["mean"] += 0.5
  (start / "stage.json").write_text(json.dumps(info))
  with pytest.raises(CheckpointError, match="reward_fingerprint"):
    pipelines.run(config, tmp_path / "run")


def test_another_text_of_a_reward_function_is_noticed(files, tmp_path):
  path = tmp_path / "judge.py"
  config = defaults.policy("rloo")
  config.model.source = files.model
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.update(max_new_tokens=tiny_runs.NEW_TOKENS, num_samples=2)
  config.reward_fn = f"{path}:score"
  found = []
  for value in (1.0, 2.0):
    path.write_text(f"def score(texts):\n  return [{value} for _ in texts]\n")
    found.append(tiny_runs.settings_of(config).origins())
  assert found[0].keys() == found[1].keys()
  changed = [name for name in found[0] if found[0][name] != found[1][name]]
  assert changed == ["reward_fn_fingerprint"]


def row_of(**changes):
  usual = {
    "rollout/kl_k1_sum": 1.0,
    "rollout/kl_k1_standard_error": 0.1,
    "rollout/eos_share": 0.9,
    "rollout/entropy": 2.0,
    "rollout/duplicate_share": 0.0,
    "ppo/first_ratio_error": 1e-6,
    "ppo/explained_variance": 0.5,
  }
  return usual | {k.replace("__", "/"): v for k, v in changes.items()}


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"rollout__kl_k1_sum": 16.0}, "KL to the reference is 16.0 nats"),
    ({"rollout__kl_k1_sum": -1.0}, "sampler and trainer disagree"),
    ({"rollout__eos_share": 0.4}, "end by themselves"),
    ({"rollout__entropy": 0.1}, "the policy has collapsed"),
    ({"rollout__duplicate_share": 0.6}, "repeat another one"),
    ({"ppo__first_ratio_error": 0.01}, "off 1 by 0.01"),
    ({"ppo__explained_variance": -0.1}, "the critic explains less"),
  ],
)
def test_trap_16_each_alarm_rings_once(changes, sentence, capsys):
  shape = shaping.Config()
  facts = watch.watch({"alarms": []}, row_of(), 59, shape, str)
  assert facts["alarms"] == []
  for step in (60, 61, 62):
    changes = {k: v * (1 + step / 1e4) for k, v in changes.items()}
    facts = watch.watch(facts, row_of(**changes), step, shape, str)
  ((step, said),) = facts["alarms"]
  assert step == 61 and sentence[:12] in said
  assert capsys.readouterr().out.count("warning") == 1


def test_a_kl_that_doubles_in_20_steps_is_told():
  shape, facts = shaping.Config(), {"alarms": []}
  for step in range(20):
    facts = watch.watch(
      facts, row_of(rollout__kl_k1_sum=5 + step / 10), step, shape, str
    )
  assert facts["alarms"] == []
  facts = watch.watch(facts, row_of(rollout__kl_k1_sum=12.0), 20, shape, str)
  assert "went from 5.0 to 12.0 nats" in facts["alarms"][0][1]


def cut_samples(answers, ends):
  """Returns samples whose prompt is one token; ends: whether each has one."""
  length = max(map(len, answers))
  rows = [[9, *answer, *[0] * (length - len(answer))] for answer in answers]
  mask = [[0, *[1] * len(a), *[0] * (length - len(a))] for a in answers]
  mask = np.asarray(mask, np.float32)
  return Samples(
    tokens=np.asarray(rows),
    valid_mask=mask,
    response_mask=mask,
    behaviour_logprobs=mask,
    finish_reason=np.asarray([0 if is_ended else 1 for is_ended in ends]),
  )


def test_an_alarm_names_the_token_that_ends_nothing():
  """Llama 3 lists: the model ends its turns with 8, the settings with 6."""
  special = {"<|end_of_text|>": 6, "<|start|>": 7, "<|eot_id|>": 8}
  tokenizer = SimpleNamespace(special_tokens=special)
  answers = [[1, 8, 7, 2], [1, 2, 8, 7], [3, 6], [1, 2, 3, 4]]
  samples = cut_samples(answers, [False, False, True, False])
  said = watch.unended(tokenizer, samples, [6])
  assert "2 of 3 that were cut go on behind '<|eot_id|>'" in said
  assert "only '<|end_of_text|>' end" in said and "stop_tokens" in said
  quiet = cut_samples([[1, 2], [3, 4]], [False, False])
  said = watch.unended(tokenizer, quiet, [6, 8])
  assert "only '<|end_of_text|>', '<|eot_id|>' end an answer" in said
  assert "max_new_tokens" in said
