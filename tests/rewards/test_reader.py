"""Reward models with another tokenizer, or another model, than the policy's."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from rlhf_jax import lab, pipelines, startup
from rlhf_jax.algorithms import reward
from rlhf_jax.data import retold
from rlhf_jax.models import heads
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import actors
from rlhf_jax.programs.world import Planned
from rlhf_jax.rewards import reader as reader_lib
from rlhf_jax.rewards.reader import Reader
from rlhf_jax.schema import FieldError, UserError
from tests import compile_cache, tiny
from tests.notebook.lab_runs import LENGTH, ONE, PROMPTS
from tests.pipelines import tiny_runs

OTHER = ["<|pad|>", "<|first|>", *tiny.SPECIAL]  # all ids are others
COUNTER = startup.COMPILES


HEAD = heads.Config(pooling="mean_last")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  root = tmp_path_factory.mktemp("readers")
  with compile_cache.kept(root / "cache"):
    yield tiny_runs.make_files(root)


@pytest.fixture(scope="module")
def policy(files):
  return lab.load(files.model, mesh=ONE)


@pytest.fixture(scope="module")
def other(files):
  """A judge of another tokenizer and width than the policy's."""
  source = tiny_runs.make_model(files.root / "other", 12, OTHER)
  model = lab.load(source, mesh=ONE).reward_model(
    trainable="head", head=HEAD, stop_layer=1
  )
  learn = lab.learner(
    model, reward, reward.Config(), optax.adam(3e-1), length=LENGTH
  )
  lines = Path(files.comparisons).read_text().splitlines()[:64]
  pairs = [json.loads(line) for line in lines]
  for _ in range(40):
    model, metrics = learn(model, pairs)
  assert metrics["reward_model/accuracy"] > 0.95
  texts = [pair[name] for pair in pairs[:8] for name in ("chosen", "rejected")]
  found = model.score([pair["prompt"] for pair in pairs[:8]], texts)
  model = dataclasses.replace(
    model, mean=float(np.mean(found)), std=float(np.std(found))
  )
  folder = files.root / "judge_other"
  return model.save(folder), str(folder)


@pytest.fixture(scope="module")
def wide(files):
  """A judge of the policy's tokenizer, and of another model."""
  source = tiny_runs.make_model(files.root / "wide", 24)
  model = lab.load(source, mesh=ONE).reward_model(trainable="head", head=HEAD)
  folder = files.root / "judge_wide"
  return dataclasses.replace(model, mean=0.1, std=0.5).save(folder), str(folder)


def config_of(files, judge, method="rloo"):
  config = defaults.policy(method)
  config.mesh.devices = 1
  config.model.source = files.model
  config.reward = judge
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.update(max_new_tokens=6, num_samples=4)
  config.schedule.update(batch_size=8, steps=2)
  config.shaping.update(halt_nats=1e6, warn_nats=1e5)
  config.policy_optimizer.learning_rate = 2e-3
  return config


def loaded(config):
  """Returns the actors of a policy run."""
  settings = tiny_runs.settings_of(config)
  world = tiny_runs.world_of(config)
  return actors.load(settings, world.base(settings.model), world, 6)


def test_widths_and_rows_are_few():
  assert reader_lib.widths(300) == (16, 24, 32, 48, 64, 96, 128, 256, 300)
  assert reader_lib.widths(16) == (16,)
  assert [reader_lib.rows_of_pass(n, 2) for n in (1, 3, 9, 500)] == [
    2,
    8,
    32,
    32,
  ]


def test_text_by_the_same_tokenizer_scores_as_tokens_do(policy, wide):
  model, _ = wide
  prompts = PROMPTS * 4
  samples, texts = policy.sample(
    prompts, jax.random.key(1), num_samples=2, max_new_tokens=6
  )
  tokens = model.score_samples(samples)
  reader = Reader("reward", *model.scorer, model.base.tokenizer)
  asked = [retold.asked(prompt, reader.tokenizer) for prompt in prompts]
  read = reader_lib.Readers(
    (reader,), {"reward": asked}, policy.base.tokenizer, (2,), policy.mesh
  )
  found = read(samples, np.arange(len(prompts)))
  # A sampled word may be spelt in other tokens than its text is encoded in.
  plain = policy.base.tokenizer
  canonical = [
    plain.encode(text)
    == [i for i in np.asarray(row)[np.asarray(mask) > 0] if i != plain.eos_id]
    for text, row, mask in zip(
      texts, samples.tokens, samples.response_mask, strict=True
    )
  ]
  assert sum(canonical) > 16
  np.testing.assert_allclose(
    found["reward"][canonical], tokens[canonical], atol=1e-5
  )
  assert not found["component/reward_cut"].any()


def test_samples_of_another_tokenizer_need_their_prompts(policy, other):
  model, _ = other
  samples, texts = policy.sample(
    PROMPTS, jax.random.key(2), num_samples=2, max_new_tokens=5
  )
  with pytest.raises(UserError, match="whose tokenizer is another one"):
    model.score_samples(samples)
  found = model.score_samples(samples, policy=policy, prompts=PROMPTS)
  ended = np.asarray(samples.finish_reason) == 0
  assert 0 < sum(ended) < len(ended)
  np.testing.assert_allclose(
    found[ended], model.score(PROMPTS, texts)[ended], atol=1e-5
  )
  with_end = model.score(PROMPTS, texts)[~ended]
  assert np.abs(found[~ended] - with_end).max() > 1e-3  # it has no end token


def test_random_lengths_do_not_compile_again(other):
  model, _ = other
  reader = Reader("reward", *model.scorer, model.base.tokenizer)
  rng, mesh = np.random.default_rng(0), model.mesh

  def batch():
    lengths = rng.integers(1, 33, int(rng.integers(5, 40)))
    return [rng.integers(5, 300, n).tolist() for n in lengths]

  before = COUNTER.count
  for _ in range(8):
    reader.scores(batch(), mesh)
  first = COUNTER.count
  most = len(reader_lib.widths(32)) + 1
  assert first - before <= most
  for _ in range(50):
    reader.scores(batch(), mesh)
  assert COUNTER.count - before <= most


def test_a_row_scores_the_same_alone_and_among_others(other):
  model, _ = other
  reader = Reader("reward", *model.scorer, model.base.tokenizer)
  rows = [[5, 6, 7], list(range(10, 50)), [9], [8] * 20, [4] * 17]
  together = reader.scores(rows, model.mesh)
  alone = [reader.scores([row], model.mesh)[0] for row in rows]
  np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.slow
def test_on_a_mesh_it_scores_the_same(other):
  model, _ = other
  reader = Reader("reward", *model.scorer, model.base.tokenizer)
  rows = [[5, 6, 7], list(range(10, 50)), [9], [8] * 20, [4] * 17]
  together = reader.scores(rows, model.mesh)
  split = lab.load(model.origin.folder, mesh=mesh_lib.Config(data=2, fsdp=4))
  sharded = Reader("reward", *split.scorer, split.base.tokenizer)
  found = sharded.scores(rows, split.mesh)
  np.testing.assert_allclose(found, together, atol=1e-5)


def test_who_reads_text_and_who_tokens(files, other, wide, policy):
  (read,) = loaded(config_of(files, other[1])).readers
  assert read.name == "reward" and read.scorer.role.model.width == 12
  found = loaded(config_of(files, wide[1]))
  assert not found.readers and len(found.beside) == 1
  assert dict(found.plan.scorers)["reward"].role.model.width == 24
  own = policy.reward_model(trainable="head")
  own.save(files.root / "judge_own")
  config = config_of(files, str(files.root / "judge_own"))
  found = loaded(config)
  assert not found.readers and not found.beside
  assert "reward" in found.plan.shared  # today's pass over one trunk
  config.scoring.reads = "text"
  found = loaded(config)
  assert found.readers[0].tokenizer is policy.base.tokenizer
  assert not found.beside and not found.plan.scorers


def test_what_cannot_be_is_refused(files, other, tmp_path):
  config = config_of(files, other[1])
  config.scoring.reads = "tokens"
  with pytest.raises(FieldError, match="its tokens mean other text"):
    loaded(config)
  config = config_of(files, other[1], "ppo")
  with pytest.raises(UserError, match=r"value.init='reward': a critic reads"):
    pipelines.run(config, tmp_path / "ppo")
  config = config_of(files, other[1])
  config.scoring.source = str(files.root / "nowhere")
  with pytest.raises(UserError, match=r"name that as scoring\.source"):
    loaded(config)


def test_samples_of_another_tokenizer_do_not_normalise(
  files, policy, other, tmp_path
):
  del other  # its model is there
  policy.save(tmp_path / "sft")
  config = tiny_runs.reward_config(files, "head", "", tmp_path / "sft/none.npz")
  config.model.source = str(files.root / "other")
  with pytest.raises(UserError, match="normalise on the training rows"):
    pipelines.run(config, tmp_path / "reward")


@pytest.mark.slow
def test_a_word_is_taught_across_tokenizers(files, other, tmp_path):
  model, folder = other
  config = config_of(files, folder)
  config.shaping.update(kl_coefficient=0.0, kl_controller="fixed")
  config.schedule.update(batch_size=16, steps=14)
  config.policy_optimizer.update(learning_rate=1e-2, schedule="constant")
  pipelines.run(config, tmp_path / "run")
  rows = tiny_runs.rows_of(tmp_path / "run")
  scores = [row["rollout/score_mean"] for row in rows]
  assert np.mean(scores[-3:]) > np.mean(scores[:3]) + 0.5
  assert all(row["reward/component/reward_cut"] == 0.0 for row in rows)
  trained_policy = lab.load(tmp_path / "run", mesh=ONE)
  before, after = (
    p.sample(PROMPTS * 8, jax.random.key(5), max_new_tokens=6)[1]
    for p in (lab.load(files.model, mesh=ONE), trained_policy)
  )
  count = [
    sum(tiny_runs.PLANTED in text for text in t) for t in (before, after)
  ]
  assert count[1] > 2 * count[0] and count[1] > 24


@pytest.mark.slow
def test_evaluation_reads_text(policy, other, wide):
  after = dataclasses.replace(policy)
  found, said = lab.evaluate(
    policy,
    after,
    PROMPTS * 2,
    jax.random.key(0),
    reward=other[0],
    gold=wide[0],
    max_new_tokens=6,
  )
  assert np.isfinite(found["proxy_after"]) and "gold_win_rate" in found
  assert said["after"].scores["reward"].shape == (8,)


def programs_of(config):
  settings = tiny_runs.settings_of(config)
  world = Planned.on(settings.mesh, 1)
  (phase,) = pipelines.find("policy", "pipeline").phases(settings, world)
  return [program.name for program in phase.programs]


def test_one_tokenizer_makes_no_program_more(files, other, wide, tmp_path):
  usual = programs_of(config_of(files, "runs/not_there_yet"))
  assert "judge" in usual
  config = config_of(files, wide[1])
  config.scoring.reads = "tokens"
  assert programs_of(config) == usual
  found = programs_of(config_of(files, other[1]))
  assert [x for x in found if x not in usual] == ["reward by text"]


@pytest.mark.slow
def test_ppo_with_a_judge_of_text_and_a_monitor_of_tokens(
  files, other, wide, tmp_path
):
  config = config_of(files, other[1], "ppo")
  config.value.init = "random"
  config.generate.num_samples = 1
  with config.unlocked():
    config.monitors.wide = wide[1]
  pipelines.run(config, tmp_path / "ppo")
  rows = tiny_runs.rows_of(tmp_path / "ppo")
  assert len(rows) == 2 and all(np.isfinite(r["eval/wide"]) for r in rows)
  samples = (tmp_path / "ppo" / "samples.jsonl").read_text().splitlines()
  assert {"reward", "wide"} <= set(json.loads(samples[0]))
  # A critic that starts as a reward model of another width.
  config = config_of(files, wide[1], "ppo")
  config.generate.num_samples = 1
  pipelines.run(config, tmp_path / "critic")
  assert len(tiny_runs.rows_of(tmp_path / "critic")) == 2


def test_a_plan_counts_its_bytes_and_passes(files, other):
  settings = tiny_runs.settings_of(config_of(files, other[1]))
  world = Planned.on(settings.mesh, 1)
  (phase,) = pipelines.find("policy", "pipeline").phases(settings, world)
  (program,) = [p for p in phase.programs if p.name == "reward by text"]
  assert program.calls == 2 * 2 and program.work().flops > 0
  weights, batch = program.arguments({})[0]
  assert batch.tokens.shape == (16, 24)
  planned = {id(leaf) for leaf in jax.tree.leaves(phase.frozen)}
  theirs = jax.tree.leaves(weights.variables["params"])
  assert {id(leaf) for leaf in theirs} <= planned
  assert {leaf.shape[-1] for leaf in theirs} >= {12}
  assert any("reads text" in note for note in world.notes)
