"""Preference losses against TRL 0.24.0, on frozen random answers.

tests/oracles/make_preference_goldens.py says what was called and how. TRL
leaves the likelihood terms of CPO and ORPO elsewhere: weight 0 here, or taken
off.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.preference import (
  cpo,
  dpo,
  ipo,
  kto,
  orpo,
  pairs,
  simpo,
)
from rlhf_jax.types import PreferenceBatch

ORACLES = Path(__file__).parent.parent / "oracles"
STORED = dict(np.load(ORACLES / "preference_losses.npz"))
BETA, EPSILON = float(STORED["beta"]), float(STORED["label_smoothing"])
GAMMA = float(STORED["gamma"])
CASES = {
  "dpo": (dpo, dpo.Config(beta=BETA)),
  "cdpo": (dpo, dpo.Config(beta=BETA, label_smoothing=EPSILON)),
  "robust": (dpo, dpo.Config(beta=BETA, label_smoothing=EPSILON, robust=True)),
  "hinge": (dpo, dpo.Config(beta=BETA, link="hinge")),
  "ipo_average": (ipo, ipo.Config(tau=BETA, length_normalised=True)),
  "cpo": (cpo, cpo.Config(beta=BETA, nll_weight=0.0)),
  "simpo": (simpo, simpo.Config(beta=BETA, margin_ratio=GAMMA / BETA)),
}


def stored_batch():
  mask = STORED["loss_mask"]
  return jnp.asarray(STORED["logprobs"]), PreferenceBatch(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    valid_mask=jnp.ones(mask.shape),
    loss_mask=jnp.asarray(mask),
    label=jnp.ones(len(mask)),
    weight=jnp.ones(len(mask)),
    reference_logprobs=jnp.asarray(STORED["reference_logprobs"]),
  )


@pytest.mark.parametrize("name", CASES)
def test_as_trl(name):
  module, config = CASES[name]
  found, _ = module.loss(*stored_batch(), config)
  np.testing.assert_allclose(found, STORED[name], rtol=2e-5, atol=2e-6)


def test_orpo_as_trl():
  logprobs, batch = stored_batch()
  found, _ = orpo.loss(logprobs, batch, orpo.Config(odds_weight=BETA))
  nll = -pairs.averages(logprobs, batch)[:, 0]
  np.testing.assert_allclose(
    found - nll, STORED["odds_ratio"], rtol=2e-5, atol=2e-6
  )


def test_kto_as_trl():
  """Rows 0 to 2 are desirable; candidate 1 is the mismatched answer."""
  logprobs, batch = stored_batch()
  other = batch.replace(
    **{
      name: getattr(batch, name)[:, 1:]
      for name in ("tokens", "valid_mask", "loss_mask", "reference_logprobs")
    }
  )
  z = jnp.mean(kto.baseline(logprobs[:, 1:], other))
  judged = batch.replace(
    **{
      name: getattr(batch, name)[:, :1]
      for name in ("tokens", "valid_mask", "loss_mask", "reference_logprobs")
    },
    label=jnp.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]),
    baseline=jnp.full(6, z),
  )
  desirable, undesirable = (float(x) for x in STORED["weights"])
  config = kto.Config(
    beta=BETA, desirable_weight=desirable, undesirable_weight=undesirable
  )
  found, _ = kto.loss(logprobs[:, :1], judged, config)
  np.testing.assert_allclose(found, STORED["kto"], rtol=2e-5, atol=2e-6)
