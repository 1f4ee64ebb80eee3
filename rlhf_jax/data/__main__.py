"""Show what a source of data becomes: counts, lengths, masks.

    python -m rlhf_jax.data demos.jsonl
    python -m rlhf_jax.data pairs.jsonl --model=FOLDER --max-length=1024
    python -m rlhf_jax.data --config=configs/sft.py --config.data.source=x.jsonl

The last one shows every Data section of an experiment with its own settings:
what its run trains on. Without --config the format is that of the first
record, and prompts are put into the chat template unless --plain.

Exit codes: 0 done, 2 a mistake (one line says which value, which rule and what
to do), or data that a run would refuse.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_jax import command, output
from rlhf_jax.schema import UserError, check_least

MODEL = "asset:smollm2-135m-instruct"  # as in configs/
COUNT = 3
OPTIONS = {
  "examples": (str(COUNT), "Records that are shown of each section."),
  "whole": (False, "Show long texts whole."),
}


@dataclasses.dataclass(frozen=True)
class Display:
  """How records are shown.

  examples: records of each section.
  is_whole: long texts are not shortened.
  has_colours: for a terminal that has some.
  """

  examples: int = COUNT
  is_whole: bool = False
  has_colours: bool = False

  def __post_init__(self) -> None:
    check_least(self, examples=0)


def parser() -> argparse.ArgumentParser:
  """Returns what reads the command line of a source."""
  found = argparse.ArgumentParser(
    prog="python -m rlhf_jax.data",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = found.add_argument
  add("source", metavar="SOURCE", help="as config.data.source; docs/data.md")
  add("--format", default="", help="of a record; that of the first one")
  add("--columns", default="", help="called otherwise; prompt=question,...")
  add("--objective", default="", help="by which rankings are ordered")
  add("--model", default=MODEL, help=f"whose tokenizer; {MODEL}")
  add("--tokenizer", default="", help="file or folder; the model's own")
  add("--chat-template", default="", help="a Jinja file; its own")
  add("--plain", action="store_true", help="no chat template")
  add("--max-length", type=int, default=512, help="tokens of a row; 512")
  add("--examples", type=int, default=COUNT, help=f"records shown; {COUNT}")
  add("--whole", action="store_true", help="show long texts whole")
  add("--prepare", default="", help="write pairs as TFDS data set NAME@FOLDER")
  add("--heldout", default="", help="its split heldout; a source")
  return found


def _colours() -> bool:
  """Says whether standard output wants colours (no-color.org)."""
  environment = os.environ
  is_dumb = environment.get("NO_COLOR") or environment.get("TERM") == "dumb"
  return sys.stdout.isatty() and not is_dumb


def _tokenizer(model: Any) -> Any:
  """Returns the tokenizer of a Model section, without its weights."""
  from rlhf_jax.models import model_sources, pretrained

  place = model_sources.locate(model.source, needs_weights=False)
  return pretrained.read_tokenizer(model, place)


def show(
  name: str,
  data: Any,
  tokenizer: Any,
  display: Display,
  *,
  is_sampled: bool = False,
  room: int = 0,
) -> None:
  """Prints what a section becomes.

  Args:
    name: of the section.
    data: the section.
    tokenizer: of the model.
    display: how.
    is_sampled: whether its records are answered by a policy.
    room: tokens of a prompt at most; 0 where that is not asked.
  """
  from rlhf_jax.data import look as look_lib
  from rlhf_jax.data import shown

  look = look_lib.take(data, tokenizer, is_sampled=is_sampled, room=room)
  print(f"\n[{name}]")
  for line in look_lib.counts(look):
    print(line)
  for line in look_lib.repeats(look):
    print(f"  WARNING: {line}")
  if not look.items:
    return
  for line in look_lib.suspicions(look, tokenizer):
    print(f"  WARNING: {line}")
  for line in look_lib.lengths(look):
    print(line)
  if display.examples:
    print(f"  marks: {shown.legend(display.has_colours)}")
  for line in look_lib.examples(
    look,
    tokenizer,
    display.examples,
    has_colours=display.has_colours,
    is_whole=display.is_whole,
  ):
    print(line)


def show_source(options: argparse.Namespace) -> None:
  """Prints what a source becomes by itself.

  Raises:
    UserError: value, rule and remedy.
  """
  from rlhf_jax.data import formats, records, section, sources
  from rlhf_jax.data.columns import Columns
  from rlhf_jax.models.pretrained import Model

  if options.examples < 0:
    raise UserError(
      f"--examples={options.examples}: must be a whole number >= 0. Write "
      "--examples=3."
    )
  display = Display(options.examples, options.whole, _colours())
  usual = section.Data(
    source=options.source,
    max_length=options.max_length,
    chat=not options.plain,
    objective=options.objective,
    columns=options.columns,
  )
  name = options.format
  if not name and not options.source.startswith("asset:"):
    where, read = sources.first(options.source)
    record = Columns(options.columns).rename(read, where)
    name = formats.guess(record, where)
    if unpaired := records.unpaired(record):
      has, lacks = unpaired
      print(
        f"WARNING: {where} has a field {has!r} and none {lacks!r}, "
        f"which a comparison needs: read as format {name!r}"
      )
  model = Model(
    source=options.model,
    tokenizer=options.tokenizer,
    chat_template=options.chat_template,
  )
  tokenizer = _tokenizer(model)
  data = dataclasses.replace(usual, format=name) if name else usual
  how = "the chat template" if data.chat else "plain text"
  print(f"tokens of {options.model}, {how}, max_length={data.max_length}")
  show("data", data, tokenizer, display)


def prepare(options: argparse.Namespace) -> None:
  """Writes comparisons as a TFDS data set, and says how it is read.

  Raises:
    UserError: value, rule and remedy.
  """
  from rlhf_jax.data import dataset, formats, sources, tfds_builder
  from rlhf_jax.data.columns import Columns

  name, folder = tfds_builder.parse(options.prepare)
  splits = {"train": options.source}
  if options.heldout:
    splits["heldout"] = options.heldout
  found = {}
  for split, source in splits.items():
    where, record = sources.first(source)
    names = Columns(options.columns)
    format = options.format or formats.guess(names.rename(record, where), where)
    found[split], refused = tfds_builder.read(source, format, names)
    names.check(source)
    dataset.report_dropped(split, source, len(found[split]), refused)
  tfds_builder.prepare(name, found, folder)
  for split in splits:
    print(f"written: tfds:{name}:{split}@{folder}")


def sections(job: Any) -> Iterator[tuple[str, Any, Any]]:
  """Yields (name, section, settings around it) of a job and its stages."""
  from rlhf_jax.data.section import Data

  if job.pipeline.stages is not None:
    for stage in job.pipeline.stages(job.settings).values():
      yield from sections(stage)
  for field in dataclasses.fields(job.settings):
    value = getattr(job.settings, field.name)
    if isinstance(value, Data) and value.source:
      yield f"{job.prefix}{field.name}", value, job.settings


def show_experiment(argv: Sequence[str]) -> None:
  """Prints what each Data section of an experiment becomes.

  Raises:
    UserError: value, rule and remedy.
  """
  from rlhf_jax import pipelines
  from rlhf_jax.data import overlap

  values = command.parse(argv, OPTIONS, __doc__)
  if not values.examples.isdigit():
    raise UserError(
      f"--examples={values.examples}: must be a whole number >= 0. Write "
      "--examples=3."
    )
  display = Display(int(values.examples), values.whole, _colours())
  job = pipelines.read(values.config)
  found = list(sections(job))
  if not found:
    raise UserError(
      "no Data section of this experiment names a source. Set for example "
      "--config.data.source=my.jsonl."
    )
  for name, data, settings in found:
    tokenizer = _tokenizer(settings.model)
    is_sampled = name.rpartition(".")[2] in ("prompts", "sample_prompts")
    sampling = getattr(settings, "generate", None)
    room = 0
    if is_sampled and sampling is not None:
      room = data.max_length - sampling.max_new_tokens
    show(name, data, tokenizer, display, is_sampled=is_sampled, room=room)
    for other in ("heldout", "validation"):
      heldout = getattr(settings, other, None)
      if name.rpartition(".")[2] == "data" and getattr(heldout, "source", ""):
        overlap.say_shared(name, data, heldout, tokenizer)


@output.never_silent()
def main(argv: Sequence[str]) -> int:
  """Shows what a command line names; returns the exit code."""
  is_experiment = any(word.startswith("--config") for word in argv[1:])
  try:
    if is_experiment:
      show_experiment(argv)
    else:
      options = parser().parse_args(list(argv[1:]))
      if options.heldout and not options.prepare:
        raise UserError(
          f"--heldout={options.heldout}: nothing reads it without --prepare. "
          "Leave it out, or show it by itself."
        )
      (prepare if options.prepare else show_source)(options)
  except (UserError, OSError) as error:
    return command.fail(error, str(error))
  return 0


if __name__ == "__main__":
  output.run_command(main, sys.argv)
