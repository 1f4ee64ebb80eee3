"""Wrong uses in a notebook are refused, with value, rule and remedy."""

import jax
import numpy as np
import pytest

from rlhf_jax import generate, lab
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
from rlhf_jax.algorithms.preference import ipo, kto
from rlhf_jax.programs import critic, rollouts
from rlhf_jax.schema import UserError
from tests.notebook.lab_runs import (
  ADAM,
  BAD,
  GOOD,
  GRPO,
  HOW,
  ONE,
  PAIRS,
  PROMPTS,
  sampled,
)


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
    {"critic": critic.Value()},
    "grpo trains no critic",
  ),
  "critic of reward": (
    (ppo, ppo.Config(), ADAM),
    {"critic": critic.Value()},
    r"critic.Value\(init='random'",
  ),
  "critic on the policy": (
    (ppo, ppo.Config(), ADAM),
    {"critic": critic.Value(init="random", trunk="shared")},
    "trunk='shared': the policy pipeline",
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
    {"critic": critic.Value(init="random")},
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
