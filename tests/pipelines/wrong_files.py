"""Models, tokenizers and data that are wrong each in one way."""

import json
from pathlib import Path

import jax
import numpy as np

from rlhf_jax import main
from rlhf_jax.models import huggingface, transformer
from rlhf_jax.pipelines import defaults
from tests import tiny

CONTEXT = 48  # tokens


def _write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def _model(folder, seed=0, width=16, max_length=CONTEXT):
  config = transformer.Config(
    vocab_size=344,
    width=width,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    head_dim=4,
    mlp_width=20,
    max_length=max_length,
  )
  params = transformer.init(config, jax.random.key(seed))["params"]
  huggingface.save(folder, config, jax.tree.map(np.asarray, params))
  tiny.tiny_tokenizer_json(folder)
  return folder


def _other_tokenizer(folder):
  path = folder / "tokenizer.json"
  content = json.loads(path.read_text())
  content["model"]["merges"].pop()
  path.write_text(json.dumps(content))


def make_files(root: Path) -> dict:
  """Writes models and data; returns name -> path."""
  for name in ("model", "tokenizer", "bare", "damaged"):
    _model(root / name)
  _model(root / "other", seed=1)
  _other_tokenizer(root / "tokenizer")
  (root / "bare" / "tokenizer.json").unlink()
  (root / "damaged" / "config.json").write_text('{"model_type": ')
  demos = [{"prompt": f"the cat {i}", "response": "a dog"} for i in range(16)]
  _write(root / "demos.jsonl", demos)
  _write(
    root / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}]
  )
  _write(root / "prompts.jsonl", [{"prompt": "a cat"}, {"prompt": "cat " * 99}])
  _write(root / "ratings.jsonl", [{"text": "good film", "ratings": [1, 2]}])
  _write(root / "long.jsonl", [{"prompt": "a", "response": "cat " * 99}] * 8)
  (root / "empty.jsonl").write_text("")
  (root / "broken.jsonl").write_text(
    '{"prompt": "a", "response": "b"}\n{"pro\n'
  )
  return {path.name: str(path) for path in root.iterdir()} | {"root": root}


def sft_config(files, **data):
  config = defaults.sft()
  config.mesh.devices = 1
  config.model.source = files["model"]
  config.data.update(
    source=files["demos.jsonl"], format="demonstration", max_length=CONTEXT
  )
  config.data.update(data)
  config.schedule.update(batch_size=4, steps=3, save_every=1)
  return config


def refused(config, workdir, capsys):
  """Runs; returns the one error that ended it with exit code 2."""
  code = main.run(config, workdir)
  said = capsys.readouterr()
  assert code == main.EXIT_USAGE, said
  assert said.err.startswith("error: ") and "Traceback" not in said.err
  return said.err
