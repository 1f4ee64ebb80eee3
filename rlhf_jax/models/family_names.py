"""Name tables: a path of our parameter tree -> where a checkpoint has it.

{i} is the layer. Linear maps of Hugging Face are stored [out, in] and turned
on the way in and out; GPT-2's are [in, out]. Where queries, keys and values,
or gate and up, are one stored matrix, a Part says which of its outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Part:
  """Some outputs of a stored matrix: `blocks` of them, every `stride`.

  Our output o is stored at start + (o // block) * stride + o % block.
  """

  start: int
  block: int
  stride: int
  blocks: int

  @property
  def size(self) -> int:
    """Outputs in all."""
    return self.block * self.blocks

  def pieces(self, first: int, end: int) -> list[tuple[slice, slice]]:
    """Returns (ours, stored) slices that make up our outputs first..end - 1.

    Args:
      first, end: of our outputs; ours are counted from `first`.
    """
    found = []
    while first < end:
      block, inside = divmod(first, self.block)
      count = min(self.block - inside, end - first)
      at = self.start + block * self.stride + inside
      done = 0 if not found else found[-1][0].stop
      found.append((slice(done, done + count), slice(at, at + count)))
      first += count
    return found


@dataclasses.dataclass(frozen=True)
class Stored:
  """Where one weight is.

  part: (architecture) -> Part, of transformer.Config; None for a tensor of
    its own.
  """

  name: str
  is_transposed: bool = False
  part: Any = None


Names = Mapping[str, Stored]
QKV = ("q_proj", "k_proj", "v_proj")


def block(c: Any, which: str) -> Part:
  """Returns q, k or v of a matrix that holds them one after the other."""
  sizes = [c.n_heads, c.n_kv_heads, c.n_kv_heads]
  i = QKV.index(which)
  start, size = sum(sizes[:i]) * c.head_dim, sizes[i] * c.head_dim
  return Part(start, size, size, 1)


def _by_head(c: Any, which: str) -> Part:
  """Returns q, k or v of a matrix that holds all three of each head."""
  start = QKV.index(which) * c.head_dim
  return Part(start, c.head_dim, 3 * c.head_dim, c.n_heads)


def half(c: Any, which: str) -> Part:
  """Returns gate or up of a matrix that holds them one after the other."""
  size = c.mlp_width
  start = ("gate_proj", "up_proj").index(which) * size
  return Part(start, size, size, 1)


def _parts(path: str, name: str, outputs, of, **kind) -> dict[str, Stored]:
  """Returns entries of the outputs that one stored matrix holds."""
  return {
    path.format(which): Stored(
      name, part=lambda c, which=which: of(c, which), **kind
    )
    for which in outputs
  }


_LAYER = "model.layers.{i}."
_OURS = "layer_{{i}}/"  # before a path is filled with a name


def _maps(module: str, theirs: str, names) -> dict[str, Stored]:
  """Returns kernels and biases of linear maps that have their own tensors."""
  return {
    f"layer_{{i}}/{module}/{name}/{ours}": Stored(
      f"{_LAYER}{theirs}.{name}.{end}", is_transposed=ours == "kernel"
    )
    for name in names
    for ours, end in (("kernel", "weight"), ("bias", "bias"))
  }


_ENDS = {
  "embedding/embedding": Stored("model.embed_tokens.weight"),
  "final_norm/scale": Stored("model.norm.weight"),
  "lm_head/kernel": Stored("lm_head.weight", is_transposed=True),
}
_BEFORE = {
  "layer_{i}/attention_norm/scale": Stored(_LAYER + "input_layernorm.weight"),
  "layer_{i}/mlp_norm/scale": Stored(
    _LAYER + "post_attention_layernorm.weight"
  ),
}
_QK_NORMS = {
  f"layer_{{i}}/attention/{x}_norm/scale": Stored(
    f"{_LAYER}self_attn.{x}_norm.weight"
  )
  for x in "qk"
}
_MLP = _maps("mlp", "mlp", ("gate_proj", "up_proj", "down_proj"))

# Llama, Mistral, SmolLM3, Qwen 2 and 3, Gemma 1.
LLAMA = {
  **_ENDS,
  **_BEFORE,
  **_QK_NORMS,
  **_maps("attention", "self_attn", (*QKV, "o_proj")),
  **_MLP,
}
# Norms behind attention and MLP (OLMo 2), or around them (Gemma 2 and 3).
OLMO2 = {
  **{path: name for path, name in LLAMA.items() if path not in _BEFORE},
  "layer_{i}/attention_post_norm/scale": Stored(
    _LAYER + "post_attention_layernorm.weight"
  ),
  "layer_{i}/mlp_post_norm/scale": Stored(
    _LAYER + "post_feedforward_layernorm.weight"
  ),
}
GEMMA2 = {
  **OLMO2,
  "layer_{i}/attention_norm/scale": _BEFORE["layer_{i}/attention_norm/scale"],
  "layer_{i}/mlp_norm/scale": Stored(
    _LAYER + "pre_feedforward_layernorm.weight"
  ),
}
PHI3 = {
  **_ENDS,
  **_BEFORE,
  **_parts(
    _OURS + "attention/{}/kernel",
    _LAYER + "self_attn.qkv_proj.weight",
    QKV,
    block,
    is_transposed=True,
  ),
  **_maps("attention", "self_attn", ("o_proj",)),
  **_parts(
    _OURS + "mlp/{}/kernel",
    _LAYER + "mlp.gate_up_proj.weight",
    ("gate_proj", "up_proj"),
    half,
    is_transposed=True,
  ),
  **_maps("mlp", "mlp", ("down_proj",)),
}


def _pairs(ours: str, theirs: str, *, turned: bool | None) -> dict[str, Stored]:
  """Returns weight and bias of a module; `turned` None for a norm."""
  weight = "scale" if turned is None else "kernel"
  return {
    f"{ours}/{weight}": Stored(f"{theirs}.weight", is_transposed=bool(turned)),
    f"{ours}/bias": Stored(f"{theirs}.bias"),
  }


_H = "transformer.h.{i}."
GPT2 = {
  "embedding/embedding": Stored("transformer.wte.weight"),
  "position_embedding/embedding": Stored("transformer.wpe.weight"),
  "lm_head/kernel": Stored("lm_head.weight", is_transposed=True),
  **_pairs("final_norm", "transformer.ln_f", turned=None),
  **_pairs("layer_{i}/attention_norm", _H + "ln_1", turned=None),
  **_pairs("layer_{i}/mlp_norm", _H + "ln_2", turned=None),
  **_parts(
    _OURS + "attention/{}/kernel", _H + "attn.c_attn.weight", QKV, block
  ),
  **_parts(_OURS + "attention/{}/bias", _H + "attn.c_attn.bias", QKV, block),
  **_pairs("layer_{i}/attention/o_proj", _H + "attn.c_proj", turned=False),
  **_pairs("layer_{i}/mlp/up_proj", _H + "mlp.c_fc", turned=False),
  **_pairs("layer_{i}/mlp/down_proj", _H + "mlp.c_proj", turned=False),
}

_X = "gpt_neox.layers.{i}."
_QKV_X = _X + "attention.query_key_value"
GPT_NEOX = {
  "embedding/embedding": Stored("gpt_neox.embed_in.weight"),
  "lm_head/kernel": Stored("embed_out.weight", is_transposed=True),
  **_pairs("final_norm", "gpt_neox.final_layer_norm", turned=None),
  **_pairs("layer_{i}/attention_norm", _X + "input_layernorm", turned=None),
  **_pairs("layer_{i}/mlp_norm", _X + "post_attention_layernorm", turned=None),
  **_parts(
    _OURS + "attention/{}/kernel",
    _QKV_X + ".weight",
    QKV,
    _by_head,
    is_transposed=True,
  ),
  **_parts(_OURS + "attention/{}/bias", _QKV_X + ".bias", QKV, _by_head),
  **_pairs("layer_{i}/attention/o_proj", _X + "attention.dense", turned=True),
  **_pairs("layer_{i}/mlp/up_proj", _X + "mlp.dense_h_to_4h", turned=True),
  **_pairs("layer_{i}/mlp/down_proj", _X + "mlp.dense_4h_to_h", turned=True),
}
