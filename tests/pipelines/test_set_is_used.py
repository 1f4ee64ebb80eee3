"""What is set is read by something, or refused by name; remedies are right."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from rlhf_jax import command, imported, main
from rlhf_jax.data import formats, judged, records, unread
from rlhf_jax.data.dataset import Data, check_left
from rlhf_jax.data.sources import DataError
from rlhf_jax.data.transcripts import BEGIN
from rlhf_jax.pipelines import defaults
from rlhf_jax.pipelines.rlhf import Settings as WholeRun
from rlhf_jax.programs import reward_facts
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, UserError
from tests.pipelines.test_odd_folders import INFO, written
from tests.pipelines.tiny_runs import checked
from tests.pipelines.wrong_files import make_files, sft_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  return make_files(tmp_path_factory.mktemp("set"))


@pytest.mark.parametrize(
  ("section", "changes", "words"),
  [
    (
      "model",
      {"lora_rank": 16},
      "model.lora_rank=16, model.lora_scale=1.0: no",
    ),
    (
      "model",
      {"lora_scale": 2.0},
      "model.lora_rank=0, model.lora_scale=2.0: not",
    ),
    (
      "data",
      {"prefix_tokens": 3},
      "data.prefix_tokens=3: nothing reads it for",
    ),
    (
      "data",
      {"prompt": "Q:"},
      "data.prompt='Q:': nothing reads it for demonst",
    ),
    (
      "data",
      {"end_token": False},
      "data.end_token=False: nothing reads it for",
    ),
    ("data", {"share_prompts": "never"}, "data.share_prompts='never': noth"),
    ("data", {"pairs": 9}, "data.pairs=9: nothing reads it for demonstrations"),
    ("data", {"ties": "soft"}, "data.ties='soft': nothing reads it"),
    ("data", {"splits": "a:2"}, "data.splits='a:2': nothing reads it"),
    ("validation", {"pack": "all"}, "validation.pack='all': nothing reads it"),
    ("sample_prompts", {}, "sample_prompts.source=.*with samples=0"),
    (
      "sample_prompts",
      {"pack": "all"},
      "sample_prompts.pack='all': nothing rea",
    ),
  ],
)
def test_sft_settings_that_nothing_reads(files, section, changes, words):
  config = sft_config(files)
  if section in ("validation", "sample_prompts"):
    config[section].source = files["demos.jsonl"]
    config[section].format = "demonstration"
  config[section].update(changes)
  with pytest.raises(UserError, match=f"^config.{words}"):
    checked(config)


@pytest.mark.parametrize(
  "changes", [{"pack": "all"}, {"train_on_prompt": True}]
)
def test_settings_of_comparisons_that_nothing_reads(files, changes):
  config = defaults.reward()
  config.mesh.devices = 1
  config.model.source = files["model"]
  config.schedule.update(batch_size=4, epochs=1.0)
  config.data.update(source=files["pairs.jsonl"], **changes)
  with pytest.raises(
    UserError, match="^config.data.(pack='all'|train_on_prompt=True)"
  ):
    checked(config)


def test_prompts_stand_once_in_rows_of_comparisons_only(files):
  config = defaults.reward()
  config.mesh.devices = 1
  config.model.source = files["model"]
  config.schedule.update(batch_size=4, epochs=1.0)
  config.data.update(source=files["pairs.jsonl"], share_prompts="always")
  config.trainable.mode = "full"
  checked(config)
  config.trainable.mode, config.stop_layer = "head", 1
  words = "^config.data.share_prompts='always': nothing reads it for comp"
  with pytest.raises(UserError, match=words):
    checked(config)


@pytest.mark.parametrize(
  ("changes", "coefficient", "words"),
  [
    ({}, None, "ptx.source=.*: nothing reads it with algorithm.ptx_coeffic"),
    ({"pack": "all"}, 0.1, "ptx.pack='all': nothing reads it"),
    ({"source": "gone.jsonl"}, 0.1, "ptx.source='gone.jsonl': no such file"),
  ],
)
def test_text_beside_ppo(files, changes, coefficient, words):
  config = defaults.policy()
  config.mesh.devices = 1
  config.model.source = files["model"]
  config.reward = "judge"
  config.prompts.update(
    source=files["prompts.jsonl"], format="prompt", max_length=200
  )
  config.schedule.update(batch_size=4, steps=2)
  config.algorithm.ptx_coefficient = coefficient
  config.ptx.update(source=files["demos.jsonl"], format="demonstration")
  config.ptx.update(changes)
  with pytest.raises(UserError, match=f"^config.{words}"):
    checked(config)


# Homes.


def test_every_path_may_begin_with_the_home(files, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  written_to = tmp_path / "sft"
  written_to.mkdir()
  written(written_to, INFO)
  assert stages.place("~/sft") == (written_to, "")
  assert stages.place("~/sft@best") == (written_to, "best")
  assert stages.need_stage("~/sft", stages.POLICY)["steps"] == 3
  assert WholeRun(reuse="~/x").folder("sft", "w") == tmp_path / "x" / "sft"
  argv = command._with_places(["m", "--config=~/a.py", "--config", "~/b.py"])
  assert argv[1:] == [
    f"--config={tmp_path}/a.py",
    "--config",
    f"{tmp_path}/b.py",
  ]
  shutil.copytree(files["model"], tmp_path / "model")
  shutil.copy(files["demos.jsonl"], tmp_path)
  config = sft_config(files)
  config.model.update(source="~/model", tokenizer="~/model")
  config.data.source = "~/demos.jsonl"
  checked(config)
  (tmp_path / "samples.npz").write_bytes(b"PK no")
  with pytest.raises(FieldError, match="samples.npz'.* damaged, or another"):
    reward_facts.read_samples(Path("~/samples.npz").expanduser())


# The command line.


def code_of(monkeypatch, capsys, *arguments):
  argv = ["main", *map(str, arguments)]
  with pytest.raises(SystemExit) as caught:
    command.parse(argv, main.OPTIONS, "About.", needs_workdir=True)
  said = capsys.readouterr()
  assert "Traceback" not in said.err
  return caught.value.code, said.out + said.err


@pytest.mark.parametrize("option", ["--help", "-h", "-help", "--helpfull"])
def test_help_is_no_mistake(monkeypatch, capsys, option):
  code, said = code_of(monkeypatch, capsys, "--config=gone.py", option)
  assert code == 0 and "--workdir=..." in said


@pytest.mark.parametrize("value", ["", "0", "1", "'bye'"])
@pytest.mark.parametrize("place", ["top", "inside"])
def test_an_experiment_file_that_ends_the_process(
  tmp_path, monkeypatch, capsys, value, place
):
  file = tmp_path / "mine.py"
  indent = "  " if place == "inside" else ""
  head = "import sys\n" + ("def get_config():\n" if indent else "")
  file.write_text(f"{head}{indent}sys.exit({value})\n")
  code, said = code_of(monkeypatch, capsys, f"--config={file}", "--workdir=w")
  assert code == 2
  assert f"error: {file}: it ended the process (sys.exit(" in said


def test_a_run_whose_code_ends_the_process(
  files, tmp_path, capsys, monkeypatch
):
  def leave(*_):
    raise SystemExit(0)

  monkeypatch.setattr("rlhf_jax.pipelines.read", leave)
  assert main.run(sft_config(files), tmp_path / "run") == 2
  assert "ended the process (sys.exit(0))" in capsys.readouterr().err


def test_an_experiment_given_twice(monkeypatch, capsys):
  one, two = ROOT / "configs/sft.py", ROOT / "configs/ppo.py"
  code, said = code_of(
    monkeypatch,
    capsys,
    f"--config={one}",
    "--config.seed=1",
    f"--config={two}",
    "--workdir=w",
  )
  assert code == 2 and "--config is given 2 times, last as" in said


def test_an_experiment_that_is_a_pipe_or_a_folder(
  tmp_path, monkeypatch, capsys
):
  os.mkfifo(tmp_path / "pipe.py")
  (tmp_path / "folder.py").mkdir()
  for name, words in (
    ("pipe.py", "is no regular file"),
    ("folder.py", "is a folder, not a file"),
  ):
    code, said = code_of(monkeypatch, capsys, f"--config={tmp_path}/{name}")
    assert code == 2 and f"{name}: {words}" in said
    assert f"Did you mean {tmp_path}/{name}" not in said


def test_each_command_asks_for_what_it_takes(capsys):
  with pytest.raises(SystemExit) as caught:
    command.parse(["plan"], {"topology": ("", "")}, "", example="--topology=x")
  said = capsys.readouterr().err
  assert caught.value.code == 2
  assert "--config=FILE.py missing, for example --topology=x" in said
  assert "workdir" not in said


# Remedies.


def test_a_word_is_never_its_own_suggestion():
  assert imported.nearest("sft", ["sft", "other"]) == ""
  assert imported.nearest("sftt", ["sft"]) == " Did you mean 'sft'?"


HH = {"chosen": f"{BEGIN} a\n\nAssistant: b", "rejected": f"{BEGIN} a"}


@pytest.mark.parametrize(
  ("record", "format", "hint"),
  [
    ({"chosen": "a", "rejected": "b"}, "hh", ""),
    ({"chosen": "a", "rejected": "b"}, "comparison", ""),
    (HH, "comparison", "hh"),
    ({"prompt": "p", "chosen": "a", "rejected": "b"}, "hh", "comparison"),
    ({"prompt": "p", "chosen": 1, "rejected": "b"}, "comparison", ""),
    ({"prompt": "p", "chosen": 1, "rejected": "b"}, "hh", "prompt"),
    ({"prompt": "p", "response": 1}, "demonstration", ""),
    ({"prompt": "p", "response": "r"}, "labelled", "demonstration"),
  ],
)
def test_formats_are_suggested_where_the_record_fits(record, format, hint):
  found = records.suggestion(record, format)
  assert found == (f" Did you mean format={hint!r}?" if hint else "")


def test_what_helps_where_no_example_is_left(files, tmp_path):
  equal = {"candidates are equal": 3}
  with pytest.raises(DataError) as caught:
    check_left([], Data(), equal)
  assert str(caught.value).endswith("Correct the records.")
  lost = {"response does not fit in max_length": 3}
  with pytest.raises(DataError, match="Raise data.max_length=512, or shorten"):
    check_left([], Data(), lost)
  assert judged.dataset.check_left is check_left


def test_messages_name_no_functions_of_the_package(tmp_path):
  (tmp_path / "d.jsonl").write_text('{"prompt": "p", "response": " "}\n')
  with pytest.raises(DataError) as caught:
    formats.load(tmp_path / "d.jsonl", "demonstration")
  assert "load_and_refuse" not in str(caught.value)


def test_parts_of_which_none_is_read():
  """Without a name in `split` all records are read, and no part is drawn."""
  rated = Data(source="asset:movie-review-ratings", format="ratings")
  parts = dataclasses.replace(rated, splits="A:3,B:4", split="A", split_seed=2)
  unread.check(parts, "data", unread.DEMONSTRATIONS)
  for changes in ({"splits": "A:3"}, {"split_seed": 2}):
    data = dataclasses.replace(rated, **changes)
    with pytest.raises(FieldError, match="^data.split.*: nothing reads it"):
      unread.check(data, "data", unread.DEMONSTRATIONS)
