"""Fields that are called otherwise: named, or refused."""

import json

import pytest

from rlhf_jax.data import __main__ as command
from rlhf_jax.data import columns, formats, reading, unread
from rlhf_jax.data.section import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.planning import data_facts
from rlhf_jax.schema import FieldError

ODD = {"question": "Is it?", "better": "Yes.", "worse": "No.", "worker": "ann"}
NAMES = "prompt=question,chosen=better,rejected=worse"


def lines(path, *records):
  path.write_text("".join(f"{json.dumps(x)}\n" for x in records))
  return str(path)


def read(source, columns=NAMES, **settings):
  return reading.read(Data(source=source, columns=columns, **settings))


def test_named_fields_are_read_and_kept(tmp_path):
  source = lines(tmp_path / "odd.jsonl", ODD)
  [[found]] = read(source, f"{NAMES},annotator=worker").parts
  assert (found.prompt, found.chosen, found.rejected) == (
    "Is it?",
    "Yes.",
    "No.",
  )
  assert formats.annotator_of(found) == "ann"
  assert "question" not in found.fields


def test_a_named_field_stands_for_one_that_was_called_so(tmp_path):
  source = lines(tmp_path / "both.jsonl", ODD | {"prompt": "number 7"})
  [[found]] = read(source).parts
  assert found.prompt == "Is it?"


def test_a_part_that_has_our_names_stays_as_it_is(tmp_path):
  plain = {"prompt": "Is it?", "chosen": "So so.", "rejected": "No."}
  files = [
    lines(tmp_path / "odd.jsonl", ODD),
    lines(tmp_path / "plain.jsonl", plain),
  ]
  parts = read(",".join(files)).parts
  assert [part[0].chosen for part in parts] == ["Yes.", "So so."]


def test_cells_of_csv_are_what_they_are_named(tmp_path):
  path = tmp_path / "odd.csv"
  talk = json.dumps([{"role": "user", "content": "Is it?"}])
  cell = talk.replace('"', '""')
  path.write_text(f'q,said,good\n"{cell}",Yes.,true\n')
  names = "prompt=q,response=said,label=good"
  [[found]] = read(str(path), names, format="labelled").parts
  assert found.prompt == json.loads(talk)
  assert found.label == 1.0
  path.write_text("q,said,good\nIs it?,Yes.,yes\n")
  with pytest.raises(DataError, match="odd.csv:2: column 'good' holds 'yes'"):
    read(str(path), names, format="labelled")


def test_a_name_that_no_record_has_is_refused(tmp_path):
  source = lines(tmp_path / "odd.jsonl", ODD)
  with pytest.raises(DataError, match="odd.jsonl has a field 'workr'"):
    read(source, f"{NAMES},annotator=workr")
  with pytest.raises(DataError, match="asset:movie.* has a field 'question'"):
    read("asset:movie-review-ratings", format="ratings")


def test_a_wrong_name_of_a_field_that_must_be_there_is_said(tmp_path):
  source = lines(tmp_path / "odd.jsonl", ODD)
  with pytest.raises(DataError, match="'rejected' is missing.* no field 'bad'"):
    read(source, "prompt=question,chosen=better,rejected=bad")


def test_a_column_that_was_not_named_is_suggested(tmp_path):
  source = lines(tmp_path / "odd.jsonl", ODD)
  with pytest.raises(DataError, match="Set columns='prompt=question'"):
    read(source, "chosen=better,rejected=worse")


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("question", "'question' is not OURS=THEIRS"),
    ("prompt=", "'prompt=' is not OURS=THEIRS"),
    ("prompt=a,prompt=b", "'prompt' stands twice"),
  ],
)
def test_names_that_cannot_be_read_are_refused(text, words):
  with pytest.raises(FieldError, match=words):
    Data(columns=text)
  assert columns.parse(" prompt = a ") == {"prompt": "a"}


def test_what_is_left_out_by_its_prompt_may_have_the_same_columns(tmp_path):
  source = lines(
    tmp_path / "odd.jsonl", ODD, ODD | {"question": "Was it?", "better": "So."}
  )
  held = lines(tmp_path / "held.jsonl", ODD)
  [found] = read(source, exclude=held).parts
  assert [x.prompt for x in found] == ["Was it?"]


def test_every_use_of_records_reads_them():
  data = Data(source="a.jsonl", columns=NAMES)
  unread.check(data, "data", unread.COMPARISONS)


def test_commands_read_named_fields(tmp_path, capsys, monkeypatch):
  source = lines(tmp_path / "odd.jsonl", ODD)
  facts = data_facts.read([source], NAMES)
  assert facts.comparisons == 1
  with pytest.raises(DataError, match="no record of .* has a field 'workr'"):
    data_facts.read([source], f"{NAMES},annotator=workr")
  shown = []
  monkeypatch.setattr(command, "_tokenizer", lambda model: None)
  monkeypatch.setattr(
    command, "show", lambda name, data, *_, **__: shown.append(data)
  )
  assert command.main(["x", source, f"--columns={NAMES}"]) == 0
  assert shown[0].format == "comparison" and shown[0].columns == NAMES
  assert command.main(["x", source]) == 2
  said = capsys.readouterr().err
  assert "columns=prompt=question,response=answer" in " ".join(said.split())
