"""What config.json says of rotary positions -> entries of a Config.

In the newer form all stands in `rope_parameters`, in the older one beside it
and in `rope_scaling`. How frequencies are scaled is in rotary.py.
"""

from __future__ import annotations

import math
from typing import Any

from rlhf_jax.models import rotary
from rlhf_jax.models.config_fields import COPY, Fields
from rlhf_jax.schema import UserError

FULL, LOCAL = "full_attention", "sliding_attention"  # kinds of layers


def _rope_entries(fields: Fields, base: str = "rope_theta") -> dict[str, Any]:
  """Returns what config.json says of rotary positions, in the newer form."""
  found: dict[str, Any] = {}
  newer = fields.get("rope_parameters")
  theta = fields.get(base)
  if base in fields.values and not (isinstance(newer, dict) and theta is None):
    found["rope_theta"] = theta
  for field in ("rope_scaling", "rope_parameters"):
    given = fields.get(field)
    if given is None:
      continue
    if not isinstance(given, dict):
      raise UserError(f"{field}={str(given)[:60]!r}: must be an object. {COPY}")
    given = dict(given)
    if "type" in given:  # the older name
      kind = given.pop("type")
      given.setdefault("rope_type", kind)
    for name in sorted(set(given) & set(found)):
      if given[name] != found[name]:
        raise UserError(
          f"{field} says {name}={given[name]!r:.40}, and {found[name]!r:.40} "
          f"stands beside it in config.json. {COPY}"
        )
    found |= given
  return found


def _scaling(rope: Fields, fields: Fields, size: int) -> rotary.Scaling:
  """Returns how the frequencies of a model are scaled.

  Args:
    rope: of _rope_entries.
    fields: of config.json.
    size: numbers of a head that turn.
  """
  kind = rope.get("rope_type", "default")
  longest = fields.whole("max_position_embeddings", 2048)
  first = _first_length(rope, fields, longest)
  if type(first) is not int or first < 1:
    raise UserError(
      f"original_max_position_embeddings={first!r:.60}: must be a whole number "
      f"from 1. {COPY}"
    )
  if kind in ("default", "dynamic"):  # the latter only beyond the context
    rope.get("factor")
    return rotary.Scaling()
  if kind == "linear":
    return rotary.Scaling("linear", factor=_needed(rope, "factor"))
  if kind == "llama3":
    return rotary.Scaling(
      "llama3",
      factor=_needed(rope, "factor"),
      first_length=first,
      low=_needed(rope, "low_freq_factor"),
      high=_needed(rope, "high_freq_factor"),
    )
  if kind == "yarn":
    return _yarn(rope, longest, first)
  if kind in ("longrope", "su"):
    return _longrope(rope, longest, first, size)
  raise UserError(
    f"rope type={kind!r:.60}: default, linear, dynamic, llama3, yarn and "
    "longrope are implemented. Convert the model or extend "
    "rlhf_jax/models/rotary.py."
  )


def _first_length(rope: Fields, fields: Fields, longest: int) -> Any:
  """Returns the tokens of the context that a model was first trained on."""
  beside = fields.get("original_max_position_embeddings")
  own = rope.get("original_max_position_embeddings")
  found = beside if own is None else own
  return longest if found is None else found


def _needed(rope: Fields, name: str) -> float:
  """Returns a number without which a kind of scaling means nothing."""
  if not rope.has(name):
    raise UserError(
      f"rope type={rope.get('rope_type')!r} names no {name!r}. {COPY}"
    )
  return rope.positive(name, 1.0)


def _yarn(rope: Fields, longest: int, first: int) -> rotary.Scaling:
  factor = _needed(rope, "factor") if rope.has("factor") else longest / first

  def grown(weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

  if rope.has("attention_factor"):
    magnitude = rope.positive("attention_factor", 1.0)
  elif rope.get("mscale") and rope.get("mscale_all_dim"):
    magnitude = grown(rope.positive("mscale", 1.0)) / grown(
      rope.positive("mscale_all_dim", 1.0)
    )
  else:
    magnitude = grown(1.0)
  fast, slow = rope.get("beta_fast"), rope.get("beta_slow")
  return rotary.Scaling(
    "yarn",
    factor=factor,
    first_length=first,
    high=32.0 if not fast else rope.positive("beta_fast", 32.0),
    low=1.0 if not slow else rope.positive("beta_slow", 1.0),
    is_rounded=rope.flag("truncate", True),
    magnitude=magnitude,
  )


def _longrope(
  rope: Fields, longest: int, first: int, size: int
) -> rotary.Scaling:
  """Returns the factors within the first context, which is all we read."""
  for field in ("long_factor", "short_factor"):
    factors = rope.get(field)
    is_list = isinstance(factors, list) and len(factors) == size // 2
    if not is_list or not all(
      isinstance(x, int | float) and x > 0 for x in factors
    ):
      raise UserError(
        f"{field}={factors!r:.60}: must be {size // 2} positive numbers. {COPY}"
      )
  factor = rope.get("factor")
  factor = longest / first if factor is None else rope.positive("factor", 1.0)
  magnitude = 1.0
  if rope.has("attention_factor"):
    magnitude = rope.positive("attention_factor", 1.0)
  elif factor > 1:
    if first < 2:
      raise UserError(
        f"original_max_position_embeddings={first}: must be above 1. {COPY}"
      )
    magnitude = math.sqrt(1 + math.log(factor) / math.log(first))
  return rotary.Scaling(
    "factors",
    factors=tuple(map(float, rope.get("short_factor"))),
    magnitude=magnitude,
  )


def turning(
  fields: Fields,
  head_dim: int,
  base: str = "rope_theta",
  share: str = "partial_rotary_factor",
  usual: float | None = None,
) -> dict[str, Any]:
  """Returns the entries of a Config about rotary positions.

  Args:
    fields: of config.json.
    head_dim: numbers of a head.
    base, share: older names of theta and of the share of a head that turns.
    usual: that share where it is not given; None where all of it must turn.
  """
  rope = Fields(_rope_entries(fields, base), fields.family)
  part = rope.get("partial_rotary_factor")
  beside = fields.get(share)
  if part is not None and beside is not None and part != beside:
    raise UserError(
      f"{share}={beside!r:.40} and {part!r:.40} in rope_parameters. {COPY}"
    )
  part = beside if part is None else part
  if usual is None and part not in (None, 1.0):
    raise UserError(
      f"{share}={part!r:.60}: the {fields.family} family is implemented for "
      "1.0 only. Convert the model or extend "
      "rlhf_jax/models/family_configs.py."
    )
  part = (1.0 if usual is None else usual) if part is None else part
  if not isinstance(part, int | float) or not 0 < part <= 1:
    raise UserError(f"{share}={part!r:.60}: must be above 0, at most 1. {COPY}")
  size = int(head_dim * part)
  scaling = _scaling(rope, fields, size)
  longest = fields.whole("max_position_embeddings", 2048)
  if scaling.kind == "factors":
    longest = min(longest, _first_length(rope, fields, longest))
  theta = rope.positive("rope_theta", 10_000.0)
  rope.check_all_seen()
  return {
    "rope_theta": theta,
    "rotary_dim": None if size == head_dim else size,
    "rope_scaling": scaling,
    "max_length": longest,
  }


def names_theta(fields: Fields) -> bool:
  newer = fields.get("rope_parameters")
  return "rope_theta" in fields.values or (
    isinstance(newer, dict) and "rope_theta" in newer
  )


def two_thetas(fields: Fields, head_dim: int) -> dict[str, Any]:
  """Returns rotary positions of full and of local layers (Gemma 3)."""
  newer = fields.get("rope_parameters")
  values = dict(fields.values)
  local = fields.get("rope_local_base_freq", 10_000.0)
  if isinstance(newer, dict) and FULL in newer:
    for kind in (FULL, LOCAL):
      if not isinstance(newer.get(kind, {}), dict):
        raise UserError(
          f"rope_parameters of {kind!r}={newer[kind]!r:.60}: must be an "
          f"object. {COPY}"
        )
    values["rope_parameters"] = {"rope_theta": 1e6} | newer[FULL]
    own = dict(newer.get(LOCAL, {}))
    if own.pop("rope_type", "default") != "default":
      raise UserError(
        f"rope_parameters of {LOCAL!r} are scaled: not implemented. Convert "
        "the model or extend rlhf_jax/models/rotary.py."
      )
    local = own.pop("rope_theta", local)
    if own:
      raise UserError(
        f"rope_parameters of {LOCAL!r} hold {next(iter(own))!r}, which is not "
        "read. Take it out if it does not change the numbers."
      )
  elif not names_theta(fields):
    values["rope_theta"] = 1e6
  inner = Fields(values, fields.family)
  found = turning(inner, head_dim)
  fields.seen |= inner.seen
  bases = Fields({"rope_local_base_freq": local}, fields.family)
  return found | {
    "local_rope_theta": bases.positive("rope_local_base_freq", 10_000.0)
  }
