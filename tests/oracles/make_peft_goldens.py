"""Logits of tiny models with LoRA adapters, by PEFT.

Runs in an environment of its own, without this package (torch, transformers and
peft; README.md has the versions):

  oracle/bin/python tests/oracles/make_peft_goldens.py

writes peft.json (adapter_config.json as PEFT saves it, names and shapes of the
tensors) and peft.npz: the logits of whole rows, every third column, of the
models of families.json with the adapter on. Weights of models and adapters
follow from their names (family_weights.py), so none are stored.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from family_weights import weight  # noqa: E402
from make_family_goldens import (  # noqa: E402
  EVERY,
  MODELS,
  tiny_inputs,
  tiny_model,
)

# name -> (model of families.json, settings of LoraConfig)
ADAPTERS = {
  "llama_all": (
    "llama3",
    {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"},
  ),
  "llama_some": (
    "llama_linear",
    {
      "r": 4,
      "lora_alpha": 8,
      "use_rslora": True,
      "lora_dropout": 0.1,
      "target_modules": ["v_proj", "q_proj"],
    },
  ),
  "smollm3_pattern": (
    "smollm3",
    {
      "r": 3,
      "lora_alpha": 3,
      "target_modules": r".*layers\.[13]\..*(q_proj|down_proj)",
    },
  ),
  "gemma2": (
    "gemma2",
    {
      "r": 2,
      "lora_alpha": 4,
      "target_modules": ["o_proj", "gate_proj"],
      "layers_to_transform": [1],
    },
  ),
  "gpt2": (
    "gpt2",
    {
      "r": 4,
      "lora_alpha": 4,
      "fan_in_fan_out": True,
      "target_modules": ["c_attn", "mlp.c_proj"],
    },
  ),
  "gpt_neox": (
    "gpt_neox",
    {
      "r": 4,
      "lora_alpha": 8,
      "target_modules": ["query_key_value", "dense_h_to_4h"],
    },
  ),
  "phi3": (
    "phi3",
    {
      "r": 4,
      "lora_alpha": 8,
      "target_modules": ["qkv_proj", "gate_up_proj", "down_proj"],
    },
  ),
}


@torch.no_grad()
def golden(name: str) -> tuple[dict, dict, np.ndarray, float]:
  """Returns what PEFT saves, its tensors, logits, and how far from without."""
  of, settings = ADAPTERS[name]
  model = tiny_model(*MODELS[of])[0]
  tokens = torch.from_numpy(tiny_inputs()["tokens"])
  without = model(tokens).logits
  config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
  with tempfile.TemporaryDirectory() as folder:
    peft.get_peft_model(model, config).save_pretrained(folder)
    said = json.loads(Path(folder, "adapter_config.json").read_text())
    path = Path(folder, "adapter_model.safetensors")
    with safe_open(path, "np") as file:
      shapes = {n: file.get_slice(n).get_shape() for n in file.keys()}
    tensors = {n: weight(n, shape) for n, shape in shapes.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    model = tiny_model(*MODELS[of])[0]
    adapted = peft.PeftModel.from_pretrained(model, folder).eval()
    logits = adapted(tokens).logits
  moved = float((logits - without).abs().max())
  said["base_model_name_or_path"] = of
  if isinstance(said["target_modules"], list):
    said["target_modules"].sort()
  return said, shapes, logits.numpy()[:, ::EVERY], moved


def main() -> None:
  print(f"torch {torch.__version__}, peft {peft.__version__}")
  known, found = {}, {}
  for name, (of, _) in ADAPTERS.items():
    said, shapes, found[name], moved = golden(name)
    known[name] = {"model": of, "config": said, "tensors": shapes}
    print(f"{name}: {len(shapes)} tensors move logits by up to {moved:.2f}")
  (HERE / "peft.json").write_text(json.dumps(known, indent=1) + "\n")
  np.savez_compressed(HERE / "peft.npz", **found)


if __name__ == "__main__":
  main()
