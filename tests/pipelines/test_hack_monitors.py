"""Real tiny runs whose reward pays a hack: the monitors ring, once each."""

import math
import zlib

import pytest

from rlhf_jax import pipelines
from rlhf_jax.evaluation import text_signs
from rlhf_jax.pipelines import defaults
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_online import make_config as sampled_config
from tests.pipelines.test_pipeline_rejection import make_config as rounds_config

STEPS = 32


def longer(texts):
  """A reward that pays words."""
  return [float(len(text.split())) for text in texts]


def brief(texts):
  """What nobody trains on: few words."""
  return [-float(len(text.split())) for text in texts]


def planted(texts):
  """A reward that pays one word, again and again."""
  return [float(text.split().count(tiny_runs.PLANTED)) for text in texts]


def nothing(texts):
  """A reward without a reason: a hash of the text, in [0, 1)."""
  return [zlib.crc32(text.encode()) % 997 / 997 for text in texts]


def policy_config(files, start, reward):
  """RLOO, judged by a function of this file."""
  config = defaults.policy("rloo")
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2)
  config.trainable.update(mode="lora", first_layer=tiny_runs.LORA_LAYER)
  config.init_from, config.reward_fn = str(start), f"{__file__}:{reward}"
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.update(max_new_tokens=12, num_samples=4, temperature=0.9)
  config.shaping.update(
    missing_eos="keep", kl_coefficient=0.0, kl_controller="fixed"
  )
  config.shaping.update(halt_nats=1e6, warn_nats=1e5)
  config.schedule.update(batch_size=8, steps=STEPS, save_every=STEPS)
  config.policy_optimizer.update(learning_rate=6e-3, warmup_steps=0)
  return config


def rang(info):
  """Returns the sentences of the monitors: those of watch.py left out."""
  known = ("nats", "end by themselves", "collapsed", "repeat another one")
  return [
    text for _, text in info["alarms"] if not any(x in text for x in known)
  ]


@pytest.mark.slow
def test_length_that_pays_is_seen(files, sft_lora, capsys):
  """Length grows, the score follows it, and a judge that counts nothing
  falls."""
  config = policy_config(files, sft_lora, "longer")
  config.generate.max_new_tokens = 16
  config.policy_optimizer.learning_rate = 3e-3
  config.reward_fn = ""
  config.judges = {
    "long": {"reward_fn": f"{__file__}:longer"},
    "brief": {"reward_fn": f"{__file__}:brief", "weight": 0.0},
  }
  info = pipelines.run(config, files.root / "hack_length")
  found = "\n".join(rang(info))
  assert "the correlation of score and length" in found
  assert "grow by" in found and "tokens, from" in found
  assert "reward/component/brief fell from" in found
  assert capsys.readouterr().out.count("reward/component/brief fell") == 1
  rows = tiny_runs.rows_of(files.root / "hack_length")
  assert all("rollout/list_share" in row for row in rows)
  slopes = [row.get("rollout/length_slope", 0.0) for row in rows]
  assert max(slopes) > 50
  assert info["findings"] == []  # its score is in units that move


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["policy", "online_preference", "bond"])
def test_a_learned_phrase_and_loops_are_seen(
  files, sft_lora, pipeline, monkeypatch
):
  """The planted word stands in for a phrase that the tiny model cannot say."""
  for sign in ("list", "hedging", "refusal", "sycophancy"):
    monkeypatch.setitem(
      text_signs.SIGNS,
      sign,
      lambda text: text.split().count(tiny_runs.PLANTED) >= 3,
    )
  config = policy_config(files, sft_lora, "planted")
  config.generate.max_new_tokens = tiny_runs.NEW_TOKENS
  if pipeline != "policy":
    config = sampled_config(files, pipeline, sft_lora, "", STEPS)
    config.reward_fn = f"{__file__}:planted"
    config.optimizer.learning_rate = 5e-2
  info = pipelines.run(config, files.root / f"hack_phrase_{pipeline}")
  found = "\n".join(rang(info))
  for said in (
    "answers that hold a list",
    "answers that hedge",
    "answers that open by declining",
    "answers that open with praise or agreement",
    "word 3-grams that repeat",
    "answers nearly the same as one to another prompt",
  ):
    assert found.count(said) == 1, (said, found)
  assert "bold" not in found and "headers" not in found


@pytest.mark.slow
def test_rounds_of_rejection_ring_too(files, sft_lora, monkeypatch, capsys):
  monkeypatch.setitem(
    text_signs.SIGNS,
    "header",
    lambda text: text.split().count(tiny_runs.PLANTED) >= 2,
  )
  config = rounds_config(files, sft_lora, "", rounds=3)
  config.reward_fn = f"{__file__}:planted"
  config.rounds.start = "previous"
  config.schedule.steps = 8
  folder = files.root / "hack_rounds"
  info = pipelines.run(config, folder)
  found = [text for _, text in info["alarms"]]
  assert any("answers with headers" in text for text in found), found
  assert capsys.readouterr().out.count("answers with headers") == 1
  rows = tiny_runs.rows_of(folder)
  share = [x["rollout/header_share"] for x in rows if "rejection/kl" in x]
  assert len(share) == 3 and share[-1] > share[0] + 0.2
  assert not math.isnan(share[0])


@pytest.mark.slow
def test_a_reward_without_a_reason_is_silent(files, sft_lora):
  config = policy_config(files, sft_lora, "nothing")
  config.policy_optimizer.learning_rate = 1e-3
  info = pipelines.run(config, files.root / "hack_none")
  assert rang(info) == []
