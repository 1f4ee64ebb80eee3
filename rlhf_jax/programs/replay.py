"""Rollouts kept on disk, and learned from again.

  w = min(prod_t p(token) / p_sampled(token), c)     of each stored answer

A step may learn, beside its own samples, from stored ones: of its own run's
newest rollouts (`keep`), of another run's (`source`), or of that alone, without
sampling at all (`fresh=False`, offline). A stored rollout has the
log-probabilities of the policy that sampled it; those of the policy as it is
now are computed again, and importance.py weighs each answer by their ratio, so
the gradient is that of the policy as it is now, up to the truncation at c
(Precup, Sutton and Singh 2000; Espeholt et al. 2018, arXiv:1802.01561; for
language Noukhovitch et al. 2024, arXiv:2410.18252). A baseline out of the same
prompt's other answers stays one: it does not depend on the answer.

Rewards are shaped anew: scores and reference log-probabilities are stored, the
KL is that of the policy as it is now.

Each rollout is rollouts/STEP.npz, beside rollouts.json, which says what they
are: a run that goes on, and another one, must agree with it. Nothing is
deleted: another run may read them. On resume, files of steps that are not in
the checkpoint are written again before they are read.

Left out: critics (values of an old critic are worth little) and several judges,
both refused; hidden states of frozen layers, which are large, are computed
anew.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, integrity, strict_json
from rlhf_jax.algorithms.policy_gradient import importance, packing
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import rollouts
from rlhf_jax.schema import FieldError, check_choice, check_least
from rlhf_jax.types import Rollout, Samples

FOLDER, META = "rollouts", "rollouts.json"
# What is stored of a rollout.
FIELDS = (
  "tokens",
  "valid_mask",
  "response_mask",
  "behaviour_logprobs",
  "finish_reason",
  "reference_logprobs",
  "score",
)

_MEANS = {
  "buffer/effective": "rollout/sampler_effective",
  "buffer/ratio": "rollout/sampler_ratio_mean",
  "buffer/capped": "rollout/sampler_capped",
  "buffer/score": "rollout/score_mean",
}


@dataclasses.dataclass(frozen=True)
class Config:
  """Which stored rollouts a step learns from; none, as it is."""

  keep: int = 0  # newest rollouts of this run that are learned from again
  source: str = ""  # folder of another run with stored rollouts; "": none
  updates: int = 1  # stored rollouts that each step learns from
  fresh: bool = True  # whether a step samples too; False: stored ones alone
  cap: float | None = 2.0  # c, of the weight of a stored answer; None: w = 1,
  # which is biased
  level: str = "sequence"  # whether an answer has one weight, or each of its
  # "token"s its own: less variance, and biased for answers of several tokens

  def __post_init__(self) -> None:
    check_least(self, keep=0, updates=1)
    check_choice("level", self.level, importance.LEVELS)
    if self.cap is not None and self.cap <= 0.0:
      raise FieldError(f"cap={self.cap}: must be > 0, or None for no weights.")
    if not self.fresh and not self.source:
      raise FieldError(
        "fresh=False with source='': there would be nothing to learn from. "
        "Name a run with stored rollouts, or set fresh=True."
      )
    if not self.fresh and self.keep:
      raise FieldError(
        f"keep={self.keep} with fresh=False: nothing is sampled to be kept. "
        "Set keep=0."
      )
    for field in ("updates", "cap", "level") if not self.is_on else ():
      value = getattr(self, field)
      if value != getattr(type(self), field):
        raise FieldError(
          f"{field}={value!r} with keep=0, source='': nothing is stored, so "
          "nothing reads it. Set keep, or leave it out."
        )

  @property
  def is_on(self) -> bool:
    """Whether stored rollouts are learned from."""
    return bool(self.keep or self.source)

  @property
  def rollouts_a_step(self) -> int:
    """Rollouts that a step learns from, at most."""
    return int(self.fresh) + self.updates * self.is_on

  @property
  def weights(self) -> importance.Config:
    """How stored answers are weighed."""
    return importance.Config(cap=self.cap, level=self.level)


def facts(settings: Any, base: Any) -> dict[str, Any]:
  """Returns what rollouts of a run must agree with to be learned from.

  Args:
    settings: of policy training.
    base: whose tokenizer.
  """
  origins = settings.origins()
  judge = {
    "reward": origins["reward_fingerprint"],
    "scoring": dataclasses.asdict(settings.scoring),
    "verifier": dataclasses.asdict(settings.verifier),
    "code": {k: v for k, v in origins.items() if "reward_fn" in k},
  }
  start = origins["init_from_fingerprint"]
  reference = origins["reference_fingerprint"]
  return {
    "tokenizer": base.identity["tokenizer_fingerprint"],
    "model": base.identity["model_fingerprint"],
    "judge": integrity.fingerprint(judge),
    "reference": reference if reference else start,
    "temperature": settings.generate.temperature,  # of the reference too
    "answers": settings.answers,
    "num_samples": settings.generate.num_samples,
    "max_new_tokens": settings.generate.max_new_tokens,
  }


@dataclasses.dataclass(frozen=True)
class Store:
  """The rollouts of a run, and those that it may learn from.

  config: what is drawn.
  folder: of the run.
  seed: of the draws.
  mesh: where drawn rollouts go.
  layout: (samples, rows of the batch before) -> how they share rows, or None.
  """

  config: Config
  folder: Path
  seed: int
  mesh: Any
  layout: Callable[[Samples, int], packing.Packing | None]

  @classmethod
  def open(
    cls, settings: Any, source: rollouts.Source, workdir: Path, base: Any
  ) -> Store | None:
    """Returns the store of a run, None where nothing is stored.

    Args:
      settings: of policy training, with a section `buffer`.
      source: of judged samples.
      workdir: of the run.
      base: the model underneath.

    Raises:
      FieldError: the rollouts that are there are of another kind.
    """
    config = settings.buffer
    if not config.is_on:
      return None
    own = facts(settings, base)
    if config.source:
      check_source(config.source, own)
    if config.keep and (workdir / FOLDER / META).is_file():
      _check_alike(workdir, own, f"buffer.keep={config.keep}")
    distributed.barrier("rollouts")  # all have looked before one writes
    if config.keep and distributed.is_first():
      (workdir / FOLDER).mkdir(parents=True, exist_ok=True)
      _write_json(workdir / FOLDER / META, own)
    return cls(config, workdir, settings.seed, source.mesh, source.layout)

  def keep(self, step: int, rollout: Rollout) -> None:
    """Writes a judged rollout before it is learned from.

    Args:
      step: steps before this one.
      rollout: unpacked, with the sampler's own log-probabilities.
    """
    if not self.config.keep:
      return
    found = distributed.fetch({name: getattr(rollout, name) for name in FIELDS})
    if distributed.is_first():
      path = self.folder / FOLDER / f"{step}.npz"
      temporary = path.with_suffix(".tmp")
      with open(temporary, "wb") as file:
        np.savez_compressed(file, **found)
      os.replace(temporary, path)
    distributed.barrier("rollouts")

  def choices(self, step: int) -> list[Path]:
    """Returns the files that a step may draw, in a fixed order."""
    found = []
    if self.config.source:
      found = files_of(self.config.source)
    first = max(0, step - self.config.keep)
    own = self.folder / FOLDER
    return found + [own / f"{n}.npz" for n in range(first, step)]

  def draw(self, step: int, usual: int) -> list[rollouts.Judged]:
    """Returns the stored rollouts of a step, without repeats if it can.

    Args:
      step: steps before this one.
      usual: rows of the batch before, see packing.plan.
    """
    paths = self.choices(step)
    if not paths:
      return []
    count = self.config.updates
    rng = np.random.default_rng([self.seed, step])
    order = [
      int(i)
      for _ in range(-(-count // len(paths)))
      for i in rng.permutation(len(paths))
    ]
    return [self._read(paths[i], usual) for i in order[:count]]

  def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns metrics of the stored rollouts of a step.

    Offline they hold all of the last one's too.

    Metrics, means over the stored rollouts of the step:
      buffer/effective: effective samples as a share of all, see
        rollout/sampler_effective. Down is bad: what is stored is too old.
      buffer/ratio: mean ratio of probabilities of tokens; 1 in expectation.
        Far from 1 is bad.
      buffer/capped: share of weights that are truncated. Up is bad: bias.
      buffer/score: mean score of what is stored. No bad direction.
      buffer/rollouts: stored rollouts that were learned from. No bad direction.

    Args:
      rows: metrics of each, of its weights, its rewards and its update.
    """
    found = {} if self.config.fresh or not rows else dict(rows[-1])
    found["buffer/rollouts"] = float(len(rows))
    for name, of in _MEANS.items():
      if rows and of in rows[0]:
        found[name] = sum(row[of] for row in rows) / len(rows)
    return found

  def _read(self, path: Path, usual: int) -> rollouts.Judged:
    rollout = Rollout(**mesh_lib.spread_batch(self.mesh, read(path)))
    layout = self.layout(rollouts.samples_of(rollout), usual)
    return rollouts.Judged(rollout, {"score": rollout.score}, {}, layout)


def read(path: Path) -> dict[str, np.ndarray]:
  """Returns the arrays of a stored rollout.

  Raises:
    UserError: it is damaged.
  """
  try:
    with np.load(path) as stored:
      return {name: stored[name] for name in FIELDS}
  except Exception as error:
    raise FieldError(
      f"buffer: {path} cannot be read ({error}). Bring it back, or start the "
      "run anew in another folder."
    ) from error


def files_of(source: str) -> list[Path]:
  """Returns the stored rollouts of a run, in the order of its steps."""
  folder = Path(source).expanduser() / FOLDER
  found = [path for path in folder.glob("*.npz") if path.stem.isdigit()]
  return sorted(found, key=lambda path: int(path.stem))


def check_source(source: str, own: Mapping[str, Any]) -> None:
  """Raises FieldError unless a run's rollouts can be learned from here.

  Args:
    source: its folder.
    own: from `facts`, of this run.
  """
  field = f"buffer.source={source!r}"
  path = Path(source).expanduser() / FOLDER / META
  if not path.is_file() or not files_of(source):
    raise FieldError(
      f"{field}: no stored rollouts are there. Name the --workdir of a policy "
      "run with buffer.keep >= 1."
    )
  _check_alike(source, own, field)


def _check_alike(
  folder: str | Path, own: Mapping[str, Any], field: str
) -> None:
  """Raises FieldError unless stored rollouts are what a run would store."""
  path = Path(folder).expanduser() / FOLDER / META
  theirs = strict_json.read_object(path, "Name another run.")
  for name, value in own.items():
    if theirs.get(name) != value:
      raise FieldError(
        f"{field}: the {name} of {path.parent} is "
        f"{str(theirs.get(name))[:16]!r}, and that of this run "
        f"{str(value)[:16]!r}. Scores, references and groups are stored, so "
        "both must agree. Set it as it was there, or choose another folder."
      )


def identity(config: Config) -> dict[str, str]:
  """Returns what a checkpoint must agree with of another run's rollouts."""
  if not config.source:
    return {}
  sizes = [(p.name, p.stat().st_size) for p in files_of(config.source)]
  return {"buffer_fingerprint": integrity.fingerprint({"files": sizes})}


def weighed_alike(rollout: Rollout) -> Rollout:
  """Returns a fresh rollout with weights of 1, so that one program updates."""
  if rollout.importance_weights is not None:
    return rollout
  return rollout.replace(
    importance_weights=jnp.asarray(rollout.response_mask, jnp.float32)
  )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
  temporary = path.with_suffix(".tmp")
  temporary.write_text(json.dumps(content, indent=2) + "\n")
  os.replace(temporary, path)
