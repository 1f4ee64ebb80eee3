"""Modular addition: from 30 % right to over 90 % by a verifier alone.

  python -m tests.proofs.modular_addition

The whole policy pipeline, on a problem whose answers a program checks
(METHODS 9, annex A11): "7+6=" wants "3", modulo 10. A random decoder of two
layers is first fine-tuned on demonstrations of which 30 % are right and the
rest wrong at random, so that it answers rightly as often; then GRPO, and RLOO,
sample 8 answers to each of 32 problems a step and learn from the verifier's
word. For each it prints pass@1 over all 100 problems before and after, from 16
fresh answers to each, the share of groups whose answers score all alike in the
first and the last ten steps, and seconds; the same for a control, whose
verifier holds another problem's answer. It fails (exit code 1) unless pass@1
is 0.2 to 0.4 before and at least 0.9 after, the share has grown, and the
control stays below 0.4.

All problems are trained on: this shows that the pipeline optimises what the
verifier says, not that the model understands addition.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import generate, pipelines
from rlhf_jax.data import batches, dataset
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models import huggingface, roles, transformer
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import defaults
from rlhf_jax.rewards import texts
from rlhf_jax.runs import stages
from tests import tiny
from tests.proofs.rows import Row, show

RIGHT = 0.3  # share of the demonstrations
SAMPLES = 16  # fresh answers to each problem
NEW_TOKENS = 2  # a digit and the end
LENGTH = 8  # tokens of a row at most


@dataclasses.dataclass(frozen=True)
class Size:
  """How large the problem is, and how long each stage trains."""

  modulus: int = 10  # at most: one digit is one token
  demonstrations: int = 200  # of each problem
  sft_steps: int = 500
  policy_steps: int = 200


@dataclasses.dataclass(frozen=True)
class Found:
  """One run. pass1: before, after. flat: share of groups, first and last."""

  pass1: tuple[float, float]
  flat: tuple[float, float]


def write_model(folder: Path) -> None:
  """Writes a random decoder and a tokenizer whose digits stand alone."""
  tiny.tiny_tokenizer_json(folder)
  config = transformer.Config(
    vocab_size=load_tokenizer(folder).vocab_size,
    width=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    mlp_width=128,
    max_length=LENGTH,
  )
  params = transformer.init(config, jax.random.key(0))["params"]
  params["embedding"]["embedding"] *= 10.0  # tokens differ from the start
  huggingface.save(folder, config, jax.tree.map(np.array, params))


def write_data(folder: Path, size: Size) -> None:
  """Writes problems, problems with shuffled answers, and demonstrations."""
  rng = np.random.default_rng(0)
  m = size.modulus
  a, b = (x.ravel() for x in np.indices((m, m)))
  prompts = [f"{x}+{y}=" for x, y in zip(a, b, strict=True)]
  answers = (a + b) % m
  for name, right in (
    ("problems", answers),
    ("shuffled", (answers + rng.integers(1, m, len(answers))) % m),
  ):
    rows = [
      {"prompt": prompt, "reference": str(answer)}
      for prompt, answer in zip(prompts, right, strict=True)
    ]
    _write(folder / f"{name}.jsonl", rows)
  shown = np.tile(np.arange(m * m), size.demonstrations)
  wrong = rng.random(len(shown)) >= RIGHT
  said = (answers[shown] + wrong * rng.integers(1, m, len(shown))) % m
  rows = [
    {"prompt": prompts[i], "response": str(answer)}
    for i, answer in zip(shown, said, strict=True)
  ]
  _write(folder / "demonstrations.jsonl", rows)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
  """Keeps the pipelines' progress and warnings off the table."""
  logger, sink = logging.getLogger("absl"), io.StringIO()
  level = logger.level
  logger.setLevel(logging.ERROR)
  with (
    contextlib.redirect_stdout(sink),
    contextlib.redirect_stderr(sink),
    warnings.catch_warnings(),
  ):
    warnings.simplefilter("ignore")
    yield
  logger.setLevel(level)


def _write(path: Path, rows: list[dict]) -> None:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sft_config(folder: Path, size: Size) -> Any:
  """Returns the configuration of supervised fine-tuning."""
  config = defaults.sft()
  config.mesh.devices = 1
  config.model.source = str(folder / "model")
  config.data.update(
    source=str(folder / "demonstrations.jsonl"),
    format="demonstration",
    max_length=LENGTH,
  )
  config.optimizer.update(learning_rate=3e-3, weight_decay=0.0)
  steps = size.sft_steps
  config.schedule.update(batch_size=256, steps=steps, save_every=steps)
  return config


def policy_config(folder: Path, size: Size, name: str, problems: str) -> Any:
  """Returns the configuration of policy optimisation by one method."""
  config = defaults.policy(name)
  config.mesh.devices = 1
  config.model.source = str(folder / "model")
  config.init_from = str(folder / "sft")
  config.verifier.name = "exact"
  config.prompts.update(
    source=str(folder / f"{problems}.jsonl"), format="prompt", max_length=LENGTH
  )
  config.generate.update(max_new_tokens=NEW_TOKENS, num_samples=8)
  config.shaping.update(
    kl_coefficient=0.0 if name == "grpo" else 0.02,  # GRPO's is in the loss
    kl_controller="fixed",
    clip=None,
  )
  config.epochs.update(epochs=1, minibatches=1)
  config.policy_optimizer.update(learning_rate=1e-3, warmup_steps=5)
  steps = size.policy_steps
  config.schedule.update(batch_size=32, steps=steps, save_every=steps)
  return config


def pass_at_1(config: Any, folder: Path) -> float:
  """Returns the share of right answers of a finished stage.

  Args:
    config: of a policy run: its model, problems and verifier.
    folder: of the stage, which leaves a policy.
  """
  job = pipelines.read(config)
  settings, world = job.settings, job.open(folder)
  base = world.base(settings.model)
  stage = stages.load(folder, stages.POLICY, base, world)
  data = settings.prompts
  ids, _ = dataset.prompts(data, base.tokenizer, LENGTH - NEW_TOKENS)
  prompts = batches.collate_prompts(
    ids, base.tokenizer.pad_id, max(map(len, ids)), index=range(len(ids))
  )
  prompts = mesh_lib.spread_batch(world.mesh, prompts)
  samples = generate.generate(
    roles.sampling_params(stage.role, *stage.parts),
    prompts,
    jax.random.key(1),
    model=base.config,
    config=generate.Config(max_new_tokens=NEW_TOKENS, num_samples=SAMPLES),
    eos_ids=(base.tokenizer.eos_id,),
    pad_id=base.tokenizer.pad_id,
  )
  verifier = texts.load(settings.text_judge, data, base.tokenizer)
  scores, _ = verifier(samples, prompts.index)
  grouped = scores.reshape(-1, SAMPLES)
  return float(grouped.mean())


def prepare(folder: Path, size: Size) -> None:
  """Writes model and data, and fine-tunes on the demonstrations."""
  write_model(folder / "model")
  write_data(folder, size)
  with quietly():
    pipelines.run(sft_config(folder, size), folder / "sft")


def train(
  folder: Path, size: Size, name: str, problems: str = "problems"
) -> Found:
  """Optimises a policy against "problems" or "shuffled"; see module docstring.

  Args:
    folder: that `prepare` filled.
    size: as there.
    name: of the method.
    problems: whose answers the verifier holds; pass@1 is that of the true ones.
  """
  where = folder / f"{name}_{problems}"
  true = policy_config(folder, size, name, "problems")
  with quietly():
    pipelines.run(policy_config(folder, size, name, problems), where)
    before = pass_at_1(true, folder / "sft")
    after = pass_at_1(true, where)
  lines = (where / "metrics.jsonl").read_text().splitlines()
  flat = [json.loads(line)["group/zero_variance_share"] for line in lines]
  share = float(np.mean(flat[:10])), float(np.mean(flat[-10:]))
  return Found((before, after), share)


def line(name: str, found: Found, seconds: float) -> str:
  """Returns what is printed of a run."""
  return (
    f"{name:26} pass@1 {found.pass1[0]:.3f} -> {found.pass1[1]:.3f}, groups "
    f"without variance {found.flat[0]:.3f} -> {found.flat[1]:.3f}, "
    f"{seconds:.0f} s"
  )


def rows(
  size: Size = Size(), names: tuple[str, ...] = ("grpo", "rloo")
) -> Iterator[Row]:
  """Yields a row a method: the share of wrong answers; prints the runs."""
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    since = time.perf_counter()
    prepare(folder, size)
    misled = train(folder, size, names[0], "shuffled")
    print(
      line("control, wrong references", misled, time.perf_counter() - since)
    )
    for method in names:
      since = time.perf_counter()
      found = train(folder, size, method)
      spent = time.perf_counter() - since
      print(line(method, found, spent), flush=True)
      yield Row(
        f"{method}, a+b mod {size.modulus}",
        "pass@1 = 1",
        "share",
        1.0 - found.pass1[1],
        0.1,
        1.0 - misled.pass1[1],
        0.6,
        spent,
        0.2 <= found.pass1[0] <= 0.4 and found.flat[1] > found.flat[0],
      )


if __name__ == "__main__":
  sys.exit(show(rows()))
