"""Metrics files survive kills."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import metrics


class Clock:
  """Seconds that move when told."""

  def __init__(self) -> None:
    self.now = 100.0

  def __call__(self) -> float:
    return self.now


def test_rows_have_step_phase_time_and_numbers(tmp_path):
  with metrics.MetricsWriter(tmp_path, False, clock=lambda: 12.5) as writer:
    writer.write(3, {"ppo/kl": jnp.float32(0.5), "ppo/n": np.int64(7)}, "ppo")
    writer.write(4, {"loss": 0.0, "half": jnp.bfloat16(1.5), "flag": True})
  assert metrics.read_metrics(writer.metrics_path) == [
    {"step": 3, "phase": "ppo", "time": 12.5, "ppo/kl": 0.5, "ppo/n": 7},
    {"step": 4, "phase": "", "time": 12.5, "loss": 0, "half": 1.5, "flag": 1},
  ]


def test_not_finite_becomes_null_and_a_warning(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, writes_tensorboard=False)
  with pytest.warns(UserWarning, match="step 1 of ppo: ppo/kl, ppo/ratio not"):
    numbers = {"ppo/kl": math.nan, "ppo/loss": 1.0, "ppo/ratio": -math.inf}
    writer.write(1, numbers, "ppo")
  text = writer.metrics_path.read_text()
  assert "NaN" not in text and "Infinity" not in text
  row = json.loads(text)
  assert row["ppo/kl"] is None and row["ppo/ratio"] is None
  assert row["ppo/loss"] == 1.0


def test_refuses_arrays_and_reserved_names(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, writes_tensorboard=False)
  with pytest.raises(ValueError, match=r"'loss' has shape \(2,\)"):
    writer.write(1, {"loss": np.zeros(2)})
  with pytest.raises(ValueError, match="'loss' has shape"):
    writer.write(1, {"loss": "high"})
  with pytest.raises(ValueError, match="'time'"):
    writer.write(1, {"time": 1.0})
  assert not writer.metrics_path.exists()


def test_trap_23_resumed_run_has_each_step_once(tmp_path):
  with metrics.MetricsWriter(tmp_path, writes_tensorboard=False) as writer:
    for step in range(1, 7):
      writer.write(step, {"loss": step}, "sft")
    for step in range(1, 6):
      writer.write(step, {"loss": -step}, "ppo")
      writer.write_samples(step, [{"text": "a"}, {"text": "b"}], "ppo")
  with writer.metrics_path.open("a") as file:
    file.write('{"step": 6, "pha')  # killed in mid-write
  with metrics.MetricsWriter(tmp_path, writes_tensorboard=False) as writer:
    writer.truncate_after(3, "ppo")
    for step in (4, 5):
      writer.write(step, {"loss": -step}, "ppo")
      writer.write_samples(step, [{"text": "a"}, {"text": "b"}], "ppo")
  rows = metrics.read_metrics(writer.metrics_path)
  assert [r["step"] for r in rows if r["phase"] == "sft"] == [*range(1, 7)]
  assert [r["step"] for r in rows if r["phase"] == "ppo"] == [*range(1, 6)]
  samples = metrics.read_metrics(writer.samples_path)
  assert [s["step"] for s in samples] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "metrics.jsonl",
    "samples.jsonl",
  ]


def test_torn_line_is_cut_before_appending(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "phase": ""}\n{"ste')
  assert metrics.read_metrics(tmp_path / "metrics.jsonl") == [
    {"step": 1, "phase": ""}
  ]
  writer = metrics.MetricsWriter(tmp_path, writes_tensorboard=False)
  writer.write(2, {})
  rows = metrics.read_metrics(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in rows] == [1, 2]
  (tmp_path / "bad.jsonl").write_text('{"a": 1}\noops\n{"a": 2}\n')
  with pytest.raises(ValueError, match="bad.jsonl:2: not JSON: 'oops'"):
    metrics.read_metrics(tmp_path / "bad.jsonl")


def test_samples_are_json_whatever_their_cells(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, writes_tensorboard=False)
  sample = {
    "prompt": "é\n\u2028",
    "score": np.float32(math.nan),
    "tokens": np.arange(3),
  }
  writer.write_samples(2, [sample], "ppo")
  (row,) = metrics.read_metrics(writer.samples_path)
  assert row["prompt"] == "é\n\u2028"
  assert row["score"] is None and row["tokens"] == [0, 1, 2]


def test_tensorboard_has_a_folder_and_a_tag_a_phase(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(1, {"loss": 0.5}, "sft")
    writer.truncate_after(4, "ppo")
    with pytest.warns(UserWarning):
      writer.write(5, {"kl": 2.5, "bad": math.nan}, "ppo")
    writer.write_text(5, "sample", "| a |", "ppo")
  folders = sorted(p.name for p in (tmp_path / "tensorboard").iterdir())
  assert folders == ["ppo", "sft"]
  (events,) = (tmp_path / "tensorboard" / "ppo").iterdir()
  content = events.read_bytes()
  assert b"ppo/kl" in content and b"ppo/bad" not in content
  assert b"ppo/sample" in content


def test_disabled_writes_nothing(tmp_path):
  with metrics.MetricsWriter(tmp_path / "x", is_enabled=False) as writer:
    writer.truncate_after(1)
    writer.write(2, {"loss": 1.0})
    writer.write_samples(2, [{"text": "a"}])
    writer.write_text(2, "a", "b")
  assert not (tmp_path / "x").exists()


def test_timer_accumulates_even_through_errors():
  clock = Clock()
  timer = metrics.Timer(clock)
  for seconds in (1.0, 2.5):
    with timer("rollout"):
      clock.now += seconds
  with pytest.raises(RuntimeError), timer("update"):
    clock.now += 4.0
    raise RuntimeError
  assert timer.pop() == {
    "time/rollout_seconds": 3.5,
    "time/update_seconds": 4.0,
  }
  assert timer.pop() == {}
