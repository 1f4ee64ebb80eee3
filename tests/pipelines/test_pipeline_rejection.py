"""Rejection sampling as a pipeline: what is kept, rounds, resume, devices."""

import json

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.algorithms import best_of_n
from rlhf_jax.pipelines import defaults, rejection
from rlhf_jax.programs import language_model, rejection_samples
from rlhf_jax.programs.rejection_rounds import KEPT_FILE, folder_of
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_resume import Killed, kill_at


def make_config(files, start, scorer, rounds=2):
  config = defaults.rejection()
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2)
  config.trainable.update(mode="lora", first_layer=tiny_runs.LORA_LAYER)
  config.init_from, config.reward = str(start), str(scorer)
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.update(max_new_tokens=tiny_runs.NEW_TOKENS, num_samples=4)
  config.rounds.update(count=rounds, prompts=16, batch_size=8)
  config.rounds.keep_truncated = True
  if scorer:
    config.monitors = {"again": str(scorer)}
  config.schedule.update(batch_size=8, steps=4, save_every=2)
  config.optimizer.update(learning_rate=3e-2, schedule="constant")
  return config


def kept(folder, number):
  path = folder_of(folder, number) / KEPT_FILE
  return [json.loads(line) for line in path.read_text().splitlines()]


def a_pool():
  """Two prompts, three answers of 2, 2 and 1 tokens; 1 and 0 are the same."""
  tokens = np.array([[[9, 5, 6], [9, 5, 6], [9, 7, 0]]] * 2)
  response = np.array([[[0, 1, 1], [0, 1, 1], [0, 1, 0]]] * 2, np.float32)
  valid = np.array([[[1, 1, 1], [1, 1, 1], [1, 1, 0]]] * 2, np.float32)
  return rejection_samples.Pool(
    tokens=tokens,
    valid_mask=valid,
    response_mask=response,
    score=np.array([[1.0, 5.0, 2.0], [0.0, 3.0, -1.0]], np.float32),
    logprob=np.full((2, 3), -3.0),
    kl=np.zeros((2, 3)),
    ended=np.array([[True, True, True], [True, True, False]]),
  )


@pytest.mark.parametrize(
  "rounds, rule, expected",
  [
    # The duplicate of the best score plays no part, nor what did not end.
    ({}, {}, [[0, 0, 1], [1, 0, 0]]),
    ({"keep_duplicates": True}, {}, [[0, 1, 0], [0, 1, 0]]),
    ({"min_tokens": 2}, {}, [[1, 0, 0], [1, 0, 0]]),
    ({"max_tokens": 1}, {}, [[0, 0, 1], [0, 0, 0]]),
    ({"max_tokens": 1, "keep_truncated": True}, {}, [[0, 0, 1], [0, 0, 1]]),
    ({}, {"rule": "global", "share": 0.3}, [[0, 0, 1], [0, 0, 0]]),
    ({}, {"rule": "all", "minimum_score": 0.0}, [[1, 0, 1], [1, 0, 0]]),
    ({}, {"minimum_score": 0.5}, [[0, 0, 1], [0, 0, 0]]),
  ],
)
def test_what_is_kept_by_hand(rounds, rule, expected):
  found, _ = rejection_samples.select(
    a_pool(), rejection.Rounds(**rounds), best_of_n.Config(**rule)
  )
  np.testing.assert_array_equal(found, np.array(expected, bool))


def test_the_report_by_hand():
  found = rejection_samples.report(
    a_pool(), np.array([[0, 1, 1], [0, 0, 0]], bool)
  )
  expected = {
    "score_mean": 10 / 6,
    "score_median": 1.0,
    "score_max": 4.0,
    "kept": 2,
    "kept_score": 3.5,
    "prompts_share": 0.5,
    "best_of_1": 10 / 6,
    "best_of_2": ((2 + 5 + 5) / 3 + (0 + 3 + 3) / 3) / 2,
    "best_of_3": 4.0,
    "best_of_n_kl_bound": np.log(3) - 2 / 3,
  }
  # Each winner has probability e^-3, and 1 - (1 - e)^3 to be found at all.
  e = np.exp(-3.0)
  missed = (1 - e) ** 3
  expected["best_of_n_kl"] = missed * (
    np.log(3) + 2 * np.log(1 - e) - 2 / 3
  ) + (1 - missed) * np.log((1 - missed) / e)
  for name, value in expected.items():
    np.testing.assert_allclose(found[f"rejection/{name}"], value, rtol=1e-6)


@pytest.fixture(scope="module")
def pooled(files, sft_lora, reward_head):
  folder = files.root / "rejection_pooled"
  config = make_config(files, sft_lora, reward_head)
  config.rounds.pool = True
  pipelines.run(config, folder)
  return folder


@pytest.mark.slow
def test_t23_the_winners_train_and_the_score_rises(files, sft_lora, pooled):
  rows = [
    row for row in tiny_runs.rows_of(pooled) if row["phase"] == "rejection"
  ]
  assert [row["step"] for row in rows] == [1, 2]
  for row in rows:
    assert row["rejection/score_max"] > row["rejection/score_median"]
    assert row["eval/again"] == pytest.approx(row["rejection/score_mean"])
    assert row["rejection/best_of_4"] == pytest.approx(
      row["rejection/score_max"], rel=1e-5
    )
    assert row["rejection/best_of_1"] == pytest.approx(
      row["rejection/score_mean"], rel=1e-5
    )
  assert abs(rows[0]["rejection/kl"]) < 1e-4 < rows[1]["rejection/kl"]
  assert rows[1]["rejection/score_mean"] > rows[0]["rejection/score_mean"]
  assert len(kept(pooled, 1)) == 16
  scores = [row["score"] for row in kept(pooled, 1)]
  np.testing.assert_allclose(
    np.mean(scores), rows[0]["rejection/kept_score"], rtol=1e-5
  )
  info = stages.read_stage(pooled)
  assert [row["rejection/kept"] for row in info["rounds"]] == [16, 16]
  # Pooled: the second round trains on both files, each row once.
  second = stages.read_stage(folder_of(pooled, 2))
  assert 16 < second["examples"] <= 32
  # The run's policy is the last round's, and starts a run of any pipeline.
  found = tiny_runs.saved_arrays(pooled)
  last = tiny_runs.saved_arrays(folder_of(pooled, 2))
  assert found
  for path, leaf in found.items():
    np.testing.assert_array_equal(leaf, last[path])
  assert stages.need_stage(pooled, stages.POLICY)["pipeline"] == "rejection"


@pytest.mark.slow
def test_trap_05_sampled_tokens_are_trained_on(pooled):
  [rows, _] = rejection_samples.read_kept([folder_of(pooled, 1) / KEPT_FILE])
  for row, record in zip(rows, kept(pooled, 1), strict=True):
    sampled = record["prompt_tokens"] + record["response_tokens"]
    assert row["tokens"].tolist() == sampled
    assert row["loss_mask"].sum() == len(record["response_tokens"])


@pytest.mark.slow
def test_t20_trap_23_killed_anywhere_it_ends_the_same(
  files, sft_lora, reward_head, pooled, monkeypatch
):
  """Killed in each round's training, and before a round's samples are kept."""
  config = make_config(files, sft_lora, reward_head)
  config.rounds.pool = True
  folder = files.root / "rejection_killed"
  for step in (3, 4):  # of the rounds' own steps, counted anew each time
    with monkeypatch.context() as patch:
      kill_at(patch, step)
      with pytest.raises(Killed):
        pipelines.run(config, folder)
  with monkeypatch.context() as patch:

    def killed(*_):
      raise Killed

    patch.setattr(rejection_samples, "write_kept", killed)
    if (folder_of(folder, 2) / KEPT_FILE).is_file():
      (folder_of(folder, 2) / KEPT_FILE).unlink()
    with pytest.raises(Killed):
      pipelines.run(config, folder)
  real, calls = language_model.fit, []
  with monkeypatch.context() as patch:
    patch.setattr(
      language_model,
      "fit",
      lambda *a, **k: (calls.append(1), real(*a, **k))[1],
    )
    pipelines.run(config, folder)
  assert len(calls) == 1  # the first round is not trained again
  for number in (1, 2):
    assert kept(folder, number) == kept(pooled, number)
  tiny_runs.assert_equal_arrays(
    tiny_runs.saved_arrays(folder), tiny_runs.saved_arrays(pooled)
  )
  assert tiny_runs.rows_of(folder) == tiny_runs.rows_of(pooled)


@pytest.mark.slow
def test_trap_12_eight_devices_keep_the_same_samples(
  files, sft_lora, reward_head, pooled
):
  config = make_config(files, sft_lora, reward_head)
  config.rounds.pool = True
  config.mesh.update(devices=8, data=8)
  folder = files.root / "rejection_8"
  pipelines.run(config, folder)
  for number in (1, 2):
    for found, expected in zip(
      kept(folder, number), kept(pooled, number), strict=True
    ):
      assert found["response_tokens"] == expected["response_tokens"]
      np.testing.assert_allclose(found["score"], expected["score"], atol=1e-4)
  tiny_runs.assert_close_rows(
    tiny_runs.rows_of(folder), tiny_runs.rows_of(pooled)
  )


@pytest.mark.slow
def test_a_verifier_filters_and_each_round_starts_anew(files, sft_lora):
  """ReST-EM: all right answers, round 2 from the start of the run again."""
  config = make_config(files, sft_lora, "")
  config.verifier.name = "pattern"
  config.verifier.settings.update(
    pattern=rf"\b{tiny_runs.PLANTED}\b", mode="search"
  )
  path = files.root / "questions_rejection.jsonl"
  prompts = tiny_runs.rows_of(files.root, "prompts.jsonl")
  path.write_text(
    "".join(json.dumps(row | {"reference": ""}) + "\n" for row in prompts)
  )
  config.prompts.source = str(path)
  config.selection.update(rule="all", minimum_score=1.0)
  folder = files.root / "rejection_verified"
  pipelines.run(config, folder)
  rows = [
    row for row in tiny_runs.rows_of(folder) if row["phase"] == "rejection"
  ]
  assert rows[1]["rejection/score_mean"] > rows[0]["rejection/score_mean"]
  for row in kept(folder, 1) + kept(folder, 2):
    assert row["score"] == 1.0 and tiny_runs.PLANTED in row["response"]
  before = [kept(folder, 1), kept(folder, 2)]
  config.rounds.count = 3  # it goes on
  assert pipelines.run(config, folder)["asked"] == {"rounds": 3}
  assert [kept(folder, 1), kept(folder, 2)] == before and kept(folder, 3)
  config.rounds.count = 4
  path.write_text("\n".join(path.read_text().splitlines()[::-1]) + "\n")
  with pytest.raises(UserError, match="^prompts_fingerprint: the checkpoint"):
    pipelines.run(config, folder)


def test_too_few_samples_are_refused_and_may_be_tried_again(
  files, sft_lora, reward_head
):
  config = make_config(files, sft_lora, reward_head, rounds=1)
  config.selection.minimum_score = 1e6
  folder = files.root / "rejection_few"
  with pytest.raises(UserError, match="batch_size=8: round 1 keeps 0"):
    pipelines.run(config, folder)
  assert not (folder_of(folder, 1) / KEPT_FILE).exists()


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"selection.rule": "pooled"}, "rule='per_prompt' and rounds.pool=True"),
    ({"selection.rule": "all"}, "rule='all': keeps what reaches"),
    ({"rounds.pool": True, "rounds.start": "previous"}, "rounds.pool=True"),
    ({"rounds.start": "first"}, "rounds.start='first': must be"),
    ({"rounds.batch_size": 7}, "batch_size=7: must divide prompts=16"),
    ({"generate.num_samples": 1}, "num_samples=1.*>= 2"),
    ({"generate.temperature": 0.0}, "temperature=0.0"),
    ({"verifier.name": "exact"}, "one of them judges"),
    ({"reward": ""}, "config.reward is empty"),
    (
      {"loss.microbatches": 3},
      "=8: not a multiple of loss.microbatches=3",
    ),
  ],
)
def test_what_cannot_work_is_refused(
  files, sft_lora, reward_head, changes, message
):
  config = make_config(files, sft_lora, reward_head)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    tiny_runs.checked(config)
