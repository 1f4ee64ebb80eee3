"""The complete configuration of every pipeline, with its default values.

An experiment file calls one of these and states only what it changes:

  config = defaults.sft()
  config = defaults.policy("grpo")        # with a method by its name
  config = defaults.of("my_file.py:PIPELINE")

Every field can be set on the command line, --config.optimizer.learning_rate=1,
and `python -m rlhf_jax.explain --config=FILE.py` prints all of them with value,
meaning and source. What a pipeline can be told stands in its file (Settings).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import config_tree
from rlhf_jax.pipelines import PIPELINES, find


def of(pipeline: str, method: str = "") -> ConfigDict:
  """Returns the config of a pipeline.

  Args:
    pipeline: a name of PIPELINES, or an import path.
    method: for algorithm.name, or an import path; "" for the usual one.

  Raises:
    UserError: no such pipeline or method.
  """
  found = find(pipeline)
  config = found.tree()
  config.pipeline = pipeline
  if method:
    field = found.Settings.__dataclass_fields__["algorithm"]
    family = field.metadata["family"]
    config.algorithm = config_tree.method_tree(method, family)
  return config


def __getattr__(name: str) -> Callable[..., ConfigDict]:
  """Makes defaults.NAME() of each pipeline's name."""
  if name not in PIPELINES:
    raise AttributeError(
      f"defaults.{name}: there are {', '.join(PIPELINES)}, and of()."
    )
  return functools.partial(of, name)


def __dir__() -> list[Any]:
  return [*globals(), *PIPELINES]
