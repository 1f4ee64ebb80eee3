"""Writes chat.json.gz: what transformers makes of conversations.

  python -m tests.oracles.make_chat_goldens

with transformers 5.24.0 and torch in the environment. For each style, each
conversation that its template takes, and each mode: the text, its ids, and for
templates with {% generation %} the mask of the assistant's tokens. For each
style the ids of plain texts too.
"""

import datetime
import gzip
import json
import tempfile
from pathlib import Path

from tests.oracles import chat_styles, conversations

OUTPUT = Path(__file__).with_name("chat.json.gz")
PLAIN = "plain"  # key of the ids of plain texts, with what begins them


class _Day(datetime.datetime):
  """A clock that stands still."""

  @classmethod
  def now(cls, tz=None):
    return cls.fromisoformat(chat_styles.DAY)


def rendered(tokenizer, style, conversation, mode) -> dict:
  """Returns text, ids and mask of a conversation."""
  given = {
    "tools": conversation.tools,
    "documents": conversation.documents,
    "add_generation_prompt": mode == "ask",
    "continue_final_message": mode == "continue",
  }
  text = tokenizer.apply_chat_template(
    conversation.messages, tokenize=False, **given
  )
  is_masked = style.is_marked and mode == "whole"
  found = tokenizer.apply_chat_template(
    conversation.messages, return_assistant_tokens_mask=is_masked, **given
  )
  entry = {"text": text, "ids": found["input_ids"]}
  if is_masked:
    entry["mask"] = found["assistant_masks"]
  return entry


def main() -> None:
  import transformers
  from transformers.utils import chat_template_utils

  chat_template_utils.datetime = _Day
  goldens = {}
  for name, style in chat_styles.STYLES.items():
    with tempfile.TemporaryDirectory() as folder:
      chat_styles.write(name, Path(folder))
      tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
      goldens[name] = {
        f"{n} {mode}": rendered(tokenizer, style, conversation, mode)
        for n, conversation in enumerate(conversations.every())
        if conversation.needs <= style.takes | ({"marked"} & _marked(style))
        for mode in conversation.modes()
      }
      goldens[name][PLAIN] = [
        tokenizer(text)["input_ids"] for text in conversations.QUESTIONS
      ]
    print(name, len(goldens[name]))
  text = json.dumps(goldens, ensure_ascii=False, sort_keys=True)
  OUTPUT.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
  print(OUTPUT, OUTPUT.stat().st_size, "bytes; transformers", end=" ")
  print(transformers.__version__)


def _marked(style) -> set[str]:
  return {"marked"} if style.is_marked else set()


if __name__ == "__main__":
  main()
