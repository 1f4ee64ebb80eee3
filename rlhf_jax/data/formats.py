"""Records -> examples: demonstrations, comparisons, prompts, ratings.

FORMATS names every accepted layout of a record, and the import path of a
parser is as good as a name (`find`). A record of the wrong shape (a field
missing, or of the wrong type) stops the reading; a record of the right shape
that teaches nothing (an empty answer, a pair whose prompts differ) is refused
with a reason: `load` raises and counts all of them, `load_and_refuse`
leaves them out and returns them, too. Nothing disappears silently.
"""

from __future__ import annotations

import functools
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from rlhf_jax import imported
from rlhf_jax.data import (
  benchmark_parsers,
  columns,
  parsers,
  public_rankings,
  ranking_parsers,
  records,
  sources,
  step_parsers,
  transcripts,
)
from rlhf_jax.data.examples import (
  Comparison,
  Demonstration,
  Example,
  Labelled,
  Prompt,
  Ranking,
  RatedText,
)
from rlhf_jax.data.sources import DataError

Dropped = Counter  # reason -> number of examples left out
PARSED = ("record", "where")  # what a parser is given


def prompt_messages(
  example: Demonstration | Comparison | Ranking | Labelled | Prompt,
):
  """Returns the dialogue to answer; a text prompt is one user message.

  Of a demonstration that is all but a last answer.
  """
  if isinstance(example, Demonstration) and example.messages is not None:
    is_answered = example.messages[-1]["role"] == "assistant"
    return example.messages[:-1] if is_answered else example.messages
  if isinstance(example.prompt, str):
    return [{"role": "user", "content": example.prompt}]
  return example.prompt


def prompt_text(
  example: Demonstration | Comparison | Ranking | Labelled | Prompt,
) -> str:
  """Returns the prompt as plain text; a dialogue becomes an HH transcript.

  That is "\\n\\nHuman: ...\\n\\nAssistant:", so an answer to it starts with a
  space: see response_text.
  """
  messages = getattr(example, "messages", None)
  if messages is None and isinstance(example.prompt, str):
    return example.prompt
  return transcripts.write(prompt_messages(example))


def _plain(text: str) -> str:
  """Returns a text in one spelling: composed characters, single spaces."""
  return " ".join(unicodedata.normalize("NFC", text).split())


def prompt_key(example: Example) -> str:
  """Returns what two records have in common that ask the same.

  It is of the whole prompt, however much of it fits into a row; a text prompt
  is one user message. Of a rated text it is the text.
  """
  if isinstance(example, RatedText):
    return _plain(example.text)
  if isinstance(example, Ranking) and not example.prompt:
    return example.where  # dialogues that have nothing in common
  return _key_of_messages(prompt_messages(example))


def _key_of_messages(messages: Sequence[dict]) -> str:
  return json.dumps([[m["role"], _plain(str(m["content"]))] for m in messages])


def answered_keys(example: Example) -> list[str]:
  """Returns prompt_key of everything that an example answers.

  A dialogue of several turns answers each of them.
  """
  messages = getattr(example, "messages", None)
  if messages is None:
    return [prompt_key(example)]
  return [
    _key_of_messages(messages[:n])
    for n, message in enumerate(messages)
    if message["role"] == "assistant"
  ]


def _content(messages: Sequence[dict]) -> str:
  return "\n".join(str(message["content"]) for message in messages)


def asked_text(example: Example) -> str:
  """Returns the prompt of a record as text, of a rated text the text."""
  if isinstance(example, RatedText):
    return example.text
  return _content(prompt_messages(example))


def answered_texts(example: Example) -> list[str]:
  """Returns what an example answers as texts; see `answered_keys`."""
  messages = getattr(example, "messages", None)
  if messages is None:
    return [asked_text(example)]
  return [
    _content(messages[:n])
    for n, message in enumerate(messages)
    if message["role"] == "assistant"
  ]


def record_texts(example: Example) -> tuple[str, ...]:
  """Returns (prompt, answers) of a record as texts, to be compared."""
  messages = getattr(example, "messages", None)
  if messages is not None:
    return asked_text(example), str(messages[-1]["content"])
  return asked_text(example), "\n".join(_answers(example))


def _answers(example: Example) -> tuple[str, ...]:
  """Returns the answers of a record that is no dialogue."""
  if isinstance(example, Ranking):
    texts = [x if isinstance(x, str) else _content(x) for x in example.answers]
    return tuple(texts)
  names = ("response", "chosen", "rejected")
  return tuple(getattr(example, name, "") for name in names)


def record_key(example: Example) -> str:
  """Returns what two records have in common that say the same."""
  key = prompt_key(example)
  if isinstance(example, Demonstration) and example.messages is not None:
    return key + json.dumps(
      [_plain(str(m["content"])) for m in example.messages]
    )
  texts = [key, *map(_plain, _answers(example))]
  if annotator := annotator_of(example):  # another one's judgement is another
    texts.append(annotator)
  return json.dumps(texts)


def annotator_of(example: Example) -> str:
  """Returns who judged the answers of a record, "" where it does not say."""
  if not isinstance(example, Comparison | Ranking):
    return ""
  return str(example.fields.get("annotator") or "")


def response_text(
  example: Comparison | Ranking | Labelled, response: str
) -> str:
  """Returns a response as it follows prompt_text."""
  return response if isinstance(example.prompt, str) else f" {response}"


FORMATS: dict[str, Callable[[dict, str], Example]] = {
  "hh": parsers.parse_hh,
  "comparison": parsers.parse_comparison,
  "ranking": ranking_parsers.parse_ranking,
  "nectar": public_rankings.parse_nectar,
  "ultrafeedback": public_rankings.parse_ultrafeedback,
  "helpsteer": public_rankings.parse_helpsteer,
  "helpsteer2_preference": public_rankings.parse_helpsteer2,
  "helpsteer3": public_rankings.parse_helpsteer3,
  "best_of": public_rankings.parse_best_of,
  "summaries": public_rankings.parse_summaries,
  "labelled": parsers.parse_labelled,
  "demonstration": parsers.parse_demonstration,
  "messages": parsers.parse_messages,
  "prompt": parsers.parse_prompt,
  "ratings": parsers.parse_ratings,
  "gsm8k": parsers.parse_gsm8k,
  "steps": step_parsers.parse_steps,
  "prm800k": step_parsers.parse_prm800k,
  "math_shepherd": step_parsers.parse_math_shepherd,
  "rated_dialogue": parsers.parse_rated_dialogue,
  "rewardbench": benchmark_parsers.parse_rewardbench,
  "llmbar": benchmark_parsers.parse_llmbar,
  "judgebench": benchmark_parsers.parse_judgebench,
}

RANKED = (
  *("ranking", "nectar", "ultrafeedback", "helpsteer", "helpsteer3"),
  *("helpsteer2_preference", "best_of", "summaries"),
  *("rewardbench", "llmbar", "judgebench"),
)  # formats of rankings
_JOINED = {  # of several records
  "helpsteer": public_rankings.joined,
  "ranking": ranking_parsers.settled,
}


def guess(record: dict, where: str) -> str:
  """Returns the name of the format that a record has.

  Raises:
    DataError: it fits none.
  """
  name = records.fitting(record)
  if name:
    return name
  raise DataError(
    f"{where}: fits no format; the record has {sorted(record)}. Name them "
    "prompt and response, or messages (demonstrations), prompt, chosen and "
    "rejected (comparisons) or prompt (prompts), in the file or by columns="
    "prompt=question,response=answer; or give as format one of `python -m "
    "rlhf_jax.catalogue formats`, or a parser of your own (docs/extending.md, "
    '"A data format").'
  )


def find(name: str, field: str = "format") -> Callable[[dict, str], Example]:
  """Returns parse(record, where) of a format.

  Args:
    name: a key of FORMATS, or the import path (my_file.py:parse) of a function
      of record, a dict, and where, "FILE:LINE", that returns an example. It
      refuses a record that teaches nothing with records.RefusedExample.
    field: what gave the name, for messages.

  Raises:
    DataError: unknown, or a function that cannot be called so.
  """
  if not imported.is_path(name):
    if name not in FORMATS:
      raise DataError(
        f"{field}={name!r} is unknown. Choose one of {', '.join(FORMATS)}, or "
        "give the import path of a parser (my_file.py:parse)."
      )
    return FORMATS[name]
  try:
    parse = imported.load(name, field)
    imported.check_call(parse, PARSED, PARSED, field, name)
  except ValueError as error:
    raise DataError(str(error)) from error
  return functools.partial(_parse, parse, f"{field}={name!r}")


def _parse(parse: Callable, label: str, record: dict, where: str) -> Example:
  """Returns the example of a parser from elsewhere, or says what it did."""
  try:
    example = parse(record=dict(record), where=where)
  except DataError:
    raise
  except Exception as error:
    raise DataError(
      f"{where}: {label} raised {type(error).__name__}: {error} "
      f"({imported.line_of(error, parse)}); the record has {sorted(record)}. "
      "Correct the record or the parser."
    ) from error
  if not isinstance(example, Example):
    raise DataError(
      f"{where}: {label} returned a {type(example).__name__}. Return one of "
      f"{', '.join(kind.__name__ for kind in get_args(Example))} "
      "(rlhf_jax/data/examples.py)."
    )
  return example


def _parse_all(
  source: str | Path, format: str, names: columns.Columns | None = None
) -> tuple[list[Example], list[records.RefusedExample]]:
  return divided(each(source, format, names))


def divided(
  examples: Iterable[Example | records.RefusedExample],
) -> tuple[list[Example], list[records.RefusedExample]]:
  """Returns what is usable of `each`, and what was refused."""
  kept, refused = [], []
  for found in examples:
    is_refused = isinstance(found, records.RefusedExample)
    (refused if is_refused else kept).append(found)
  return kept, refused


def each(
  source: str | Path, format: str, names: columns.Columns | None = None
) -> Iterator[Example | records.RefusedExample]:
  """Yields the examples of a source, and records that teach nothing as errors.

  Args:
    source: see rlhf_jax/data/sources.py.
    format: see `find`.
    names: of columns that are called otherwise.
  """
  found = parsed(sources.each(source), format, source, names)
  yield from _JOINED[format](found) if format in _JOINED else found


def parsed(
  located: Iterable[tuple[str, dict]],
  format: str,
  source: str | Path,
  names: columns.Columns | None = None,
) -> Iterator[Example | records.RefusedExample]:
  """Yields what `each` does, of records that were read, one at a time.

  Args:
    located: (where, record) of each.
    format: see `find`.
    source: for messages.
    names: of columns that are called otherwise.
  """
  parse = find(format)
  names = columns.Columns() if names is None else names
  beside: Counter = Counter()
  for where, read in located:
    record = names.rename(read, where) if names else read
    try:
      example = parse(record, where)
    except records.RefusedExample as error:
      yield error
      continue
    except DataError as error:
      raise DataError(f"{error}{names.hint()}") from error
    kinds = (Demonstration, Prompt, Comparison, Ranking)
    if isinstance(example, kinds) and not example.fields:
      example = replace(example, fields=record)
    if not isinstance(example, (Demonstration, Prompt, Ranking)):
      beside.update(records.judgements_beside(record, format))
    yield example
  for name, count in sorted(beside.items()):
    print(
      f"{source}: {count} records have a field {name!r}, which nothing reads "
      f"with format={format!r}"
    )


def load_and_refuse(
  source: str | Path, format: str, names: columns.Columns | None = None
) -> tuple[list[Example], list[records.RefusedExample]]:
  """Returns the usable examples of a source, and what was refused of it.

  Args:
    source: see rlhf_jax/data/sources.py.
    format: see `find`.
    names: of columns that are called otherwise.

  Raises:
    DataError: malformed data, an unknown format, or nothing usable at all.
  """
  kept, refused = _parse_all(source, format, names)
  if not kept:
    raise DataError(f"{source}: every record was refused. {refused[0]}")
  return kept, refused


def load(source: str | Path, format: str) -> list[Example]:
  """Returns every example of a source, and refuses one that has a bad record.

  Args:
    source: see rlhf_jax/data/sources.py.
    format: see `find`.

  Raises:
    DataError: names file, line, field and what was found; and how many
      records were refused for which reason.
  """
  kept, refused = _parse_all(source, format)
  if refused:
    counts = dict(Counter(error.reason for error in refused))
    raise DataError(
      f"{refused[0]} ({len(refused)} of {len(kept) + len(refused)} records "
      f"refused: {counts})"
    )
  return kept
