"""form="gguf": what leaves is what llama.cpp, and our own loader, read."""

import gguf as gguf_package
import jax
import numpy as np
import pytest

from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.exports import folders
from rlhf_jax.exports.facts import Facts
from rlhf_jax.exports.folders import How
from rlhf_jax.models import gguf, gguf_keys, huggingface, trees
from rlhf_jax.schema import FieldError
from tests.exports import sources
from tests.exports.test_exported_weights import adapted, untrained


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return sources.make(tmp_path_factory.mktemp("gguf_form") / "model")


def leaves(loader, path):
  config, tree = loader.load(path)
  return config, trees.flatten(jax.tree.map(np.asarray, tree))


def test_a_file_holds_the_merged_weights_and_the_tokenizer(source, tmp_path):
  leaving = adapted(source)
  files = folders.write(leaving, tmp_path / "g", How(form="gguf"), Facts())
  assert files == ["README.md", folders.GGUF_FILE]
  folders.write(leaving, tmp_path / "whole", How(), Facts())
  path = tmp_path / "g" / folders.GGUF_FILE
  (config, found), (expected_config, expected) = (
    leaves(gguf, path),
    leaves(huggingface, tmp_path / "whole"),
  )
  assert not gguf_keys.differing(expected_config, config)
  assert found.keys() == expected.keys()
  for name, weight in expected.items():
    np.testing.assert_array_equal(weight, found[name], err_msg=name)
  tokenizer, again = load_tokenizer(source), load_tokenizer(path)
  text = "the cat sat on 12 mats"
  assert again.encode(text) == tokenizer.encode(text)
  assert again.chat_template == tokenizer.chat_template
  card = (tmp_path / "g" / "README.md").read_text()
  assert "from llama_cpp import Llama" in card


@pytest.mark.parametrize("dtype", ["bfloat16", "q8_0"])
def test_types(dtype, source, tmp_path):
  how = How(form="gguf", dtype=dtype)
  folders.write(untrained(source), tmp_path / "g", how, Facts())
  reader = gguf_package.GGUFReader(tmp_path / "g" / folders.GGUF_FILE)
  kinds = {tensor.tensor_type.name for tensor in reader.tensors}
  # rows of 16 and 24 numbers are no blocks of 32
  assert kinds == {"F32", "BF16" if dtype == "bfloat16" else "F16"}


def test_a_file_becomes_a_folder_again(source, tmp_path):
  folders.write(untrained(source), tmp_path / "g", How(form="gguf"), Facts())
  path = tmp_path / "g" / folders.GGUF_FILE
  leaving = untrained(path)
  folders.write(leaving, tmp_path / "again", How(), Facts())
  one, other = (
    leaves(huggingface, folder)[1] for folder in (source, tmp_path / "again")
  )
  for name, weight in one.items():
    np.testing.assert_array_equal(weight, other[name], err_msg=name)


@pytest.mark.parametrize(
  ("how", "words"),
  [
    ({"form": "gguf", "dtype": "int4"}, "dtype='int4': must be one of"),
    ({"form": "gguf", "max_shard_size": "1GB"}, "form='gguf' is one file"),
    ({"dtype": "q8_0"}, "dtype='q8_0': must be one of"),
  ],
)
def test_settings_that_nothing_reads_are_refused(how, words):
  with pytest.raises(FieldError, match=words):
    How(**how)
