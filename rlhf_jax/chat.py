"""Talk to a policy in a terminal, or to two side by side.

    python -m rlhf_jax.chat runs/ppo
    python -m rlhf_jax.chat runs/sft runs/ppo --reward=runs/reward --seed=3
    python -m rlhf_jax.chat asset:smollm2-135m-instruct < prompts.txt

A policy is a run (runs/x, runs/x@best, runs/x@12), a Hugging Face folder, a
GGUF file or asset:NAME; POLICY@best_of=8 says the best of 8 by --reward.
Tokens appear as they are drawn; docs/chat.md says how turns are rendered, what
is saved and which commands there are (/help). Each line of a pipe is a prompt
on its own.

Exit codes: 0 done, 2 a mistake (one line says which value, which rule and what
to do).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import generate, output
from rlhf_jax.imported import nearest
from rlhf_jax.schema import UserError

EXIT_USAGE = 2


def parser() -> argparse.ArgumentParser:
  """Returns what reads the command line."""
  found = argparse.ArgumentParser(
    prog="python -m rlhf_jax.chat",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add, usual = found.add_argument, generate.Config()
  add("policies", nargs="+", metavar="POLICY", help="one, or two to compare")
  add("--reward", default="", help="a reward run, whose scores are shown")
  add("--system", default="", help="system prompt")
  add("--plain", action="store_true", help="no chat template: go on with text")
  for name, kind, meaning in (
    ("max_new_tokens", int, "tokens of an answer at most"),
    ("temperature", float, "divides the logits; 0 is greedy"),
    ("top_k", int, "sample among so many; 0 keeps all"),
    ("top_p", float, "sample among those of this probability; 1 keeps all"),
    ("min_p", float, "least share of the most likely; 0 keeps all"),
  ):
    default = 256 if name == "max_new_tokens" else getattr(usual, name)
    add(
      f"--{name.replace('_', '-')}",
      f"--{name}",
      type=kind,
      default=default,
      help=f"{meaning}; {default}",
    )
  add("--seed", type=int, default=0, help="of the dialogue; 0")
  add("--stop", action="append", default=[], help="a text that ends an answer")
  add("--save", default="", help="file that dialogues are added to")
  add("--pairs", default="", help="file that /better adds comparisons to")
  add("--turns", action="store_true", help="lines of a pipe are one dialogue")
  add("--chat-template", default="", help="a Jinja file; its own")
  add("--dtype", default="float32", help="float32 or bfloat16")
  add("--tensor", type=int, default=1, help="devices that share each weight")
  return found


def sampling(options: argparse.Namespace) -> generate.Config:
  """Returns how answers are drawn."""
  return generate.Config(
    max_new_tokens=options.max_new_tokens,
    temperature=options.temperature,
    top_k=options.top_k,
    top_p=options.top_p,
    min_p=options.min_p,
    stop_strings=tuple(options.stop),
  )


def load(source: str, options: argparse.Namespace, **model: Any) -> Any:
  """Returns what lab.load finds at a place."""
  _check_there(source)
  from rlhf_jax import lab
  from rlhf_jax.parallel import mesh as mesh_lib

  count = options.tensor
  mesh = mesh_lib.Config(devices=count, data=1, fsdp=1, tensor=count)
  # What is read is said there: standard output is for answers.
  with contextlib.redirect_stdout(sys.stderr):
    return lab.load(source, mesh=mesh, dtype=options.dtype, **model)


def _check_there(source: str) -> None:
  """Raises UserError for a run that is not there beside others that are."""
  name, _, step = source.partition("@")
  if step and step != "best" and not step.isdigit():
    return  # the revision of a model on the hub
  folder = Path(name).expanduser()
  if len(folder.parts) < 2 or folder.exists() or not folder.parent.is_dir():
    return
  beside = [path.name for path in folder.parent.iterdir()]
  raise UserError(
    f"{source}: no such file or folder.{nearest(folder.name, beside)} Name a "
    "finished run, a Hugging Face folder or a .gguf file."
  )


def open_talk(options: argparse.Namespace) -> Any:
  """Returns the talk that a command line asks for.

  Raises:
    UserError: value, rule and remedy.
  """
  from rlhf_jax.data import caches
  from rlhf_jax.notebook import talk
  from rlhf_jax.runs import answerers

  if len(options.policies) > 2:
    raise UserError(
      f"{len(options.policies)} policies: one, or two side by side. Name fewer."
    )
  if options.pairs and len(options.policies) < 2:
    raise UserError(
      f"--pairs={options.pairs}: a comparison is of two answers. Name two "
      "policies, or leave it out."
    )
  config, model = sampling(options), {}
  if options.chat_template:
    model["chat_template"] = options.chat_template
  said = {x: answerers.split(x, "POLICY") for x in options.policies}
  draws = {name: count for name, (_, count) in said.items()}
  if max(draws.values()) > 1 and not options.reward:
    raise UserError(
      f"{max(draws, key=draws.get)}: a reward model chooses the best of "
      "several, and none is named. Give --reward=runs/reward."
    )
  policies = [(x, load(said[x][0], options, **model)) for x in options.policies]
  caches.keep_compiled()
  reward = load(options.reward, options) if options.reward else None
  is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
  return talk.Talk.of(
    policies,
    config,
    reward=reward,
    draws=draws,
    system=options.system,
    is_plain=options.plain,
    seed=options.seed,
    save=options.save,
    pairs=options.pairs,
    is_one_dialogue=is_terminal or options.turns,
    is_terminal=is_terminal,
    has_colours=sys.stdout.isatty() and _has_colours(os.environ),
  )


def _has_colours(environment: Any) -> bool:
  """Says whether a terminal wants colours (no-color.org)."""
  return not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def main(argv: Sequence[str]) -> int:
  """Talks; returns the exit code."""
  options = parser().parse_args(list(argv[1:]))
  try:
    talk = open_talk(options)
    talk.run()
  except (UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return EXIT_USAGE
  return 0


if __name__ == "__main__":
  output.run_command(main, sys.argv)
