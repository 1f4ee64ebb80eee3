"""Trees that rest on the host between phases: the same run, less memory."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.models import pretrained
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import policy as policy_lib
from rlhf_jax.programs import offload, policy_training
from rlhf_jax.rewards import judge
from rlhf_jax.runs import loop
from rlhf_jax.schema import FieldError, UserError
from tests.pipelines import (
  test_pipeline_online,
  test_pipeline_rejection,
  tiny_runs,
)
from tests.pipelines.test_pipeline_resume import assert_same_run

ALL = offload.TREES


@pytest.fixture
def one_device(monkeypatch):
  """Leaves no trace of what a run deletes in what other tests share."""
  yield
  pretrained.forget()


def config_of(files, start, scorer, **changes):
  config = tiny_runs.full_policy_config(files, start, scorer)
  config.offload.update({"trees": ALL} | changes)
  return config


class Seen:
  """Where the judge's weights and the moments are, phase by phase.

  found: (phase, is the reference here, is the reward model here, moments).
  """

  def __init__(self, patch):
    self.found = []
    self.frozen, self.arrays = None, None
    opened, park = offload.opened, offload.park
    draw, update = (
      policy_training.Step._sample,
      policy_training.policy_step.learn,
    )
    prepare = policy_training.Step._prepare

    def watched_opened(*args):
      self.frozen = opened(*args)
      return self.frozen

    def watched_park(config, arrays):
      self.arrays = park(config, arrays)
      return self.arrays

    def watched_sample(step, *given):
      self.note("rollout", self.arrays)
      judged = draw(step, *given)
      self.note("judged", self.arrays)
      return judged

    def watched_prepare(step, params, arrays, judged):
      self.note("score", arrays)
      return prepare(step, params, arrays, judged)

    def watched_learn(phase, arrays, *rest, **more):
      self.note("update", arrays)
      return update(phase, arrays, *rest, **more)

    patch.setattr(policy_lib.offload, "opened", watched_opened)
    patch.setattr(policy_training.offload, "park", watched_park)
    patch.setattr(policy_training.Step, "_sample", watched_sample)
    patch.setattr(policy_training.Step, "_prepare", watched_prepare)
    patch.setattr(policy_training.policy_step, "learn", watched_learn)

  def note(self, phase, arrays):
    leaves = [x for x in jax.tree.leaves(arrays["train"].opt_state) if x.ndim]
    kinds = {x.sharding.memory_kind for x in leaves}
    has_copies = self.frozen is not None and self.frozen._copies is not None
    self.found.append((phase, has_copies, *sorted(kinds)))


@pytest.mark.slow
def test_a_run_with_everything_parked_is_the_run_without(
  files, sft_full, reward_full, policy_full, monkeypatch, one_device, capsys
):
  """Killed in its third step, too, and it goes on."""
  config = config_of(files, sft_full, reward_full)
  folder = files.root / "parked" / policy_full.name
  seen = Seen(monkeypatch)
  real, calls = loop.system_metrics, []

  def stop():
    calls.append(1)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return real()

  with monkeypatch.context() as patch:
    patch.setattr(loop, "system_metrics", stop)
    with pytest.raises(KeyboardInterrupt):
      pipelines.run(config, folder)
  assert seen.found[:4] == [
    ("rollout", False, "pinned_host"),
    ("judged", False, "pinned_host"),
    ("score", False, "device"),
    ("update", False, "device"),
  ]
  assert "reference, reward, optimizer on the host" in capsys.readouterr().out
  pipelines.run(config, folder)
  assert_same_run(folder, policy_full, 4)
  rows = (folder / "metrics.jsonl").read_text().splitlines()
  compiles = [json.loads(row)["sys/compiles"] for row in rows[-2:]]
  assert compiles[0] == compiles[1]  # what comes back is what was compiled for


@pytest.mark.slow
def test_held_out_answers_are_those_of_a_run_without(
  files, sft_full, reward_full, one_device, tmp_path
):
  """They are judged by the weights that rest on the host, too."""
  for name, trees in (("with", ALL), ("without", ())):
    config = config_of(files, sft_full, reward_full, trees=trees)
    held = {"source": files.prompts, "format": "prompt", "max_length": 24}
    config.heldout.update(held)
    config.evaluation.count = 10
    config.schedule.update(steps=2, eval_every=1)
    pipelines.run(config, tmp_path / name)
    pretrained.forget()
  rows = tiny_runs.rows_of(tmp_path / "with")
  assert len(rows) == 2 and all(row["heldout/kl"] > -1.0 for row in rows)
  assert rows == tiny_runs.rows_of(tmp_path / "without")


def test_frozen_weights_are_deleted_where_nothing_reads_them(
  files, sft_full, reward_full, one_device
):
  """Of base, start, reference and reward model one copy is left, the host's."""
  settings = tiny_runs.settings_of(config_of(files, sft_full, reward_full))
  world = tiny_runs.world_of(config_of(files, sft_full, reward_full))
  base = world.base(settings.model)
  actors = policy_lib._load_actors(settings, world, base)
  wanted = jax.tree.map(np.array, actors.weights)
  whole = {id(x): x for x in jax.tree.leaves((base.params, actors.weights))}
  found = offload.Frozen(settings.offload, actors, base, world.mesh)
  left = [x for x in whole.values() if not x.is_deleted()]
  assert sum(x.nbytes for x in left) < 0.01 * sum(x.nbytes for x in found._host)
  assert {x.sharding.memory_kind for x in found._host} == {"pinned_host"}
  for _ in range(2):
    found.begin()
    weights = found.weights()
    assert weights is not None and found._copies is not None
    for x, y in zip(
      jax.tree.leaves(weights), jax.tree.leaves(wanted), strict=True
    ):
      assert x.sharding.memory_kind == "device"
      np.testing.assert_array_equal(x, y)
    copies = found._copies
    found.drop()
    assert all(x.is_deleted() for x in copies)
  found._prefetches = False
  found.begin()
  assert found._copies is None


def test_a_program_under_way_keeps_what_is_dropped():
  mesh = mesh_lib.make_mesh(mesh_lib.Config(data=1, fsdp=8))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  x = jax.device_put(jnp.arange(2.0**16).reshape(256, 256) / 2**16, place)
  multiply = jax.jit(
    lambda x: jax.lax.fori_loop(0, 20, lambda _, y: jnp.tanh(y @ x), x)
  )
  wanted = np.asarray(multiply(x))
  (host,) = offload.copied([x], offload.HOST)
  assert host.sharding.spec == place.spec
  for _ in range(5):
    (copy,) = offload.copied([host], offload.DEVICE)
    result = multiply(copy)
    copy.delete()
    np.testing.assert_array_equal(result, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", [True, False])
def test_on_a_mesh_it_is_the_run_without(
  files, sft_full, reward_full, tmp_path, prefetch, one_device
):
  found = {}
  for trees in ((), ALL):
    config = config_of(files, sft_full, reward_full)
    config.offload.update(trees=trees, prefetch=prefetch or not trees)
    config.mesh.update(devices=8, data=2, fsdp=2, tensor=2)
    config.schedule.update(steps=2)
    pipelines.run(config, tmp_path / str(len(trees)) / "policy")
    found[trees] = tiny_runs.saved_arrays(tmp_path / str(len(trees)) / "policy")
  tiny_runs.assert_equal_arrays(found[ALL], found[()])


def test_settings_that_are_refused(files, sft_full, reward_full, sft_lora):
  for trees, words in (
    (("value",), "trees: 'value' cannot be on the host; reference, reward"),
    (("reward", "reward"), "stands there twice"),
  ):
    with pytest.raises(FieldError, match=words):
      offload.Config(trees=trees)
  with pytest.raises(FieldError, match="prefetch=False with trees"):
    offload.Config(prefetch=False)
  config = config_of(files, sft_full, "", trees=("reward",))
  config.verifier.name, config.value.init = "exact", "random"
  with pytest.raises(UserError, match="^config.offload.trees: 'reward': a ver"):
    tiny_runs.settings_of(config)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["online_preference", "bond"])
@pytest.mark.parametrize("prefetch", [True, False])
def test_own_samples_train_as_without(
  files, sft_lora, reward_head, one_device, tmp_path, pipeline, prefetch
):
  """Moments rest while the policy samples; the judge's weights come and go."""
  for name, trees in (("with", ALL), ("without", ())):
    config = test_pipeline_online.make_config(
      files, pipeline, sft_lora, reward_head, steps=3
    )
    config.offload.update(trees=trees, prefetch=prefetch or not trees)
    config.schedule.save_every = 2
    held = {"source": files.prompts, "format": "prompt", "max_length": 24}
    config.heldout.update(held)
    config.evaluation.count = 10
    config.schedule.eval_every = 2
    pipelines.run(config, tmp_path / name)
    pretrained.forget()
  found, expected = (
    tiny_runs.rows_of(tmp_path / x) for x in ("with", "without")
  )
  assert len(found) == 3 and found == expected
  tiny_runs.assert_equal_arrays(
    *(tiny_runs.saved_arrays(tmp_path / x) for x in ("with", "without"))
  )


@pytest.mark.slow
def test_rounds_judge_by_what_rests_while_they_train(
  files, sft_lora, reward_head, one_device, tmp_path
):
  for name, trees in (("with", ("reward",)), ("without", ())):
    config = test_pipeline_rejection.make_config(files, sft_lora, reward_head)
    config.offload.trees = trees
    pipelines.run(config, tmp_path / name)
    pretrained.forget()
  assert tiny_runs.rows_of(tmp_path / "with") == tiny_runs.rows_of(
    tmp_path / "without"
  )
  config.offload.trees = ("optimizer",)
  with pytest.raises(UserError, match="'optimizer': the moments of a round"):
    tiny_runs.settings_of(config)
  config.offload.trees = ("reference",)  # the start, where each round begins
  with pytest.raises(UserError, match="others read all of it"):
    pipelines.run(config, tmp_path / "reference")


def test_a_tree_of_which_others_read_all_is_refused():
  weights = judge.Weights(base={}, reference={"w": np.ones(2)}, scorers={})
  actors = _Actors(weights, frozen={"policy": weights.reference})
  for name, why in (("reference", "others read all"), ("reward", "is none")):
    with pytest.raises(FieldError, match=f"offload.trees: '{name}'.*{why}"):
      offload.leaves_of(offload.Config(trees=(name,)), actors)


@dataclasses.dataclass
class _Actors:
  weights: judge.Weights
  frozen: dict


def test_devices_without_such_a_memory_are_refused():
  class Device:
    platform = "toy"

    def addressable_memories(self):
      return []

  class Mesh:
    devices = np.array([Device()])

  with pytest.raises(FieldError, match="a toy has the memories"):
    offload.check_device(Mesh())
