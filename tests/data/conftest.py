"""One trained tokenizer of each kind for all data tests."""

import pytest

from rlhf_jax.data.tokenizers import load_tokenizer
from tests.tiny import tiny_sentencepiece, tiny_tokenizer_json


@pytest.fixture(scope="session")
def sentencepiece_path(tmp_path_factory):
  return tiny_sentencepiece(tmp_path_factory.mktemp("sp") / "tiny.model")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  return tiny_tokenizer_json(tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture
def tokenizer(folder):
  """Byte-level BPE whose padding token is its end token (trap 1)."""
  return load_tokenizer(folder)
