"""A model and records that both sides of a comparison read.

A random Llama of 17 million parameters with words as tokens, and records whose
lengths differ as those of chats do: prompts of 8 to 40 words, answers of 1 to
160, 34 in the mean.
"""

import json
from pathlib import Path

import numpy as np

WORDS = 16_380
STOPS = 600  # of the words end a sampled answer: 27 tokens in the mean
WIDTH, LAYERS, HEADS, MLP, CONTEXT = 384, 6, 6, 1024, 512


def words() -> list[str]:
  """Returns the vocabulary without its special tokens."""
  return [f"w{n}" for n in range(WORDS)]


def write_tokenizer(folder: Path) -> int:
  """Writes a word-level tokenizer; returns the size of its vocabulary."""
  import tokenizers
  from tokenizers import models, pre_tokenizers

  special = ["<pad>", "<bos>", "<end>", "<unk>"]
  vocabulary = {word: n for n, word in enumerate([*special, *words()])}
  backend = tokenizers.Tokenizer(
    models.WordLevel(vocabulary, unk_token="<unk>")
  )
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  backend.add_special_tokens(special)
  backend.save(str(folder / "tokenizer.json"))
  entries = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<end>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(entries))
  return len(vocabulary)


def write_model(folder: Path, seed: int = 0) -> None:
  """Writes config.json, model.safetensors and the tokenizer's files."""
  import jax

  from rlhf_jax.models import huggingface, transformer

  folder.mkdir(parents=True)
  config = transformer.Config(
    vocab_size=write_tokenizer(folder),
    width=WIDTH,
    n_layers=LAYERS,
    n_heads=HEADS,
    n_kv_heads=HEADS,
    head_dim=WIDTH // HEADS,
    mlp_width=MLP,
    max_length=CONTEXT,
  )
  params = transformer.init(config, jax.random.key(seed))["params"]
  huggingface.save(folder, config, jax.tree.map(np.array, params))


def write_records(folder: Path, count: int = 1024, seed: int = 0) -> None:
  """Writes demonstrations.jsonl, comparisons.jsonl and prompts.jsonl."""
  rng, vocabulary = np.random.default_rng(seed), words()

  def text(length: int) -> str:
    return " ".join(vocabulary[n] for n in rng.integers(0, WORDS, length))

  def answer() -> str:
    return text(int(np.clip(rng.lognormal(3.2, 0.8), 1, 160)))

  prompts = [text(int(rng.integers(8, 41))) for _ in range(count)]
  kinds = {
    "prompts": [{"prompt": p} for p in prompts],
    "demonstrations": [{"prompt": p, "response": answer()} for p in prompts],
    "comparisons": [
      {"prompt": p, "chosen": answer(), "rejected": answer()} for p in prompts
    ],
  }
  for name, rows in kinds.items():
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(lines)


def write(folder: Path) -> None:
  """Writes everything into an empty folder."""
  folder.mkdir(parents=True, exist_ok=True)
  write_model(folder / "model")
  write_records(folder)
