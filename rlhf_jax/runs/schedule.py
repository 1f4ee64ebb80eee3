"""How long a stage trains, how often it is saved, measured and reported."""

from __future__ import annotations

import dataclasses
import math
import re

from rlhf_jax.schema import FieldError, check_choice

MEASURED = ("validation/", "heldout/")  # how metrics of held-out data begin
# Words in the names of metrics that say whether less or more is better, and
# those that say neither.
_LESS = {"loss", "perplexity", "nll", "error"}
_MORE = {"accuracy", "margin", "score", "reward", "eval", "shaped", "total"}
_MORE |= {"pass1", "passG", "component"}
_UNSAID = {"std", "spread", "rejected", "term", "penalty", "coefficient"}


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How long, how often saved, how reported."""

  batch_size: int = 32  # rows (policy: prompts) a step, over all hosts
  steps: int = 0  # optimizer steps (policy: rollouts); 0: from epochs
  epochs: float = 0.0  # passes over the data; 0: from steps
  save_every: int = 50  # steps between checkpoints
  keep: int = 2  # newest checkpoints kept
  keep_best: str = ""  # metric by which the best saved step is kept besides;
  # "" for none
  best: str = ""  # the best is the "max" or "min" of keep_best; "": the least
  # of a loss, the most of a score
  asynchronous: bool = False  # checkpoints are written while steps go on
  log_every: int = 1  # steps between metric rows
  eval_every: int = 0  # steps between measurements on held-out data, besides
  # that of the last step; 0: none while it trains
  patience: int = 0  # measurements in a row without a better keep_best that end
  # the run; 0: it goes on

  def __post_init__(self) -> None:
    if self.batch_size < 1 or self.save_every < 1 or self.keep < 1:
      raise FieldError(
        f"batch_size={self.batch_size}, save_every={self.save_every}, keep="
        f"{self.keep}: all must be >= 1."
      )
    is_long = self.steps >= 0 and 0 <= self.epochs < math.inf
    if not is_long or self.log_every < 1:
      raise FieldError(
        f"steps={self.steps}, epochs={self.epochs}, log_every="
        f"{self.log_every}: need steps, epochs >= 0 and finite, and log_every "
        ">= 1."
      )
    if self.eval_every < 0:
      raise FieldError(
        f"eval_every={self.eval_every}: steps between measurements. Set >= 1, "
        "or 0 for none."
      )
    if self.keep_best.startswith(MEASURED) and not self.eval_every:
      raise FieldError(
        f"keep_best={self.keep_best!r} with eval_every=0: it is measured on "
        "held-out data, and nothing is while it trains. Set eval_every."
      )
    if self.patience < 0:
      raise FieldError(f"patience={self.patience}: must be >= 0.")
    if self.patience and not self.keep_best.startswith(MEASURED):
      raise FieldError(
        f"patience={self.patience} with keep_best={self.keep_best!r}: a run "
        "ends early by a metric of held-out data. Set keep_best to one, such "
        "as 'validation/loss', and eval_every."
      )
    check_choice("best", self.best, ("", "max", "min"))
    _ = self.best_of  # of a metric whose name says nothing
    if self.steps > 0 and self.epochs > 0:
      raise FieldError(
        f"steps={self.steps}, epochs={self.epochs}: set exactly one of them "
        "and the other to 0."
      )

  def total_steps(self, examples: int) -> int:
    """Returns the number of steps for a data set of `examples` rows."""
    if self.steps == 0 and self.epochs == 0:
      raise FieldError(
        f"schedule.steps={self.steps}, epochs={self.epochs}: nothing "
        "would be trained. Set one of them."
      )
    if self.steps:
      return self.steps
    exact = self.epochs * examples / self.batch_size
    return max(1, math.ceil(exact - 1e-6))  # 0.1 * 30 is above 3

  def announced(self, examples: int, phase: str) -> int:
    """Returns total_steps, and says where passes end inside a batch.

    Args:
      examples: rows of the data set.
      phase: name in the message.
    """
    total, size = self.total_steps(examples), self.batch_size
    extra = total * size - self.epochs * examples
    if self.epochs and extra > 0.5 and examples >= size:
      inner = (total * size - 1) // examples  # borders before the last row
      borders = inner - inner // (size // math.gcd(size, examples))
      print(
        f"{phase}: {self.epochs:g} epochs of {examples} rows are {total} steps "
        f"of {size}, {extra:.0f} rows more than that, which fill the last "
        f"batch; {borders} batches hold rows of two passes"
      )
    return total

  @property
  def asked(self) -> dict[str, float]:
    """What stage.json keeps of the length, see stages.asks_for_more."""
    return {"steps": self.steps, "epochs": self.epochs}

  @property
  def best_of(self) -> str:
    """Whether the best is the "max" or the "min" of keep_best.

    Raises:
      FieldError: nobody said, and the name of the metric does not tell.
    """
    if self.best or not self.keep_best:
      return self.best if self.best else "max"
    area, _, name = self.keep_best.rpartition("/")
    words = set(re.split("[/_]", name))
    if not words & (_LESS | _MORE):
      words |= set(area.split("/"))
    is_less, is_more = bool(words & _LESS), bool(words & _MORE)
    if is_less == is_more or words & _UNSAID:
      raise FieldError(
        f"best='' with keep_best={self.keep_best!r}: the name does not say "
        "whether more or less of it is better. Set best='max' or 'min'."
      )
    return "min" if is_less else "max"

  def measures(self, step: int, *, is_last: bool) -> bool:
    """Says whether held-out data are measured on after a step."""
    return bool(self.eval_every) and (is_last or step % self.eval_every == 0)

  def describe(self) -> str:
    """Returns "20 steps of 64", or "2 epochs of", for people."""
    if self.steps:
      return f"{self.steps} steps of {self.batch_size}"
    return f"{self.epochs:g} epochs of"
