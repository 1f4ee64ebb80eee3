"""The notebook's way in: it learns, it changes nothing, it compiles once.

All on the tiny model of tests/pipelines/tiny_runs.py, whose policies say the
planted word more often when scores, texts or preferences ask for it.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import generate, lab, pipelines
from rlhf_jax.algorithms import reward, sft
from rlhf_jax.algorithms.policy_gradient import (
  dapo,
  grpo,
  ppo,
  remax,
  rloo,
  shaping,
)
from rlhf_jax.algorithms.policy_gradient import update as pg
from rlhf_jax.algorithms.preference import dpo, ipo, kto, orpo
from rlhf_jax.models import roles, trees
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import actors, rollouts, supervised
from rlhf_jax.runs import loop, stages
from rlhf_jax.schema import UserError
from rlhf_jax.types import Rollout
from tests.pipelines import tiny_runs
from tests.pipelines.conftest import compile_cache

__all__ = ["compile_cache"]

PROMPTS = [" the cat", " a", " sat on", " is"]
HOW = {"num_samples": 4, "max_new_tokens": 6}
ONE = mesh_lib.Config(devices=1)
GRPO = grpo.Config(group_size=4)
GOOD, BAD = " cat cat on", " the and the"  # answers to learn, and to leave
PAIRS = [(prompt, GOOD, BAD) for prompt in PROMPTS]
LENGTH = 16
ADAM = optax.adam(1e-3)
# A large epsilon: rounding must not show as the sign of a gradient.
RUN = optax.adam(3e-2, eps=1e-3)


def scores_of(texts):
  return [float(text.count(tiny_runs.PLANTED)) for text in texts]


def sampled(policy, number, **how):
  return policy.sample(PROMPTS, jax.random.key(number), **(HOW | how))


def mean_score(policy):
  return np.mean(scores_of(sampled(policy, 99)[1]))


def assert_same(found, expected, **tolerance):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, **tolerance),
    jax.tree.map(np.asarray, found),
    jax.tree.map(np.asarray, expected),
  )


@pytest.fixture(scope="module")
def model(compile_cache, tmp_path_factory):
  del compile_cache
  return tiny_runs.make_model(tmp_path_factory.mktemp("lab") / "model")


@pytest.fixture(scope="module")
def policy(model):
  return lab.load(model, lora_rank=2, mesh=ONE)


@dataclasses.dataclass
class Run:
  """What a loop left; compiles: programs compiled in each call of learn."""

  learn: object
  policies: list
  metrics: list = dataclasses.field(default_factory=list)
  compiles: list = dataclasses.field(default_factory=list)

  def on(self, *given):
    count = COUNTER.count
    policy, metrics = self.learn(self.policies[-1], *given)
    self.compiles.append(COUNTER.count - count)
    self.policies.append(policy)
    self.metrics.append(metrics)
    return self


COUNTER = loop.CompileCounter()


def on_samples(policy, learn, steps, **how):
  run = Run(learn, [policy])
  for step in range(steps):
    samples, texts = sampled(run.policies[-1], step, **how)
    run.on(samples, scores_of(texts))
  return run


@pytest.fixture(scope="module")
def grpo_run(policy):
  return on_samples(policy, lab.learner(policy, grpo, GRPO, RUN), 6)


def test_grpo_learns_to_say_the_planted_word(grpo_run):
  """Away from the policy that the learner was made with."""
  scores = [row["rollout/score_mean"] for row in grpo_run.metrics]
  assert scores[-1] > scores[0] + 1.0
  assert grpo_run.metrics[-1]["rollout/kl_k1_sum"] > 1.0
  assert all(row["ppo/first_ratio_error"] < 1e-4 for row in grpo_run.metrics)
  assert grpo_run.policies[-1].methods == (("grpo", 6),)


def test_equal_shapes_compile_once(grpo_run):
  assert grpo_run.compiles[0] > 0
  assert grpo_run.compiles[1:] == [0] * 5
  count = COUNTER.count
  sampled(grpo_run.policies[3], 3)
  assert COUNTER.count == count


def test_an_earlier_policy_is_as_it_was(grpo_run):
  """The same step from the same value gives the same bits again."""
  first, second = grpo_run.policies[:2]
  samples, texts = sampled(first, 0)
  again, metrics = grpo_run.learn(first, samples, scores_of(texts))
  assert_same(again.params, second.params, rtol=0, atol=0)
  assert metrics == grpo_run.metrics[0]
  assert (first.steps, again.steps) == (0, 1)


def direct_step(policy, samples, scores, optimizer):
  """Returns factors and metrics after one step, by the package's functions."""
  frozen = policy.frozen
  plain = shaping.Config(kl_coefficient=0.0, kl_controller="fixed", clip=None)

  @jax.jit
  def judged(samples, score):
    variables = trees.merge(policy.params, frozen)
    reference, _ = roles.logprobs(
      policy.role, variables, roles.Rows.of(samples), samples.response_mask
    )
    rollout = Rollout(
      **vars(samples), reference_logprobs=reference, score=score
    )
    rollout, _, _ = shaping.shape_rewards(
      rollout, shaping.init_moments(), jnp.float32(0.0), plain
    )
    return grpo.advantages(rollout, GRPO)

  def apply(params, frozen, part):
    logprobs, entropies = roles.logprobs(
      policy.role,
      trees.merge(params["policy"], frozen),
      roles.Rows.of(part),
      part.response_mask,
    )
    return logprobs, entropies, None

  update = functools.partial(
    pg.update,
    algorithm=grpo,
    algorithm_config=GRPO,
    config=pg.Config(epochs=1, minibatches=1),
    apply=apply,
    optimizer=optimizer,
  )
  rollout = judged(rollouts.samples_of(samples), jnp.asarray(scores))
  state = supervised.initial_state({"policy": policy.params}, optimizer)
  key = jax.random.key(0)
  state, metrics = jax.jit(update)(state, frozen, rollout, key)
  return state.params["policy"], metrics


def test_a_step_is_the_update_function(policy, grpo_run):
  samples, texts = sampled(policy, 0)
  params, metrics = direct_step(policy, samples, scores_of(texts), RUN)
  assert_same(grpo_run.policies[1].params, params, rtol=1e-3, atol=1e-6)
  for name, value in metrics.items():
    np.testing.assert_allclose(
      grpo_run.metrics[0][name], value, rtol=1e-4, atol=1e-6
    )


def test_eight_devices_equal_one(model, grpo_run):
  mesh = mesh_lib.Config(data=2, fsdp=2, tensor=2)
  policy = lab.load(model, lora_rank=2, mesh=mesh)
  run = Run(lab.learner(policy, grpo, GRPO, RUN), [policy])
  for step in range(2):
    samples, texts = sampled(grpo_run.policies[step], step)
    run.on(samples, scores_of(texts))
  assert run.compiles[1] == 0
  expected = grpo_run.metrics[:2]
  for row, other in zip(run.metrics, expected, strict=True):
    assert row.keys() == other.keys()
    for name, value in row.items():
      np.testing.assert_allclose(value, other[name], rtol=2e-3, atol=2e-3)


def test_remax_reads_greedy_answers_and_no_reference(policy, grpo_run):
  """And functions of one's own stand in the place of the method's."""
  called = []

  def objective(log_ratio, advantages, config):
    called.append(config)
    return -log_ratio * advantages

  def advantages(rollout, config):
    called.append(config)
    return remax.advantages(rollout, config)

  learn = lab.learner(
    policy,
    remax,
    remax.Config(),
    ADAM,
    objective=objective,
    advantages=advantages,
  )
  samples, texts = sampled(policy, 0)
  greedy, greedy_texts = sampled(policy, 0, num_samples=1, temperature=0.0)
  further = {"greedy": (greedy, scores_of(greedy_texts))}
  changed, metrics = learn(policy, samples, scores_of(texts), further=further)
  assert metrics["ppo/gradient_norm"] > 0.0 and changed.steps == 1
  assert len(called) >= 2 and set(called) == {remax.Config()}
  [(_, weights)] = learn.made.values()
  assert weights.reference == {}
  shown = {x for x in grpo_run.metrics[0] if x.startswith("rollout/kl_")}
  assert shown - metrics.keys() == {
    "rollout/kl_k1_sum",
    "rollout/kl_k1_standard_error",
    "rollout/kl_k3_sum",
    "rollout/kl_per_token",
  }
  with pytest.raises(
    UserError, match=r"remax reads 'greedy' \(sampled with temp"
  ):
    learn(policy, samples, scores_of(texts))


def test_sft_learns_conversations(policy):
  asked = [{"role": "user", "content": "a"}]
  conversations = [
    (PROMPTS[0], GOOD),
    {"prompt": PROMPTS[1], "response": GOOD},
    [*asked, {"role": "assistant", "content": GOOD}],
    (asked, GOOD),
  ]
  run = Run(lab.learner(policy, sft, sft.Config(), RUN), [policy])
  for _ in range(8):
    run.on(conversations)
  assert run.compiles[1:] == [0] * 7
  losses = [row["sft/loss"] for row in run.metrics]
  assert losses[-1] < losses[0] - 1.0
  assert mean_score(run.policies[-1]) > mean_score(policy) + 0.5


def test_pairs_raise_what_was_chosen(policy):
  learn = lab.learner(policy, dpo, dpo.Config(), RUN, length=LENGTH)
  run = Run(learn, [policy])
  for _ in range(6):
    run.on(PAIRS)
  assert run.compiles[1:] == [0] * 5
  margins = [row["preference/margin"] for row in run.metrics]
  assert abs(margins[0]) < 1e-5  # the policy is its own reference
  assert margins[-1] > 0.1


def test_a_method_without_reference_gets_none(policy):
  learn = lab.learner(policy, orpo, orpo.Config(), ADAM)
  batch = learn.collate(PAIRS, policy.base.tokenizer, 64)
  assert learn.complete(batch).reference_logprobs is None


def test_kto_gets_each_answer_and_a_mismatched_one(policy):
  answers = [(p, GOOD, True) for p in PROMPTS] + [(" a", BAD, 0)]
  tokenizer = policy.base.tokenizer
  learn = lab.learner(policy, kto, kto.Config(), ADAM, length=LENGTH)
  batch = learn.collate(answers, tokenizer, 64, length=LENGTH)
  assert batch.tokens.shape == (5, 2, LENGTH)
  assert batch.label.tolist() == [1, 1, 1, 1, 0]
  shown = [
    [tokenizer.decode(row[mask > 0]) for row, mask in zip(*pair, strict=True)]
    for pair in zip(batch.tokens, batch.valid_mask, strict=True)
  ]
  for (prompt, answer, _), (own, other) in zip(answers, shown, strict=True):
    assert own == prompt + answer
    assert other.startswith(prompt)


@pytest.fixture(scope="module")
def judge(policy):
  """A reward model that likes the planted word, in deviations of samples."""
  model = policy.reward_model(trainable="lora")
  learn = lab.learner(
    model, reward, reward.Config(), optax.adam(3e-2), length=LENGTH
  )
  run = Run(learn, [model])
  for _ in range(12):
    run.on(PAIRS)
  assert run.compiles[1:] == [0] * 11
  assert (
    run.metrics[-1]["reward_model/loss"]
    < 0.5 * run.metrics[0]["reward_model/loss"]
  )
  _, texts = sampled(policy, 50)
  return run.policies[-1].normalised(PROMPTS, texts)


def test_a_reward_model_scores_texts_and_samples(policy, judge):
  scores = judge.score(PROMPTS, [GOOD] * 4 + [BAD] * 4)
  assert scores.shape == (8,)
  assert judge.score([" a"], [GOOD])[0] > judge.score([" a"], [BAD])[0] + 0.5
  samples, texts = sampled(policy, 50)
  found = judge.score(PROMPTS, texts)
  np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-5)
  # A text that ends by itself is the same row of tokens either way.
  ended = np.asarray(samples.finish_reason) == 0
  assert ended.any()
  np.testing.assert_allclose(
    judge.score_samples(samples)[ended], found[ended], rtol=1e-4, atol=1e-4
  )


def test_ppo_trains_a_critic(policy):
  learn = lab.learner(
    policy,
    ppo,
    ppo.Config(value_coefficient=1.0),
    {"policy": RUN, "value": optax.adam(5e-2)},
    critic=actors.Value(init="random", mode="head"),
    shaping=shaping.Config(kl_coefficient=0.05),
    epochs=pg.Config(epochs=2, minibatches=2),
  )
  run = Run(learn, [policy])
  for step in range(5):
    samples, texts = sampled(run.policies[-1], step)
    run.on(samples, scores_of(texts))
  assert run.compiles[1:] == [0] * 4
  first, last = run.metrics[0], run.metrics[-1]
  assert last["rollout/score_mean"] > first["rollout/score_mean"] + 1.0
  assert first["ppo/explained_variance"] < 1e-5  # the critic starts at 0
  assert last["ppo/explained_variance"] > 0.05
  assert (
    last["ppo/kl_coefficient"] != first["ppo/kl_coefficient"]
  )  # its controller moves it


def test_a_critic_starts_as_the_reward_model(policy, judge):
  learn = lab.learner(policy, ppo, ppo.Config(), ADAM, critic=judge)
  assert learn.critic.role.trainable == "lora"
  found = learn.critic.variables["head"]["output"]["kernel"]
  kernel = judge.params["head"]["output"]["kernel"]
  assert_same(found, kernel / judge.std, rtol=1e-6)
  assert_same(learn.critic.variables["lora"], judge.params["lora"])


def test_evaluate_compares_two_policies(policy, grpo_run, judge):
  after = grpo_run.policies[-1]
  found, said = lab.evaluate(
    policy,
    after,
    PROMPTS * 8,
    jax.random.key(0),
    reward=lambda text: float(text.count(tiny_runs.PLANTED)),
    gold=judge,
    batch_size=16,
    max_new_tokens=6,
  )
  assert found["evaluation_prompts"] == 32
  assert found["proxy_win_rate"] > 0.7 and found["gold_win_rate"] > 0.6
  assert found["kl_nats"] > 1.0
  assert {"distinct_2_before", "self_bleu_after"} <= set(found)
  assert len(said["after"].texts) == 32 and len(said["before"].kl) == 32
  assert np.abs(said["before"].kl).max() < 1e-4


def test_what_is_saved_is_loaded(policy, grpo_run, judge, tmp_path):
  last = grpo_run.policies[-1]
  saved = last.save(tmp_path / "policy")
  found = lab.load(tmp_path / "policy", mesh=ONE)
  assert found.role == last.role and found.methods == last.methods
  assert_same(found.params, last.params, rtol=0, atol=0)
  assert found.origin.folder == saved.origin.folder
  further = lab.load(tmp_path / "policy", trainable="full", mesh=ONE)
  assert further.role.trainable == "full"
  assert sampled(further, 1)[1] == sampled(last, 1)[1]
  assert judge.origin.merged_from == ""
  judge.save(tmp_path / "judge")
  again = lab.load(tmp_path / "judge", mesh=ONE)
  texts = [GOOD] * 4
  np.testing.assert_allclose(
    again.score(PROMPTS, texts), judge.score(PROMPTS, texts), rtol=1e-5
  )


def test_a_reward_model_on_a_policy_names_its_folder(grpo_run, tmp_path):
  last = grpo_run.policies[-1]
  with pytest.raises(UserError, match="a policy that is in no folder"):
    last.reward_model().save(tmp_path / "judge")
  policy = last.save(tmp_path / "policy")
  model = policy.reward_model()
  model.save(tmp_path / "judge")
  found = lab.load(tmp_path / "judge", mesh=ONE)
  assert found.origin.merged_from == str(tmp_path / "policy")
  np.testing.assert_allclose(
    found.score(PROMPTS, [GOOD] * 4),
    model.score(PROMPTS, [GOOD] * 4),
    rtol=1e-5,
  )


def test_a_pipeline_starts_from_what_is_saved(model, grpo_run, tmp_path):
  grpo_run.policies[-1].save(tmp_path / "policy")
  data = tmp_path / "pairs.jsonl"
  data.write_text(
    "".join(
      f'{{"prompt": "{p}", "chosen": "{GOOD}", "rejected": "{BAD}"}}\n'
      for p in PROMPTS * 2
    )
  )
  config = defaults.preference("orpo")
  config.mesh.devices = 1
  config.model.update(source=model, lora_rank=2)
  config.trainable.mode = "lora"
  config.init_from = str(tmp_path / "policy")
  config.data.update(source=str(data), max_length=LENGTH)
  config.heldout.update(source=str(data), max_length=LENGTH)
  config.schedule.update(batch_size=4, steps=1)
  pipelines.run(config, tmp_path / "orpo")
  assert stages.history(tmp_path / "orpo") == [("grpo", 6), ("orpo", 1)]
  found = lab.load(tmp_path / "orpo", mesh=ONE)
  assert found.methods == (("grpo", 6), ("orpo", 1))


def test_a_loss_that_is_not_finite_changes_nothing(policy):
  """Of a method of one's own, which is anything with the functions of one."""

  def loss(logprobs, batch, config):
    losses, metrics = dpo.loss(logprobs, batch, config)
    return losses * jnp.nan, metrics

  broken = types.SimpleNamespace(Config=dpo.Config, loss=loss)
  learn = lab.learner(policy, broken, dpo.Config(), RUN, length=LENGTH)
  run = Run(learn, [policy]).on(PAIRS).on(PAIRS)
  assert_same(run.policies[-1].params, policy.params, rtol=0, atol=0)
  assert run.metrics[-1]["sys/skipped_updates"] == 1.0
  with pytest.raises(loop.NonFiniteError, match="3 updates in a row"):
    run.on(PAIRS)


def drawn(**how):
  """Returns a change of samples: how they say that they were drawn."""
  how = generate.Config(**(HOW | how))
  return lambda samples: samples.replace(how=how)


NOTHING = [0.0] * 16
# name: (scores, change of the samples, message)
WRONG_LEARNING = {
  "too few": ([1.0] * 3, None, r"scores of shape \(3,\) for 16 samples"),
  "no number": (["good"] * 16, None, "scores: no numbers"),
  "not finite": ([float("nan")] * 16, None, r"scores\[0\]=nan"),
  "groups": (
    NOTHING,
    drawn(num_samples=2),
    "group_size=4: the samples were drawn with num_samples=2",
  ),
  "truncated": (NOTHING, drawn(top_k=3), "generate.top_k=3"),
  "greedy": (NOTHING, drawn(temperature=0.0), "greedy samples carry no"),
  "a part": (
    NOTHING[:7],
    lambda samples: jax.tree.map(lambda x: x[:7], samples),
    "7 samples: no multiple of num_samples=4",
  ),
  "plain samples": (
    NOTHING,
    rollouts.samples_of,
    "samples are a Samples, which does not say how",
  ),
}


@pytest.mark.parametrize("name", WRONG_LEARNING)
def test_wrong_uses_of_learn(policy, grpo_run, name):
  scores, change, message = WRONG_LEARNING[name]
  samples, _ = sampled(policy, 0)
  samples = samples if change is None else change(samples)
  with pytest.raises(UserError, match=message):
    grpo_run.learn(policy, samples, scores)


WRONG_LEARNERS = {
  "config": ((grpo, rloo.Config(), ADAM), {}, r"give grpo.Config\(...\)"),
  "optimizer": ((grpo, GRPO, 1e-3), {}, "optimizer=0.001: must be an optax"),
  "method": ((np, GRPO, ADAM), {}, "method numpy"),
  "option": ((grpo, GRPO, ADAM), {"epoch": 3}, "Did you mean 'epochs'"),
  "critic": ((ppo, ppo.Config(), ADAM), {}, "ppo trains a critic"),
  "no critic": (
    (grpo, GRPO, ADAM),
    {"critic": actors.Value()},
    "grpo trains no critic",
  ),
  "critic of reward": (
    (ppo, ppo.Config(), ADAM),
    {"critic": actors.Value()},
    r"actors.Value\(init='random'",
  ),
  "kl twice": (
    (grpo, GRPO, ADAM),
    {"shaping": shaping.Config()},
    "kl_loss_coefficient=0.04: shaping.kl_coefficient is",
  ),
  "several steps": (
    (remax, remax.Config(), ADAM),
    {"epochs": pg.Config(epochs=2, minibatches=1)},
    "objective='reinforce'",
  ),
  "resampling": ((dapo, dapo.Config(), ADAM), {}, "resample_rounds=10"),
  "text": (
    (ppo, ppo.Config(ptx_coefficient=1.0), ADAM),
    {"critic": actors.Value(init="random")},
    "ptx_coefficient=1.0",
  ),
  "reward model": (
    (reward, reward.Config(), ADAM),
    {},
    "reward trains a reward model: policy.reward_model",
  ),
}


@pytest.mark.parametrize("name", WRONG_LEARNERS)
def test_wrong_learners(policy, name):
  arguments, options, message = WRONG_LEARNERS[name]
  with pytest.raises(UserError, match=message):
    lab.learner(policy, *arguments, **options)


LONG = " cat" * 70
WRONG_TEXTS = {
  "too long": (sft, [(" a", LONG)], r"conversations\[0\]: 7\d tokens"),
  "empty answer": (sft, [(" a", " ")], r"conversations\[0\].*empty"),
  "no pair": (sft, [(" a",)], r"conversations\[0\].*1 values"),
  "text": (sft, " a cat", "conversations=' a cat': is a str"),
  "nothing": (sft, [], r"conversations=\[\]"),
  "equal": (ipo, [PAIRS[0], (" a", BAD, BAD)], r"pairs\[1\].*are equal"),
  "two": (ipo, [(" a", BAD)], r"pairs\[0\].*2 values"),
  "no list": (ipo, [5], r"pairs\[0\]=5: a int"),
  "one prompt": (kto, [(" a", GOOD, 1), (" a", BAD, 0)], "the same prompt"),
  "all good": (kto, [(p, GOOD, 1) for p in PROMPTS], "all 4 labels are 1"),
  "label": (kto, [(p, GOOD, 0.5) for p in PROMPTS], r"answers\[0\].*label"),
}


@pytest.mark.parametrize("name", WRONG_TEXTS)
def test_wrong_texts(policy, name):
  method, items, message = WRONG_TEXTS[name]
  learn = lab.learner(policy, method, method.Config(), ADAM)
  with pytest.raises(UserError, match=message):
    learn(policy, items)


def test_wrong_prompts(policy):
  key = jax.random.key(0)
  for prompts, how, message in (
    ([" a", LONG], HOW, r"prompts\[1\]: 70 tokens, and 58 are left"),
    (" a", HOW, "prompts=' a': is a str. Give a list"),
    ([], HOW, r"prompts=\[\]"),
    ([""], HOW, r"prompts\[0\] is empty"),
    (PROMPTS, {"max_new_tokens": 64}, "max_new_tokens=64: the context of"),
    (PROMPTS, {"temprature": 1.0}, "Did you mean 'temperature'"),
    (PROMPTS, {"width": 59}, "width=59: 58 tokens are left"),
  ):
    with pytest.raises(UserError, match=message):
      policy.sample(prompts, key, **(HOW | how))


def test_wrong_loads(model, policy, grpo_run, judge, tmp_path):
  saved = grpo_run.policies[-1].save(tmp_path / "policy")
  for call, message in (
    (lambda: lab.load("nowhere"), "no such file or folder"),
    (lambda: lab.load(model, lora_ranc=2), "Did you mean 'lora_rank'"),
    (lambda: lab.load(model, trainable="lora"), "Set lora_rank=16"),
    (lambda: lab.load(model, trainable="head"), "a policy has no head"),
    (lambda: saved.save(tmp_path / "policy"), "there is something already"),
    (
      lambda: grpo_run.learn("policy", None, []),
      "lab.load, policy.reward_model",
    ),
    (
      lambda: grpo_run.learn(lab.load(model, mesh=ONE), None, []),
      "trains 'full' from layer 0 of",
    ),
    (
      lambda: lab.learner(judge, grpo, GRPO, ADAM),
      "model is a RewardModel: grpo trains a policy",
    ),
    (
      lambda: lab.evaluate(policy, saved, [" a"], jax.random.key(0)),
      "max_new_tokens=64",
    ),
    (
      lambda: lab.evaluate(
        policy, saved, [" a"], jax.random.key(0), max_new_tokens=6
      ),
      "two prompts at least",
    ),
  ):
    with pytest.raises(UserError, match=message):
      call()
