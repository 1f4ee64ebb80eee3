"""Encoded examples -> padded batches, and the loader of them.

Leaves are numpy arrays; masks are float32 and come from lengths, never from
ids, so the padding id may equal the end token. TokenBatch and PreferenceBatch
are padded on the right, PromptBatch on the left, where sampling goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from rlhf_jax.data.encode import Row
from rlhf_jax.schema import UserError
from rlhf_jax.types import PreferenceBatch, PromptBatch, TokenBatch

_SEED_LIMIT = 2**32  # grain shuffles with 32-bit seeds


def bucket_length(length: int, multiple: int = 8) -> int:
  """Returns length rounded up to a multiple: fewer shapes to compile."""
  return -(-length // multiple) * multiple


def padded_length(lengths: Sequence[int], length: int | None) -> int:
  """Returns length, or the longest rounded up to 8; refuses a longer row."""
  if not lengths:
    raise UserError("an empty batch cannot be padded. Give at least one row.")
  longest = max(lengths)
  if length is None:
    return bucket_length(longest)
  if longest > length:
    raise UserError(
      f"row {lengths.index(longest)} has {longest} tokens and length={length}: "
      "cutting it here would be silent. Encode with max_length <= length, or "
      "raise length."
    )
  return length


def _fill(examples: Sequence, rows: int | None) -> list:
  """Returns examples, the last repeated up to `rows`."""
  if rows is None:
    return list(examples)
  if not 0 < len(examples) <= rows:
    raise UserError(
      f"{len(examples)} examples cannot fill rows={rows}. Give between 1 and "
      f"{rows} of them."
    )
  return [*examples, *[examples[-1]] * (rows - len(examples))]


def collate_tokens(
  examples: Sequence[Row],
  length: int | None,
  pad_id: int,
  *,
  rows: int | None = None,
) -> TokenBatch:
  """Pads rows on the right.

  Args:
    examples: tokens and loss_mask [n]; packed ones also segment_ids and
      positions, and branch_ids where they branch.
    length: tokens of a row; None for the longest, rounded up to 8.
    pad_id: fills tokens; any id of the vocabulary.
    rows: repeat the last example up to this many rows, without loss.

  Returns:
    numpy leaves [B, length].

  Raises:
    ValueError: no examples, or one longer than length.
  """
  filled = _fill(examples, rows)
  length = padded_length([len(e["tokens"]) for e in filled], length)
  shape = (len(filled), length)

  def stack(key: str, dtype, fill=0) -> np.ndarray:
    out = np.full(shape, fill, dtype)
    for row, example in zip(out, filled, strict=True):
      row[: len(example[key])] = example[key]
    return out

  valid_mask = np.zeros(shape, np.float32)
  for row, example in zip(valid_mask, filled, strict=True):
    row[: len(example["tokens"])] = 1.0
  loss_mask = stack("loss_mask", np.float32)
  loss_mask[len(examples) :] = 0.0
  is_packed = "segment_ids" in filled[0]
  return TokenBatch(
    tokens=stack("tokens", np.int32, pad_id),
    valid_mask=valid_mask,
    loss_mask=loss_mask,
    segment_ids=stack("segment_ids", np.int32) if is_packed else None,
    positions=stack("positions", np.int32) if is_packed else None,
    branch_ids=stack("branch_ids", np.int32)
    if "branch_ids" in filled[0]
    else None,
  )


def collate_preferences(
  examples: Sequence[dict],
  length: int | None,
  pad_id: int,
  *,
  rows: int | None = None,
) -> PreferenceBatch:
  """Pads comparisons on the right: candidate 0 is the chosen one.

  Args:
    examples: from encode_comparison.
    length: tokens of a row; None for the longest, rounded up to 8.
    pad_id: fills tokens.
    rows: repeat the last example up to this many rows, with weight 0.

  Returns:
    numpy leaves [B, 2, length]; label and weight [B].

  Raises:
    ValueError: no examples, or one longer than length.
  """
  filled = _fill(examples, rows)
  candidates = [e[name] for e in filled for name in ("chosen", "rejected")]
  flat = collate_tokens(candidates, length, pad_id)
  shape = (len(filled), 2, flat.tokens.shape[-1])
  weight = np.ones(len(filled), np.float32)
  weight[len(examples) :] = 0.0
  return PreferenceBatch(
    tokens=flat.tokens.reshape(shape),
    valid_mask=flat.valid_mask.reshape(shape),
    loss_mask=flat.loss_mask.reshape(shape),
    label=np.array([e["label"] for e in filled], np.float32),
    weight=weight,
  )


def collate_prompts(
  prompts: Sequence[Sequence[int]],
  pad_id: int,
  length: int | None = None,
  *,
  index: Sequence[int] | None = None,
) -> PromptBatch:
  """Pads prompts on the left.

  Args:
    prompts: token ids, at least one each.
    pad_id: fills tokens.
    length: columns; None for the longest, rounded up to 8.
    index: number of each prompt in its data set, part of its random keys;
      None numbers the rows of this batch, which suits a single batch only.

  Returns:
    numpy leaves [B, length] and index [B] int32.

  Raises:
    ValueError: a prompt that is empty or longer than length.
  """
  lengths = [len(prompt) for prompt in prompts]
  if 0 in lengths:
    raise UserError(
      f"prompt {lengths.index(0)} of the batch has no tokens, so nothing "
      "predicts the first response token. Give it a text or a begin token."
    )
  if length is not None and max(lengths, default=0) > length:
    raise UserError(
      f"prompt {lengths.index(max(lengths))} of the batch has {max(lengths)} "
      f"tokens and the context leaves {length} for prompts. Shorten it, or "
      "raise the context length (or lower the number of new tokens)."
    )
  length = padded_length(lengths, length)
  tokens = np.full((len(prompts), length), pad_id, np.int32)
  valid_mask = np.zeros((len(prompts), length), np.float32)
  for n, prompt in enumerate(prompts):
    tokens[n, length - len(prompt) :] = prompt
    valid_mask[n, length - len(prompt) :] = 1.0
  numbers = np.arange(len(prompts)) if index is None else np.asarray(index)
  if numbers.shape != (len(prompts),):
    raise UserError(
      f"index has shape {numbers.shape} for {len(prompts)} prompts. Give one "
      "number a prompt."
    )
  return PromptBatch(tokens, valid_mask, numbers.astype(np.int32))


def fingerprint(content: Any) -> str:
  """Returns 16 hex digits of nested lists, dicts, arrays, texts and numbers."""
  digest = hashlib.sha256()

  def add(part: Any) -> None:
    if isinstance(part, np.ndarray):
      digest.update(f"a{part.dtype}{part.shape}".encode())
      digest.update(np.ascontiguousarray(part).tobytes())
    elif isinstance(part, dict):
      digest.update(f"d{len(part)}".encode())
      for key in sorted(part):
        add(key)
        add(part[key])
    elif hasattr(part, "digest"):  # rows on disk, which know it
      digest.update(f"r{len(part)}{part.digest}".encode())
    elif isinstance(part, list | tuple):
      digest.update(f"l{len(part)}".encode())
      for item in part:
        add(item)
    else:
      text = repr(part).encode("utf-8", "surrogatepass")
      digest.update(f"t{len(text)}".encode() + text)

  add(content)
  return digest.hexdigest()[:16]


class Loader(Iterator):
  """An open stream of batches whose position can be saved (make_loader)."""

  def __init__(self, dataset: grain.MapDataset, settings: dict):
    self._settings = settings
    self._iterator = iter(
      dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
      )
    )

  def __next__(self):
    return next(self._iterator)

  def get_state(self) -> dict:
    """Returns the position, JSON-able, with the settings it belongs to."""
    return {**self._settings, "position": self._iterator.get_state()}

  def set_state(self, state: dict) -> None:
    """Continues with the batch after the one that `state` was taken at.

    Raises:
      ValueError: the state belongs to other data or another order.
    """
    state = {"data": self._settings["data"]} | state  # absent in older ones
    for name, value in self._settings.items():
      if state.get(name) != value:
        what = f"{name}={state.get(name)} and this run {name}={value}"
        if name == "data":
          what += (
            f" (fingerprints: as many examples, {self._settings['examples']}, "
            "with other contents)"
          )
        raise UserError(
          f"resume: the saved data position has {what}, so batches would "
          "repeat or be skipped. Restore the setting or the data, or start a "
          "new run."
        )
    self._iterator.set_state(state["position"])


def _check_order(
  count: int, batch_size: int, num_epochs: int | None, drops_remainder: bool
) -> None:
  if count == 0:
    raise UserError("the data set is empty. Give at least one example.")
  if batch_size < 1:
    raise UserError(f"batch_size={batch_size}: set batch_size >= 1.")
  if num_epochs is not None and num_epochs < 1:
    raise UserError(
      f"num_epochs={num_epochs}: set num_epochs >= 1, or None for no end."
    )
  if count < batch_size and (drops_remainder or num_epochs is None):
    raise UserError(
      f"{count} examples do not fill one batch of batch_size={batch_size}. "
      "Lower batch_size, or give more examples."
    )


def _slice(batch: Any, index: int, count: int) -> Any:
  """Returns one of `count` equal parts of the rows of a batch."""

  def one(x: np.ndarray) -> np.ndarray:
    rows = len(x) // count
    return x[index * rows : (index + 1) * rows]

  return jax.tree.map(one, batch)


def make_loader(
  examples: Sequence[Any],
  batch_size: int,
  *,
  seed: int,
  is_shuffled: bool = True,
  num_epochs: int | None = None,
  shard_index: int = 0,
  shard_count: int = 1,
  collate: Callable[[list], Any],
  drops_remainder: bool = True,
  content: Any = None,
  shares_rows: bool = False,
) -> Loader:
  """Returns an endless or finite stream of this host's part of each batch.

  The order is one global order: batch b holds the same examples however many
  hosts share it, host i taking its i-th slice. Each epoch has an order of its
  own; a batch may span the border of two epochs, so no example is lost there.

  Args:
    examples: anything with a length and integer indexing.
    batch_size: rows of the global batch, all hosts together.
    seed: of the shuffle, in [0, 2**32).
    is_shuffled: False keeps the order.
    num_epochs: None never ends.
    shard_index, shard_count: this host and the number of hosts.
    collate: list of batch_size / shard_count examples -> batch.
    drops_remainder: False yields a smaller last batch (one host only).
    content: what the examples stand for where they are numbers of rows, so that
      other data under the same name are noticed at a resume.
    shares_rows: collate gets the examples of all hosts, as their rows depend on
      one another, and each host takes its part of the rows.

  Raises:
    ValueError: settings that cannot make one full batch.
  """
  count = len(examples)
  _check_order(count, batch_size, num_epochs, drops_remainder)
  if batch_size % shard_count or not 0 <= shard_index < shard_count:
    raise UserError(
      f"batch_size={batch_size} for host shard_index={shard_index} of "
      f"shard_count={shard_count}: each host takes an equal part. Set "
      "batch_size to a multiple of the hosts, numbered from 0."
    )
  if not drops_remainder and shard_count > 1:
    raise UserError(
      f"drops_remainder=False with shard_count={shard_count}: hosts would "
      "get last batches of different sizes. Set drops_remainder=True."
    )
  if not 0 <= seed < _SEED_LIMIT:
    raise UserError(f"seed={seed}: must be in [0, 2**32). Choose another.")
  dataset = grain.MapDataset.source(examples).seed(seed)
  if is_shuffled:
    dataset = dataset.shuffle()
  rows = batch_size // shard_count

  def part(batch: Sequence) -> Any:
    if shares_rows:
      return _slice(collate(list(batch)), shard_index, shard_count)
    return collate(list(batch)[shard_index * rows : (shard_index + 1) * rows])

  dataset = dataset.repeat(num_epochs).batch(
    batch_size, drop_remainder=drops_remainder, batch_fn=part
  )
  settings = {
    "examples": count,
    "batch_size": batch_size,
    "seed": seed,
    "shuffle": is_shuffled,
    "data": fingerprint(examples if content is None else content),
  }
  return Loader(dataset, settings)
