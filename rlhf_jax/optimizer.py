"""Optimizers and learning-rate schedules from config: optax chains.

  update = clip by global norm -> Adam -> weight decay -> learning rate

Adam as Loshchilov & Hutter 2019 (AdamW, arXiv:1711.05101), or with the epsilon
where TensorFlow 1 put it, before the bias correction, which OpenAI's first
RLHF code ran with (METHODS 4.6):

  AdamW: lr * m/(1-b1^t) / (sqrt(v/(1-b2^t)) + epsilon)
  TF:    lr * sqrt(1-b2^t)/(1-b1^t) * m / (sqrt(v) + epsilon)

With moments="8bit" the moments rest in 8 bits a number (moments.py). Weights
that rest in bfloat16 are rounded by chance (rounding.py).

Left out: other optimizers; the update functions take any optax transformation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import moments, rounding
from rlhf_jax.schema import UserError
from rlhf_jax.types import PyTree

MOMENTS = ("float32", "8bit")
SCHEDULES = ("constant", "cosine", "linear", "inverse_sqrt")
_DEFAULT_FINAL = {"constant": 1.0, "cosine": 0.1, "linear": 0.0}
_HUGE = float(jnp.finfo(jnp.float32).max)  # above it a float32 is infinite
_NEVER_DECAYED = ("scale", "bias")  # also when scanned layers stack them


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of one optimizer."""

  learning_rate: float  # peak; PPO 1e-6 policy, 5e-6 critic (METHODS 4.6)
  schedule: str = "constant"  # shape of the learning rate after the warm-up;
  # "inverse_sqrt": falls with the root of the update, from the warm-up's length
  final_fraction: float | None = None  # where the schedule ends, as a share of
  # the peak; None: 0.1 for cosine, 0 for linear
  warmup_steps: int = 0  # updates of linear warm-up; InstructGPT 10
  warmup_fraction: float = 0.0  # the same as a share of the run's updates; the
  # longer of both counts; Llama-2's reward model 0.03, at least 5 steps
  warmup_max_fraction: float = 0.2  # of the run's updates: a longer warm-up is
  # cut to it, and the run says so; 1 cuts nothing, nor does a total_steps
  warmup_initial_fraction: float = 0.0  # of the peak, at the first update;
  # InstructGPT 0.1
  total_steps: int | None = None  # updates, warm-up included; None: the run's
  beta1: float = 0.9  # decay of the first moment
  beta2: float = 0.95  # decay of the second moment
  epsilon: float = 1e-8  # added to the divisor of Adam; 1e-5 in OpenAI's code
  weight_decay: float = 0.0  # decoupled; never on norms and biases
  clip_norm: float | None = 1.0  # most of the global gradient norm; None: no
  # clipping
  adam_tf_style: bool = False  # epsilon before the bias correction, as in
  # TensorFlow (METHODS 4.6)
  moments: str = "float32"  # how both moments rest between updates; "8bit": a
  # quarter of the bytes (moments.py)

  def __post_init__(self) -> None:
    end, norm = self.final_fraction, self.clip_norm
    ranges = {
      "learning_rate": (0 <= self.learning_rate < _HUGE, ">= 0 and finite"),
      "warmup_steps": (self.warmup_steps >= 0, ">= 0"),
      "warmup_fraction": (0 <= self.warmup_fraction < 1, "in [0, 1)"),
      "warmup_max_fraction": (
        0 <= self.warmup_max_fraction <= 1,
        "in [0, 1]",
      ),
      "warmup_initial_fraction": (
        0 <= self.warmup_initial_fraction <= 1,
        "in [0, 1]",
      ),
      "beta1": (0 <= self.beta1 < 1, "in [0, 1)"),
      "beta2": (0 <= self.beta2 < 1, "in [0, 1)"),
      "epsilon": (0 < self.epsilon < _HUGE, "> 0 and finite"),
      "weight_decay": (0 <= self.weight_decay < _HUGE, ">= 0 and finite"),
      "clip_norm": (
        norm is None or 0 < norm < _HUGE,
        "> 0 and finite, or None to clip nothing",
      ),
      "final_fraction": (end is None or 0 <= end <= 1, "in [0, 1], or None"),
    }
    for field, (is_valid, rule) in ranges.items():
      if not is_valid:
        raise UserError(
          f"optimizer.{field}={getattr(self, field)!r} is out of range: must "
          f"be {rule}."
        )
    if self.warmup_fraction > self.warmup_max_fraction:
      raise UserError(
        f"optimizer.warmup_fraction={self.warmup_fraction:g} is more than "
        f"warmup_max_fraction={self.warmup_max_fraction:g}, to which a warm-up "
        "is cut. Raise that, or lower warmup_fraction."
      )
    if self.schedule not in SCHEDULES:
      raise UserError(
        f"optimizer.schedule={self.schedule!r}: must be one of {SCHEDULES}."
      )
    if self.moments not in MOMENTS:
      raise UserError(
        f"optimizer.moments={self.moments!r}: must be one of {MOMENTS}."
      )
    if self.moments == "8bit" and self.adam_tf_style:
      raise UserError(
        "optimizer.adam_tf_style=True with moments='8bit': only Adam as in "
        "AdamW has moments of 8 bits. Set moments='float32', or "
        "adam_tf_style=False."
      )
    if self.schedule == "inverse_sqrt" and self.final_fraction is not None:
      raise UserError(
        f"optimizer.final_fraction={self.final_fraction} with schedule="
        "'inverse_sqrt', which has no end of its own. Set None, or "
        "schedule='cosine' or 'linear'."
      )
    if self.schedule == "constant" and self.final_fraction not in (None, 1.0):
      raise UserError(
        f"optimizer.final_fraction={self.final_fraction} with a constant "
        "schedule. Set schedule='cosine' or 'linear', or leave it out."
      )
    if self.schedule != "constant" and (
      self.total_steps is not None and self.total_steps <= self.warmup_steps
    ):
      raise UserError(
        f"optimizer.total_steps={self.total_steps} with schedule="
        f"{self.schedule!r} and warmup_steps={self.warmup_steps}: a decay "
        "needs an end. Set total_steps > warmup_steps."
      )


def of_run(config: Config, updates: int) -> Config:
  """Returns the settings as a run of so many updates uses them.

  The decay ends with the run, and the warm-up takes at most
  warmup_max_fraction of it: a trial of a few steps must train at the rate that
  its settings say. Where total_steps is set, nothing changes.

  Args:
    config: as it was set.
    updates: of the whole run.

  Raises:
    UserError: the run ends within the warm-up.
  """
  if config.total_steps is not None:
    return config
  # 0.07 * 100 is above 7
  most = math.floor(config.warmup_max_fraction * updates + 1e-6)
  warmup = min(_warmup_steps(config, updates), most)
  if config.schedule != "constant" and warmup >= updates:
    raise UserError(
      f"warmup_steps={config.warmup_steps}: the run has {updates} updates in "
      "all, so it would end within the warm-up. Lower warmup_steps or "
      "warmup_max_fraction, or train longer."
    )
  return dataclasses.replace(
    config, total_steps=updates, warmup_steps=warmup, warmup_fraction=0.0
  )


def _warmup_steps(config: Config, updates: int | None) -> int:
  """Returns the updates of the warm-up: of two settings the longer.

  Args:
    config: settings.
    updates: of the whole run; None where nobody said.

  Raises:
    UserError: a share of a run of unknown length.
  """
  if not config.warmup_fraction:
    return config.warmup_steps
  if updates is None:
    raise UserError(
      f"optimizer.warmup_fraction={config.warmup_fraction:g} with "
      "total_steps=None: a share of how many updates? Set total_steps, or "
      "warmup_steps."
    )
  share = math.ceil(config.warmup_fraction * updates - 1e-6)
  return max(config.warmup_steps, share)


def schedule(config: Config) -> optax.Schedule:
  """Returns step -> learning rate.

  The first update has step 0, so with warmup_steps > 0 and
  warmup_initial_fraction = 0 it changes nothing. Past total_steps the rate
  stays at its final value.
  """
  peak = config.learning_rate
  final = config.final_fraction
  if final is None and config.schedule in _DEFAULT_FINAL:
    final = _DEFAULT_FINAL[config.schedule]
  if config.schedule != "constant" and config.total_steps is None:
    raise UserError(
      f"optimizer.total_steps=None with schedule={config.schedule!r}: a decay "
      "needs an end. Set total_steps > warmup_steps."
    )
  warmup_steps = _warmup_steps(config, config.total_steps)
  if config.schedule == "constant":
    after = optax.constant_schedule(peak)
  elif config.schedule == "inverse_sqrt":
    first = max(warmup_steps, 1)

    def after(step):
      # Before the warm-up's end, where it is not used, it is asked too.
      return peak * jnp.sqrt(first / (first + jnp.maximum(step, 0)))
  else:
    decay_steps = config.total_steps - warmup_steps
    if config.schedule == "cosine":
      after = optax.cosine_decay_schedule(peak, decay_steps, alpha=final)
    else:
      after = optax.linear_schedule(peak, peak * final, decay_steps)
  if warmup_steps == 0:
    return after
  warmup = optax.linear_schedule(
    peak * config.warmup_initial_fraction, peak, warmup_steps
  )
  return optax.join_schedules([warmup, after], [warmup_steps])


def decay_mask(params: PyTree) -> PyTree:
  """Returns a tree of bool: True where weight decay applies.

  Vectors are spared, and so are norms and biases that scanned layers stack
  into matrices.
  """

  def is_decayed(path: tuple, leaf: jax.Array) -> bool:
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return leaf.ndim > 1 and name not in _NEVER_DECAYED

  return jax.tree_util.tree_map_with_path(is_decayed, params)


def scale_by_adam_tf_style(
  beta1: float, beta2: float, epsilon: float
) -> optax.GradientTransformation:
  """Returns Adam with epsilon before the bias correction (METHODS 4.6)."""

  def init(params: PyTree) -> optax.ScaleByAdamState:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return optax.ScaleByAdamState(
      count=jnp.zeros([], jnp.int32),
      mu=zeros,
      nu=jax.tree.map(jnp.zeros_like, params),
    )

  def update(grads, state, params=None):
    del params
    count = state.count + 1
    mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, grads)
    nu = jax.tree.map(
      lambda v, g: beta2 * v + (1 - beta2) * jnp.square(g), state.nu, grads
    )
    correction = jnp.sqrt(1 - beta2**count) / (1 - beta1**count)
    updates = jax.tree.map(
      lambda m, v: (correction * m / (jnp.sqrt(v) + epsilon)).astype(m.dtype),
      mu,
      nu,
    )
    return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

  return optax.GradientTransformation(init, update)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """Returns the clip of optax by this name, as one factor for all leaves.

  A division by the norm costs so much that the compiler writes out a clipped
  copy of the gradients; a product it forms anew wherever they are read.
  """

  def update(grads, state, params=None):
    del params
    squares = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)]
    norm = jnp.sqrt(sum(squares, jnp.float32(0.0)))
    factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """Returns clip -> Adam -> decoupled weight decay -> -learning rate."""
  adam = scale_by_adam_tf_style if config.adam_tf_style else optax.scale_by_adam
  if config.moments == "8bit":
    adam = moments.scale_by_adam_8bit
  chain = [
    adam(config.beta1, config.beta2, config.epsilon),
    optax.scale_by_learning_rate(schedule(config)),
  ]
  if config.weight_decay > 0:
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    chain.insert(1, decay)
  if config.clip_norm is not None:
    chain.insert(0, clip_by_global_norm(config.clip_norm))
  return with_narrow_weights(optax.chain(*chain))


def with_narrow_weights(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Returns an optimizer that may be given bfloat16 weights (rounding.py).

  Without a bfloat16 leaf it is `inner`, state and all.
  """

  def init(params: PyTree) -> optax.OptState:
    is_narrow = rounding.is_narrow(params)
    return rounding.init(inner, params) if is_narrow else inner.init(params)

  def update(grads, state, params=None):
    if isinstance(state, rounding.State):
      return rounding.update(inner, grads, state, params)
    return inner.update(grads, state, params)

  return optax.GradientTransformation(init, update)


def make_labelled(
  configs: Mapping[str, Config],
) -> optax.GradientTransformation:
  """Returns one optimizer for a dict of trees, each part with its own.

  Clipping, schedule and moments are separate: a large critic gradient does
  not shrink the policy's step.

  Args:
    configs: {"policy": ..., "value": ...}, the top-level keys of the params.

  Raises:
    ValueError: at `init`, when the keys of params and configs differ.
  """

  each = {name: make_optimizer(config) for name, config in configs.items()}
  joint = optax.multi_transform(each, {name: name for name in configs})

  def init(params: Mapping) -> optax.OptState:
    if set(params) != set(configs):
      raise UserError(
        f"params have the parts {sorted(params)}, but optimizers are "
        f"configured for {sorted(configs)}. Give each part its own."
      )
    return joint.init(params)

  return optax.GradientTransformation(init, joint.update)
