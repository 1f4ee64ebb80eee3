"""Tiny tokenizers of several kinds, each with a chat template of its style.

Both sides build them: make_chat_goldens.py, for transformers, and the tests.
Vocabularies are written by hand, so that every version of the tokenizers
library has the same. Nothing but that library is needed here.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers
from tokenizers import (
  AddedToken,
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from tests.oracles import chat_templates as own

DAY = "2025-03-04"  # that strftime_now writes
WORDS = (
  "system user assistant model tool the cat is name Be helpful Today What Yes "
  "function parameters content you and start end im INST"
).split()
LLAMA_3_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = LLAMA_3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Style:
  """A template and what it is rendered with.

  kind: of tokenizer, a key of KINDS.
  template: Jinja source.
  special: texts of special tokens.
  added: texts of added tokens that are not special.
  named: entries of tokenizer_config.json.
  takes: of "system", "tools", "calls", "documents", "parts", "name", "thoughts"
    and "order" (any); a conversation that needs another is left out.
  is_marked: it has {% generation %}.
  """

  kind: str
  template: str
  special: tuple[str, ...]
  named: dict = field(default_factory=dict)
  added: tuple[str, ...] = ()
  takes: frozenset[str] = frozenset()
  is_marked: bool = False


def _takes(text: str) -> frozenset[str]:
  return frozenset(text.split())


CHATML_ENDS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
SPM_ENDS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
THOUGHTS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
STYLES = {
  "chatml": Style(
    "byte",
    own.CHATML,
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    CHATML_ENDS,
    takes=_takes("system documents name order"),
  ),
  "llama2": Style(
    "spm", own.LLAMA_2, ("<s>", "</s>"), SPM_ENDS, takes=_takes("system")
  ),
  "llama3": Style(
    "llama3",
    own.LLAMA_3,
    (
      "<|begin_of_text|>",
      "<|end_of_text|>",
      "<|start_header_id|>",
      "<|end_header_id|>",
      "<|eot_id|>",
      "<|eom_id|>",
    ),
    {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    takes=_takes("system tools calls order"),
  ),
  "mistral": Style(
    "first",
    own.MISTRAL,
    (
      "<s>",
      "</s>",
      *("[INST]", "[/INST]", "[TOOL_CALLS]"),
      *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
      *("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    ),
    SPM_ENDS,
    takes=_takes("system tools calls order"),
  ),
  "gemma": Style(
    "gemma",
    own.GEMMA,
    ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    added=("\n\n",),
    takes=_takes("system parts"),
  ),
  "phi3": Style(
    "phi",
    own.PHI_3,
    ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>")
    + ("<|end|>",),
    {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
    added=("</s>",),
    takes=_takes("system order"),
  ),
  "qwen3": Style(
    "qwen",
    own.QWEN_3,
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    CHATML_ENDS,
    added=(*THOUGHTS, "<tool_response>", "</tool_response>"),
    takes=_takes("system tools calls thoughts order"),
    is_marked=True,
  ),
  "smollm3": Style(
    "llama3",
    own.SMOLLM_3,
    ("<|begin_of_text|>", "<|im_start|>", "<|im_end|>"),
    {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"},
    added=THOUGHTS,
    takes=_takes("system tools calls parts order"),
    is_marked=True,
  ),
  "zephyr": Style(
    "spm",
    own.ZEPHYR,
    ("<s>", "</s>"),
    SPM_ENDS,
    takes=_takes("system order"),
    is_marked=True,
  ),
}


def merges(letters) -> list[tuple[str, str]]:
  """Returns merges that build each of WORDS, alone and behind a space."""
  found = {}
  for word in WORDS:
    for text in (word, " " + word):
      text = letters(text)
      for n in range(1, len(text)):
        found[(text[:n], text[n])] = None
  return list(found)


def byte_letters(text: str) -> str:
  printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = iter(range(256, 512))
  table = [chr(b if b in printable else next(others)) for b in range(256)]
  return "".join(table[b] for b in text.encode())


def _byte_level(style: Style, split: str | None) -> tokenizers.Tokenizer:
  pairs = merges(byte_letters)
  tokens = [
    *map(byte_letters, map(chr, range(128))),
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *(a + b for a, b in pairs),
  ]
  vocabulary = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab=vocabulary, merges=pairs, ignore_merges=style.kind == "llama3"
    )
  )
  steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
  if split is not None:
    steps = [
      pre_tokenizers.Split(Regex(split), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
  backend.decoder = decoders.ByteLevel()
  if style.kind == "qwen":
    backend.normalizer = normalizers.NFC()
  return backend


def _spm(style: Style) -> tokenizers.Tokenizer:
  """Returns a tokenizer that writes spaces as "▁", with bytes to fall back."""
  pairs = merges(lambda text: text.replace(" ", "▁"))
  tokens = [
    "<unk>",
    *(t for t in ("<s>", "</s>") if t in (*style.special, *style.added)),
    *(f"<0x{b:02X}>" for b in range(256)),
    "▁",
    *map(chr, range(33, 127)),
    *("\n",) * (style.kind == "gemma"),
    *(a + b for a, b in pairs),
  ]
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab={t: i for i, t in enumerate(dict.fromkeys(tokens))},
      merges=pairs,
      unk_token="<unk>",
      byte_fallback=True,
      fuse_unk=True,
    )
  )
  steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  if style.kind == "gemma":
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  elif style.kind == "first":
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme="first", split=False
    )
  else:
    backend.normalizer = normalizers.Sequence(
      [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
  if style.kind != "gemma":
    steps.append(decoders.Strip(content=" ", left=1))
  backend.decoder = decoders.Sequence(steps)
  return backend


def tokenizer(style: Style) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a style."""
  splits = {"byte": None, "llama3": LLAMA_3_SPLIT, "qwen": QWEN_SPLIT}
  if style.kind in splits:
    backend = _byte_level(style, splits[style.kind])
  else:
    backend = _spm(style)
  backend.add_special_tokens(
    [
      AddedToken(
        text,
        special=True,
        normalized=False,
        rstrip=style.kind == "phi" and text not in ("<s>", "<|endoftext|>"),
      )
      for text in style.special
    ]
  )
  backend.add_tokens(
    [AddedToken(t, special=False, normalized=False) for t in style.added]
  )
  begin = style.named.get("bos_token")
  if begin is not None and style.kind != "byte":
    backend.post_processor = processors.TemplateProcessing(
      single=f"{begin} $A",
      special_tokens=[(begin, backend.token_to_id(begin))],
    )
  return backend


def write(name: str, folder: Path) -> Path:
  """Writes the folder of a style: tokenizer, its config and its template."""
  style = STYLES[name]
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer(style).save(str(folder / "tokenizer.json"))
  config = {"tokenizer_class": "PreTrainedTokenizerFast", **style.named}
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  (folder / "chat_template.jinja").write_text(style.template)
  return folder
