"""One tiny model, a policy of it, and learners that every file here asks."""

import optax
import pytest

from rlhf_jax import lab
from rlhf_jax.algorithms import reward
from rlhf_jax.algorithms.policy_gradient import (
  grpo,
)
from tests import compile_cache as programs
from tests.notebook.lab_runs import (
  GRPO,
  LENGTH,
  ONE,
  PAIRS,
  PROMPTS,
  RUN,
  Run,
  on_samples,
  sampled,
)
from tests.pipelines import tiny_runs


@pytest.fixture(scope="package")
def compile_cache(tmp_path_factory):
  with programs.kept(tmp_path_factory.mktemp("cache")) as folder:
    yield folder


@pytest.fixture(scope="package")
def model(compile_cache, tmp_path_factory):
  del compile_cache
  return tiny_runs.make_model(tmp_path_factory.mktemp("lab") / "model")


@pytest.fixture(scope="package")
def policy(model):
  return lab.load(model, lora_rank=2, mesh=ONE)


@pytest.fixture(scope="package")
def grpo_run(policy):
  return on_samples(policy, lab.learner(policy, grpo, GRPO, RUN), 6)


@pytest.fixture(scope="package")
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
