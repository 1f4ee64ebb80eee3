"""What explain, the catalogue and `python -m rlhf_jax` print."""

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf_jax.__main__ as commands
from rlhf_jax import catalogue, command, explain, main
from rlhf_jax.algorithms.policy_gradient import rloo
from rlhf_jax.data.assets import ASSETS
from rlhf_jax.data.formats import FORMATS
from rlhf_jax.models import attention
from rlhf_jax.models.families import FAMILIES
from rlhf_jax.pipelines import PIPELINES, defaults
from rlhf_jax.planning.topology import CHIPS
from rlhf_jax.rewards.verifiers import VERIFIERS
from rlhf_jax.schema import UserError

ROOT = Path(__file__).parent.parent
PPO = f"--config={ROOT}/configs/ppo.py"


@pytest.fixture(autouse=True)
def a_narrow_terminal(monkeypatch):
  monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def shown(capsys):
  """Returns a function: what explain prints, its exit code and its error."""

  def show(*arguments):
    code = explain.main(["explain", *map(str, arguments)])
    said = capsys.readouterr()
    return said.out, code, said.err

  return show


def line_of(text, name):
  """Returns the line of a field, with its mark."""
  found = [
    line for line in text.splitlines() if line[2:].startswith(f"{name} ")
  ]
  assert len(found) == 1, found
  return found[0]


def flat(config, prefix=""):
  for key in config:
    value = config[key]
    if hasattr(value, "keys") and value.keys():
      yield from flat(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_field_of_a_pipeline_is_printed_and_unchanged(pipeline):
  config = defaults.of(pipeline)
  parts = list(explain.parts(config))
  rows = {row.name: row for part in parts for row in part.rows}
  wanted = {
    name
    for name, value in flat(config)
    if value is not None  # of other methods
    or not ("algorithm." in name or "combination." in name)
  }
  assert wanted <= rows.keys()
  assert not [row for row in rows.values() if row.default is not None]
  assert all(row.meaning and row.kind for row in rows.values())
  told = [row.kind for row in rows.values()]
  assert not [kind for kind in told if "could not" in kind or " , " in kind]


def test_sections_stand_in_the_order_of_settings():
  settings = PIPELINES["policy"].Settings
  named = [p.name for p in explain.parts(defaults.policy()) if p.name]
  fields = [field.name for field in dataclasses.fields(settings)]
  assert named == [name for name in fields if name in named]
  assert {"model", "algorithm", "policy_optimizer"} <= set(named)


def test_a_method_shows_its_own_fields_alone():
  def names(method):
    parts = explain.parts(defaults.policy(method))
    return {row.name for part in parts for row in part.rows}

  assert "algorithm.value_clip" in names("ppo") - names("rloo")
  assert "algorithm.group_size" in names("rloo") - names("ppo")


def test_changed_values_are_marked_with_their_default(shown):
  text, code, _ = shown(PPO, "--config.shaping.clip=4.0", "--config.seed=0")
  assert code == 0
  assert line_of(text, "schedule.steps").startswith("* ")
  assert line_of(text, "schedule.steps").endswith("; default 0")
  clip = line_of(text, "shaping.clip")
  assert clip.startswith("> ") and "4.0" in clip and "default 5.0" in clip
  assert line_of(text, "seed").startswith("  ")  # 0 as before
  assert line_of(text, "shaping.kl_clip").startswith("  ")
  assert max(map(len, text.splitlines())) <= 80
  fewer, _, _ = shown(PPO, "--changed")
  assert line_of(fewer, "schedule.steps") and "kl_clip" not in fewer


def test_only_narrows_to_names_with_the_word(shown):
  text, code, _ = shown(PPO, "--only=clip")
  rows = re.findall(r"^[*> ] ([a-z]\w*\.\w+) ", text, re.MULTILINE)
  assert code == 0 and "shaping.kl_clip" in rows
  assert all("clip" in row for row in rows)


def test_a_wrong_word_is_refused_with_the_nearest(shown):
  text, code, error = shown(PPO, "--only=shapping")
  assert (text, code) == ("", command.EXIT_USAGE)
  assert error.startswith("error: --only=shapping: ")
  assert "Did you mean 'shaping'?" in error and "Sections: model," in error


def test_a_group_follows_the_samples_where_nobody_set_it(shown):
  arguments = [f"--config={ROOT}/configs/method.py:rloo", "--only=group_size"]
  text, _, _ = shown(*arguments, "--config.generate.num_samples=2")
  assert line_of(text, "algorithm.group_size").split()[:2] == [
    "algorithm.group_size",
    "2",
  ]


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ("algorithm.clip_ratio=3.0", "clip_ratio=3.0: must be in (0, 1)."),
    ("algorithm.name=grop", "Did you mean 'grpo'?"),
  ],
)
def test_an_experiment_that_is_refused_is_explained_too(shown, change, words):
  text, code, _ = shown(PPO, f"--config.{change}")
  assert code == 0 and line_of(text, "algorithm.name")
  end = " ".join(text.partition("A run of this experiment")[2].split())
  assert end.startswith("would be refused: config.algorithm.")
  assert words in end


def test_another_pipeline_as_a_stage_is_a_change():
  config = defaults.rlhf()
  config.policy = defaults.online_preference("dpo")
  config.policy.generate.num_samples = 2
  rows = {r.name: r for part in explain.parts(config) for r in part.rows}
  assert rows["policy.pipeline"].default == "'policy'"
  assert rows["policy.generate.num_samples"].default == "1"
  assert rows["policy.pairing.rule"].default is None
  assert rows["sft.pipeline"].default is None


def test_the_settings_of_a_verifier_are_fields_too():
  config = defaults.policy("rloo")
  with config.unlocked():
    config.verifier.update(name="number", settings={"percent": "divide"})
  rows = {r.name: r for part in explain.parts(config) for r in part.rows}
  assert rows["verifier.settings.percent"].default == "'drop'"
  assert rows["verifier.settings.several"].kind == "one of refuse, last"


def test_a_method_of_a_user_is_read_from_its_file(tmp_path):
  source = inspect.getsource(rloo).replace(
    "group_size: int = 4", "group_size: int = 6"
  )
  source += "\n\n@dataclasses.dataclass(frozen=True)\nclass Own(Config):\n"
  source += (
    "  warmth: float = 0.5  # degrees; a field of mine\n\nConfig = Own\n"
  )
  (tmp_path / "mine.py").write_text(source)
  config = defaults.policy(f"{tmp_path}/mine.py")
  config.generate.num_samples = 6
  from rlhf_jax import pipelines

  settings = pipelines.read(config).settings
  parts = list(explain.parts(config, settings))
  rows = {r.name: r for part in parts for r in part.rows}
  assert rows["algorithm.warmth"].meaning == "degrees; a field of mine"
  assert rows["algorithm.group_size"].value == "6"
  about = next(part.about for part in parts if part.name == "algorithm")
  assert "mine.py)" in about and "Ahmadian" in about


def test_main_explains_and_lists(shown, capsys):
  wanted, _, _ = shown(PPO, "--only=seed")
  line = ["main", PPO, "--workdir=runs/x", "--explain", "--only=seed"]
  assert main.main(line) == 0
  assert capsys.readouterr().out == wanted
  assert catalogue.main(["catalogue"]) == 0
  wanted = capsys.readouterr().out
  assert main.main(["main", "--list"]) == 0
  assert capsys.readouterr().out == wanted


def test_every_registry_stands_in_the_catalogue():
  found = {table.title: table.rows for table in catalogue.tables()}
  assert found["pipelines"].keys() == PIPELINES.keys()
  assert found["verifiers"].keys() == VERIFIERS.keys()
  assert found["data formats"].keys() == FORMATS.keys()
  assert found["assets"].keys() == ASSETS.keys()
  assert found["model families"].keys() == FAMILIES.keys()
  assert tuple(found["attention programs"]) == attention.KINDS
  assert found["TPU slices"].keys() == CHIPS.keys()
  for name, pipeline in PIPELINES.items():
    for field in dataclasses.fields(pipeline.Settings):
      if "family" in field.metadata:
        family = field.metadata["family"]
        title = f"methods of {name}"
        if field.name == "combination":
          title = "combinations of judges"
        assert found[title].keys() == family.keys()
  assert all(text for rows in found.values() for text in rows.values())


def test_the_catalogue_fits_and_narrows(capsys):
  assert catalogue.main(["catalogue", "verifiers"]) == 0
  text = capsys.readouterr().out
  assert "constraints" in text and "rloo" not in text
  assert catalogue.main(["catalogue"]) == 0
  text = capsys.readouterr().out
  assert max(map(len, text.splitlines())) <= 80
  assert "98 MB; Apache-2.0" in " ".join(text.split())
  assert catalogue.main(["catalogue", "verifers"]) == command.EXIT_USAGE
  assert "Did you mean 'verifiers'?" in capsys.readouterr().err


def test_the_package_lists_its_commands():
  done = subprocess.run(
    [sys.executable, "-m", "rlhf_jax"],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  for name in ("main", "plan", "explain", "catalogue"):
    module = sys.modules.get(f"rlhf_jax.{name}")
    doc = inspect.getdoc(module) if module else ""
    assert f"  {name} " in done.stdout
    assert doc.partition("\n")[0] in done.stdout
  assert max(map(len, done.stdout.splitlines())) <= 80
  assert "--help" in done.stdout


def test_every_command_is_found_by_itself():
  known = commands.commands()
  runnable = {
    path.stem
    for path in (ROOT / "rlhf_jax").glob("[!_]*.py")
    if "__main__" in path.read_text()
  }
  runnable |= {p.parent.name for p in (ROOT / "rlhf_jax").glob("*/__main__.py")}
  assert known.keys() == runnable
  assert all(text.endswith(".") for text in known.values())


def test_an_unknown_command_gets_the_nearest(capsys):
  assert commands.main(["rlhf_jax", "explian"]) == 2
  said = capsys.readouterr().err
  assert "'explian': no such command. Did you mean 'explain'?" in said


def test_a_command_runs_by_its_name(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["rlhf_jax"])
  monkeypatch.delitem(sys.modules, "rlhf_jax.catalogue")
  with pytest.raises(SystemExit) as left:
    commands.main(["rlhf_jax", "catalogue", "assets"])
  assert left.value.code == 0
  assert "smollm2" in capsys.readouterr().out


def test_help_names_the_options_of_the_command(capsys):
  for module in (main, explain):
    with pytest.raises(SystemExit) as left:
      module.main([module.__name__, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(module.__doc__.partition("\n")[0])
    assert all(f"--{name}" in text for name in module.OPTIONS)


def test_a_field_that_is_nowhere_names_this_command():
  values = ["explain", PPO, "--config.quite.another=1"]
  with pytest.raises(SystemExit) as left:
    explain.main(values)
  assert left.value.code == 2


def test_narrowing_to_nothing_is_an_error():
  part = explain.Part("loss", "", [explain.Row("loss.a", "1", "number", "x")])
  with pytest.raises(UserError, match="Sections: loss"):
    explain.narrowed([part], "b")
