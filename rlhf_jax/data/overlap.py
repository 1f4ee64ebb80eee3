"""What training and held-out records have in common: counted and said.

Held-out numbers mean something only for prompts that were not trained on.
Records ask the same when their whole prompts are equal but for white space
(formats.prompt_key), whatever a row has room for; a dialogue asks at each of
its turns that is answered. They nearly do where most pieces of their prompts
are the same (near.py). Nothing is taken out here: a person decides, and is told
how many and where; config.data.duplicates and .exclude take it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_jax.data import dataset, formats, near, reading, streamed
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.tokenizers import Tokenizer


def repeated(found: Sequence[Any]) -> list[tuple[str, str]]:
  """Returns (place, earlier place) of records that say what one before says."""
  seen: dict[str, Any] = {}
  pairs = []
  for record in found:
    first = seen.setdefault(formats.record_key(record), record)
    if first is not record:
      pairs.append((record.where, first.where))
  return pairs


def shared(train: Sequence[Any], held: Sequence[Any]) -> list[tuple[str, str]]:
  """Returns (held-out place, training place) of records that ask the same."""
  places: dict[str, str] = {}
  for record in train:
    for key in formats.answered_keys(record):
      places.setdefault(key, record.where)
  pairs = []
  for record in held:
    keys = [key for key in formats.answered_keys(record) if key in places]
    if keys:
      pairs.append((record.where, places[keys[0]]))
  return pairs


def nearly_repeated(
  found: Sequence[Any], least: float
) -> list[tuple[str, str]]:
  """Returns pairs as `repeated` of records that nearly say the same.

  Args:
    found: from dataset.records.
    least: near.py's J of the prompts, and of the answers, at least.
  """
  seen: set[str] = set()
  indices = near.indices(least)
  pairs = []
  for record in found:
    key = formats.record_key(record)
    if key in seen:
      continue
    seen.add(key)
    index = indices[formats.annotator_of(record)]
    other = index.find(formats.record_texts(record), record.where)
    if other is not None:
      pairs.append((record.where, other))
  return pairs


def nearly_shared(
  train: Sequence[Any], held: Sequence[Any], least: float
) -> list[tuple[str, str]]:
  """Returns pairs as `shared` of records that nearly ask the same.

  Those that ask exactly the same are left out.
  """
  index = near.Index(least)
  exact = {where for where, _ in shared(train, held)}
  for record in {id(record): record for record in train}.values():
    for text in formats.answered_texts(record):
      index.find((text,), record.where)
  pairs = []
  for record in held:
    if record.where in exact:
      continue
    texts = formats.answered_texts(record)
    others = [other for text in texts if (other := index.find((text,)))]
    if others:
      pairs.append((record.where, others[0]))
  return pairs


def _told(text: str, pairs: list[tuple[str, str]]) -> list[str]:
  """Returns a line with the number of pairs and the first; none without."""
  if not pairs:
    return []
  where, other = pairs[0]
  return [f"{len(pairs)} {text}, {where} that of {other}"]


def _say(name: str, lines: list[str]) -> None:
  for line in lines:
    print(f"{name}: WARNING: {line}")


def repeated_lines(data: Data, found: Sequence[Any]) -> list[str]:
  """Returns lines of how many records of a source repeat an earlier one.

  Args:
    data: the section that they are read from.
    found: from dataset.records.
  """
  text = f"of {len(found)} records of {data.source}"
  lines = _told(f"{text} repeat an earlier one", repeated(found))
  if data.near:
    reading.announce(len(found))
    nearly = nearly_repeated(found, data.near)
    lines += _told(f"{text} nearly repeat an earlier one", nearly)
  return lines


def say_repeated(name: str, data: Data, found: Sequence[Any]) -> None:
  """Prints how many records of a source repeat an earlier one.

  Args:
    name: of the stage.
    data: the section that they are read from.
    found: from dataset.records.
  """
  _say(name, repeated_lines(data, found))


def say(name: str, data: Data, heldout: Data, tokenizer: Tokenizer) -> None:
  """Prints what two sections share, and what repeats within each of them.

  Args:
    name: of the stage.
    data: trained on.
    heldout: held out; a section without a source is no held-out data, and then
      only what repeats in `data` is said.
    tokenizer: of the model, for filters by tokens.
  """
  if "disk" in (data.store, heldout.store):
    _say_by_keys(name, data, heldout, tokenizer)
    return
  train, _ = dataset.records(data, tokenizer)
  say_repeated(name, data, train)
  if not heldout.source:
    return
  held, _ = dataset.records(heldout, tokenizer)
  if heldout.source != data.source:
    say_repeated(name, heldout, held)
  say_shared(name, data, heldout, tokenizer)


def say_shared(
  name: str, data: Data, heldout: Data, tokenizer: Tokenizer
) -> None:
  """Prints how many held-out records ask what a section is trained on."""
  if "disk" in (data.store, heldout.store):
    _say_shared_keys(name, data, heldout, tokenizer)
    return
  train, _ = dataset.records(data, tokenizer)
  held, _ = dataset.records(heldout, tokenizer)
  before, what = _sharing(data, heldout, len(held))
  _say(name, _told(f"{before} {what}", shared(train, held)))
  if data.near:
    reading.announce(len(train) + len(held))
    nearly = nearly_shared(train, held, data.near)
    _say(name, _told(f"{before} nearly {what}", nearly))


def _sharing(data: Data, heldout: Data, count: int) -> tuple[str, str]:
  """Returns what is said of held-out records before and after "nearly"."""
  return (
    f"of {count} held-out records of {heldout.source}",
    f"ask what is trained on in {data.source}, so their numbers are not held "
    "out",
  )


def _keys(data: Data, tokenizer: Tokenizer) -> streamed.Keys:
  """Returns the keys of the records of a section, wherever its rows are."""
  if data.store == "disk":
    return streamed.load(data, tokenizer, dataset.encoder).keys
  return streamed.keys_of(dataset.records(data, tokenizer)[0])


def _say_by_keys(
  name: str, data: Data, heldout: Data, tokenizer: Tokenizer
) -> None:
  """Prints what `say` does, of data beyond memory: counts without places."""
  is_other = heldout.source not in ("", data.source)
  for section in (data, heldout) if is_other else (data,):
    keys = _keys(section, tokenizer)
    if count := streamed.repeats(keys):
      text = f"{count} of {len(keys.said)} records of {section.source}"
      _say(name, [f"{text} repeat an earlier one"])
  if heldout.source:
    _say_shared_keys(name, data, heldout, tokenizer)


def _say_shared_keys(
  name: str, data: Data, heldout: Data, tokenizer: Tokenizer
) -> None:
  train, held = (_keys(section, tokenizer) for section in (data, heldout))
  if count := streamed.shared(train, held):
    before, what = _sharing(data, heldout, len(held.said))
    _say(name, [f"{count} {before} {what}"])
