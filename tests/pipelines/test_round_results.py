"""The best step of all rounds, and what a run tells of each."""

import json

import jax.numpy as jnp
import pytest

from rlhf_jax import metrics
from rlhf_jax.exports import opened
from rlhf_jax.programs import round_results
from rlhf_jax.runs import checkpoint, loop, stages


def a_round(workdir, number, scores, best="max"):
  """Writes a round whose saved steps 1, 2, ... have these scores."""
  folder = workdir / f"round_{number}"
  with checkpoint.Checkpoints(
    str(folder / "checkpoints"), keep=1, best=best
  ) as saved:
    for step, score in enumerate(scores, 1):
      state = {"x": jnp.zeros(2) + step}
      is_final = step == len(scores)
      saved.save(step, state, {}, is_final=is_final, score=score)
  with metrics.MetricsWriter(folder, writes_tensorboard=False) as writer:
    for step, score in enumerate(scores, 1):
      row = {"sft/loss": 1.0, "heldout/score": score}
      writer.write(step, {k: v for k, v in row.items() if v is not None}, "r")
  return folder


def schedule(metric="heldout/score", **changes):
  return loop.Schedule(keep_best=metric, eval_every=1, **changes)


@pytest.mark.parametrize(
  "best, scores, expected",
  [
    ("", ([0.0, 3.0, 1.0], [2.0, 1.0]), "round_1@best"),
    ("min", ([0.5, 3.0, 1.0], [2.0, 0.0]), "round_2@best"),
    ("", ([3.0], [3.0]), "round_2@best"),  # of equals the newest
    ("", ([None, None], [None]), None),
  ],
)
def test_the_best_step_may_be_in_an_earlier_round(
  tmp_path, best, scores, expected
):
  plan = schedule(best=best)
  folders = [
    a_round(tmp_path, n, found, plan.best_of)
    for n, found in enumerate(scores, 1)
  ]
  found = round_results.best_at(folders, plan)
  assert found == ({} if expected is None else {"best_at": expected})


def test_metrics_of_training_do_not_compare_rounds(tmp_path):
  folders = [a_round(tmp_path, 1, [1.0])]
  plan = loop.Schedule(keep_best="sft/loss")
  assert round_results.best_at(folders, plan) == {}


def test_a_run_names_the_round_with_its_best_step(tmp_path):
  """FOLDER@best leads there; its other steps are its own."""
  info = {
    "pipeline": "rejection",
    "model_source": "m",
    "model_fingerprint": "m",
    "tokenizer_fingerprint": "t",
    "best_at": "round_2@best",
    "role": {
      "trainable": "lora",
      "first_layer": 0,
      "stop_layer": None,
      "lora_rank": 1,
      "lora_scale": 1.0,
      "head": None,
    },
  }
  (tmp_path / "stage.json").write_text(json.dumps(info))
  inside = tmp_path / "round_2"
  assert stages.place(f"{tmp_path}@best") == (inside, "best")
  assert stages.place(f"{tmp_path}@3") == (tmp_path, "3")
  assert stages.place(tmp_path) == (tmp_path, "")
  record = {"config": {"model": {"chat_template": "mine"}}}
  (tmp_path / "config.json").write_text(json.dumps(record))
  inside.mkdir()
  assert opened.recorded(inside) == record["config"]  # of the run's own record


def test_held_out_numbers_of_a_round_are_told_once(tmp_path):
  folder = a_round(tmp_path, 1, [0.0, 3.0])
  with metrics.MetricsWriter(tmp_path, writes_tensorboard=False) as writer:
    writer.write(1, {"rejection/kept": 4}, "rejection")
    for _ in range(2):
      round_results.tell(writer, 1, folder, "rejection")
    round_results.tell(writer, 2, tmp_path / "round_2", "rejection")  # nothing
  rows = metrics.read_metrics(tmp_path / "metrics.jsonl")
  assert [row.get("heldout/score") for row in rows] == [None, 3.0]
  assert "sft/loss" not in rows[1]
  assert round_results._reports(tmp_path, "rejection") == [
    {"rejection/kept": 4, "heldout/score": 3.0}
  ]
