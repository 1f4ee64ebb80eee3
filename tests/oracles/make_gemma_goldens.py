"""Gemma 3 270M as transformers and llama.cpp compute it, of one GGUF file.

Runs in an environment of its own, without this package (that of
make_family_goldens.py with gguf, and llama-cpp-python 0.3.36):

  oracle/bin/python tests/oracles/make_gemma_goldens.py FILE.gguf

FILE is asset:gemma-3-270m, which everybody fetches for themselves under the
Gemma Terms of Use; no weight of it is kept here. Writes gemma3_270m.json:

  logits   of each text: its ids, and of every position the 4 largest logits
           of transformers (float32, eager) with their tokens, and the
           logsumexp
  greedy   the 16 tokens that transformers appends to each text, and how many of
           them llama.cpp begins with: it rounds what goes into a quantised
           matrix to 8 bits, and a near tie falls otherwise
  tokens   ids of assorted texts by llama.cpp, and by transformers' conversion
           of the same vocabulary where those differ
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import llama_cpp
import torch
import transformers

HERE = Path(__file__).parent
NEW_TOKENS = 16
TEXTS = [
  "The capital of France is",
  "Once upon a time, there was a small dragon who",
  "def fibonacci(n):\n    if n < 2:\n        return",
]
TOKEN_TEXTS = [
  *TEXTS,
  "",
  " leading space",
  "two  spaces,   three    and more     of them",
  "tabs\tand\n\nnewlines\n\n\n\nat once\r\n",
  "12345 + 6789 = 19134; 3.14159",
  "Ünïcödé 漢字テスト 한국어 русский עברית हिन्दी",
  "🙂🙃👩‍🚀🏳️‍🌈",
  "<start_of_turn>user\nhi<end_of_turn>\n<eos><bos>",
  "𝒳 ﷺ ﬁ ½ ² Ⅷ \u200b\u00ad end",
]


@torch.no_grad()
def logits_of(model, ids: list[int]) -> dict:
  """Returns what is kept of the logits of a row."""
  logits = model(torch.tensor([ids])).logits[0]
  top = logits.topk(4, dim=-1)
  return {
    "ids": ids,
    "top_ids": top.indices.tolist(),
    "top_logits": [[round(x, 5) for x in row] for row in top.values.tolist()],
    "logsumexp": [round(x, 5) for x in logits.logsumexp(dim=-1).tolist()],
  }


@torch.no_grad()
def greedy_of(model, peer, ids: list[int]) -> dict:
  """Returns the greedy answer of transformers, and how far llama.cpp agrees."""
  found = model.generate(
    torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False
  )[0, len(ids) :].tolist()
  peer.reset()
  agreed = 0
  for token in peer.generate(ids, temp=0.0):
    if agreed == len(found) or token != found[agreed]:
      break
    agreed += 1
  return {"greedy": found, "llama_cpp_agrees": agreed}


def main(path: Path) -> None:
  """Writes gemma3_270m.json."""
  source = {
    "pretrained_model_name_or_path": path.parent,
    "gguf_file": path.name,
  }
  converted = transformers.AutoTokenizer.from_pretrained(**source)
  peer = llama_cpp.Llama(str(path), n_ctx=256, verbose=False)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    **source, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  tokens = []
  for text in TOKEN_TEXTS:
    ids = peer.tokenize(text.encode(), add_bos=False, special=False)
    other = converted(text, add_special_tokens=False).input_ids
    tokens.append({"text": text, "ids": ids})
    if other != ids:
      tokens[-1]["transformers_ids"] = other
      print(f"transformers differs on {text!r}:\n {ids}\n {other}")
  rows = []
  for text in TEXTS:
    ids = peer.tokenize(text.encode(), add_bos=True, special=False)
    greedy = greedy_of(model, peer, ids)
    rows.append(logits_of(model, ids) | greedy)
    said = peer.detokenize(greedy["greedy"]).decode()
    print(repr(text), "->", repr(said), greedy["llama_cpp_agrees"])
  found = {
    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    "made_by": f"transformers {transformers.__version__}, torch "
    f"{torch.__version__}, llama-cpp-python {llama_cpp.__version__}",
    "rows": rows,
    "tokens": tokens,
  }
  text = json.dumps(found, ensure_ascii=False)
  (HERE / "gemma3_270m.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
  main(Path(sys.argv[1]))
