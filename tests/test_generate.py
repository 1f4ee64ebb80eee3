"""Sampling against the training forward pass, and against arithmetic."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import decoding, generate, ops, sampling, slots
from rlhf_jax.data import stops
from rlhf_jax.models import outputs, roles, transformer
from rlhf_jax.models.rows import Rows
from rlhf_jax.types import FINISH_EOS, FINISH_LENGTH, PromptBatch

MODEL = transformer.Config(
  vocab_size=23,
  width=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=4,
  mlp_width=24,
  max_length=32,
)
EOS = 5
SETTINGS = generate.Config(max_new_tokens=7, temperature=0.6)


@pytest.fixture(scope="module")
def params():
  found = transformer.init(MODEL, jax.random.key(0))["params"]
  # Sharper than at initialisation, so that argmax and temperature matter.
  found["embedding"]["embedding"] *= 6.0
  return found


def prompt_batch(rows: int = 24, pad: int = 0) -> PromptBatch:
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 5, rows)
  tokens = np.zeros((rows, 4 + pad), np.int32)
  mask = np.zeros((rows, 4 + pad), np.float32)
  for i, n in enumerate(lengths):
    tokens[i, -n:] = rng.integers(0, MODEL.vocab_size, n)
    mask[i, -n:] = 1.0
  return PromptBatch(
    tokens=jnp.asarray(tokens),
    valid_mask=jnp.asarray(mask),
    index=jnp.arange(rows),
  )


def run(
  params,
  prompts,
  config=SETTINGS,
  model=MODEL,
  eos=(EOS,),
  pad_id=EOS,
  table=None,
):
  return generate.generate(
    params,
    prompts,
    jax.random.key(3),
    model=model,
    config=config,
    eos_ids=eos,
    pad_id=pad_id,
    stops=table,
  )


def teacher_forced(params, samples, temperature, model=MODEL):
  role = roles.Role(model)
  logprobs, _ = outputs.logprobs(
    role,
    {"params": params},
    Rows.of(samples),
    samples.response_mask,
    temperature=temperature,
  )
  return logprobs


def test_trap_06_sampler_logprobs_equal_the_trainers_at_temperature(params):
  samples = run(params, prompt_batch())
  trained = teacher_forced(params, samples, 0.6)
  np.testing.assert_allclose(samples.behaviour_logprobs, trained, atol=2e-5)
  wrong = teacher_forced(params, samples, 1.0)
  assert np.abs(samples.behaviour_logprobs - wrong).max() > 0.1


def test_trap_07_truncated_sampling_reports_renormalised_logprobs(params):
  settings = dataclasses.replace(SETTINGS, top_k=3, temperature=1.0)
  samples = run(params, prompt_batch(), settings)
  full = teacher_forced(params, samples, 1.0)
  mask = np.asarray(samples.response_mask) > 0
  # Renormalising over three tokens can only raise a probability.
  assert np.all((np.asarray(samples.behaviour_logprobs) - full)[mask] >= -1e-5)
  assert np.any((np.asarray(samples.behaviour_logprobs) - full)[mask] > 1e-3)


def test_trap_24_greedy_sample_is_the_argmax_of_the_training_forward(params):
  settings = dataclasses.replace(SETTINGS, temperature=0.0)
  samples = run(params, prompt_batch(), settings)
  logits = transformer.Transformer(MODEL).apply(
    {"params": params}, samples.tokens, samples.valid_mask
  )
  expected = np.asarray(jnp.argmax(logits, -1))[:, :-1]
  mask = np.asarray(samples.response_mask)[:, 1:] > 0
  np.testing.assert_array_equal(
    np.asarray(samples.tokens)[:, 1:][mask], expected[mask]
  )


def test_trap_01_pad_equals_eos_and_the_sampled_eos_counts(params):
  samples = run(params, prompt_batch(), pad_id=EOS)
  other = run(params, prompt_batch(), pad_id=0)
  for name in ("response_mask", "behaviour_logprobs", "finish_reason"):
    np.testing.assert_array_equal(
      getattr(samples, name), getattr(other, name), err_msg=name
    )
  ended = np.asarray(samples.finish_reason) == FINISH_EOS
  last = np.asarray(ops.last_index(samples.response_mask))
  tokens = np.asarray(samples.tokens)[np.arange(len(last)), last]
  assert ended.any() and np.all((tokens == EOS) == ended)


def test_trap_03_length_limit_is_not_termination(params):
  samples = run(params, prompt_batch(), eos=(MODEL.vocab_size + 1,))
  assert np.all(np.asarray(samples.finish_reason) == FINISH_LENGTH)
  assert np.all(np.sum(np.asarray(samples.response_mask), 1) == 7)


def test_each_token_has_a_random_number_of_its_own(params):
  """Of a flat model, a token is its number; seven of 23 hardly repeat."""
  flat = jax.tree.map(jnp.zeros_like, params)
  samples = run(flat, prompt_batch(), eos=(MODEL.vocab_size + 1,))
  answers = np.asarray(samples.tokens)[:, -7:]
  distinct = [len(set(row)) for row in answers.tolist()]
  assert np.mean(distinct) > 5.0


@pytest.mark.parametrize("rows", [16, pytest.param(32, marks=pytest.mark.slow)])
def test_compaction_changes_nothing(params, rows):
  prompts = prompt_batch(rows)
  ends = (2, EOS, 7, 11)
  settings = dataclasses.replace(SETTINGS, compact=True)
  plain = run(
    params, prompts, dataclasses.replace(SETTINGS, compact=False), eos=ends
  )
  compact = run(params, prompts, settings, eos=ends)
  assert len(set(np.sum(np.asarray(plain.response_mask), 1))) > 3
  for name, value in vars(plain).items():
    np.testing.assert_allclose(
      value, getattr(compact, name), atol=1e-5, err_msg=name
    )


def assert_same(found, expected):
  for name, value in vars(expected).items():
    np.testing.assert_allclose(
      getattr(found, name), value, atol=1e-5, err_msg=name
    )


@pytest.mark.parametrize("scans", [False, True])
def test_a_cache_that_grows_changes_nothing(params, monkeypatch, scans):
  """From 2 new tokens to 4 and to 7, on unrolled and on scanned layers."""
  model = dataclasses.replace(MODEL, scan_layers=scans)
  if scans:
    layers = [params[f"layer_{i}"] for i in range(MODEL.n_layers)]
    rest = {k: v for k, v in params.items() if not k.startswith("layer_")}
    params = rest | {"layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
  plain = run(
    params, prompt_batch(), dataclasses.replace(SETTINGS, compact=False), model
  )
  monkeypatch.setattr(generate, "FIRST_ROOM", 2)
  grown = []
  real = slots.grow
  monkeypatch.setattr(
    slots, "grow", lambda *a, **k: grown.append(k) or real(*a, **k)
  )
  assert_same(run(params, prompt_batch(), model=model), plain)
  assert grown == [{"size": 8}, {"size": 11}]


@pytest.mark.parametrize("compact", [False, True])
def test_samples_of_a_prompt_share_its_pass(params, monkeypatch, compact):
  settings = dataclasses.replace(SETTINGS, num_samples=3, compact=compact)
  prompts = prompt_batch(8)
  alone = run(params, prompts, dataclasses.replace(settings, batch_size=8))
  seen = []
  real = decoding.prefill

  def prefill(params, prompts, keys, first, **how):
    seen.append((prompts.tokens.shape[0], keys.shape[0]))
    return real(params, prompts, keys, first, **how)

  monkeypatch.setattr(decoding, "prefill", prefill)
  assert_same(run(params, prompts, settings), alone)
  split = dataclasses.replace(settings, batch_size=12, refill=False)
  assert_same(run(params, prompts, split), alone)
  assert seen == [(8, 24), (4, 12), (4, 12)]


@pytest.mark.parametrize("compact", [False, True])
def test_streams_of_the_sampler_are_those_of_the_judge(
  params, monkeypatch, compact
):
  """On all valid tokens, the last one too, whatever rows were taken out."""
  monkeypatch.setattr(generate, "FIRST_ROOM", 2)
  settings = dataclasses.replace(
    SETTINGS, num_samples=2, compact=compact, batch_size=24
  )
  samples, streams = generate.with_streams(
    params,
    prompt_batch(),
    jax.random.key(3),
    model=MODEL,
    config=settings,
    eos_ids=(2, EOS, 7, 11),
    pad_id=EOS,
    taps=(1, 2),
  )
  assert len(set(np.sum(np.asarray(samples.response_mask), 1))) > 3
  rows = Rows.of(samples)
  expected = outputs.frozen_streams(MODEL, params, rows, (1, 2))
  valid = np.asarray(samples.valid_mask) > 0
  assert sorted(streams) == [1, 2]
  for layer, stream in streams.items():
    np.testing.assert_allclose(
      np.asarray(stream)[valid], np.asarray(expected[layer])[valid], atol=2e-5
    )


def test_batch_split_and_padding_change_nothing(params):
  plain = run(params, prompt_batch())
  split = run(
    params, prompt_batch(), dataclasses.replace(SETTINGS, batch_size=8)
  )
  np.testing.assert_array_equal(plain.tokens, split.tokens)
  padded = run(params, prompt_batch(pad=3))
  np.testing.assert_array_equal(plain.tokens[:, 4:], padded.tokens[:, 7:])


def test_trap_29_same_samples_on_one_and_eight_devices(params):
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  one = run(params, prompt_batch())
  eight = run(
    jax.device_put(params, whole), jax.device_put(prompt_batch(), rows)
  )
  np.testing.assert_array_equal(one.tokens, eight.tokens)


def test_trap_38_rows_without_a_token_are_never_sampled(params):
  """And sampler and trainer share what is left of the probability alike."""
  model = dataclasses.replace(MODEL, empty_rows=((3, 4), (17, 23)))
  empty = [3, *range(17, 23)]
  for temperature in (0.6, 0.0):
    settings = dataclasses.replace(SETTINGS, temperature=temperature)
    whole = run(params, prompt_batch(), settings)
    samples = run(params, prompt_batch(), settings, model=model)
    said = np.asarray(samples.response_mask) > 0
    assert np.isin(np.asarray(whole.tokens)[:, 4:], empty).any()
    assert not np.isin(np.asarray(samples.tokens)[said], empty).any()
    if temperature:
      trained = teacher_forced(params, samples, temperature, model)
      np.testing.assert_allclose(samples.behaviour_logprobs, trained, atol=2e-5)


def letter_table(*strings):
  """Returns the table of stop strings where token i is letter i."""

  class Tokenizer:
    def pieces(self):
      return [bytes([97 + i]) for i in range(MODEL.vocab_size)]

  return stops.string_table(Tokenizer(), strings, MODEL.vocab_size)


@pytest.mark.parametrize("compact", [False, True])
def test_a_stop_string_ends_an_answer(params, compact):
  """With the token that completes it, and nothing else changes."""
  settings = dataclasses.replace(SETTINGS, compact=compact)
  free = run(params, prompt_batch(), eos=(MODEL.vocab_size + 1,))
  said = np.asarray(free.tokens)[:, 4:]
  texts = ["".join(chr(97 + i) for i in row) for row in said]
  strings = (texts[0][1:3], texts[5][4:6], texts[9][3:6])
  samples = run(
    params,
    prompt_batch(),
    settings,
    eos=(MODEL.vocab_size + 1,),
    table=letter_table(*strings),
  )
  ends = [
    min((t.find(s) + len(s) for s in strings if s in t), default=7)
    for t in texts
  ]
  np.testing.assert_array_equal(np.sum(samples.response_mask, 1), ends)
  has_string = [any(s in t for s in strings) for t in texts]
  np.testing.assert_array_equal(
    np.asarray(samples.finish_reason) == FINISH_EOS, has_string
  )
  assert 3 <= sum(has_string) < len(texts)
  for row, (length, whole) in enumerate(zip(ends, said, strict=True)):
    found = np.asarray(samples.tokens)[row, 4 : 4 + length]
    np.testing.assert_array_equal(found, whole[:length])


def test_an_answer_does_not_end_before_its_least_length(params):
  ends = (2, EOS, 7, 11, 13)
  table = letter_table("a", "b", "c", "d", "e")
  for least in (1, 4, 7):
    settings = dataclasses.replace(SETTINGS, min_new_tokens=least)
    samples = run(params, prompt_batch(), settings, eos=ends, table=table)
    lengths = np.sum(np.asarray(samples.response_mask), 1)
    assert lengths.min() == least
    early = np.asarray(samples.tokens)[:, 4 : 4 + least - 1]
    assert not np.isin(early, ends).any()


def test_trap_33_samples_of_a_prompt_are_contiguous_and_differ(params):
  settings = dataclasses.replace(SETTINGS, num_samples=3)
  prompts = prompt_batch(8)
  samples = run(params, prompts, settings)
  repeated = np.repeat(np.asarray(prompts.tokens), 3, axis=0)
  np.testing.assert_array_equal(samples.tokens[:, :4], repeated)
  assert len(np.unique(np.asarray(samples.tokens), axis=0)) > 16
  order = jnp.asarray([5, 2, 7, 0, 1, 3, 4, 6])
  permuted = run(params, jax.tree.map(lambda x: x[order], prompts), settings)
  np.testing.assert_array_equal(
    np.asarray(permuted.tokens).reshape(8, 3, -1),
    np.asarray(samples.tokens).reshape(8, 3, -1)[np.asarray(order)],
  )


def test_scanned_layers_sample_the_same(params):
  scanned = dataclasses.replace(MODEL, scan_layers=True)
  layers = [params[f"layer_{i}"] for i in range(2)]
  stacked = {
    "embedding": params["embedding"],
    "final_norm": params["final_norm"],
    "layers": jax.tree.map(lambda *x: jnp.stack(x), *layers),
  }
  np.testing.assert_array_equal(
    run(params, prompt_batch()).tokens,
    run(stacked, prompt_batch(), model=scanned).tokens,
  )


def test_sampler_draws_from_the_softmax():
  vocabulary, draws = 700, 200_000  # more than two blocks, the last ragged
  logits = 2.0 * jax.random.normal(jax.random.key(1), (1, vocabulary))
  uniform = jax.random.uniform(jax.random.key(2), (draws,))
  config = generate.Config(temperature=0.7)
  draw = jax.jit(
    jax.vmap(lambda u: sampling.sample_tokens(logits, u[None], config))
  )
  tokens, logprobs = draw(uniform)
  expected = np.asarray(jax.nn.log_softmax(logits[0] / 0.7))
  counts = np.bincount(np.asarray(tokens)[:, 0], minlength=vocabulary)
  np.testing.assert_allclose(
    logprobs[:, 0], expected[np.asarray(tokens)[:, 0]], atol=1e-5
  )
  p = np.exp(expected)
  chi_square = np.sum((counts - draws * p) ** 2 / (draws * p))
  assert chi_square < vocabulary + 5 * np.sqrt(2 * vocabulary)


def test_the_ends_of_the_unit_interval_stay_in_the_support():
  logits = jnp.full((2, 600), -jnp.inf).at[:, jnp.array([3, 300])].set(0.0)
  uniform = jnp.asarray([0.0, 1.0 - 2**-24])
  tokens, _ = sampling.sample_tokens(logits, uniform, generate.Config())
  np.testing.assert_array_equal(tokens, [3, 300])


def test_rounding_of_sums_does_not_reach_past_the_support():
  """Of two sums of the same numbers one is larger in its last digit."""
  logits = jax.random.normal(jax.random.key(0), (64, 300))
  logits = logits.at[:, 200:].set(-jnp.inf)
  uniform = jnp.full(64, 1.0 - 2**-24)
  tokens, _ = sampling.sample_tokens(logits, uniform, generate.Config())
  assert np.all(np.asarray(tokens) < 200)


def test_rounding_of_sums_does_not_draw_a_block_without_mass():
  """Of 600 blocks half hold nothing; the sums of some grow all the same."""
  rng = np.random.default_rng(0)
  blocks = 600
  for _ in range(3):
    logits = 3.0 * rng.standard_normal(blocks * sampling.BLOCK)
    has_mass = rng.random(blocks) < 0.5
    is_kept = np.repeat(has_mass, sampling.BLOCK)
    logits = np.where(is_kept, logits, -np.inf).astype(np.float32)
    weights = np.exp(logits - logits.max()).reshape(blocks, -1)
    sums = jnp.cumsum(jnp.sum(jnp.asarray(weights), axis=-1))
    near = np.asarray(sums / sums[-1])[:-1, None]
    near = near + np.arange(-2, 3) * np.float32(2.0**-24)
    uniform = np.clip(near.reshape(-1), 0.0, 1.0 - 2.0**-23)
    draw = jax.jit(
      jax.vmap(
        lambda u, z: sampling.sample_tokens(
          z[None], u[None], generate.Config()
        ),
        in_axes=(0, None),
      )
    )
    tokens, logprobs = draw(jnp.asarray(uniform, jnp.float32), logits)
    assert np.all(is_kept[np.asarray(tokens)])
    assert np.all(np.isfinite(logprobs))


def test_nucleus_keeps_the_smallest_set_that_reaches_the_mass():
  probabilities = jnp.asarray([[0.5, 0.2, 0.15, 0.1, 0.05]])
  config = generate.Config(top_p=0.7)
  kept = sampling.truncate(jnp.log(probabilities), config)
  np.testing.assert_array_equal(
    np.isfinite(kept[0]), [True, True, False, False, False]
  )


def test_min_p_keeps_a_share_of_the_most_likely():
  logits = jnp.log(jnp.asarray([[0.1, 0.5, 0.05, 0.2, 0.15]]))

  def kept(**changes):
    found = sampling.truncate(logits, generate.Config(**changes))
    assert np.all(np.asarray(found == logits) | np.isneginf(found))
    return np.isfinite(found[0]).tolist()

  assert kept(min_p=0.0) == [True] * 5
  assert kept(min_p=0.31) == [False, True, False, True, False]
  assert kept(min_p=1.0) == [False, True, False, False, False]
  # Both must keep a token: the nucleus of 0.6 holds two.
  assert kept(min_p=0.25, top_p=0.6) == [False, True, False, True, False]
  assert kept(min_p=0.5, top_p=0.6) == [False, True, False, False, False]
  assert kept(min_p=0.31, top_k=1) == [False, True, False, False, False]


def test_a_nucleus_after_top_k_is_of_the_mass_that_is_left():
  """Of 0.5, 0.2 and 0.15 the first two hold 0.82, of all five but 0.7."""
  probabilities = jnp.asarray([[0.15, 0.5, 0.05, 0.2, 0.1]])
  kept = [
    sampling.truncate(
      jnp.log(probabilities), generate.Config(top_p=0.75, top_k=top_k)
    )
    for top_k in (3, 0)
  ]
  np.testing.assert_array_equal(
    np.isfinite(np.concatenate(kept)),
    [
      [False, True, False, True, False],
      [True, True, False, True, False],
    ],
  )


@pytest.mark.parametrize(
  "changes",
  [
    {"max_new_tokens": 0},
    {"temperature": -0.1},
    {"top_p": 0.0},
    {"top_k": -1},
    {"nucleus_candidates": 0},
    {"nucleus_candidates": 50},
    {"nucleus_candidates": 50, "top_p": 0.9, "top_k": 5},
    {"min_p": 1.1},
    {"min_p": -0.1},
    {"num_samples": 0},
    {"min_new_tokens": -1},
    {"min_new_tokens": 65},
    {"stop_tokens": (5,)},
    {"stop_strings": ("",)},
  ],
)
def test_impossible_settings_are_refused(changes):
  with pytest.raises(ValueError, match=next(iter(changes))):
    generate.Config(**changes)


def test_prompt_longer_than_the_context_is_refused(params):
  settings = dataclasses.replace(SETTINGS, max_new_tokens=30)
  with pytest.raises(ValueError, match="context of 32"):
    run(params, prompt_batch(), settings)


def test_a_prompt_that_comes_twice_is_sampled_anew(params):
  """At the border of two epochs a batch may hold a prompt two times."""
  prompts = prompt_batch()
  once = np.asarray(run(params, prompts).tokens)
  twice = jax.tree.map(lambda x: jnp.concatenate([x[:12], x[:12]]), prompts)
  both = np.asarray(run(params, twice).tokens)
  np.testing.assert_array_equal(both[:12], once[:12])
  assert np.mean(np.any(both[12:] != both[:12], axis=1)) > 0.8
  turned = run(params, jax.tree.map(lambda x: x[::-1], prompts)).tokens
  np.testing.assert_array_equal(turned, once[::-1])  # wherever a prompt stands


def key_rows(index, num_samples, seed=0):
  """Returns the keys of samples as [prompts, samples] of tuples."""
  keys = generate.sample_keys(
    jax.random.key(seed), jnp.asarray(index), num_samples
  )
  rows = [tuple(row) for row in np.asarray(jax.random.key_data(keys)).tolist()]
  return [
    rows[n * num_samples : (n + 1) * num_samples] for n in range(len(index))
  ]


def test_keys_are_of_step_prompt_and_sample():
  """Not of the place in the batch, nor of how many prompts there are."""
  seven, two = key_rows([7, 2], 3)
  assert key_rows([2, 9, 7], 3)[::2] == [two, seven]
  assert key_rows([7], 2) == [seven[:2]]
  again = key_rows([7, 2, 7], 3)
  assert again[:2] == [seven, two]
  assert again[2] == key_rows([7], 6)[0][3:]  # its samples are counted on
  everything = [*sum(again, []), *key_rows([7], 3, seed=1)[0]]
  assert len(set(everything)) == 12
