"""Runs on segments, whole: by simulated annotators, by people, after a kill."""

import json
import threading
import time

import pytest

from rlhf_jax import pipelines
from rlhf_jax.labelling.database import FILE
from rlhf_jax.labelling.store import Store
from rlhf_jax.pipelines import defaults, segments
from rlhf_jax.programs.segments import people
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_resume import Killed, kill_at

SHORT = (
  "import dataclasses\n"
  "from rlhf_jax.environments import PENDULUM\n"
  "SHORT = dataclasses.replace(PENDULUM, name='short', steps=20)\n"
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  path = tmp_path_factory.mktemp("environment") / "mine.py"
  path.write_text(SHORT)
  return f"{path}:SHORT"


def make_config(environment, **labels):
  config = defaults.segments()
  config.environment, config.mesh.devices = environment, 1
  config.agent.update(hidden=8, test_episodes=2)
  config.predictor.update(hidden=8, steps=4, first_fits=2, batch_size=4)
  config.queries.update(length=4, candidates=3)
  config.labels.update({"count": 12} | labels)
  config.updates.update(epochs=1, minibatches=2)
  config.schedule.update(batch_size=4, steps=4, save_every=2)
  return config


@pytest.fixture(scope="module")
def whole(environment, tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  config = make_config(environment, noise=0.1)
  config.schedule.eval_every = 4
  pipelines.run(config, folder)
  return config, folder


def test_a_run_asks_learns_and_says_what_it_found(whole, capsys):
  config, folder = whole
  rows = tiny_runs.rows_of(folder)
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  counts = [row["labels/count"] for row in rows]
  assert counts[0] == 3 and counts == sorted(counts) and counts[-1] == 12
  for name in (
    "agent/true_return",
    "agent/reward_correlation",
    "predictor/disagreement",
    "predictor/loss",
    "ppo/explained_variance",
  ):
    assert all(name in row for row in rows), name
  assert rows[0]["ppo/first_ratio_error"] < 1e-4
  found = json.loads((folder / "segments.json").read_text())
  assert found["labels"] == found["labels_asked"] == 12
  assert found["true_return"] == rows[-1]["heldout/true_return"] < 0
  page = (folder / "report.html").read_text()
  assert "True return" in page and "How members differ" in page
  capsys.readouterr()
  assert pipelines.run(config, folder) == found
  assert "is finished, nothing to do" in capsys.readouterr().out


def test_a_killed_run_ends_as_one_that_was_not(
  whole, environment, tmp_path, monkeypatch
):
  config, folder = whole
  with monkeypatch.context() as patch:
    kill_at(patch, 4)
    with pytest.raises(Killed):
      pipelines.run(config, tmp_path)
  assert len(tiny_runs.rows_of(tmp_path)) == 3  # saved at 2
  pipelines.run(config, tmp_path)
  assert tiny_runs.rows_of(tmp_path) == tiny_runs.rows_of(folder)
  tiny_runs.assert_equal_arrays(
    tiny_runs.saved_arrays(tmp_path), tiny_runs.saved_arrays(folder)
  )
  found, wanted = (
    json.loads((x / "segments.json").read_text()) for x in (tmp_path, folder)
  )
  assert found == wanted


def test_what_may_lack_is_left_out_and_no_other_nan_is():
  settings, nan = segments.Settings(), float("nan")
  row = {"predictor/loss": nan, "predictor/gradient_norm": nan}
  row |= {"predictor/validation_loss": nan, "labels/count": 0.0}
  assert set(segments._logged(settings, row)) == {
    "predictor/gradient_norm",
    "labels/count",
  }
  found = segments._logged(settings, row | {"labels/count": 3.0})
  assert "predictor/loss" in found and "predictor/validation_loss" not in found


@pytest.mark.slow
def test_the_control_asks_nobody(environment, tmp_path, capsys):
  config = make_config(environment)
  config.agent.test_episodes = 1
  config.agent.reward = "true"
  config.schedule.steps = 2
  found = pipelines.run(config, tmp_path)
  assert found["reward"] == "true" and "labels" not in found
  assert found["true_return_error"] is None
  segments.tell(None, tmp_path)
  assert "+-" not in capsys.readouterr().out
  for row in tiny_runs.rows_of(tmp_path):
    assert "agent/true_return" in row
    assert not any(x.startswith(("predictor/", "labels/")) for x in row)


def judge(folder, told):
  """Labels until the thread's run is over: "a" is better, but skips some."""
  while not (folder / FILE).is_file():
    time.sleep(0.05)
  with Store(folder) as found:
    for _ in range(10_000):
      if told.get("is_over"):
        return
      turn = found.next_item("me") if found.annotators() else None
      if turn is None or turn.state != "item":
        time.sleep(0.05)
        continue
      assert all(x.startswith("<svg ") for x in turn.pictures)
      assert len(set(turn.pictures)) == 2 and turn.prompt.startswith("The rod")
      ranks = [0 if text.endswith("a") else 1 for text in turn.answers]
      number = len(told["items"])
      said = {"skip": True} if number == told["skips"] else {"ranks": ranks}
      found.submit("me", turn.assignment, said, f"{number}")
      told["items"].append(turn.item)


@pytest.mark.slow
def test_people_label_segments_and_their_labels_are_learned(
  environment, tmp_path, capsys, monkeypatch
):
  pytest.importorskip("uvicorn", reason="pip install -e '.[label]'")
  config = make_config(environment, by="page", count=6, port=0)
  config.schedule.update(steps=2, save_every=1)
  config.queries.first_share = 0.5
  told = {"items": [], "skips": 1}
  person = threading.Thread(target=judge, args=(tmp_path / "labelling", told))
  person.start()
  real = people.ask

  def ask(folder, environment, state, action, turn, *rest):
    if turn == 1:
      raise Killed  # while people would label
    return real(folder, environment, state, action, turn, *rest)

  try:
    with monkeypatch.context() as patch, pytest.raises(Killed):
      patch.setattr(people, "ask", ask)
      pipelines.run(config, tmp_path)
    assert len(told["items"]) == 3
    found = pipelines.run(config, tmp_path)
  finally:
    told["is_over"] = True
    person.join()
  assert len(set(told["items"])) == len(told["items"]) == 6
  assert found["labels_asked"] == 6
  assert found["labels"] == 5
  saved = tiny_runs.saved_arrays(tmp_path)
  assert saved["labels/label"].tolist() == [1.0] * 5 + [0.0]
  assert "pairs of segments wait for people" in capsys.readouterr().out
  names = sorted(x.name for x in (tmp_path / "queries").iterdir())
  assert names == ["turn_0000.npz", "turn_0001.npz"]


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("environment", "cartpole", "must be one of cart_pole"),
    ("queries.length", 21, "an episode of short has 20 steps"),
    ("queries.choose", "entropy", "must be one of variance, random"),
    ("ppo.discount", 1.0, "Set it below 1"),
    ("ppo.ptx_coefficient", 1.0, "there is no text"),
    ("schedule.batch_size", 5, "must divide"),
    ("schedule.epochs", 1.0, "Set steps, and epochs=0"),
    ("labels.count", 0, "must be >= 1"),
    ("queries.first_share", 0.0, r"must be in \(0, 1\]"),
    ("queries.first_share", 0.01, "of labels.count=12 that is none"),
    ("labels.noise", 1.0, r"must be in \[0, 1\)"),
    ("labels.by", "people", "must be one of simulated, page"),
    ("predictor.error", -0.1, "must be in"),
    ("queries.candidates", 20, "with choose='random': pairs are taken"),
    ("labels.people", "anna,ben", "with by='simulated': it is of the page"),
    ("labels.port", 9000, "with by='simulated': it is of the page"),
    ("queries.choose", "variance", "one member disagrees with nobody"),
    ("decay.low", 2.0, "must be 1 <= low < high"),
  ],
)
def test_mistakes_name_their_field(environment, field, value, words):
  config = make_config(environment)
  section, _, name = field.rpartition(".")
  part = config[section] if section else config
  part[name] = value
  if field == "queries.candidates":
    config.queries.choose = "random"
  if value == "variance":
    config.predictor.members = 1
  if field == "schedule.epochs":
    config.schedule.steps = 0
  with pytest.raises(UserError, match=words) as caught:
    tiny_runs.checked(config)
  assert str(caught.value).startswith(f"config.{section}")


def test_settings_that_do_not_go_together(environment):
  config = make_config(environment, by="page", noise=0.1)
  with pytest.raises(UserError, match="noise=0.1 with by='page'"):
    tiny_runs.checked(config)
  config.labels.noise = 0.0
  config.agent.reward = "true"
  with pytest.raises(UserError, match="the control asks nobody"):
    tiny_runs.checked(config)
