"""Families beside transformers and llama.cpp, in one table.

    python benchmarks/parity.py [--peer=PYTHON] [FAMILY ...]

Rows are the tiny models of tests/oracles/families.json; transformers computes
whole rows in float64 (in float32 it is up to 1.5e-5 from that). A difference is
of 1 and half the number together: 2e-5 is the tests' atol=2e-5, rtol=1e-5.
Columns:

  import         largest difference of logits to transformers
  padding        the same of rows with padding at the left; and at the right,
                 to the rows without
  decode         tokens of a greedy answer, with a cache, that are the same
  export         our folder: logits of transformers on it, to those on the
                 original; without --peer: its tensors are the original's bytes
  chat template  renderings with the family's template that are the same, and
  tokenizer      texts with its kinds of vocabulary, of those that were frozen
  GGUF           our file: logits of llama.cpp on it, to transformers'; without
                 --peer: tensors that are the bytes of llama.cpp's converter

--peer: Python of an environment with torch, transformers and llama-cpp-python;
without it the columns read numbers that were frozen from them (tests/oracles).
Ends with 1 where a cell is beyond its bound; it is marked with "!".

llama.cpp computes with tables of float16 and reads no sliding window of
Mistral, Qwen 2 and Phi 3: of those, tokens within one window are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf as gguf_package
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rlhf_jax import generate  # noqa: E402
from rlhf_jax.models import (  # noqa: E402
  gguf,
  gguf_writer,
  huggingface,
  transformer,
)
from rlhf_jax.types import PromptBatch  # noqa: E402
from tests.oracles import chat_parity, gguf_cases  # noqa: E402
from tests.oracles.family_weights import weight  # noqa: E402

ORACLES = ROOT / "tests" / "oracles"
EVERY = 3  # whose logits are kept
COLUMNS = (
  "import",
  "padding",
  "decode",
  "export",
  "chat template",
  "tokenizer",
  "GGUF",
)
BOUND, LLAMA_BOUND = 2e-5, 2e-2  # of logits


@dataclasses.dataclass(frozen=True)
class Model:
  """A tiny model: its folder, what was read of it, what it must give."""

  name: str
  folder: Path
  config: transformer.Config
  params: Any
  golden: Mapping[str, np.ndarray]

  def logits(self, tokens: Any, mask: Any) -> np.ndarray:
    """Returns [B, T, V]."""
    net = transformer.Transformer(self.config)
    found = net.apply({"params": self.params}, tokens, jnp.asarray(mask))
    return np.asarray(found)


def known() -> dict[str, dict]:
  """Returns name -> config.json and the shapes of tensors."""
  return json.loads((ORACLES / "families.json").read_text())


def write(name: str, root: Path) -> Model:
  """Writes a model as transformers would, and our exports of it; reads it."""
  folder, golden = root / name, known()[name]
  (folder / "original").mkdir(parents=True)
  entries = golden["config"]
  (folder / "original" / "config.json").write_text(json.dumps(entries))
  tensors = {n: weight(n, shape) for n, shape in golden["tensors"].items()}
  save_file(
    tensors,
    folder / "original" / "model.safetensors",
    metadata={"format": "pt"},
  )
  config, params = huggingface.load(folder / "original")
  params = jax.tree.map(np.asarray, params)
  huggingface.save(folder / "exported", config, params, original=entries)
  scale = gguf_cases.CHANGES.get(name, {}).get("query_pre_attn_scalar")
  as_file = config
  if scale is not None:
    as_file = dataclasses.replace(config, query_scale=scale**-0.5)
  tokenizer = gguf_cases.letters()
  gguf_writer.write(folder / "model.gguf", as_file, params, tokenizer, "f32")
  frozen = np.load(ORACLES / "families.npz")
  keys = ("logits", "padded", "greedy")
  return Model(
    name,
    folder,
    config,
    params,
    {k: frozen[f"{name}/{k}"] for k in keys}
    | {k: frozen[k] for k in ("tokens", "mask")},
  )


def _worst(one: np.ndarray, other: np.ndarray) -> float:
  """Returns the largest difference, of 1 and half the number together."""
  return float((np.abs(one - other) / (1.0 + np.abs(other) / 2)).max())


def import_of(model: Model) -> float:
  """Returns the largest difference of logits of whole rows."""
  tokens = model.golden["tokens"]
  found = model.logits(tokens, np.ones(tokens.shape))
  return _worst(found[:, ::EVERY], model.golden["logits"])


def padding_of(model: Model) -> float:
  """Returns the largest difference of rows padded on either side."""
  tokens, mask = model.golden["tokens"], model.golden["mask"]
  real = mask[:, ::EVERY] > 0
  left = model.logits(tokens, mask)[:, ::EVERY][real]
  plain = model.logits(tokens[:, :18], np.ones((3, 18)))
  right = np.ones(tokens.shape)
  right[:, 18:] = 0
  return max(
    _worst(left, model.golden["padded"][real]),
    _worst(model.logits(tokens, right)[:, :18], plain),
  )


def decode_of(model: Model) -> tuple[int, int]:
  """Returns how many tokens of a greedy answer are the same, of how many."""
  tokens = jnp.asarray(model.golden["tokens"][:1])
  expected = model.golden["greedy"]
  samples = generate.generate(
    model.params,
    PromptBatch(
      tokens=tokens, valid_mask=jnp.ones(tokens.shape), index=jnp.zeros(1, int)
    ),
    jax.random.key(0),
    model=model.config,
    config=generate.Config(max_new_tokens=len(expected), temperature=0.0),
    eos_ids=(model.config.vocab_size,),
    pad_id=0,
  )
  found = np.asarray(samples.tokens)[0, tokens.shape[1] :]
  return int((found == expected).sum()), len(expected)


def export_of(model: Model) -> tuple[int, int] | float:
  """Returns what transformers computes otherwise, or how many bytes are."""
  peer = model.folder / "exported.npz"
  if peer.exists():
    found, own = np.load(peer), np.load(model.folder / "original.npz")
    return max(_worst(found[k], own[k]) for k in ("logits", "padded"))
  one, other = (
    load_file(model.folder / name / "model.safetensors")
    for name in ("original", "exported")
  )
  same = [np.array_equal(one[k], other.get(k)) for k in one]
  return sum(same), max(len(one), len(other))


def gguf_of(model: Model) -> tuple[int, int] | float:
  """Returns what llama.cpp computes otherwise, or how many tensors are."""
  path, peer = model.folder / "model.gguf", model.folder / "llama.npz"
  if peer.exists():
    config, params = gguf.load(path)
    params = jax.tree.map(np.asarray, params)
    read = dataclasses.replace(model, config=config, params=params)
    longest = min(config.max_length, config.window or 64)
    if config.family.startswith("gemma"):  # whose windows llama.cpp reads
      longest = config.max_length
    tokens = model.golden["tokens"][:1]
    ours = read.logits(tokens, np.ones(tokens.shape))[0, ::EVERY]
    count = -(-min(longest, tokens.shape[1]) // EVERY)
    return _worst(ours[:count], np.load(peer)["logits"][:count])
  expected = json.loads((ORACLES / "gguf.json").read_text())[model.name]
  found = {}
  for tensor in gguf_package.GGUFReader(path).tensors:
    digest = hashlib.sha256(np.ascontiguousarray(tensor.data).tobytes())
    found[tensor.name] = digest.hexdigest()[:16]
  # Factors of rotary frequencies, float32 there and ours rounded to it.
  wanted = {
    k: digest
    for k, (_, digest) in expected["tensors"].items()
    if not k.startswith("rope_")
  }
  return sum(found.get(k) == x for k, x in wanted.items()), len(wanted)


def row(model: Model) -> list[Any]:
  """Returns the cells of a model: a difference, (equal, all) or None."""
  family = model.config.family
  return [
    import_of(model),
    padding_of(model),
    decode_of(model),
    export_of(model),
    chat_parity.templates(family),
    chat_parity.tokenizers(family),
    gguf_of(model),
  ]


def cell(value: Any, bound: float) -> tuple[str, bool]:
  """Returns a cell as text, and whether it is within its bound."""
  if value is None:
    return "none", True
  if isinstance(value, tuple):
    is_good = value[0] == value[1]
    return f"{value[0]} of {value[1]}", is_good
  return f"{value:.1e}", value <= bound


def table(rows: Mapping[str, list[Any]]) -> tuple[str, bool]:
  """Returns the table as Markdown, and whether all of it is good."""
  lines = [f"| model | {' | '.join(COLUMNS)} |", "|---" * 8 + "|"]
  is_good = True
  for name, values in rows.items():
    cells = []
    for column, value in zip(COLUMNS, values, strict=True):
      bound = LLAMA_BOUND if column == "GGUF" else BOUND
      text, is_within = cell(value, bound)
      cells.append(text if is_within else f"{text} !")
      is_good &= is_within
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines), is_good


def of_peer(python: str, root: Path, models: Iterable[Model]) -> list[Model]:
  """Returns the models with what the libraries give now as their goldens."""
  done = subprocess.run(
    [python, str(ORACLES / "peer_parity.py"), str(root)],
    check=False,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(f"{python} failed:\n{done.stderr[-2000:]}")
  return [
    dataclasses.replace(
      model,
      golden={**model.golden, **np.load(model.folder / "original.npz")},
    )
    for model in models
  ]


def main(arguments: list[str] | None = None) -> int:
  """Prints the table; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("names", nargs="*", metavar="FAMILY", help="all without")
  parser.add_argument("--peer", help="Python with transformers and llama_cpp")
  given = parser.parse_args(arguments)
  names = given.names if given.names else list(known())
  unknown = sorted(set(names) - set(known()))
  if unknown:
    parser.error(f"no family {unknown[0]!r}; known: {', '.join(known())}")
  with tempfile.TemporaryDirectory() as folder:
    models = [write(name, Path(folder)) for name in names]
    if given.peer:
      models = of_peer(given.peer, Path(folder), models)
    text, is_good = table({model.name: row(model) for model in models})
  print(text)
  return 0 if is_good else 1


if __name__ == "__main__":
  sys.exit(main())
