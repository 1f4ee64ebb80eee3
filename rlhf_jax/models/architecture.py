"""What a decoder is: every model family is a setting of this Config."""

from __future__ import annotations

import dataclasses

from rlhf_jax.models import attention, rotary
from rlhf_jax.schema import UserError

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


@dataclasses.dataclass(frozen=True)
class Config:
  """Architecture. Two configs that differ only below the line share weights."""

  vocab_size: int
  width: int
  n_layers: int
  n_heads: int
  n_kv_heads: int
  head_dim: int
  mlp_width: int
  norm: str = "rms"  # "rms" or "layer" (with bias)
  norm_epsilon: float = 1e-5
  norm_offset: float = 0.0  # added to every gain of a norm (Gemma: 1)
  norm_place: str = "before"  # attention and MLP, "after" or "around" them
  is_parallel: bool = False  # attention and MLP read the same stream
  positions: str = "rope"  # "rope" or "learned"
  rope_theta: float = 10_000.0
  rotary_dim: int | None = None  # numbers of a head that turn; None for all
  rope_scaling: rotary.Scaling = rotary.Scaling()
  still_layers: tuple[int, ...] = ()  # whose heads do not turn
  local_layers: tuple[int, ...] = ()  # with a theta or a window of their own
  local_rope_theta: float | None = None
  window: int | None = None  # tokens that a local layer reads, its own included
  max_length: int = 2048  # tokens of context
  activation: str = "silu"
  gated_mlp: bool = True
  attention_bias: bool = False  # on q, k, v
  output_bias: bool = False  # on the way out of attention
  mlp_bias: bool = False
  qk_norm: str = "none"  # of queries and keys: each "head", or the "projection"
  query_scale: float | None = None  # of scores; None for head_dim**-0.5
  attention_cap: float | None = None  # c in c tanh(score / c)
  logit_cap: float | None = None  # the same of logits
  embedding_scale: float = 1.0  # of what enters layer 0
  tie_embeddings: bool = True
  family: str = "llama"  # whose names the weights have in files
  # --- how it runs ---
  empty_rows: tuple[tuple[int, int], ...] = ()  # (start, end) of rows of the
  # embedding that have no token: never sampled, and of probability 0
  dtype: str = "float32"  # compute dtype
  weights: str = "float32"  # dtype that parameters rest in, but for factors
  # and heads, which are float32
  quantize: str = "none"  # bits of frozen matrices, see quantised.py
  attention: str = "einsum"  # the program, see attention.py
  scan_layers: bool = False  # one compiled block for deep models on TPU
  remat: bool = False  # recompute blocks in the backward pass
  lora_rank: int = 0  # factors created by init; 0 for none
  lora_scale: float = 1.0  # multiplies A B
  lora_merge: bool = True  # the sampler adds factors to the kernels first
  lora_first_layer: int = 0  # layers below carry no factors
  lora_targets: tuple[str, ...] = ()  # maps that carry some, "mlp/up_proj" or
  # "layer_3/mlp/up_proj"; () for all

  def __post_init__(self) -> None:
    choices = {
      "norm": ("rms", "layer"),
      "norm_place": ("before", "after", "around"),
      "qk_norm": ("none", "head", "projection"),
      "positions": ("rope", "learned"),
      "activation": ACTIVATIONS,
      "dtype": ("float32", "bfloat16"),
      "weights": ("float32", "bfloat16"),
      "attention": attention.KINDS,
    }
    for field, allowed in choices.items():
      if getattr(self, field) not in allowed:
        raise UserError(
          f"{field}={getattr(self, field)!r}: must be one of {allowed}."
        )
    if self.n_heads % self.n_kv_heads:
      raise UserError(
        f"n_heads={self.n_heads} is not a multiple of n_kv_heads="
        f"{self.n_kv_heads}: every key head serves the same number of queries."
      )
    if self.positions == "rope" and self.rotary_size % 2:
      name = "head_dim" if self.rotary_dim is None else "rotary_dim"
      raise UserError(
        f"{name}={self.rotary_size}: rotary positions turn pairs of numbers, "
        "so it must be even."
      )
    if self.attention_cap is not None and self.attention == "cudnn":
      raise UserError(
        f"attention='cudnn' with attention_cap={self.attention_cap}: cuDNN's "
        "kernel caps no scores. Set attention='einsum'."
      )
    if self.scan_layers and any(
      name.startswith("layer_") for name in self.lora_targets
    ):
      raise UserError(
        f"lora_targets={','.join(self.lora_targets)} with scan_layers: scanned "
        "layers share one program, so all have factors at the same places. "
        "Choose the same in all, or set scan_layers=False."
      )
    if self.scan_layers and 0 < self.lora_first_layer:
      raise UserError(
        f"lora_first_layer={self.lora_first_layer} with scan_layers: scanned "
        "layers share one program. Set lora_first_layer=0 or "
        "scan_layers=False."
      )

  @property
  def rotary_size(self) -> int:
    """Numbers of a head that turn."""
    return self.head_dim if self.rotary_dim is None else self.rotary_dim
