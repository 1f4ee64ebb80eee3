"""A reward model -> transformers' sequence classification with one label.

  LlamaForSequenceClassification: score.weight . norm(x), at the last token
  that is not the padding token

is our linear head w . x / rms(x) when the last norm has gain 1 and score.weight
is w. Layers that the head does not read are left out. Their norm adds
rms_norm_eps to the mean square of x where heads.py adds 1e-6. The bias, which
comparisons do not move, and mean and deviation of the scores have no place
there; config.json keeps them as reward_bias, reward_mean and reward_std.

Left out, refused by name: heads that read a running mean or have a hidden
layer, several outputs, and families whose last norm subtracts a mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.data import stops
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.exports.opened import Leaving
from rlhf_jax.models import transformer
from rlhf_jax.models.roles import Role
from rlhf_jax.schema import UserError

# model_type -> class of transformers.
CLASSES = {
  "llama": "LlamaForSequenceClassification",
  "mistral": "MistralForSequenceClassification",
  "smollm3": "SmolLM3ForSequenceClassification",
  "qwen2": "Qwen2ForSequenceClassification",
  "qwen3": "Qwen3ForSequenceClassification",
  "gemma": "GemmaForSequenceClassification",
  "gemma2": "Gemma2ForSequenceClassification",
  "gemma3_text": "Gemma3TextForSequenceClassification",
  "olmo2": "Olmo2ForSequenceClassification",
  "phi3": "Phi3ForSequenceClassification",
}
_BY_LAYER = ("layer_types", "no_rope_layers")  # lists in config.json


def check(role: Role, where: str) -> None:
  """Raises UserError for a reward model that transformers cannot score.

  Args:
    role: of the reward model.
    where: it is, for the message.
  """
  head, family = role.head, role.model.family
  reason = ""
  if head.pooling != "last":
    reason = (
      f"its head has pooling={head.pooling!r}, and transformers reads the last "
      "token only. Train one with --config.head.pooling=last"
    )
  elif head.hidden_units:
    reason = (
      f"its head has hidden_units={head.hidden_units}, and transformers has a "
      "linear one. Train one with --config.head.hidden_units=0"
    )
  elif head.outputs != 1:
    reason = (
      f"its head has outputs={head.outputs}; one score of an answer can be "
      "written. Train one with --config.head.outputs=1"
    )
  elif family not in CLASSES:
    reason = (
      f"the last norm of the {family} family subtracts a mean, which the head "
      f"does not. Families that can: {', '.join(CLASSES)}"
    )
  if reason:
    raise UserError(
      f"{where}: this reward model cannot be exported: {reason}, or use it "
      "from its stage: lab.load(FOLDER)."
    )


def architecture(role: Role) -> transformer.Config:
  """Returns the decoder below the head, without the layers it does not read."""
  config, stop = role.model, role.stop
  return dataclasses.replace(
    config,
    n_layers=stop,
    local_layers=tuple(i for i in config.local_layers if i < stop),
    still_layers=tuple(i for i in config.still_layers if i < stop),
    scan_layers=False,
  )


def original_entries(
  role: Role, original: Mapping[str, Any] | None
) -> dict[str, Any] | None:
  """Returns config.json of before, cut to the layers that are read."""
  if original is None:
    return None
  found = dict(original)
  found["num_hidden_layers"] = role.stop
  for name in _BY_LAYER:
    if isinstance(found.get(name), list):
      found[name] = found[name][: role.stop]
  return found


def params(role: Role, tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the tree of a decoder that ends where the head reads.

  Args:
    role: of the reward model.
    tree: under "params", of layer_0...
  """
  kept = {
    name: part
    for name, part in tree.items()
    if name != "lm_head"
    and not (
      name.startswith("layer_")
      and int(name.removeprefix("layer_")) >= role.stop
    )
  }
  gain = 1.0 - role.model.norm_offset
  scale = np.full(role.model.width, gain, np.float32)
  return kept | {"final_norm": {"scale": scale}}


def facts(leaving: Leaving, head: Mapping[str, Any]) -> dict[str, float]:
  """Returns what config.json says beside the architecture, in numbers.

  reward = logit + reward_bias; in units of the policy it was normalised on,
  (reward - reward_mean) / reward_std.

  Args:
    leaving: the reward model.
    head: its parameters, on the host.
  """
  known = leaving.info.get("normalisation", {"mean": 0.0, "std": 1.0})
  return {
    "reward_bias": float(np.asarray(head["output"]["bias"])[0]),
    "reward_mean": float(known["mean"]),
    "reward_std": float(known["std"]),
  }


def padding(
  tokenizer: Tokenizer, config: transformer.Config, *, reads_end: bool
) -> tuple[int, str | None]:
  """Returns the id, and the text if it has one, that is passed over as padding.

  transformers scores at the last token that is not this one. A model that was
  trained on rows without the end token passes the end token over, so rows with
  and without one score alike; for another one it must not end a row.

  Args:
    tokenizer: of the model.
    config: architecture.
    reads_end: whether rows end with an end token that is read.

  Raises:
    UserError: every token may end a row.
  """
  names = {i: text for text, i in tokenizer.special_tokens.items()}
  ends = stops.end_ids(tokenizer)
  if not reads_end:
    return ends[0], names.get(ends[0])
  free = [
    tokenizer.pad_id,
    *(i for text, i in tokenizer.special_tokens.items() if "pad" in text),
    *(i for text, i in tokenizer.special_tokens.items() if "unk" in text),
    *sorted(tokenizer.special_tokens.values()),
  ]
  for i in free:
    if i not in ends and i != tokenizer.bos_id:
      return i, names.get(i)
  if config.vocab_size > tokenizer.vocab_size:
    return tokenizer.vocab_size, None
  raise UserError(
    f"{tokenizer.name}: each of its special tokens ends or begins a text, so "
    "none can be padding that transformers passes over. Give the tokenizer a "
    "token for padding, and train the reward model again."
  )


def entries(leaving: Leaving, pad_id: int) -> dict[str, Any]:
  """Returns what makes config.json that of a classifier with one label."""
  return {
    "architectures": [CLASSES[leaving.role.model.family]],
    "id2label": {"0": "reward"},
    "label2id": {"reward": 0},
    "pad_token_id": pad_id,
  }
