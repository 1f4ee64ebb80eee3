"""A model and records that both sides of a comparison read.

A random Llama with words as tokens, and records whose lengths differ as those
of chats do: prompts of 8 to 40 words, answers of 1 to 160, 34 in the mean. One
word in 27 ends a sampled answer. The base of the rotary positions is the one
that Tunix's Llama has, whatever its configuration says.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

SPECIAL = ["<pad>", "<bos>", "<end>", "<unk>"]
PROMPT = 40  # tokens of the longest prompt
CONTEXT = 512
SCORE_SEED = 1  # of the weights of every head that gives one number


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of a model; weights of embedding and unembedding are shared."""

  width: int
  layers: int
  heads: int
  key_heads: int
  mlp: int
  vocabulary: int


SHAPES = {
  "17m": Shape(384, 6, 6, 6, 1024, 16_384),
  "135m": Shape(576, 30, 9, 3, 1536, 49_152),  # SmolLM2's
  "tiny": Shape(32, 2, 4, 2, 64, 512),  # to try the commands
}


def words(shape: Shape) -> list[str]:
  """Returns the vocabulary without its special tokens."""
  return [f"w{n}" for n in range(shape.vocabulary - len(SPECIAL))]


def stop_words(folder: Path) -> list[str]:
  """Returns the words that end a sampled answer: 27 tokens in the mean."""
  return json.loads((folder / "stops.json").read_text())


def score_weights(width: int) -> np.ndarray:
  """Returns float32 [width] of the head of both sides' reward models."""
  rng = np.random.default_rng(SCORE_SEED)
  return rng.normal(0.0, (width + 1) ** -0.5, width).astype(np.float32)


def write_tokenizer(folder: Path, shape: Shape) -> int:
  """Writes a word-level tokenizer; returns the size of its vocabulary."""
  import tokenizers
  from tokenizers import models, pre_tokenizers

  vocabulary = {word: n for n, word in enumerate([*SPECIAL, *words(shape)])}
  backend = tokenizers.Tokenizer(
    models.WordLevel(vocabulary, unk_token="<unk>")
  )
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  backend.add_special_tokens(SPECIAL)
  backend.save(str(folder / "tokenizer.json"))
  entries = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<end>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(entries))
  return len(vocabulary)


def write_model(folder: Path, shape: Shape, seed: int = 0) -> None:
  """Writes config.json, model.safetensors and the tokenizer's files."""
  import jax

  from rlhf_jax.models import huggingface, transformer

  folder.mkdir(parents=True)
  config = transformer.Config(
    vocab_size=write_tokenizer(folder, shape),
    width=shape.width,
    n_layers=shape.layers,
    n_heads=shape.heads,
    n_kv_heads=shape.key_heads,
    head_dim=shape.width // shape.heads,
    mlp_width=shape.mlp,
    max_length=CONTEXT,
    rope_theta=1_000_000.0,
  )
  params = transformer.init(config, jax.random.key(seed))["params"]
  huggingface.save(folder, config, jax.tree.map(np.array, params))


def write_records(
  folder: Path, shape: Shape, count: int = 1024, seed: int = 0
) -> None:
  """Writes demonstrations, comparisons, prompts, heldout, each a .jsonl."""
  rng, vocabulary = np.random.default_rng(seed), words(shape)

  def text(length: int) -> str:
    found = rng.integers(0, len(vocabulary), length)
    return " ".join(vocabulary[n] for n in found)

  def answer() -> str:
    return text(int(np.clip(rng.lognormal(3.2, 0.8), 1, 160)))

  prompts = [text(int(rng.integers(8, PROMPT + 1))) for _ in range(count)]
  kinds = {
    "prompts": [{"prompt": p} for p in prompts],
    "demonstrations": [{"prompt": p, "response": answer()} for p in prompts],
    "comparisons": [
      {"prompt": p, "chosen": answer(), "rejected": answer()} for p in prompts
    ],
    "heldout": [  # pipelines of ours want some
      {"prompt": text(8), "chosen": text(8), "rejected": text(8)}
      for _ in range(16)
    ],
  }
  for name, rows in kinds.items():
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(lines)
  stops = vocabulary[: round(0.0366 * shape.vocabulary)]
  (folder / "stops.json").write_text(json.dumps(stops))


def read(folder: Path, name: str) -> list[dict[str, str]]:
  """Returns the records of one file."""
  lines = (folder / f"{name}.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def write(folder: Path, shape: str = "17m", count: int = 1024) -> None:
  """Writes everything into an empty folder."""
  folder.mkdir(parents=True, exist_ok=True)
  write_model(folder / "model", SHAPES[shape])
  write_records(folder, SHAPES[shape], count)
