"""Gemma 3 270M in 4 bits, against transformers and llama.cpp on the same file.

RLHF_JAX_TEST_GEMMA=1 fetches asset:gemma-3-270m (253 MB), which takes that you
agree to the Gemma Terms of Use; or it is the path of the file. The numbers are
tests/oracles/make_gemma_goldens.py's.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import generate
from rlhf_jax.data import assets
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models import gguf, model_sources, transformer
from rlhf_jax.types import PromptBatch

GOLDEN = Path(__file__).parents[1] / "oracles/gemma3_270m.json"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def golden():
  if not GOLDEN.exists():
    pytest.skip(f"{GOLDEN.name} is not here: make_gemma_goldens.py makes it")
  return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def path():
  asked = os.environ.get("RLHF_JAX_TEST_GEMMA", "")
  if not asked:
    pytest.skip("RLHF_JAX_TEST_GEMMA=1 fetches Gemma 3 270M; it is not set")
  if asked != "1":
    return Path(asked)
  try:
    return assets.fetch("gemma-3-270m")
  except assets.AssetError as error:
    pytest.skip(f"Gemma 3 270M cannot be had: {error}")


@pytest.fixture(scope="module")
def model(path):
  config, params = gguf.load(path)
  return config, jax.tree.map(np.asarray, params)


def test_logits_equal_transformers(model, golden):
  config, params = model
  apply = jax.jit(transformer.Transformer(config).apply)
  for row in golden["rows"]:
    ids = np.asarray([row["ids"]])
    logits = np.asarray(apply({"params": params}, ids, jnp.ones(ids.shape)))[0]
    top = np.take_along_axis(logits, np.asarray(row["top_ids"]), axis=-1)
    close = {"rtol": 1e-5, "atol": 2e-4}  # logits reach 30
    np.testing.assert_allclose(top, row["top_logits"], **close)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    np.testing.assert_allclose(normaliser, row["logsumexp"], **close)


def test_greedy_texts_equal_transformers(model, golden):
  config, params = model
  for row in golden["rows"]:
    ids = jnp.asarray([row["ids"]])
    prompts = PromptBatch(
      tokens=ids, valid_mask=jnp.ones(ids.shape), index=jnp.zeros(1, int)
    )
    found = generate.generate(
      params,
      prompts,
      jax.random.key(0),
      model=config,
      config=generate.Config(
        max_new_tokens=len(row["greedy"]), temperature=0.0
      ),
      eos_ids=(config.vocab_size,),
      pad_id=0,
    )
    answer = np.asarray(found.tokens)[0, ids.shape[1] :]
    np.testing.assert_array_equal(answer, row["greedy"])


def test_tokens_equal_llama_cpp(path, golden):
  tokenizer = load_tokenizer(path)
  assert tokenizer.first_ids == (tokenizer.bos_id,) == (2,)
  for row in golden["tokens"]:
    assert tokenizer.encode(row["text"]) == row["ids"], row["text"]
    assert tokenizer.decode(row["ids"]) == row["text"]


def test_its_shape_is_known_without_fetching_it(model):
  assert model_sources.read_architecture("asset:gemma-3-270m") == model[0]
