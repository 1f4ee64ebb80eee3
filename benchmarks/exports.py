"""What other programs make of what this package exports, in one table.

    python benchmarks/exports.py --peer=oracle/bin/python [--run=RUN]

--peer: Python of an environment with torch, transformers and peft (nothing of
  this package is needed there; tests/oracles/check_exports.py runs in it).
--run: folder of a finished policy run; its greedy answers to --prompts prompts
  of the evaluation beside it are compared too.

families: each model of tests/oracles/families.json is read by our loader,
written by our export in several files, and read by transformers: the largest
difference of logits to those that transformers gave for the model itself.
adapter: random LoRA factors as a PEFT folder: logits with the adapter and
without it, against ours.
reward: a reward model as a sequence classifier: scores of rows, against ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ORACLES = Path(__file__).parents[1] / "tests" / "oracles"
FILE_BYTES = 20_000  # so that several files are written
RANK, SCALE = 2, 1.5
ROWS = [[5, 9, 30, 17, 2, 60], [8, 8, 12, 40, 41, 3, 33, 7]]
ADAPTED = ("llama3", "gemma3", "phi3", "gpt2", "gpt_neox")
SCORED = ("llama3", "qwen2", "gemma3", "olmo2", "phi3")


def peer(python: str, script: str, *arguments: str) -> Any:
  """Returns what a script of tests/oracles prints, its last line, as JSON."""
  done = subprocess.run(
    [python, str(ORACLES / script), *arguments],
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    raise RuntimeError(done.stderr[-2000:])
  return json.loads(done.stdout.strip().splitlines()[-1])


def write_model(name: str, folder: Path) -> None:
  """Writes a model of families.json as transformers would."""
  from safetensors.numpy import save_file

  from tests.oracles.family_weights import weight

  known = json.loads((ORACLES / "families.json").read_text())[name]
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(known["config"]))
  tensors = {n: weight(n, shape) for n, shape in known["tensors"].items()}
  path = folder / "model.safetensors"
  save_file(tensors, path, metadata={"format": "pt"})


def families(python: str, root: Path) -> dict[str, dict]:
  """Returns name -> differences of logits, and whether answers are the same."""
  from rlhf_jax.models import huggingface

  for name in json.loads((ORACLES / "families.json").read_text()):
    write_model(name, root / "read" / name)
    config, params = huggingface.load(root / "read" / name)
    huggingface.save(
      root / "written" / name,
      config,
      params,
      original=huggingface.read_entries(root / "read" / name),
      most_bytes=FILE_BYTES,
    )
  return peer(python, "check_exports.py", "families", str(root / "written"))


def adapter(python: str, name: str, root: Path) -> dict[str, float]:
  """Returns the largest differences of logits, adapted and of the base."""
  from rlhf_jax.models import huggingface, lora, peft, roles, transformer

  write_model(name, root / "base")
  config, params = huggingface.load(root / "base")
  params = jax.tree.map(np.asarray, params)
  role = roles.Role(dataclasses.replace(config, lora_rank=RANK), "lora")
  shapes = jax.eval_shape(
    functools.partial(roles.fresh_lora, role), jax.random.key(0)
  )
  random = np.random.default_rng(2)
  factors = jax.tree.map(
    lambda x: random.standard_normal(x.shape).astype(np.float32) * 0.3, shapes
  )
  (root / "adapter").mkdir()
  peft.write(
    root / "adapter", config, factors, scale=SCALE, base=str(root / "base")
  )
  merged = lora.merge(params, jax.tree.map(jnp.asarray, factors), SCALE)
  (root / "ids.json").write_text(json.dumps(ROWS))
  said = peer(
    python,
    "check_exports.py",
    "adapter",
    str(root / "adapter"),
    str(root / "ids.json"),
  )
  net = transformer.Transformer(config)
  worst = {}
  for key, weights in (("adapted", merged), ("base", params)):
    ours = [
      net.apply(
        {"params": weights}, jnp.asarray([ids]), jnp.ones((1, len(ids)))
      )
      for ids in ROWS
    ]
    worst[key] = max(
      float(np.abs(np.asarray(x)[0, -1] - np.asarray(y)).max())
      for x, y in zip(ours, said[key], strict=True)
    )
  return worst


def reward(python: str, name: str, root: Path) -> float:
  """Returns the largest difference of the scores of rows."""
  from rlhf_jax.exports import classifier
  from rlhf_jax.models import folder_writer, heads, huggingface, outputs, roles
  from rlhf_jax.models.rows import Rows

  write_model(name, root / "base")
  config, params = huggingface.load(root / "base")
  params = jax.tree.map(np.asarray, params)
  role = roles.Role(config, "head", head=heads.Config("last"))
  kernel = np.random.default_rng(3).standard_normal((config.width, 1))
  head = {"output": {"kernel": kernel, "bias": np.zeros(1)}}
  found = []
  for ids in ROWS:
    mask = jnp.ones((1, len(ids)))
    rows = Rows(jnp.asarray([ids]), mask, jnp.arange(len(ids))[None])
    variables = {"params": params, "head": head}
    found.append(float(outputs.score(role, variables, rows, mask)[0, 0]))
  folder_writer.save(
    root / "out",
    classifier.architecture(role),
    classifier.params(role, params),
    original=classifier.original_entries(
      role, huggingface.read_entries(root / "base")
    ),
    further={
      "architectures": [classifier.CLASSES[config.family]],
      "id2label": {"0": "reward"},
      "label2id": {"reward": 0},
      "pad_token_id": 0,
    },
    score=kernel.T.astype(np.float32),
  )
  (root / "ids.json").write_text(json.dumps(ROWS))
  said = peer(
    python,
    "make_classifier_goldens.py",
    "scored",
    str(root / "out"),
    str(root / "ids.json"),
  )
  return float(np.abs(np.asarray(said) - np.asarray(found)).max())


def greedy(
  python: str, run: str, root: Path, prompts: int, new_tokens: int
) -> dict[str, Any]:
  """Returns on how many prompts a run's export answers as the run does."""
  from rlhf_jax import export, lab
  from rlhf_jax.parallel import mesh as mesh_lib

  rows = (Path(run).parent / "evaluation" / "texts.jsonl").read_text()
  texts = [json.loads(row)["prompt"] for row in rows.splitlines()[:prompts]]
  policy = lab.load(run, mesh=mesh_lib.Config(devices=1))
  samples, answers = policy.sample(
    texts, jax.random.key(0), temperature=0.0, max_new_tokens=new_tokens
  )
  mask = np.asarray(samples.response_mask) > 0
  tokens = np.asarray(samples.tokens)
  ours = [row[kept].tolist() for row, kept in zip(tokens, mask, strict=True)]
  export.export(run, root / "policy")
  request = {"prompts": texts, "new_tokens": new_tokens}
  (root / "request.json").write_text(json.dumps(request))
  said = peer(
    python,
    "check_exports.py",
    "greedy",
    str(root / "policy"),
    str(root / "request.json"),
  )
  encoded = [policy.base.tokenizer.encode(text) for text in texts]
  return {
    "prompts": len(texts),
    "prompt ids": sum(
      a == row["ids"] for a, row in zip(encoded, said, strict=True)
    ),
    "new ids": sum(a == row["new"] for a, row in zip(ours, said, strict=True)),
    "texts": sum(
      a == row["text"] for a, row in zip(answers, said, strict=True)
    ),
  }


def main() -> int:
  """Prints the tables; returns 1 where something is not equal."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--peer", required=True)
  parser.add_argument("--run", default="")
  parser.add_argument("--prompts", type=int, default=64)
  parser.add_argument("--new_tokens", type=int, default=20)
  given = parser.parse_args()
  is_equal = True
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    print("| family | export: logits | padded | greedy |\n|---|---|---|---|")
    for name, row in families(given.peer, root / "families").items():
      same = "same" if row["greedy"] else "OTHER"
      print(f"| {name} | {row['logits']:.1e} | {row['padded']:.1e} | {same} |")
      is_equal &= max(row["logits"], row["padded"]) < 2e-5 and row["greedy"]
    print("\n| family | adapter | its base | reward |\n|---|---|---|---|")
    for name in dict.fromkeys((*ADAPTED, *SCORED)):
      cells = ["-", "-", "-"]
      if name in ADAPTED:
        worst = adapter(given.peer, name, root / f"adapter_{name}")
        cells[:2] = [f"{worst['adapted']:.1e}", f"{worst['base']:.1e}"]
        is_equal &= max(worst.values()) < 1e-4
      if name in SCORED:
        difference = reward(given.peer, name, root / f"reward_{name}")
        cells[2] = f"{difference:.1e}"
        is_equal &= difference < 1e-3
      print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if given.run:
      found = greedy(
        given.peer, given.run, root, given.prompts, given.new_tokens
      )
      print(f"\ngreedy answers of {given.run}: {found}")
      is_equal &= len(set(found.values())) == 1
  return 0 if is_equal else 1


if __name__ == "__main__":
  sys.path.insert(0, str(Path(__file__).parents[1]))
  sys.exit(main())
