"""Sentences as vectors, by a small ONNX model in a folder of yours.

    embed = embeddings.load("all-MiniLM-L6-v2")
    vectors = embed(texts)  # [n, D], of length 1

The folder holds tokenizer.json and model.onnx (or onnx/model.onnx), as sentence
models stand on the hub. Token vectors are averaged over the tokens of a text,
as Sentence-BERT does (Reimers and Gurevych 2019, arXiv:1908.10084, section 3);
a model that gives one vector a text is taken as it is. Needs onnxruntime, in
the extra "[embeddings]"; no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.schema import UserError

FILES = ("model.onnx", "onnx/model.onnx")
MOST_TOKENS = 256  # of a text; the rest is cut
BATCH = 32
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

Embed = Callable[[Sequence[str]], np.ndarray]


def find(folder: str) -> tuple[Path, Path]:
  """Returns the paths of the model and of its tokenizer.

  Raises:
    UserError: there is no such folder, or one of both is missing.
  """
  root = Path(folder).expanduser()
  models = [root / name for name in FILES if (root / name).is_file()]
  tokenizer = root / "tokenizer.json"
  if not models or not tokenizer.is_file():
    raise UserError(
      f"embeddings={folder!r}: a folder with tokenizer.json and "
      f"{' or '.join(FILES)} is needed. Name the folder of a sentence model in "
      "ONNX, or set ''."
    )
  return models[0], tokenizer


def load(folder: str) -> Embed | None:
  """Returns a function: texts -> float32 vectors [n, D].

  They have length 1, but for texts without a token, whose vectors are 0.

  Args:
    folder: of the model; "" has none.

  Raises:
    UserError: files or onnxruntime are missing, or the model wants inputs that
      no sentence model has.
  """
  if not folder:
    return None
  path, tokenizer_path = find(folder)
  try:
    import onnxruntime
  except ImportError as error:
    raise UserError(
      f"embeddings={folder!r} needs onnxruntime. Run `pip install "
      "'rlhf_jax[embeddings]'`, or set ''."
    ) from error
  import tokenizers

  tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_path))
  tokenizer.enable_truncation(MOST_TOKENS)
  tokenizer.enable_padding()
  session = onnxruntime.InferenceSession(
    str(path), providers=["CPUExecutionProvider"]
  )
  wanted = [given.name for given in session.get_inputs()]
  if odd := sorted(set(wanted) - set(INPUTS)):
    raise UserError(
      f"{path}: the model wants {', '.join(odd)}; a sentence model wants "
      f"{', '.join(INPUTS)}. Take another model."
    )

  def embed(texts: Sequence[str]) -> np.ndarray:
    parts = [
      _batch(session, wanted, tokenizer, texts[start : start + BATCH])
      for start in range(0, len(texts), BATCH)
    ]
    return np.concatenate(parts)

  return embed


def _batch(
  session: Any, wanted: Sequence[str], tokenizer: Any, texts: Sequence[str]
) -> np.ndarray:
  encoded = tokenizer.encode_batch(list(texts))
  arrays = {
    "input_ids": np.array([x.ids for x in encoded], np.int64),
    "attention_mask": np.array([x.attention_mask for x in encoded], np.int64),
    "token_type_ids": np.array([x.type_ids for x in encoded], np.int64),
  }
  vectors = session.run(None, {name: arrays[name] for name in wanted})[0]
  if vectors.ndim == 3:
    mask = arrays["attention_mask"][..., None]
    vectors = (vectors * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
  lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return np.float32(vectors / np.maximum(lengths, 1e-12))
