"""Say what a metric means, which direction is bad, and what to do.

    python -m rlhf_jax.glossary
    python -m rlhf_jax.glossary rollout/kl_k1_sum entropy

The meaning stands beside the code that computes the metric, in its docstring,
as `area/name: meaning. Up is bad.`; this command reads it there. REMEDIES says
what to do. A word that is no name finds all names that contain it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhf_jax import output
from rlhf_jax.imported import nearest

_NAME = r"[a-z_]+/(?:[A-Za-z0-9_]+|NAME)(?:/[A-Za-z0-9_*]+)?"
_NAMES = rf"(?:{_NAME})(?:,(?: and)? {_NAME})*"
_ENTRY = re.compile(rf"(?<![\w/])({_NAMES}):\s")
_SENTENCE = re.compile(r"(?<=[.;])\s+")
_WARNS = re.compile(
  r"\b(?:bad|alarm|drift|bug|displacement|over-?fitting|overoptimi\w+)\b"
)
EXIT_USAGE = 2


@dataclasses.dataclass(frozen=True)
class Entry:
  """A metric. bad: which direction is; "" where neither is by itself."""

  name: str
  meaning: str
  bad: str
  where: str  # file of the package that computes it
  remedy: str = ""


REMEDIES = {
  "sft/loss": "Not falling: raise the learning rate. Held-out loss rising: "
  "fewer epochs.",
  "sft/gradient_norm": "Lower the learning rate, lengthen the warm-up.",
  "reward_model/accuracy": "More comparisons, a larger model, labels that "
  "people agree on.",
  "reward_model/expected_calibration_error": "Fewer epochs, weight decay.",
  "reward_model/temperature": "Above 1: too sure. Fewer epochs, weight decay.",
  "reward_model/length_spearman": "Compare answers of like length, or set a "
  "length penalty in shaping.",
  "preference/margin": "Raise the learning rate; check that chosen and "
  "rejected are not swapped.",
  "preference/reward_chosen": "Lower the learning rate or stop earlier; mix in "
  "SFT (rpo, cpo).",
  "rollout/score_mean": "Raise the learning rate of the policy, or lower the "
  "KL coefficient; look at samples.jsonl.",
  "rollout/kl_k1_sum": "Raise shaping.kl_coefficient or lower kl_target, lower "
  "the learning rate.",
  "rollout/entropy": "Lower the learning rate, set algorithm.entropy_"
  "coefficient, raise the KL coefficient.",
  "rollout/eos_share": "Raise generate.max_new_tokens; shaping.missing_eos="
  "'replace'; see what ends an answer.",
  "rollout/length_mean": "Set a length penalty, or look at the reward model's "
  "length bias.",
  "rollout/distinct_2": "As for entropy: the policy repeats itself.",
  "rollout/duplicate_share": "As for entropy; more prompts.",
  "rollout/score_length_correlation": "Set shaping.length_penalty; balance "
  "lengths in the comparisons.",
  "rollout/length_slope": "As for the mean; compare win rates at equal length.",
  "rollout/near_identical_share": "As for entropy: the prompt no longer "
  "matters.",
  "rollout/sycophancy_share": "Mix in comparisons in which the user is wrong.",
  "rollout/refusal_share": "Add comparisons in which a needless refusal loses.",
  "ppo/clip_fraction_high": "Lower the learning rate, fewer epochs.",
  "ppo/clip_fraction_low": "Lower the learning rate, fewer epochs.",
  "ppo/approximate_kl": "Lower the learning rate, fewer epochs or minibatches.",
  "ppo/explained_variance": "Raise value_optimizer.learning_rate, pre-train "
  "the critic (value.pretrain_steps), or take a method without one.",
  "ppo/first_ratio_error": "Sampler and trainer disagree: train in float32, "
  "or set importance.cap.",
  "group/zero_variance_share": "Other prompts: easier where all are wrong, "
  "harder where all are right; resample_rounds.",
  "group/pass1": "Look at answers of the verifier's mistakes; more steps.",
  "reward/clip_share": "Raise shaping.clip, or normalise scores.",
  "sys/skipped_updates": "Lower the learning rate; train in float32.",
  "sys/memory_peak_gib": "microbatches, model.remat=True, shorter rows.",
}


def _docstrings() -> Iterator[tuple[str, str]]:
  """Yields (file, docstring) of all modules, classes and functions.

  KTO comes last: it gives names of the other preference losses its own sense.
  """
  package = Path(__file__).parent
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
  paths = sorted(package.rglob("*.py"), key=lambda x: (x.name == "kto.py", x))
  for path in paths:
    if path == Path(__file__):
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      text = ast.get_docstring(node) if isinstance(node, kinds) else None
      if text:
        yield path.relative_to(package.parent).as_posix(), text


def _parts(docstring: str) -> Iterator[str]:
  """Yields pieces of a docstring that belong together, each on one line.

  A piece ends at an empty line, or where a line stands no deeper than the
  first one of it and begins another entry.
  """
  piece: list[str] = []
  for line in [*inspect.cleandoc(docstring).splitlines(), ""]:
    depth = len(line) - len(line.lstrip())
    begins = _ENTRY.match(line.strip() + " ") is not None
    ends = piece and depth <= len(piece[0]) - len(piece[0].lstrip())
    goes_on = piece and piece[-1].endswith(",")  # names of several
    if piece and (not line.strip() or ((begins or ends) and not goes_on)):
      yield " ".join(x.strip() for x in piece)
      piece = []
    if line.strip():
      piece.append(line)


def _entries_of(where: str, docstring: str) -> Iterator[Entry]:
  for part in _parts(docstring):
    found = list(_ENTRY.finditer(part))
    ends = [*(match.start() for match in found[1:]), len(part)]
    for match, end in zip(found, ends, strict=False):
      text = part[match.end() : end].strip()
      sentences = _SENTENCE.split(text)
      bad = " ".join(x for x in sentences if _WARNS.search(x)).strip(" .;")
      meaning = " ".join(x for x in sentences if not _WARNS.search(x))
      for name in re.findall(_NAME, match[1]):
        yield Entry(
          name,
          meaning.strip(" .;") or "as its name says",
          bad[:1].upper() + bad[1:],
          where,
          REMEDIES.get(name, ""),
        )


def entries() -> dict[str, Entry]:
  """Returns every metric that a docstring of the package explains, by name."""
  found: dict[str, Entry] = {}
  for where, text in _docstrings():
    for entry in _entries_of(where, text):
      known = found.get(entry.name)
      if known is None or (entry.bad and not known.bad):
        found[entry.name] = entry
  return dict(sorted(found.items()))


def _show(entry: Entry) -> str:
  """Returns an entry as lines of at most 80 characters."""
  lines = [entry.name]
  for label, text in (
    ("", entry.meaning),
    ("bad: ", entry.bad),
    ("do: ", entry.remedy),
    ("in: ", entry.where),
  ):
    if text:
      indent = {"initial_indent": "  ", "subsequent_indent": "    "}
      lines.append(textwrap.fill(f"{label}{text}", 80, **indent))
  return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
  """Prints the metrics that a command line names, or all of them."""
  if {"-h", "--help"} & set(argv[1:]):
    print(__doc__)
    return 0
  known = entries()
  for word in argv[1:]:
    if not any(word in name for name in known):
      print(
        f"error: {word}: no metric has this in its name."
        f"{nearest(word, known)} Leave it out to see all.",
        file=sys.stderr,
      )
      return EXIT_USAGE
  words = argv[1:] or [""]
  for name, entry in known.items():
    exact = [word for word in words if word in known]
    if name in exact or any(w in name for w in words if w not in exact):
      print(_show(entry))
  return 0


if __name__ == "__main__":
  output.run_command(main, sys.argv)
