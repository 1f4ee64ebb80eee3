"""A Data section: which records are read, and how they become rows."""

from __future__ import annotations

import dataclasses

from rlhf_jax import imported
from rlhf_jax.data import batches, formats, layout
from rlhf_jax.schema import FieldError, check_choice, check_least, check_seed


@dataclasses.dataclass(frozen=True)
class Data:
  """Records and how they become rows of tokens."""

  source: str = (
    ""  # asset:NAME, tfds:NAME:SPLIT, or files: .jsonl, .json, .csv,
  )
  # .parquet, several with commas between, or a pattern; "" for none
  format: str = "comparison"  # of a record, data/formats.py; or the import path
  # of a parser, file.py:name
  prompt: str = ""  # prompt text put before rated texts, e.g. "Review:"
  prefix_tokens: int = 0  # first tokens of a text that join the prompt
  chat: bool = False  # render prompts with the tokenizer's chat template
  max_length: int = 512  # tokens of a row, prompt and response
  min_words: int = 0  # texts with fewer are left out (and counted)
  max_text_tokens: int = 0  # texts with more are left out; 0: no limit
  end_token: bool = True  # responses end with the end-of-sequence token
  train_on_prompt: bool = False  # SFT only: the loss counts prompt tokens too
  pack: str = "auto"  # SFT only: how examples share rows, data/layout.py
  share_prompts: str = "auto"  # comparisons only: whether the prompt of both
  # answers stands in a row once; "always" or "never"
  split: str = ""  # which part of the records: a name in splits; "" for all
  splits: str = ""  # NAME:SIZE,...: parts drawn in this order, disjoint; such
  # as "test:700,A:1500,B:1500"
  split_seed: int = 0  # of the draw of splits
  pairs: int = 0  # comparisons drawn from ratings
  ties: str = "drop"  # equal ratings: draw again, or the soft label 0.5
  limit: int = 0  # first so many records; 0: all

  def __post_init__(self) -> None:
    check_least(
      self, prefix_tokens=0, min_words=0, max_text_tokens=0, pairs=0, limit=0
    )
    if self.max_length < 2:
      raise FieldError(f"max_length={self.max_length}: must be >= 2 tokens.")
    check_choice("ties", self.ties, ("drop", "soft"))
    check_choice("pack", self.pack, layout.MODES)
    check_choice("share_prompts", self.share_prompts, layout.PROMPTS)
    if imported.is_path(self.format):
      formats.find(self.format)
    else:
      check_choice("format", self.format, tuple(formats.FORMATS))
    check_seed(self.split_seed, "split_seed")
    self.split_sizes()

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
