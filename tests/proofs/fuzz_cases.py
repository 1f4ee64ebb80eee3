"""Odd inputs, each a run that must end with one message and code 2.

`cases` is the whole list; a Case changes a copy of right inputs (a model, its
tokenizer, records, a finished stage) and is started as a command. Controls
change nothing, and must train.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

REFUSED, DONE = 2, 0
ODD = (None, True, "x", [], {}, -1, 0, 1.5, 10**9, 2**70)


@dataclass(frozen=True)
class Case:
  """One run.

  name: unique.
  change: what is done to a folder of right inputs.
  options: of the command, beside those of the experiment.
  environment: variables.
  stage: pipeline that runs, "sft" or "reward", whose start is a finished SFT.
  code: that it must end with.
  """

  name: str
  change: Callable[[Path], None] = lambda folder: None
  options: tuple[str, ...] = ()
  environment: dict[str, str] = field(default_factory=dict)
  stage: str = "sft"
  code: int = REFUSED


def _write(name: str, content: str | bytes) -> Callable[[Path], None]:
  data = content.encode("utf-8") if isinstance(content, str) else content

  def change(folder: Path) -> None:
    (folder / name).write_bytes(data)

  return change


def _with(name: str, path: tuple[str, ...], value: object) -> Callable:
  """Returns a change of one value of a JSON file; Ellipsis takes it out."""

  def change(folder: Path) -> None:
    content = json.loads((folder / name).read_text())
    inner = content
    for key in path[:-1]:
      inner = inner[key]
    if value is ...:
      del inner[path[-1]]
    else:
      inner[path[-1]] = value
    (folder / name).write_text(json.dumps(content))

  return change


GOOD_LINE = '{"prompt": "the cat", "response": "a dog"}\n'
LINES = (
  "",
  "null",
  "[]",
  '"text"',
  "{",
  '{"prompt": "a"}',
  '{"response": "a"}',
  '{"prompt": 3, "response": "b"}',
  '{"prompt": null, "response": "b"}',
  '{"prompt": "a", "response": null}',
  '{"prompt": "a", "response": ["b"]}',
  '{"prompt": "a", "response": [{"role": "user", "content": "b"}]}',
  '{"prompt": [], "response": "b"}',
  '{"prompt": [{"role": "gpt", "content": "x"}], "response": "b"}',
  '{"prompt": [{"role": "user", "content": null}], "response": "b"}',
  '{"prompt": "a", "response": "b", "response": "c"}',
  '{"prompt": "a\\ud800", "response": "b"}',
  '{"prompt": "a", "response": "b", "n": NaN}',
  '{"prompt": "a", "response": "b", "n": 1e999}',
  '{"prompt": "a", "response": "b", "n": ' + "1" * 400 + "}",
  "[" * 50_000,
  '{"a":' * 50_000,
  '{"messages": [{"role": "user", "content": "a"}]}',
  '{"text": "a", "ratings": [1]}',
  "\x00\x00\x00",
)


def records() -> Iterator[Case]:
  """Yields files of records with one odd line, and odd files."""
  for number, line in enumerate(LINES):
    for place, text in (
      ("first", f"{line}\n{GOOD_LINE * 8}"),
      ("middle", f"{GOOD_LINE * 4}{line}\n{GOOD_LINE * 4}"),
    ):
      yield Case(f"record {number} {place}", _write("demos.jsonl", text))
  for name, content in {
    "empty": b"",
    "only blanks": b"\n\n \n",
    "latin1": GOOD_LINE.replace("cat", "caf\xe9").encode("latin1"),
    "utf16": (GOOD_LINE * 8).encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00garbage",
    "zeros": bytes(1000),
  }.items():
    yield Case(f"file {name}", _write("demos.jsonl", content))


def configs() -> Iterator[Case]:
  """Yields values that a field of the experiment cannot have."""
  wrong = {
    "seed": ("-1", str(2**70), "1.5", "x", ""),
    "model.source": ("gone", "/dev/null", "asset:gone", ""),
    "model.tokenizer": ("gone", "/dev/null"),
    "model.dtype": ("float8", "", "None"),
    "model.lora_rank": ("-1", "4", "x"),
    "model.lora_alpha": ("-1", "4", "x"),
    "model.lora_targets": ("", "x", "(", "q_proj"),
    "model.lora_dropout": ("0.1", "x"),
    "model.attention": ("flash", "x"),
    "data.source": ("gone.jsonl", "/dev/null", "*.gone", ".", ""),
    "data.format": ("x", "", "hh", "prompt", "gone.py:f"),
    "data.max_length": ("0", "1", "-5", str(2**70), "x", "2"),
    "data.split": ("x",),
    "data.splits": ("a", "a:x", "a:-1"),
    "data.pairs": ("-1", "5"),
    "data.prefix_tokens": ("-1", "2"),
    "data.limit": ("-1",),
    "data.chat": ("x", "2"),
    "schedule.steps": ("0", "-1", "x", "1e3"),
    "schedule.batch_size": ("0", "-4", "3000", str(2**70)),
    "optimizer.learning_rate": ("-1", "nan", "x", "None"),
    "optimizer.schedule": ("x", ""),
    "trainable.mode": ("x", "head", "lora", ""),
    "trainable.first_layer": ("-1", "99"),
    "mesh.data": ("0", "-3", "7"),
    "mesh.devices": ("-1", "999"),
    "loss.microbatches": ("0", "3"),
    "nothing": ("1",),
    "data.nothing": ("1",),
    "data": ("1",),
    "samples": ("-1", "4"),
  }
  for name, values in wrong.items():
    for value in values:
      yield Case(
        f"config.{name}={value}", options=(f"--config.{name}={value}",)
      )
  for option in ("--nothing=1", "stray", "--config=other.py", "--workdir"):
    yield Case(f"option {option}", options=(option,))


SIZES = (
  "vocab_size",
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "intermediate_size",
  "num_key_value_heads",
  "head_dim",
  "max_position_embeddings",
)


def models() -> Iterator[Case]:
  """Yields model folders with an odd value, or a damaged file."""
  config, tokenizer = "model/config.json", "model/tokenizer_config.json"
  for name in SIZES:
    for value in ODD:
      is_unset = value is None and name in SIZES[5:7]
      if not is_unset and (value, name) != (10**9, SIZES[-1]):
        yield Case(f"{name}={value!r:.20}", _with(config, (name,), value))
  for name, values in {
    "model_type": (None, [], {}, 3, "gpt2"),
    "rms_norm_eps": (None, "x", 0, -1, [], True),
    "rope_theta": (None, "x", 0, [], {}),
    "rope_scaling": ("x", [], {"type": "yarn"}, {"rope_type": "llama3"}),
    "tie_word_embeddings": (None, "x", 1, []),
    "quantization_config": ({}, {"bits": 4}),
    "partial_rotary_factor": (0.5, "x"),
    "attention_bias": (True, "x"),
    "hidden_act": ("gelu", None),
  }.items():
    for value in values:
      yield Case(f"{name}={value!r}", _with(config, (name,), value))
  for name, values in {
    "eos_token": (None, [], {}, 3, "gone", {"content": 3}, ...),
    "pad_token": ([], 3, "gone", {}),
    "chat_template": (3, {}, [1], [{"name": "x"}]),
  }.items():
    for value in values:
      yield Case(f"{name}={value!r}", _with(tokenizer, (name,), value))
  for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
    for content in (b"", b"[]", b"{", b"\xff\xfe", b"[" * 50_000, b"null"):
      damage = _write(f"model/{name}", content)
      yield Case(f"{name}: {content[:4]!r}", damage)
  for content in (
    b"",
    b"x",
    bytes(8),
    b"\xff" * 64,
    b"\x02" + bytes(7) + b"{}",
  ):
    damage = _write("model/model.safetensors", content)
    yield Case(f"weights: {content[:9]!r}", damage)
  for index in (
    "[]",
    "{}",
    '{"weight_map": []}',
    '{"weight_map": {"a": "../b"}}',
  ):
    name = "model/model.safetensors.index.json"
    yield Case(f"index {index}", _write(name, index))


TEMPLATES = (
  "{{ 1 / 0 }}",
  "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
  2 * "{% for a in range(99999) %}" + 2 * "{% endfor %}",
  "{{ 'a' * 10**10 }}",
  "{{ raise_exception('no') }}",
  "{% if %}",
  "{{ messages[0].gone.gone }}",
  "{{ ''.__class__.__mro__ }}",
  "nothing",
)


def templates() -> Iterator[Case]:
  """Yields chat templates that are programs gone wrong."""
  for template in TEMPLATES:
    yield Case(
      f"template {template[:30]}",
      _with("model/tokenizer_config.json", ("chat_template",), template),
      options=("--config.data.chat=True",),
    )


def stages() -> Iterator[Case]:
  """Yields finished stages whose record is damaged."""
  name = "start/stage.json"
  for content in ("", "[]", "{", "null", "{}", "\x00"):
    yield Case(f"stage {content!r}", _write(name, content), stage="reward")
  top = ("pipeline", "model_fingerprint", "tokenizer_fingerprint", "role")
  inner = ("trainable", "first_layer", "lora_rank", "lora_scale")
  paths = [(key,) for key in top] + [("role", key) for key in inner]
  for path in paths:
    for value in (..., None, [], {}, True, "?"):
      if path == ("pipeline",) and value == "?":
        continue  # only a name
      yield Case(
        f"stage {'.'.join(path)}={value!r}",
        _with(name, path, value),
        stage="reward",
      )
  for size in (0, 10, 100):
    yield Case(
      f"checkpoints cut to {size} bytes", _cut_checkpoints(size), stage="reward"
    )


def _cut_checkpoints(size: int) -> Callable[[Path], None]:
  def change(folder: Path) -> None:
    for path in (folder / "start" / "checkpoints").rglob("*"):
      if path.is_file():
        path.write_bytes(path.read_bytes()[:size])

  return change


def environments() -> Iterator[Case]:
  """Yields environments that a run cannot live in."""
  for name, value in (
    ("JAX_PLATFORMS", "cuda"),
    ("JAX_PLATFORMS", "nonsense"),
    ("RLHF_JAX_CACHE", "/dev/null/x"),
    ("SLURM_NTASKS", "x"),
    ("MEGASCALE_NUM_SLICES", "x"),
  ):
    yield Case(f"{name}={value}", environment={name: value})


def cases() -> list[Case]:
  """Returns all cases, controls first."""
  odd = (records, configs, models, templates, stages, environments)
  found = [
    Case("control sft", code=DONE),
    Case("control reward", stage="reward", code=DONE),
    *(case for kind in odd for case in kind()),
  ]
  names = [case.name for case in found]
  assert len(set(names)) == len(names), "two cases have one name"
  return found
