"""Sentence vectors of an ONNX model in a folder, by a model made here."""

import base64
import json
import sys

import numpy as np
import pytest
import tokenizers

from rlhf_jax.evaluation import embeddings
from rlhf_jax.schema import UserError

WORDS = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "film": 4}
# Of onnx.helper: Gather(table, input_ids), a token's row of [[9, 9], [0, 1],
# [1, 0], [-1, 0], [0, 1]]; opset 17.
MODEL = base64.b64decode(
  "CAg6pAEKIwoFdGFibGUKCWlucHV0X2lkcxIHdmVjdG9ycyIGR2F0aGVyEgR0aW55KjcIBQgCEAFC"
  "BXRhYmxlSigAABBBAAAQQQAAAAAAAIA/AACAPwAAAAAAAIC/AAAAAAAAAAAAAIA/Wh0KCWlucHV0"
  "X2lkcxIQCg4IBxIKCgMSAW4KAxIBdGIfCgd2ZWN0b3JzEhQKEggBEg4KAxIBbgoDEgF0CgIIAkIE"
  "CgAQEQ=="
)


@pytest.fixture
def folder(tmp_path):
  """The folder of a model whose token vectors are rows of a table."""
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(WORDS, unk_token="[UNK]")
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "model.onnx").write_bytes(MODEL)
  return str(tmp_path)


def test_texts_are_means_of_their_tokens_and_padding_counts_for_nothing(folder):
  embed = embeddings.load(folder)
  vectors = embed(["good", "good film", "bad film film film"] * 20)
  half = 2**-0.5
  assert vectors.shape == (60, 2)
  np.testing.assert_allclose(vectors[:2], [[1, 0], [half, half]], atol=1e-6)
  long = np.array([-1, 3]) / 10**0.5
  np.testing.assert_allclose(vectors[59], long, atol=1e-6)


def test_an_input_of_no_sentence_model_is_refused_by_name(folder, monkeypatch):
  monkeypatch.setattr(embeddings, "INPUTS", ("attention_mask",))
  with pytest.raises(UserError, match="the model wants input_ids"):
    embeddings.load(folder)


def test_without_onnxruntime_the_extra_is_named(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, "onnxruntime", None)
  with pytest.raises(UserError, match=r"rlhf_jax\[embeddings\]"):
    embeddings.load(folder)


def test_a_folder_without_a_model_is_refused(tmp_path):
  (tmp_path / "tokenizer.json").write_text(json.dumps({}))
  with pytest.raises(UserError, match=r"model\.onnx"):
    embeddings.load(str(tmp_path))
  assert embeddings.load("") is None
