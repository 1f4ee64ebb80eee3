"""Pairs become a TFDS data set and come back, without TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data import __main__ as command
from rlhf_jax.data import formats, tfds_builder
from rlhf_jax.data.columns import Columns
from rlhf_jax.data.examples import Comparison
from rlhf_jax.data.sources import DataError
from rlhf_jax.schema import UserError

ROOT = Path(__file__).parents[2]
PAIRS = [
  {"prompt": "é one", "chosen": "a", "rejected": "b"},
  {"prompt": "two", "chosen": "c\n", "rejected": " d", "label": 0.7},
  {"prompt": "", "chosen": "e", "rejected": "f", "label": 0.5},
]
TURNS = [
  {"role": "system", "content": "Be short."},
  {"role": "user", "content": "Why?"},
]


def write(path, *records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return str(path)


def contents(records):
  """Returns what records say, without their places, in one order."""
  found = [
    (r.prompt, r.chosen, r.rejected, np.float32(r.label)) for r in records
  ]
  return sorted(found, key=str)


def test_pairs_come_back_without_tensorflow(tmp_path):
  """TFDS imports TensorFlow only where it must; here that would fail."""
  source = write(tmp_path / "pairs.jsonl", *PAIRS, PAIRS[0] | {"chosen": " "})
  held = write(tmp_path / "held.jsonl", PAIRS[1])
  bad = tmp_path / "bad" / "tensorflow"
  bad.mkdir(parents=True)
  (bad / "__init__.py").write_text("raise AssertionError('TensorFlow!')\n")
  target = f"my_pairs@{tmp_path / 'sets'}"
  written = f"tfds:my_pairs:train@{tmp_path / 'sets'}"
  code = (
    "import sys; from rlhf_jax.data import __main__ as m, formats;"
    f"code = m.main(['data', {source!r}, '--prepare={target}', "
    f"'--heldout={held}']); assert code == 0;"
    f"s = formats.load({written!r}, 'comparison');"
    "print(len(s), s[0].where); assert 'tensorflow' not in sys.modules"
  )
  path = os.pathsep.join([str(bad.parent), str(ROOT)])
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": path},
  )
  assert done.returncode == 0, done.stderr
  assert "train: 3 examples" in done.stdout
  assert "1 empty response" in done.stdout
  assert f"written: tfds:my_pairs:heldout@{tmp_path / 'sets'}" in done.stdout
  assert done.stdout.splitlines()[-1] == f"3 {written}:1"
  found = formats.load(written, "comparison")
  wanted = formats.load_and_refuse(source, "comparison")[0]
  assert contents(found) == contents(wanted)
  assert contents(
    formats.load(f"tfds:my_pairs:heldout@{tmp_path / 'sets'}", "comparison")
  ) == contents(formats.load(held, "comparison"))


def test_dialogues_come_back_as_messages(tmp_path):
  pairs = [
    Comparison("f:1", TURNS, "a", "b"),
    Comparison("f:2", "plain", "c", "d", 0.25),
  ]
  tfds_builder.prepare("talks", {"train": pairs}, tmp_path)
  found = formats.load(f"tfds:talks:train@{tmp_path}", "comparison")
  plain = Comparison("", [{"role": "user", "content": "plain"}], "c", "d", 0.25)
  assert contents(found) == contents([pairs[0], plain])
  with pytest.raises(UserError, match="is there already"):
    tfds_builder.prepare("talks", {"train": pairs}, tmp_path)


@pytest.mark.parametrize("target", ["Pairs@x", "pairs", "a__b@x", "@x", "p@"])
def test_names_that_tfds_would_change_are_refused(target):
  with pytest.raises(UserError, match="must be NAME@FOLDER"):
    tfds_builder.parse(target)


def test_what_the_data_set_cannot_hold_is_refused(tmp_path):
  named = [{"role": "user", "content": "a", "name": "Ann"}]
  source = write(tmp_path / "n.jsonl", PAIRS[0] | {"prompt": named})
  with pytest.raises(DataError, match=r"n.jsonl:1: a message has \['name'\]"):
    tfds_builder.read(source, "comparison", Columns())
  demos = write(tmp_path / "d.jsonl", {"prompt": "a", "response": "b"})
  with pytest.raises(DataError, match="d.jsonl:1: .* gives a Demonstration"):
    tfds_builder.read(demos, "demonstration", Columns())


def test_a_split_without_a_data_set_is_refused(tmp_path, capsys):
  source = write(tmp_path / "pairs.jsonl", *PAIRS)
  assert command.main(["data", source, f"--heldout={source}"]) == 2
  assert "nothing reads it without --prepare" in capsys.readouterr().err
