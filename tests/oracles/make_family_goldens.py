"""Logits of tiny models of every family, by Hugging Face transformers.

Runs in an environment of its own, without this package (the versions are those
of make_transformers_goldens.py, or newer):

  oracle/bin/python tests/oracles/make_family_goldens.py
  oracle/bin/python tests/oracles/make_family_goldens.py exported FOLDER NAME

writes families.json (config.json and the names and shapes of the tensors) and
families.npz: `model(input_ids, attention_mask, position_ids).logits` of whole
rows and of rows padded on the left, every third column, and the 6 tokens that
`generate` appends to the first row, greedily. Weights follow from the names
(family_weights.py), so none are stored.

exported: prints the largest difference of a folder that our export wrote of
the model NAME to its golden.
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

LEFT_PADDING = (0, 2, 5)  # tokens at the left of each row
NEW_TOKENS = 6
EVERY = 3  # whose logits are kept
LLAMA_31 = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
YARN = {
  "rope_type": "yarn",
  "rope_theta": 300.0,
  "factor": 4.0,
  "original_max_position_embeddings": 16,
}
BASE = {
  "vocab_size": 61,
  "hidden_size": 32,
  "intermediate_size": 40,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "pad_token_id": 0,
}
GPT2 = {
  "vocab_size": 61,
  "n_embd": 32,
  "n_layer": 2,
  "n_head": 4,
  "n_positions": 64,
  "bos_token_id": 1,
  "eos_token_id": 2,
}
NEOX = {k: v for k, v in BASE.items() if k != "num_key_value_heads"}
GEMMA = BASE | {"head_dim": 12}
LONG = [1.0, 1.5, 2.0, 4.0]
# name -> (model_type, entries of config.json)
MODELS = {
  "llama3": ("llama", BASE | {"rope_parameters": LLAMA_31}),
  "llama_linear": (
    "llama",
    BASE
    | {
      "rope_parameters": {
        "rope_type": "linear",
        "rope_theta": 100.0,
        "factor": 2.0,
      },
      "attention_bias": True,
      "mlp_bias": True,
    },
  ),
  "llama_dynamic": (
    "llama",
    BASE
    | {
      "rope_parameters": {
        "rope_type": "dynamic",
        "rope_theta": 100.0,
        "factor": 2.0,
      }
    },
  ),
  "llama_yarn": ("llama", BASE | {"rope_parameters": YARN}),
  "mistral": (
    "mistral",
    BASE
    | {
      "sliding_window": 9,
      "head_dim": 12,
      "rope_parameters": {"rope_type": "default", "rope_theta": 900.0},
    },
  ),
  "smollm3": ("smollm3", BASE | {"num_hidden_layers": 4}),
  "qwen2": (
    "qwen2",
    BASE
    | {
      "rope_parameters": YARN,
      "use_sliding_window": True,
      "sliding_window": 9,
      "max_window_layers": 1,
    },
  ),
  "qwen3": ("qwen3", BASE | {"head_dim": 12}),
  "gemma": ("gemma", GEMMA),
  "gemma2": (
    "gemma2",
    GEMMA
    | {
      "sliding_window": 7,
      "query_pre_attn_scalar": 20,
      "attn_logit_softcapping": 2.0,
      "final_logit_softcapping": 5.0,
    },
  ),
  "gemma3": (
    "gemma3_text",
    GEMMA
    | {
      "num_hidden_layers": 4,
      "sliding_window": 7,
      "query_pre_attn_scalar": 20,
      "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
      "rope_parameters": {
        "full_attention": {
          "rope_type": "linear",
          "rope_theta": 4000.0,
          "factor": 4.0,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
      },
    },
  ),
  "olmo2": ("olmo2", BASE),
  "phi3": ("phi3", BASE | {"sliding_window": 9}),
  "phi3_long": (
    "phi3",
    BASE
    | {
      "hidden_size": 64,
      "original_max_position_embeddings": 32,
      "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "partial_rotary_factor": 0.5,
        "short_factor": LONG,
        "long_factor": [2 * x for x in LONG],
        "original_max_position_embeddings": 32,
      },
    },
  ),
  "gpt2": ("gpt2", GPT2),
  "gpt_neox": ("gpt_neox", NEOX),
  "gpt_neox_serial": (
    "gpt_neox",
    NEOX
    | {
      "use_parallel_residual": False,
      "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 100.0,
        "partial_rotary_factor": 1.0,
      },
    },
  ),
}


def tiny_inputs() -> dict[str, np.ndarray]:
  """Returns whole rows, and the same rows with the start masked out."""
  random = np.random.default_rng(7)
  tokens = random.integers(3, 61, size=(3, 24))
  mask = np.ones_like(tokens)
  for row, padding in enumerate(LEFT_PADDING):
    mask[row, :padding] = 0
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  return {"tokens": tokens, "mask": mask, "positions": positions}


@torch.no_grad()
def outputs(model) -> dict[str, np.ndarray]:
  """Returns logits of whole and padded rows, and a greedy continuation.

  Whole rows are computed in float64; the mask of padded ones has no softmax
  there.
  """
  inputs = tiny_inputs()
  tokens, mask, positions = (
    torch.from_numpy(inputs[key]) for key in ("tokens", "mask", "positions")
  )
  padded = model(tokens, attention_mask=mask, position_ids=positions)
  greedy = model.generate(
    tokens[:1],
    attention_mask=mask[:1],
    max_new_tokens=NEW_TOKENS,
    min_new_tokens=NEW_TOKENS,
    do_sample=False,
    pad_token_id=0,
    eos_token_id=None,
  )
  whole = model.double()(tokens)  # so that only the other side rounds
  return {
    "logits": whole.logits.float().numpy()[:, ::EVERY],
    "padded": padded.logits.numpy()[:, ::EVERY],
    "greedy": greedy[0, tokens.shape[1] :].numpy().astype(np.int32),
  }


def tiny_model(kind: str, entries: dict):
  """Returns a model, its config.json and the shapes of its tensors."""
  config = transformers.AutoConfig.for_model(kind, **entries)
  with tempfile.TemporaryDirectory() as folder:
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    said = json.loads(Path(folder, "config.json").read_text())
    path = Path(folder, "model.safetensors")
    with safe_open(path, "np") as file:
      shapes = {n: file.get_slice(n).get_shape() for n in file.keys()}
    tensors = {n: weight(n, shape) for n, shape in shapes.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
  return model, said, shapes


def make() -> None:
  """Writes families.json and families.npz."""
  known = {}
  golden = {k: v.astype(np.int32) for k, v in tiny_inputs().items()}
  for name, (kind, entries) in MODELS.items():
    model, said, shapes = tiny_model(kind, entries)
    known[name] = {"config": said, "tensors": shapes}
    for key, value in outputs(model).items():
      golden[f"{name}/{key}"] = value
    print(name, float(np.abs(golden[f"{name}/logits"]).max()))
  (HERE / "families.json").write_text(json.dumps(known, indent=1) + "\n")
  np.savez_compressed(HERE / "families.npz", **golden)


def check_exported(folder: Path, name: str) -> None:
  """Prints how far an exported folder is from its golden."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  golden = np.load(HERE / "families.npz")
  for key, found in outputs(model).items():
    worst = np.abs(found - golden[f"{name}/{key}"]).max()
    print(f"{name} {key}: {worst:.2e}")


def main(arguments: list[str]) -> None:
  print(f"torch {torch.__version__}, transformers {transformers.__version__}")
  match arguments:
    case []:
      make()
    case ["exported", folder, name]:
      check_exported(Path(folder), name)
    case _:
      sys.exit(__doc__)


if __name__ == "__main__":
  main(sys.argv[1:])
