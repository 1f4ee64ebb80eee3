"""GGUF metadata -> the entries of config.json that mean the same model.

A reader for each architecture of llama.cpp that one of our families is; what
the entries mean stands in family_configs.py alone. Values that llama.cpp has
in its code and not in the file (gains of attention, periods of local layers,
layers without positions) stand here as there.

Left out: windows of Llama, Qwen and OLMo files, which llama.cpp does not
read or computes otherwise; keys of them are refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rlhf_jax.models import gguf_names, rotary
from rlhf_jax.models.family_names import Names
from rlhf_jax.models.family_rope import FULL, LOCAL
from rlhf_jax.models.gguf_metadata import Metadata
from rlhf_jax.schema import UserError

Entries = dict[str, Any]
LLAMA_31 = {  # of all releases; the factor differs
  "rope_type": "llama3",
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
  """How files of an architecture are read and written.

  family: of families.FAMILIES, whose entries `read` returns.
  model_class: the class of transformers.
  names: of its tensors.
  is_paired: see gguf_names.rows.
  norm_shift: files hold gains of norms plus this.
  may_copy_head: a tied head may stand in the file a second time.
  needs_head: llama.cpp loads no file without a head.
  reads_window: llama.cpp knows of windows.
  """

  family: str
  model_class: str
  read: Callable[[Metadata], Entries]
  names: Names = dataclasses.field(default_factory=lambda: gguf_names.LLAMA)
  is_paired: bool = False
  norm_shift: float = 0.0
  may_copy_head: bool = False
  needs_head: bool = False
  reads_window: bool = False

  def entries(self, m: Metadata) -> Entries:
    """Returns the entries of config.json that a file means.

    Raises:
      UserError: a key or tensor that changes the numbers and is not read.
    """
    found = {
      "architectures": [self.model_class],
      "model_type": self.family,
      **self.read(m),
    }
    m.check_all_seen()
    return found


def _sizes(m: Metadata) -> Entries:
  """Returns the sizes that all architectures but GPT-2 name alike."""
  width, heads = m.whole("embedding_length"), m.whole("attention.head_count")
  head_dim = m.whole("attention.key_length", max(width // heads, 1))
  m.only("attention.value_length", head_dim)
  return {
    "vocab_size": m.embedding_rows(),
    "hidden_size": width,
    "num_hidden_layers": m.whole("block_count"),
    "num_attention_heads": heads,
    "num_key_value_heads": m.whole("attention.head_count_kv", heads),
    "head_dim": head_dim,
    "intermediate_size": m.whole("feed_forward_length"),
    "max_position_embeddings": m.whole("context_length"),
    "tie_word_embeddings": m.is_tied,
  }


def _turning(
  m: Metadata, sizes: Entries, *, factors: str = "", is_partial: bool = False
) -> Entries:
  """Returns the entries about rotary positions.

  Args:
    m, sizes: of the file.
    factors: the tensor of factors that the architecture reads, "" for none.
    is_partial: a part of a head may stay.
  """
  head_dim = sizes["head_dim"]
  found: Entries = {"rope_theta": m.positive("rope.freq_base", 10_000.0)}
  if is_partial:
    size = m.whole("rope.dimension_count", head_dim)
    share = size / head_dim
    if int(head_dim * share) < size:  # as config.json's is turned into a size
      share = math.nextafter(share, 1.0)
    found["partial_rotary_factor"] = share
  else:
    m.only("rope.dimension_count", head_dim)
  longest = m.whole("context_length")
  first = m.whole("rope.scaling.original_context_length", longest)
  if factors == gguf_names.SHORT and m.has(factors):
    scaling = _two_sets(m, first)
  elif factors == gguf_names.FREQUENCIES and m.has(factors):
    for key, usual in (("type", "none"), ("factor", 1.0), ("attn_factor", 1.0)):
      m.only(f"rope.scaling.{key}", usual)
    scaling = _factors(m.read(factors), found["rope_theta"], head_dim, longest)
  else:
    scaling = _scaling(m, first)
  return found | ({"rope_scaling": scaling} if scaling else {})


def _scaling(m: Metadata, first: int) -> Entries:
  """Returns rope_scaling of config.json, {} for none.

  Args:
    m: of the file.
    first: tokens of the context that the model was first trained on.
  """
  kind = m.get("rope.scaling.type")
  factor = m.get("rope.scaling.factor", m.get("rope.scale_linear"))
  if kind == "yarn":
    return _yarn(m, first)
  m.only("rope.scaling.attn_factor", 1.0)
  if kind not in (None, "none", "linear"):
    m.only("rope.scaling.type", "none")
  if kind == "none" or factor in (None, 0, 1):
    return {}
  factor = m.positive("rope.scaling.factor", factor)
  return {"rope_type": "linear", "factor": factor}


def _yarn(m: Metadata, first: int) -> Entries:
  factor = m.positive("rope.scaling.factor")
  magnitude = m.positive("rope.scaling.attn_factor", 1.0)
  found = {
    "rope_type": "yarn",
    "factor": factor,
    "original_max_position_embeddings": first,
  }
  if magnitude != 1.0:
    found["attention_factor"] = magnitude * grown(factor)
  return found


def grown(factor: float) -> float:
  """Returns the usual magnitude of yarn (arXiv:2309.00071, eq. 22)."""
  return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def _two_sets(m: Metadata, first: int) -> Entries:
  """Returns factors for short and for long contexts (Phi 3)."""
  m.only("rope.scaling.type", "longrope")
  short = [float(x) for x in m.read(gguf_names.SHORT)]
  long = short
  if m.has(gguf_names.LONG):
    long = [float(x) for x in m.read(gguf_names.LONG)]
  return {
    "rope_type": "longrope",
    "short_factor": short,
    "long_factor": long,
    "original_max_position_embeddings": first,
    "attention_factor": m.positive("rope.scaling.attn_factor", 1.0),
  }


def _factors(
  factors: np.ndarray, theta: float, head_dim: int, longest: int
) -> Entries:
  """Returns what a tensor of factors means: Llama 3.1's scaling, or itself."""
  said = LLAMA_31 | {"factor": float(factors.max(initial=1.0))}
  scaling = rotary.Scaling(
    "llama3",
    factor=said["factor"],
    first_length=said["original_max_position_embeddings"],
    low=said["low_freq_factor"],
    high=said["high_freq_factor"],
  )
  plain = rotary.frequencies(theta, head_dim)
  known = plain / rotary.frequencies(theta, head_dim, scaling)
  if factors.shape == known.shape and np.allclose(factors, known, rtol=1e-4):
    return said
  values = [float(x) for x in factors]
  return {
    "rope_type": "longrope",
    "short_factor": values,
    "long_factor": values,
    "original_max_position_embeddings": longest,
    "attention_factor": 1.0,
  }


def _llama_like(m: Metadata, *, factors: str = "", **more: Any) -> Entries:
  sizes = _sizes(m)
  return {
    **sizes,
    **_turning(m, sizes, factors=factors),
    "rms_norm_eps": m.positive("attention.layer_norm_rms_epsilon"),
    "hidden_act": "silu",
    **more,
  }


def _biases(m: Metadata) -> Entries:
  """Returns which maps have a bias, by the tensors of layer 0."""
  names = ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias")
  return {
    "attention_bias": any(m.has(name) for name in names),
    "mlp_bias": m.has("blk.0.ffn_up.bias"),
  }


def _llama(m: Metadata) -> Entries:
  return _llama_like(m, factors=gguf_names.FREQUENCIES, **_biases(m))


def _qwen2(m: Metadata) -> Entries:
  return _llama_like(m, use_sliding_window=False)


def _qwen3(m: Metadata) -> Entries:
  bias = _biases(m)["attention_bias"]
  return _llama_like(m, use_sliding_window=False, attention_bias=bias)


def _smollm3(m: Metadata) -> Entries:
  return _llama_like(m, **_biases(m), no_rope_layer_interval=4)


def _olmo2(m: Metadata) -> Entries:
  return _llama_like(m)


def _phi3(m: Metadata) -> Entries:
  sizes = _sizes(m)
  turning = _turning(m, sizes, factors=gguf_names.SHORT, is_partial=True)
  window = m.get("attention.sliding_window", 0)
  if window:
    window = m.whole("attention.sliding_window")
  return {
    **sizes,
    **turning,
    "rms_norm_eps": m.positive("attention.layer_norm_rms_epsilon"),
    "hidden_act": "silu",
    "sliding_window": window or None,
  }


def _gemma_like(m: Metadata) -> Entries:
  sizes = _sizes(m)
  return {
    **sizes,
    **_turning(m, sizes),
    "rms_norm_eps": m.positive("attention.layer_norm_rms_epsilon"),
    "hidden_activation": "gelu_pytorch_tanh",
  }


def _query_scalar(entries: Entries, layers_of_27b: int) -> int:
  """Returns what the square root of is divided by, as llama.cpp decides it."""
  if entries["num_hidden_layers"] == layers_of_27b:
    return entries["hidden_size"] // entries["num_attention_heads"]
  return entries["head_dim"]


def _layer_types(m: Metadata, layers: int, period: int) -> list[str]:
  """Returns which layers are local: all but the last of every period."""
  said = m.get("attention.sliding_window_pattern", period)
  if isinstance(said, list):
    if len(said) != layers or not all(isinstance(x, bool) for x in said):
      raise UserError(
        f"{m.name('attention.sliding_window_pattern')}={said!r:.60}: must be "
        f"{layers} of true and false, or a number. Fetch the file again."
      )
    return [LOCAL if x else FULL for x in said]
  every = m.whole("attention.sliding_window_pattern", period)
  return [FULL if (i + 1) % every == 0 else LOCAL for i in range(layers)]


def _gemma2(m: Metadata) -> Entries:
  found = _gemma_like(m)
  m.only("rope.freq_base_swa", found["rope_theta"])
  return {
    **found,
    "query_pre_attn_scalar": _query_scalar(found, 46),
    "attn_logit_softcapping": m.positive("attn_logit_softcapping", 50.0),
    "final_logit_softcapping": m.positive("final_logit_softcapping", 30.0),
    "sliding_window": m.whole("attention.sliding_window", 4096),
    "layer_types": _layer_types(m, found["num_hidden_layers"], 2),
  }


def _gemma3(m: Metadata) -> Entries:
  m.positive("rope.freq_base")  # its usual value is not everybody's
  found = _gemma_like(m)
  layers = found["num_hidden_layers"]
  kinds = [FULL] * layers
  if m.get("attention.sliding_window", 0):
    found["sliding_window"] = m.whole("attention.sliding_window")
    found["rope_local_base_freq"] = m.positive("rope.freq_base_swa", 10_000.0)
    kinds = _layer_types(m, layers, 6)
  if m.get("final_logit_softcapping", 0):
    found["final_logit_softcapping"] = m.positive("final_logit_softcapping")
  return {
    **found,
    "query_pre_attn_scalar": _query_scalar(found, 62),
    "layer_types": kinds,
  }


def _gpt2(m: Metadata) -> Entries:
  width, heads = m.whole("embedding_length"), m.whole("attention.head_count")
  m.only("attention.head_count_kv", heads)
  m.only("attention.key_length", max(width // heads, 1))
  m.only("attention.value_length", max(width // heads, 1))
  return {
    "vocab_size": m.embedding_rows(),
    "n_embd": width,
    "n_layer": m.whole("block_count"),
    "n_head": heads,
    "n_positions": m.whole("context_length"),
    "n_inner": m.whole("feed_forward_length"),
    "layer_norm_epsilon": m.positive("attention.layer_norm_epsilon"),
    "activation_function": "gelu_new",
    "tie_word_embeddings": m.is_tied,
  }


def _gpt_neox(m: Metadata) -> Entries:
  sizes = _sizes(m)
  m.only("attention.head_count_kv", sizes["num_attention_heads"])
  m.only(
    "attention.key_length", sizes["hidden_size"] // sizes["num_attention_heads"]
  )
  turning = _turning(m, sizes, is_partial=True)
  own = ("num_key_value_heads", "head_dim")
  sizes = {key: value for key, value in sizes.items() if key not in own}
  return {
    **sizes,
    "rotary_emb_base": turning.pop("rope_theta"),
    "rotary_pct": turning.pop("partial_rotary_factor"),
    **turning,
    "layer_norm_eps": m.positive("attention.layer_norm_epsilon"),
    "hidden_act": "gelu",
    "use_parallel_residual": m.flag("use_parallel_residual"),
  }


ARCHITECTURES: dict[str, Architecture] = {
  "llama": Architecture("llama", "LlamaForCausalLM", _llama, is_paired=True),
  "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _qwen2),
  "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _qwen3),
  "smollm3": Architecture(
    "smollm3", "SmolLM3ForCausalLM", _smollm3, is_paired=True
  ),
  "olmo2": Architecture(
    "olmo2", "Olmo2ForCausalLM", _olmo2, may_copy_head=True, needs_head=True
  ),
  "phi3": Architecture(
    "phi3",
    "Phi3ForCausalLM",
    _phi3,
    names=gguf_names.PHI3,
    reads_window=True,
  ),
  "gemma": Architecture(
    "gemma", "GemmaForCausalLM", _gemma_like, norm_shift=1.0
  ),
  "gemma2": Architecture(
    "gemma2",
    "Gemma2ForCausalLM",
    _gemma2,
    norm_shift=1.0,
    reads_window=True,
  ),
  "gemma3": Architecture(
    "gemma3_text",
    "Gemma3ForCausalLM",
    _gemma3,
    norm_shift=1.0,
    reads_window=True,
  ),
  "gpt2": Architecture(
    "gpt2",
    "GPT2LMHeadModel",
    _gpt2,
    names=gguf_names.GPT2,
    may_copy_head=True,
  ),
  "gptneox": Architecture(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    _gpt_neox,
    names=gguf_names.GPT_NEOX,
    may_copy_head=True,
    needs_head=True,
  ),
}
