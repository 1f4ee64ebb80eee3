"""Answers behind one prompt: log-probs, scores and gradients do not change."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from rlhf_jax.algorithms import reward_losses
from rlhf_jax.algorithms.preference import dpo
from rlhf_jax.data import dataset, layout
from rlhf_jax.models import heads, roles, rows, transformer, trees
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import features, pair_reference, pairs, shared_rows
from rlhf_jax.runs import reference
from rlhf_jax.schema import FieldError

PAD, COUNT = 0, 16
MODEL = transformer.Config(
  vocab_size=50,
  width=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=4,
  mlp_width=24,
  max_length=64,
)
LEARNED = dataclasses.replace(
  MODEL, positions="learned", norm="layer", tie_embeddings=False
)


def candidate(prompt, answer):
  mask = np.repeat([0.0, 1.0], [len(prompt), len(answer)])
  return {
    "tokens": np.concatenate([prompt, answer]).astype(np.int32),
    "loss_mask": mask.astype(np.float32),
  }


@pytest.fixture(scope="module")
def data():
  """48 pairs of answers of 1 to 9 tokens to prompts of 6 to 20.

  Answers of pair 0 begin alike, of pair 1 the second is the start of the first,
  of pair 2 they are equal; pair 3 has two prompts.
  """
  rng = np.random.default_rng(0)

  def text(low, high):
    return rng.integers(3, 50, rng.integers(low, high + 1))

  found = []
  for _ in range(48):
    prompt = text(6, 20)
    found += [candidate(prompt, text(1, 9)) for _ in range(2)]
  prompt, answer = text(10, 10), text(7, 7)
  found[0] = candidate(prompt, answer)
  found[1] = candidate(prompt, [*answer[:3], *(answer[3:] % 46 + 4)])
  found[2] = candidate(prompt, answer)
  found[3] = candidate(prompt, answer[:4])
  found[4] = found[5] = candidate(prompt, answer)
  found[6] = candidate([1, *prompt], answer)
  found[7] = candidate([2, *prompt], answer)
  return dataset.Comparisons(
    rows=found,
    pairs=np.arange(96, dtype=np.int32).reshape(-1, 2),
    labels=np.ones(48, np.float32),
    groups=np.arange(48, dtype=np.int32)[:, None],
    dropped={},
    ceiling=None,
  )


@functools.cache
def weights(config):
  return transformer.init(config, jax.random.key(1))["params"]


def both(data, **options):
  """Returns a batch with a row a candidate, and with prompts that stand once.

  Among them are all special pairs.
  """
  shape = shared_rows.choose("dpo", data, COUNT, 8, 1, **options)
  assert shape.has_branches and shape.counts[0] < 2 * COUNT
  numbers = list(range(COUNT))
  alone = pairs.collate_of(data, PAD)(numbers)
  shared = pairs.collate_of(data, PAD, shape)(numbers)
  return alone, shared, shape


def test_every_token_is_there_and_prompts_once(data):
  alone, shared, shape = both(data)
  cells = shared.packing
  text = np.asarray(shared_rows.tokens_of(shared).tokens)
  valid = alone.valid_mask > 0
  np.testing.assert_array_equal(
    text.reshape(-1)[cells.place[valid]], alone.tokens[valid]
  )
  places = cells.place.reshape(COUNT, 2, -1)
  for n, shares in ((0, 13), (1, 14), (2, 17), (3, 0)):
    common = set(places[n, 0][valid[n, 0]]) & set(places[n, 1][valid[n, 1]])
    assert len(common) == shares
  positions = cells.positions.reshape(-1)[cells.place[valid]]
  expected = np.broadcast_to(np.arange(valid.shape[-1]), valid.shape)[valid]
  np.testing.assert_array_equal(positions, expected)
  assert (cells.segment_ids > 0).sum() < 0.75 * valid.sum()


def test_what_reads_what_by_hand():
  """Two segments: a text of 2, and a prompt of 2 with answers of 2 and 1."""
  segments = np.array([[1, 1, 2, 2, 2, 2, 2, 0]])
  branches = np.array([[1, 1, 0, 0, 1, 1, 2, 0]])
  positions = np.array([[0, 1, 0, 1, 2, 3, 2, 0]])
  valid = (segments > 0).astype(np.float32)
  found = rows.Rows(segments, valid, positions, segments, branches)
  expected = [
    "10000000",
    "11000000",
    "00100000",
    "00110000",
    "00111000",
    "00111100",
    "00110010",
    "00000000",
  ]
  mask = np.array([[c == "1" for c in line] for line in expected])
  np.testing.assert_array_equal(found.mask(MODEL)[0], mask)
  np.testing.assert_array_equal(found.before()[0, :7], [0, 0, 1, 2, 3, 4, 3])
  x = np.arange(1.0, 9.0)[None, :, None] ** np.array([1.0, -1.0])
  pooled = np.asarray(found.pooled(x, "mean_last"))[0]
  unit = heads.unit_rms(x)[0]
  for row, reads in enumerate(mask[:7]):
    np.testing.assert_allclose(pooled[row, :2], unit[reads].mean(0), rtol=1e-5)


@pytest.mark.parametrize("config", [MODEL, LEARNED], ids=["rotary", "learned"])
def test_t14_the_loss_of_dpo_and_its_gradient_do_not_change(data, config):
  alone, shared, shape = both(data)
  role = roles.Role(model=config)
  params, frozen = roles.split(role, {"params": weights(config)})
  rng = np.random.default_rng(1)
  given = -3.0 * rng.random(alone.tokens.shape).astype(np.float32)

  def loss(params, batch):
    logprobs = pairs.apply(
      params, frozen, batch, role=role, targets=shape.targets
    )
    losses, _ = dpo.loss(logprobs, batch, dpo.Config(beta=0.5))
    return losses.sum(), (losses, logprobs)

  gradient = jax.jit(jax.grad(loss, has_aux=True))
  (expected, (losses, logprobs)), (found, (shared_losses, others)) = (
    gradient(params, batch.replace(reference_logprobs=given))
    for batch in (alone, shared)
  )
  kept = alone.loss_mask > 0
  np.testing.assert_allclose(others[kept], logprobs[kept], atol=1e-5)
  assert np.std(losses) > 0.1 and np.std(logprobs[kept]) > 0.01
  np.testing.assert_allclose(shared_losses, losses, atol=3e-5)
  found = trees.flatten(found)
  for path, x in trees.flatten(expected).items():
    most = float(np.abs(x).max())
    assert most > 1e-4
    atol = 1e-5 * max(most, 1.0)
    np.testing.assert_allclose(found[path], x, atol=atol, err_msg=path)


@pytest.mark.parametrize("pooling", ["last", "mean_last"])
def test_rewards_and_their_gradient_do_not_change(data, pooling):
  alone, shared, _ = both(data)
  head = heads.Config(pooling=pooling)
  role = roles.Role(model=MODEL, head=head)
  made = heads.init(head, MODEL.width, jax.random.key(0))
  params, frozen = roles.split(role, {"params": weights(MODEL), "head": made})

  def loss(params, batch):
    scores = features.apply(params, frozen, batch, role=role)
    return reward_losses.pairwise_loss(scores, batch.label).sum(), scores

  gradient = jax.jit(jax.grad(loss, has_aux=True))
  (expected, scores), (found, others) = (
    gradient(params, batch) for batch in (alone, shared)
  )
  assert np.std(scores[:, 0] - scores[:, 1]) > 0.1
  np.testing.assert_allclose(others, scores, atol=2e-5)
  found = trees.flatten(found)
  for path, x in trees.flatten(expected).items():
    atol = 1e-5 * max(float(np.abs(x).max()), 1.0)
    np.testing.assert_allclose(found[path], x, atol=atol, err_msg=path)


def test_the_reference_does_not_change_and_reads_less(data):
  role = roles.Role(model=MODEL)
  forward = functools.partial(
    pair_reference.make(role), {"params": weights(MODEL)}, {}
  )
  mesh = mesh_lib.make_mesh(mesh_lib.Config(devices=1))
  cells = []

  def counted(batch, targets):
    cells.append(batch.tokens.size)
    assert batch.loss_mask.sum(1).max() <= targets
    return forward(batch, targets=targets)

  found = {}
  for prompts in ("never", "auto"):
    cells.clear()
    shape = layout.whole(data.rows, prompts)
    assert shape.has_branches == (prompts == "auto")
    logprobs = reference.compute(
      counted, data.rows, shape=shape, batch_size=4, pad_id=PAD, mesh=mesh
    )
    found[prompts] = logprobs, sum(cells)
  (expected, most), (logprobs, less) = found["never"], found["auto"]
  assert len(expected) == sum(row["loss_mask"].sum() for row in data.rows)
  np.testing.assert_allclose(logprobs, expected, atol=1e-5)
  assert less < layout.WORTH * most


def test_eight_devices_say_the_same(data):
  _, shared, shape = both(data)
  role = roles.Role(model=MODEL)
  params, frozen = roles.split(role, {"params": weights(MODEL)})
  run = functools.partial(
    pairs.apply, frozen=frozen, role=role, targets=shape.targets
  )
  expected = jax.jit(lambda p, b: run(p, batch=b))(params, shared)
  mesh = mesh_lib.make_mesh(mesh_lib.Config(devices=8, data=4, tensor=2))
  assert shared.packing.cell.shape[0] % 8 == 0
  with mesh_lib.current(mesh):
    batch = mesh_lib.spread_batch(mesh, shared)
    found = jax.jit(lambda p, b: run(p, batch=b))(params, batch)
  assert not found.sharding.is_fully_replicated
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_follows_from_data_and_settings_alone(data):
  first, second = both(data)[1:], both(data)[1:]
  assert first[1] == second[1]
  jax.tree.map(np.testing.assert_array_equal, first[0], second[0])


def test_where_prompts_are_left_apart(data, capsys):
  choose = functools.partial(
    shared_rows.choose, "dpo", batch_size=COUNT, ways=1
  )
  assert choose(data, microbatches=1).has_branches
  assert "% filled, each prompt once (" in capsys.readouterr().out
  shape = choose(data, microbatches=1, attention="splash")
  assert not shape.has_branches
  said = capsys.readouterr().out
  assert (
    "prompts stand in each row, as attention='splash' reads segments" in said
  )
  assert not choose(data, microbatches=1, prompts="never").has_branches
  assert not choose(data, microbatches=2).has_branches
  short = [  # 46 tokens instead of 48
    candidate([1, 2], range(k, k + 22)) for k in (3, 4)
  ]
  pair = dataclasses.replace(data, rows=short, pairs=np.array([[0, 1]] * 48))
  capsys.readouterr()
  assert not choose(pair, microbatches=1).has_branches
  assert "twice" not in capsys.readouterr().out
  assert choose(pair, microbatches=1, prompts="always").has_branches


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"attention": "splash"}, "model.attention='splash' reads whole segments"),
    ({"microbatches": 2}, "each candidate of these batches has a row"),
    ({}, "no two candidates begin with the same token"),
  ],
)
def test_a_setting_that_cannot_hold_is_refused(data, options, words):
  if not options:
    other = np.stack([data.pairs[3], data.pairs[3]])
    data = dataclasses.replace(data, pairs=other)
  options = {"microbatches": 1, "prompts": "always"} | options
  with pytest.raises(
    FieldError, match=f"^data.share_prompts='always': {words}"
  ):
    shared_rows.choose("dpo", data, 8, 1, **options)
