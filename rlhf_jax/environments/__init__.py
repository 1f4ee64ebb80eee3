"""The table of environments; an experiment may also name one by import path."""

from __future__ import annotations

from rlhf_jax import imported
from rlhf_jax.environments.cart_pole import CART_POLE
from rlhf_jax.environments.environment import Environment
from rlhf_jax.environments.pendulum import PENDULUM
from rlhf_jax.schema import as_field

ENVIRONMENTS = {"cart_pole": CART_POLE, "pendulum": PENDULUM}


def find(name: str, field: str = "environment") -> Environment:
  """Returns an environment by its name or its import path.

  Args:
    name: a key of ENVIRONMENTS, or file.py:NAME.
    field: where it stands, for messages.

  Raises:
    FieldError: there is none of that name.
  """
  with as_field():
    return imported.find(
      name,
      ENVIRONMENTS,
      Environment,
      field,
      "Make one as the end of rlhf_jax/environments/pendulum.py does.",
    )
