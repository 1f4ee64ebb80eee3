"""What the start of a reward model or of RL must have reached.

Reinforcement learning sharpens what a start can do and repairs little: from one
that does not know the task it finds what fools the reward model (Ouyang et al.
2022 and Stiennon et al. 2020 start from SFT for this reason; METHODS 19).

An SFT run says itself what speaks against it (`of_sft`), in its stage.json; a
run that starts from it refuses what is "refuse" there, and what is below the
numbers of the section `floor`, before anything compiles. force=True goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import strict_json
from rlhf_jax.metrics import read_metrics
from rlhf_jax.programs.world import World
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, check_choice
from rlhf_jax.types import FINISH_EOS, Samples

EVALUATION_FILE = "evaluation.json"  # of pipelines/evaluate.py
JUDGES = ("gold", "proxy", "verifier")
FEW_ENDED = 0.5  # share of answers that end by themselves, METHODS 19
MANY_EMPTY = 0.5  # share of answers without a word
LOSS, METRIC = "validation_loss", "validation/loss"  # at the end; at a step


@dataclasses.dataclass(frozen=True)
class Config:
  """What the start must have reached; a number that is None asks nothing."""

  loss: float | None = None  # nats a token on held-out demonstrations, at most:
  # validation_loss of its SFT run
  ended: float | None = None  # share of its samples that end by themselves, at
  # least: of an SFT run with samples
  evaluation: str = ""  # folder of a finished evaluation of the start, against
  # what it was made of (configs/evaluate.py)
  win_rate: float | None = None  # of that evaluation, at least; such as 0.5
  judge: str = "gold"  # whose win rate: of "gold", "proxy" or a "verifier"

  def __post_init__(self) -> None:
    check_choice("judge", self.judge, JUDGES)
    for name in ("ended", "win_rate"):
      value = getattr(self, name)
      if value is not None and not 0.0 <= value <= 1.0:
        raise FieldError(f"{name}={value}: must be in [0, 1], or None.")
    if self.loss is not None and self.loss <= 0.0:
      raise FieldError(f"loss={self.loss}: must be > 0 nats a token, or None.")
    if bool(self.evaluation) != (self.win_rate is not None):
      raise FieldError(
        f"evaluation={self.evaluation!r} with win_rate={self.win_rate}: the "
        "floor is a win rate of an evaluation. Set both, or neither."
      )


def sample_facts(samples: Samples) -> dict[str, float]:
  """Returns what samples of a policy say of it, as shares of them.

  ended_share: that end by themselves. empty_share: without a token before that.

  Args:
    samples: on the host.
  """
  ends = np.asarray(samples.finish_reason) == FINISH_EOS
  lengths = np.sum(np.asarray(samples.response_mask), axis=1)
  return {
    "ended_share": float(np.mean(ends)),
    "empty_share": float(np.mean(lengths - ends <= 0)),
  }


def of_sft(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns (level, message) of what speaks against building on an SFT run.

  Args:
    facts: of its stage.json: validation_loss and validation_loss_before in
      nats a token, ended_share and empty_share; what is not there says nothing.
  """
  after, before = (
    facts.get(name) for name in ("validation_loss", "validation_loss_before")
  )
  ended, empty = facts.get("ended_share"), facts.get("empty_share")
  rules = [
    (
      after is not None and before is not None and after > before,
      "refuse",
      f"validation_loss={after}: it was {before} before training, so held-out "
      "demonstrations became less likely. Lower optimizer.learning_rate or the "
      "epochs, look whether validation is of the same kind as data, or force "
      "what starts from it if you mean it.",
    ),
    (
      empty is not None and empty > MANY_EMPTY,
      "refuse",
      f"empty_share={empty}: above {MANY_EMPTY}, most answers are empty, and "
      "there is nothing to reward. Look at empty responses in data, or force "
      "what starts from it if you mean it.",
    ),
    (
      ended is not None and ended < FEW_ENDED,
      "warn",
      f"ended_share={ended}: below {FEW_ENDED}, answers seldom end by "
      "themselves. Set data.end_token=True, train longer, or raise "
      "generate.max_new_tokens.",
    ),
  ]
  return [(level, message) for applies, level, message in rules if applies]


def check_start(config: Config, start: str, world: World, force: bool) -> None:
  """Refuses a start below the floor; says what else speaks against it.

  Args:
    config: the section `floor`.
    start: folder of the policy, with @STEP or not; "" for the model itself.
    world: of the run; a planned one has no numbers.
    force: go on all the same.

  Raises:
    FieldError: value, rule and remedy.
  """
  if world.is_planned:
    return
  info = _facts(start) if start else {}
  found = [*info.get("guards", []), *_below(config, start, info)]
  for level, message in found:
    if level == "refuse" and not force:
      raise FieldError(
        f"force=False: the start, {start or 'the model itself'}: {message} "
        "Pass --config.force=True to go on anyway."
      )
    by = "force=True goes on past " if level == "refuse" else ""
    print(f"{world.workdir.name}: the start: {by}{level}: {message}")


def _facts(start: str) -> Mapping[str, Any]:
  """Returns stage.json of a start, of an SFT run with the numbers of its step.

  Its samples, and its loss unless it was measured there, are of the last step.
  """
  folder, _ = stages.place(start)
  info, step = stages.read_stage(folder) or {}, stages.step_of(start)
  lost = {LOSS, "ended_share", "empty_share"}  # of an SFT run alone
  if step in (None, info.get("steps")) or not lost & set(info):
    return info
  found = {k: v for k, v in info.items() if k not in lost}
  path = folder / "metrics.jsonl"
  for row in read_metrics(path) if path.is_file() else ():
    if row["step"] == step and METRIC in row:
      found[LOSS] = row[METRIC]
  return found | {"guards": of_sft(found)}


def _below(
  config: Config, start: str, info: Mapping[str, Any]
) -> Sequence[tuple[str, str]]:
  """Returns (level, message) of the numbers of the floor.

  Raises:
    FieldError: a number is asked for that nothing measured.
  """
  measured = {
    "floor.loss": (config.loss, info.get("validation_loss"), -1.0),
    "floor.ended": (config.ended, info.get("ended_share"), 1.0),
    "floor.win_rate": (config.win_rate, _win_rate(config, start), 1.0),
  }
  remedies = {
    "floor.loss": "an SFT run with validation.source says it",
    "floor.ended": "an SFT run with samples=256, say, tells it",
    "floor.win_rate": f"an evaluation with a {config.judge} judge tells it",
  }
  found = []
  for field, (asked, value, sign) in measured.items():
    if asked is None:
      continue
    if value is None:
      raise FieldError(
        f"{field}={asked}: nothing says it of "
        f"{start or 'the model itself'}; {remedies[field]}. Set None for no "
        "floor."
      )
    if sign * (value - asked) < 0.0:
      word = "least" if sign > 0 else "most"
      found.append(
        (
          "refuse",
          f"{field}={asked}: it has {value:.4g}, and at {word} that is wanted. "
          "Train it longer or on more demonstrations, or change the floor.",
        )
      )
  return found


def _win_rate(config: Config, start: str) -> float | None:
  """Returns the win rate of the start in its evaluation, None without one.

  Raises:
    FieldError: no finished evaluation, or one of another policy.
  """
  if config.win_rate is None:
    return None
  path = Path(config.evaluation).expanduser() / EVALUATION_FILE
  if not path.is_file():
    raise FieldError(
      f"floor.evaluation={config.evaluation!r}: no {EVALUATION_FILE} is there. "
      "Name the --workdir of a finished configs/evaluate.py run."
    )
  found = strict_json.read_object(
    path, "Delete the folder and evaluate again.", allows_nan=True
  )
  of = found.get("origins", {}).get("policy")
  if of != stages.stage_fingerprint(start):
    raise FieldError(
      f"floor.evaluation={config.evaluation!r}: its policy is not "
      f"init_from={start!r} as it is now. Evaluate that one."
    )
  return found.get(f"{config.judge}_win_rate")
