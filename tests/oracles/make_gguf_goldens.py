"""GGUF files of the tiny models, by llama.cpp's own converter.

Runs in an environment of its own, without this package:

  oracle/bin/python tests/oracles/make_gguf_goldens.py LLAMA_CPP

LLAMA_CPP is a checkout of llama.cpp (MIT), whose convert_hf_to_gguf.py and
gguf-py are used. Writes gguf.json: of each model of families.json the keys
that its file holds and the start of the sha256 of each tensor's float32 bytes.
The vocabulary is left out: its part of the converter is replaced by nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LLAMA_CPP = Path(sys.argv[1])
sys.path[:0] = [str(HERE), str(LLAMA_CPP), str(LLAMA_CPP / "gguf-py")]

import gguf  # noqa: E402
import gguf_cases  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from conversion import get_model_class  # noqa: E402
from family_weights import weight  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402


def write(folder: Path, entries: dict, shapes: dict) -> None:
  """Writes a Hugging Face folder; only the size of its vocabulary counts."""
  (folder / "config.json").write_text(json.dumps(entries))
  tensors = {n: weight(n, shape) for n, shape in shapes.items()}
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  vocabulary = {str(i): i for i in range(entries["vocab_size"])}
  (folder / "tokenizer.json").write_text(
    json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []})
  )


def older(entries: dict) -> dict:
  """Returns the entries with older names, which the converter asks for."""
  rope = entries.get("rope_parameters", {})
  return entries | {
    "n_ctx": entries.get("n_positions"),
    "rotary_pct": rope.get("partial_rotary_factor"),
  }


def convert(folder: Path, entries: dict) -> Path:
  """Returns the GGUF file that the converter makes of a folder."""
  model_class = get_model_class(entries["architectures"][0])
  model_class.set_vocab = lambda self: None
  path = folder / "model.gguf"
  with torch.inference_mode():
    model = model_class(folder, gguf.LlamaFileType.ALL_F32, path)
    model.hparams |= older(entries)
    model.write()
  return path


def described(path: Path) -> dict:
  """Returns the keys of a file and a digest of each tensor."""
  reader = gguf.GGUFReader(path)
  name = reader.get_field("general.architecture").contents()
  keys = {
    key: field.contents()
    for key, field in reader.fields.items()
    if key.startswith(f"{name}.")
  }
  tensors = {}
  for tensor in reader.tensors:
    data = np.ascontiguousarray(tensor.data, np.float32)
    digest = hashlib.sha256(data.tobytes()).hexdigest()[:16]
    tensors[tensor.name] = [list(data.shape), digest]
  return {"architecture": name, "keys": keys, "tensors": tensors}


def main() -> None:
  """Writes gguf.json."""
  known = json.loads((HERE / "families.json").read_text())
  found = {}
  for name, golden in known.items():
    entries = gguf_cases.entries(name, golden)
    with tempfile.TemporaryDirectory() as folder:
      write(Path(folder), entries, golden["tensors"])
      try:
        found[name] = described(convert(Path(folder), entries))
      except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
        continue
    print(name, found[name]["keys"])
  (HERE / "gguf.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  main()
