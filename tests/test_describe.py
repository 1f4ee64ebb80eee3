"""What is said about fields: comments, types, ranges, sources."""

import dataclasses
from typing import Literal

from rlhf_jax import describe
from rlhf_jax.algorithms.policy_gradient import reinforce, rloo
from rlhf_jax.models.pretrained import Model
from rlhf_jax.pipelines import PIPELINES
from rlhf_jax.rewards.verifiers import VERIFIERS
from rlhf_jax.sampling import Config as Sampling


def kinds(cls):
  return {field.name: field.kind for field in describe.fields(cls)}


def classes():
  """Returns every dataclass whose fields an experiment can set."""
  found, waiting = [], [p.Settings for p in PIPELINES.values()]
  waiting += [verifier.Config for verifier in VERIFIERS.values()]
  while waiting:
    cls = waiting.pop()
    if cls in found:
      continue
    found.append(cls)
    for field in dataclasses.fields(cls):
      if "family" in field.metadata:
        family = field.metadata["family"].values()
        waiting += [module.Config for module in family]
      elif dataclasses.is_dataclass(field.default):
        if not hasattr(field.default, "as_tree"):  # a stage has its own line
          waiting.append(type(field.default))
  return found


def test_every_field_that_can_be_set_has_a_meaning():
  missing = [
    f"{cls.__module__}.{cls.__qualname__}.{field.name}"
    for cls in classes()
    for field in describe.fields(cls)
    if not field.meaning
  ]
  assert not missing, f"say what they do beside the fields: {missing}"
  assert len(classes()) > 40


# What a comment may look like; test_comments_are_found_beside_fields reads it.
@dataclasses.dataclass(frozen=True)
class Above:
  """Words.

  told: in the docstring,
    on two lines.
  """

  first: int = 1  # at the end of the line
  # and below it
  second: int = 2  # its own
  third: tuple = (
    1,  # within
    2,
  )  # after a bracket

  # above, since nothing
  # stands at its end
  fourth: float | None = None
  told: int = 5
  silent: int = 6
  last: Literal["a", "b"] = "a"  # the last one
  # goes on too

  def method(self):
    # no field's comment
    return self.first


@dataclasses.dataclass(frozen=True)
class Below(Above):
  first: int = 10  # ten, for short
  second: int = 20

  def __post_init__(self):
    if not 0 < self.first <= 50:
      raise ValueError(f"first={self.first}: must be in (0, 50]. Set 10.")
    if self.second < 2 or self.third == ():
      raise ValueError(
        f"third={self.third}, second={self.second}: Set it >= 2."
      )


def test_comments_are_found_beside_fields():
  found = {field.name: field.meaning for field in describe.fields(Above)}
  assert found == {
    "first": "at the end of the line and below it",
    "second": "its own",
    "third": "within after a bracket",
    "fourth": "above, since nothing stands at its end",
    "told": "in the docstring, on two lines.".rstrip("."),
    "silent": "",
    "last": "the last one goes on too",
  }


def test_a_subclass_adds_to_what_is_said_above():
  found = {field.name: field for field in describe.fields(Below)}
  assert found["first"].default == 10
  assert found["first"].meaning == (
    "at the end of the line and below it. Here: ten, for short"
  )
  assert found["second"].meaning == "its own"


def test_types_and_ranges_are_those_of_the_checks():
  assert kinds(Below) == {
    "first": "whole number in (0, 50]",
    "second": "whole number >= 2",
    "third": "tuple",
    "fourth": "number, or None",
    "told": "whole number",
    "silent": "whole number",
    "last": "one of a, b",
  }
  assert kinds(Sampling)["top_p"] == "number in (0, 1]"
  assert kinds(Model)["dtype"] == "one of float32, bfloat16"
  assert kinds(rloo.Config)["group_size"] == "whole number >= 2"
  assert kinds(rloo.Config)["dual_clip"] == "number > 1, or None for none"


def test_sources_of_a_method_come_from_its_module():
  assert describe.citation(reinforce) == (
    "Williams 1992; for language Ahmadian et al. 2024, section 2 "
    "(arXiv:2402.14740)."
  )
  for pipeline in ("policy", "preference"):
    field = PIPELINES[pipeline].Settings.__dataclass_fields__["algorithm"]
    for name, module in field.metadata["family"].items():
      assert "arXiv" in describe.citation(module), name
