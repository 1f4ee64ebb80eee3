"""What a stage was built on: merged weights, found again, or refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.models import heads, roles, trees
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import actors, starts
from rlhf_jax.programs.pipeline import check_stages
from rlhf_jax.runs import checkpoint, stages
from rlhf_jax.runs.checkpoint import CheckpointError
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs
from tests.pipelines.drawn_stages import draw, save_stage


@pytest.fixture
def made(files, tmp_path):
  """Returns base, world, an SFT stage of factors, and a reward model on it."""
  config = tiny_runs.sft_config(files, "lora")
  config.model.lora_scale = 0.5
  base, world = tiny_runs.load_base(config), tiny_runs.world_of(config)
  policy = roles.Role(base.config, trainable="lora")
  scorer = roles.Role(base.config, trainable="head", head=heads.Config())
  start, reward = tmp_path / "start", tmp_path / "reward"
  factors = draw(policy, "lora", 1, 0.3)
  save_stage(start, "sft", base, policy, factors, steps=3)
  head = draw(scorer, "head", 2, 1.0)
  save_stage(reward, "reward", base, scorer, head, merged_from=str(start))
  return base, world, start, reward, trees.flatten(factors["lora"])


def test_a_stage_starts_from_merged_weights_and_finds_them_again(made):
  """W + s A B, where the reward model holds nothing but its head."""
  base, world, start, reward, factors = made
  plain = trees.flatten(base.params)
  assert stages.start_params("", base, world) is base.params
  found = trees.flatten(stages.start_params(start, base, world))
  loaded = stages.load(reward, stages.REWARD, base, world)
  again = trees.flatten(loaded.variables["params"])
  adapted = {path.rpartition("/")[0] for path in factors}
  assert len(adapted) == 14  # seven matrices in two layers
  for path, leaf in plain.items():
    expected = np.asarray(leaf)
    stem = path.removesuffix("/kernel")
    if stem in adapted:
      a, b = (np.asarray(factors[f"{stem}/lora_{x}"]) for x in "ab")
      assert np.abs(a @ b).max() > 0.01
      expected = expected + 0.5 * a @ b
    np.testing.assert_allclose(found[path], expected, atol=1e-5, err_msg=path)
    np.testing.assert_array_equal(again[path], found[path])


def test_another_run_where_a_stage_was_merged_from_is_noticed(made):
  base, world, start, reward, _ = made
  path = start / stages.STAGE_FILE
  info = json.loads(path.read_text())
  path.write_text(json.dumps(info | {"steps": 4}))
  with pytest.raises(CheckpointError, match="another run is there now"):
    stages.load(reward, stages.REWARD, base, world)
  path.write_text(json.dumps(info))
  assert stages.load(reward, stages.REWARD, base, world).info["merged_from"]


def test_a_moved_pair_of_stages_is_found(made, tmp_path):
  base, world, start, reward, _ = made
  (tmp_path / "elsewhere").mkdir()
  for folder in (start, reward):
    folder.rename(tmp_path / "elsewhere" / folder.name)
  moved = tmp_path / "elsewhere" / "reward"
  assert stages.load(moved, stages.REWARD, base, world).role.head is not None


def test_a_stage_is_of_one_model_and_leaves_one_kind(made):
  base, world, start, reward, _ = made
  with pytest.raises(UserError, match="wanted a finished policy run, found a"):
    stages.load(reward, stages.POLICY, base, world)
  for field, what in (("fingerprint", "model"), ("tokenizer", "tokenizer")):
    value = "ff" if what == "model" else Other()
    other = dataclasses.replace(base, **{field: value})
    with pytest.raises(CheckpointError, match=f"with another {what} "):
      stages.load(start, stages.POLICY, other, world)


class Other:
  """A tokenizer of which only the fingerprint is asked."""

  fingerprint = "ff"


def test_the_step_that_is_named_is_loaded(made):
  """Of two steps, factors and their doubles."""
  base, world, start, _, factors = made
  doubled = jax.tree.map(lambda x: 2.0 * x, trees.unflatten(factors))
  with checkpoint.Checkpoints(str(start / "checkpoints"), keep=2) as saved:
    state = {"train": {"params": {"lora": doubled}}}
    saved.save(2, state, base.identity, is_final=True)
  for folder, size in ((f"{start}@1", 1.0), (start, 2.0)):
    stage = stages.load(folder, stages.POLICY, base, world)
    found = trees.flatten(stage.variables["lora"])
    for path, leaf in factors.items():
      np.testing.assert_array_equal(found[path], size * leaf)


@pytest.mark.parametrize(
  "pipeline",
  ["policy", "preference", "online_preference", "bond", "rejection", "lab"],
)
def test_every_finished_policy_is_a_start(files, tmp_path, pipeline, capsys):
  """Of another round, a reward model, a preference run and an evaluation."""
  config = tiny_runs.sft_config(files, "lora")
  base, world = tiny_runs.load_base(config), tiny_runs.world_of(config)
  role = roles.Role(base.config, trainable="lora")
  drawn = {name: draw(role, "lora", i, 0.3) for i, name in enumerate("ab")}
  for name, what in (("a", "sft"), ("b", pipeline)):
    save_stage(tmp_path / name, what, base, role, drawn[name])
  start, other = str(tmp_path / "b"), str(tmp_path / "a")
  for field, made in (
    ("init_from", defaults.reward()),
    ("init_from", defaults.preference()),
    ("init_from", defaults.policy()),
    ("reference", defaults.policy()),
    ("policy", defaults.evaluate()),
  ):
    made[field] = start
    check_stages(pipelines.read(made).settings)
  config = defaults.policy("reinforce")
  config.epochs.update(epochs=1, minibatches=1)
  config.model.update(source=files.model, lora_rank=2)
  config.trainable.mode = "lora"
  config.verifier.name = "pattern"
  config.verifier.settings.update(pattern=".*cat.*")
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.max_new_tokens = 4
  config.init_from = start
  for folder, name in (("", "b"), (other, "a")):
    config.reference = folder
    settings = tiny_runs.settings_of(config)
    found = actors.load(settings, base, world, 4)
    trained = trees.flatten(found.params["policy"])
    tiny_runs.assert_equal_arrays(trained, trees.flatten(drawn["b"]))
    reference = trees.flatten(found.weights.reference)
    for path, leaf in trees.flatten(drawn[name]).items():
      np.testing.assert_array_equal(reference[path], leaf)
    starts.say_reference(settings, "policy")
    what = f"{start}, the start ({pipeline} run)"
    what = what if name == "b" else f"{other} (sft run)"
    said = capsys.readouterr().out
    assert said.endswith(f"policy: the reference is {what}\n")


def test_a_reference_that_is_not_read_is_refused():
  config = defaults.preference("simpo")
  config.reference = "runs/sft"
  with pytest.raises(UserError, match="'simpo' has no reference"):
    pipelines.read(config)
  config = defaults.online_preference()
  config.reference, config.pairing.reference_every = "runs/sft", 2
  with pytest.raises(UserError, match="Set one of them"):
    pipelines.read(config)
