"""What transformers and llama.cpp make of the folders of benchmarks/parity.py.

Runs in an environment of its own, without this package (that of
make_family_goldens.py, with llama-cpp-python beside it):

  oracle/bin/python tests/oracles/peer_parity.py ROOT

ROOT/NAME holds original/ and exported/, folders of transformers, and
model.gguf. Writes ROOT/NAME/original.npz and exported.npz, the outputs of
make_family_goldens.py, and llama.npz, logits of the first row by llama.cpp.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
from make_family_goldens import EVERY, outputs, tiny_inputs  # noqa: E402

FLOAT32 = 0  # of ggml, for the cache


def by_transformers(folder: Path) -> dict[str, np.ndarray]:
  """Returns the outputs of a folder."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager"
  )
  return outputs(model.eval())


def by_llama_cpp(path: Path) -> np.ndarray:
  """Returns logits of every third token of the first row, [T, V]."""
  import llama_cpp

  tokens = [int(i) for i in tiny_inputs()["tokens"][0]]
  model = llama_cpp.Llama(
    str(path),
    n_ctx=64,
    logits_all=True,
    type_k=FLOAT32,
    type_v=FLOAT32,
    verbose=False,
  )
  model.eval(tokens)
  return np.array(model.scores[: len(tokens)])[::EVERY]


def main(root: Path) -> None:
  """Writes the files of every model below root."""
  for folder in sorted(root.iterdir()):
    for name in ("original", "exported"):
      found = by_transformers(folder / name)
      np.savez(folder / f"{name}.npz", **found)
    np.savez(folder / "llama.npz", logits=by_llama_cpp(folder / "model.gguf"))
    print(folder.name, flush=True)


if __name__ == "__main__":
  main(Path(sys.argv[1]))
