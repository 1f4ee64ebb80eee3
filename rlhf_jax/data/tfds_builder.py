"""Comparisons as a TensorFlow Datasets data set, written without TensorFlow.

    python -m rlhf_jax.data pairs.jsonl --prepare=my_pairs@data

writes array_record files that `tfds:my_pairs:train@data` reads here, and
tfds.load or tfds.data_source elsewhere. A prompt is a text, or, where one of
the records has a dialogue, a sequence of messages in all of them. A label is
kept in float32, as it is trained on.

Left out: tool calls and names in messages; other records than comparisons.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data import formats, rankings
from rlhf_jax.data.columns import Columns
from rlhf_jax.data.examples import Comparison
from rlhf_jax.data.sources import DataError
from rlhf_jax.schema import UserError

VERSION = "1.0.0"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_PLAIN = {"role", "content"}


def parse(target: str) -> tuple[str, Path]:
  """Returns name and folder of "NAME@FOLDER".

  Raises:
    UserError: it is not written so.
  """
  name, _, folder = target.partition("@")
  if not _NAME.fullmatch(name) or not folder:
    raise UserError(
      f"{target!r}: must be NAME@FOLDER, NAME of small letters, digits and "
      "single underscores. Write for example my_pairs@data."
    )
  return name, Path(os.path.expanduser(folder))


def read(
  source: str, format: str, names: Columns
) -> tuple[list[Comparison], Counter]:
  """Returns the comparisons of a source, and why others were left out.

  Args:
    source, format, names: see formats.load_and_refuse.

  Raises:
    DataError: malformed, or no comparisons.
  """
  found, refused = formats.load_and_refuse(source, format, names)
  for record in found:
    if not isinstance(record, Comparison):
      raise DataError(
        f"{record.where}: format={format!r} gives a {type(record).__name__}, "
        "and the data set holds comparisons. Give records with prompt, chosen "
        "and rejected."
      )
    for message in record.prompt if isinstance(record.prompt, list) else ():
      if set(message) - _PLAIN:
        raise DataError(
          f"{record.where}: a message has {sorted(set(message) - _PLAIN)}, "
          "which the data set cannot hold. Train from the file itself, or "
          "leave the record out."
        )
  beside = Counter(name for r in found for name in rankings.carried(r))
  for name, count in sorted(beside.items()):
    print(f"{source}: {count} records have a {name}, which is not kept")
  return found, Counter(error.reason for error in refused)


def _examples(
  found: list[Comparison], has_messages: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (key, features) of comparisons."""
  for number, record in enumerate(found):
    prompt: Any = record.prompt
    if has_messages:
      prompt = [dict(m) for m in formats.prompt_messages(record)]
    yield (
      number,
      {
        "prompt": prompt,
        "chosen": record.chosen,
        "rejected": record.rejected,
        "label": float(record.label),
      },
    )


def prepare(
  name: str, splits: Mapping[str, list[Comparison]], folder: Path
) -> Path:
  """Writes a data set; returns its folder.

  Args:
    name: of the data set, see `parse`.
    splits: name -> comparisons, in order.
    folder: that data sets are kept in.

  Raises:
    UserError: there is one of that name already.
  """
  import tensorflow_datasets as tfds

  target = folder / name / VERSION
  if target.exists():
    raise UserError(
      f"{target} is there already. Give another name, or remove it."
    )
  has_messages = any(
    isinstance(record.prompt, list)
    for found in splits.values()
    for record in found
  )
  text = tfds.features.Text()
  prompt = text
  if has_messages:
    prompt = tfds.features.Sequence({"role": text, "content": text})
  features = {"prompt": prompt, "chosen": text, "rejected": text}
  features["label"] = tfds.features.Scalar(np.float32)

  class Pairs(tfds.core.GeneratorBasedBuilder):
    """Comparisons of answers; label: probability that `chosen` wins."""

    VERSION = tfds.core.Version(VERSION)
    pkg_dir_path = None

    def _info(self) -> Any:
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, manager: Any) -> dict:
      del manager
      return {
        split: self._generate_examples(found) for split, found in splits.items()
      }

    def _generate_examples(self, found: list[Comparison]) -> Iterator:
      return _examples(found, has_messages)

  tfds.disable_progress_bar()
  with tfds.core.registered.skip_registration():
    kind = type("".join(name.title().split("_")), (Pairs,), {"name": name})
    builder = kind(data_dir=folder, file_format="array_record")
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  builder.download_and_prepare(download_config=config)
  return target
