"""What splits text before merges apply, by its name in a GGUF file.

The regular expressions are those of the models' own tokenizer.json, which
llama.cpp's table of tokenizer.ggml.pre spells out (src/llama-vocab.cpp); each
of a list splits what the ones before have left.
"""

from __future__ import annotations

from dataclasses import dataclass

import tokenizers
from tokenizers import pre_tokenizers

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_BREAKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BREAKS}"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_OTHER = r"[^\r\n\p{L}\p{N}]?"

GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_TAIL}"
QWEN35 = (
  rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
  rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BREAKS}"
)
TEKKEN = (
  rf"{_OTHER}{_UPPER}*{_LOWER}+|{_OTHER}{_UPPER}+{_LOWER}*|\p{{N}}"
  rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BREAKS}"
)
GPT4O = (
  rf"{_OTHER}{_UPPER}*{_LOWER}+{_CONTRACTION}?"
  rf"|{_OTHER}{_UPPER}+{_LOWER}*{_CONTRACTION}?|\p{{N}}{{1,3}}"
  rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BREAKS}"
)
DEEPSEEK_CODER = (
  "[\r\n]",
  r"\s?\p{L}+",
  r"\s?\p{P}+",
  "[一-龥ࠀ-一가-\ud7ff]+",
  r"\p{N}",
)
DEEPSEEK3 = (
  r"\p{N}{1,3}",
  "[一-龥぀-ゟ゠-ヿ]+",
  r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
  r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
  rf"|{_BREAKS}",
)
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


@dataclass(frozen=True)
class Split:
  """How one tokenizer.ggml.pre splits text.

  patterns: regular expressions; a match is a part of its own.
  ignores_merges: a part that is a token stays whole.
  has_begin: plain texts start with the begin token where the file is silent.
  """

  patterns: tuple[str, ...]
  ignores_merges: bool = False
  has_begin: bool = False

  def pre_tokenizer(self) -> tokenizers.pre_tokenizers.PreTokenizer:
    """Returns the steps, down to bytes written as characters."""
    steps = [
      pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
      for pattern in self.patterns
    ]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*steps, letters])


def _names(text: str, split: Split) -> dict[str, Split]:
  return dict.fromkeys(text.split(), split)


SPLITS: dict[str, Split] = {
  "default": Split(DEFAULT),
  **_names(
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 "
    "jina-v5-nano",
    Split((LLAMA3,), ignores_merges=True, has_begin=True),
  ),
  **_names("dbrx smaug-bpe chatglm-bpe", Split((LLAMA3,))),
  **_names("glm4 glm5", Split((LLAMA3,), ignores_merges=True)),
  **_names(
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open "
    "grok-2",
    Split((QWEN2,)),
  ),
  "qwen35": Split((QWEN35,)),
  "tekken": Split((TEKKEN,), ignores_merges=True, has_begin=True),
  **_names("gpt-4o llama4 kanana2 talkie minimax-m2", Split((GPT4O,))),
  **_names(
    "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 roberta-bpe "
    "gigachat a.x-4.0 mellum modern-bert",
    Split((GPT2,)),
  ),
  **_names(
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    Split((r"\p{N}", GPT2)),
  ),
  "falcon": Split(FALCON),
  "deepseek-coder": Split(DEEPSEEK_CODER),
  **_names("deepseek-v3 hunyuan-dense joyai-llm hy_v4", Split(DEEPSEEK3)),
}
