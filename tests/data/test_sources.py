"""Reading records: every malformed line is named; TFDS without TensorFlow."""

import builtins
import gzip
import json
import sys

import numpy as np
import pytest

from rlhf_jax.data import formats
from rlhf_jax.data.sources import DataError, read_located


def read_source(source):
  """Returns the records of a source."""
  return [record for _, record in read_located(source)]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_reads_records_in_order(tmp_path, suffix):
  path = tmp_path / f"data{suffix}"
  records = [{"a": 1}, {"a": "é\u2028 one line"}, {"b": [0.5, None]}]
  text = "\n".join(json.dumps(r, ensure_ascii=False) for r in records)
  opener = gzip.open if suffix.endswith("gz") else open
  with opener(path, "wb") as file:
    file.write(text.encode())
  assert read_source(str(path)) == records
  assert read_source(path) == records


@pytest.mark.parametrize(
  "content, line, reason",
  [
    (b'{"a": 1}\n{"a": \n', 2, "not JSON"),
    (b'{"a": 1}\n[1, 2]\n', 2, "a list, not an object"),
    (b'{"a": 1}\n\n{"a": 2}\n', 2, "blank line"),
    (b'{"a": NaN}\n', 1, "NaN is not JSON"),
    (b'{"a": 1}\n{"a": 2}\n{"a": "\xe9"}\n', 3, "not UTF-8 .byte 0xe9"),
    (b"", 1, "the file is empty"),
  ],
)
def test_malformed_lines_are_named(tmp_path, content, line, reason):
  path = tmp_path / "bad.jsonl"
  path.write_bytes(content)
  with pytest.raises(DataError, match=f"bad.jsonl:{line}: .*{reason}"):
    read_source(path)


def test_truncated_gzip_is_named(tmp_path):
  path = tmp_path / "cut.jsonl.gz"
  text = b"".join(b'{"a": %d}\n' % (i * 7919) for i in range(5000))
  path.write_bytes(gzip.compress(text)[:-200])
  with pytest.raises(DataError, match=r"cut.jsonl.gz:\d+: the gzip stream"):
    read_source(path)
  path.write_bytes(text)
  with pytest.raises(DataError, match="gz:1: .*plain text, take .gz from"):
    read_source(path)


def test_missing_and_unknown_files(tmp_path):
  with pytest.raises(DataError, match="no such file. Give the path"):
    read_source(tmp_path / "none.jsonl")
  with pytest.raises(DataError, match="unknown kind of file"):
    (tmp_path / "data.xlsx").write_text("x")
    read_source(tmp_path / "data.xlsx")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A real TFDS data set in array_record files, written without TensorFlow."""
  tfds = pytest.importorskip("tensorflow_datasets")

  class TinyPairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self):
      text = tfds.features.Text()
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            "prompt": text,
            "chosen": text,
            "rejected": text,
            "scores": tfds.features.Sequence(np.float32),
          }
        ),
      )

    def _split_generators(self, manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(5):
        yield (
          i,
          {
            "prompt": f"é{i}",
            "chosen": "good",
            "rejected": "bad",
            "scores": [0.5, float(i)],
          },
        )

  folder = tmp_path_factory.mktemp("tfds")
  builder = TinyPairs(data_dir=folder, file_format="array_record")
  builder.download_and_prepare()
  return folder


def test_tfds_source(prepared):
  records = read_source(f"tfds:tiny_pairs:train@{prepared}")
  assert sorted(r["prompt"] for r in records) == [f"é{i}" for i in range(5)]
  assert all(isinstance(r["scores"][1], float) for r in records)
  assert json.dumps(records)
  assert len(read_source(f"tfds:tiny_pairs:train[:2]@{prepared}")) == 2
  pairs = formats.load(f"tfds:tiny_pairs:train@{prepared}", "comparison")
  assert pairs[0].where == f"tfds:tiny_pairs:train@{prepared}:1"
  assert "tensorflow" not in sys.modules


def test_tfds_errors(prepared, monkeypatch):
  with pytest.raises(DataError, match="no data set or no split"):
    read_source("tfds:tiny_pairs")
  with pytest.raises(DataError, match="TFDS cannot read it.*download_and_prep"):
    read_source(f"tfds:tiny_pairs:test@{prepared}")
  with pytest.raises(DataError, match="TFDS cannot read it"):
    read_source(f"tfds:other_pairs:train@{prepared}")

  real = builtins.__import__

  def without_tfds(name, *args, **kwargs):
    if name == "tensorflow_datasets":
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without_tfds)
  with pytest.raises(DataError, match="pip install tensorflow-datasets"):
    read_source("tfds:tiny_pairs:train")
