"""What an int8 cache changes: log-probabilities of sampled tokens, and bytes.

    python benchmarks/int8_cache.py
    python benchmarks/int8_cache.py --model=asset:smollm2-135m-instruct

Samples answers with an int8 cache, in float32 otherwise, and compares the
sampler's log-probabilities with those of a pass over the finished rows, which
rounds nothing. The model is a random one unless named. The same with a cache
in float32 says how much of it is the order of sums.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import generate
from rlhf_jax.models import cache, outputs, pretrained, roles, transformer
from rlhf_jax.models.rows import Rows
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.types import PromptBatch

PROMPTS, WIDTH, NEW = 16, 16, 32
RANDOM = transformer.Config(
  vocab_size=1000,
  width=128,
  n_layers=4,
  n_heads=4,
  n_kv_heads=2,
  head_dim=32,
  mlp_width=256,
)


def model_of(source: str) -> tuple[transformer.Config, dict]:
  """Returns architecture and weights, random ones of "random"."""
  if source == "random":
    params = transformer.init(RANDOM, jax.random.key(0))["params"]
    params["embedding"]["embedding"] *= 20.0  # else all tokens are alike
    return RANDOM, params
  one = mesh_lib.make_mesh(mesh_lib.Config(data=1, fsdp=1, devices=1))
  base = pretrained.load_base(pretrained.Model(source=source), one)
  return base.config, base.params


def main() -> None:
  """Prints a row for each cache."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--model", default="random")
  source = parser.parse_args().model
  config, params = model_of(source)
  tokens = np.random.default_rng(0).integers(
    0, config.vocab_size, (PROMPTS, WIDTH)
  )
  prompts = PromptBatch(
    tokens=jnp.asarray(tokens, jnp.int32),
    valid_mask=jnp.ones((PROMPTS, WIDTH)),
    index=jnp.arange(PROMPTS),
  )
  how = generate.Config(max_new_tokens=NEW)
  print("| model | cache | bytes a token | mean gap | largest | of nats |")
  print("|---|---|---|---|---|---|")
  for dtype in (None, "int8"):
    samples = generate.generate(
      params,
      prompts,
      jax.random.key(0),
      model=config,
      config=dataclasses.replace(how, cache_dtype=dtype),
      eos_ids=(config.vocab_size,),
      pad_id=0,
    )
    exact, _ = outputs.logprobs(
      roles.Role(config),
      {"params": params},
      Rows.of(samples),
      samples.response_mask,
    )
    said = np.asarray(samples.response_mask) > 0
    said[:, WIDTH] = False  # the first is drawn from a pass over the prompt
    gap = np.abs(np.asarray(exact) - samples.behaviour_logprobs)[said]
    print(
      f"| {source} | {dtype or config.dtype} | "
      f"{cache.token_bytes(config, dtype):,} | {gap.mean():.1e} | "
      f"{gap.max():.1e} | {-np.asarray(exact)[said].mean():.2f} |"
    )


if __name__ == "__main__":
  jax.config.update("jax_threefry_partitionable", True)
  main()
