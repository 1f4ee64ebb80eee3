"""The known optimum again, with the package's transformer as the policy.

  python -m tests.proofs.transformer_optima

prints one line per method, the worse of seeds 0 and 1: KL from the learnt
policy to p_ref exp(r / beta) / Z, mean over the prompts, and the same with the
sign of the KL turned (DPO: with winner and loser swapped), which must miss. It
fails (exit code 1) where one is not so.

Two prompts of one token, answers of T = 2 tokens of V = 8: all 128 sequences
are enumerated in each forward pass of one layer, so that distances are exact;
what is learnt from is drawn from them (docs/METHODS.md A1). The reference is
the policy as initialised.

GRPO with its KL, k2, in the loss has another optimum: the loss of a token does
not see what it does to the KL of the next one, so

  p(y2 | y1) = p_ref(y2 | y1) exp(r / beta) / Z
  p(y1)      = p_ref(y1) exp(E[r | y1] / beta) / Z,

and the tilt would have E[r | y1] - beta KL(p(.|y1) || p_ref(.|y1)) there
(docs/METHODS.md 3.6). Its group mean contains the own reward, so r is
r (1 - 1/G). It must miss the tilt. With k1 in the reward GRPO meets it.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.algorithms.policy_gradient import (
  grpo,
  ppo,
  rloo,
  shaping,
  update,
)
from rlhf_jax.algorithms.preference import dpo
from rlhf_jax.models import heads, policy_value, roles, transformer
from rlhf_jax.types import PreferenceBatch, Rollout, TrainState
from tests import plain
from tests.proofs import preference_optima
from tests.proofs.fixed_points import kl, log_softmax
from tests.proofs.preference_data import Bandit, draw, pairs_batch
from tests.proofs.rows import Row, show
from tests.proofs.selection import sampled

BETA = 0.5
PROMPTS, WORDS = 2, 8
ANSWERS = WORDS**2
MODEL = transformer.Config(
  vocab_size=WORDS + PROMPTS,
  width=32,
  n_layers=1,
  n_heads=2,
  n_kv_heads=2,
  head_dim=16,
  mlp_width=64,
  max_length=4,
  tie_embeddings=False,
)
NETWORK = transformer.Transformer(MODEL)
POLICY = roles.Role(
  dataclasses.replace(MODEL, empty_rows=((WORDS, WORDS + PROMPTS),))
)
CRITIC = dataclasses.replace(POLICY, head=heads.Config())
SEQUENCES = np.stack(np.indices((PROMPTS, WORDS, WORDS)), axis=-1)
SEQUENCES = (SEQUENCES + [WORDS, 0, 0]).reshape(-1, 3)
SHAPING = shaping.Config(clip=None)
UPDATE = update.Config(epochs=1, minibatches=1)
PAIRS = 500_000  # for each prompt


class Method(NamedTuple):
  """A policy-gradient method; in_loss says where its KL is.

  shares_trunk: the critic is a head on the policy, not a table.
  """

  module: ModuleType
  config: Any
  in_loss: bool = False
  shares_trunk: bool = False


NO_LOSS = {"kl_loss": "none", "kl_loss_coefficient": 0.0}
METHODS = {
  "ppo": Method(ppo, ppo.Config()),
  "ppo, shared trunk": Method(ppo, ppo.Config(), shares_trunk=True),
  "rloo": Method(rloo, rloo.Config(group_size=4)),
  "grpo, k1 in reward": Method(
    grpo, grpo.Config(group_size=8, scale_rewards="none", **NO_LOSS)
  ),
  "grpo k2, G=64": Method(
    grpo,
    grpo.Config(
      group_size=64,
      scale_rewards="none",
      kl_loss="k2",
      kl_loss_coefficient=BETA,
    ),
    True,
  ),
}


def token_logprobs(variables) -> jax.Array:
  """Returns [128, 2], the log-probability of each token of each answer."""
  read = jnp.asarray(SEQUENCES[::WORDS, :-1])  # the last token is not read
  logits = NETWORK.apply(variables, read, jnp.ones(read.shape))[..., :WORDS]
  logits = jnp.repeat(logits, WORDS, axis=0)
  return plain.logprobs_of_logits(logits, jnp.asarray(SEQUENCES[:, 1:]))


def start(seed: jax.Array):
  """Returns the variables of an untrained transformer."""
  return transformer.init(MODEL, jax.random.key(seed))


def score(seed: int) -> np.ndarray:
  """Returns [2, 64] normal rewards."""
  return np.random.default_rng(seed).normal(size=(PROMPTS, ANSWERS))


def enumerated() -> Rollout:
  """Returns all answers as rows of a rollout."""
  mask = jnp.tile(jnp.array([[0.0, 1.0, 1.0]]), (len(SEQUENCES), 1))
  return Rollout(
    tokens=jnp.asarray(SEQUENCES),
    valid_mask=jnp.ones_like(mask),
    response_mask=mask,
    behaviour_logprobs=mask,
    finish_reason=jnp.zeros(len(mask), jnp.int32),
    reference_logprobs=mask,
    score=mask[:, 0],
  )


def apply_shared(params, row):
  """Returns rows of the package's own pass through a shared trunk."""
  logprobs, entropies, values = policy_value.shared_trunk(
    params,
    {"policy": {}},
    enumerated(),
    policy=POLICY,
    value=CRITIC,
    temperature=1.0,
    targets=2,
    is_unembedding_frozen=False,
    stops_gradient=False,
  )
  return logprobs[row], entropies[row], values[row]


def apply(params, frozen, rollout: Rollout):
  """Looks rows up among the enumerated ones; the critic is a table or head."""
  del frozen
  prompt, first = rollout.tokens[:, 0] - WORDS, rollout.tokens[:, 1]
  row = (prompt * WORDS + first) * WORDS + rollout.tokens[:, 2]
  if "head" in params.get("value", {}):
    return apply_shared(params, row)
  logprobs = jnp.pad(token_logprobs(params["policy"])[row], ((0, 0), (1, 0)))
  values = None
  if "value" in params:
    columns = (
      params["value"]["prompt"][prompt],
      params["value"]["word"][prompt, first],
    )
    values = jnp.stack([jnp.zeros_like(columns[0]), *columns], axis=1)
  return logprobs, jnp.zeros_like(logprobs), values


def sample(params, reference, reward, sign, key, count: int) -> Rollout:
  """Returns `count` judged answers to each prompt."""
  log_p = jnp.sum(token_logprobs(params["policy"]), axis=-1)
  keys = jax.random.split(key, PROMPTS)
  draw_ = jax.vmap(lambda logits, key: sampled(logits, key, count))
  answer = draw_(log_p.reshape(PROMPTS, ANSWERS), keys)
  row = (answer + ANSWERS * jnp.arange(PROMPTS)[:, None]).reshape(-1)
  tokens = jnp.asarray(SEQUENCES)[row]
  mask = jnp.tile(jnp.array([[0.0, 1.0, 1.0]]), (len(row), 1))
  rollout = Rollout(
    tokens=tokens,
    valid_mask=jnp.ones_like(mask),
    response_mask=mask,
    behaviour_logprobs=mask,
    finish_reason=jnp.zeros(len(row), jnp.int32),
    reference_logprobs=mask,
    score=reward.reshape(-1)[row],
  )
  behaviour, _, values = apply(params, {}, rollout)
  fixed = jnp.pad(reference[row], ((0, 0), (1, 0)))
  return rollout.replace(
    behaviour_logprobs=behaviour,
    reference_logprobs=behaviour - sign * (behaviour - fixed),
    values=values,
  )


@functools.partial(jax.jit, static_argnames=("method", "steps"))
@functools.partial(jax.vmap, in_axes=(None, 0, 0, 0, None))
def train(method: Method, reward, sign, seed, steps: int):
  """Returns [2, 128]: log p_ref and the learnt log p of whole answers."""
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
  params = {"policy": start(seed)}
  reference = token_logprobs(params["policy"])
  if method.shares_trunk:
    head = heads.init(CRITIC.head, MODEL.width, jax.random.key(seed))
    params["value"] = {"head": jax.tree.map(jnp.zeros_like, head)}
  elif method.module is ppo:
    table = jnp.zeros((PROMPTS, WORDS))
    params["value"] = {"prompt": table[:, 0], "word": table}
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
  beta = jnp.float32(0.0 if method.in_loss else BETA)

  def one(state: TrainState, key):
    rollout = sample(state.params, reference, reward, sign, key, 512)
    rollout, _, _ = shaping.shape_rewards(
      rollout, shaping.init_moments(), beta, SHAPING
    )
    return update.update(
      state,
      {},
      method.module.advantages(rollout, method.config),
      key,
      algorithm=method.module,
      algorithm_config=method.config,
      config=UPDATE,
      apply=apply,
      optimizer=optimizer,
    )[0], None

  keys = jax.random.split(jax.random.key(seed), steps)
  state, _ = jax.lax.scan(one, state, keys)
  learnt = token_logprobs(state.params["policy"])
  return jnp.sum(jnp.stack([reference, learnt]), axis=-1)


def tilt(log_ref: np.ndarray, reward: np.ndarray) -> np.ndarray:
  """Returns log of p_ref exp(r / beta) / Z of one prompt, [64]."""
  return log_softmax(log_ref + reward / BETA)


def short_sighted(log_ref: np.ndarray, reward: np.ndarray) -> np.ndarray:
  """Returns the optimum of k2 in the loss (module docstring), [64]."""
  reward = (1.0 - 1.0 / 64) * reward.reshape(WORDS, WORDS)
  joint = log_ref.reshape(WORDS, WORDS)
  first = np.logaddexp.reduce(joint, axis=1)
  second = np.stack(
    [
      log_softmax(row - total + r / BETA)
      for row, total, r in zip(joint, first, reward, strict=True)
    ]
  )
  expected = np.sum(np.exp(second) * reward, axis=1)
  return (log_softmax(first + expected / BETA)[:, None] + second).ravel()


def distance(
  log_p: np.ndarray, log_ref: np.ndarray, seed: int, optimum=tilt
) -> float:
  """Returns KL(p || optimum), mean over prompts; both [128]."""
  pairs = zip(
    log_p.reshape(PROMPTS, -1),
    log_ref.reshape(PROMPTS, -1),
    score(seed),
    strict=True,
  )
  return float(
    np.mean(
      [kl(log_softmax(p), optimum(log_softmax(q), r)) for p, q, r in pairs]
    )
  )


def row(
  name: str, runs, seeds: Sequence[int], since: float, optimum=tilt
) -> Row:
  """Returns a row of runs [2 signs, seeds, 2, 128]; it must have moved far."""
  runs = np.asarray(runs, np.float64)

  def of(sign: int, part: int, target=optimum) -> list[float]:
    return [
      distance(runs[sign, lane, part], runs[sign, lane, 0], seed, target)
      for lane, seed in enumerate(seeds)
    ]

  is_apart = optimum is tilt or min(of(0, 1, tilt)) > 0.02
  return Row(
    f"{name}, transformer",
    "tilt" if optimum is tilt else "own",
    "KL",
    max(of(0, 1)),
    0.02,
    min(of(1, 1)),
    0.5,
    time.perf_counter() - since,
    min(of(0, 0)) > 0.3 and is_apart,
  )


def policy_row(
  name: str, seeds: Sequence[int] = (0, 1), steps: int = 800
) -> Row:
  """Returns the row of a policy-gradient method."""
  since = time.perf_counter()
  rewards = jnp.asarray(np.stack([score(s) for s in seeds]), jnp.float32)
  lanes = (
    jnp.tile(rewards, (2, 1, 1)),
    jnp.repeat(jnp.array([1.0, -1.0]), len(seeds)),
  )
  runs = train(METHODS[name], *lanes, jnp.tile(jnp.asarray(seeds), 2), steps)
  target = short_sighted if METHODS[name].in_loss else tilt
  return row(name, runs.reshape(2, len(seeds), 2, -1), seeds, since, target)


def compared(log_ref: np.ndarray, seed: int, is_turned: bool):
  """Returns comparisons of answers to each prompt; tokens are row numbers."""
  parts = []
  for prompt, reward in enumerate(score(seed)):
    block = slice(prompt * ANSWERS, (prompt + 1) * ANSWERS)
    bandit = Bandit(reward, log_ref[block])
    counts = draw(bandit, PAIRS, seed * PROMPTS + prompt, 0.0)
    batch = pairs_batch(counts.T if is_turned else counts, bandit.reference)
    parts.append(batch.replace(tokens=batch.tokens + block.start))
  return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def apply_pairs(params, frozen, batch: PreferenceBatch) -> jax.Array:
  """Returns [B, 2, 2], the log-probability of the whole answer at the end."""
  del frozen
  table = jnp.sum(token_logprobs(params), axis=-1)
  return jnp.pad(table[batch.tokens[..., 1:]], ((0, 0), (0, 0), (1, 0)))


@functools.partial(jax.jit, static_argnames="steps")
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def train_pairs(params, batch: PreferenceBatch, steps: int):
  """Returns the variables after DPO on all comparisons at once."""
  return preference_optima.train(
    params,
    batch,
    algorithm=dpo,
    config=dpo.Config(beta=BETA),
    steps=steps,
    rate=5e-3,
    forward=apply_pairs,
  )


def dpo_row(seeds: Sequence[int] = (0, 1), steps: int = 500) -> Row:
  """Returns the row of DPO."""
  since = time.perf_counter()
  table = jax.jit(jax.vmap(lambda x: jnp.sum(token_logprobs(x), axis=-1)))
  params = jax.vmap(start)(jnp.tile(jnp.asarray(seeds), 2))
  log_ref = table(params)
  batches = [
    compared(np.asarray(log_ref[lane], np.float64), seed, is_turned)
    for is_turned in (False, True)
    for lane, seed in enumerate(seeds)
  ]
  batches = jax.tree.map(lambda *x: jnp.stack(x), *batches)
  learnt = table(train_pairs(params, batches, steps))
  runs = jnp.stack([log_ref, learnt], axis=1)
  return row("dpo", runs.reshape(2, len(seeds), 2, -1), seeds, since)


def rows() -> Iterator[Row]:
  """Yields the table."""
  for name in METHODS:
    yield policy_row(name)
  yield dpo_row()


if __name__ == "__main__":
  sys.exit(show(rows()))
