"""The command: what it says to mistakes, and its exit codes."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from rlhf_jax import command, main
from rlhf_jax.integrity import CheckpointError
from rlhf_jax.interrupt import Stopped
from rlhf_jax.optimizer import Config as OptimizerConfig
from rlhf_jax.pipelines import PIPELINES, defaults
from rlhf_jax.programs.pipeline import Job
from rlhf_jax.runs import loop

ROOT = Path(__file__).parent.parent
SFT = """
from rlhf_jax.pipelines import defaults

def get_config():
  config = defaults.sft()
"""


def start(*arguments, folder=ROOT, **options):
  """Starts the command as a user does; the first of few subprocesses."""
  return subprocess.Popen(
    [sys.executable, "-m", "rlhf_jax.main", *map(str, arguments)],
    cwd=folder,
    env={
      **{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
      "PYTHONPATH": str(ROOT),
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def parse(*arguments):
  """Parses in a set of flags of its own; returns the configuration."""
  argv = ["main", *map(str, arguments)]
  command.accept_none()
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  values(argv)
  return values.config


def complaint(*arguments):
  """Returns what the command says to arguments that do not parse."""
  argv = ["main", *map(str, arguments)]
  with pytest.raises(Exception) as caught:  # noqa: B017 (explain takes any)
    parse(*arguments)
  text = command.explain(argv, caught.value)
  assert text is not None and "\n" not in text
  return text


@pytest.fixture
def experiment(tmp_path):
  """Returns a function that writes an experiment file."""

  def write(text, name="mine.py"):
    (tmp_path / name).write_text(text)
    return tmp_path / name

  return write


@pytest.mark.parametrize(
  ("option", "words"),
  [
    ("data.sorce=x", "Did you mean --config.data.source"),
    ("optimizer.lr=1", "Did you mean --config.optimizer.learning_rate"),
    ("learning_rate=1", "Did you mean --config.optimizer.learning_rate?"),
    ("data.nothing_like_it=1", "Fields of config.data: answers, by, chat,"),
    ("quite.another=1", "python -m rlhf_jax.explain --config="),
    ("schedule.steps=1e3", "steps=1e3: must be a whole number"),
    ("optimizer.learning_rate=fast", "learning_rate=fast: must be a number"),
    ("data.chat=yes", "chat=yes: must be True or False"),
    ("optimizer=adam", "is a section: set one of its fields"),
  ],
)
def test_wrong_fields_on_the_command_line(option, words):
  text = complaint(f"--config={ROOT}/configs/sft.py", f"--config.{option}")
  assert text.startswith(f"--config.{option.partition('=')[0]}")
  assert words in text


def test_an_option_without_config_gets_a_suggestion():
  text = complaint(f"--config={ROOT}/configs/sft.py", "--data.source=x.jsonl")
  assert "--data.source: no such option" in text
  assert "--config.data.source" in text


@pytest.mark.parametrize(
  ("text", "where", "words"),
  [
    (SFT + "  config.seed = = 1\n", ":6: ", "invalid syntax"),
    (SFT + "  config.seed = sead\n", ":6: NameError", "sead"),
    (SFT + "  config.optimiser.beta1 = 1\n", ":6: AttributeError", "optimizer"),
    (SFT + "  config.data.update(max_length='x')\n", ":6: TypeError", "int"),
    ("import rlhf_jax.nothing\n", ":1: ModuleNotFoundError", "nothing"),
    ("x = 1\n", ": it has no get_config()", "configs/sft.py"),
    ("def get_config(path):\n  pass\n", ": get_config() wants", ":ARGUMENT"),
  ],
)
def test_broken_experiment_files_are_named_with_their_line(
  experiment, text, where, words
):
  file = experiment(text)
  said = complaint(f"--config={file}", "--config.seed=3")
  assert f"{file}{where}" in said
  assert words in said


def test_files_that_an_experiment_file_misses(experiment):
  file = experiment("def get_config():\n  return open('gone.txt').read()\n")
  config = parse(f"--config={file}")
  argv = ["main", f"--config={file}", "--workdir=r"]
  with pytest.raises(
    command.CommandError, match=r":2: FileNotFoundError.*gone"
  ):
    command.check_after(argv[:1], config, "r", argv)


def test_an_experiment_file_that_returns_nothing(experiment):
  file = experiment(SFT)
  argv = ["main", f"--config={file}", "--workdir=r"]
  with pytest.raises(command.CommandError, match="returned NoneType, not"):
    command.check_after(argv[:1], parse(f"--config={file}"), "r", argv)


def test_an_argument_that_the_experiment_file_does_not_take():
  text = complaint(f"--config={ROOT}/configs/sft.py:big", "--config.seed=1")
  assert "takes no argument. Leave out :big" in text


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--config=configs/sfft.py"], "no such file. Did you mean configs/sft.py"),
    (["--config=configs"], "is a folder"),
    (["--config.seed=1", "--config=configs/sft.py"], "Put --config first"),
  ],
)
def test_the_experiment_file_is_looked_for_first(monkeypatch, arguments, words):
  monkeypatch.chdir(ROOT)
  with pytest.raises(command.CommandError, match=words):
    command.check_before(["main", *arguments])


@pytest.mark.parametrize(
  ("rest", "workdir", "words"),
  [
    (["main", "demos.jsonl"], "r", "unexpected argument 'demos.jsonl'"),
    (["main"], None, "--workdir=DIR missing"),
    (["main"], "", "--workdir=DIR missing"),
  ],
)
def test_arguments_too_many_and_too_few(rest, workdir, words):
  argv = ["main", "--config=configs/sft.py"]
  with pytest.raises(command.CommandError, match=words):
    command.check_after(rest, defaults.sft(), workdir, argv)


@pytest.mark.parametrize("value", ["3", "0.5", "None"])
@pytest.mark.parametrize(
  "field",
  ["shaping.clip", "algorithm.clip_ratio_high", "policy_optimizer.clip_norm"],
)
def test_optional_fields_take_numbers_and_none(field, value):
  config = parse(
    f"--config={ROOT}/configs/ppo.py",
    f"--config.{field}=None",
    f"--config.{field}={value}",
  )
  section, name = field.split(".")
  wanted = None if value == "None" else float(value)
  assert config[section][name] == wanted
  assert type(config[section][name]) is type(wanted)


def test_a_file_may_set_none_and_the_command_line_a_number(experiment):
  file = experiment(
    SFT + "  config.optimizer.clip_norm = None\n  return config"
  )
  config = parse(f"--config={file}", "--config.optimizer.clip_norm=2")
  assert config.optimizer.clip_norm == 2.0


@pytest.fixture
def outcome(monkeypatch, tmp_path, capsys):
  """Returns a function: what the command does if the pipeline raises."""
  monkeypatch.setattr(Job, "check", lambda job, world: None)

  def run(raiser):
    pipeline = dataclasses.replace(
      PIPELINES["sft"], run=lambda settings, world: raiser()
    )
    monkeypatch.setitem(PIPELINES, "sft", pipeline)
    code = main.run(defaults.sft(), tmp_path / "run")
    return code, capsys.readouterr()

  return run


def _raise(error):
  raise error


def test_a_check_of_the_package_is_a_mistake(outcome):
  code, said = outcome(lambda: OptimizerConfig(learning_rate=-1.0))
  assert code == main.EXIT_USAGE
  assert said.err.startswith("error: optimizer.learning_rate=-1.0")
  assert "Traceback" not in said.err


@pytest.mark.parametrize(
  "bug",
  [
    lambda: {}["key"],
    lambda: None + 1,
    lambda: np.zeros(2) + np.zeros(3),
    lambda: int("x"),
    lambda: _raise(ValueError("raised outside of the package")),
    lambda: _raise(RuntimeError("surprise")),
  ],
)
def test_bugs_are_not_disguised_as_mistakes(outcome, bug):
  with pytest.raises((KeyError, TypeError, ValueError, RuntimeError)):
    outcome(bug)


@pytest.mark.parametrize(
  ("error", "code", "words"),
  [
    (CheckpointError("no step 3"), 2, "no step 3"),
    (OSError(28, "No space left on device", "x/y"), 2, "x/y"),
    (PermissionError(13, "Permission denied", "x/z"), 2, "x/z"),
    (MemoryError(), 2, "Lower schedule.batch_size"),
    (RuntimeError("RESOURCE_EXHAUSTED: out"), 2, "model.remat"),
    (loop.NonFiniteError("sft/loss=nan at step 3"), 3, "sft/loss=nan"),
  ],
)
def test_exit_codes_of_errors(outcome, error, code, words):
  found, said = outcome(lambda: _raise(error))
  assert found == code
  assert said.err.startswith("error: ") and words in said.err


@pytest.mark.parametrize("stop", [Stopped(3, None), KeyboardInterrupt()])
def test_a_stop_is_75_and_says_how_to_go_on(outcome, stop):
  code, said = outcome(lambda: _raise(stop))
  assert code == 75
  assert "run the same command" in said.out


def test_the_traceback_is_shown_on_request(outcome, monkeypatch):
  monkeypatch.setenv("RLHF_JAX_TRACEBACK", "1")
  code, said = outcome(lambda: OptimizerConfig(learning_rate=-1.0))
  assert code == 2
  assert "Traceback" in said.err and "optimizer.py" in said.err


def test_the_command_ends_with_2_and_one_line():
  runs = {
    "unexpected argument": start("--config=configs/sft.py", "x.jsonl"),
    "Did you mean --config.data.source": start(
      "--config=configs/sft.py", "--workdir=r", "--config.data.sorce=x"
    ),
    "config.data.source='gone.jsonl': no such file": start(
      "--config=configs/sft.py",
      "--workdir=r",
      "--config.data.source=gone.jsonl",
    ),
  }
  for words, process in runs.items():
    _, err = process.communicate(timeout=240)
    assert process.returncode == 2, err
    assert words in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_sigterm_before_training_is_75(tmp_path):
  file = tmp_path / "slow.py"
  file.write_text(
    SFT
    + "  import dataclasses, time\n"
    + "  from rlhf_jax.pipelines import PIPELINES\n"
    + "  from rlhf_jax.programs.pipeline import Job\n"
    + "  Job.check = lambda job, world: None\n"
    + "  def wait(settings, world):\n"
    + "    (world.workdir / 'here').touch()\n"
    + "    time.sleep(300)\n"
    + "  PIPELINES['sft'] = dataclasses.replace(PIPELINES['sft'], run=wait)\n"
    + "  return config\n"
  )
  workdir = tmp_path / "run"
  process = start(f"--config={file}", f"--workdir={workdir}")
  for _ in range(1800):
    if (workdir / "here").exists():
      break
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 75
  assert f"--workdir={workdir}" in out


def test_the_first_line_comes_before_jax_is_imported():
  code = (
    "import sys; from rlhf_jax import main; "
    "main._say_first(['main', '--config=a.py', '--workdir=w']); "
    "main._say_first(['main', '--config=b.py', '--help']); "
    "main._say_first(['main', '--config=c.py', '--distributed=h:1,2,1']); "
    "print('jax' in sys.modules)"
  )
  said = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert said.stdout.splitlines() == [
    "rlhf_jax: reading a.py, importing jax",
    "False",
  ]
