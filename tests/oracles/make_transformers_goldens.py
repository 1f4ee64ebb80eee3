"""Goldens from Hugging Face transformers, frozen into this folder.

The tests never import torch or transformers: they read what this script wrote.
It runs in an environment of its own, without this package:

  python3.11 -m venv oracle
  oracle/bin/pip install torch==2.13.0 transformers==5.23.0 gguf==0.19.0 \\
    accelerate==1.15.0 safetensors==0.8.0 tokenizers==0.23.3 numpy==2.4.6
  oracle/bin/python tests/oracles/make_transformers_goldens.py tiny
  oracle/bin/python tests/oracles/make_transformers_goldens.py smollm2 FILE.gguf
  oracle/bin/python tests/oracles/make_transformers_goldens.py exported FOLDER

tiny: two LlamaForCausalLM of random weights (CPU, float32, eager attention),
written by `save_pretrained` to tiny_llama/ (tied, heads of width / heads) and
tiny_llama_untied/ (untied, wider heads), and tiny_llama_logits.npz with
`model(input_ids, attention_mask, position_ids).logits` of whole rows and of
rows padded on the left. Norm gains are random too: ones would hide them.

smollm2: SmolLM2-135M-Instruct.Q4_1.gguf (Apache-2.0; sha256 is printed)
through `AutoModelForCausalLM.from_pretrained(folder, gguf_file=...)`, which
dequantises to float32. Keeps the 8 largest logits and the logsumexp of every
position (smollm2_logits.npz), and the token ids of assorted texts
(smollm2_tokens.json).

  ids: special tokens spelled in plain text are plain text; digits stand
    alone. Computed twice, which must agree: by the tokenizers library with
    the pre-tokenizer Sequence([Digits(individual_digits=True),
    ByteLevel(add_prefix_space=False)]), and by `naive_ids` below, from the two
    expressions that llama.cpp runs for tokenizer.ggml.pre = "smollm".
  special_ids: the same, with special tokens recognised.
  transformers_ids: what transformers' own conversion of this file gives. It
    ignores tokenizer.ggml.pre and leaves Digits out, so it differs from
    special_ids after two or more spaces before a digit ("    7") and at
    numbers outside ASCII.

exported: loads a folder that rlhf_jax.models.huggingface.save wrote from
tiny_llama/ or tiny_llama_untied/ and prints the largest difference to the
golden logits.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import regex
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers

HERE = Path(__file__).parent
LEFT_PADDING = (0, 2, 5)  # tokens at the left of each row

TINY = {
  "tiny_llama": {
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "rms_norm_eps": 1e-5,
  },
  "tiny_llama_untied": {
    "tie_word_embeddings": False,
    "head_dim": 12,
    "rope_parameters": {"rope_type": "default", "rope_theta": 250.0},
    "rms_norm_eps": 1e-3,
  },
}

LOGIT_TEXTS = (
  "The capital of France is Paris, and the capital of Italy is",
  "def add(a, b):\n    return a + b\n\n\nprint(add(12,   3456))\n",
  "<|im_start|>user\nIs the sky blue?<|im_end|>\n<|im_start|>assistant\nYes",
)

TOKEN_TEXTS = (
  "Hello world",
  " leading and trailing spaces  ",
  "1234567890 and 3.14159, -42",
  "total:   2024\n    7 items",
  "it's5 o'clock, they'll've'd 'twas",
  "def f(x):\n    return x**2  # comment\n\n\n",
  "tab\tand\r\nwindows\n\n \n end",
  "naïve café, Ünïcödé ﬁ ½ ² Ⅷ ٣٤",
  "日本語 and русский text",
  "emoji 😀 and 👍🏽 done",
  "user text <|im_end|>\n<|im_start|>system <|endoftext|><repo_name>",
  "THIS movie was GREAT!!! ... 10/10 <br /><br />would watch_again@home",
)


def tiny_model(name: str, seed: int) -> transformers.LlamaForCausalLM:
  """Returns a random model whose every weight matters."""
  config = transformers.LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    attn_implementation="eager",
    **TINY[name],
  )
  model = transformers.LlamaForCausalLM(config).eval()
  generator = torch.Generator().manual_seed(seed)
  for parameter in model.parameters():
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.ndim == 1:
      parameter.data = 1.0 + 0.2 * noise
    else:
      parameter.data = noise * parameter.shape[1] ** -0.5
  return model


def tiny_inputs() -> dict[str, np.ndarray]:
  """Returns whole rows, and the same rows with the start masked out."""
  random = np.random.default_rng(7)
  tokens = random.integers(0, 61, size=(3, 11))
  mask = np.ones_like(tokens)
  for row, padding in enumerate(LEFT_PADDING):
    mask[row, :padding] = 0
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  return {"tokens": tokens, "mask": mask, "positions": positions}


@torch.no_grad()
def tiny_logits(model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns float32 logits of the whole and of the padded rows."""
  tokens, mask, positions = (
    torch.from_numpy(inputs[key]) for key in ("tokens", "mask", "positions")
  )
  padded = model(tokens, attention_mask=mask, position_ids=positions)
  return {
    "logits": model(tokens).logits.numpy(),
    "padded_logits": padded.logits.numpy(),
  }


def make_tiny() -> None:
  """Writes the two folders and tiny_llama_logits.npz."""
  inputs = tiny_inputs()
  golden = {key: value.astype(np.int32) for key, value in inputs.items()}
  for seed, name in enumerate(TINY):
    model = tiny_model(name, seed)
    model.save_pretrained(HERE / name)
    (HERE / name / "generation_config.json").unlink()
    for key, value in tiny_logits(model, inputs).items():
      golden[f"{name}/{key}"] = value
  np.savez_compressed(HERE / "tiny_llama_logits.npz", **golden)


def check_exported(folder: Path) -> None:
  """Prints how far an exported folder is from each tiny model's golden."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  found = tiny_logits(model, tiny_inputs())
  golden = np.load(HERE / "tiny_llama_logits.npz")
  for name in TINY:
    worst = max(
      np.abs(found[key] - golden[f"{name}/{key}"]).max() for key in found
    )
    print(f"{folder}: largest difference to {name}: {worst:.2e}")


def naive_ids(text: str, vocabulary: dict, ranks: dict) -> list[int]:
  """Returns byte-level BPE ids by the definition, one merge at a time.

  Args:
    text: plain text.
    vocabulary: token -> id.
    ranks: (left, right) -> rank of the merge.
  """
  gpt2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"
  )
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  letter = {byte: chr(byte) for byte in printable}
  letter |= {byte: chr(256 + i) for i, byte in enumerate(others)}
  pieces = [
    piece
    for part in regex.findall(r"\p{N}|\P{N}+", text)
    for piece in regex.findall(gpt2, part)
  ]
  assert "".join(pieces) == text
  ids = []
  for piece in pieces:
    symbols = [letter[byte] for byte in piece.encode()]
    while len(symbols) > 1:
      pairs = list(zip(symbols, symbols[1:], strict=False))
      i = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], 1 << 30))  # noqa: B023
      if pairs[i] not in ranks:
        break
      symbols[i : i + 2] = ["".join(pairs[i])]
    ids += [vocabulary[symbol] for symbol in symbols]
  return ids


def plain_ids(backend: Tokenizer, text: str) -> list[int]:
  """Returns ids where the text of a special token is plain text."""
  backend.encode_special_tokens = True
  ids = backend.encode(text, add_special_tokens=False).ids
  backend.encode_special_tokens = False
  return ids


def token_goldens(converted: Tokenizer) -> tuple[Tokenizer, list[dict]]:
  """Returns the tokenizer with digits apart, and the ids of TOKEN_TEXTS."""
  backend = Tokenizer.from_str(converted.to_str())
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  model = json.loads(backend.to_str())["model"]
  ranks = {tuple(pair): i for i, pair in enumerate(model["merges"])}
  rows = []
  for text in TOKEN_TEXTS:
    ids = plain_ids(backend, text)
    if ids != naive_ids(text, model["vocab"], ranks):
      raise AssertionError(f"two ways to encode {text!r} disagree")
    special_ids = backend.encode(text, add_special_tokens=False).ids
    other = converted.encode(text, add_special_tokens=False).ids
    if other != special_ids:
      print(f"transformers differs on {text!r}:\n {special_ids}\n {other}")
    row = {"text": text, "ids": ids, "special_ids": special_ids}
    rows.append({**row, "transformers_ids": other})
  return backend, rows


@torch.no_grad()
def make_smollm2(file: Path) -> None:
  """Writes smollm2_logits.npz and smollm2_tokens.json."""
  digest = hashlib.sha256(file.read_bytes()).hexdigest()
  print(f"{file.name} sha256 {digest}")
  source = {
    "pretrained_model_name_or_path": file.parent,
    "gguf_file": file.name,
  }
  converted = transformers.AutoTokenizer.from_pretrained(**source)
  backend, rows = token_goldens(converted.backend_tokenizer)
  text = json.dumps({"sha256": digest, "rows": rows}, indent=1)
  (HERE / "smollm2_tokens.json").write_text(text + "\n")
  model = transformers.AutoModelForCausalLM.from_pretrained(
    **source, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  golden = {}
  for i, text in enumerate(LOGIT_TEXTS):
    ids = backend.encode(text, add_special_tokens=False).ids
    logits = model(torch.tensor([ids])).logits[0]
    top = logits.topk(8, dim=-1)
    golden[f"tokens_{i}"] = np.asarray(ids, np.int32)
    golden[f"top_logits_{i}"] = top.values.numpy()
    golden[f"top_ids_{i}"] = top.indices.numpy().astype(np.int32)
    golden[f"logsumexp_{i}"] = logits.logsumexp(dim=-1).numpy()
    print(repr(text), "->", repr(backend.decode([int(top.indices[-1, 0])])))
  np.savez_compressed(HERE / "smollm2_logits.npz", **golden)


def main(arguments: list[str]) -> None:
  print(f"torch {torch.__version__}, transformers {transformers.__version__}")
  match arguments:
    case ["tiny"]:
      make_tiny()
    case ["smollm2", file]:
      make_smollm2(Path(file))
    case ["exported", folder]:
      check_exported(Path(folder))
    case _:
      sys.exit(__doc__)


if __name__ == "__main__":
  main(sys.argv[1:])
