"""Scores of tiny sequence classifiers, by Hugging Face transformers.

Runs in the environment of make_family_goldens.py, without this package:

  oracle/bin/python tests/oracles/make_classifier_goldens.py

writes classifiers.npz: tokens, padded at the right with the id 0, and for each
family `AutoModelForSequenceClassification(...)(tokens).logits`. Weights follow
from the names (family_weights.py); the last norm has gain 1. Models of four
layers are cut to three, as a reward model is that reads the third.

  oracle/bin/python tests/oracles/make_classifier_goldens.py scored FOLDER IDS

prints the scores of rows of token ids (a JSON file) by a folder that our export
wrote, as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from family_weights import weight  # noqa: E402
from make_family_goldens import MODELS  # noqa: E402

NAMES = [name for name, (kind, _) in MODELS.items() if kind[:3] != "gpt"]
LENGTHS = (14, 9, 12)
LAYERS = 3  # at most
OFFSET = (
  "gemma",
  "gemma2",
  "gemma3_text",
)  # whose gains are 1 + what is stored


def rows() -> np.ndarray:
  """Returns rows of token ids, 0 behind their ends."""
  random = np.random.default_rng(11)
  tokens = np.zeros((len(LENGTHS), max(LENGTHS)), np.int32)
  for row, length in zip(tokens, LENGTHS, strict=True):
    row[:length] = random.integers(3, 61, size=length)
  return tokens


def load(folder: str | Path):
  """Returns a classifier; transformers says if a tensor has no place."""
  found = transformers.AutoModelForSequenceClassification.from_pretrained(
    folder,
    dtype=torch.float32,
    attn_implementation="eager",
    output_loading_info=True,
  )
  model, info = found
  wrong = {k: v for k, v in info.items() if v}
  if wrong:
    raise SystemExit(f"{folder}: {wrong}")
  return model.eval()


@torch.no_grad()
def scores(model, tokens: np.ndarray) -> np.ndarray:
  """Returns [N] scores of rows padded at the right."""
  ids = torch.from_numpy(np.asarray(tokens, np.int64))
  mask = (ids != model.config.pad_token_id).long()
  return model(ids, attention_mask=mask).logits[:, 0].numpy()


def tiny_classifier(kind: str, entries: dict):
  """Returns a classifier with one label, of at most LAYERS layers."""
  entries = entries | {"num_labels": 1}
  layers = min(LAYERS, entries["num_hidden_layers"])
  entries["num_hidden_layers"] = layers
  if "layer_types" in entries:
    entries["layer_types"] = entries["layer_types"][:layers]
  config = transformers.AutoConfig.for_model(kind, **entries)
  with tempfile.TemporaryDirectory() as folder:
    auto = transformers.AutoModelForSequenceClassification
    auto.from_config(config).save_pretrained(folder)
    path = Path(folder, "model.safetensors")
    with safe_open(path, "np") as file:
      shapes = {n: file.get_slice(n).get_shape() for n in file.keys()}
    tensors = {n: weight(n, shape) for n, shape in shapes.items()}
    gain = 0.0 if kind in OFFSET else 1.0
    tensors["model.norm.weight"] = np.full(
      shapes["model.norm.weight"], gain, np.float32
    )
    save_file(tensors, path, metadata={"format": "pt"})
    return load(folder)


def make() -> None:
  """Writes classifiers.npz."""
  golden = {"tokens": rows()}
  for name in NAMES:
    golden[name] = scores(tiny_classifier(*MODELS[name]), rows())
    print(name, golden[name])
  np.savez_compressed(HERE / "classifiers.npz", **golden)


def main(arguments: list[str]) -> None:
  match arguments:
    case []:
      print(f"transformers {transformers.__version__}")
      make()
    case ["scored", folder, ids]:
      model, given = load(folder), json.loads(Path(ids).read_text())
      width = max(map(len, given))
      pad = model.config.pad_token_id
      padded = [row + [pad] * (width - len(row)) for row in given]
      print(json.dumps(scores(model, np.asarray(padded)).tolist()))
    case _:
      sys.exit(__doc__)


if __name__ == "__main__":
  main(sys.argv[1:])
