"""What ends an answer: tokens by name, and strings that span tokens.

End tokens are those of the tokenizer, of generation_config.json and
config.json, the one with which the chat template closes the assistant's turn,
and those that settings name. All of them stop the sampler.

Stop strings become one automaton over bytes (Aho and Corasick 1975), run over
the bytes of every token beforehand:

  table[state, token] = next state, + number of states where one is complete

so the sampler looks up one number a token, in whatever tokens a string comes.
The token that completes a string belongs to the answer.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence

import numpy as np

from rlhf_jax.data import chat, controls, rendering, tokenizers
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import UserError


def end_of_turn(tokenizer: Tokenizer) -> int | None:
  """Returns the token with which the template ends the assistant's turn.

  None without a template, and for one that does not render a question and its
  answer or closes the turn with text: rendering a record says so.
  """
  if getattr(tokenizer, "special_tokens", None) is None:
    return None
  return _end_of_turn(tokenizer, tokenizer.chat_template)


@functools.lru_cache(maxsize=8)  # it is asked for every record
def _end_of_turn(tokenizer: Tokenizer, template: str | None) -> int | None:
  """Returns `end_of_turn`; another template may end it otherwise."""
  del template
  probe = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
  ]
  try:
    rendered = chat.render(probe, tokenizer)
  except ValueError:
    return None
  known, _ = controls.for_template(tokenizer, rendering.template_of(tokenizer))
  special = set(known.special_tokens.values())
  pairs = zip(rendered.ids, rendered.assistant_mask, strict=True)
  learned = [i for i, is_learned in pairs if is_learned]
  while learned and learned[-1] not in special:
    # Some templates mark a line break behind the end of the turn too.
    if tokenizer.decode(learned[-1:], skip_special=False).strip():
      return None
    learned.pop()
  return learned[-1] if learned else None


def end_ids(
  tokenizer: Tokenizer, further: Sequence[str] = ()
) -> tuple[int, ...]:
  """Returns the ids of all tokens that end an answer, that of the model first.

  Args:
    tokenizer: of the model.
    further: texts of more tokens, such as "<|eot_id|>" or ";".

  Raises:
    UserError: a text that is not one token.
  """
  found = list(tokenizers.end_ids(tokenizer))
  found += [i for i in (end_of_turn(tokenizer),) if i is not None]
  for text in further:
    ids = [getattr(tokenizer, "special_tokens", {}).get(text)]
    if ids == [None]:
      ids = tokenizers.encode_inside(text, tokenizer)
    if len(ids) != 1:
      raise UserError(
        f"generate.stop_tokens: {text!r} is {len(ids)} tokens of "
        f"{tokenizer.name}. Name single tokens, or put it into "
        "generate.stop_strings."
      )
    found += ids
  return tuple(dict.fromkeys(found))


def _automaton(strings: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
  """Returns next states [S, 256] and whether one completes a string [S]."""
  children: list[dict[int, int]] = [{}]
  is_complete = [False]
  for string in strings:
    state = 0
    for byte in string:
      if byte not in children[state]:
        children[state][byte] = len(children)
        children.append({})
        is_complete.append(False)
      state = children[state][byte]
    is_complete[state] = True
  step = np.zeros((len(children), 256), np.int32)
  fallback = [0] * len(children)
  queue = deque([0])
  while queue:
    state = queue.popleft()
    is_complete[state] |= is_complete[fallback[state]]
    if state:
      step[state] = step[fallback[state]]
    for byte, child in children[state].items():
      fallback[child] = int(step[state, byte]) if state else 0
      step[state, byte] = child
      queue.append(child)
  return step, np.asarray(is_complete)


def string_table(
  tokenizer: Tokenizer, strings: Sequence[str], rows: int
) -> np.ndarray | None:
  """Returns table [S, V] int32 of the module's docstring, None for no strings.

  Args:
    tokenizer: whose tokens.
    strings: that end an answer.
    rows: V, of the model's vocabulary; what has no token changes no state.

  Raises:
    UserError: a tokenizer that does not say what its tokens stand for.
  """
  if not strings:
    return None
  if not hasattr(tokenizer, "pieces"):
    raise UserError(
      f"generate.stop_strings={tuple(strings)}: {tokenizer.name} does not say "
      "which bytes a token stands for. Use generate.stop_tokens."
    )
  step, is_complete = _automaton([string.encode() for string in strings])
  states = len(is_complete)
  pieces = tokenizer.pieces()
  found = np.tile(np.arange(states, dtype=np.int32)[:, None], (1, rows))
  has_string = np.zeros((states, rows), bool)
  longest = max(map(len, pieces))
  spelled = np.full((rows, longest), -1, np.int16)
  for i, piece in enumerate(pieces):
    spelled[i, : len(piece)] = np.frombuffer(piece, np.uint8)
  for column in spelled.T:
    here = np.flatnonzero(column >= 0)
    found[:, here] = step[found[:, here], column[here]]
    has_string[:, here] |= is_complete[found[:, here]]
  return found + states * has_string
