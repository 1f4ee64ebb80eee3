"""Tiny vocabularies as GGUF files, and texts that tell splits apart.

Written by hand: byte-level ones have every byte and merges across whatever a
split keeps apart, the SentencePiece one words with scores.
"""

from pathlib import Path

import gguf
from tokenizers import pre_tokenizers

from tests.oracles import chat_styles

PAIRS = (
  *("12", "34", "123", "a1", "1a", " a", "  ", "   ", "\n\n", "\n ", " \n"),
  *("'s", "'S", "'t", "ab", "AB", "aB", "Ab", "a'", "!!", "! ", " !", "!\n"),
  *(
    "/\n",
    "\n/",
    "!a",
    "(a",
    "\ta",
    "é",
    "éa",
    "日本",
    "a日",
    "1日",
    "²",
    "a.b",
  ),
  *("\r\n", "?!", "$1", "1.", "é́", "_a", "a_", "=="),
)
TEXTS = (
  "ab AB aB Ab abAB don't DON'T a's a'S",
  "1234567 12 3 a1 1a 1,234.5 $12 2nd x1y2",
  "a  b   c    d\n\n\ne \n f\t\tg \r\n h   ",
  "hi!! (ok) [x]... ?!\n\n/path/\n=== #a -b _c_",
  "éàü naïve 日本語 한국어 тест ١٢٣ ² ½ é́ 🎬🎬",
  "  a", "a  ", "", " ", "\n", "Hello world", "HTTPServer iPhone",
)  # fmt: skip
SPM_TEXTS = (
  "the cat", " the cat", "  the  cat ", "What is the name?\n", "naïve 日本 🎬",
  "<s>the</s>", "▁the", "catcat", "a<tag>b the<tag> cat", "", " ",
)  # fmt: skip


def byte_level(path: Path, pre: str) -> Path:
  """Writes a byte-level BPE whose texts are split as `pre` says."""
  merges = {}
  for pair in PAIRS:
    letters = chat_styles.byte_letters(pair)
    for n in range(1, len(letters)):
      merges[(letters[:n], letters[n])] = None
  tokens = ["<|end|>", "<|begin|>"]
  tokens += sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens += [left + right for left, right in merges]
  tokens = list(dict.fromkeys(tokens))
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(tokens)
  writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
  writer.add_token_merges([" ".join(pair) for pair in merges])
  writer.add_eos_token_id(0)
  writer.add_bos_token_id(1)
  return closed(writer, path)


def sentencepiece(path: Path, **changes) -> Path:
  """Writes a SentencePiece vocabulary as the kind "llama"."""
  merges = chat_styles.merges(lambda text: text.replace(" ", "▁"))
  rows = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
  rows += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
  words = [left + right for left, right in merges]
  words += ["▁", *map(chr, range(33, 127))]
  rows += [(w, -float(n), 1) for n, w in enumerate(dict.fromkeys(words))]
  rows += [("<tag>", 0.0, 4), ("   ", 0.0, 4), ("<unused>", 0.0, 5)]
  tokens, scores, kinds = zip(*rows, strict=True)
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_tokenizer_model("llama")
  writer.add_tokenizer_pre("default")
  writer.add_token_list(tokens)
  writer.add_token_scores(scores)
  writer.add_token_types(kinds)
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_unk_token_id(0)
  for key, value in changes.items():
    writer.add_bool(f"tokenizer.ggml.{key}", value)
  return closed(writer, path)


def closed(writer: gguf.GGUFWriter, path: Path) -> Path:
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path
