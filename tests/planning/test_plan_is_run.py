"""What is planned is what runs: one list of programs, the same arrays."""

import functools
import re

import jax
import numpy as np
import pytest

from rlhf_jax import decoding, pipelines
from rlhf_jax.planning import compiled
from rlhf_jax.programs.program import Program
from rlhf_jax.rewards import judge
from tests.planning import same_settings

NAMES = (
  "sft lora",
  "sft full",
  "reward head",
  "reward full",
  "dpo",
  "orpo",
  "ppo lora",
  "ppo full",
  "ppo shared trunk",
  "grpo",
  "remax",
  "rejection",
  "online_preference",
  "bond",
  "evaluate",
)


WHO = re.compile("^(anchor|own|before|after|greedy) ")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Returns (experiments by name, folders of their finished stages)."""
  files = same_settings.make_files(tmp_path_factory.mktemp("planned"))
  folders = same_settings.make_stages(files)
  return same_settings.experiments(files, folders), folders


def form(tree):
  """Returns the structure of a tree, and shape and dtype of its leaves."""
  leaves, structure = jax.tree.flatten(tree)
  return structure, [(np.shape(x), str(x.dtype)) for x in leaves]


def distinct(*trees):
  """Returns the shapes of all arrays, one that occurs twice once."""
  found = {id(leaf): leaf.shape for leaf in jax.tree.leaves(trees)}
  return sorted(found.values())


def assert_placed_alike(found, expected):
  """A real array that is not committed goes where a program wants it."""
  others = jax.tree.leaves(expected)
  for (path, x), other in zip(
    jax.tree_util.tree_leaves_with_path(found), others, strict=True
  ):
    if other.committed:
      assert x.sharding.is_equivalent_to(other.sharding, x.ndim), path
    else:
      assert x.sharding.is_fully_replicated, path


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_is_wired_like_a_run(made, name, tmp_path):
  """On 2 x 2 x 2 devices: programs, arrays, shardings, what is shared."""
  experiments, folders = made
  assert set(NAMES) == set(experiments)
  config = experiments[name]()
  config.mesh.update(devices=8, data=2, fsdp=2, tensor=2)
  job = pipelines.read(config)
  (run,) = job.phases(job.open(tmp_path))
  (plan,) = job.phases(
    same_settings.planned_world(config, folders, jax.devices()[:8])
  )
  assert [p.name for p in plan.programs] == [p.name for p in run.programs]
  assert [p.rows for p in plan.programs] == [p.rows for p in run.programs]
  assert [p.calls for p in plan.programs] == [p.calls for p in run.programs]
  assert plan.role == run.role and plan.step == run.step
  assert not plan.world.notes  # nothing had to be assumed
  assert form(plan.arrays) == form(run.arrays)
  assert form(plan.frozen) == form(run.frozen)
  assert_placed_alike(plan.arrays, run.arrays)
  assert_placed_alike(plan.frozen, run.frozen)
  assert distinct(plan.arrays, plan.frozen) == distinct(run.arrays, run.frozen)
  is_array = [isinstance(x, jax.Array) for x in jax.tree.leaves(plan.arrays)]
  assert not any(is_array)


class Calls:
  """What a run calls: name of a program, without who samples -> forms.

  forms: of the arguments of each call, one that comes again once.
  counts: name -> calls.
  """

  def __init__(self):
    self.forms = {}
    self.counts = {}

  def add(self, name, args):
    name = WHO.sub("", name)
    found = self.forms.setdefault(name, [])
    self.counts[name] = self.counts.get(name, 0) + 1
    if form(args) not in found:
      found.append(form(args))

  def watched(self, name, function):
    """Returns a function whose calls are noted."""

    @functools.wraps(function)
    def call(*args, **kwargs):
      if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args)):
        self.add(name, args)
      return function(*args, **kwargs)

    return call

  def watch(self, patch):
    """Notes the calls of sampling, judging and of phases' programs."""
    for name in ("prefill", "decode"):
      function = getattr(decoding, name)
      patch.setattr(decoding, name, self.watched(name, function))
    make_judge, call = judge.make_judge, Program.__call__

    def watched_judge(plan):
      return self.watched("judge", make_judge(plan))

    def watched_call(program, *args, **kwargs):
      if not program.name.endswith("judge"):
        self.add(program.name, args)
      return call(program, *args, **kwargs)

    patch.setattr(judge, "make_judge", watched_judge)
    patch.setattr(Program, "__call__", watched_call)


def planned_calls(config, folders):
  """Returns the Calls that a plan foresees, and its phase."""
  found, flow = Calls(), {}
  world = same_settings.planned_world(config, folders, jax.devices()[:1])
  (phase,) = pipelines.read(config).phases(world)
  for program in phase.programs:
    args, _ = program.arguments(flow)
    found.add(program.name, args)
    _, result = compiled.measure(phase, program, flow, compiles=False)
    if program.result:
      flow[program.result] = result
  return found, phase


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_calls_what_is_planned(made, name, tmp_path, monkeypatch):
  """Rows of full length: structure, shape and dtype of every argument."""
  experiments, folders = made
  config = experiments[name]()
  config.mesh.devices = 1
  expected, phase = planned_calls(config, folders)
  expected.forms.pop("merge", None)  # the sampler calls it by itself
  found = Calls()
  found.watch(monkeypatch)
  pipelines.run(config, tmp_path)
  assert found.forms.keys() == expected.forms.keys()
  # How all examples share the rows of one pass is known with the data only.
  expected.forms.pop("features", None)
  for program, forms in expected.forms.items():
    assert found.forms[program] == forms, program
  for name, count in found.counts.items():
    calls = [p.calls for p in phase.programs if WHO.sub("", p.name) == name]
    # The reference is computed for all rows, those of no step too.
    if None not in calls and name not in ("reference", "features"):
      assert count == sum(calls), name
