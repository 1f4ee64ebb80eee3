"""Settings of a Data section that nothing reads: refused, so that none is lost.

Which fields are read depends on what rows are made for, and on whether records
are rated texts; a field that is not read must have its usual value.
"""

from __future__ import annotations

import dataclasses

from rlhf_jax import imported
from rlhf_jax.data import assets
from rlhf_jax.data.dataset import Data
from rlhf_jax.schema import FieldError

DEMONSTRATIONS, COMPARISONS, PROMPTS, STEPS = (
  "demonstrations",
  "comparisons",
  "prompts",
  "steps",
)
_ALWAYS = (
  *("source", "format", "max_length", "limit", "weights", "repeats"),
  *("columns", "duplicates", "near", "exclude", "by", "only"),
  "flips",  # by what trains on comparisons, see `check`
)
_OF_RATED = ("min_words", "max_text_tokens", "split", "splits", "split_seed")
_OF_RANKINGS = ("ties", "objective", "rankings", "answers")
# (what rows are made for, whether of rated texts) -> what is read besides
_READ = {
  (DEMONSTRATIONS, True): ("prompt", "end_token", "train_on_prompt", "pack"),
  (DEMONSTRATIONS, False): (
    *("chat", "train_on_prompt", "pack", "store", "max_turns"),
    "last_answer_only",
  ),
  (COMPARISONS, True): (
    *("prompt", "end_token", "pairs", "ties"),
    "share_prompts",
  ),
  (COMPARISONS, False): ("chat", "end_token", "share_prompts"),
  (PROMPTS, True): ("prompt", "prefix_tokens"),
  (COMPARISONS, "dialogue"): (
    *("chat", "end_token", "pairs", "ties", "objective", "max_turns"),
    "share_prompts",
  ),
  (PROMPTS, False): ("chat", "max_turns", "max_prompt_tokens"),
  (STEPS, True): (),  # rated texts have none, and are refused when read
  (STEPS, False): ("chat", "end_token", "pack"),
}


def check(
  data: Data,
  name: str,
  use: str,
  *,
  packs: bool = True,
  trains: bool = False,
) -> None:
  """Raises FieldError for a setting that these rows would not read.

  Args:
    data: the section; one without a source is not looked at.
    name: of the section, for the message.
    use: DEMONSTRATIONS, COMPARISONS, PROMPTS or STEPS.
    packs: whether rows are shared as data.pack and data.share_prompts say.
    trains: whether comparisons train, whose labels data.flips may turn.
  """
  if data.source and data.flips and not trains:  # whatever a parser makes
    raise FieldError(
      f"{name}.flips={data.flips:g}: nothing reads it but what trains on "
      "comparisons. Leave it at 0."
    )
  is_rated = data.has_format("ratings") or assets.is_rated(data.source)
  if not data.source or (imported.is_path(data.format) and not is_rated):
    return  # a parser of one's own makes whatever it makes
  kind: bool | str = is_rated
  if use == COMPARISONS and data.has_format("rated_dialogue"):
    kind = is_rated = "dialogue"
  read = {*_ALWAYS, *_READ[use, kind], *(_OF_RATED if is_rated else ())}
  if use == COMPARISONS and data.has_rankings:
    read |= set(_OF_RANKINGS)
  if not packs:
    read -= {"pack", "share_prompts"}
  if not data.split:  # all records: nothing is drawn
    read -= {"splits"}
  if data.weights or data.repeats:
    read |= {"split_seed"}
  elif not data.split:
    read -= {"split_seed"}
  for field in dataclasses.fields(Data):
    value = getattr(data, field.name)
    if field.name not in read and value != field.default:
      kind = "rated texts" if is_rated else f"format={data.format!r}"
      raise FieldError(
        f"{name}.{field.name}={value!r}: nothing reads it for {use} of {kind}. "
        f"Leave it at {field.default!r}."
      )
