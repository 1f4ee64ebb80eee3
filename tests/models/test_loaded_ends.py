"""A folder with more rows than tokens and several end tokens, sampled from."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import generate
from rlhf_jax.models import huggingface, pretrained, roles, transformer
from rlhf_jax.models.pretrained import Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.schema import FieldError
from rlhf_jax.types import FINISH_EOS, PromptBatch
from tests.tiny import tiny_tokenizer_json

EXTRA = 60  # rows of the embedding that no token has
BEGIN, NEW = 1, 20
MODEL = transformer.Config(
  vocab_size=340 + EXTRA,
  width=8,
  n_layers=1,
  n_heads=1,
  n_kv_heads=1,
  head_dim=8,
  mlp_width=8,
  max_length=32,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Llama 3's way: the tokenizer names one end, the files three."""
  folder = tmp_path_factory.mktemp("model")
  params = transformer.init(MODEL, jax.random.key(0))["params"]
  further = {"eos_token_id": [5, 2]}
  huggingface.save(folder, MODEL, params, further=further)
  tiny_tokenizer_json(folder)
  write(folder, [2, 7, 9])
  return folder


def write(folder, ends):
  path = folder / "generation_config.json"
  path.write_text(json.dumps({"eos_token_id": ends}))


def load(folder):
  mesh = mesh_lib.make_mesh(mesh_lib.Config(devices=1))
  pretrained.load_base.cache_clear()
  return pretrained.load_base(Model(source=str(folder)), mesh)


def test_trap_38_extra_rows_are_never_sampled_and_all_ends_end(folder):
  base = load(folder)
  size = base.tokenizer.vocab_size
  assert base.config.vocab_size - size == EXTRA
  config = generate.Config(max_new_tokens=NEW, num_samples=256)
  role = roles.Role(model=base.config, trainable="full")
  sampler = Sampler(role, {}, base, config)
  assert sampler.end == {"eos_ids": (2, 7, 9, 5)}
  prompts = PromptBatch(
    tokens=jnp.full((1, 1), BEGIN),
    valid_mask=jnp.ones((1, 1)),
    index=jnp.zeros(1, jnp.int32),
  )
  samples = sampler({"params": base.params}, prompts, jax.random.key(1))
  tokens, mask = np.asarray(samples.tokens), np.asarray(samples.response_mask)
  assert tokens[mask > 0].max() < size
  lasts = set()
  for row, said, reason in zip(
    tokens, mask, samples.finish_reason, strict=True
  ):
    answer = row[said > 0]
    assert not set(answer[:-1]) & {2, 5, 7, 9}
    assert (answer[-1] in (2, 5, 7, 9)) == (int(reason) == FINISH_EOS)
    lasts.add(int(answer[-1]))
  assert lasts >= {2, 5, 7, 9}
  logits = transformer.Transformer(base.config).apply(
    {"params": base.params}, samples.tokens, samples.valid_mask
  )
  # What is left of the probability is shared by the rows that have a token.
  logprobs = np.asarray(jax.nn.log_softmax(logits[:, :-1, :size]))
  expected = np.take_along_axis(
    logprobs, np.minimum(tokens[:, 1:], size - 1)[..., None], -1
  )[..., 0]
  np.testing.assert_allclose(
    np.asarray(samples.behaviour_logprobs)[:, 1:] * mask[:, 1:],
    expected * mask[:, 1:],
    atol=2e-5,
  )


def test_an_end_token_beyond_the_model_is_refused(folder):
  write(folder, [2, 128_009])
  with pytest.raises(FieldError, match="end token 128009, .* has 400 rows"):
    load(folder)
  write(folder, [2, 7, 9])
