"""sweep(): which trials grids, products, zips and random search give."""

import math

import pytest

from rlhf_jax import sweeps
from rlhf_jax.schema import UserError
from rlhf_jax.sweeps import pictures


def test_a_grid_has_every_combination_and_the_last_field_is_the_fastest():
  assert sweeps.grid({"a": [1, 2], "b.c": ["x", "y", "z"]}) == [
    {"a": a, "b.c": c} for a in (1, 2) for c in "xyz"
  ]


def test_zipped_fields_change_together():
  found = sweeps.zipped({"a": [1, 2], "b": (3, 4)})
  assert found == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
  with pytest.raises(UserError, match="2 of a, 1 of b: fields that change"):
    sweeps.zipped({"a": [1, 2], "b": [3]})


def test_products_join_and_refuse_a_field_that_stands_twice():
  left, right = sweeps.grid({"a": [1, 2]}), sweeps.zipped({"b": [3, 4]})
  found = sweeps.product(left, right)
  assert found == sweeps.grid({"a": [1, 2], "b": [3, 4]})
  with pytest.raises(UserError, match="product: a stands in two parts"):
    sweeps.product(left, sweeps.grid({"a": [5]}))


def test_random_search_draws_where_it_should():
  fields = {
    "rate": sweeps.log_uniform(1e-6, 1e-2),
    "beta": sweeps.uniform(-1.0, 1.0),
    "size": sweeps.whole(2, 5),
    "kind": ["x", "y"],
  }
  found = sweeps.random_search(400, fields)
  rates = [math.log10(trial["rate"]) for trial in found]
  assert min(rates) >= -6 and max(rates) <= -2
  assert abs(sum(rates) / 400 + 4) < 4 * 4 / math.sqrt(12 * 400)
  assert abs(sum(t["beta"] for t in found) / 400) < 4 * 2 / math.sqrt(12 * 400)
  assert {trial["size"] for trial in found} == {2, 3, 4, 5}
  assert {trial["kind"] for trial in found} == {"x", "y"}
  assert all(float(f"{t['rate']:.4g}") == t["rate"] for t in found)


def test_more_trials_or_fields_keep_the_draws_of_before():
  one = {"a": sweeps.uniform(0, 1)}
  two = one | {"b": sweeps.uniform(0, 1)}
  few, more = sweeps.random_search(3, one), sweeps.random_search(5, two)
  assert [t["a"] for t in few] == [t["a"] for t in more[:3]]
  assert more[0]["a"] != more[0]["b"]
  assert sweeps.random_search(3, one, seed=1) != few


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: sweeps.grid({}), "must be given"),
    (lambda: sweeps.grid({"a": []}), "a has no values"),
    (lambda: sweeps.grid({"a": "text"}), "must be a list of values"),
    (lambda: sweeps.grid({"a": 1}), r"such as \[1\]"),
    (lambda: sweeps.uniform(2, 1), "the first must be the lesser"),
    (lambda: sweeps.log_uniform(0, 1), "Set low > 0"),
    (lambda: sweeps.whole(0.5, 2), "must be whole numbers"),
    (lambda: sweeps.random_search(0, {"a": [1]}), "1 trial or more"),
    (lambda: sweeps.random_search(1, {}), "no field"),
  ],
)
def test_mistakes_are_named(make, words):
  with pytest.raises(UserError, match=words):
    make()


def test_one_at_a_time_by_hand():
  usual = {"a": 1, "b": 2}
  found = sweeps.one_at_a_time(usual, {"a": [1, 5], "b": [3, 2, 4]})
  assert found == [
    {"a": 1, "b": 2},
    {"a": 5, "b": 2},
    {"a": 1, "b": 3},
    {"a": 1, "b": 4},
  ]
  with pytest.raises(UserError, match="c has no usual value"):
    sweeps.one_at_a_time(usual, {"c": [1]})
  assert pictures.usual(found, ["a", "b"]) == usual
  assert (
    pictures.usual(sweeps.grid({"a": [1, 2], "b": [3, 4]}), ["a", "b"]) == {}
  )
  assert pictures.usual(sweeps.grid({"a": [1, 2, 3]}), ["a"]) == {}
  (one, other) = pictures._of_panel(found, usual, "a")
  assert (one["a"], other["a"]) == (1, 5)
