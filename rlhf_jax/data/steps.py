"""Answers whose steps were judged -> rows with labels at the ends of steps.

An answer is its steps with the delimiter between them, tokenised as the one
text that a policy would write. Where its steps end is then read off the tokens
by the rule that samples are read by (algorithms/process.py): a record whose
steps are not found again that way, as one has the delimiter inside, is left out
and counted. step_parsers.py has the layouts of records.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from rlhf_jax import ops
from rlhf_jax.data import (
  batches,
  dataset,
  encode,
  layout,
  statistics,
  stops,
)
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.examples import Labelled, Steps
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import FieldError, UserError
from rlhf_jax.types import StepBatch

INSIDE = "the delimiter stands inside of a step, or a step is empty"
PROBE = ("One.", "Two.", "Three.")
LINE = "\n"  # the usual delimiter


@dataclasses.dataclass(frozen=True)
class Judged:
  """Answers with judged steps.

  rows: {"tokens", "loss_mask", "labels"} of each; the mask is 1 on the last
    token of a judged step, where its label stands.
  groups: [N] numbers of their whole prompts.
  dropped: reason -> count.
  """

  rows: list[dict[str, np.ndarray]]
  groups: np.ndarray
  dropped: Counter


def table(delimiter: str, tokenizer: Tokenizer, rows: int) -> np.ndarray:
  """Returns the table by which steps are found, see process.step_ends.

  Args:
    delimiter: between steps.
    tokenizer: of the model.
    rows: of the model's vocabulary.

  Raises:
    UserError: this tokenizer does not write the delimiter so that it is found.
  """
  if not hasattr(tokenizer, "pieces"):
    raise UserError(
      f"delimiter={delimiter!r}: {tokenizer.name} does not say which bytes a "
      "token stands for, so no step would be found. Use a tokenizer with a "
      "tokenizer.json, a SentencePiece model or a GGUF file."
    )
  found = stops.string_table(tokenizer, (delimiter,), rows)
  is_said = np.zeros(rows, bool)
  for i, piece in enumerate(tokenizer.pieces()):
    is_said[i] = bool(piece.replace(delimiter.encode(), b"").strip())
  found = found + 2 * len(found) * is_said
  ids = np.asarray(tokenizer.encode(delimiter.join(PROBE)), np.int32)
  if len(ends(ids, np.ones(len(ids)), found)) != len(PROBE):
    raise UserError(
      f"delimiter={delimiter!r}: {tokenizer.name} writes "
      f"{delimiter.join(PROBE)!r} so that not {len(PROBE)} steps are found in "
      "its tokens. Choose another delimiter, such as '\\n'."
    )
  return found


def ends(ids: np.ndarray, mask: np.ndarray, found: np.ndarray) -> np.ndarray:
  """Returns the places of the last tokens of steps; process.step_ends on one.

  Args:
    ids: [n] tokens.
    mask: [n], 1 on those of the answer.
    found: of `table`.
  """
  states, state, places, is_said = len(found), 0, [], False
  answer = np.flatnonzero(mask)
  for place in answer:
    here = found[state, ids[place]]
    is_said |= here >= 2 * states
    is_end = here % (2 * states) >= states or place == answer[-1]
    state = here % states
    if is_end and is_said:
      places.append(place)
      is_said = False
  return np.asarray(places, np.int64)


def encode_steps(
  example: Steps,
  tokenizer: Tokenizer,
  max_length: int,
  chat: bool = False,
  *,
  end_token: bool,
  delimiter: str,
  found: np.ndarray,
) -> dict:
  """Encodes an answer with judged steps.

  Args:
    example: prompt, steps and labels.
    tokenizer, max_length, chat, end_token: of encode.encode_labelled.
    delimiter: between steps; one at the end of a step is not part of it.
    found: of `table`.

  Returns:
    row (tokens, loss_mask, labels), key, is_cut.

  Raises:
    encode.DroppedExample: it does not fit, or its steps are not found again.
  """
  texts = [text.removesuffix(delimiter) for text in example.steps]
  answer = Labelled(example.where, example.prompt, delimiter.join(texts), 1.0)
  encoded = encode.encode_labelled(
    answer, tokenizer, max_length, chat, end_token=end_token
  )
  row = encoded["answer"]
  places = ends(row["tokens"], row["loss_mask"], found)
  is_empty = not all(text.strip() for text in texts)
  if len(places) != len(texts) or is_empty:
    raise encode.DroppedExample(INSIDE, example.where)
  labels = np.zeros(len(row["tokens"]), np.float32)
  mask = np.zeros(len(row["tokens"]), np.float32)
  for place, label in zip(places, example.labels, strict=True):
    if label is not None:
      labels[place], mask[place] = label, 1.0
  return {
    "row": {"tokens": row["tokens"], "loss_mask": mask, "labels": labels},
    "key": encoded["key"],
    "is_cut": encoded["is_cut"],
  }


def encoder(
  data: Data, tokenizer: Tokenizer, delimiter: str = LINE
) -> Callable[[Steps], dict]:
  """Returns what makes the row of a record, to be looked at.

  Args:
    data: the section.
    tokenizer: of the model.
    delimiter: between steps.
  """
  found = table(delimiter, tokenizer, tokenizer.vocab_size)

  def encode_one(example: Steps) -> dict:
    made = encode_steps(
      example,
      tokenizer,
      data.max_length,
      data.chat,
      end_token=data.end_token,
      delimiter=delimiter,
      found=found,
    )
    return made["row"] | {"is_cut": made["is_cut"]}

  return encode_one


def load(
  data: Data, tokenizer: Tokenizer, delimiter: str, found: np.ndarray
) -> Judged:
  """Returns the answers of a Data section.

  Args:
    data: the section.
    tokenizer: of the model.
    delimiter: between steps.
    found: of `table`.

  Raises:
    DataError: malformed, or nothing is left.
    FieldError: a format without steps.
  """
  examples, dropped = dataset.records(data, tokenizer)
  if not isinstance(examples[0], Steps):
    raise FieldError(
      f"data.format={data.format!r}: holds no judged steps. Use 'steps', "
      "'prm800k' or 'math_shepherd'."
    )
  encoded, lost = encode.encode_all(
    encode_steps,
    examples,
    tokenizer,
    data.max_length,
    data.chat,
    end_token=data.end_token,
    delimiter=delimiter,
    found=found,
  )
  dataset.check_left(encoded, data, dropped + lost)
  numbers: dict[str, int] = {}
  return Judged(
    rows=[e["row"] for e in encoded],
    groups=np.asarray(
      [numbers.setdefault(e["key"], len(numbers)) for e in encoded], np.int32
    ),
    dropped=dropped + lost,
  )


def split(data: Judged, fraction: float, seed: int) -> tuple[Judged, Judged]:
  """Returns (training, held-out) answers, split by prompt.

  Args:
    data: of one source.
    fraction: of its prompts that are held out.
    seed: of the draw.

  Raises:
    FieldError: a fraction that leaves one side empty.
  """
  groups = np.unique(data.groups)
  count = int(round(fraction * len(groups)))
  chosen = np.random.default_rng(seed).permutation(groups)[:count]
  is_held = np.isin(data.groups, chosen)
  if is_held.all() or not is_held.any():
    raise FieldError(
      f"heldout_fraction={fraction} of {len(groups)} prompts leaves "
      f"{np.sum(~is_held)} answers to train on and {np.sum(is_held)} held out: "
      "name a heldout.source or change the fraction."
    )

  def part(keep: np.ndarray) -> Judged:
    numbers = np.flatnonzero(keep)
    return dataclasses.replace(
      data,
      rows=[data.rows[n] for n in numbers],
      groups=data.groups[numbers],
    )

  return part(~is_held), part(is_held)


def collate(
  examples: Sequence[dict[str, np.ndarray]], shape: layout.Shape, pad_id: int
) -> StepBatch:
  """Returns a batch of rows, one answer in each, or as many as shape says.

  Args:
    examples: rows of Judged, packed before or not.
    shape: of layout.choose.
    pad_id: fills tokens.
  """
  rows = list(examples)
  if shape.counts:
    capacity = np.asarray([shape.length, shape.targets])
    bins = ops.first_fit(statistics.sizes_of(rows), capacity)
    count = next(n for n in shape.counts if n >= len(bins))
    rows = [layout.join([examples[n] for n in members]) for members in bins]
    empty = {key: value[:0] for key, value in rows[0].items()}
    rows += [empty] * (count - len(rows))
  found = batches.collate_tokens(rows, shape.length, pad_id)
  labels = np.zeros(found.tokens.shape, np.float32)
  for line, row in zip(labels, rows, strict=True):
    line[: len(row["labels"])] = row["labels"]
  return StepBatch(
    tokens=found.tokens,
    valid_mask=found.valid_mask,
    step_mask=found.loss_mask,
    labels=labels,
    segment_ids=found.segment_ids,
    positions=found.positions,
  )
