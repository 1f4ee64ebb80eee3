"""What a Data section becomes: counts, lengths, what is left out, examples.

All is taken from the functions that make a run's rows, so that what is shown
is what is trained on. Only what a run would print or stop at is judged here; a
mask that looks wrong is named with its place.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rlhf_jax import terminal
from rlhf_jax.data import (
  dataset,
  encode,
  formats,
  overlap,
  rankings,
  reading,
  shown,
  sources,
  steps,
  stops,
)
from rlhf_jax.data import records as records_lib
from rlhf_jax.data.columns import Columns
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.examples import Steps
from rlhf_jax.data.sources import DataError
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.data.unread import COMPARISONS, DEMONSTRATIONS, PROMPTS

MOST = 10_000  # records of data beyond memory that are looked at
FIRST = f"reading of the first records alone (limit, else {MOST}): store='disk'"
REST = "in other parts of the split, or behind limit"
PLACES = 3  # of what is left out, that are named
BARS = 10  # of a histogram
WIDE = 40  # characters of its longest bar
_NAMES = ("answer", "chosen", "rejected")  # of the rows of a judged record


@dataclasses.dataclass(frozen=True)
class Item:
  """A record that was kept.

  where: its place.
  rows: name -> (tokens [n], mask [n]) of each of its rows.
  notes: what was cut.
  """

  where: str
  rows: dict[str, tuple[np.ndarray, np.ndarray]]
  notes: tuple[str, ...] = ()


@dataclasses.dataclass
class Look:
  """A source, looked at.

  data, use: the section, and one of unread.py's names.
  read: records of the source, before anything is left out.
  records, items: what is kept, as read and as rows.
  left_out: why -> places; None for one that is not known.
  cut: what was cut, or noticed -> places.
  room: tokens of a prompt at most; 0 where that is not asked.
  """

  data: Data
  use: str
  read: int = 0
  records: list[Any] = dataclasses.field(default_factory=list)
  items: list[Item] = dataclasses.field(default_factory=list)
  left_out: dict[str, list] = dataclasses.field(
    default_factory=lambda: defaultdict(list)
  )
  cut: dict[str, list] = dataclasses.field(
    default_factory=lambda: defaultdict(list)
  )
  room: int = 0


def use_of(records: Sequence[Any], data: Data, is_sampled: bool) -> str:
  """Returns what the records of a section are used for.

  Args:
    records: at least one.
    data: the section.
    is_sampled: whether its records are answered by a policy.
  """
  if is_sampled or isinstance(records[0], formats.Prompt):
    return PROMPTS
  if isinstance(records[0], formats.RatedText):
    return COMPARISONS if data.pairs else DEMONSTRATIONS
  compared = formats.Comparison | formats.Ranking | formats.Labelled
  is_compared = isinstance(records[0], compared)
  return COMPARISONS if is_compared else DEMONSTRATIONS


def _rows(row: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns name -> (tokens, mask) of what an encoder made."""
  if "tokens" in row:
    return {"": (row["tokens"], row["loss_mask"])}
  if "answers" in row:
    return dict(_ranked(row))
  return {
    name: (row[name]["tokens"], row[name]["loss_mask"])
    for name in _NAMES
    if name in row
  }


def _ranked(row: dict) -> Iterator[tuple[str, tuple]]:
  """Yields (label, (tokens, mask)) of the answers of a ranking, best first."""
  for n in np.argsort(row["ranks"], kind="stable"):
    rank, target = row["ranks"][n], row["targets"][n]
    said = "not ranked" if np.isnan(rank) else f"rank {int(rank)}"
    if not np.isnan(target):
      said += f", score {target:g}"
    answer = row["answers"][n]
    yield f"answer {n}, {said}", (answer["tokens"], answer["loss_mask"])


def _first(data: Data) -> tuple[list, list]:
  """Returns the first records of data beyond memory, and what was refused.

  What repeats or is excluded stays in: that is counted where all is read.
  """
  parts = sources.parts(data.source)
  pairs = zip(parts, data.formats(), strict=True)
  names = Columns(data.columns)
  all_of_them = itertools.chain.from_iterable(
    formats.each(part, format, names) for part, format in pairs
  )
  found: list = []
  refused: list = []
  for record in itertools.islice(all_of_them, data.limit or MOST):
    is_refused = isinstance(record, records_lib.RefusedExample)
    (refused if is_refused else found).append(record)
  if not found:
    raise DataError(f"{data.source}: every record was refused. {refused[0]}")
  return found, refused


def take(
  data: Data, tokenizer: Tokenizer, *, is_sampled: bool = False, room: int = 0
) -> Look:
  """Returns what a section becomes.

  Args:
    data: the section.
    tokenizer: of the model.
    is_sampled: whether its records are answered by a policy.
    room: tokens of a prompt at most; 0 for max_length.

  Raises:
    DataError, FieldError: as a run would.
  """
  if data.store == "disk":
    found, refused = _first(data)
    dropped, left_out, parts = Counter({FIRST: 1}), (), (found,)
  else:
    found, dropped = dataset.records(data, tokenizer)
    parts, refused, left_out = reading.read(data)
  look = Look(data, use_of(found, data, is_sampled), room=room)
  look.records = found
  for error in refused:
    look.left_out[error.reason].append(str(error).partition(": ")[0])
  for reason, place in left_out:
    look.left_out[reason].append(place)
  for reason, count in dropped.items():
    if reason == FIRST or dataset.is_note(reason):
      look.cut[reason] += [None] * count
    elif reason not in look.left_out:
      look.left_out[reason] += [None] * count
  look.read = sum(map(len, (*parts, refused, left_out)))
  rest = look.read - len(found) - sum(map(len, look.left_out.values()))
  if rest > 0 and not (data.weights or data.repeats):
    look.left_out[REST] += [None] * rest
  if look.use == PROMPTS:
    for record in found:
      ids = dataset.prompt_ids(record, data, tokenizer)
      row = (np.asarray(ids, np.int32), np.zeros(len(ids), np.float32))
      look.items.append(Item(record.where, {"": row}))
    return look
  if isinstance(found[0], Steps):
    encoder = steps.encoder(data, tokenizer)
  else:
    encoder = dataset.encoder(found, data, tokenizer)
  for record, row, reasons in encode.each(encoder, found):
    notes = look.cut if row is not None else look.left_out
    for reason in reasons:
      notes[reason].append(record.where)
    if row is not None:
      look.items.append(Item(record.where, _rows(row), reasons))
  return look


def suspicions(look: Look, tokenizer: Tokenizer) -> Iterator[str]:
  """Yields what looks wrong with the masks, each with a place."""
  found: dict[str, list[str]] = defaultdict(list)
  ends = stops.end_ids(tokenizer)
  begin = tokenizer.bos_id
  for item in look.items:
    for tokens, mask in item.rows.values():
      if begin is not None and list(tokens[:2]) == [begin, begin]:
        found["begin with two begin tokens"].append(item.where)
      if look.use == PROMPTS:
        if len(tokens) > look.room > 0:
          found[
            f"are longer than the {look.room} tokens that are left beside an "
            "answer, so a run is refused"
          ].append(item.where)
        continue
      if not np.any(mask > 0):
        found["learn nothing: no token of them is learned"].append(item.where)
      elif look.data.end_token and not (tokens[-1] in ends and mask[-1]):
        found["end without a learned end token: answers may not stop"].append(
          item.where
        )
  for what, places in found.items():
    yield f"{len(places)} rows {what} ({_listed(places)})"


def _listed(places: Sequence[str | None]) -> str:
  known = [place for place in places if place is not None]
  more = ", ..." if len(known) > PLACES else ""
  return ", ".join(known[:PLACES]) + more


def _counted(found: dict[str, list], mark: str) -> Iterator[str]:
  for reason, places in sorted(found.items(), key=lambda pair: -len(pair[1])):
    where = _listed(places)
    yield f"  {mark} {len(places)} {reason}" + (f" ({where})" if where else "")


def counts(look: Look) -> Iterator[str]:
  """Yields lines of how many records there are, and what became of them."""
  data = look.data
  yield (
    f"{data.source}, format {data.format!r}, for {look.use}: {look.read} "
    f"records, {len(look.items)} kept"
  )
  judged = Counter(
    name
    for record in look.records
    if isinstance(record, formats.Comparison | formats.Ranking)
    for name in rankings.carried(record)
  )
  if judged:
    listed = ", ".join(f"{name} {n}" for name, n in sorted(judged.items()))
    yield f"  judgements beside the answers: {listed}"
  yield from _counted(look.left_out, "left out:")
  yield from _counted(look.cut, "noticed:")


def _lengths(look: Look) -> dict[str, np.ndarray]:
  """Returns name -> tokens of each row, of its context and what is learned."""
  rows = [row for item in look.items for row in item.rows.values()]
  if look.use == PROMPTS:
    return {"prompt": np.asarray([len(tokens) for tokens, _ in rows])}
  found = {
    "row": np.asarray([len(tokens) for tokens, _ in rows]),
    "context": np.asarray([np.sum(mask == 0) for _, mask in rows]),
    "learned": np.asarray([np.sum(mask > 0) for _, mask in rows]),
  }
  if "rejected" in look.items[0].rows:
    for name in ("chosen", "rejected"):
      found[name] = np.asarray(
        [np.sum(item.rows[name][1] > 0) for item in look.items]
      )
  return found


def lengths(look: Look) -> Iterator[str]:
  """Yields lines of how long rows are, in tokens."""
  found = _lengths(look)
  marks = (0, 10, 50, 90, 100)
  table = [
    [name, *(int(np.percentile(sizes, mark)) for mark in marks)]
    + [int(sizes.sum())]
    for name, sizes in found.items()
  ]
  headers = ["tokens", "least", "10 %", "median", "90 %", "most", "in all"]
  for line in terminal.format_table(headers, table).split("\n"):
    yield f"  {line}"
  name, sizes = next(iter(found.items()))
  yield f"  {name}s by length; max_length={look.data.max_length}:"
  least = int(sizes.min())
  width = -(-(int(sizes.max()) + 1 - least) // BARS)
  bars = np.bincount((sizes - least) // width)
  for first, count in zip(itertools.count(least, width), bars, strict=False):
    bar = "█" * -(-WIDE * int(count) // int(bars.max()))
    yield f"  {first:6d} to {first + width - 1:<6d} {bar} {count}"


def repeats(look: Look) -> Iterator[str]:
  """Yields lines where records repeat another one, exactly or nearly."""
  yield from overlap.repeated_lines(look.data, look.records)


def chosen(look: Look, count: int) -> list[Item]:
  """Returns so many records to look at, evenly spaced, and one that was cut."""
  size = len(look.items)
  places = np.unique(np.linspace(0, size - 1, min(count, size)).astype(int))
  found = [look.items[i] for i in places]
  cut = next((item for item in look.items if item.notes), None)
  if count and cut is not None and cut not in found:
    found.append(cut)
  return found


def examples(
  look: Look,
  tokenizer: Tokenizer,
  count: int,
  *,
  has_colours: bool = False,
  is_whole: bool = False,
) -> Iterator[str]:
  """Yields records as they are trained on; see shown.py for the marks."""
  for item in chosen(look, count):
    for name, (tokens, mask) in item.rows.items():
      label = f"{item.where}{f', {name}' if name else ''}: "
      label += f"{len(tokens)} tokens"
      if look.use != PROMPTS:
        label += f", {int(np.sum(mask > 0))} learned"
      if item.notes:
        label += f"; {', '.join(item.notes)}"
      yield f"--- {label}"
      text = shown.render(
        tokens,
        mask,
        tokenizer,
        name=name,
        has_colours=has_colours,
        is_whole=is_whole,
      )
      yield text + ("|<- the answer" if look.use == PROMPTS else "")
