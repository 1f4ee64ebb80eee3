"""Damaged files of runs, seeds and environments: one message, code 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax import distributed, frontier, metrics, overoptimise
from rlhf_jax.data.dataset import Data
from rlhf_jax.pipelines import defaults, summary
from rlhf_jax.programs import rejection_samples
from rlhf_jax.runs import history, stage_file, stages
from rlhf_jax.schema import FieldError, UserError
from tests.pipelines.tiny_runs import checked

ROOT = Path(__file__).parents[2]
INFO = {
  "pipeline": "sft",
  "model_source": "m",
  "model_fingerprint": "a",
  "tokenizer_fingerprint": "b",
  "steps": 3,
  "role": {
    "trainable": "full",
    "first_layer": 0,
    "stop_layer": None,
    "lora_rank": 0,
    "lora_scale": 1.0,
    "head": None,
  },
}
HEAD = {"pooling": "last", "outputs": 1, "hidden_units": 0}


def test_of_a_folder_of_several_runs_one_is_named(tmp_path):
  for name, head in (("sft", None), ("ppo", None), ("reward", HEAD)):
    (tmp_path / name).mkdir()
    written(tmp_path / name, INFO | {"role": INFO["role"] | {"head": head}})
  with pytest.raises(UserError) as caught:
    stages.need_stage(tmp_path, stages.POLICY, "config.policy")
  assert "found a folder of several runs" in str(caught.value)
  assert f"Name one of them: {tmp_path}/ppo, {tmp_path}/sft." in str(
    caught.value
  )


@pytest.mark.parametrize("command", [frontier, overoptimise])
@pytest.mark.parametrize("file", ["config.json", "stage.json"])
def test_a_study_does_not_stand_in_the_folder_of_a_run(
  command, file, tmp_path, capsys
):
  (tmp_path / file).write_text("{}")
  assert command.main(["x", "--smoke", f"--workdir={tmp_path}"]) == 2
  assert f"holds a run ({file})" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == [file]


def written(folder, info):
  text = info if isinstance(info, str) else json.dumps(info)
  (folder / stages.STAGE_FILE).write_text(text)
  return folder


def test_what_a_stage_says_is_read(tmp_path):
  assert stages.read_stage(tmp_path) is None
  assert stages.read_stage(written(tmp_path, INFO)) == INFO
  measured = INFO | {"loss": float("nan")}  # Python writes NaN
  assert stages.read_stage(written(tmp_path, measured))["steps"] == 3


@pytest.mark.parametrize(
  ("info", "words"),
  [
    ("", "not JSON"),
    ("[]", "holds a list"),
    ("{}", "no 'pipeline'"),
    (INFO | {"role": None}, "'role' is 'None'"),
    (INFO | {"asked": 5}, "'asked' is '5'"),
    (
      INFO | {"role": INFO["role"] | {"lora_targets": [3]}},
      r"'role.lora_targets' is \[3\]",
    ),
    (INFO | {"asked": None}, "'asked' is 'None'"),
    (INFO | {"asked": {"steps": "3"}}, "'asked.steps' is '3'"),
    (INFO | {"asked": {"steps": True}}, "'asked.steps' is 'True'"),
    (INFO | {"asked": {"epochs": []}}, "'asked.epochs' is"),
    (INFO | {"halted": 3}, "'halted' is '3'"),
    (INFO | {"role": {}}, "no 'role.trainable'"),
    (INFO | {"role": INFO["role"] | {"head": []}}, r"'role.head' is '\[\]'"),
    (INFO | {"role": INFO["role"] | {"lora_rank": "4"}}, "'role.lora_rank' is"),
    (INFO | {"role": INFO["role"] | {"first_layer": True}}, "first_layer' is"),
    (
      INFO | {"role": INFO["role"] | {"head": HEAD | {"x": 1}}},
      r"role.head has \['x'\]",
    ),
    (
      INFO
      | {"role": INFO["role"] | {"head": HEAD}, "normalisation": {"mean": 0}},
      "no 'normalisation.std'",
    ),
    (INFO | {"steps": "3"}, "'steps' is '3'"),
    (INFO | {"merged_from": 3}, "'merged_from' is '3'"),
    (INFO | {"model_fingerprint": None}, "'model_fingerprint' is 'None'"),
  ],
)
def test_a_damaged_stage_json(tmp_path, info, words):
  with pytest.raises(UserError, match=f"stage.json: .*{words}.* Delete it and"):
    stages.need_stage(written(tmp_path, info), stages.POLICY)


def test_what_asks_for_more_than_a_stage_was_asked_for(tmp_path):
  """In its own unit only; not of one that its guards halted."""
  for before, now, is_more in (
    ({"steps": 3, "epochs": 0.0}, {"steps": 4, "epochs": 0.0}, True),
    ({"steps": 3, "epochs": 0.0}, {"steps": 3, "epochs": 0.0}, False),
    ({"steps": 3, "epochs": 0.0}, {"steps": 2, "epochs": 0.0}, False),
    ({"steps": 3, "epochs": 0.0}, {"steps": 0, "epochs": 9.0}, False),
    ({"steps": 0, "epochs": 1.0}, {"steps": 0, "epochs": 1.5}, True),
    ({"rounds": 2}, {"rounds": 3}, True),
    ({"rounds": 3}, {"rounds": 3}, False),
    ({}, {"rounds": 3}, False),
  ):
    written(tmp_path, INFO | {"asked": before})
    assert stages.asks_for_more(tmp_path, now) == is_more, (before, now)
    written(tmp_path, INFO | {"asked": before, "halted": "KL"})
    assert not stages.asks_for_more(tmp_path, now)
  written(tmp_path, INFO)  # an older one does not say
  assert not stages.asks_for_more(tmp_path, {"steps": 9, "epochs": 0.0})
  with pytest.raises(UserError, match="nowhere: no finished run"):
    stages.stage_fingerprint(tmp_path / "nowhere")


def test_a_finished_stage_without_checkpoints(tmp_path):
  written(tmp_path, INFO)
  (tmp_path / "checkpoints" / "nan").mkdir(parents=True)
  (tmp_path / "checkpoints" / "nan" / "manifest.json").write_text("{}")
  with pytest.raises(UserError, match="there is no whole checkpoint"):
    stages.stage_fingerprint(tmp_path)


@pytest.mark.parametrize("methods", [[3], [["a"]], [["a", "b"]], [None]])
def test_a_damaged_history(tmp_path, methods):
  written(tmp_path, INFO | {"methods": methods})
  with pytest.raises(UserError, match="'methods' holds"):
    history.history(tmp_path)


def test_a_history_beside_a_damaged_config(tmp_path):
  written(tmp_path, INFO)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(UserError, match="config.json: not JSON"):
    history.history(tmp_path)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (b'{"step": 1, "phase": "sft"}\n\xff\n{}\n', "metrics.jsonl:2: not JSON"),
    (b"[1]\n", "metrics.jsonl:1: no row: .1."),
    (b'{"phase": "sft"}\n', "whose step is None"),
    (b'{"step": "1", "phase": "sft"}\n', "whose step is '1'"),
    (b'{"step": 1}\n', "whose phase is None"),
  ],
)
def test_damaged_metrics(tmp_path, text, words):
  writer = metrics.MetricsWriter(tmp_path, writes_tensorboard=False)
  (tmp_path / "metrics.jsonl").write_bytes(text)
  with pytest.raises(UserError, match=words):
    writer.truncate_after(1, "sft")
  assert (tmp_path / "metrics.jsonl").read_bytes() == text


def test_other_damaged_rows(tmp_path):
  path = tmp_path / summary.TIMES_FILE
  path.write_text('{"phase": "sft", "seconds": 2}\n{"phase": 3}\n')
  with pytest.raises(
    UserError, match="phase_seconds.jsonl:2: no row with a 'p"
  ):
    summary.phase_seconds(tmp_path)
  (tmp_path / "kept.jsonl").write_text('{"prompt_tokens": [1]}\n')
  with pytest.raises(UserError, match="kept.jsonl:1: no row with a 'response"):
    rejection_samples.read_kept([tmp_path / "kept.jsonl"])


def test_every_fact_that_is_checked_has_a_type():
  for kinds in (stage_file.NEEDED, stage_file.FURTHER, stage_file.ROLE):
    for kind in kinds.values():
      assert isinstance(None, kind) in (True, False)


# Seeds and whole numbers.


@pytest.mark.parametrize("seed", [-1, 2**31, 2**32, 2**63 - 1, 2**70])
@pytest.mark.parametrize(
  "pipeline", ["sft", "reward", "preference", "policy", "evaluate", "rlhf"]
)
def test_a_seed_that_no_key_holds(pipeline, seed):
  config = getattr(defaults, pipeline)()
  config.seed = seed
  with pytest.raises(UserError, match="^config.seed"):
    checked(config)


@pytest.mark.parametrize(
  ("pipeline", "field", "value"),
  [
    ("sft", "generate.temperature", 1e39),  # infinite as a float32
    ("sft", "optimizer.learning_rate", float("inf")),
    ("sft", "schedule.epochs", float("inf")),
    ("reward", "loss.centering", 1e39),
    ("policy", "shaping.kl_coefficient", 1e39),
    ("policy", "shaping.overlong_penalty", -1e39),
    ("policy", "shaping.missing_eos_value", float("-inf")),
  ],
)
def test_what_multiplies_or_counts_is_finite(pipeline, field, value):
  config = getattr(defaults, pipeline)()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=f"^config.{field[:5]}.*finite"):
    checked(config)


def test_other_numbers_that_are_too_large():
  with pytest.raises(
    FieldError, match="^split_seed=.*: must be >= 0 and below"
  ):
    Data(split_seed=2**70)
  config = defaults.sft()
  config.schedule.batch_size = 10**400
  with pytest.raises(UserError, match="batch_size: a whole number of 1329 bit"):
    checked(config)


# Environments.


@pytest.mark.parametrize("text", ["x", "-1", "0", "1.5", "9" * 400])
def test_numbers_of_the_environment(text):
  with pytest.raises(UserError, match="SLURM_NTASKS='.*must be a whole number"):
    distributed._is_cluster({"SLURM_NTASKS": text})
  assert not distributed._is_cluster({"SLURM_NTASKS": ""})


def test_a_platform_that_is_not_there(tmp_path):
  (tmp_path / "d.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
  result = subprocess.run(
    [sys.executable, "-m", "rlhf_jax.main", f"--workdir={tmp_path}/run"]
    + [f"--config={ROOT}/configs/sft.py"]
    + [f"--config.data.source={tmp_path}/d.jsonl"],
    env=os.environ | {"JAX_PLATFORMS": "nonsense", "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 2
  assert "error: JAX_PLATFORMS='nonsense': JAX finds no" in result.stderr
  assert "Traceback" not in result.stderr
