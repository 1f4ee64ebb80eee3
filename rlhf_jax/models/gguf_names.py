"""GGUF names: a path of our parameter tree -> a tensor of a llama.cpp file.

As family_names.py, {i} is the layer; every linear map is stored [out, in].
Files of one architecture may hold queries, keys and values in a tensor each
or in one; which tensors are there says so (`of_file`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from rlhf_jax.models.family_names import QKV, Names, Part, Stored, block, half

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
FREQUENCIES = "rope_freqs.weight"  # factors of rotary frequencies
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
_B = "blk.{i}."


def _weights(ours: str, theirs: str) -> dict[str, Stored]:
  """Returns kernel and bias of a linear map."""
  return {
    f"{ours}/kernel": Stored(f"{theirs}.weight", is_transposed=True),
    f"{ours}/bias": Stored(f"{theirs}.bias"),
  }


def _norm(ours: str, theirs: str) -> dict[str, Stored]:
  """Returns gain and bias of a norm."""
  return {
    f"{ours}/scale": Stored(f"{theirs}.weight"),
    f"{ours}/bias": Stored(f"{theirs}.bias"),
  }


def _parts(ours: str, theirs: str, outputs, of) -> dict[str, Stored]:
  """Returns entries of maps that share a tensor.

  Args:
    ours, theirs: of a kernel or bias, `ours` with {} for one of `outputs`.
    outputs: names of the maps.
    of: (config, name) -> Part.
  """
  return {
    f"layer_{{i}}/{ours.format(name)}": Stored(
      _B + theirs,
      is_transposed=ours.endswith("kernel"),
      part=lambda c, name=name: of(c, name),
    )
    for name in outputs
  }


_ENDS = {
  "embedding/embedding": Stored(EMBEDDING),
  "lm_head/kernel": Stored(HEAD, is_transposed=True),
  **_norm("final_norm", "output_norm"),
}
_MAPS = {
  path: stored
  for ours, theirs in {
    "attention/q_proj": "attn_q",
    "attention/k_proj": "attn_k",
    "attention/v_proj": "attn_v",
    "attention/o_proj": "attn_output",
    "mlp/gate_proj": "ffn_gate",
    "mlp/up_proj": "ffn_up",
    "mlp/down_proj": "ffn_down",
  }.items()
  for path, stored in _weights(f"layer_{{i}}/{ours}", _B + theirs).items()
}
_NORMS = {
  path: stored
  for ours, theirs in {
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "attention_post_norm": "post_attention_norm",
    "mlp_post_norm": "post_ffw_norm",
    "attention/q_norm": "attn_q_norm",
    "attention/k_norm": "attn_k_norm",
  }.items()
  for path, stored in _norm(f"layer_{{i}}/{ours}", _B + theirs).items()
}
_FUSED_QKV = {
  **_parts("attention/{}/kernel", "attn_qkv.weight", QKV, block),
  **_parts("attention/{}/bias", "attn_qkv.bias", QKV, block),
}

LLAMA: Names = _ENDS | _MAPS | _NORMS
GPT2: Names = (
  LLAMA
  | _FUSED_QKV
  | {"position_embedding/embedding": Stored("position_embd.weight")}
)
GPT_NEOX: Names = LLAMA | _FUSED_QKV
PHI3: Names = (
  LLAMA
  | _FUSED_QKV
  | _parts("mlp/{}/kernel", "ffn_up.weight", ("gate_proj", "up_proj"), half)
)


def of_file(names: Names, tensors: Collection[str]) -> Names:
  """Returns a table with queries, keys and values as a file holds them.

  Args:
    names: of the architecture.
    tensors: of the file.
  """
  is_fused = "blk.0.attn_qkv.weight" in tensors
  own = {path: stored for path, stored in LLAMA.items() if path in _FUSED_QKV}
  return {**names, **(_FUSED_QKV if is_fused else own)}


def rows(
  path: str, stored: Stored, config: Any, is_paired: bool
) -> np.ndarray | None:
  """Returns at which output of the stored tensor each of our outputs is.

  Args:
    path: of the weight in our tree.
    stored: of names_of_layers.
    config: transformer.Config.
    is_paired: files of the architecture have the two numbers of a head that
      turn together side by side; ours are half a head apart.

  Returns:
    [outputs] int64, or None where they are in the same order.
  """
  part: Part | None = stored.part
  which = path.split("/")[-2]
  heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}.get(which, 0)
  found = None
  if part is not None:
    found = np.concatenate(
      [np.arange(s.start, s.stop) for _, s in part.pieces(0, part.size)]
    )
  if is_paired and heads:
    count = heads * config.head_dim
    order = np.arange(count).reshape(heads, config.head_dim // 2, 2)
    order = order.swapaxes(1, 2).reshape(count)
    found = order if found is None else found[order]
  return found
