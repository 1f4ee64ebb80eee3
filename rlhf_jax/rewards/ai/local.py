"""A judge on this machine: the probabilities of its labels, and its texts.

A question is rendered with the chat template, or as a transcript where there is
none, and the answer begins with the question's prefix. What follows are labels,
as the tokenizer spells them (spelling.py).

One pass reads every question, and one more each beginning that several labels
share. The randomness of a text is folded from its dialogue, so it depends on no
batch and no restart.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed, generate, ops
from rlhf_jax.data import (
  batches,
  rendering,
  stops,
  streams,
  transcripts,
)
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.models import outputs, roles
from rlhf_jax.models.rows import Rows
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.rewards import reader
from rlhf_jax.rewards.ai import spelling
from rlhf_jax.rewards.ai.questions import Messages, Question
from rlhf_jax.rewards.ai.voices import LONG, Replies, Reply, Saying
from rlhf_jax.schema import UserError
from rlhf_jax.types import FINISH_EOS, Array, Samples, TokenBatch


def next_logprobs(
  role: roles.Role, variables: Any, batch: TokenBatch, wanted: Array
) -> Array:
  """Returns [B, C] log-probabilities of tokens right after rows.

  Args:
    role: of a policy.
    variables: merged.
    batch: [B, L], padded right.
    wanted: [C] int32 ids.
  """
  rows = Rows.of(batch)
  last = jax.numpy.sum(batch.valid_mask, axis=1).astype(jax.numpy.int32) - 1
  x = outputs.stream(role, variables, rows, None, last[:, None])
  params = {"params": variables["params"]}
  logits = role.network.apply(params, x, method="unembed")[:, 0]
  logits = ops.hide_rows(logits, role.model.empty_rows)
  return jax.nn.log_softmax(logits, axis=-1)[:, wanted]


def has_template(tokenizer: Tokenizer) -> bool:
  """Says whether there is a chat template, or ChatML's tokens."""
  try:
    rendering.template_of(tokenizer)
  except UserError:
    return False
  return True


@functools.lru_cache(maxsize=8)
def _compiled(role: roles.Role) -> Any:
  return jax.jit(functools.partial(next_logprobs, role))


class Local:
  """A model on this machine as a voice."""

  def __init__(
    self,
    name: str,
    role: roles.Role,
    variables: Any,
    tokenizer: Tokenizer,
    mesh: jax.sharding.Mesh,
    identity: dict[str, Any],
    batch_size: int,
    chat: bool | None = None,
  ):
    """Makes a voice of a policy.

    Args:
      name: for people.
      role, variables: of the policy, merged.
      tokenizer: its own.
      mesh: where it is.
      identity: of its weights.
      batch_size: questions that are read, or answered, together.
      chat: dialogues are rendered with its chat template, or written as
        transcripts; None: with the template if there is one.

    Raises:
      UserError: chat, and there is no template.
    """
    self.name = name
    self._role, self._variables, self._mesh = role, variables, mesh
    self._tokenizer, self._size = tokenizer, batch_size
    self._is_chat = has_template(tokenizer) if chat is None else chat
    if self._is_chat:
      rendering.template_of(tokenizer)
    self.identity = {
      **identity,
      "template": tokenizer.chat_template if self._is_chat else "",
      "dtype": role.model.dtype,
    }

  @property
  def most(self) -> int:
    """Tokens that it reads."""
    return self._role.model.max_length

  def _ids(self, messages: Messages, prefix: Sequence[int] = ()) -> list[int]:
    """Returns the ids after which it answers."""
    if self._is_chat:
      return [*streams.prompt(messages, self._tokenizer), *prefix]
    text = transcripts.write(messages).lstrip()
    return [*streams.text_prompt(text, self._tokenizer), *prefix]

  def spelled(self, question: Question) -> spelling.Spelling:
    """Returns how its tokenizer writes the labels of a question."""
    prefix = question.prefix if self._is_chat else f" {question.prefix}"
    is_single = all(len(label) == 1 for label in question.labels)
    return spelling.spelled(
      prefix,
      question.labels,
      self._tokenizer,
      is_single=is_single,
      space=question.space,
    )

  def label_logprobs(self, questions: Sequence[Question]) -> Replies:
    """See voices.Voice."""
    spelled = [self.spelled(question) for question in questions]
    before = [
      self._ids(question.messages, found.prefix)
      for question, found in zip(questions, spelled, strict=True)
    ]
    order = sorted(range(len(before)), key=lambda i: len(before[i]))
    for places in _parts(len(order), self._size):
      part = [order[i] for i in places]
      yield from self._part(part, before, spelled)

  def _part(
    self,
    part: Sequence[int],
    before: Sequence[list[int]],
    spelled: Sequence[spelling.Spelling],
  ) -> Replies:
    """Yields the labels of some questions, read together.

    Args:
      part: their numbers.
      before: of all questions: ids before the label.
      spelled: of all questions: their labels.
    """
    rows, owners = [], []
    for i in part:
      longest = max(map(len, spelled[i].nodes))
      if len(before[i]) + longest > self.most:
        continue
      for node in spelled[i].nodes:
        rows.append([*before[i], *node])
        owners.append((i, node))
    wanted = sorted(
      {t for i in part for path in spelled[i].labels for t in path}
    )
    table = self._read(rows, wanted) if rows else np.zeros((0, 0))
    column = {token: place for place, token in enumerate(wanted)}
    of_node = dict(zip(owners, table, strict=True))
    for i in part:
      if (i, ()) not in of_node:
        yield i, Reply(None, LONG)
        continue
      nodes = spelled[i].nodes
      found = spelling.path_logprobs(
        spelled[i].labels, {x: of_node[i, x] for x in nodes}, column
      )
      cost = sum(len(before[i]) + len(x) for x in nodes)
      yield i, Reply(found, prompt_tokens=cost)

  def _read(self, rows: list[list[int]], wanted: list[int]) -> np.ndarray:
    """Returns [N, C] log-probabilities of tokens after rows, as float64."""
    size = reader.rows_of_pass(len(rows), mesh_lib.row_ways(self._mesh))
    order = np.argsort([len(row) for row in rows], kind="stable")
    result = np.zeros((len(rows), len(wanted)))
    forward, tokens = _compiled(self._role), np.asarray(wanted, np.int32)
    for part in _parts(len(rows), size):
      chosen = order[part.start : part.stop]
      longest = len(rows[chosen[-1]])
      width = next(w for w in reader.widths(self.most) if w >= longest)
      batch = batches.collate_tokens(
        [
          {"tokens": np.asarray(rows[i], np.int32), "loss_mask": _ones(rows[i])}
          for i in chosen
        ],
        width,
        self._tokenizer.pad_id,
        rows=size,
      )
      with mesh_lib.current(self._mesh):
        placed = mesh_lib.spread_batch(self._mesh, batch)
        found = forward(self._variables, placed, tokens)
      result[chosen] = distributed.fetch(found)[: len(chosen)]
    return result

  def say(self, dialogues: Sequence[Messages], how: Saying) -> Replies:
    """See voices.Voice."""
    room = self.most - how.max_new_tokens
    ids = [self._ids(messages) for messages in dialogues]
    fits = [i for i, row in enumerate(ids) if len(row) <= room]
    for i in sorted(set(range(len(ids))) - set(fits)):
      yield i, Reply(None, LONG)
    fits.sort(key=lambda i: len(ids[i]))
    for part in _parts(len(fits), self._size):
      chosen = [fits[i] for i in part]
      # The last is repeated to a full batch: one program for all of them.
      filled = [*chosen, *[chosen[-1]] * (self._size - len(chosen))]
      samples = self._draw(
        [ids[i] for i in filled], [_number(dialogues[i]) for i in filled], how
      )
      for row, i in enumerate(chosen):
        yield i, self._said(samples, row, len(ids[i]))

  def _draw(
    self, rows: list[list[int]], index: list[int], how: Saying
  ) -> Samples:
    """Returns a sample behind each row of ids, on the host."""
    room = self.most - how.max_new_tokens
    width = min(batches.bucket_length(max(map(len, rows)), 32), room)
    batch = batches.collate_prompts(
      rows, self._tokenizer.pad_id, width, index=index
    )
    stop = () if self._is_chat else (transcripts.BEGIN,)
    config = generate.Config(
      max_new_tokens=how.max_new_tokens,
      temperature=how.temperature,
      stop_strings=stop,
    )
    more = {}
    if stop:
      size = self._role.model.vocab_size
      more["stops"] = stops.string_table(self._tokenizer, stop, size)
    with mesh_lib.current(self._mesh):
      samples = generate.generate(
        self._params,
        mesh_lib.spread_batch(self._mesh, batch),
        jax.random.key(how.seed),
        model=self._role.model,
        config=config,
        eos_ids=stops.end_ids(self._tokenizer),
        pad_id=self._tokenizer.pad_id,
        **more,
      )
    return distributed.fetch(samples)

  @functools.cached_property
  def _params(self) -> Any:
    return roles.sampling_params(self._role, self._variables, {})

  def _said(self, samples: Any, row: int, asked: int) -> Reply:
    """Returns the text of a sample; asked: tokens before it."""
    ids = samples.tokens[row][samples.response_mask[row] > 0]
    known = [int(i) for i in ids if i < self._tokenizer.vocab_size]
    text = self._tokenizer.decode(known)
    if not self._is_chat:
      text = text.partition(transcripts.BEGIN)[0]
    ended = int(samples.finish_reason[row]) == FINISH_EOS
    return Reply(text.strip(), "", asked, len(ids), ended)


def _number(messages: Messages) -> int:
  """Returns 31 bits of a dialogue: its place among random keys."""
  digest = hashlib.sha256(json.dumps(messages).encode()).digest()
  return int.from_bytes(digest[:4], "big") >> 1


def _ones(row: Sequence[int]) -> np.ndarray:
  return np.ones(len(row), np.float32)


def _parts(count: int, size: int) -> list[range]:
  return [range(i, min(i + size, count)) for i in range(0, count, size)]
