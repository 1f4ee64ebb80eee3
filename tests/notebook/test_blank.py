"""The untrained model and the pictures of a notebook."""

import json

import jax
import numpy as np
import pytest

from rlhf_jax import lab
from rlhf_jax.data import formats
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.notebook import blank, pictures
from rlhf_jax.schema import UserError

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return blank.write(tmp_path_factory.mktemp("blank") / "model", width=32)


def test_any_text_comes_back(folder):
  tokenizer = load_tokenizer(folder)
  for text in ("7+6=", "naïve café\n\n", "日本", "\x00"):
    assert tokenizer.decode(tokenizer.encode(text)) == text
  assert len(tokenizer.encode("7+6=")) == 4  # bytes


def test_a_policy_of_it_answers_messages(folder):
  policy = lab.load(folder)
  prompt = [{"role": "user", "content": "Name a bird."}]
  samples, texts = policy.sample(
    [prompt], jax.random.key(0), num_samples=2, max_new_tokens=3
  )
  assert len(texts) == 2 and samples.tokens.shape[0] == 2


def test_a_seed_gives_one_model(folder, tmp_path):
  again = blank.write(tmp_path / "again", width=32)
  other = blank.write(tmp_path / "other", width=32, seed=1)
  weights = [
    (path / "model.safetensors").read_bytes()
    for path in map(tmp_path.__class__, (folder, again, other))
  ]
  assert weights[0] == weights[1] != weights[2]
  with pytest.raises(UserError, match="there is something"):
    blank.write(again)


def test_made_up_ratings_have_a_truth(tmp_path):
  path = blank.ratings(tmp_path / "deep" / "rated.jsonl", count=300)
  rows = formats.load(path, "ratings")
  assert len(rows) == len({row.text for row in rows}) == 300
  words = [row.text.split() for row in rows]
  truth = [
    sum(w in blank.GOOD for w in x) - sum(w in blank.BAD for w in x)
    for x in words
  ]
  means = [np.mean(row.ratings) for row in rows]
  assert np.corrcoef(truth, means)[0, 1] > 0.9


def test_curves_of_rows_and_of_folders(tmp_path):
  rows = [{"a/b": 1.0, "c": 2.0}, {"a/b": 3.0}]
  assert pictures.series(rows, "a/b") == ([1, 2], [1.0, 3.0])
  assert pictures.series(rows, "c") == ([1], [2.0])
  written = "".join(json.dumps(row | {"step": 7}) + "\n" for row in rows)
  (tmp_path / "metrics.jsonl").write_text(written)
  assert pictures.series(tmp_path, "a/b") == ([7, 7], [1.0, 3.0])
  picture = pictures.curves({"here": rows, "there": tmp_path}, "a/b", "c")
  assert [axes.get_title(loc="left") for axes in picture.figure.axes] == [
    "a/b",
    "c",
  ]
  picture.save(tmp_path / "curves.png")
  assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_panels_and_what_is_refused():
  drawn = []
  picture = pictures.panels(drawn.append, drawn.append, columns=1)
  assert len(drawn) == 2 and picture._repr_png_().startswith(PNG)
  with pytest.raises(UserError, match="nothing to draw"):
    pictures.panels()
  with pytest.raises(UserError, match="Did you mean 'a/loss'"):
    pictures.curves([{"a/loss": 1.0}], "a/los")
