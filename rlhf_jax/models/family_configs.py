"""config.json of each family -> the architecture it means.

Each reader asks for all entries that change the numbers, in their older and
newer names; what is left over is refused (config_fields.py). The entries are
those of transformers, whose defaults stand here where a file leaves one out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_jax.models import family_rope
from rlhf_jax.models.config_fields import COPY, Fields
from rlhf_jax.models.family_rope import FULL, LOCAL
from rlhf_jax.models.transformer import Config
from rlhf_jax.schema import UserError

SILU = {"silu": "silu"}
GELUS = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
}
# The first releases of Gemma say "gelu" and mean the approximation.
GEMMA_GELUS = {
  None: "gelu_tanh",
  "gelu": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
}
_UNREAD = ("quantization_config", "compression_config")  # other weights


def _sizes(fields: Fields) -> dict[str, Any]:
  """Returns the sizes of a Config that all families but GPT-2 call alike."""
  for field in _UNREAD:
    fields.only(field, None)
  width = fields.whole("hidden_size")
  heads = fields.whole("num_attention_heads")
  if fields.has("head_dim"):
    head_dim = fields.whole("head_dim")
  elif width % heads:
    raise UserError(
      f"hidden_size={width}: no multiple of num_attention_heads={heads}, and "
      f"head_dim is not given. {COPY}"
    )
  else:
    head_dim = width // heads
  kv_heads = heads
  if fields.has("num_key_value_heads"):
    kv_heads = fields.whole("num_key_value_heads")
  return {
    "family": fields.family,
    "vocab_size": fields.whole("vocab_size"),
    "width": width,
    "n_layers": fields.whole("num_hidden_layers"),
    "n_heads": heads,
    "n_kv_heads": kv_heads,
    "head_dim": head_dim,
    "mlp_width": fields.whole("intermediate_size"),
  }


def _windows(
  found: dict[str, Any], window: Any, kinds: list[str]
) -> dict[str, Any]:
  """Returns the entries with the windows of local layers.

  Args:
    found: of the entries so far.
    window: tokens that such a layer reads, or None.
    kinds: of all layers.
  """
  local = tuple(i for i, kind in enumerate(kinds) if kind == LOCAL)
  if not local or window is None:
    return found
  if type(window) is not int or window < 1:
    raise UserError(
      f"sliding_window={window!r:.60}: must be a whole number from 1. {COPY}"
    )
  return found | {"local_layers": local, "window": window}


def _layer_types(fields: Fields, layers: int, usual: list[str]) -> list[str]:
  """Returns whether each layer's attention is full or local."""
  kinds = fields.get("layer_types")
  kinds = usual if kinds is None else kinds
  if not isinstance(kinds, list) or len(kinds) != layers:
    raise UserError(
      f"layer_types={kinds!r:.60}: must be a list of {layers} names. {COPY}"
    )
  for kind in kinds:
    if kind not in (FULL, LOCAL):
      raise UserError(
        f"layer_types holds {kind!r:.60}: {FULL!r} and {LOCAL!r} are "
        "implemented. Convert the model or extend "
        "rlhf_jax/models/family_configs.py."
      )
  return kinds


def _llama_like(
  fields: Fields,
  *,
  is_tied: bool = False,
  theta: float = 10_000.0,
  share: float | None = None,
  **more: Any,
) -> dict[str, Any]:
  """Returns what Llama and its nearest relatives share.

  Args:
    fields: of config.json.
    is_tied, theta: where they are not given.
    share: see `turning`.
    **more: of the family.
  """
  found = _sizes(fields)
  turning = family_rope.turning(fields, found["head_dim"], usual=share)
  if not family_rope.names_theta(fields):
    turning["rope_theta"] = theta
  return {
    **found,
    **turning,
    "activation": fields.choice("hidden_act", SILU, "silu"),
    "norm_epsilon": fields.positive("rms_norm_eps", 1e-6),
    "tie_embeddings": fields.flag("tie_word_embeddings", is_tied),
    **more,
  }


def llama(fields: Fields) -> Config:
  """Llama 1 to 3.3 (arXiv:2302.13971, 2407.21783), SmolLM 1 and 2."""
  bias = fields.flag("attention_bias", False)
  return Config(
    **_llama_like(
      fields,
      attention_bias=bias,
      output_bias=bias,
      mlp_bias=fields.flag("mlp_bias", False),
    )
  )


def mistral(fields: Fields) -> Config:
  """Mistral 7B and its dense successors (arXiv:2310.06825)."""
  found = _llama_like(fields)
  kinds = [LOCAL] * found["n_layers"]
  return Config(**_windows(found, fields.get("sliding_window", 4096), kinds))


def _qwen(fields: Fields, **more: Any) -> Config:
  found = _llama_like(fields, **more)
  window = fields.get("sliding_window", 4096)
  first = fields.get("max_window_layers", 28)
  if type(first) is not int or first < 0:
    raise UserError(
      f"max_window_layers={first!r:.60}: must be a number of layers. {COPY}"
    )
  usual = [FULL] * found["n_layers"]
  if fields.flag("use_sliding_window", False) and window is not None:
    usual = [LOCAL if i >= first else FULL for i in range(found["n_layers"])]
  kinds = _layer_types(fields, found["n_layers"], usual)
  return Config(**_windows(found, window, kinds))


def qwen2(fields: Fields) -> Config:
  """Qwen 2 and 2.5 (arXiv:2407.10671, 2412.15115)."""
  return _qwen(fields, attention_bias=True)


def qwen3(fields: Fields) -> Config:
  """Qwen 3, dense (arXiv:2505.09388)."""
  bias = fields.flag("attention_bias", False)
  return _qwen(fields, attention_bias=bias, output_bias=bias, qk_norm="head")


def smollm3(fields: Fields) -> Config:
  """SmolLM 3: every fourth layer without positions (arXiv:2501.18795)."""
  bias = fields.flag("attention_bias", False)
  found = _llama_like(
    fields,
    is_tied=True,
    theta=2_000_000.0,
    attention_bias=bias,
    output_bias=bias,
    mlp_bias=fields.flag("mlp_bias", False),
  )
  layers = found["n_layers"]
  every = fields.whole("no_rope_layer_interval", 4)
  turned = fields.get("no_rope_layers")  # 1 where a layer turns
  if turned is None:
    turned = [int((i + 1) % every != 0) for i in range(layers)]
  if not isinstance(turned, list) or len(turned) < layers:
    raise UserError(
      f"no_rope_layers={turned!r:.60}: must be a list of {layers} zeros and "
      f"ones. {COPY}"
    )
  still = tuple(i for i in range(layers) if not turned[i])
  window = fields.get("sliding_window")
  is_local = fields.flag("use_sliding_window", False) and window is not None
  usual = [LOCAL if is_local and i in still else FULL for i in range(layers)]
  kinds = _layer_types(fields, layers, usual)
  return Config(**_windows(found, window, kinds), still_layers=still)


def _gemma_like(fields: Fields, activation: str, **more: Any) -> dict[str, Any]:
  fields.only("use_bidirectional_attention", False)
  found = _sizes(fields)
  bias = fields.flag("attention_bias", False)
  return {
    **found,
    "norm_offset": 1.0,
    "norm_epsilon": fields.positive("rms_norm_eps", 1e-6),
    "activation": fields.choice(activation, GEMMA_GELUS, None),
    "embedding_scale": found["width"] ** 0.5,
    "attention_bias": bias,
    "output_bias": bias,
    "tie_embeddings": fields.flag("tie_word_embeddings", True),
    **more,
  }


def gemma(fields: Fields) -> Config:
  """Gemma 1 (arXiv:2403.08295)."""
  fields.get("hidden_act")
  name = (
    "hidden_activation" if fields.has("hidden_activation") else "hidden_act"
  )
  found = _gemma_like(fields, name)
  return Config(
    **found,
    **family_rope.turning(fields, found["head_dim"]),
  )


def _capped(fields: Fields, field: str, usual: float | None) -> float | None:
  """Returns the cap of an entry; a null means none."""
  value = fields.get(field, usual)
  return None if value is None else fields.positive(field, value)


def gemma2(fields: Fields) -> Config:
  """Gemma 2 (arXiv:2408.00118)."""
  fields.get("hidden_act")
  found = _gemma_like(
    fields,
    "hidden_activation",
    norm_place="around",
    query_scale=fields.positive("query_pre_attn_scalar", 256) ** -0.5,
    attention_cap=_capped(fields, "attn_logit_softcapping", 50.0),
    logit_cap=_capped(fields, "final_logit_softcapping", 30.0),
  )
  found |= family_rope.turning(fields, found["head_dim"])
  layers = found["n_layers"]
  usual = [FULL if i % 2 else LOCAL for i in range(layers)]
  kinds = _layer_types(fields, layers, usual)
  window = fields.get("sliding_window", 4096)
  fields.get("cache_implementation")
  return Config(**_windows(found, window, kinds))


def gemma3(fields: Fields) -> Config:
  """Gemma 3, text alone (arXiv:2503.19786)."""
  found = _gemma_like(
    fields,
    "hidden_activation",
    norm_place="around",
    qk_norm="head",
    query_scale=fields.positive("query_pre_attn_scalar", 256) ** -0.5,
    attention_cap=_capped(fields, "attn_logit_softcapping", None),
    logit_cap=_capped(fields, "final_logit_softcapping", None),
  )
  layers = found["n_layers"]
  name = "sliding_window_pattern"
  name = name if fields.has(name) else f"_{name}"
  every = fields.whole(name) if fields.has(name) else 6
  usual = [LOCAL if (i + 1) % every else FULL for i in range(layers)]
  kinds = _layer_types(fields, layers, usual)
  found |= family_rope.two_thetas(fields, found["head_dim"])
  return Config(**_windows(found, fields.get("sliding_window", 4096), kinds))


def olmo2(fields: Fields) -> Config:
  """OLMo 2 (arXiv:2501.00656)."""
  bias = fields.flag("attention_bias", False)
  return Config(
    **_llama_like(
      fields,
      norm_place="after",
      qk_norm="projection",
      attention_bias=bias,
      output_bias=bias,
    )
  )


def phi3(fields: Fields) -> Config:
  """Phi 3 and 4, dense (arXiv:2404.14219)."""
  found = _llama_like(fields, share=1.0)
  kinds = [LOCAL] * found["n_layers"]
  return Config(**_windows(found, fields.get("sliding_window"), kinds))


def gpt2(fields: Fields) -> Config:
  """GPT-2 (Radford et al. 2019)."""
  for field in _UNREAD:
    fields.only(field, None)
  fields.only("scale_attn_weights", True)
  fields.only("scale_attn_by_inverse_layer_idx", False)
  fields.get("n_ctx")  # the older name of n_positions
  width, heads = fields.whole("n_embd"), fields.whole("n_head")
  if width % heads:
    raise UserError(f"n_embd={width}: no multiple of n_head={heads}. {COPY}")
  inner = 4 * width if not fields.has("n_inner") else fields.whole("n_inner")
  return Config(
    family=fields.family,
    vocab_size=fields.whole("vocab_size"),
    width=width,
    n_layers=fields.whole("n_layer"),
    n_heads=heads,
    n_kv_heads=heads,
    head_dim=width // heads,
    mlp_width=inner,
    norm="layer",
    norm_epsilon=fields.positive("layer_norm_epsilon", 1e-5),
    positions="learned",
    max_length=fields.whole("n_positions", 1024),
    activation=fields.choice("activation_function", GELUS, "gelu_new"),
    gated_mlp=False,
    attention_bias=True,
    output_bias=True,
    mlp_bias=True,
    tie_embeddings=fields.flag("tie_word_embeddings", True),
  )


def gpt_neox(fields: Fields) -> Config:
  """GPT-NeoX and Pythia (arXiv:2204.06745, 2304.01373)."""
  found = _sizes(fields)
  bias = fields.flag("attention_bias", True)
  return Config(
    **found,
    **family_rope.turning(
      fields, found["head_dim"], "rotary_emb_base", "rotary_pct", 0.25
    ),
    norm="layer",
    norm_epsilon=fields.positive("layer_norm_eps", 1e-5),
    is_parallel=fields.flag("use_parallel_residual", True),
    activation=fields.choice("hidden_act", GELUS, "gelu"),
    gated_mlp=False,
    attention_bias=bias,
    output_bias=bias,
    mlp_bias=True,
    tie_embeddings=fields.flag("tie_word_embeddings", False),
  )


READERS: dict[str, Callable[[Fields], Config]] = {
  "gemma": gemma,
  "gemma2": gemma2,
  "gemma3_text": gemma3,
  "gpt2": gpt2,
  "gpt_neox": gpt_neox,
  "llama": llama,
  "mistral": mistral,
  "olmo2": olmo2,
  "phi3": phi3,
  "qwen2": qwen2,
  "qwen3": qwen3,
  "smollm3": smollm3,
}
