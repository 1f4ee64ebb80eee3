"""The curves of all kinds of pipelines on several meshes.

    python -m tests.proofs.mesh_curves

SFT, reward model, DPO, PPO (sampling, judging, critic) and evaluation, on eight
simulated devices as data x fsdp x tensor. Every curve must be that of one
device within 1e-5 of its size, and PPO must sample the same tokens.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

MESHES = ((1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4))
TOLERANCE = 1e-5  # of max(1, |loss|)
LOSSES = {
  "sft": ("sft/loss",),
  "reward": ("reward_model/loss",),
  "preference": ("preference/loss", "preference/margin"),
  "policy": ("ppo/policy_loss", "ppo/value_loss", "rollout/kl_k1_sum"),
  "evaluation": ("proxy_before", "proxy_after", "kl_nats", "length_after"),
}


@dataclasses.dataclass
class Curve:
  """One stage on one mesh."""

  values: np.ndarray  # [steps, losses]
  texts: list[str]  # what PPO sampled


def _on_mesh(config: Any, mesh: tuple[int, int, int]) -> Any:
  data, fsdp, tensor = mesh
  config.mesh.update(
    devices=data * fsdp * tensor, data=data, fsdp=fsdp, tensor=tensor
  )
  return config


def _run(stage: str, config: Any, folder: Path) -> Curve:
  from rlhf_jax import pipelines
  from tests.pipelines import tiny_runs

  pipelines.run(config, folder)
  rows = tiny_runs.rows_of(folder)
  samples = folder / "samples.jsonl"
  return Curve(
    np.asarray([[row[name] for name in LOSSES[stage]] for row in rows]),
    [row["response"] for row in tiny_runs.rows_of(folder, samples.name)]
    if samples.exists()
    else [],
  )


def _evaluated(config: Any, folder: Path) -> Curve:
  """Returns the numbers of an evaluation, as one step."""
  from rlhf_jax import pipelines

  found = pipelines.run(config, folder)
  row = [found[name] for name in LOSSES["evaluation"]]
  return Curve(np.asarray([row]), [])


def curves(folder: Path, mesh: tuple[int, int, int], files: Any) -> dict:
  """Returns {stage: Curve}; SFT and reward model of this mesh feed PPO."""
  from rlhf_jax.pipelines import defaults
  from tests.pipelines import tiny_runs

  start, judge = folder / "sft", folder / "reward"
  config = tiny_runs.sft_config(files, "full")
  config.optimizer.learning_rate = 2e-3
  found = {"sft": _run("sft", _on_mesh(config, mesh), start)}
  config = tiny_runs.reward_config(files, "full", start, start / "samples.npz")
  config.optimizer.learning_rate = 2e-3
  found["reward"] = _run("reward", _on_mesh(config, mesh), judge)
  config = tiny_runs.full_policy_config(files, start, judge)
  config.ptx_batch_size = 16
  config.schedule.update(batch_size=16)
  path = folder / "policy"
  found["policy"] = _run("policy", _on_mesh(config, mesh), path)
  found["evaluation"] = _evaluated(
    _on_mesh(_evaluation(files, path, judge), mesh), folder / "evaluation"
  )
  config = defaults.preference("dpo")
  config.model.source = files.model
  config.init_from = str(start)
  config.data.update(source=files.comparisons, max_length=24)
  config.heldout_fraction = 0.25
  config.schedule.update(batch_size=8, steps=6, save_every=6)
  config.optimizer.update(learning_rate=2e-3, schedule="constant")
  found["preference"] = _run(
    "preference", _on_mesh(config, mesh), folder / "dpo"
  )
  return found


def _evaluation(files: Any, policy: Path, judge: Path) -> Any:
  """Returns the configuration that evaluates a policy."""
  from rlhf_jax.pipelines import defaults
  from tests.pipelines import tiny_runs

  config = defaults.evaluate()
  config.model.source = files.model
  config.update(
    policy=str(policy), reward=str(judge), gold="", count=16, batch_size=16
  )
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.update(max_new_tokens=tiny_runs.NEW_TOKENS, temperature=0.9)
  return config


def distance(found: Curve, expected: Curve) -> float:
  """Returns the largest difference, relative to max(1, |expected|)."""
  size = np.maximum(np.abs(expected.values), 1.0)
  return float(np.max(np.abs(found.values - expected.values) / size))


def table(folder: Path, meshes: tuple[tuple[int, int, int], ...]) -> list[dict]:
  """Returns a row for each mesh after the first: {"mesh", stage: distance}."""
  from tests.pipelines import tiny_runs

  files = tiny_runs.make_files(folder)
  rows, expected = [], None
  for mesh in meshes:
    found = curves(folder / "x".join(map(str, mesh)), mesh, files)
    if expected is None:
      expected = found
      continue
    rows.append(
      {"mesh": mesh}
      | {name: distance(found[name], expected[name]) for name in LOSSES}
      | {"same_tokens": found["policy"].texts == expected["policy"].texts}
    )
  return rows


def main() -> None:
  """Prints the table; exit status 1 when a curve differs."""
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
  with tempfile.TemporaryDirectory() as folder:
    rows = table(Path(folder), MESHES)
  print("| mesh | " + " | ".join(LOSSES) + " | same tokens |")
  print("|---" * (len(LOSSES) + 2) + "|")
  for row in rows:
    cells = [f"{row[name]:.1e}" for name in LOSSES]
    mesh = "x".join(map(str, row["mesh"]))
    print(f"| {mesh} | {' | '.join(cells)} | {row['same_tokens']} |")
  bad = [
    row
    for row in rows
    if max(row[name] for name in LOSSES) > TOLERANCE or not row["same_tokens"]
  ]
  raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
  main()
