"""The complete configuration of every pipeline, with its default values.

An experiment file calls one of these and states only what it changes. Every
field can be set on the command line: --config.optimizer.learning_rate=1e-5.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import generate, optimizer
from rlhf_jax.algorithms import best_of_n
from rlhf_jax.algorithms import bond as bond_algorithm
from rlhf_jax.algorithms import reward as reward_algorithm
from rlhf_jax.algorithms import sft as sft_algorithm
from rlhf_jax.algorithms.policy_gradient import (
  epochs,
  importance,
  packing,
  shaping,
)
from rlhf_jax.algorithms.preference import pairing
from rlhf_jax.algorithms.preference import registry as preferences
from rlhf_jax.algorithms.preference import update as preference_update
from rlhf_jax.models import heads
from rlhf_jax.parallel import mesh
from rlhf_jax.pipelines import actors, method_sections, methods, sampled
from rlhf_jax.pipelines import bond as bond_pipeline
from rlhf_jax.pipelines import online_preference as online
from rlhf_jax.pipelines import rejection as rejection_pipeline
from rlhf_jax.pipelines.config import Data, Model, Schedule, Trainable, tree


def _optimizer(learning_rate: float, **changes: Any) -> ConfigDict:
  section = ConfigDict({"learning_rate": learning_rate})
  section.update(tree(optimizer.Config))
  section.update(changes)
  return section


def sft() -> ConfigDict:
  """Supervised fine-tuning. Rates: METHODS 1 (LoRA runs want 10x more)."""
  return ConfigDict(
    {
      "pipeline": "sft",
      "seed": 0,
      "model": tree(Model),
      "trainable": tree(Trainable),
      "data": tree(Data),
      "validation": tree(Data),
      "loss": tree(sft_algorithm.Config),
      "optimizer": _optimizer(2e-5, schedule="cosine", weight_decay=0.1),
      "schedule": tree(Schedule),
      "mesh": tree(mesh.Config),
      "samples": 0,
      "sample_prompts": tree(Data),
      "generate": tree(generate.Config),
    }
  )


def reward() -> ConfigDict:
  """Bradley-Terry reward model; one epoch (METHODS 2)."""
  return ConfigDict(
    {
      "pipeline": "reward",
      "seed": 0,
      "model": tree(Model),
      "trainable": tree(Trainable),
      "init_from": "",
      "head": tree(heads.Config),
      "stop_layer": 0,
      "data": tree(Data),
      "heldout": tree(Data),
      "heldout_fraction": 0.1,
      "loss": tree(reward_algorithm.Config),
      "optimizer": _optimizer(9e-6, schedule="cosine"),
      "schedule": tree(Schedule),
      "mesh": tree(mesh.Config),
      "reference_samples": "",
    }
  )


def preference(name: str = "dpo") -> ConfigDict:
  """DPO, or another method of algorithms/preference by its name."""
  return ConfigDict(
    {
      "pipeline": "preference",
      "seed": 0,
      "model": tree(Model),
      "trainable": tree(Trainable),
      "init_from": "",
      "algorithm": method_sections.tree(preferences.ALGORITHMS, name),
      "accumulation": tree(preference_update.Config),
      "data": tree(Data),
      "heldout": tree(Data),
      "heldout_fraction": 0.1,
      "optimizer": _optimizer(1e-6),
      "schedule": tree(Schedule),
      "mesh": tree(mesh.Config),
    }
  )


def _sampled() -> dict[str, Any]:
  """Returns what pipelines/sampled.py reads of every pipeline that uses it."""
  return {
    "seed": 0,
    "model": tree(Model),
    "trainable": tree(Trainable),
    "init_from": "",
    "reward": "",
    "verifier": ConfigDict({"name": "", "settings": ConfigDict()}),
    "monitors": ConfigDict(),
    "prompts": tree(Data),
    "generate": tree(generate.Config),
    "schedule": tree(Schedule),
    "mesh": tree(mesh.Config),
    "force": False,
  }


def rejection() -> ConfigDict:
  """Rejection-sampling fine-tuning: a few rounds of sample, select, SFT."""
  return ConfigDict(
    {
      "pipeline": "rejection",
      **_sampled(),
      "rounds": tree(rejection_pipeline.Rounds),
      "selection": tree(best_of_n.Config),
      "loss": tree(sft_algorithm.Config),
      "optimizer": _optimizer(2e-5, schedule="cosine", weight_decay=0.1),
    }
  )


def online_preference(name: str = "dpo") -> ConfigDict:
  """Online DPO, or another loss on pairs by its name (OAIF: rate 5e-7)."""
  return ConfigDict(
    {
      "pipeline": "online_preference",
      **_sampled(),
      "algorithm": method_sections.tree(online.METHODS, name),
      "accumulation": tree(preference_update.Config),
      "pairing": tree(pairing.Config),
      "guards": tree(sampled.Guards),
      "optimizer": _optimizer(5e-7),
    }
  )


def bond() -> ConfigDict:
  """J-BOND: best of two answers of a moving anchor, distilled."""
  return ConfigDict(
    {
      "pipeline": "bond",
      **_sampled(),
      "distillation": tree(bond_algorithm.Config),
      "target": tree(bond_pipeline.Target),
      "guards": tree(sampled.Guards),
      "optimizer": _optimizer(3e-6),
    }
  )


def policy() -> ConfigDict:
  """PPO with a critic that learns five times as fast (METHODS 4).

  algorithm.name chooses another method (methods.py).
  """
  return ConfigDict(
    {
      "pipeline": "policy",
      "seed": 0,
      "model": tree(Model),
      "trainable": tree(Trainable),
      "init_from": "",
      "reward": "",
      "verifier": ConfigDict({"name": "", "settings": ConfigDict()}),
      "monitors": ConfigDict(),
      "value": tree(actors.Value),
      "prompts": tree(Data),
      "generate": tree(generate.Config),
      "shaping": tree(shaping.Config),
      "algorithm": methods.tree(),
      "importance": tree(importance.Config),
      "epochs": tree(epochs.Config),
      "packing": tree(packing.Config),
      "policy_optimizer": _optimizer(1e-6),
      "value_optimizer": _optimizer(5e-6),
      "schedule": tree(Schedule),
      "mesh": tree(mesh.Config),
      "ptx": tree(Data),
      "ptx_batch_size": 32,
      "force": False,
    }
  )


def evaluate() -> ConfigDict:
  """Two policies on held-out prompts."""
  return ConfigDict(
    {
      "pipeline": "evaluate",
      "seed": 1,
      "model": tree(Model),
      "policy": "",
      "init_from": "",
      "reward": "",
      "gold": "",
      "prompts": tree(Data),
      "generate": tree(generate.Config),
      "packing": tree(packing.Config),
      "count": 256,
      "batch_size": 64,
      "mesh": tree(mesh.Config),
      "lexicon": False,
    }
  )


def rlhf() -> ConfigDict:
  """All stages in a row, each a complete configuration of its own."""
  return ConfigDict(
    {
      "pipeline": "rlhf",
      "title": "RLHF run",
      "seed": 0,
      "reuse": "",
      "reuse_stages": ("sft", "reward", "gold"),
      "sft": sft(),
      "reward": reward(),
      "gold": reward(),
      "policy": policy(),
      "evaluation": evaluate(),
      "facts": ConfigDict(),
      "caveats": (),
    }
  )
