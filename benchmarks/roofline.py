"""How near the limits of this machine programs come, and how work grows.

    python -m benchmarks.roofline

prints what a float32 matrix product and a read of memory reach here, then for
each program of SFT and PPO at a shape of 17 million parameters: FLOPs and bytes
by formula (rlhf_jax/programs/work.py), wall time around calls that are waited
for, and the share of the limit,

  limit = max(FLOPs / FLOPs a second of a product,
              bytes / bytes a second of a read)

which counts no elementwise work. All rows are full, so nothing is padding: 64
answers of 64 tokens to prompts of 40, an example a row. Then growth: a rollout
and a step of SFT as batch, answers and layers grow, and the loss as the
vocabulary grows, as ratios to the first line. Times are the least of a few
calls, compilation excluded. Nothing else should run on the machine.

The loss reads states and unembedding and gives the gradients of both. MiB are
the compiler's temporary ones, of the loss less the gradient of the unembedding,
which is a result; "logits MiB" is what all logits would take in float32.
"""

import argparse
import dataclasses
import functools
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import files
from rlhf_jax import decoding, generate, likelihood, pipelines
from rlhf_jax.models import roles, transformer
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import language_model
from rlhf_jax.programs.program import Program
from rlhf_jax.programs.work import Passes, Work
from rlhf_jax.types import PromptBatch, TokenBatch

MIB = 2**20
REPEATS = 2  # calls after the one that compiles


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is measured; the tests have a smaller one."""

  shape: str = "17m"
  answers: int = 64
  prompt: int = 40  # tokens
  new: int = 64
  batch: int = 16  # rows of a step of SFT
  matrix: int = 2048  # rows and columns
  read_mib: int = 512
  states: int = 2048  # that the loss reads
  vocabularies: tuple[int, ...] = (8_192, 50_000, 256_000)
  factors: tuple[int, ...] = (1, 2, 4)


TINY = Size(
  shape="tiny",
  answers=8,
  prompt=8,
  new=8,
  batch=4,
  matrix=64,
  read_mib=1,
  states=64,
  vocabularies=(256, 1024),
  factors=(1, 2),
)


def seconds(function: Callable[..., Any], *args: Any) -> float:
  """Returns the least wall time of a few calls, after one that compiles."""
  jax.block_until_ready(function(*args))
  found = []
  for _ in range(REPEATS):
    begin = time.perf_counter()
    jax.block_until_ready(function(*args))
    found.append(time.perf_counter() - begin)
  return min(found)


def limits(size: Size) -> tuple[float, float]:
  """Returns FLOPs a second of a matrix product and bytes a second of a read.

  The read is the faster one of a sum and of a product with a vector.
  """
  n = size.matrix
  a, b = jnp.ones((n, n)), jnp.ones((n, n))
  flops = 2.0 * n**3 / seconds(jax.jit(jnp.matmul), a, b)
  big = jnp.ones((size.read_mib * MIB // 4 // 1024, 1024))
  times = (
    seconds(jax.jit(jnp.sum), big),
    seconds(jax.jit(jnp.matmul), big, jnp.ones(1024)),
  )
  return flops, big.nbytes / min(times)


def write_records(folder: Path, size: Size) -> None:
  """Writes a model, and records that all have the same length."""
  shape = files.SHAPES[size.shape]
  files.write_model(folder / "model", shape)
  rng, vocabulary = np.random.default_rng(0), files.words(shape)

  def text(length: int) -> str:
    found = rng.integers(0, len(vocabulary), length)
    return " ".join(vocabulary[n] for n in found)

  rows = [
    {"prompt": text(size.prompt), "response": text(size.new - 1)}
    for _ in range(8 * max(size.answers, size.batch))
  ]
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "rows.jsonl").write_text(lines)


def experiments(folder: Path, size: Size) -> dict[str, Any]:
  """Returns the configurations of SFT and PPO, an example a row."""
  sft, ppo = defaults.sft(), defaults.policy("ppo")
  length = size.prompt + size.new
  sft.data.update(
    source=str(folder / "rows.jsonl"),
    format="demonstration",
    max_length=length,
    pack="none",
  )
  ppo.prompts.update(
    source=str(folder / "rows.jsonl"), format="prompt", max_length=length
  )
  # A row that ends early stays, so the formula counts what is computed.
  ppo.generate.update(max_new_tokens=size.new, compact=False)
  ppo.reward_fn = f"{Path(files.__file__).with_name('judge.py')}:spread"
  ppo.value.init, ppo.packing.row_tokens = "random", 0
  for config, rows in ((sft, size.batch), (ppo, size.answers)):
    config.model.source = str(folder / "model")
    config.mesh.devices = 1
    config.schedule.update(batch_size=rows, steps=REPEATS + 1, save_every=10**6)
  return {"SFT": sft, "PPO": ppo}


def watched(
  config: Any, folder: Path, size: Size
) -> dict[str, tuple[float, Work]]:
  """Runs an experiment; returns the least seconds of each program's calls.

  The first call of each, which compiles, is left out.
  """
  times, works = defaultdict(list), {}
  call, passes = Program.__call__, (decoding.prefill, decoding.decode)
  one = Passes(mesh_lib.make_mesh(mesh_lib.Config(devices=1)))

  def timed(name: str, function: Any, *args: Any, **how: Any) -> Any:
    jax.block_until_ready((args, how))
    begin = time.perf_counter()
    found = jax.block_until_ready(function(*args, **how))
    times[name].append(time.perf_counter() - begin)
    return found

  def program(self: Program, *args: Any, **how: Any) -> Any:
    works[self.name] = self.work()
    return timed(self.name, functools.partial(call, self), *args, **how)

  def sampling(name: str, function: Any) -> Any:
    def run(*args: Any, **how: Any) -> Any:
      shape = size.answers, size.prompt, size.new
      works[name] = getattr(one, name)(how["model"], *shape)
      names = ("model", "config", "eos_ids", "stops", "pad_id", "room", "taps")
      statics = {k: how.pop(k) for k in names if k in how}
      bound = functools.partial(function, **statics)
      return timed(name, bound, *args, **how)

    return run

  Program.__call__ = program
  decoding.prefill = sampling("prefill", passes[0])
  decoding.decode = sampling("decode", passes[1])
  try:
    pipelines.run(config, folder)
  finally:
    Program.__call__ = call
    decoding.prefill, decoding.decode = passes
  return {
    name: (min(rows[1:]), works[name])
    for name, rows in times.items()
    if len(rows) > 1
  }


def share_line(
  name: str, spent: float, work: Work, flops: float, read: float
) -> str:
  """Returns a line of the table of shares."""
  limit = max(work.flops / flops, work.traffic / read)
  bound = "FLOPs" if work.flops / flops >= work.traffic / read else "bytes"
  return (
    f"| {name} | {work.flops / 1e9:,.1f} | {work.traffic / 1e9:,.2f} | "
    f"{1000 * spent:,.0f} | {work.flops / spent / 1e9:,.0f} | "
    f"{work.traffic / spent / 1e9:,.1f} | {bound} | {limit / spent:.0%} |"
  )


def shares(size: Size, flops: float, read: float) -> list[str]:
  """Returns a markdown table: what of the limit each program reaches."""
  lines = [
    "| program | GFLOP | GB | ms | GFLOP/s | GB/s | bound by | of the limit |",
    "|---|---|---|---|---|---|---|---|",
  ]
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    write_records(folder, size)
    for name, config in experiments(folder, size).items():
      lines += [
        share_line(f"{name} {part}", spent, work, flops, read)
        for part, (spent, work) in watched(config, folder / name, size).items()
        if work.flops
      ]
  return lines


def model_of(size: Size, layers: int = 1) -> transformer.Config:
  """Returns the architecture, with so many times its layers."""
  shape = files.SHAPES[size.shape]
  return transformer.Config(
    vocab_size=shape.vocabulary,
    width=shape.width,
    n_layers=layers * shape.layers,
    n_heads=shape.heads,
    n_kv_heads=shape.key_heads,
    head_dim=shape.width // shape.heads,
    mlp_width=shape.mlp,
    max_length=2048,
  )


def rollout_seconds(
  model: transformer.Config, rows: int, prompt: int, new: int
) -> float:
  """Returns the time of sampling `new` tokens to each of so many prompts."""
  params = transformer.init(model, jax.random.key(0))["params"]
  shape = rows, prompt
  tokens = jax.random.randint(jax.random.key(1), shape, 0, model.vocab_size)
  prompts = PromptBatch(tokens, jnp.ones(shape), jnp.arange(rows))
  how = generate.Config(max_new_tokens=new, min_new_tokens=new)
  return seconds(
    lambda: generate.generate(
      params,
      prompts,
      jax.random.key(2),
      model=model,
      config=how,
      eos_ids=(0,),
      pad_id=0,
    )
  )


def step_seconds(
  model: transformer.Config, rows: int, prompt: int, new: int
) -> float:
  """Returns the time of the loss of SFT and its gradient."""
  variables = transformer.init(model, jax.random.key(0))
  shape = rows, prompt + new
  tokens = jax.random.randint(jax.random.key(1), shape, 0, model.vocab_size)
  mask = jnp.zeros(shape).at[:, prompt:].set(1.0)
  batch = TokenBatch(tokens, jnp.ones(shape), mask)

  def loss(variables):
    return language_model.weighted_logprobs(
      variables, {}, batch, -mask, role=roles.Role(model=model), targets=new
    )[0]

  return seconds(jax.jit(jax.value_and_grad(loss)), variables)


def growth(size: Size) -> list[str]:
  """Returns a markdown table: a rollout and a step as one number grows."""
  lines = [
    "| grows | to | rollout s | ratio | SFT step s | ratio |",
    "|---|---|---|---|---|---|",
  ]
  base = dict(rows=size.batch // 2, prompt=size.prompt, new=size.new)

  @functools.cache
  def spent(layers: int, **how: int) -> tuple[float, float]:
    model = model_of(size, layers)
    return rollout_seconds(model, **how), step_seconds(model, **how)

  first = spent(1, **base)
  for what in ("rows", "new", "layers"):
    for factor in size.factors:
      layers = factor if what == "layers" else 1
      how = base | ({what: factor * base[what]} if what in base else {})
      value = how.get(what, model_of(size, layers).n_layers)
      found = spent(layers, **how)
      lines.append(
        f"| {what} | {value} | {found[0]:.3f} | {found[0] / first[0]:.2f} | "
        f"{found[1]:.3f} | {found[1] / first[1]:.2f} |"
      )
  return lines


@dataclasses.dataclass(frozen=True)
class Loss:
  """The loss of so many states at a vocabulary, and what it is called with."""

  states: int
  width: int
  vocabulary: int

  def arrays(self) -> tuple[jax.Array, jax.Array]:
    """Returns states and unembedding."""
    return (
      jax.random.normal(jax.random.key(0), (self.states, self.width)),
      jax.random.normal(jax.random.key(1), (self.width, self.vocabulary)),
    )

  @property
  def gradients(self) -> Any:
    """Returns the compiled loss of SFT with both of its gradients."""
    tokens = jnp.arange(self.states) % self.vocabulary
    weights = jnp.full(self.states, -1.0 / self.states)

    def loss(hidden, unembedding):
      found = likelihood.weighted_logprobs(hidden, unembedding, tokens, weights)
      return found[0]

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))

  def temporary_mib(self) -> tuple[float, float]:
    """Returns those of the loss, less dW, and of log-probabilities alone."""
    tokens = jnp.arange(self.states) % self.vocabulary
    alone = jax.jit(lambda x, w: likelihood.token_logprobs(x, w, tokens))
    abstract = jax.eval_shape(self.arrays)
    both, one = (
      function.lower(*abstract).compile().memory_analysis().temp_size_in_bytes
      for function in (self.gradients, alone)
    )
    result = 4 * self.width * self.vocabulary
    return max(both - result, 0) / MIB, one / MIB


def vocabularies(size: Size) -> list[str]:
  """Returns a markdown table: the loss as the vocabulary grows."""
  lines = [
    "| vocabulary | logits MiB | loss MiB | forward MiB | loss s | ratio | V |",
    "|---|---|---|---|---|---|---|",
  ]
  first, width = None, files.SHAPES[size.shape].width
  for vocabulary in size.vocabularies:
    loss = Loss(size.states, width, vocabulary)
    both, alone = loss.temporary_mib()
    spent = seconds(loss.gradients, *loss.arrays())
    first = first if first else (vocabulary, spent)
    lines.append(
      f"| {vocabulary:,} | {4 * size.states * vocabulary / MIB:,.0f} | "
      f"{both:,.0f} | {alone:,.0f} | {spent:.3f} | "
      f"{spent / first[1]:.2f} | {vocabulary / first[0]:.2f} |"
    )
  return lines


def report(size: Size) -> Iterator[str]:
  """Measures; yields the limits, then each table when it is done."""
  flops, read = limits(size)
  yield (
    f"a float32 product: {flops / 1e9:.0f} GFLOP/s; a read: "
    f"{read / 1e9:.1f} GB/s; jax {jax.__version__}"
  )
  yield "\n".join(shares(size, flops, read))
  yield "\n".join(growth(size))
  yield "\n".join(vocabularies(size))


def main() -> int:
  """Prints the report."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--tiny", action="store_true", help="try the command")
  asked = parser.parse_args()
  jax.config.update("jax_threefry_partitionable", True)
  for part in report(TINY if asked.tiny else Size()):
    print(f"{part}\n", flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
