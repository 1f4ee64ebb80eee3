"""Odd records: one message with file, line and field, never a traceback."""

import csv
import gzip
import json
import os

import pytest

from rlhf_jax import strict_json
from rlhf_jax.data import dataset, formats, reading, sources
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.schema import FieldError

GOOD = '{"text": "t", "ratings": [1, 2]}\n'


@pytest.mark.parametrize(
  ("line", "words"),
  [
    (r'{"text": "a\ud800b", "ratings": [1]}', "field 'text': half of a surr"),
    (r'{"text": "a", "x": [{"y": "\uDC00"}]}', r"field 'x\[0\].y': half"),
    (r'{"\ud800": 1}', "half of a surrogate"),
    ('{"text": "a", "text": "b"}', "key 'text' stands twice"),
    ('{"text": "a", "x": {"k": 1, "k": 1}}', "key 'k' stands twice"),
    ('{"text": "a", "ratings": [' + "9" * 400 + "]}", "of 400 digits is too"),
    ('{"text": "a", "ratings": [' + "9" * 9000 + "]}", "of 9000 digits is"),
    ('{"text": "a", "ratings": [1e400]}', "the number 1e400 is too large"),
    ('{"text": "a", "ratings": [-1e39]}', "'ratings' is .*none beyond 1e.30"),
    ('{"text": "a", "ratings": [' + "9" * 300 + "]}", "'ratings' is .999"),
    ('{"text": "a", "ratings": [true]}', "'ratings' is .True"),
    ('{"text": "a", "ratings": -Infinity}', "-Infinity is not JSON"),
    ("[" * 100_000, "nested too deep"),
    ('{"a":' * 100_000, "nested too deep"),
    ("null", "a NoneType, not an object"),
  ],
)
def test_an_odd_line_is_named(tmp_path, line, words):
  path = tmp_path / "d.jsonl"
  path.write_text(GOOD + line + "\n")
  with pytest.raises(DataError, match=f"^{path}:2: .*{words}"):
    formats.load(path, "ratings")


def test_escaped_pairs_and_large_numbers_that_are_right():
  smile = r'{"a": "\ud83d\ude00", "n": 1e30, "i": 123456789012345678901}'
  assert strict_json.loads(smile) == {
    "a": "😀",
    "n": 1e30,
    "i": 123456789012345678901,
  }


def test_what_is_no_file_is_said(tmp_path):
  os.mkfifo(tmp_path / "pipe.jsonl")
  (tmp_path / "folder.jsonl").mkdir()
  (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone")
  for name, words in (
    ("pipe.jsonl", "is no regular file"),
    ("folder.jsonl", "is a folder, not a file"),
    ("link.jsonl", "a link to nothing"),
    ("none.jsonl", "no such file"),
  ):
    with pytest.raises(
      FieldError, match=f"^data.source=.*{name}': {words}"
    ) as e:
      dataset.check_source(str(tmp_path / name), "data")
    assert "Did you mean" not in str(e.value)  # never what was given


# Kinds of files.

ROWS = [
  {"prompt": "é", "response": "b, c\nd"},
  {"prompt": "2", "response": "4"},
]


def write(path, rows):
  lines = [json.dumps(row, ensure_ascii=False) for row in rows]
  text = "\n".join(lines) + "\n"
  if ".json" in path.name and ".jsonl" not in path.name:
    text = json.dumps(rows, ensure_ascii=False)
  if ".csv" in path.name:
    with path.open("w", newline="") as file:
      writer = csv.DictWriter(file, rows[0])
      writer.writeheader()
      writer.writerows(rows)
    text = path.read_bytes().decode()
  content = text.encode()
  path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
  return path


@pytest.mark.parametrize(
  ("name", "lines"),
  [
    ("a.jsonl", [1, 2]),
    ("a.jsonl.gz", [1, 2]),
    ("a.json", [1, 2]),
    ("a.json.gz", [1, 2]),
    ("a.csv", [2, 4]),  # the first record has a line break
    ("a.csv.gz", [2, 4]),
  ],
)
def test_kinds_of_files(tmp_path, name, lines):
  path = write(tmp_path / name, ROWS)
  found = sources.read_located(path)
  assert [record for _, record in found] == ROWS
  assert [where for where, _ in found] == [f"{path}:{n}" for n in lines]


def test_parquet(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  rows = [{"messages": [{"role": "user", "content": "x"}], "n": 1}]
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
  where = f"{tmp_path}/a.parquet:1"
  assert sources.read_located(tmp_path / "a.parquet") == [(where, rows[0])]
  (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
  with pytest.raises(DataError, match="not a readable parquet file"):
    sources.read_located(tmp_path / "a.parquet")


@pytest.mark.parametrize(
  ("name", "text", "words"),
  [
    ("a.json", '{"a": 1}', "holds a dict, not a list of objects"),
    ("a.json", '{"a": 1}\n{"a": 2}\n', "one object a line, name it .jsonl"),
    ("a.json", '[{"a": 1}, 2]', "a.json:2: a int, not an object"),
    ("a.json", "", "the file is empty"),
    ("a.csv", "a,a\n1,2\n", "a.csv:1: column 'a' stands twice"),
    ("a.csv", "a,b\n1,2\n1\n", "a.csv:3: 1 cells under a header of 2"),
    ("a.csv", 'a,b\n1,"2\n', "a.csv:2: not CSV .unexpected end"),
    ("a.csv", "a,label\n1,good\n", "a.csv:2: column 'label' holds 'good'"),
    ("a.csv", "a\n", "the file is empty"),
    ("a.jsonl", '{"a": 1}\n\n{"a": 2}\n', "a.jsonl:2: blank line between"),
  ],
)
def test_malformed_files(tmp_path, name, text, words):
  (tmp_path / name).write_text(text)
  with pytest.raises(DataError, match=words):
    sources.read_located(tmp_path / name)


def test_a_mark_first_and_blank_lines_last(tmp_path):
  path = tmp_path / "d.jsonl"
  path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\n  \n\r\n")
  assert len(sources.read_located(path)) == 1
  path.write_bytes(GOOD.encode() + b"\xef\xbb\xbf" + GOOD.encode())
  with pytest.raises(DataError, match="d.jsonl:2: not JSON"):
    sources.read_located(path)


def test_several_files_and_patterns(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  a = write(tmp_path / "a.jsonl", ROWS)
  b = write(tmp_path / "b.csv", ROWS)
  assert sources.paths("~/a.jsonl, ~/b.csv") == [a, b]
  assert sources.paths("~/*.*") == [a, b]
  data = Data(source="~/*.jsonl,~/b.csv", format="demonstration")
  assert [e.where for part in reading.read(data).parts for e in part] == [
    *(f"{a}:{n}" for n in (1, 2)),
    *(f"{b}:{n}" for n in (2, 4)),
  ]
  comma = write(tmp_path / "c,d.jsonl", ROWS)
  assert sources.paths(str(comma)) == [comma]
  for source, words in (
    ("~/*.jso", "no file matches this pattern"),
    ("~/a.jsonl,~/a.json*", "is named twice"),
    ("~/a.jsonl,~/e.jsonl", "e.jsonl: no such file"),
  ):
    with pytest.raises(FieldError, match=f"^data.source=.*{words}"):
      dataset.check_source(source, "data")


PLAIN = b'{"prompt": "a", "response": "b"}\n'
KINDS = {
  "gz.jsonl": (gzip.compress(PLAIN), "compressed with gzip: end its name"),
  "zip.jsonl": (b"PK\x03\x04\x00", "a zip archive: unpack it"),
  "parquet.csv": (b"PAR1\x00", "a parquet file: end its name with .parquet"),
  "wide.jsonl": (PLAIN.decode().encode("utf-16"), "UTF-16 text: convert it"),
  "plain.jsonl.gz": (PLAIN, "take .gz from its name"),
  "early.jsonl.gz": (gzip.compress(PLAIN)[:-9], ":2?.*breaks off here"),
  "lines.csv": (PLAIN, ":1: the header begins with .* is JSON. Name"),
  "semicolons.csv": (b"prompt;response\na;b\n", ":1: one column"),
  "header.csv": (b"prompt,response\n", "Write a header and a row"),
  "empty.json": (b"[]", "is empty. Write a list of objects"),
  "python.csv": (
    b"prompt,response\n\"[{'role': 'user', 'content': 'a'}]\",b\n",
    ":2: column 'prompt' holds .*as Python prints it. Write JSON",
  ),
  "large.jsonl": (b'{"a": ' + b"1" * 400 + b"}", "400 digits .*Correct it"),
  "names.jsonl": (
    b'{"prompt": "a", "completion": "b"}\n',
    "Is 'completion' meant. Set columns='response=completion', or rename",
  ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_another_kind_than_its_name(tmp_path, name):
  content, words = KINDS[name]
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(DataError, match=f"{name}.*{words}"):
    formats.load(path, "demonstration")


def test_messages_in_the_cells_of_a_table(tmp_path):
  path = tmp_path / "a.csv"
  asked = [{"role": "user", "content": "a"}]
  rows = [
    {"prompt": json.dumps(asked), "chosen": "b", "rejected": "c"},
    {"prompt": "[{not messages", "chosen": "[{1}]", "rejected": '[{"a": 1}]'},
  ]
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  first, second = formats.load(path, "comparison")
  assert first.prompt == asked
  assert (second.prompt, second.chosen) == ("[{not messages", "[{1}]")
  assert second.rejected == '[{"a": 1}]'


@pytest.mark.parametrize(
  ("source", "words"),
  [
    ("a.jsonl,", "names no file before or after a comma"),
    (",", "names no file before or after a comma"),
    ("a.jsonl,link.jsonl", "link.jsonl is named twice"),
    ("$HOME/a.jsonl", "no such file, and no variable is filled in here"),
    ("https://a.b/c.jsonl", "not an address. Download it, and give its path"),
    ("hf://a/b", "not an address. Download it, and give its path"),
    ("gs://a/b.jsonl", "Mount the bucket"),
    ("x" * 300 + ".jsonl", "no such file"),
    ("a.parquet.gz", "unknown kind of file"),
  ],
)
def test_names_that_are_no_files(tmp_path, monkeypatch, source, words):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "a.jsonl").write_bytes(PLAIN)
  (tmp_path / "a.parquet.gz").write_bytes(PLAIN)
  (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
  with pytest.raises(FieldError, match=words):
    dataset.check_source(source, "data")
