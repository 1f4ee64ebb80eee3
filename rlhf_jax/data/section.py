"""A Data section: which records are read, and how they become rows."""

from __future__ import annotations

import dataclasses

from rlhf_jax import imported
from rlhf_jax.data import (
  batches,
  challenges,
  columns,
  formats,
  layout,
  mixture,
  sources,
)
from rlhf_jax.schema import FieldError, check_choice, check_least, check_seed

RANKINGS = ("refuse", "pairs", "ends", "whole")  # data/comparison_rows.py


@dataclasses.dataclass(frozen=True)
class Data:
  """Records and how they become rows of tokens."""

  source: str = (
    ""  # asset:NAME, tfds:NAME:SPLIT, or files: .jsonl, .json, .csv,
  )
  # .parquet, or a pattern, or challenges:FACTS (data/challenges.py); several
  # with commas between; "" for none
  format: str = "comparison"  # of a record, data/formats.py; or the import path
  # of a parser, file.py:name; one for each part of the source, or one for all
  columns: str = ""  # fields that are called otherwise, OURS=THEIRS, such as
  # "prompt=question,chosen=better" (data/columns.py)
  weights: str = ""  # shares of the parts of the source, such as "3,1", or of
  # the values of `by`, "en:1,de:3"; "": as many records as they have
  repeats: str = ""  # how often each of them is read in a pass, such as "2,0.5"
  by: str = ""  # field of records, such as "language", by whose values counts,
  # losses and scores are told; "" for none
  only: str = ""  # FIELD=VALUE: only records whose field has this value
  duplicates: str = "keep"  # records that repeat an earlier one, in any part:
  # "keep", "exact" leaves them out, "near" also those that nearly do
  near: float = (
    0.8  # share of pieces of 5 words from which two texts are nearly
  )
  # the same (data/near.py); 0 looks for none
  exclude: str = ""  # a source whose prompts are left out of this one
  prompt: str = ""  # prompt text put before rated texts, e.g. "Review:"
  prefix_tokens: int = 0  # first tokens of a text that join the prompt
  chat: bool = False  # render prompts with the tokenizer's chat template
  max_length: int = 512  # tokens of a row, prompt and response
  min_words: int = 0  # texts with fewer are left out (and counted)
  max_text_tokens: int = 0  # texts with more are left out; 0: no limit
  end_token: bool = True  # responses end with the end-of-sequence token
  train_on_prompt: bool = False  # SFT only: the loss counts prompt tokens too
  last_answer_only: bool = False  # SFT only: of a dialogue, its last answer is
  # learned and the others are context (Ghost Attention); never cut
  pack: str = "auto"  # SFT only: how examples share rows, data/layout.py
  share_prompts: str = "auto"  # comparisons only: whether the prompt of both
  # answers stands in a row once; "always" or "never"
  split: str = ""  # which part of the records: a name in splits; "" for all
  splits: str = ""  # NAME:SIZE,...: parts drawn in this order, disjoint; such
  # as "test:700,A:1500,B:1500"
  split_seed: int = 0  # of the draw of splits
  pairs: int = 0  # comparisons drawn from ratings
  ties: str = "drop"  # answers that tie, or equal ratings: no pair (ratings:
  # drawn again), or "soft", the label 0.5
  flips: float = 0.0  # share of the comparisons that train whose answers change
  # places, to study wrong labels; held-out ones stay as they are
  objective: str = ""  # rankings, rated dialogues: by which objective they are
  # ordered; "": as a whole, by the only one, or by the mean of the ratings
  rankings: str = "refuse"  # how more than two answers are read: "pairs", each
  # against each below it; "ends", best against worst; "whole", for a loss of
  # rankings (data/comparison_rows.py)
  answers: int = 0  # of a whole ranking at most, for which rows have room;
  # 0: as many as the longest one has, which a plan cannot know
  max_turns: int = 0  # of a dialogue, its first ones; 0: all
  max_prompt_tokens: int = 0  # prompts only: longer ones are left out, as no
  # answer has room behind them; 0: they are refused
  limit: int = 0  # first so many records; 0: all
  store: str = "memory"  # SFT only: where rows are kept; "disk" for data that
  # memory does not hold, data/streamed.py

  def __post_init__(self) -> None:
    check_least(
      self, prefix_tokens=0, min_words=0, max_text_tokens=0, pairs=0, limit=0
    )
    check_least(self, answers=0)
    if self.answers and self.rankings != "whole":
      raise FieldError(
        f"answers={self.answers} with rankings={self.rankings!r}: it is of "
        "rankings that stay whole. Set rankings='whole', or answers=0."
      )
    check_least(self, max_turns=0, max_prompt_tokens=0)
    if self.max_length < 2:
      raise FieldError(f"max_length={self.max_length}: must be >= 2 tokens.")
    check_choice("ties", self.ties, ("drop", "soft"))
    check_choice("rankings", self.rankings, RANKINGS)
    check_choice("pack", self.pack, layout.MODES)
    check_choice("share_prompts", self.share_prompts, layout.PROMPTS)
    for name in self.format.split(","):
      if imported.is_path(name.strip()):
        formats.find(name.strip())
      else:
        check_choice("format", name.strip(), tuple(formats.FORMATS))
    columns.parse(self.columns)
    self._check_learned()
    check_choice("duplicates", self.duplicates, ("keep", "exact", "near"))
    if not 0.0 <= self.near <= 1.0:
      raise FieldError(f"near={self.near}: must be in [0, 1].")
    if self.duplicates == "near" and not self.near:
      raise FieldError(
        "duplicates='near' with near=0.0: nothing is near. Set near=0.8, or "
        "duplicates='exact'."
      )
    if not 0.0 <= self.flips <= 1.0:
      raise FieldError(f"flips={self.flips}: must be in [0, 1].")
    self._check_by()
    if "," in self.format and self.source:
      self.formats()
    self._check_shares()
    check_choice("store", self.store, ("memory", "disk"))
    self._check_store()
    check_seed(self.split_seed, "split_seed")
    self.split_sizes()

  def _check_learned(self) -> None:
    """Raises FieldError for targets that do not go together."""
    if not self.last_answer_only:
      return
    if self.train_on_prompt or not self.chat:
      raise FieldError(
        f"last_answer_only=True with train_on_prompt={self.train_on_prompt}, "
        f"chat={self.chat}: only a dialogue has earlier answers, and then they "
        "are no targets. Set train_on_prompt=False and chat=True."
      )

  def _check_shares(self) -> None:
    """Raises FieldError for weights or repeats that cannot be followed."""
    if self.weights and self.repeats:
      raise FieldError(
        f"weights={self.weights!r} and repeats={self.repeats!r}: each says how "
        "often parts are read. Set the other to ''."
      )
    name = "weights" if self.weights else "repeats"
    given = self.weights or self.repeats
    if not given:
      return
    if ":" in given:
      self._check_named(name, given)
      return
    try:
      count = len(mixture.numbers(given))
    except ValueError as error:
      raise FieldError(
        f"{name}={given!r}: must be numbers above 0, one for each part of the "
        f"source. Write for example '3,1' ({error})."
      ) from error
    if self.split:
      raise FieldError(
        f"{name}={given!r} with split={self.split!r}: a split is of all parts "
        "together. Set one of them to ''."
      )
    parts = self._parts() if self.source else count
    if count != parts:
      raise FieldError(
        f"{name}={given!r}: {count} numbers, and source={self.source!r} has "
        f"{parts} parts. Give one for each."
      )

  def _check_named(self, name: str, given: str) -> None:
    """Raises FieldError for shares of values that cannot be followed."""
    if not self.by:
      raise FieldError(
        f"{name}={given!r} with by='': these are shares of the values of a "
        "field. Name it, such as by='language'."
      )
    try:
      mixture.named(given)
    except ValueError as error:
      raise FieldError(
        f"{name}={given!r}: must be VALUE:NUMBER above 0, with commas between "
        f"({error}). Write for example 'en:1,de:3'."
      ) from error

  def _check_by(self) -> None:
    """Raises FieldError for a field of records that cannot be asked for."""
    if self.only and not all(self.only.partition("=")):
      raise FieldError(
        f"only={self.only!r}: must be FIELD=VALUE, such as 'language=de'."
      )

  def _check_store(self) -> None:
    """Raises FieldError for what would hold all records in memory."""
    if self.store == "memory":
      return
    usual_values = {"near": 0.0, "weights": "", "repeats": "", "split": ""}
    usual_values |= {"by": "", "only": ""}
    for name, usual in usual_values.items():
      value = getattr(self, name)
      if value != usual:
        raise FieldError(
          f"store='disk' with {name}={value!r}: it would hold all records in "
          f"memory. Set {name}={usual!r}, or store='memory'."
        )
    if self.pack == "all":
      raise FieldError(
        "store='disk' with pack='all': it would hold all rows in memory. Set "
        "pack='batch', or store='memory'."
      )

  def _parts(self) -> int:
    """Returns how many parts the source has."""
    try:
      return len(sources.parts(self.source))
    except ValueError as error:
      raise FieldError(f"source={self.source!r}: {error}") from error

  def formats(self) -> list[str]:
    """Returns the format of each part of the source.

    "hh" for all is that of the files: challenges are written as comparisons.
    """
    found = [name.strip() for name in self.format.split(",")]
    parts = sources.parts(self.source)
    if len(found) not in (1, len(parts)):
      raise FieldError(
        f"format={self.format!r}: {len(found)} formats, and source="
        f"{self.source!r} has {len(parts)} parts. Give one for each, or one "
        "for all."
      )
    if len(found) > 1:
      return found
    other = "comparison" if found == ["hh"] else found[0]
    return [
      other if part.startswith(challenges.PREFIX) else found[0]
      for part in parts
    ]

  def has_format(self, name: str) -> bool:
    """Says whether all parts of the source have a format."""
    return {part.strip() for part in self.format.split(",")} == {name}

  @property
  def has_rankings(self) -> bool:
    """Whether all parts of the source hold rankings."""
    names = {part.strip() for part in self.format.split(",")}
    return names <= set(formats.RANKED)

  def split_sizes(self) -> dict[str, int]:
    """Returns {name: size} of `splits`, checked against `split`."""
    sizes: dict[str, int] = {}
    for part in filter(None, self.splits.split(",")):
      name, _, size = part.strip().partition(":")
      if not size.isdigit():
        raise FieldError(
          f"splits={self.splits!r}: {part!r} is not NAME:SIZE. Write for "
          "example 'test:700,A:1500'."
        )
      sizes[name] = int(size)
    if self.split and self.split not in sizes:
      raise FieldError(
        f"split={self.split!r}: splits={self.splits!r} holds no part of this "
        "name. Add it there as NAME:SIZE, or set split=''."
      )
    return sizes

  @property
  def row_length(self) -> int:
    """The tokens of a padded row at most."""
    if self.pack == "all":
      return self.max_length
    return batches.bucket_length(self.max_length)

  @property
  def known_rows(self) -> int:
    """How many records are selected, as far as the section says; else 0."""
    size = self.split_sizes().get(self.split, 0)
    return min(size, self.limit) if size and self.limit else size or self.limit
