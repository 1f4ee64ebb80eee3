"""Writes vocabularies.json: how llama.cpp tokenises with tiny vocabularies.

  python -m tests.oracles.make_vocabulary_goldens

with gguf and llama-cpp-python 0.3.36 in the environment.
"""

import json
import tempfile
from pathlib import Path

from tests.oracles import vocabularies

OUTPUT = Path(__file__).with_name("vocabularies.json")
PRE = (
  "default llama-bpe qwen2 qwen35 tekken gpt-4o gpt-2 smollm falcon "
  "deepseek-coder deepseek-v3 dbrx command-r olmo stablelm2 glm4"
).split()
SPM = ({}, {"add_space_prefix": False}, {"add_bos_token": False})


def encoded(path: Path, texts) -> dict:
  """Returns ids of texts, and of what they begin with."""
  import llama_cpp

  model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
  ids = [
    model.tokenize(t.encode(), add_bos=False, special=False) for t in texts
  ]
  first = model.tokenize(b"a", add_bos=True, special=False)
  rest = model.tokenize(b"a", add_bos=False, special=False)
  return {"ids": ids, "first": first[: len(first) - len(rest)]}


def main() -> None:
  goldens = {}
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "v.gguf"
    for pre in PRE:
      vocabularies.byte_level(path, pre)
      goldens[pre] = encoded(path, vocabularies.TEXTS)
    for n, changes in enumerate(SPM):
      vocabularies.sentencepiece(path, **changes)
      goldens[f"spm {n}"] = encoded(path, vocabularies.SPM_TEXTS)
  OUTPUT.write_text(json.dumps(goldens, separators=(",", ":")) + "\n")
  print(OUTPUT, OUTPUT.stat().st_size, "bytes")


if __name__ == "__main__":
  main()
