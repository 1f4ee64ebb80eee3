"""Folders whose files declare tokens in the ways that people's files do."""

import json
from pathlib import Path

from tests.oracles import chat_styles

TEXTS = ("the cat is 12", "don't\n\nyou and", "naïve 日本", " a", "")
NAMED = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
NEW = {
  "content": "<new>",
  "lstrip": False,
  "rstrip": True,
  "normalized": False,
  "single_word": False,
  "special": True,
}
# Name -> the files beside tokenizer.json; see chat_styles.STYLES["qwen3"].
FOLDERS = {
  "plain": {"tokenizer_config.json": NAMED},
  "map alone": {
    "tokenizer_config.json": {},
    "special_tokens_map.json": NAMED,
  },
  "map over config": {
    "tokenizer_config.json": {**NAMED, "eos_token": "<|endoftext|>"},
    "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>"}},
  },
  "decoder over map": {
    "tokenizer_config.json": {
      **NAMED,
      "added_tokens_decoder": {"{size}": NEW},
    },
    "special_tokens_map.json": {"eos_token": "<|im_start|>"},
  },
  "decoder makes special": {
    "tokenizer_config.json": {
      **NAMED,
      "added_tokens_decoder": {"{size}": NEW},
      "additional_special_tokens": ["<think>", "<new>"],
    },
  },
  "additional": {
    "tokenizer_config.json": {
      **NAMED,
      "additional_special_tokens": ["<|im_start|>", "<more>", "<tool_call>"],
    },
  },
  "extra by name": {
    "tokenizer_config.json": {
      **NAMED,
      "extra_special_tokens": {"image_token": "<image>"},
    },
  },
  "model token": {
    "tokenizer_config.json": {**NAMED, "image_token": "<image>"},
  },
  "objects": {
    "tokenizer_config.json": {
      "eos_token": {
        "__type": "AddedToken",
        "content": "<|im_end|>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
      },
      "unk_token": None,
      "bos_token": "<|im_start|>",
    },
  },
  "legacy": {
    "tokenizer_config.json": NAMED,
    "added_tokens.json": {"<old>": "{size}"},
    "special_tokens_map.json": {"additional_special_tokens": ["<old>"]},
  },
}


def write(name: str, folder: Path) -> Path:
  """Writes one of FOLDERS."""
  chat_styles.write("qwen3", folder)
  style = chat_styles.STYLES["qwen3"]
  size = chat_styles.tokenizer(style).get_vocab_size()
  for file, content in FOLDERS[name].items():
    if file == "tokenizer_config.json":
      content = {"tokenizer_class": "PreTrainedTokenizerFast", **content}
    text = json.dumps(content).replace('"{size}": {', f'"{size}": {{')
    (folder / file).write_text(text.replace('"{size}"', str(size)))
  return folder
