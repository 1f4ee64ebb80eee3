"""The table of environments; an experiment may also name one by import path."""

from __future__ import annotations

from rlhf_jax import imported
from rlhf_jax.environments.cart_pole import CART_POLE
from rlhf_jax.environments.environment import Environment
from rlhf_jax.environments.pendulum import PENDULUM
from rlhf_jax.schema import FieldError

ENVIRONMENTS = {"cart_pole": CART_POLE, "pendulum": PENDULUM}


def find(name: str, field: str = "environment") -> Environment:
  """Returns an environment by its name or its import path.

  Args:
    name: a key of ENVIRONMENTS, or file.py:NAME.
    field: where it stands, for messages.

  Raises:
    FieldError: there is none of that name.
  """
  if name in ENVIRONMENTS:
    return ENVIRONMENTS[name]
  if not imported.is_path(name):
    raise FieldError(
      f"{field}={name!r}: must be one of {', '.join(ENVIRONMENTS)}, or the "
      f"import path of an Environment.{imported.nearest(name, ENVIRONMENTS)}"
    )
  try:
    found = imported.load(name, field)
  except ValueError as error:
    raise FieldError(str(error)) from error
  if not isinstance(found, Environment):
    raise FieldError(
      f"{field}={name!r}: is a {type(found).__name__}, not an Environment. "
      "Make one as the end of rlhf_jax/environments/pendulum.py does."
    )
  return found
