"""Tasks by name: files in a layout, and those that this package makes.

    mmlu:data/mmlu.jsonl, text:books.jsonl, made:sums, lm_eval:arc_easy

each is LAYOUT:PATH; a name of its own may stand before: easy=mmlu:x.jsonl.
made:NAME is of made.py; lm_eval:NAME is a task of lm-eval, which
programs/harness.py runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax import imported
from rlhf_jax.data import sources
from rlhf_jax.evaluation.tasks import made
from rlhf_jax.evaluation.tasks.items import GENERATE, Item, Prompt, Task
from rlhf_jax.evaluation.tasks.layouts import LAYOUTS, Layout
from rlhf_jax.schema import FieldError, UserError, as_field

MADE, HARNESS = "made", "lm_eval"


@dataclasses.dataclass(frozen=True)
class Named:
  """A task that was asked for. kind: a layout, MADE or HARNESS."""

  name: str
  kind: str
  source: str


def named(text: str, field: str = "tasks") -> list[Named]:
  """Returns the tasks that a text with commas between names.

  Args:
    text: see the module.
    field: where it stands, for messages.

  Raises:
    FieldError: no such layout, nothing behind it, or a name twice.
  """
  found: list[Named] = []
  for part in filter(None, (x.strip() for x in text.split(","))):
    name, is_named, rest = part.partition("=")
    rest = rest if is_named else part
    cut = rest.find(":", rest.find(".py:") + 4 if ".py:" in rest else 0)
    kind, source = (rest[:cut], rest[cut + 1 :]) if cut > 0 else (rest, "")
    known = (*LAYOUTS, MADE, HARNESS)
    if not source or (kind not in known and not imported.is_path(kind)):
      raise FieldError(
        f"{field}={part!r}: write LAYOUT:PATH, with one of {', '.join(known)} "
        "or the import path of a Layout before the colon."
        f"{imported.nearest(kind, known)}"
      )
    if not is_named:
      name = source if kind in (MADE, HARNESS) else Path(source).stem
    if any(other.name == name for other in found):
      raise FieldError(
        f"{field}: two tasks are called {name!r}. Give one a name of its own: "
        f"other={rest}."
      )
    found.append(Named(name, kind, source))
  return found


def check(wanted: Sequence[Named], field: str = "tasks") -> None:
  """Checks that the files and layouts of tasks are there.

  Raises:
    FieldError: value, rule and remedy.
  """
  for task in wanted:
    if task.kind == MADE:
      made.check(task.source, field)
    elif task.kind != HARNESS:
      layout_of(task.kind, field)
      sources.check(task.source, field)


def layout_of(kind: str, field: str = "tasks") -> Layout:
  """Returns a layout by its name or its import path.

  Raises:
    FieldError: it is none.
  """
  with as_field():
    return imported.find(
      kind,
      LAYOUTS,
      Layout,
      field,
      "Make one as those of rlhf_jax/evaluation/tasks/layouts.py.",
    )


def load(
  task: Named, *, shots: int = 0, limit: int = 0, section: str = "suite"
) -> Task:
  """Returns a task with its items.

  Args:
    task: a file in a layout, or one that is made.
    shots: worked examples before each item: the last records of the file,
      which are then not asked themselves.
    limit: items at most, the first of them; 0 for all.
    section: where `shots` was set, for messages.

  Raises:
    UserError: a record that does not fit the layout, or too few of them.
  """
  if task.kind == MADE:
    found, layout = made.items(task.source), made.layout(task.source)
    about = made.about(task.source)
  else:
    layout, about = layout_of(task.kind), ""
    records = sources.read_located(task.source)
    found = [layout.parse(record, where) for where, record in records]
  if shots:
    with as_field(f"{section}."):
      found = with_shots(found, shots, layout, task.name)
  return Task(
    name=task.name,
    items=found,
    scorer=layout.scorer
    if any(item.kind == GENERATE for item in found)
    else "",
    settings=layout.settings,
    new_tokens=layout.new_tokens,
    stops=layout.stops,
    about=about,
  ).first(limit)


def with_shots(
  found: Sequence[Item], shots: int, layout: Layout, name: str
) -> list[Item]:
  """Returns items behind worked examples, the last of the list, in order.

  Raises:
    UserError: this layout has none, or there are too few items.
  """
  if layout.said is None:
    raise UserError(
      f"shots={shots}: task {name!r} has no worked examples. Set 0."
    )
  if len(found) <= shots:
    raise UserError(
      f"shots={shots}: task {name!r} has {len(found)} items, and the examples "
      "are taken off them. Set fewer."
    )
  examples = found[-shots:]
  answers = [layout.said(item) for item in examples]
  prompts = [item.prompt for item in examples]
  return [
    dataclasses.replace(item, prompt=_behind(prompts, answers, item.prompt))
    for item in found[:-shots]
  ]


def _behind(
  prompts: Sequence[Prompt], answers: Sequence[str], last: Prompt
) -> Prompt:
  """Returns a prompt with examples before it: text, or turns of a dialogue."""
  if isinstance(last, str):
    pairs = zip(prompts, answers, strict=True)
    return "".join(f"{prompt}{said}\n\n" for prompt, said in pairs) + last
  turns: list = []
  for prompt, said in zip(prompts, answers, strict=True):
    turns += [*prompt, {"role": "assistant", "content": said.strip()}]
  return (*turns, *last)
