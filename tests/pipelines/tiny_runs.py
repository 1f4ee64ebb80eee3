"""A tiny model, tiny data and the configurations of tiny runs.

The model is random but for one thing: the embeddings of WORDS and of the end
token share a direction, so that it says these words and little else. PLANTED
is the word that reward models are taught to like.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import pipelines
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models import huggingface, transformer, trees
from rlhf_jax.models.pretrained import Base
from rlhf_jax.pipelines import defaults, policy
from rlhf_jax.programs import policy_programs, policy_training
from rlhf_jax.runs import checkpoint, stages
from rlhf_jax.types import Samples
from tests import tiny

PLANTED = "cat"
WORDS = [PLANTED, "sat", "on", "and", "a", "with", "is", "the"]
NEW_TOKENS = 6
CHAT = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
  "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
  "<|im_start|>assistant\n{% endif %}"
)
LORA_LAYER = 1  # LoRA from here up; the head reward model stops here
TIMES = (
  "time",
  "sys/",
  "rollout/tokens_per_second",
)  # differ between equal runs


@dataclasses.dataclass(frozen=True)
class Files:
  """Paths of everything a run reads."""

  root: Path
  model: str
  demonstrations: str
  comparisons: str
  prompts: str
  ratings: str


@dataclasses.dataclass
class Record:
  """What a policy run sampled, held frozen and trained on.

  tokens: of each rollout.
  actors, before: those of the run, and a copy of their frozen arrays.
  rollouts: (copy before, copy after) each update.
  """

  tokens: list = dataclasses.field(default_factory=list)
  actors: Any = None
  before: Any = None
  rollouts: list = dataclasses.field(default_factory=list)

  @property
  def frozen(self):
    return self.actors.weights, self.actors.frozen

  def watch(self, patch) -> None:
    """Wraps what policy.run calls."""
    load = policy.actors_lib.load
    text_metrics = policy_training.text_metrics
    make_functions = policy_programs.make_functions

    def watched_load(*args, **options):
      self.actors = load(*args, **options)
      self.before = jax.tree.map(np.array, self.frozen)
      return self.actors

    def watched_metrics(tokenizer, samples):
      self.tokens.append(np.asarray(samples.tokens))
      return text_metrics(tokenizer, samples)

    def watched_functions(*args):
      made = make_functions(*args)

      def update(state, frozen, rollout, *rest):
        before = jax.tree.map(np.array, rollout)
        result = made.update(state, frozen, rollout, *rest)
        self.rollouts.append((before, jax.tree.map(np.array, rollout)))
        return result

      return dataclasses.replace(made, update=update)

    patch.setattr(policy.actors_lib, "load", watched_load)
    patch.setattr(policy_training, "text_metrics", watched_metrics)
    patch.setattr(policy_programs, "make_functions", watched_functions)


def _write(path: Path, rows: list[dict]) -> str:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def make_model(
  folder: Path,
  width: int = 16,
  special: list[str] = tiny.SPECIAL,
  max_length: int = 64,
) -> str:
  """Writes a model of 2 layers and its tokenizer (see tiny.py)."""
  tiny.tiny_tokenizer_json(folder, special, chat_template=CHAT)
  tokenizer = load_tokenizer(folder)
  config = transformer.Config(
    vocab_size=tokenizer.vocab_size + 12,  # padded, as real models are
    width=width,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=4,
    mlp_width=24,
    max_length=max_length,
  )
  params = transformer.init(config, jax.random.key(0))["params"]
  params = jax.tree.map(np.array, params)
  words = [tokenizer.encode(f" {word}") for word in WORDS]
  assert all(len(ids) == 1 for ids in words)
  rng = np.random.default_rng(3)
  table = params["embedding"]["embedding"]
  table[:] = 0.3 * rng.standard_normal(table.shape)
  table[[*np.ravel(words), tokenizer.eos_id], :4] += 1.0
  huggingface.save(folder, config, params)
  return str(folder)


def make_files(root: Path) -> Files:
  """Writes the model and all data sets under a folder."""
  rng = np.random.default_rng(0)

  def text(count: int, words: list[str]) -> str:
    return "".join(f" {word}" for word in rng.choice(words, count))

  def answer(is_good: bool) -> str:
    words = text(int(rng.integers(1, 5)), WORDS[1:]).split()
    if is_good:
      words.insert(int(rng.integers(len(words) + 1)), PLANTED)
    return " " + " ".join(words)

  demonstrations = [
    {"prompt": text(2, WORDS), "response": f"{text(2, WORDS)} on the"}
    for _ in range(40)
  ]
  prompts = [text(2 + i % 2, WORDS) for i in range(24)]
  comparisons = [
    {
      "prompt": prompts[i % 24],
      "chosen": answer(True),
      "rejected": answer(False),
    }
    for i in range(240)
  ]
  rated = []
  for i in range(240):
    words = answer(i % 2 == 0) + text(2, WORDS[1:])
    ratings = rng.integers(-1, 2, 5) + (3 if i % 2 == 0 else -1)
    rated.append({"text": f"{words.strip()} {i}", "ratings": ratings.tolist()})
  return Files(
    root=root,
    model=make_model(root / "model"),
    demonstrations=_write(root / "demonstrations.jsonl", demonstrations),
    comparisons=_write(root / "comparisons.jsonl", comparisons),
    prompts=_write(root / "prompts.jsonl", [{"prompt": p} for p in prompts]),
    ratings=_write(root / "ratings.jsonl", rated),
  )


def sft_config(files: Files, mode: str):
  """SFT for 12 steps, then samples; mode "full" (validated) or "lora"."""
  config = defaults.sft()
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2 * (mode == "lora"))
  config.trainable.update(mode=mode, first_layer=LORA_LAYER * (mode == "lora"))
  data = {"source": files.demonstrations, "format": "demonstration"}
  config.data.update(data, max_length=24)
  if mode == "full":
    config.validation.update(data, max_length=24, limit=20)
  config.schedule.update(batch_size=8, steps=12, save_every=4)
  config.optimizer.update(learning_rate=1e-2, schedule="constant")
  config.samples = 32
  config.sample_prompts.update(
    source=files.prompts, format="prompt", max_length=24
  )
  config.generate.max_new_tokens = NEW_TOKENS
  return config


def reward_config(files: Files, mode: str, start: Path | str, samples: Path):
  """A reward model on the planted word; mode "head", "lora" or "full"."""
  config = defaults.reward()
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2 * (mode == "lora"))
  config.trainable.mode = mode
  config.head.pooling = "mean_last"
  config.data.update(source=files.comparisons, max_length=24, end_token=False)
  config.init_from = str(start)
  config.reference_samples = str(samples)
  config.heldout_fraction = 0.25
  config.schedule.update(batch_size=8, steps=30, save_every=10)
  config.optimizer.update(learning_rate=2e-2, schedule="constant")
  if mode == "head":
    config.stop_layer = LORA_LAYER
    config.schedule.update(batch_size=32, steps=60, save_every=40)
  return config


def dpo_config(files: Files, start: Path | str):
  """DPO of all weights, for 20 steps."""
  config = defaults.preference("dpo")
  config.mesh.devices = 1
  config.model.source = files.model
  config.trainable.mode = "full"
  config.data.update(source=files.comparisons, max_length=24)
  config.init_from = str(start)
  config.schedule.update(batch_size=8, steps=20, save_every=6)
  config.optimizer.update(learning_rate=1e-2, schedule="constant")
  return config


def policy_config(files: Files, mode: str, start: Path, scorer: Path):
  """PPO in few steps; "lora": shared trunk, head critic; "full": all full."""
  config = defaults.policy()
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2 * (mode == "lora"))
  config.trainable.update(mode=mode, first_layer=LORA_LAYER * (mode == "lora"))
  config.init_from, config.reward = str(start), str(scorer)
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.update(max_new_tokens=NEW_TOKENS, temperature=0.9)
  config.schedule.update(batch_size=8, steps=4, save_every=2, keep=20)
  config.packing.row_tokens = 0  # the same rows on any mesh
  config.shaping.update(kl_horizon=80.0, halt_nats=1e6, warn_nats=1e5)
  config.algorithm.value_coefficient = 1.0
  # Not cut: shorter runs begin as longer ones do.
  config.policy_optimizer.update(
    learning_rate=2e-2, warmup_steps=2, warmup_max_fraction=1.0
  )
  config.value_optimizer.learning_rate = 2e-2
  if mode == "lora":
    config.generate.num_samples = 4
    config.packing.update(row_tokens=48, row_targets=24, row_multiple=16)
    config.schedule.update(asynchronous=True, keep_best="rollout/score_mean")
    config.value.update(mode="head", hidden_units=3, pretrain_steps=2)
  return config


def full_policy_config(files: Files, start: Path, scorer: Path):
  """PPO with four trees of weights and a stream of text (PPO-ptx)."""
  config = policy_config(files, "full", start, scorer)
  config.policy_optimizer.learning_rate = 2e-3
  config.value_optimizer.learning_rate = 2e-3
  config.shaping.normalise = "scale"  # carries moments from step to step
  config.algorithm.ptx_coefficient = 0.5
  config.ptx.update(
    source=files.demonstrations, format="demonstration", max_length=24
  )
  config.ptx_batch_size = 8  # two minibatches over four devices
  return config


def settings_of(config):
  """Returns the settings of a configuration."""
  return pipelines.read(config).settings


def checked(config):
  """Reads and checks a configuration as a run does; returns its settings."""
  job = pipelines.read(config)
  job.check(job.open(""))
  return job.settings


def world_of(config, folder=""):
  """Returns the world that a configuration runs in."""
  return pipelines.read(config).open(folder)


def load_base(config) -> Base:
  """Returns the base model of a configuration."""
  return world_of(config).base(settings_of(config).model)


def load_samples(path: Path) -> Samples:
  """Returns samples.npz of an SFT run."""
  with np.load(path) as stored:
    return Samples(**{k: jax.numpy.asarray(stored[k]) for k in stored.files})


def rows_of(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
  """Returns the rows of a run's file without what depends on the clock."""
  rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
  return [
    {k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows
  ]


def saved_arrays(folder: Path, step: int | None = None) -> dict:
  """Returns {path: numpy array} of everything in a checkpoint."""
  directory = folder / "checkpoints"
  with checkpoint.Checkpoints(str(directory), is_read_only=True) as saved:
    step = saved.latest() if step is None else step
    manifest = directory / str(step) / "manifest.json"
    arrays = json.loads(manifest.read_text())["arrays"]
    template = {
      path: jax.ShapeDtypeStruct(tuple(shape), dtype)
      for path, (shape, dtype) in arrays.items()
    }
    state, _ = saved.restore(trees.unflatten(template), step=step)
  return {k: np.asarray(v) for k, v in trees.flatten(state).items()}


def trained_arrays(
  folder: Path, step: int | None = None, prefix: str = stages.TRAINED
) -> dict:
  """Returns {path: array} of what trained, out of a checkpoint.

  Args:
    folder: of a run.
    step: None for the newest.
    prefix: where that is, stages.TRAINED or stages.BESIDE_CRITIC.
  """
  saved, start = saved_arrays(folder, step), f"{prefix}/"
  return {p.removeprefix(start): saved[p] for p in saved if p.startswith(start)}


def saved_meta(folder: Path, step: int) -> dict:
  """Returns the JSON part of a checkpoint."""
  path = folder / "checkpoints" / str(step) / "manifest.json"
  return json.loads(path.read_text())["meta"]


def assert_equal_arrays(found: dict, expected: dict) -> None:
  """Asserts that two dicts of arrays are the same bit for bit."""
  assert sorted(found) == sorted(expected)
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def assert_close_rows(rows: list[dict], expected: list[dict]) -> None:
  """Asserts that two runs logged the same numbers up to rounding.

  A token at the very edge of a clip may fall on either side of it, so shares
  of clipped tokens may differ by two tokens of the tiny batches.
  """
  assert [row["step"] for row in rows] == [row["step"] for row in expected]
  for row, other in zip(rows, expected, strict=True):
    assert sorted(row) == sorted(other)
    for name in row.keys() - {"phase"}:
      is_share = "clip_fraction" in name
      np.testing.assert_allclose(
        row[name],
        other[name],
        rtol=2e-4,
        atol=0.03 if is_share else 2e-4,
        err_msg=name,
      )
