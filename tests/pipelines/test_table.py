"""The table of pipelines: one file more is known to all that serves pipelines.

The file is toy_pipeline.py, named by its import path and as a line of the
table.
"""

import ast
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import rlhf_jax
from rlhf_jax import imported, main, pipelines
from rlhf_jax.pipelines import PIPELINES, defaults, forecast
from rlhf_jax.planning import report, topology
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import test_pipeline_rlhf, tiny_runs, toy_pipeline

PACKAGE = Path(rlhf_jax.__file__).parent


@pytest.fixture
def file(tmp_path):
  """Returns the path of the toy, somewhere outside the package."""
  return shutil.copy(toy_pipeline.__file__, tmp_path / "toy.py")


@pytest.fixture(params=["import path", "table"])
def toy(request, file, monkeypatch):
  """Returns the toy's name, once for each way to name it."""
  name = f"{file}:PIPELINE"
  if request.param == "table":
    monkeypatch.setitem(PIPELINES, "toy", imported.load(name, "pipeline"))
    name = "toy"
  return name


def make_config(name, files):
  config = defaults.of(name)
  config.mesh.devices = 1
  config.model.source = files.model
  return config


def test_defaults_hold_all_of_its_settings(toy):
  config = defaults.of(toy)
  assert config.pipeline == toy
  assert config.growth.rate == 0.01 and config.schedule.steps == 3
  assert set(config) == {
    "pipeline",
    *toy_pipeline.Settings.__dataclass_fields__,
  }
  if toy in PIPELINES:
    assert defaults.toy() == config and "toy" in dir(defaults)


def test_mistakes_name_their_field(toy, files):
  config = make_config(toy, files)
  with config.growth.unlocked():
    config.growth.rat = 0.5
  with pytest.raises(UserError, match=r"^config\.growth\.rat: .*'rate'\?"):
    pipelines.read(config)
  del config.growth.rat
  config.growth.rate = -1.0
  with pytest.raises(UserError, match=r"^config\.growth\.rate=-1\.0: must be"):
    pipelines.read(config)
  config.growth.rate = 0.5  # only the toy itself knows what is wrong
  with pytest.raises(
    UserError, match=r"^config\.growth\.rate=0\.5: grows by 1\.5 in all, on 1 "
  ):
    tiny_runs.checked(config)
  config.growth.rate = 0.1
  config.init_from = "nowhere"
  with pytest.raises(
    UserError, match=r"^config\.init_from='nowhere': wanted a finished policy"
  ):
    tiny_runs.checked(config)
  config.init_from, config.model.source = "", "gone"
  with pytest.raises(UserError, match=r"^config\.model\.source='gone'"):
    tiny_runs.checked(config)


def test_the_command_runs_it_once(toy, files, tmp_path, capsys):
  config, folder = make_config(toy, files), tmp_path / "run"
  assert main.run(config, folder) == 0
  info = stages.read_stage(folder)
  assert info["pipeline"] == "growth" and info["steps"] == 3
  record = json.loads((folder / "config.json").read_text())
  assert record["config"]["pipeline"] == toy
  rows = tiny_runs.rows_of(folder)
  assert [row["step"] for row in rows] == [1, 2, 3]
  capsys.readouterr()
  assert main.run(config, folder) == 0
  assert "growth: " in (said := capsys.readouterr().out)
  assert "is finished, nothing to do" in said
  assert tiny_runs.rows_of(folder) == rows
  config.growth.rate = 0.02
  assert main.run(config, folder) == main.EXIT_USAGE
  assert "config.growth.rate=0.02: " in (said := capsys.readouterr().err)
  assert "holds finished work with 0.01" in said
  assert stages.read_stage(folder) == info


def test_what_it_leaves_is_a_start(toy, files, sft_lora, tmp_path):
  """Of itself, from LoRA factors: whole weights, merged."""
  config = make_config(toy, files)
  config.init_from = str(sft_lora)
  pipelines.run(config, tmp_path / "first")
  config.init_from = str(tmp_path / "first")
  pipelines.run(config, tmp_path / "second")
  found, before = (
    stages.load(
      tmp_path / name,
      stages.POLICY,
      tiny_runs.load_base(config),
      tiny_runs.world_of(config),
    ).variables["params"]["final_norm"]["scale"]
    for name in ("second", "first")
  )
  np.testing.assert_allclose(found, before * 1.01**3, rtol=1e-5)
  with pytest.raises(UserError, match="wanted a finished reward run, found a"):
    stages.need_stage(tmp_path / "first", stages.REWARD)


def test_it_is_planned(toy, files):
  config = make_config(toy, files)
  config.mesh.update(devices=0, data=2, fsdp=4)
  found = report.make(config, topology.parse("cpu:8"), compiles=False)
  (line,) = found.lines
  assert (line.phase, line.program) == ("growth", "grow")
  assert found.meshes == {"growth": {"data": 2, "fsdp": 4, "tensor": 1}}
  assert line.weights > 0 and not found.too_large
  config.growth.rate = -1.0
  with pytest.raises(UserError, match=r"^config\.growth\.rate=-1\.0"):
    report.make(config, topology.parse("cpu:8"), compiles=False)


@pytest.fixture
def whole_run(files):
  """Returns a function: a whole run with another policy stage."""

  def make(policy):
    config = test_pipeline_rlhf.make_config(files)
    config.policy = policy
    return config

  return make


def test_it_is_the_policy_stage_of_a_whole_run(toy, files, whole_run, tmp_path):
  config = whole_run(make_config(toy, files))
  jobs = pipelines.read(config, tmp_path).settings.jobs
  job = jobs["policy"]
  assert job.settings.init_from == str(tmp_path / "sft")
  assert job.settings.seed == 3000
  folders = {name: tmp_path / name for name in jobs}
  world = tiny_runs.world_of(config, tmp_path)
  found = forecast.flops(jobs, folders, world)
  base = tiny_runs.load_base(config.policy)
  count = sum(leaf.size for leaf in jax.tree.leaves(base.params))
  assert found["policy"] == 3 * count
  assert job.pipeline.describe(job.settings) == "3 steps of growth"
  config.policy.growth.rate = 0.5
  with pytest.raises(
    UserError, match=r"^config\.policy\.growth\.rate=0\.5: grows by 1\.5"
  ):
    tiny_runs.checked(config)


@pytest.mark.parametrize("name", ["reward", "evaluate"])
def test_the_policy_stage_leaves_a_policy(name, whole_run):
  config = whole_run(defaults.of(name))
  with pytest.raises(
    UserError,
    match=rf"^config\.policy\.pipeline='{name}': must be one of sft, "
    "preference, policy, rejection, online_preference, bond, or the import",
  ):
    pipelines.read(config)


@pytest.mark.parametrize("name", ["JUDGE", "REPORT"])
def test_also_where_it_is_named_by_import_path(name, file, files, whole_run):
  config = whole_run(make_config(f"{file}:{name}", files))
  with pytest.raises(UserError, match=r"^config\.policy\.pipeline='/.*must be"):
    pipelines.read(config)


@pytest.mark.parametrize("stage", ["sft", "reward", "gold", "evaluation"])
def test_the_other_stages_are_what_the_run_reads(stage, toy, files, whole_run):
  config = test_pipeline_rlhf.make_config(files)
  config[stage] = make_config(toy, files)
  with pytest.raises(UserError, match=rf"^config\.{stage}\.pipeline="):
    pipelines.read(config)


@pytest.mark.parametrize(
  "name, message",
  [
    ("stf", r"='stf': must be one of sft, .*Did you mean 'sft'\?"),
    (3, "=3: must be one of sft, "),
    ("gone.py:PIPELINE", "='gone.py:PIPELINE': .*no such file"),
    ("FILE:PIPELIN", "Did you mean 'PIPELINE'"),
    ("FILE:Settings", "is a type, not a Pipeline"),
    ("FILE", "is a module, not a Pipeline"),
  ],
)
def test_what_is_no_pipeline_is_refused(name, message, file):
  values = defaults.sft().to_dict()
  values["pipeline"] = name
  if isinstance(name, str):
    values["pipeline"] = name.replace("FILE", str(file))
  with pytest.raises(UserError, match=rf"^config\.pipeline.*{message}"):
    pipelines.read(values)


# Nothing outside of pipelines/ knows a pipeline by its name.

# Also roles, metrics, kinds of stages, parts of a packed row.
WORDS = {"policy", "reward", "segments"}


def is_name_of_pipeline(node):
  """Says whether an expression is config.pipeline, or the like."""
  match node:
    case ast.Attribute(attr="name", value=value):
      return is_name_of_pipeline(value)
    case ast.Attribute(attr=name) | ast.Name(id=name):
      return name == "pipeline"
    case ast.Subscript(slice=ast.Constant(value=key)):
      return key == "pipeline"
    case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(), *_]):
      return node.args[0].value == "pipeline"
  return False


def names_in(node):
  """Returns the names of pipelines that stand in an expression."""
  texts = {x.value for x in ast.walk(node) if isinstance(x, ast.Constant)}
  return texts & set(PIPELINES)


def complaints(source):
  """Returns lines that know a pipeline by its name.

  A name that is no other word may stand nowhere; one that is may not be
  compared with config.pipeline, nor stand in a table that it looks up.
  """
  found = []
  for node in ast.walk(ast.parse(source)):
    is_known = isinstance(node, ast.Constant) and names_in(node) - WORDS
    asked = []
    if isinstance(node, ast.Compare):
      asked = [node.left, *node.comparators]
    elif isinstance(node, ast.Match):
      asked = [node.subject]
    elif isinstance(node, ast.Subscript):
      asked = [node.slice]
    if is_known or (any(map(is_name_of_pipeline, asked)) and names_in(node)):
      found.append(f"{node.lineno}: {ast.unparse(node)[:60]}")
  return found


def test_no_other_file_knows_a_pipeline_by_its_name():
  outside = [
    path
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] != "pipelines"
  ]
  assert len(outside) > 100
  found = {
    str(path.relative_to(PACKAGE)): complaints(path.read_text())
    for path in outside
  }
  assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
  "source, is_allowed",
  [
    ("x = 'rejection'", False),
    ("x = {'sft': 1, 'policy': 2}", False),
    ("if config.pipeline == 'policy': pass", False),
    ("if 'reward' != job.pipeline.name: pass", False),
    ("if info['pipeline'] in ('policy', 'other'): pass", False),
    ("if config.get('pipeline', '') == 'reward': pass", False),
    ("match stage.pipeline:\n  case 'policy': pass", False),
    ("x = {'policy': 1, 'reward': 2}[config.pipeline]", False),
    ("if pipeline in ('', info['pipeline']): pass", True),
    ("if kind == 'policy': pass", True),
    ("x = {'policy': 1, 'reward': 2}", True),
    ("x = 'starts as rejection does'", True),
  ],
)
def test_the_rule_can_fail(source, is_allowed):
  assert is_allowed == (not complaints(source))
