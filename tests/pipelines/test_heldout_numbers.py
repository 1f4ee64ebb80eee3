"""Numbers of held-out rows by hand: models that say what is written here."""

import functools
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import generate
from rlhf_jax.algorithms.preference import dpo
from rlhf_jax.data import batches, dataset
from rlhf_jax.data.dataset import Data
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import sft
from rlhf_jax.programs import (
  features,
  heldout,
  language_model,
  pairs,
  reward_facts,
  rollouts,
)
from rlhf_jax.runs import reference
from rlhf_jax.runs.checkpoint import CheckpointError
from rlhf_jax.schema import Method, UserError
from rlhf_jax.types import FINISH_EOS, FINISH_LENGTH, Rollout
from tests.letters import Letters

BASE = types.SimpleNamespace(
  tokenizer=Letters(),
  source="letters",
  config=types.SimpleNamespace(max_length=64, attention="einsum"),
)


class Crafted(dict):
  """A phase on one device; its programs by name."""

  base, role, world = BASE, "role", types.SimpleNamespace(ways=1)

  @functools.cached_property
  def mesh(self):
    return mesh_lib.make_mesh(mesh_lib.Config(devices=1))


def row(*tokens, prompt=1):
  mask = np.float32(np.arange(len(tokens)) >= prompt)
  return {"tokens": np.asarray(tokens, np.int32), "loss_mask": mask}


def compared(rows, pairs, labels, **changes):
  fields = dict(
    rows=rows,
    pairs=np.asarray(pairs, np.int32),
    labels=np.asarray(labels, np.float32),
    groups=np.arange(len(pairs), dtype=np.int32)[:, None],
    dropped=None,
    ceiling=0.875,
  )
  return dataset.Comparisons(**fields | changes)


def test_what_combines_judges_does_not_see_held_out_scores():
  """Or what trains would depend on whether it is measured."""
  mask, asked = np.float32([[0, 1, 1], [0, 1, 0]]), []
  rollout = Rollout(
    tokens=np.zeros((2, 3), np.int32),
    valid_mask=np.ones((2, 3), np.float32),
    response_mask=mask,
    behaviour_logprobs=-1.0 * mask,
    finish_reason=np.asarray([FINISH_EOS, FINISH_LENGTH]),
    reference_logprobs=-3.0 * mask,
    score=np.float32([1.0, 4.0]),
  )

  def answer(policy, critic, prompts, key, **how):
    asked.append((policy, how))
    return rollouts.Judged(rollout, {"reward": rollout.score})

  source = types.SimpleNamespace(
    mesh=Crafted().mesh,
    panel=None,
    sampler=types.SimpleNamespace(config=generate.Config()),
    answer=answer,
  )
  found = heldout.Heldout(
    source=source,
    batches=[batches.collate_prompts([[1], [2]], 0)],
    count=2,
    monitors=(),
    correct_above=None,
    has_kl=True,
    key=None,
  )("policy", "state")
  assert asked == [("policy", {"state": "state", "observes": False})]
  assert found["heldout/score"] == 2.5 and found["heldout/kl"] == 3.0
  assert found["heldout/length"] == 1.5 and found["heldout/eos_share"] == 0.5


def test_the_diagnosis_is_of_the_first_answer_against_the_second(capsys):
  """Four rows of 1, 2, 3 and 4 targets, in three pairs."""
  rows = [row(*range(n + 1)) for n in (1, 2, 3, 4)]
  held = compared(rows, [[0, 1], [3, 2], [1, 3]], [1.0, 1.0, 0.0])
  asked = []

  def scores(rows, features):
    asked.append((rows, features))
    return np.float32([2.0, 0.5, 1.0, -1.0])

  found = reward_facts.diagnose(scores, held, "features", "reward")
  assert asked == [(rows, "features")]
  assert found["heldout_pairs"] == {
    "score_difference": [1.5, -2.0, 1.5],
    "length_difference": [-1.0, 1.0, -2.0],
    "label": [1.0, 1.0, 0.0],
  }
  assert found["ceiling"] == 0.875
  diagnosis = found["diagnosis"]
  assert diagnosis["reward_model/accuracy"] == pytest.approx(1 / 3)
  assert diagnosis["reward_model/pairs"] == 3
  loss = np.mean(np.log1p(np.exp([-1.5, 2.0, 1.5])))
  assert diagnosis["reward_model/loss"] == pytest.approx(loss, rel=1e-5)
  assert "accuracy 0.333 on 3 pairs" in capsys.readouterr().out


def test_scores_are_normalised_on_samples_of_the_policy(tmp_path, monkeypatch):
  """Population deviation: of 1 and 5 it is 2."""
  path = tmp_path / "samples.npz"
  fields = ("tokens", "valid_mask", "response_mask", "behaviour_logprobs")
  arrays = {name: np.zeros((2, 3)) for name in fields}
  np.savez(path, finish_reason=np.zeros(2), **arrays)
  seen = []

  def make_score(scorer):
    seen.append(scorer)
    return lambda weights, samples: seen.append(weights) or jnp.float32([1, 5])

  monkeypatch.setattr(reward_facts.reward_model, "make_score", make_score)
  settings = types.SimpleNamespace(
    reference_samples=str(path), data=Data(end_token=False)
  )
  training = lambda: np.float32([1.0, 2.0, 3.0])  # noqa: E731
  found = reward_facts.normalise(settings, "role", "variables", training)
  assert (found["mean"], found["std"], found["count"]) == (3.0, 2.0, 2)
  scorer, weights = seen
  assert (scorer.role, scorer.reads_end_token) == ("role", False)
  assert (weights.variables, weights.mean, weights.std) == ("variables", 0, 1)
  settings.reference_samples = ""
  found = reward_facts.normalise(settings, "role", "variables", training)
  assert (found["mean"], found["count"]) == (2.0, 3)
  np.testing.assert_allclose(found["std"], np.sqrt(2 / 3))
  with pytest.raises(UserError, match="the same score"):
    reward_facts.normalise(settings, "role", {}, lambda: np.ones(4))


def test_validation_is_the_mean_of_all_tokens(tmp_path, monkeypatch):
  """Three rows in batches of two: the last has a filler row."""
  path = tmp_path / "rows.jsonl"
  texts = [("a", "bc"), ("d", "e"), ("fg", "hij")]
  path.write_text(
    "".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in texts)
  )

  def logprobs(params, frozen, batch, *, role, targets=None):
    assert role == "role"
    return -params * batch.tokens * batch.loss_mask, None

  monkeypatch.setattr(language_model, "logprobs", logprobs)
  settings = sft.Settings(
    validation=Data(source=str(path), format="demonstration", max_length=8),
    schedule=sft.Schedule(batch_size=2),
  )
  validate = sft._validator(settings, Crafted(), {})
  found = validate(jnp.float32(0.5))["validation/loss"]
  targets = [ord(c) for _, r in texts for c in r] + [2, 2, 2]  # and each end
  assert found == pytest.approx(0.5 * np.mean(targets))


def test_held_out_pairs_are_counted_once(monkeypatch):
  """Three pairs in batches of two: the fourth is filler."""
  rows = [
    row(1, 2, 3) | {"reference_logprobs": np.float32([0, -1, -1])},
    row(1, 4) | {"reference_logprobs": np.float32([0, -2])},
    row(1, 6, 1, 1) | {"reference_logprobs": np.float32([0, -3, 0, 0])},
  ]
  held = compared(rows, [[0, 1], [1, 2], [2, 0]], [1.0, 1.0, 1.0])
  monkeypatch.setattr(
    pairs,
    "apply",
    lambda params, frozen, batch, *, role: (
      -params * batch.tokens * batch.loss_mask
    ),
  )
  evaluate = pairs.evaluator(
    Method("dpo", dpo, dpo.Config(beta=0.2)), 2, Crafted(), {}, held
  )
  found = evaluate(0.5)
  # Sums: -2.5, -2 and -4; of the reference -2, -2 and -3.
  rewards = 0.2 * np.array([-0.5, 0.0, -1.0])
  chosen, rejected = rewards, rewards[[1, 2, 0]]
  margin = chosen - rejected
  expected = {
    "loss": np.mean(np.log1p(np.exp(-margin))),
    "accuracy": 1 / 3,
    "margin": np.mean(margin),
    "reward_chosen": np.mean(chosen),
    "reward_rejected": np.mean(rejected),
    "tokens_chosen": 2.0,
    "logprob_chosen": -8.5 / 3,
  }
  for name, value in expected.items():
    np.testing.assert_allclose(
      found[f"preference/{name}"], value, rtol=1e-5, atol=1e-7, err_msg=name
    )


def test_every_row_has_its_own_reference(tmp_path):
  """Targets in the middle of a row too; kept, and read again."""
  rows = [row(1, 2, 3), row(4, 5, 6, 7, prompt=2)]
  rows[1]["loss_mask"][3] = 0.0
  computed = lambda rows: np.float32([-1.0, -2.0, -3.0])  # noqa: E731
  made = {"model_fingerprint": "a", "rows": {"train": "b", "heldout": "c"}}
  digest = reference.load_or_compute(tmp_path, made, {"train": rows}, computed)
  expected = [[0, -1, -2], [0, 0, -3, 0]]
  for found, values in zip(rows, expected, strict=True):
    np.testing.assert_array_equal(found.pop("reference_logprobs"), values)
  assert digest == reference.load_or_compute(
    tmp_path, made, {"train": rows}, None
  )
  np.testing.assert_array_equal(rows[1]["reference_logprobs"], expected[1])
  for other, field in (
    ({"model_fingerprint": "x"}, "model"),
    ({"rows": {"train": "x", "heldout": "c"}}, "data"),
    ({"rows": {"train": "b", "heldout": "x"}}, "heldout"),
  ):
    with pytest.raises(
      CheckpointError,
      match=f"of another start or of other.* Restore {field} as before",
    ):
      reference.load_or_compute(
        tmp_path, made | other, {"train": rows}, computed
      )


def test_features_stand_where_their_rows_do():
  """Rows of falling length, then some that share what they begin with."""
  rows = [row(*([n] * (80 - n))) for n in range(9)]
  rows += [row(*([99] * 60), n) for n in range(30)]
  read = []

  def forward(trunk, batch, cells):
    assert trunk == "trunk"
    read.append(batch)
    last = np.asarray(cells)
    found = (batch.tokens, batch.positions)
    return np.stack([np.asarray(x).reshape(-1)[last] for x in found], axis=1)

  found = features.row_features(Crafted(features=forward), "trunk", rows)
  np.testing.assert_array_equal(found[:, 0], [*range(9), *range(30)])
  np.testing.assert_array_equal(found[:, 1], [*range(79, 70, -1), *[60] * 30])
  assert sum(len(set(row.tolist())) > 2 for row in read[0].branch_ids) > 0


def test_pairs_across_a_split_are_on_neither_side(capsys):
  """Six sentences, all pairs of neighbours on a circle."""
  ends = np.array([[n, (n + 1) % 6] for n in range(6)], np.int32)
  data = compared([row(n) for n in range(6)], ends, np.ones(6), groups=ends)
  for seed in range(8):
    try:
      train, held = features.split_heldout(data, 0.5, seed)
    except UserError:  # nothing but pairs across it
      continue
    assert not set(train.groups.ravel()) & set(held.groups.ravel())
    lost = 6 - len(train.pairs) - len(held.pairs)
    assert lost > 0
    assert f"held out: {lost} comparisons" in capsys.readouterr().out
    return
  raise AssertionError("no split of these seeds")
