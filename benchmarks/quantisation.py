"""What a base of few bits costs: nats a token, bytes, order of rewards.

    python -m benchmarks.quantisation
    python -m benchmarks.quantisation --model=FOLDER_OR_FILE --rows=4

KL(float32 || few bits) of the next token, on sentences of movie reviews, and
the share of tokens whose likeliest next token changes. "From the file" is what
model.quantize loads; a file of 4-bit blocks may fit our formats exactly, so
"shuffled" rounds float32 weights whose inputs are in a random order, in which
no block is one of the file's. The second table is of formats that were not
chosen, all shuffled. Scores: a linear reward head on features of float32
(ridge regression of people's ratings), read with features of few bits;
Spearman's rank correlation over sentences that it was not fitted on.
"""

import argparse
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data import assets
from rlhf_jax.models import (
  heads,
  outputs,
  pretrained,
  quantised,
  transformer,
  trees,
)
from rlhf_jax.models.rows import Rows
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.types import Array, PyTree

LENGTH = 96  # tokens of a row of text
SENTENCE = 24  # tokens of a sentence that is scored, at most
SCORED = 320  # sentences, half of them to fit the head
KINDS = ("int8", "int4")


def texts() -> tuple[list[str], np.ndarray]:
  """Returns sentences and their mean ratings."""
  rated = assets.movie_reviews(assets.fetch("movie-review-ratings"))
  order = np.random.default_rng(0).permutation(len(rated))
  return (
    [rated[i].text for i in order],
    np.asarray([np.mean(rated[i].ratings) for i in order]),
  )


def running_text(tokenizer, sentences: list[str], rows: int) -> Array:
  """Returns [rows, LENGTH] tokens of sentences one after the other."""
  ids: list[int] = []
  for sentence in sentences:
    ids += tokenizer.encode(f"{sentence} ")
    if len(ids) >= rows * LENGTH:
      break
  return jnp.asarray(ids[: rows * LENGTH], jnp.int32).reshape(rows, LENGTH)


@functools.partial(jax.jit, static_argnames="config")
def log_probabilities(
  params: PyTree, tokens: Array, config: transformer.Config
) -> Array:
  """Returns [B, L, V] float32."""
  network = transformer.Transformer(config)
  logits = network.apply({"params": params}, tokens, jnp.ones(tokens.shape))
  return jax.nn.log_softmax(logits)


@jax.jit
def compare(exact: Array, found: Array) -> tuple[Array, Array]:
  """Returns the mean KL in nats, and the share of changed first choices."""
  kl = jnp.sum(jnp.exp(exact) * (exact - found), axis=-1)
  changed = jnp.argmax(exact, axis=-1) != jnp.argmax(found, axis=-1)
  return jnp.mean(kl), jnp.mean(changed)


@functools.partial(jax.jit, static_argnames=("config", "layer"))
def features(
  params: PyTree, rows: Array, mask: Array, config: transformer.Config, layer
) -> Array:
  """Returns [B, F] of sentences, as a reward head reads them."""
  batch = Rows(rows, mask, jnp.maximum(jnp.cumsum(mask, 1) - 1, 0).astype(int))
  x = outputs.frozen_streams(config, params, batch, (layer,))[layer]
  return heads.pool_last(x, mask, "mean_last")


def padded(tokenizer, sentences: list[str]) -> tuple[Array, Array]:
  """Returns tokens [B, SENTENCE] and their mask."""
  tokens = np.full((len(sentences), SENTENCE), tokenizer.pad_id, np.int32)
  mask = np.zeros(tokens.shape, np.float32)
  for i, sentence in enumerate(sentences):
    ids = tokenizer.encode(sentence)[:SENTENCE]
    tokens[i, : len(ids)], mask[i, : len(ids)] = ids, 1.0
  return jnp.asarray(tokens), jnp.asarray(mask)


def ridge(x: np.ndarray, y: np.ndarray, strength: float = 10.0) -> Callable:
  """Returns the linear function of features that is fitted to ratings."""
  mean, deviation = x.mean(0), x.std(0) + 1e-6
  z = (x - mean) / deviation
  kernel = z @ z.T + strength * len(z) * np.eye(len(z)) / 10
  weight = z.T @ np.linalg.solve(kernel, y - y.mean())
  return lambda x: (x - mean) / deviation @ weight


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
  """Returns Spearman's."""
  return float(np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1])


def bytes_of(params: PyTree) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def shuffled(params: PyTree, change: Callable[[np.ndarray, str], Array]):
  """Returns the tree with matrices changed, their inputs in another order.

  Args:
    params: float32.
    change: (matrix [in, out], path) -> the same with other numbers. A table
      comes transposed, as its rows are outputs.
  """
  random = np.random.default_rng(0)
  flat = trees.flatten(params)
  for path, weight in flat.items():
    if not path.endswith(("_proj/kernel", quantised.TABLE)):
      continue
    is_table = path.endswith(quantised.TABLE)
    matrix = np.asarray(weight).T if is_table else np.asarray(weight)
    order = random.permutation(len(matrix))
    found = np.empty_like(matrix)
    found[order] = change(np.ascontiguousarray(matrix[order]), path)
    flat[path] = jnp.asarray(found.T if is_table else found)
  return trees.unflatten(flat)


def rounded(matrix: np.ndarray, path: str, kind: str) -> np.ndarray:
  """Returns what model.quantize makes of a matrix of floats."""
  own = quantised.kind_of(path, kind)
  if path.endswith(quantised.TABLE):
    path = "lm_head/kernel"  # it came transposed
  return np.asarray(
    quantised.widen(quantised.quantise(matrix, path, own), jnp.float32)
  )


def blocks_of(matrix: np.ndarray, size: int) -> np.ndarray:
  return matrix.reshape(-1, size, matrix.shape[1])


def even(matrix: np.ndarray, size: int, largest: int) -> np.ndarray:
  """Returns even steps around 0, `largest` being that of the block."""
  x = blocks_of(matrix, size if size else len(matrix))
  scale = np.abs(x).max(1, keepdims=True) / largest
  scale = np.where(scale > 0, scale, 1).astype(np.float16).astype(np.float32)
  whole = np.clip(np.round(x / scale), -largest, largest)
  return (whole * scale).reshape(matrix.shape)


def nf4(matrix: np.ndarray, size: int) -> np.ndarray:
  """Returns the nearest of NF4 in blocks of any size."""
  levels = np.asarray(quantised.NF4, np.float32)
  x = blocks_of(matrix, size)
  scale = np.abs(x).max(1, keepdims=True).astype(np.float16)
  scale = np.where(scale > 0, scale, 1).astype(np.float32)
  place = np.searchsorted((levels[1:] + levels[:-1]) / 2, x / scale)
  return (levels[place] * scale).reshape(matrix.shape)


def q4_0(matrix: np.ndarray) -> np.ndarray:
  """Returns llama.cpp's symmetric 4 bits: the largest becomes -8."""
  x = blocks_of(matrix, 32)
  place = np.abs(x).argmax(1)[:, None]
  scale = np.take_along_axis(x, place, 1) / -8
  scale = np.where(scale != 0, scale, 1).astype(np.float16).astype(np.float32)
  whole = np.clip(np.round(x / scale), -8, 7)
  return (whole * scale).reshape(matrix.shape)


def q4_1(matrix: np.ndarray) -> np.ndarray:
  """Returns llama.cpp's 4 bits with an offset."""
  x = blocks_of(matrix, 32)
  least = x.min(1, keepdims=True)
  scale = ((x.max(1, keepdims=True) - least) / 15).astype(np.float16)
  scale = np.where(scale > 0, scale, 1).astype(np.float32)
  least = least.astype(np.float16).astype(np.float32)
  whole = np.clip(np.round((x - least) / scale), 0, 15)
  return (whole * scale + least).reshape(matrix.shape)


# name -> (bits of a number, what it does), of kernels alone
OTHERS = {
  "int8, one scale an output": (8.0, lambda x: even(x, 0, 127)),
  "int8, blocks of 32 (Q8_0)": (8.5, lambda x: even(x, 32, 127)),
  "int4, blocks of 32 (Q4_0)": (4.5, q4_0),
  "int4 and offset (Q4_1)": (5.0, q4_1),
  "NF4, blocks of 64": (4.25, lambda x: nf4(x, 64)),
  "NF4, blocks of 32": (4.5, lambda x: nf4(x, 32)),
}


def main() -> None:
  """Prints both tables."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--model", default="asset:smollm2-135m-instruct")
  parser.add_argument("--rows", type=int, default=16)
  given = parser.parse_args()
  mesh = mesh_lib.make_mesh(mesh_lib.Config(data=1, fsdp=1, devices=1))
  base = pretrained.load_base(pretrained.Model(source=given.model), mesh)
  config, tokenizer = base.config, base.tokenizer
  sentences, ratings = texts()
  tokens = running_text(tokenizer, sentences[SCORED:], given.rows)
  exact = log_probabilities(base.params, tokens, config)
  half, layer = SCORED // 2, config.n_layers // 2
  rows, mask = padded(tokenizer, sentences[:SCORED])

  def read(params: PyTree, part: slice) -> np.ndarray:
    found = features(params, rows[part], mask[part], config, layer)
    return np.asarray(found, np.float64)

  head = ridge(read(base.params, slice(half)), ratings[:half])
  scores = head(read(base.params, slice(half, None)))
  fit = rank_correlation(scores, ratings[half:SCORED])
  print(
    f"{given.model}: {tokens.size} tokens, {half} sentences scored (rank "
    f"correlation of float32 scores with people's ratings {fit:.2f})\n"
  )

  def cost(params: PyTree) -> str:
    kl, changed = compare(exact, log_probabilities(params, tokens, config))
    return f"{float(kl):.2e} | {100 * float(changed):.1f} %"

  one = bytes_of(base.params) / 2  # of a bfloat16 model
  print(
    "| model.quantize | bytes of the base | of one bfloat16 model | KL from "
    "the file | first choice | scores | KL shuffled | first choice |\n"
    "|---|---|---|---|---|---|---|---|"
  )
  print(f"| none | {2 * one / 1e6:.0f} MB | 2.00 | 0 | 0 % | 1 | 0 | 0 % |")
  for kind in KINDS:
    model = pretrained.Model(source=given.model, quantize=kind)
    few = pretrained.load_base(model, mesh).params
    same = rank_correlation(scores, head(read(few, slice(half, None))))
    mixed = shuffled(base.params, functools.partial(rounded, kind=kind))
    size = bytes_of(few)
    print(
      f"| {kind} | {size / 1e6:.0f} MB | {size / one:.2f} | {cost(few)} | "
      f"{same:.4f} | {cost(mixed)} |",
      flush=True,
    )
  print("\n| not chosen (kernels alone) | bits | KL shuffled | first choice |")
  print("|---|---|---|---|")
  for name, (bits, change) in OTHERS.items():
    mixed = shuffled(
      base.params,
      lambda x, path, change=change: (
        x if path.endswith(quantised.TABLE) else change(x)
      ),
    )
    print(f"| {name} | {bits} | {cost(mixed)} |", flush=True)


if __name__ == "__main__":
  main()
