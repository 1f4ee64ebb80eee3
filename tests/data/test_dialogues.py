"""Dialogues that were rated as a whole: pairs of them, masks, the asset."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from rlhf_jax.data import assets, chitchat, dataset, formats, rated_dialogues
from rlhf_jax.data import records as records_lib
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.schema import FieldError
from tests import tiny
from tests.pipelines import tiny_runs


def turn(sender, *texts):
  return [{"text": text, "sender": sender, "timestamp": ""} for text in texts]


def conversation(n, **ratings):
  return {
    "prompt": "the cat" if n % 2 else None,
    "start": "",
    "messages": [
      turn("a", f"Hello {n}", "you "),
      turn("b", "yes"),
      turn("a", "is it a cat"),
      turn("b", "no", "a dog"),
      turn("a", "on the mat"),
    ],
  } | ({"ratings": ratings} if ratings else {})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp("dialogues")
  tiny.tiny_tokenizer_json(folder, chat_template=tiny_runs.CHAT)
  return load_tokenizer(folder)


@pytest.fixture
def asset(tmp_path, monkeypatch):
  """A small file in the place of the asset's."""
  found = {
    str(n): conversation(n, witty=n % 3, interesting=5, upbeat=float(n % 2))
    for n in range(40)
  }
  found["alone"] = {"start": "", "messages": [turn("a", "Hello?")]}
  found["nobody"] = conversation(41)
  found["empty"] = {"start": "", "messages": []}
  raw = json.dumps(found).encode()
  known = dict(assets.ASSETS)
  digest = hashlib.sha256(raw).hexdigest()
  known["chitchat"] = dataclasses.replace(known["chitchat"], sha256=digest)
  monkeypatch.setattr(assets, "ASSETS", known)
  monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path))
  (tmp_path / "chitchat.json").write_bytes(raw)
  dataset.reading._read.cache_clear()
  yield "asset:chitchat"
  dataset.reading._read.cache_clear()


def section(source, format, **changes):
  settings = {"chat": True, "max_length": 200} | changes
  return Data(source=source, format=format, **settings)


def test_sft_learns_the_second_speaker_alone(asset, tokenizer):
  rows, dropped = dataset.demonstrations(section(asset, "messages"), tokenizer)
  assert len(rows) == 41 and dropped["no assistant turn"] == 1
  row = rows[1]
  text = tokenizer.decode(row["tokens"], skip_special=False)
  assert text.startswith("<|im_start|>system\nthe cat<|im_end|>\n")
  assert "Hello 1 you" in text and "on the mat" not in text
  learned = tokenizer.decode(
    row["tokens"][row["loss_mask"] > 0], skip_special=False
  )
  assert learned == "yes<|im_end|>no a dog<|im_end|>"


def test_parts_are_disjoint_and_whole(asset, tokenizer):
  texts = {
    part: {
      record.text
      for record in dataset.records(
        section(f"{asset}:{part}", "rated_dialogue"), tokenizer
      )[0]
    }
    for part in chitchat.PARTS
  }
  assert (
    sum(map(len, texts.values())) == len(set().union(*texts.values())) == 40
  )
  with pytest.raises(FieldError, match="chitchat has asset:chitchat:train, as"):
    assets.check_name(f"{asset}:valid", "data.source")
  with pytest.raises(FieldError, match="movie-review-ratings has no parts"):
    assets.check_name("asset:movie-review-ratings:a", "data.source")


@pytest.mark.parametrize("objective", ["witty", "upbeat", ""])
def test_pairs_of_whole_dialogues_by_an_objective(asset, tokenizer, objective):
  data = section(asset, "rated_dialogue", objective=objective, pairs=300)
  found = dataset.comparisons(data, tokenizer, 0)
  assert len(found.rows) == 40 and found.dropped["no rating"] == 2
  numbers = [
    int(tokenizer.decode(row["tokens"]).split("Hello ")[1].split()[0])
    for row in found.rows
  ]
  ratings = {
    "witty": [n % 3 for n in numbers],
    "upbeat": [n % 2 for n in numbers],
    "": [(n % 3 + 5 + n % 2) / 3 for n in numbers],
  }[objective]
  first, second = np.asarray(ratings)[found.pairs].T
  np.testing.assert_array_equal(found.labels, (first > second) * 1.0)
  assert np.all(first != second)
  assert np.all(found.pairs[:, 0] != found.pairs[:, 1])
  assert found.ceiling is None  # one rating each: it is the label itself
  soft = dataset.comparisons(
    section(
      asset, "rated_dialogue", objective=objective, pairs=99, ties="soft"
    ),
    tokenizer,
    0,
  )
  first, second = np.asarray(ratings)[soft.pairs].T
  np.testing.assert_array_equal(
    soft.labels, 0.5 + 0.5 * np.sign(first - second)
  )
  assert np.any(soft.labels == 0.5)


def test_ratings_that_never_differ_and_unknown_objectives(asset, tokenizer):
  data = section(asset, "rated_dialogue", objective="interesting", pairs=9)
  with pytest.raises(ValueError, match="all pairs tie"):
    dataset.comparisons(data, tokenizer, 0)
  data = section(asset, "rated_dialogue", objective="kind", pairs=9)
  with pytest.raises(FieldError, match="objective='kind': .* interesting, upb"):
    dataset.comparisons(data, tokenizer, 0)
  data = section(asset, "rated_dialogue", pairs=9, chat=False)
  with pytest.raises(FieldError, match="chat=False: rated dialogues"):
    dataset.comparisons(data, tokenizer, 0)
  with pytest.raises(FieldError, match="Use format='messages' here"):
    dataset.demonstrations(section(asset, "rated_dialogue"), tokenizer)


def test_long_dialogues_are_cut_behind(asset, tokenizer):
  whole = dataset.comparisons(
    section(asset, "rated_dialogue", pairs=9), tokenizer, 0
  )
  sizes = [len(row["tokens"]) for row in whole.rows]
  most = max(sizes) - 1
  cut = dataset.comparisons(
    section(asset, "rated_dialogue", pairs=9, max_length=most), tokenizer, 0
  )
  count = sum(size > most for size in sizes)
  assert sum(cut.dropped.values()) == count + 2  # those, and what was refused
  for row, other in zip(cut.rows, whole.rows, strict=True):
    kept = row["tokens"]
    np.testing.assert_array_equal(kept, other["tokens"][: len(kept)])
    assert kept[-1] == tokenizer.eos_id and row["loss_mask"][1:].all()
  short = dataset.comparisons(
    section(asset, "rated_dialogue", pairs=9, max_turns=3), tokenizer, 0
  )
  text = tokenizer.decode(short.rows[0]["tokens"], skip_special=False)
  assert text.endswith("assistant\nyes<|im_end|>")
  with pytest.raises(DataError, match=rated_dialogues.NO_ROOM):
    dataset.comparisons(
      section(asset, "rated_dialogue", pairs=9, max_length=20), tokenizer, 0
    )


def test_prompts_are_beginnings_that_have_room(asset, tokenizer):
  data = section(asset, "prompt", max_turns=2)
  ids, _ = dataset.prompts(data, tokenizer, 100)
  text = tokenizer.decode(ids[0], skip_special=False)
  assert text.endswith("Hello 0 you<|im_end|>\n<|im_start|>assistant\n")
  sizes = [len(row) for row in ids]
  data = section(asset, "prompt", max_turns=2, max_prompt_tokens=min(sizes))
  fewer, dropped = dataset.prompts(data, tokenizer, 100)
  assert len(fewer) == sizes.count(min(sizes)) < len(sizes)
  assert dropped["more than max_prompt_tokens"] == len(sizes) - len(fewer)


def test_records_of_ones_own():
  record = {
    "messages": [
      {"role": "user", "content": "Hi"},
      {"role": "assistant", "content": "Ho"},
    ],
    "ratings": {"kind": 3},
  }
  assert formats.guess(record, "f:1") == "rated_dialogue"
  found = formats.FORMATS["rated_dialogue"](record, "f:1")
  assert found.objectives == {"kind": 3.0} and found.ratings == ()
  with pytest.raises(DataError, match="f:1: ratings.kind is '3'; it must be a"):
    formats.FORMATS["rated_dialogue"](
      {**record, "ratings": {"kind": "3"}}, "f:1"
    )
  with pytest.raises(records_lib.RefusedExample, match="nobody rated"):
    formats.FORMATS["rated_dialogue"]({**record, "ratings": {}}, "f:1")
