"""Parameter trees as nested dicts: flatten, merge, select by path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlhf_jax.types import PyTree


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
  """Returns {"a/b/c": leaf} of nested dicts."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    path = f"{prefix}/{key}" if prefix else str(key)
    if isinstance(value, Mapping):
      flat.update(flatten(value, path))
    else:
      flat[path] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict:
  """Returns the nested dicts of {"a/b/c": leaf}."""
  tree: dict = {}
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def merge(*trees: Mapping) -> dict:
  """Returns one tree of several with disjoint leaves.

  Raises:
    ValueError: when two trees hold the same path.
  """
  flat: dict[str, Any] = {}
  for tree in trees:
    for path, leaf in flatten(tree).items():
      if path in flat:
        raise ValueError(
          f"{path} is in two trees: a weight is either trainable or frozen."
        )
      flat[path] = leaf
  return unflatten(flat)


def split(
  tree: Mapping, is_first: Callable[[str], bool]
) -> tuple[PyTree, PyTree]:
  """Returns (leaves whose path satisfies is_first, the others)."""
  first, second = {}, {}
  for path, leaf in flatten(tree).items():
    (first if is_first(path) else second)[path] = leaf
  return unflatten(first), unflatten(second)
