"""How many texts and dialogues of a family come out as transformers has them.

For the columns "chat template" and "tokenizer" of a table of families; against
chat.json.gz, so neither torch nor transformers is needed. A family is tried
with the style of its template and the kind of its tokenizer.
"""

import functools
import gzip
import json
import tempfile
from pathlib import Path

from rlhf_jax.data import chat, streams
from rlhf_jax.data.tokenizers import Tokenizer, load_tokenizer
from tests.oracles import chat_styles, conversations
from tests.oracles.make_chat_goldens import PLAIN

GOLDENS = Path(__file__).with_name("chat.json.gz")
# model_type -> styles; the first two came without a chat template.
TOKENIZERS = {
  "gpt2": ("chatml",),
  "gpt_neox": ("chatml",),
  "llama": ("llama2", "llama3", "zephyr"),
  "mistral": ("mistral",),
  "smollm3": ("smollm3",),
  "qwen2": ("chatml", "qwen3"),
  "qwen3": ("qwen3",),
  "gemma": ("gemma",),
  "gemma2": ("gemma",),
  "gemma3_text": ("gemma",),
  "olmo2": ("zephyr", "llama3"),
  "phi3": ("phi3",),
}
TEMPLATES = {
  family: styles
  for family, styles in TOKENIZERS.items()
  if family not in ("gpt2", "gpt_neox")
}


@functools.cache
def goldens() -> dict:
  return json.loads(gzip.decompress(GOLDENS.read_bytes()))


@functools.cache
def loaded(style: str) -> Tokenizer:
  """Returns the tokenizer of a style, with its template."""
  with tempfile.TemporaryDirectory() as folder:
    tokenizer = load_tokenizer(chat_styles.write(style, Path(folder)))
  tokenizer.template_day = chat_styles.DAY
  return tokenizer


def difference(style: str, key: str) -> str:
  """Returns in what a rendering differs, "" where all is equal.

  Args:
    style: of chat_styles.STYLES.
    key: of its goldens, "NUMBER MODE".
  """
  n, mode = key.split()
  conversation, golden = conversations.every()[int(n)], goldens()[style][key]
  try:
    found = chat.render(
      conversation.messages,
      loaded(style),
      tools=conversation.tools,
      documents=conversation.documents,
      add_generation_prompt=mode == "ask",
      continue_final_message=mode == "continue",
    )
  except ValueError as error:
    return f"refused: {error}"
  if found.text != golden["text"]:
    return f"text {found.text!r}, not {golden['text']!r}"
  if found.ids != golden["ids"]:
    return f"ids {found.ids}, not {golden['ids']}, of {found.text!r}"
  mask = golden.get("mask", found.assistant_mask)
  return "" if found.assistant_mask == mask else f"mask, not {mask}"


def templates(family: str) -> tuple[int, int] | None:
  """Returns (equal, all) renderings: texts, ids and masks of the assistant.

  Args:
    family: a model_type.

  Returns:
    None for a family whose models came without a chat template.
  """
  keys = [
    (style, key)
    for style in TEMPLATES.get(family, ())
    for key in goldens()[style]
    if key != PLAIN
  ]
  equal = sum(not difference(style, key) for style, key in keys)
  return (equal, len(keys)) if keys else None


def tokenizers(family: str) -> tuple[int, int]:
  """Returns (equal, all) plain texts: their ids, what begins them included.

  Args:
    family: a model_type.
  """
  pairs = [
    (streams.text_prompt(text, loaded(style)), ids)
    for style in TOKENIZERS[family]
    for text, ids in zip(
      conversations.QUESTIONS, goldens()[style][PLAIN], strict=True
    )
  ]
  return sum(found == ids for found, ids in pairs), len(pairs)
