"""Judges that read text: verifiers and functions, on the host.

A config names a verifier of rewards/verifiers.py, or a reward function of a
user's own by its import path, and its settings. Each prompt brings the
reference that its answers are judged against (the answer of a demonstration,
or the field "reference" of a prompt), where the verifier needs one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax import distributed
from rlhf_jax.data import dataset, formats
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.rewards import guard, rows, verifiers
from rlhf_jax.rewards.functions import Bound, Parts
from rlhf_jax.rewards.rows import Answers
from rlhf_jax.schema import FieldError, UserError
from rlhf_jax.types import FINISH_EOS, Samples

COMPONENT = "component/"
ROUNDING = 1e-4  # of a sum of weights


@dataclasses.dataclass(frozen=True)
class Verifier:
  """Which verifier judges, in place of a reward model."""

  name: str = ""  # of rewards/verifiers.py, or an import path; "" for none
  settings: dict[str, Any] = dataclasses.field(
    default_factory=dict, metadata={"class_of": verifiers.config_of}
  )  # fields of its Config, or parameters of the function; an experiment
  # file puts them in

  def __post_init__(self) -> None:
    self.bound()

  def code(self) -> dict[str, str]:
    """Returns field -> what may be an import path: its name, a sum's parts."""
    return _named("verifier", self.name, self.settings)

  def bound(self) -> Bound | None:
    """Returns verifiers.bind_parts of the section, None without a verifier.

    Raises:
      FieldError: unknown verifier or setting, or a value out of range.
    """
    if self.name:
      return verifiers.bind_parts(self.name, **self.settings)
    if self.settings:
      raise FieldError(
        f"settings={self.settings}: are for no verifier. Set verifier.name to "
        f"one of {', '.join(verifiers.VERIFIERS)}, or to an import path."
      )
    return None


def _named(
  field: str, name: str, settings: Mapping[str, Any]
) -> dict[str, str]:
  """Returns field -> name of a verifier and, of a sum, of its parts, nested."""
  names = {field: name}
  if name == "sum":
    for i, part in enumerate(settings.get("parts", ())):
      part = verifiers.Part(**part) if isinstance(part, dict) else part
      names |= _named(f"{field}_part_{i}", part.verifier, part.settings)
  return names


def sample_texts(
  tokenizer: Tokenizer, samples: Samples
) -> list[tuple[str, str]]:
  """Returns (prompt, response) texts of samples, end tokens left out.

  A model's vocabulary may be padded beyond its tokenizer's; such tokens have
  no text and are left out.
  """
  tokens, response, valid = distributed.fetch(
    (samples.tokens, samples.response_mask, samples.valid_mask)
  )
  response = response > 0
  prompt = (valid > 0) & ~response
  has_text = tokens < tokenizer.vocab_size

  def text(row: np.ndarray, mask: np.ndarray) -> str:
    return tokenizer.decode(row[mask].tolist())

  return [
    (text(row, p & known), text(row, r & known))
    for row, p, r, known in zip(tokens, prompt, response, has_text, strict=True)
  ]


def references(found: Sequence[Any], parts: Bound) -> list[Any]:
  """Returns what the answers to each prompt are judged against, or None.

  Args:
    found: prompts or demonstrations, from dataset.records.
    parts: the verifier, see Verifier.bound.

  Raises:
    UserError: a record without a reference that the verifier needs.
  """
  result = []
  for record in found:
    reference = None
    if isinstance(record, formats.Prompt):
      reference = record.reference
    elif isinstance(record, formats.Demonstration) and record.messages is None:
      reference = record.response
    if reference is None and "references" in parts.needs:
      raise UserError(
        f"{record.where}: has nothing to judge an answer against. A verifier "
        'needs {"prompt", "reference"} or {"prompt", "response"} a line.'
      )
    result.append(reference)
  return result


def fields(found: Sequence[Any], parts: Bound) -> list[dict[str, Any]]:
  """Returns the record of each prompt as it was read; {} where none is kept.

  Args:
    found: from dataset.records.
    parts: the verifier, see Verifier.bound.

  Raises:
    UserError: the verifier needs a record that was not kept.
  """
  for record in found:
    if not hasattr(record, "fields") and "records" in parts.needs:
      raise UserError(
        f"{record.where}: a {type(record).__name__} keeps no further fields, "
        "and the verifier reads records. Give prompts or demonstrations."
      )
  return [getattr(record, "fields", {}) for record in found]


@dataclasses.dataclass(frozen=True)
class Judge:
  """Scores samples by their text, each process its share of the prompts.

  parts: see Verifier.bound; it does not raise.
  references, records: of each prompt in the data.
  tokenizer: of the model.
  logged: names of what the verifier logs, the same in every call.
  judged: [prompts in the data] bool, which of them it judges; answers to others
    score 0, and NaN in what is logged. None for all.
  """

  parts: guard.Guard
  references: list[Any]
  records: list[dict[str, Any]]
  tokenizer: Tokenizer
  logged: tuple[str, ...] = ()
  judged: np.ndarray | None = None

  def __call__(
    self, samples: Samples, index: Any
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns [N] float32 scores, and what is logged, by COMPONENT + name.

    Args:
      samples: [N, L], the samples of a prompt in contiguous rows.
      index: [P] number of each prompt in the data.

    Raises:
      UserError: the verifier raises on every answer, and never judged one.
    """
    numbers = distributed.fetch(index)
    answers = self.answers(samples, numbers)
    group = len(answers) // len(numbers)
    mine = np.ones(len(numbers), bool)
    if self.judged is not None:
      mine = self.judged[numbers]

    def share(prompts: slice) -> Parts:
      """Returns the scores [prompts, group] of whole groups."""
      shape = (prompts.stop - prompts.start, group)
      names = (*self.logged, guard.RAISED)
      scores = np.zeros(shape, np.float32)
      logged = {name: np.full(shape, np.nan, np.float32) for name in names}
      own = np.flatnonzero(mine[prompts])
      rows = (own[:, None] + prompts.start) * group + np.arange(group)
      if rows.size:  # a process may have no share
        found, beside = self.parts(answers.take(rows.reshape(-1).tolist()))
        scores[own] = found.reshape(rows.shape)
        for name in names:
          logged[name][own] = beside[name].reshape(rows.shape)
      return scores, logged

    scores, logged = distributed.by_share(share, len(numbers))
    raised = logged[guard.RAISED][mine]
    if not np.all(raised):
      self.parts.has_judged = True
    elif raised.size and not self.parts.has_judged:
      raise UserError(
        f"the verifier raises on each of the first {raised.size} answers: "
        f"{self.parts.first_error or 'in another process'}"
      )
    return np.asarray(scores, np.float32).reshape(-1), {
      COMPONENT + name: values.reshape(-1) for name, values in logged.items()
    }

  def answers(self, samples: Samples, numbers: np.ndarray) -> Answers:
    """Returns samples [N, L] as a verifier reads them.

    Args:
      samples: those of a prompt in contiguous rows.
      numbers: [P] of the prompts in the data.
    """
    texts = sample_texts(self.tokenizer, samples)
    tokens, response, reason = distributed.fetch(
      (samples.tokens, samples.response_mask, samples.finish_reason)
    )
    rows = np.repeat(numbers, len(texts) // len(numbers))
    return Answers(
      texts=[text for _, text in texts],
      references=[self.references[i] for i in rows],
      prompts=[prompt for prompt, _ in texts],
      records=[dict(self.records[i]) for i in rows],
      token_ids=[
        row[mask > 0].tolist()
        for row, mask in zip(tokens, response, strict=True)
      ],
      has_ended=(reason == FINISH_EOS).tolist(),
    )


def judge_of_some(
  parts: Bound,
  found: Sequence[Any],
  tokenizer: Tokenizer,
  prompts: Sequence[str] | None,
  judged: np.ndarray,
) -> Judge:
  """Returns `judge_of` the prompts that are judged; nothing is asked of others.

  Args:
    parts, found, tokenizer, prompts: see `judge_of`.
    judged: [prompts] bool.

  Raises:
    UserError: as `judge_of`.
  """
  own = np.flatnonzero(judged).tolist()
  said = None if prompts is None else [prompts[i] for i in own]
  inner = judge_of(parts, [found[i] for i in own], tokenizer, said)
  wanted: list[Any] = [None] * len(found)
  records: list[dict[str, Any]] = [{} for _ in found]
  for i, reference, record in zip(
    own, inner.references, inner.records, strict=True
  ):
    wanted[i], records[i] = reference, record
  return dataclasses.replace(
    inner, references=wanted, records=records, judged=judged
  )


def judge_of(
  parts: Bound,
  found: Sequence[Any],
  tokenizer: Tokenizer,
  prompts: Sequence[str] | None = None,
) -> Judge:
  """Returns the judge of answers to prompts, tried on an empty answer to each.

  A verifier that reads nothing of a prompt or its record is tried once.

  Args:
    parts: see Verifier.bound.
    found: the records of the prompts.
    tokenizer: of the model.
    prompts: their texts, as the model reads them; None where parts takes none.

  Raises:
    UserError: a record without what the verifier needs, or with what it
      cannot judge by.
  """
  wanted, records = references(found, parts), fields(found, parts)
  if parts.prepare is not None and len(found):
    try:
      parts.prepare(wanted)
    except rows.BadReference as error:
      rule = str(error).replace(f"references[{error.row}]", "reference", 1)
      raise UserError(f"{found[error.row].where}: {rule}") from error
  logged: tuple[str, ...] = ()
  is_each_alike = not parts.takes & {"references", "records", "prompts"}
  for i, record in enumerate(found[:1] if is_each_alike else found):
    empty = Answers(
      texts=[""],
      references=[wanted[i]],
      prompts=None if prompts is None else [prompts[i]],
      records=[dict(records[i])],
      token_ids=[[tokenizer.eos_id]],
      has_ended=[True],
    )
    try:
      _, beside = parts(empty)
      logged = logged if i else tuple(beside)
      guard.check_logged(beside, logged)
    except ValueError as error:
      rule = str(error).replace("references[0]", "reference", 1)
      raise UserError(f"{record.where}: {rule}") from error
  if guard.RAISED in logged:
    raise UserError(
      f"the verifier logs {guard.RAISED!r}, which counts the answers that it "
      "raises on. Log under another name."
    )
  guarded = guard.Guard(parts, logged)
  return Judge(guarded, wanted, records, tokenizer, logged)


def component_means(scores: dict[str, Any]) -> dict[str, float]:
  """Returns reward/component/NAME: the mean of each part, before its weight.

  Falling of one while others rise is bad: the policy trades it away. Of code
  the shares of answers that ran out of time (timeout; of formulas too) or hold
  no code (no_code): rising is bad. Of answers that the verifier raised on
  (raised), and of code bad_test and lost: any is bad.

  Args:
    scores: name -> [N], of which parts begin with COMPONENT.
  """
  return {
    f"reward/{name}": float(np.mean(distributed.fetch(values)))
    for name, values in scores.items()
    if name.startswith(COMPONENT)
  }


def correct_above(parts: Bound | None) -> float | None:
  """Returns the score above which an answer is right.

  None without a verifier, and for one whose full marks are not known.
  """
  if parts is None or parts.full_marks is None:
    return None
  return parts.full_marks - ROUNDING


def load(
  parts: Bound | None,
  data: Data,
  tokenizer: Tokenizer,
  judged: np.ndarray | None = None,
) -> Judge | None:
  """Returns the judge of answers to these prompts, None without a verifier.

  Args:
    parts: see Verifier.bound.
    data: the section of the prompts.
    tokenizer: of the model.
    judged: [prompts] bool, which of them it judges; None for all.
  """
  if parts is None:
    return None
  found, _ = dataset.records(data, tokenizer)
  prompts = None
  if "prompts" in parts.takes:
    ids, _ = dataset.prompts(data, tokenizer, data.max_length)
    prompts = [tokenizer.decode(row) for row in ids]
  if judged is not None:
    return judge_of_some(parts, found, tokenizer, prompts, judged)
  return judge_of(parts, found, tokenizer, prompts)
