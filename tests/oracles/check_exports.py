"""What transformers and peft make of folders that our export wrote.

Runs in the environment of make_family_goldens.py, with peft beside them,
without this package:

  oracle/bin/python tests/oracles/check_exports.py families ROOT
  oracle/bin/python tests/oracles/check_exports.py greedy FOLDER REQUEST
  oracle/bin/python tests/oracles/check_exports.py adapter FOLDER IDS

families: of the folders ROOT/NAME, NAME of families.json, the largest
  difference of logits, whole and padded, to the golden, and whether the greedy
  continuation is the same.
greedy: REQUEST is {"prompts": [text, ...], "new_tokens": N}; ids of each prompt
  by the folder's tokenizer, the ids that `generate` adds to it, with the
  folder's own end tokens, and their text.
adapter: logits of the last token of rows of ids, with the adapter and without.

Each prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from make_family_goldens import outputs  # noqa: E402


def load(folder: str | Path):
  """Returns a model; transformers says if a tensor has no place."""
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder,
    dtype=torch.float32,
    attn_implementation="eager",
    output_loading_info=True,
  )
  wrong = {k: sorted(v) for k, v in info.items() if v}
  if wrong:
    raise SystemExit(f"{folder}: {wrong}")
  return model.eval()


def families(root: Path) -> dict:
  """Returns name -> how far each folder is from its golden."""
  golden = np.load(HERE / "families.npz")
  found = {}
  for folder in sorted(root.iterdir()):
    said = outputs(load(folder))
    found[folder.name] = {
      key: float(np.abs(said[key] - golden[f"{folder.name}/{key}"]).max())
      for key in ("logits", "padded")
    } | {
      "greedy": bool(
        np.array_equal(said["greedy"], golden[f"{folder.name}/greedy"])
      )
    }
  return found


@torch.no_grad()
def greedy(folder: str, request: dict) -> list:
  """Returns ids, new ids and new text of each prompt, each on its own."""
  model = load(folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  found = []
  for prompt in request["prompts"]:
    tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(
      tokens,
      attention_mask=torch.ones_like(tokens),
      max_new_tokens=request["new_tokens"],
      do_sample=False,
    )
    new = out[0, tokens.shape[1] :].tolist()
    text = tokenizer.decode(new, skip_special_tokens=True)
    found.append({"ids": tokens[0].tolist(), "new": new, "text": text})
  return found


@torch.no_grad()
def adapter(folder: str, rows: list) -> dict:
  """Returns last logits of rows with the adapter and without."""
  import peft

  model = peft.AutoPeftModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  ).eval()

  def last() -> list:
    return [model(torch.tensor([ids])).logits[0, -1].tolist() for ids in rows]

  found = {"adapted": last()}
  with model.disable_adapter():
    found["base"] = last()
  return found


def main(arguments: list[str]) -> None:
  match arguments:
    case ["families", root]:
      said = families(Path(root))
    case ["greedy", folder, request]:
      said = greedy(folder, json.loads(Path(request).read_text()))
    case ["adapter", folder, ids]:
      said = adapter(folder, json.loads(Path(ids).read_text()))
    case _:
      sys.exit(__doc__)
  print(json.dumps(said))


if __name__ == "__main__":
  main(sys.argv[1:])
