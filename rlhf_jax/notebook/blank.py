"""A small model without training and without a download, to try things with.

A decoder with random weights and a tokenizer whose tokens are bytes, written as
a Hugging Face folder: whatever takes a model takes this one, and a stage of it
is a matter of seconds. It knows nothing; on a toy problem it can learn all.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.models import huggingface, transformer
from rlhf_jax.notebook.models import new_folder

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
  "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>"
  "assistant\n{% endif %}"
)
# Rows of the embedding are drawn close to each other, which suits long
# training; a toy problem is learned sooner where tokens differ from the start.
APART = 10.0

PLAIN = ("the", "film", "plot", "cast", "is", "and", "a", "with", "scene")
GOOD = ("warm", "funny", "moving", "fresh")
BAD = ("dull", "flat", "tired", "empty")


def write(
  folder: str | Path,
  *,
  layers: int = 2,
  width: int = 64,
  context: int = 512,
  seed: int = 0,
) -> str:
  """Writes an untrained model and its tokenizer; returns the folder.

  Args:
    folder: new, or empty.
    layers: of the decoder.
    width: of the residual stream, a multiple of 16; heads are 16 wide.
    context: tokens, which are bytes, of a prompt and its answer at most.
    seed: of the weights.

  Raises:
    UserError: there is something in the folder.
  """
  path = new_folder(folder)
  tokens = _write_tokenizer(path)
  heads = width // 16
  config = transformer.Config(
    vocab_size=tokens,
    width=width,
    n_layers=layers,
    n_heads=heads,
    n_kv_heads=heads,
    head_dim=16,
    mlp_width=2 * width,
    max_length=context,
  )
  params = transformer.init(config, jax.random.key(seed))["params"]
  params["embedding"]["embedding"] *= APART
  huggingface.save(path, config, jax.tree.map(np.array, params))
  return str(path)


def _write_tokenizer(path: Path) -> int:
  """Writes a tokenizer of bytes with a chat template; returns its size."""
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers

  # llama.cpp loads no vocabulary without a merge: two newlines are one token.
  newline = "\N{LATIN CAPITAL LETTER C WITH DOT ABOVE}"
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = [*SPECIAL, *alphabet, newline * 2]
  vocabulary = {token: i for i, token in enumerate(tokens)}
  backend = tokenizers.Tokenizer(
    models.BPE(vocab=vocabulary, merges=[(newline, newline)])
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(
    [tokenizers.AddedToken(x, special=True, normalized=False) for x in SPECIAL]
  )
  backend.save(str(path / "tokenizer.json"))
  entries = {"eos_token": SPECIAL[-1], "chat_template": TEMPLATE}
  (path / "tokenizer_config.json").write_text(json.dumps(entries))
  return len(tokens)


def ratings(path: str | Path, *, count: int = 400, seed: int = 0) -> str:
  """Writes made-up rated sentences, whose truth is known; returns the path.

  A sentence is better the more GOOD and the fewer BAD words it has. Five people
  rate it from -4 to 4, each with an error of their own.

  Args:
    path: file of JSON lines, {"text", "ratings"} each.
    count: sentences.
    seed: of the draw.
  """
  rng = np.random.default_rng(seed)
  rows = []
  for number in range(count):
    words = rng.choice(PLAIN, 4).tolist()
    good, bad = rng.integers(0, 3, 2)
    words += [*rng.choice(GOOD, good).tolist(), *rng.choice(BAD, bad).tolist()]
    rng.shuffle(words)
    noise = rng.normal(0.0, 0.7, 5)
    rated = np.clip(np.rint(1.5 * (good - bad) + noise), -4, 4)
    text = f"{' '.join(words)} {number}"
    rows.append({"text": text, "ratings": rated.astype(int).tolist()})
  path = Path(path).expanduser()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)
