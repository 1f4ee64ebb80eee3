"""Roles: what trains, what is frozen, and that shared work changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import ops
from rlhf_jax.models import heads, lora, outputs, roles, transformer, trees
from rlhf_jax.models.rows import Rows
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.types import FINISH_EOS, FINISH_LENGTH, Samples

MODEL = transformer.Config(
  vocab_size=19,
  width=16,
  n_layers=4,
  n_heads=4,
  n_kv_heads=2,
  head_dim=4,
  mlp_width=24,
  max_length=16,
)
SCANNED = dataclasses.replace(MODEL, scan_layers=True)
BATCH, LENGTH = 5, 9


@pytest.fixture(scope="module")
def base():
  return transformer.init(MODEL, jax.random.key(0))["params"]


@pytest.fixture(scope="module")
def rows():
  rng = np.random.default_rng(1)
  mask = np.ones((BATCH, LENGTH), np.float32)
  for i in range(BATCH):
    mask[i, : i % 3] = 0.0
    mask[i, LENGTH - i :] = 0.0
  tokens = rng.integers(0, MODEL.vocab_size, (BATCH, LENGTH))
  mask = jnp.asarray(mask)
  return Rows(jnp.asarray(tokens), mask, ops.positions_from_mask(mask))


def lora_role(**changes) -> roles.Role:
  model = dataclasses.replace(MODEL, lora_rank=3, lora_scale=0.5)
  return roles.Role(model, trainable="lora", first_layer=2, **changes)


def random_factors(role):
  factors = roles.fresh_lora(role, jax.random.key(4))
  return jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape),
    factors,
  )


def targets_of(rows):
  return rows.valid_mask * (rows.positions >= 3)


def test_logprobs_equal_softmax_of_full_logits(base, rows):
  mask = targets_of(rows)
  logits = transformer.Transformer(MODEL).apply(
    {"params": base}, rows.tokens, rows.valid_mask
  )
  expected = jax.nn.log_softmax(logits / 0.7)[:, :-1]
  expected = np.take_along_axis(
    np.asarray(expected), np.asarray(rows.tokens)[:, 1:, None], axis=2
  )[..., 0]
  found, entropy = outputs.logprobs(
    roles.Role(MODEL), {"params": base}, rows, mask, temperature=0.7, targets=6
  )
  np.testing.assert_allclose(
    found[:, 1:], expected * np.asarray(mask)[:, 1:], atol=2e-6
  )
  assert np.all(np.asarray(entropy) <= np.log(19) + 1e-5)
  assert np.all(np.asarray(found)[np.asarray(mask) == 0] == 0.0)


def test_hidden_states_below_the_first_trainable_layer_are_reusable(base, rows):
  role = lora_role()
  variables = {"params": base, "lora": random_factors(role)}
  mask = targets_of(rows)
  hidden = outputs.frozen_streams(MODEL, base, rows, (1, 2))
  whole, _ = outputs.logprobs(role, variables, rows, mask)
  reused, _ = outputs.logprobs(role, variables, rows, mask, hidden=hidden[2])
  np.testing.assert_allclose(whole, reused, atol=2e-6)


def test_merged_factors_equal_factors_applied_inside_the_block(base, rows):
  role = lora_role()
  factors = random_factors(role)
  mask = targets_of(rows)
  inside, _ = outputs.logprobs(
    role, {"params": base, "lora": factors}, rows, mask
  )
  merged = roles.sampling_params(role, {"lora": factors}, {"params": base})
  outside, _ = outputs.logprobs(
    roles.Role(MODEL), {"params": merged}, rows, mask
  )
  np.testing.assert_allclose(inside, outside, atol=5e-6)
  plain, _ = outputs.logprobs(roles.Role(MODEL), {"params": base}, rows, mask)
  assert np.abs(np.asarray(plain - inside)).max() > 1e-2
  before, after = trees.flatten(base), trees.flatten(merged)
  copied = {path for path, leaf in after.items() if leaf is not before[path]}
  stems = {path.rpartition("/")[0] for path in trees.flatten(factors)}
  assert copied == {f"{stem}/kernel" for stem in stems}  # no weight twice


def test_t17_fresh_factors_leave_the_reference_exactly(base, rows):
  role = lora_role()
  fresh = roles.fresh_lora(role, jax.random.key(4))
  mask = targets_of(rows)
  policy, _ = outputs.logprobs(
    role, {"params": base, "lora": fresh}, rows, mask
  )
  reference, _ = outputs.logprobs(role, {"params": base}, rows, mask)
  np.testing.assert_array_equal(policy, reference)
  merged = lora.merge(base, fresh, 0.5)
  for path, leaf in trees.flatten(merged).items():
    np.testing.assert_array_equal(leaf, trees.flatten(base)[path])


@pytest.mark.parametrize(
  "role, trained",
  [
    (roles.Role(MODEL), {"params"}),
    (lora_role(), {"lora"}),
    (
      roles.Role(MODEL, trainable="head", stop_layer=3, head=heads.Config()),
      {"head"},
    ),
  ],
)
def test_trap_31_frozen_leaves_are_in_no_trainable_tree(base, role, trained):
  variables = {"params": base}
  if role.trainable == "lora":
    variables["lora"] = roles.fresh_lora(role, jax.random.key(0))
  if role.head is not None:
    variables["head"] = heads.init(role.head, 16, jax.random.key(0))
  first, second = roles.split(role, variables)
  assert set(first) == trained
  merged = trees.merge(first, second)
  assert trees.flatten(merged).keys() == trees.flatten(variables).keys()


def test_full_training_from_a_layer_up_freezes_the_rest(base):
  role = roles.Role(MODEL, first_layer=2)
  first, second = roles.split(role, {"params": base})
  assert set(first["params"]) == {"layer_2", "layer_3", "final_norm"}
  assert set(second["params"]) == {"embedding", "layer_0", "layer_1"}
  scorer = dataclasses.replace(role, head=heads.Config())  # reads no final norm
  first, _ = roles.split(scorer, {"params": base})
  assert set(first["params"]) == {"layer_2", "layer_3"}


def test_critic_values_are_the_reward_models_scores_of_prefixes(base, rows):
  """values[n, t] is the state before token t: the score of tokens[n, <t]."""
  head = heads.Config(pooling="mean_last")
  role = roles.Role(MODEL, trainable="head", stop_layer=3, head=head)
  variables = {"params": base, "head": heads.init(head, 16, jax.random.key(5))}
  values = np.asarray(outputs.values(role, variables, rows))
  for t in range(4, LENGTH):
    mask = rows.valid_mask.at[:, t:].set(0.0)
    cut = dataclasses.replace(rows, valid_mask=mask)
    score = np.asarray(outputs.score(role, variables, cut, mask))[:, 0]
    alive = np.asarray(rows.valid_mask)[:, t - 1] > 0
    np.testing.assert_allclose(values[alive, t], score[alive], atol=1e-5)


def test_mean_last_pooling_by_hand():
  hidden = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 6)))
  mask = jnp.asarray([[0.0, 1.0, 1.0, 1.0]])
  pooled = np.asarray(heads.pool(hidden, mask, "mean_last"))
  normed = np.asarray(heads.unit_rms(hidden))[0]
  np.testing.assert_allclose(np.mean(normed**2, axis=-1), 1.0, atol=1e-5)
  expected = np.concatenate([normed[1:3].mean(0), normed[2]])
  np.testing.assert_allclose(pooled[0, 2], expected, atol=1e-6)


def test_residual_units_change_nothing_at_first():
  features = jax.random.normal(jax.random.key(0), (3, 7, 32))
  plain, residual = (
    heads.Config(hidden_units=n, pooling="mean_last") for n in (0, 5)
  )
  weights = heads.init(residual, 16, jax.random.key(1))
  with_units = heads.ScalarHead(residual).apply({"params": weights}, features)
  without = heads.ScalarHead(plain).apply(
    {"params": {"output": weights["output"]}}, features
  )
  np.testing.assert_allclose(with_units, without, atol=1e-6)


def _samples(rows) -> Samples:
  response = targets_of(rows)
  reason = [FINISH_EOS, FINISH_LENGTH, FINISH_EOS, FINISH_EOS, FINISH_LENGTH]
  return Samples(
    tokens=rows.tokens,
    valid_mask=rows.valid_mask,
    response_mask=response,
    behaviour_logprobs=response,
    finish_reason=jnp.asarray(reason, jnp.int32),
  )


@pytest.mark.parametrize("pooling", ["last", "mean_last"])
def test_trap_01_a_scorer_without_end_tokens_ignores_only_sampled_ends(
  base, rows, pooling
):
  head = heads.Config(pooling=pooling)
  role = roles.Role(MODEL, trainable="head", stop_layer=2, head=head)
  variables = {"params": base, "head": heads.init(head, 16, jax.random.key(5))}
  samples = _samples(rows)
  scorer = reward_model.Scorer(role, reads_end_token=False)
  mask = np.asarray(reward_model.judged_mask(scorer, samples))
  removed = np.asarray(samples.valid_mask) - mask
  np.testing.assert_array_equal(removed.sum(1), [1, 0, 1, 1, 0])
  weights = reward_model.Weights(variables, jnp.float32(0.5), jnp.float32(2.0))
  score = reward_model.score(scorer, weights, samples)
  other = samples.replace(
    tokens=jnp.where(removed > 0, (rows.tokens + 1) % 19, rows.tokens)
  )
  np.testing.assert_allclose(
    score, reward_model.score(scorer, weights, other), atol=1e-6
  )
  raw = outputs.score(role, variables, rows, jnp.asarray(mask))[:, 0]
  np.testing.assert_allclose(score, (raw - 0.5) / 2.0, atol=1e-6)


def test_folded_normalisation_gives_normalised_scores():
  config = heads.Config(hidden_units=3)
  weights = heads.init(config, 8, jax.random.key(1))
  weights["residual"]["kernel"] += 0.3
  features = jax.random.normal(jax.random.key(0), (4, 8))
  head = heads.ScalarHead(config)
  raw = head.apply({"params": weights}, features)
  folded = reward_model.fold_normalisation(weights, 1.5, 0.25)
  np.testing.assert_allclose(
    head.apply({"params": folded}, features), (raw - 1.5) / 0.25, rtol=1e-4
  )


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"trainable": "some"}, "'full', 'lora' or 'head'"),
    ({"trainable": "head"}, "no scalar head"),
    ({"first_layer": 4}, "first_layer=4"),
    ({"stop_layer": 5}, "stop_layer=5"),
    ({"first_layer": 2, "stop_layer": 2}, "no layer"),
    ({"trainable": "lora"}, "lora_rank=0"),
    ({"model": SCANNED, "first_layer": 1}, "scan_layers=False"),
    ({"model": SCANNED, "stop_layer": 2}, "scan_layers=False"),
  ],
)
def test_impossible_roles_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    roles.Role(**({"model": MODEL} | changes))


def test_packed_rows_give_the_values_of_separate_rows(base, rows):
  """Two rows packed into one: logits, running means and shifts stay apart."""
  head = heads.Config(pooling="mean_last")
  role = roles.Role(MODEL, trainable="head", stop_layer=3, head=head)
  variables = {"params": base, "head": heads.init(head, 16, jax.random.key(5))}
  first = np.flatnonzero(np.asarray(rows.valid_mask)[1])
  second = np.flatnonzero(np.asarray(rows.valid_mask)[2])
  tokens = np.concatenate(
    [np.asarray(rows.tokens)[1, first], np.asarray(rows.tokens)[2, second]]
  )
  sizes = [len(first), len(second)]
  packed = Rows(
    jnp.asarray(tokens)[None],
    jnp.ones((1, len(tokens))),
    jnp.asarray(np.concatenate([np.arange(n) for n in sizes]))[None],
    jnp.asarray(np.repeat([1, 2], sizes))[None],
  )
  expected = np.asarray(outputs.values(role, variables, rows))
  found = np.asarray(outputs.values(role, variables, packed))[0]
  np.testing.assert_allclose(
    found[1 : sizes[0]], expected[1, first[1:]], atol=1e-5
  )
  np.testing.assert_allclose(
    found[sizes[0] + 1 :], expected[2, second[1:]], atol=1e-5
  )


def test_a_frozen_trunk_of_scanned_layers_is_tapped_at_its_end(base, rows):
  stacked = {k: v for k, v in base.items() if not k.startswith("layer_")}
  stacked["layers"] = jax.tree.map(
    lambda *x: jnp.stack(x), *(base[f"layer_{i}"] for i in range(4))
  )
  (found,) = outputs.frozen_streams(SCANNED, stacked, rows, (4,)).values()
  (expected,) = outputs.frozen_streams(MODEL, base, rows, (4,)).values()
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize(
  "left, right",
  [
    *(
      pytest.param(*sides, marks=pytest.mark.slow) for sides in ((0, 5), (4, 0))
    ),
    (3, 2),
  ],
)
def test_t02_trap_09_padding_on_either_side_changes_no_number(
  positions, left, right
):
  """Log-probabilities, entropies, values and scores of three short rows."""
  model = dataclasses.replace(MODEL, positions=positions)
  head = heads.Config(pooling="mean_last")
  role = roles.Role(model, head=head)
  key = jax.random.key(7)
  variables = transformer.init(model, key)
  variables["head"] = heads.init(head, model.width, key)
  rng = np.random.default_rng(2)
  tokens = rng.integers(0, model.vocab_size, (3, 8))

  @jax.jit
  def judge(tokens, mask, targets):
    rows = Rows(tokens, mask, ops.positions_from_mask(mask))
    return (
      *outputs.logprobs(role, variables, rows, targets),
      outputs.values(role, variables, rows),
      outputs.score(role, variables, rows, mask),
    )

  def numbers(before, after):
    pad = ((0, 0), (before, after))
    mask = np.pad(np.ones((3, 8), np.float32), pad)
    targets = np.pad(np.tile(np.arange(8) >= 3, (3, 1)) * 1.0, pad)
    filled = np.pad(tokens, pad, constant_values=11)
    *by_token, score = judge(filled, mask, targets)
    inner = slice(before + 1, before + 8)  # no value before the first token
    return [np.asarray(x)[:, inner] for x in by_token] + [np.asarray(score)]

  for found, expected in zip(numbers(left, right), numbers(0, 0), strict=True):
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(expected).max() > 0.01
