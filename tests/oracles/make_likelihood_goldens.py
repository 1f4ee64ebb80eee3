"""Log-likelihoods and greedy answers of lm-eval's own model, frozen here.

  python3.11 -m venv oracle
  oracle/bin/pip install torch==2.14.1 transformers==5.24.0 gguf accelerate \\
    lm-eval==0.4.13
  oracle/bin/python tests/oracles/make_likelihood_goldens.py FILE.gguf

SmolLM2-135M-Instruct.Q4_1.gguf (Apache-2.0) through transformers, which
dequantises to float32, under lm_eval.models.huggingface.HFLM: what its
loglikelihood, loglikelihood_rolling (windows of 24 tokens) and generate_until
return for the texts below, into likelihoods.json. The digits of these texts
stand alone, where transformers' conversion of the file agrees with the model's
tokenizer (make_transformers_goldens.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lm_eval
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

HERE = Path(__file__).parent
WINDOW = 24
PAIRS = (
  ("The capital of France is", " Paris"),
  ("The capital of France is", " the city of Berlin"),
  ("The dogs near the house", " are"),
  ("The dogs near the house", " is"),
  ("Monday, Tuesday, Wednesday,", " Thursday"),
  ("Question: What barks?\nAnswer: ", "a dog"),
  ("", "Once upon a time"),
  ("naïve café, 日本語:", " Ünïcödé 😀"),
  (
    "<|im_start|>user\nIs the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "Yes, it is.",
  ),
)
TEXTS = (
  "Once upon a time there was a little girl who lived near a forest. Every "
  "morning she walked to the river, and every evening she came back with a "
  "story to tell her brothers.",
  "A short one.",
)
PROMPTS = (
  ("The capital of France is", {"until": ["."], "max_gen_toks": 16}),
  ("Monday, Tuesday, Wednesday,", {"until": ["\n"], "max_gen_toks": 8}),
)


def requests(kind: str, arguments: list) -> list[Instance]:
  """Returns lm-eval's requests of some texts."""
  return [Instance(kind, {}, x, i) for i, x in enumerate(arguments)]


def main(path: Path) -> None:
  """Writes likelihoods.json."""
  where = {"gguf_file": path.name, "local_files_only": True}
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, dtype=torch.float32, **where
  ).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **where)
  lm = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1)
  pairs = lm.loglikelihood(requests("loglikelihood", list(PAIRS)))
  lm._max_length = WINDOW
  rolling = lm.loglikelihood_rolling(
    requests("loglikelihood_rolling", [(text,) for text in TEXTS])
  )
  lm._max_length = None
  said = lm.generate_until(
    requests("generate_until", [(x, dict(how)) for x, how in PROMPTS])
  )
  found = {
    "versions": {
      "lm_eval": lm_eval.__version__,
      "transformers": transformers.__version__,
      "torch": torch.__version__,
    },
    "window": WINDOW,
    "pairs": [
      [*texts, float(total), bool(is_greedy)]
      for texts, (total, is_greedy) in zip(PAIRS, pairs, strict=True)
    ],
    "rolling": [
      [text, float(total)] for text, total in zip(TEXTS, rolling, strict=True)
    ],
    "answers": [
      [prompt, how, text]
      for (prompt, how), text in zip(PROMPTS, said, strict=True)
    ],
  }
  text = json.dumps(found, indent=1, ensure_ascii=False)
  (HERE / "likelihoods.json").write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  main(Path(sys.argv[1]))
