"""Writes tokens.json: which tokens of a folder transformers takes for what.

  python -m tests.oracles.make_token_goldens

with transformers 5.24.0 in the environment.
"""

import json
import tempfile
from pathlib import Path

from tests.oracles import token_folders

OUTPUT = Path(__file__).with_name("tokens.json")


def described(folder: str) -> dict:
  """Returns what transformers reads from a folder."""
  import transformers

  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
  added = tokenizer.added_tokens_decoder
  named = set(tokenizer.all_special_tokens)
  special = {t.content for t in added.values() if t.special} | named
  return {
    "size": len(tokenizer),
    "named": tokenizer.special_tokens_map,
    "special": {t: tokenizer.convert_tokens_to_ids(t) for t in sorted(special)},
    "added": {
      t.content: i for i, t in added.items() if t.content not in special
    },
    "ids": [
      tokenizer(text, add_special_tokens=False)["input_ids"]
      for text in token_folders.TEXTS
    ],
  }


def main() -> None:
  goldens = {}
  for name in token_folders.FOLDERS:
    with tempfile.TemporaryDirectory() as folder:
      token_folders.write(name, Path(folder))
      try:
        goldens[name] = described(folder)
      except Exception as error:
        goldens[name] = {"error": f"{type(error).__name__}: {error}"[:200]}
  OUTPUT.write_text(json.dumps(goldens, ensure_ascii=False, indent=0) + "\n")
  print(OUTPUT, OUTPUT.stat().st_size, "bytes")


if __name__ == "__main__":
  main()
