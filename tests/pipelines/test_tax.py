"""What a policy forgets while it trains: limits, runs, no disturbance."""

import functools
import json
import math
import types

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.evaluation.tasks import outcomes
from rlhf_jax.evaluation.tasks.items import Item, Outcome, Task
from rlhf_jax.evaluation.tasks.outcomes import Change
from rlhf_jax.programs import task_suites, tax
from rlhf_jax.schema import FieldError, UserError
from tests.pipelines import test_pipeline_rejection, tiny_runs
from tests.pipelines.test_pipeline_resume import Killed, kill_at

CONFIG = tax.Config(tasks="made:sums", every=2, subset=20)


def change(fall, margin=0.5, name="accuracy"):
  """Returns a change of so many points, or of so many nats of 2."""
  sign = 1.0 if name in outcomes.RATES else -1.0
  moved, start = sign * fall, 2.0 if sign > 0 else 0.9
  after = start + moved / (1.0 if sign > 0 else 100.0)
  low, high = moved - margin, moved + margin
  return Change(name, start, after, moved, low, high, 100)


@pytest.mark.parametrize(
  ("moved", "says"),
  [
    (change(1.4), ""),
    (change(1.6), "warn"),
    (change(2.9), "warn"),
    (change(3.1), "halt"),
    (change(20.0, margin=25.0), ""),  # few items: chance alone
    (change(-20.0), ""),
    (change(0.03, 0.01, "nats_per_token"), ""),  # 1.5 %
    (change(0.05, 0.01, "nats_per_token"), "warn"),
    (change(0.25, 0.01, "nats_per_token"), "halt"),
    (change(-0.25, 0.01, "nats_per_token"), ""),
  ],
)
def test_the_limits_of_methods_19(moved, says):
  assert tax.judge(moved, CONFIG) == says


def test_a_run_is_not_stopped_by_what_coins_do():
  """Of 64 items four lost, none gained: the interval has no 0 in it."""
  before = [chosen(i, True) for i in range(64)]
  for lost, says in ((4, "warn"), (5, "warn"), (6, "halt")):
    after = [chosen(i, i >= lost) for i in range(64)]
    moved = tax.main_change(before, after)
    assert moved.is_clear and moved.fall > CONFIG.halt_points
    assert tax.judge(moved, CONFIG) == says


def test_runs_that_forget_nothing_are_seldom_stopped():
  """Ten looks at 64 items that flip both ways alike, 400 runs."""
  rng = np.random.default_rng(0)

  @functools.cache
  def verdict(lost, gained):
    before = [chosen(i, i < 32) for i in range(64)]
    flipped = {*range(lost), *range(32, 32 + gained)}
    after = [chosen(i, (i < 32) != (i in flipped)) for i in range(64)]
    moved = tax.main_change(before, after)
    by_interval = moved.is_clear and moved.fall > CONFIG.halt_points
    return tax.judge(moved, CONFIG) == "halt", by_interval

  stopped = np.zeros(2)
  for _ in range(400):
    margin = rng.normal(size=64)
    now = margin + 0.2 * rng.normal(size=(10, 64))
    lost = np.sum((margin > 0) & (now <= 0), axis=1)
    gained = np.sum((margin <= 0) & (now > 0), axis=1)
    found = [verdict(*pair) for pair in zip(lost, gained, strict=True)]
    stopped += np.any(found, axis=0)
  assert stopped[0] <= 20  # one in 20 at most
  assert stopped[1] >= 50  # the interval alone: one in 8 or more


def chosen(number, is_right):
  item = Item(f"x:{number}", "choice", "p", ("a", "b"), 0)
  logprobs = (-1.0, -2.0) if is_right else (-2.0, -1.0)
  return Outcome(item, logprobs, (1, 1), (1, 1))


class Forgetful:
  """Does 100 items rightly, and of each later call fewer."""

  def __init__(self, *wrong):
    self.wrong = list(wrong)

  def __call__(self, params, suite):
    del params
    wrong = self.wrong.pop(0)
    count = len(suite.tasks["sums"].items)
    return {"sums": [chosen(i, i >= wrong) for i in range(count)]}


def watcher(tmp_path, *wrong, **changes):
  def suite(count):
    items = [chosen(i, True).item for i in range(count)]
    task = Task("sums", items)
    return task_suites.Suite({"sums": task}, [], [], {}, {}, {})

  config = tax.Config(**{"tasks": "made:sums", "every": 2} | changes)
  return tax.Tax(
    config, Forgetful(*wrong), suite(100), suite(50), tmp_path / "tax", "run"
  )


def test_it_warns_once_and_stops_beyond_three_points(tmp_path, capsys):
  """Of 50 items 1, 10, 12 are lost: no alarm, one, and no second one."""
  seen = watcher(tmp_path, 0, 1, 10, 12, halt_points=math.inf)

  def one_step(step, arrays, facts):
    return arrays, facts, {"step": float(step)}

  step = tax.watched(seen, one_step, lambda x: x, total=8, start={})
  facts, rows = {"alarms": []}, []
  for n in range(8):
    _, facts, row = step(n, {}, facts)
    rows.append(row)
  assert [n + 1 for n, row in enumerate(rows) if "tax/sums" in row] == [2, 4, 6]
  assert rows[1]["tax/sums"] == 0.98
  assert rows[3]["tax/sums_change"] == pytest.approx(-20.0)
  assert rows[3]["tax/fall"] == pytest.approx(20.0)
  assert [n for n, _ in facts["alarms"]] == [4]
  assert "fell by 20.0 points (95 % interval" in facts["alarms"][0][1]
  assert "halt" not in facts
  assert capsys.readouterr().out.count("warning") == 1

  seen = watcher(tmp_path / "b", 0, 10, halt_points=3.0)
  step = tax.watched(seen, one_step, lambda x: x, total=8, start={})
  for n in range(2):
    _, facts, _ = step(n, {}, facts)
  assert "beyond tax.halt_points" in facts["halt"]


def test_before_and_after_stand_in_the_stage(tmp_path):
  seen = watcher(tmp_path, 0, 30, every=0)
  seen.measured(tax.BEFORE, None)
  found = tax.finished(seen, None, {"alarms": [], "tax_step": 7})
  told = found["tax"]["sums"]
  assert (told["before"], told["after"]) == (1.0, 0.7)
  assert told["change"] == pytest.approx(-30.0)
  assert told["low"] < -30.0 < told["high"] < -20.0
  assert found["tax"]["overall"]["change"] == pytest.approx(-30.0)
  assert [n for n, _ in found["alarms"]] == [7]
  assert (tmp_path / "tax" / tax.PAGE_FILE).is_file()
  assert tax.finished(None, None, {"alarms": [1]}) == {"alarms": [1]}


def test_a_run_that_goes_on_is_measured_at_its_new_end(tmp_path):
  """What was measured at the end of before is not the end of now."""
  seen = watcher(tmp_path, 0, 30, 50, every=0)
  tax.watched(seen, None, lambda x: x, 4, {})
  shares = []
  for step in (4, 4, 8):
    found = tax.finished(seen, None, {"alarms": [], "tax_step": step})
    shares.append(found["tax"]["sums"]["after"])
  assert shares == [0.7, 0.7, 0.5]  # at 4 it is read again


def test_outcomes_of_other_items_are_refused(tmp_path):
  watcher(tmp_path, 0).measured(tax.BEFORE, None)
  other = watcher(tmp_path, 0, shots=1)
  with pytest.raises(UserError, match="another told"):
    other.measured(tax.BEFORE, None)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"every": 2, "tasks": ""}, "nothing to measure"),
    ({"warn_points": 4.0}, "0 <= warn <= halt"),
    ({"subset": -1}, "subset"),
  ],
)
def test_a_section_that_cannot_be_is_refused(changes, says):
  with pytest.raises(FieldError, match=says):
    tax.Config(**{"tasks": "made:sums"} | changes)


def probe(path):
  rows = [
    {"prompt": f"the cat{' sat' * n}", "choices": [" on", " xyz"], "answer": 0}
    for n in range(8)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return f"choice:{path}"


def test_a_watched_policy_trains_as_it_would(files, sft_full, reward_full):
  """Killed and gone on it ends the same; the stage has before and after."""
  folders = [files.root / f"tax_{name}" for name in ("plain", "watched")]
  infos = []
  for folder in folders:
    config = tiny_runs.policy_config(files, "full", sft_full, reward_full)
    if folder is folders[1]:
      config.tax.update(tasks=probe(files.root / "probe.jsonl"), every=2)
      config.tax.update(subset=4, batch_size=2, halt_points=math.inf)
      with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
          pipelines.run(config, folder)
    infos.append(pipelines.run(config, folder))
  tiny_runs.assert_equal_arrays(*map(tiny_runs.saved_arrays, folders))
  rows = tiny_runs.rows_of(folders[1])
  assert [row["step"] for row in rows if "tax/probe" in row] == [2]
  assert 0.0 <= rows[1]["tax/probe"] <= 1.0
  assert infos[1]["tax"]["probe"]["items"] == 8
  assert infos[1]["tax"]["probe"]["before"] == 1.0
  assert "tax" not in infos[0]
  # A run that is told of tasks when it goes on: before is its start all the
  # same, and nothing that has trained.
  config.schedule.steps += 1
  pipelines.run(config, folders[0])
  told = [(x / "tax" / "before.jsonl").read_text() for x in folders]
  assert told[0] == told[1]
  after = (folders[0] / "tax" / "after.jsonl").read_text()
  assert f'"step": {config.schedule.steps}' in after.splitlines()[0]


@pytest.mark.slow
def test_rounds_are_watched_and_end_early(files, sft_lora, reward_head):
  config = test_pipeline_rejection.make_config(files, sft_lora, reward_head, 3)
  config.tax.update(tasks=probe(files.root / "probe.jsonl"), every=1)
  found = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      tax, "judge", lambda *_: "halt" if len(found) else found.append(1) or ""
    )
    folder = files.root / "tax_rejection"
    info = pipelines.run(config, folder)
  assert info["steps"] == 2
  assert "stopped at step 2" in info["halted"]
  rows = tiny_runs.rows_of(folder)
  assert [row["step"] for row in rows if "tax/probe" in row] == [1, 2]


def test_what_lm_eval_has_is_for_before_and_after():
  settings = types.SimpleNamespace(tasks="lm_eval:arc_easy")
  with pytest.raises(FieldError, match="configs/tasks.py"):
    tax.check(tax.Config(tasks=settings.tasks))
