"""The command line, and what is wrong with it in one sentence.

All commands read their line by `parse`. ml_collections parses
`--config=FILE.py --config.section.field=VALUE`; what it raises for a mistake is
whatever Python raised inside. `explain` finds the option, or the line of the
experiment file, that the error is about.
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from rlhf_jax import experiment_file
from rlhf_jax.schema import UserError, absence

_WORDS = {
  int: "a whole number, such as 8",
  float: "a number, such as 1e-5",
  bool: "True or False",
  tuple: "a tuple, such as '(1, 2)'",
}
EXAMPLE = "--config=configs/sft.py --workdir=runs/sft"
EXIT_USAGE = 2  # a mistake in the command, the configuration or the data


class CommandError(UserError):
  """A mistake on the command line or in the experiment file."""


class _OrNone(flags.ArgumentParser):
  """Reads None as None, and everything else as another parser does."""

  def __init__(self, parser: flags.ArgumentParser) -> None:
    super().__init__()
    self._parser = parser
    self.syntactic_help = parser.syntactic_help

  def parse(self, argument: Any) -> Any:
    return None if argument == "None" else self._parser.parse(argument)

  def flag_type(self) -> str:
    return self._parser.flag_type()


_PARSERS = {
  float: _OrNone(flags.FloatParser()),
  int: _OrNone(flags.IntegerParser()),
  str: _OrNone(flags.ArgumentParser()),
  bool: flags.BooleanParser(),
}


def parse(
  argv: Sequence[str],
  options: Mapping[str, tuple[Any, str]],
  about: str,
  *,
  needs_workdir: bool = False,
  example: str = EXAMPLE,
) -> flags.FlagValues:
  """Returns the values of a command line: .config, and one for each option.

  Ends the process with one line and exit code 2 at a mistake, and with 0 after
  printing what --help asks for.

  Args:
    argv: the whole command line.
    options: name -> (default, what it means), beside --config; True or False
      for a switch.
    about: what --help prints first.
    needs_workdir: whether --workdir must be given.
    example: options that are enough, for messages.
  """
  argv = _with_places(argv)
  values = flags.FlagValues()  # of its own: nothing else defines options here
  config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment file, file.py or file.py:argument.",
    flag_values=values,
    sys_argv=list(argv),
  )
  for name, (default, meaning) in options.items():
    is_switch = isinstance(default, bool)
    define = flags.DEFINE_bool if is_switch else flags.DEFINE_string
    define(name, default, meaning, flag_values=values)
  if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(argv[1:]):
    print(f"{about}\n{_help(options)}")
    sys.exit(0)
  accept_none()
  try:
    check_before(argv)
    rest = values(argv)
    workdir = values.workdir if needs_workdir else "-"
    check_after(rest, values.config, workdir, argv, example)
    return values
  except CommandError as error:
    sys.exit(fail(error, str(error)))
  except (Exception, SystemExit) as error:
    message = explain(argv, error, options, example)
    if message is None:
      raise
    sys.exit(fail(error, message))


def _help(options: Mapping[str, tuple[Any, str]]) -> str:
  """Returns the options of a command, one a line; see `parse`."""
  lines = {
    "--config=FILE.py[:ARG]": "The experiment.",
    "--config.FIELD=VALUE": "A field of it; rlhf_jax.explain prints all.",
  }
  for name, (default, meaning) in options.items():
    usual = f" Default: {default}." if default else ""
    value = "" if isinstance(default, bool) else "=..."
    lines[f"--{name}{value}"] = f"{meaning}{usual}"
  width = max(map(len, lines))
  return "\n".join(f"  {name:{width}}  {text}" for name, text in lines.items())


def given(argv: Sequence[str]) -> set[str]:
  """Returns the fields that a command line sets: "schedule.steps", ..."""
  options = (argument.lstrip("-").partition("=")[0] for argument in argv[1:])
  return {
    option.removeprefix("no").removeprefix("config.")
    for option in options
    if option.startswith(("config.", "noconfig."))
  }


def _with_places(argv: Sequence[str]) -> list[str]:
  """Returns a command line whose --config says where the file is.

  It may begin with ~, as shells do, or be one of the package; then that is
  said.
  """
  result = list(argv)
  for i, argument in enumerate(result):
    option, equals, value = argument.partition("=")
    if option not in ("--config", "-config"):
      continue
    if not equals and i + 1 < len(result):
      value = result[i + 1]
    found = experiment_file.place(value)
    if found != os.path.expanduser(value):
      print(f"{value}: that of the package, {found}", file=sys.stderr)
    if equals:
      result[i] = f"{option}={found}"
    elif i + 1 < len(result):
      result[i + 1] = found
  return result


def fail(error: BaseException, message: str, code: int = EXIT_USAGE) -> int:
  """Prints an error in one message; returns the exit code."""
  if os.environ.get("RLHF_JAX_TRACEBACK"):
    traceback.print_exception(error)
  print(f"error: {message}", file=sys.stderr)
  return code


def accept_none() -> None:
  """Lets --config.a.b=None set a field to None.

  Whether the field may be None, its dataclass says (schema.py).
  """
  for kind, parser in _PARSERS.items():
    config_flags.register_flag_parser_for_type(kind, parser)


def check_before(argv: Sequence[str]) -> None:
  """Checks what is there before anything is parsed.

  Args:
    argv: the whole command line.

  Raises:
    CommandError: an experiment file that is not there, or named too late.
  """
  file = value_of("config", argv)
  if file is None:
    return
  _check_file(file.partition(":")[0])
  options = [argument.lstrip("-").partition("=")[0] for argument in argv[1:]]
  if options.count("config") > 1:
    raise CommandError(
      f"--config is given {options.count('config')} times, last as "
      f"--config={file}. Give it once; fields are set by --config.FIELD=VALUE."
    )
  for argument in argv[1:]:
    option = argument.lstrip("-").partition("=")[0]
    if option == "config":
      break
    if option.startswith("config."):
      raise CommandError(
        f"{argument} stands before --config={file}. Put --config first."
      )


def check_after(
  rest: Sequence[str],
  config: Any,
  workdir: str | None,
  argv: Sequence[str],
  example: str = EXAMPLE,
) -> None:
  """Checks what parsing left over and what it found.

  Args:
    rest: arguments that are no options, the program's name first.
    config: value of --config.
    workdir: value of --workdir.
    argv: the whole command line.
    example: see `parse`.

  Raises:
    CommandError: an argument too many, or one that is missing.
  """
  if len(rest) > 1:
    raise CommandError(
      f"unexpected argument {rest[1]!r}: options are written --name=value, "
      f"without spaces, for example {example}."
    )
  file = value_of("config", argv)
  missing = [
    name
    for name, value in (("--config=FILE.py", file), ("--workdir=DIR", workdir))
    if not value
  ]
  if missing:
    raise CommandError(
      f"{' and '.join(missing)} missing, for example {example}."
    )
  if isinstance(config, ConfigDict):
    return
  error = getattr(config, "__dict__", {}).get("_error")
  if isinstance(error, Exception):  # a file that the experiment file reads
    raise CommandError(experiment_file.complaint(file, error)) from error
  raise CommandError(
    f"{file}: get_config() returned {type(config).__name__}, not ConfigDict. "
    "End it with `return config`."
  )


def explain(
  argv: Sequence[str],
  error: BaseException,
  options: Collection[str] = ("workdir",),
  example: str = EXAMPLE,
) -> str | None:
  """Returns what is wrong with a command line that did not parse.

  Args:
    argv: the whole command line.
    error: what parsing raised.
    options: of the command, beside --config.
    example: see `parse`.

  Returns:
    a sentence or two; None when the error is not about the command.
  """
  file = value_of("config", argv)
  if file is None:
    if any(arg.lstrip("-").startswith("config.") for arg in argv[1:]):
      return f"--config=FILE.py missing, for example {example}."
    return str(error) if isinstance(error, flags.Error) else None
  if isinstance(error, SystemExit):
    return (
      f"{file.partition(':')[0]}: it ended the process (sys.exit({error.code!r}"
      ")) instead of returning a configuration. End get_config() with `return "
      "config`."
    )
  try:
    config = experiment_file.load(file)
    fields = dict(_flat(config)) if isinstance(config, ConfigDict) else {}
  except (Exception, SystemExit) as broken:  # whatever the experiment file does
    return experiment_file.complaint(file, broken)
  for path, value in _overrides(argv):
    complaint = _about_override(path, value, fields, file)
    if fields and complaint is not None:
      return complaint
  if isinstance(error, flags.UnrecognizedFlagError):
    own = difflib.get_close_matches(error.flagname, options, 1)
    near = [f"--{own[0]}"] if own else _nearest(error.flagname, fields)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return (
      f"--{error.flagname}: no such option.{hint} There are "
      f"{', '.join(f'--{name}' for name in ('config', *options))}, and "
      "--config.FIELD for the fields of the experiment."
    )
  return str(error) if isinstance(error, flags.Error) else None


def value_of(name: str, argv: Sequence[str]) -> str | None:
  """Returns the last value of an option, or None."""
  found = None
  for i, argument in enumerate(argv[1:], 1):
    option, equals, value = argument.partition("=")
    if option in (f"--{name}", f"-{name}"):
      following = argv[i + 1] if i + 1 < len(argv) else None
      found = value if equals else following
  return found


def _overrides(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
  """Yields (field, value) of each --config.field=value."""
  for i, argument in enumerate(argv[1:], 1):
    option, equals, value = argument.partition("=")
    if argument.startswith("-") and option.lstrip("-").startswith("config."):
      following = argv[i + 1] if i + 1 < len(argv) else None
      yield (
        option.lstrip("-").removeprefix("config."),
        value if equals else following,
      )


def _check_file(name: str) -> None:
  path = Path(name)
  if path.is_file():
    return
  names = {f"{x}.py": f"configs/{x}.py" for x in experiment_file.shipped()}
  here = sorted({*path.parent.glob("*.py"), *Path("configs").glob("*.py")})
  names |= {other.name: str(other) for other in here if other.is_file()}
  near = difflib.get_close_matches(path.with_suffix(".py").name, names, 1)
  hint = f" Did you mean {names[near[0]]}?" if near else ""
  raise CommandError(
    f"--config={name}: {absence(path)}.{hint} Name an experiment file, such as "
    "configs/sft.py."
  )


def _flat(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields (dotted field, type); sections have the type ConfigDict."""
  for key in config:
    kind = config.get_type(key)
    yield f"{prefix}{key}", kind
    if issubclass(kind, ConfigDict):
      yield from _flat(config[key], f"{prefix}{key}.")


def _about_override(
  path: str, value: str | None, fields: dict[str, type], file: str
) -> str | None:
  """Returns what is wrong with --config.path=value, or None."""
  if path not in fields:
    if path.startswith("no") and path.removeprefix("no") in fields:
      return None  # absl's --noflag
    near = _nearest(path, fields)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    section = path.rpartition(".")[0]
    inside = [
      f.removeprefix(f"{section}.")
      for f in fields
      if section and f.startswith(f"{section}.")
    ]
    rest = (
      f" Fields of config.{section}: {', '.join(inside)}."
      if inside
      else f" All of them: python -m rlhf_jax.explain --config={file}"
    )
    return f"--config.{path}: no such field.{hint}{rest}"
  kind = fields[path]
  if issubclass(kind, ConfigDict):
    inside = [f for f in fields if f.startswith(path + ".")]
    hint = f" such as --config.{inside[0]}" if inside else ""
    return f"--config.{path} is a section: set one of its fields{hint}."
  if kind not in _PARSERS or value is None:
    return None
  try:
    _PARSERS[kind].parse(value)
  except (ValueError, TypeError):
    return f"--config.{path}={value}: must be {_WORDS[kind]}."
  return None


def _nearest(path: str, fields: dict[str, type]) -> list[str]:
  """Returns up to two options near a misspelt one.

  Near is: the same last word in another section, its initials ("lr"), or a
  similar spelling of the whole.
  """
  leaf = path.rpartition(".")[2]
  plain = [f for f, kind in fields.items() if not issubclass(kind, ConfigDict)]
  words = {f: f.rpartition(".")[2] for f in plain}
  initials = {f: "".join(w[:1] for w in words[f].split("_")) for f in plain}
  for same in (words, initials):
    alike = [f for f in plain if same[f] == leaf]
    if alike:
      near = difflib.get_close_matches(path, alike, 2, cutoff=0.0)
      return [f"--config.{f}" for f in near]
  near = difflib.get_close_matches(path, plain, 1, cutoff=0.7)
  return [f"--config.{f}" for f in near]
