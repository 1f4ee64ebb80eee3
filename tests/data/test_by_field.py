"""Records by the value of a field: counts, shares, some of them alone."""

import json
from collections import Counter

import pytest

from rlhf_jax.data import by_field, dataset, mixture, unread
from rlhf_jax.data.section import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.schema import FieldError


@pytest.fixture
def source(tmp_path):
  rows = [
    {
      "prompt": f"p{i}",
      "response": f"r{i}",
      "language": "de" if i < 4 else "en",
    }
    for i in range(12)
  ]
  path = tmp_path / "demos.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def read(source, **changes):
  data = Data(source=source, format="demonstration", **changes)
  found, dropped = dataset.records(data, None)
  return [record.fields["language"] for record in found], dropped


def test_counts_are_told_and_nothing_is_left_out(source):
  found, dropped = read(source, by="language")
  assert Counter(found) == {"en": 8, "de": 4}
  assert dropped == {"with language=de": 4, "with language=en": 8}
  assert all(dataset.is_note(reason) for reason in dropped)


def test_only_some_of_them(source):
  found, dropped = read(source, only="language=de")
  assert found == ["de"] * 4
  assert dropped == {"without language=de": 8}
  assert not dataset.is_note("without language=de")


def test_shares_are_of_values_whatever_file_they_are_in(source):
  """12 records: 3 of 4 parts are German, 9 draws of 4 records."""
  found, dropped = read(source, by="language", weights="de:3,en:1")
  assert Counter(found) == {"de": 9, "en": 3}
  assert dropped["drawn from de, 2.25 times its 4"] == 9
  assert Counter(found[:4])["de"] == 3  # spread over the pass
  found, _ = read(source, by="language", repeats="en:0.5,de:2")
  assert Counter(found) == {"de": 8, "en": 4}


@pytest.mark.parametrize(
  "changes, error, words",
  [
    ({"weights": "de:1"}, FieldError, "by='': these are shares"),
    ({"by": "language", "weights": "de:0,en:1"}, FieldError, "VALUE:NUMBER"),
    ({"by": "language", "weights": "de:1,de:2"}, FieldError, "stands there tw"),
    ({"by": "language", "weights": "de:1"}, DataError, "'en' has no share"),
    ({"by": "language", "weights": "de:1,en:1,hi:1"}, DataError, "hi: no rec"),
    ({"by": "tongue"}, DataError, "demos.jsonl:1: no field 'tongue'"),
    ({"only": "language"}, FieldError, "must be FIELD=VALUE"),
    (
      {"by": "language", "store": "disk", "near": 0.0},
      FieldError,
      "store=.disk. with by",
    ),
  ],
)
def test_what_cannot_be_followed(source, changes, error, words):
  with pytest.raises(error, match=words):
    read(source, **changes)


def test_names_of_shares():
  assert mixture.named("en: 1, zh-Hant:0.5") == {"en": 1.0, "zh-Hant": 0.5}
  with pytest.raises(ValueError, match="a name is missing"):
    mixture.named("1,2")


def test_every_kind_of_rows_reads_it(source):
  data = Data(source=source, format="demonstration", by="language")
  unread.check(data, "data", unread.DEMONSTRATIONS)
  groups = by_field.grouped(dataset.records(data, None)[0], "language")
  assert [(k, len(v)) for k, v in groups.items()] == [("de", 4), ("en", 8)]
