"""The loop of every stage, on a step that only counts."""

import re
import signal
import types

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import metrics, startup
from rlhf_jax.programs import supervised
from rlhf_jax.runs import checkpoint, finite, loop
from rlhf_jax.schema import FieldError, UserError
from rlhf_jax.types import TrainState
from tests.pipelines import tiny_runs

IDENTITY = {"model_fingerprint": "aa"}


class Numbers:
  """An endless iterator of whole numbers whose position can be saved."""

  def __init__(self):
    self.position = 0

  def __next__(self):
    self.position += 1
    return self.position

  def get_state(self):
    return {"position": self.position}

  def set_state(self, state):
    self.position = state["position"]


class Killed(BaseException):
  pass


def run(
  workdir,
  scores,
  refused=(),
  kill_at=None,
  identity=IDENTITY,
  spoilt=0.0,
  metric="score",
  measured=(),
  observe=None,
  **plan,
):
  """Runs one step a score; returns arrays, facts and the numbers read.

  Args:
    workdir: of the run.
    scores: what each step logs.
    refused: steps, counted from 1, whose update is refused.
    kill_at: the step that ends with Killed.
    identity: of the run.
    spoilt: added to the weight in the last step.
    metric: the name of the scores.
    measured: validation/accuracy after each step, where it is asked for.
    observe: see loop.run_steps.
    **plan: fields of Schedule.
  """
  numbers, read = Numbers(), []

  def one_step(step, arrays, facts):
    if step + 1 == kill_at:
      raise Killed
    read.append(next(numbers))
    old = arrays["train"]
    is_refused = step + 1 in refused
    state = old.replace(
      step=old.step + (not is_refused),
      params=old.params + read[-1] + spoilt * (step + 1 == len(scores)),
      skipped=(old.skipped + 1) * is_refused,
    )
    facts = {"seen": [*facts["seen"], read[-1]]}
    return {"train": state}, facts, {metric: scores[step]}

  zero = jnp.int32(0)
  arrays, facts = loop.run_steps(
    one_step,
    phase="count",
    workdir=workdir,
    schedule=loop.Schedule(steps=len(scores), **plan),
    total_steps=len(scores),
    arrays={"train": TrainState(zero, jnp.float32(0.0), {}, zero)},
    facts={"seen": []},
    identity=identity,
    iterators={"numbers": numbers},
    show=(),
    measure=lambda arrays: {
      "validation/accuracy": measured[int(arrays["train"].step) - 1]
    },
    observe=observe,
  )
  return types.SimpleNamespace(arrays=arrays, facts=facts, read=read)


def saved_steps(workdir):
  folder = str(workdir / "checkpoints")
  with checkpoint.Checkpoints(folder, is_read_only=True) as saved:
    return saved.steps(), saved.best()


def test_a_run_goes_on_with_its_arrays_facts_and_data(tmp_path):
  with pytest.raises(Killed):
    run(tmp_path, [0.5] * 6, kill_at=6, save_every=2)
  rows = tiny_runs.rows_of(tmp_path)
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
  found = run(tmp_path, [0.5] * 6, save_every=2)
  assert found.read == [5, 6]
  assert found.facts == {"seen": [1, 2, 3, 4, 5, 6]}
  assert found.arrays["train"].params == 21.0
  rows = tiny_runs.rows_of(tmp_path)
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_data_that_a_run_reads_from_now_on_begin_at_their_start(capsys):
  """Such as text that PPO-ptx mixes in; what is read no more is let go."""
  meta = {"step": 3, "facts": {}, "iterators": {"a": {"position": 7}, "c": {}}}
  saved = types.SimpleNamespace(restore=lambda x: (x, meta | IDENTITY))
  found = {"a": Numbers(), "b": Numbers()}
  loop._resumed(saved, {}, IDENTITY, found, 9)
  assert [next(numbers) for numbers in found.values()] == [8, 1]
  assert "b: was not read before step 3" in capsys.readouterr().out


def test_who_observes_gets_whole_rows_and_goes_on(tmp_path):
  """Held-out data included; what it adds is written, and resumed."""

  def observe(step, facts, row):
    told = [step, row["score"], row.get("validation/accuracy")]
    facts = facts | {"told": [*facts.get("told", []), told]}
    return facts, row | {"told": float(len(facts["told"]))}

  plan = {"measured": [0.1, 0.2, 0.3, 0.4], "eval_every": 2, "save_every": 2}
  # The facts of the toy step begin anew, so it sees its own step alone.
  found = run(tmp_path, [1.0, 2.0, 3.0, 4.0], observe=observe, **plan)
  assert found.facts["told"] == [[4, 4.0, 0.4]]
  rows = tiny_runs.rows_of(tmp_path)
  assert [row["told"] for row in rows] == [1.0] * 4
  assert [row.get("validation/accuracy") for row in rows] == [
    None,
    0.2,
    None,
    0.4,
  ]


def test_steps_are_not_taken_back(tmp_path):
  """A run that was stopped at 4 cannot end at 3, and says so; at 4 it can."""
  with pytest.raises(Killed):
    run(tmp_path, [0.5] * 6, kill_at=6, save_every=2)
  with pytest.raises(FieldError) as caught:
    run(tmp_path, [0.5] * 3, save_every=2)
  assert str(caught.value).startswith("schedule: ends at step 3, and this run")
  assert "for 4 or more" in str(caught.value)
  assert run(tmp_path, [0.5] * 4, save_every=2).read == []
  rows = tiny_runs.rows_of(tmp_path)
  assert [row["step"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize("moment", ["before", "while"])
def test_a_signal_in_the_last_step_stops_too(tmp_path, monkeypatch, moment):
  """What comes after, the next stage of a whole run, is not begun.

  Asked for before the last step is saved, or while it is.
  """
  interrupts, save = [], checkpoint.Checkpoints.save

  def saved(self, step, *args, **options):
    if step == 2 and moment == "while":
      interrupts[0]._handle(signal.SIGTERM, None)
    save(self, step, *args, **options)

  def asked(self, step):
    interrupts.append(self)
    if step == 2 and moment == "before":
      self._handle(signal.SIGTERM, None)
    return self.requested

  monkeypatch.setattr(checkpoint.Checkpoints, "save", saved)
  monkeypatch.setattr(loop.Interrupt, "should_stop", asked)
  with pytest.raises(loop.Stopped, match="stopped after step 2") as caught:
    run(tmp_path, [0.5] * 2, save_every=9)
  assert caught.value.signal == signal.SIGTERM
  monkeypatch.undo()
  assert saved_steps(tmp_path)[0] == [2]
  assert run(tmp_path, [0.5] * 2, save_every=9).read == []


def test_other_data_are_said_with_their_section(tmp_path, monkeypatch):
  def refuse(self, state):
    raise UserError("resume: other data.")

  with pytest.raises(Killed):
    run(tmp_path, [0.5] * 3, kill_at=3, save_every=1)
  monkeypatch.setattr(Numbers, "set_state", refuse)
  with pytest.raises(FieldError, match="^numbers: resume: other data"):
    run(tmp_path, [0.5] * 3, save_every=1)


def test_a_stage_that_trains_again_is_not_finished(tmp_path):
  """Whose checkpoints are gone, too: what others load would be half of it."""
  (tmp_path / "stage.json").write_text("{}")
  with pytest.raises(Killed):
    run(tmp_path, [0.5] * 2, kill_at=2, save_every=9)
  assert not (tmp_path / "stage.json").exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
  run(tmp_path, [0.5], save_every=1)
  with pytest.raises(checkpoint.CheckpointError, match="'aa', this run has"):
    run(tmp_path, [0.5] * 2, identity={"model_fingerprint": "bb"})


def test_nothing_is_saved_while_updates_are_refused(tmp_path):
  run(tmp_path, [0.5] * 6, refused=(2, 3), save_every=1, keep=9)
  assert saved_steps(tmp_path)[0] == [1, 4, 5, 6]


def test_the_third_refused_update_in_a_row_ends_the_run(tmp_path):
  run(tmp_path / "two", [0.5] * 4, refused=(2, 3), save_every=9)
  with pytest.raises(loop.NonFiniteError, match="at step 5: .* 3 updates"):
    run(tmp_path / "three", [0.5] * 9, refused=(3, 4, 5), save_every=1)
  assert saved_steps(tmp_path / "three")[0] == [1, 2]


def test_the_best_step_is_one_with_a_number(tmp_path):
  scores = [np.nan, 0.5, 0.75, 0.25, 0.25, 0.0]
  with pytest.warns(UserWarning, match="score not finite"):
    run(tmp_path, scores, save_every=1, keep=1, keep_best="score")
  assert saved_steps(tmp_path) == ([3, 5, 6], 3)  # best, newest, final


def test_a_step_without_that_metric_takes_no_part(tmp_path):
  """As a step whose pairs are all ties; a name that no step has is refused."""

  def observe(step, facts, row):
    return facts, {"other": 1.0} if step == 2 else row

  plan = dict(observe=observe, save_every=1, keep=1, keep_best="score")
  with pytest.raises(Killed):
    run(tmp_path / "a", [0.5, 0.9, 0.7, 0.1], kill_at=2, **plan)
  run(tmp_path / "a", [0.5, 0.9, 0.7, 0.1], **plan)
  assert saved_steps(tmp_path / "a") == ([3, 4], 3)
  with pytest.raises(FieldError, match="no metric of this name; there are sco"):
    run(tmp_path / "b", [0.5, 0.9], save_every=1, keep_best="scores/reward")


def accuracies(workdir):
  """Returns {step: validation/accuracy} of the rows that have one."""
  rows = metrics.read_metrics(workdir / "metrics.jsonl")
  name = "validation/accuracy"
  return {row["step"]: row[name] for row in rows if name in row}


def test_held_out_data_are_measured_on_every_so_many_steps(tmp_path):
  """And after the last; rows of measured steps are always logged."""
  found = [0.1, 0.2, 0.3, 0.4, 0.5]
  run(tmp_path, [0.5] * 5, measured=found, eval_every=2, log_every=5)
  assert accuracies(tmp_path) == {2: 0.2, 4: 0.4, 5: 0.5}
  run(tmp_path / "none", [0.5] * 5, measured=found)
  assert accuracies(tmp_path / "none") == {}


def test_the_best_measured_step_is_kept_though_none_is_due(tmp_path):
  """Steps 2, 4 and 6 are measured; 4 is the best, and a kill loses nothing."""
  how = dict(
    measured=[0.9, 0.5, 0.9, 0.8, 0.9, 0.6, 0.9],
    eval_every=2,
    save_every=5,
    keep=1,
    keep_best="validation/accuracy",
  )
  run(tmp_path / "whole", [0.5] * 6, **how)
  assert saved_steps(tmp_path / "whole") == ([4, 5, 6], 4)
  with pytest.raises(Killed):
    run(tmp_path / "killed", [0.5] * 6, kill_at=6, **how)
  run(tmp_path / "killed", [0.5] * 6, **how)
  assert saved_steps(tmp_path / "killed") == ([4, 5, 6], 4)
  for folder in ("whole", "killed"):
    assert accuracies(tmp_path / folder) == {2: 0.5, 4: 0.8, 6: 0.6}


def test_a_best_step_of_held_out_data_needs_a_measurement(tmp_path):
  with pytest.raises(FieldError, match="keep_best='validation/loss' with eval"):
    loop.Schedule(keep_best="validation/loss")
  with pytest.raises(FieldError, match="eval_every=-1"):
    loop.Schedule(eval_every=-1)
  lessons = {"validation/loss": "min", "validation/accuracy": "max"}
  lessons |= {"heldout/score": "max", "heldout/pass1": "max"}
  lessons |= {"heldout/gold_score": "max", "heldout/passG": "max"}
  for name, best in lessons.items():
    assert loop.Schedule(keep_best=name, eval_every=1).best_of == best
  with pytest.raises(
    FieldError, match="no metric of this name.*validation/acc"
  ):
    run(
      tmp_path,
      [0.5] * 2,
      measured=[0.5] * 2,
      eval_every=1,
      keep_best="validation/loss",
    )


def test_only_every_so_many_rows_are_logged(tmp_path):
  run(tmp_path, [0.5] * 5, save_every=9, log_every=2)
  rows = metrics.read_metrics(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in rows] == [2, 4, 5]
  assert rows[0]["sys/compiles"] >= 0


def test_a_stage_says_once_how_long_its_start_took(tmp_path, capsys):
  startup.begin()
  run(tmp_path / "first", [0.5] * 3)
  run(tmp_path / "second", [0.5] * 3)  # another loop of the same stage
  told = capsys.readouterr().err
  (line,) = [x for x in told.splitlines() if "first step after" in x]
  assert re.fullmatch(r"\w+: first step after .* programs, .*", line)
  for folder in ("first", "second"):  # no metric: equal runs have equal ones
    assert "loading" not in (tmp_path / folder / "metrics.jsonl").read_text()


def test_every_pass_is_a_pass():
  """Trap 42: 63 rows in batches of 32 for 3 epochs are 189 rows."""
  steps = {
    (63, 32, 3.0): 6,
    (64, 32, 3.0): 6,
    (65, 32, 1.0): 3,
    (320, 32, 0.1): 1,
    (30, 1, 0.1): 3,
    (33, 32, 1.0): 2,
    (1000, 7, 2.0): 286,
    (10, 10, 0.01): 1,
  }
  for (rows, size, epochs), expected in steps.items():
    plan = loop.Schedule(batch_size=size, epochs=epochs)
    assert plan.total_steps(rows) == expected
    assert expected * size >= epochs * rows


def test_a_pass_that_ends_inside_a_batch_is_said(capsys):
  assert loop.Schedule(batch_size=32, epochs=3.0).announced(63, "sft") == 6
  assert capsys.readouterr().out == (
    "sft: 3 epochs of 63 rows are 6 steps of 32, 3 rows more than that, which "
    "fill the last batch; 3 batches hold rows of two passes\n"
  )
  assert loop.Schedule(batch_size=32, epochs=3.0).announced(64, "sft") == 6
  assert loop.Schedule(batch_size=32, steps=5).announced(63, "sft") == 5
  assert capsys.readouterr().out == ""


def test_borders_of_passes_are_counted(capsys):
  """As one by one; of 10**15 batches as soon."""
  for rows, size, epochs in ((63, 32, 3.0), (10, 4, 7.0), (9, 6, 5.0)):
    plan = loop.Schedule(batch_size=size, epochs=epochs)
    total = plan.announced(rows, "sft")
    counted = sum(
      (step * size) // rows != (step * size + size - 1) // rows
      for step in range(total)
    )
    said = capsys.readouterr().out
    assert f"; {counted} batches hold rows of two" in said or not said
  plan = loop.Schedule(batch_size=2, epochs=1e15 + 0.5)
  assert plan.announced(3, "sft") == 1500000000000001
  for epochs in (np.inf, -np.inf, np.nan, -1.0):
    with pytest.raises(FieldError, match="epochs=.*>= 0 and finite"):
      loop.Schedule(epochs=float(epochs))


def test_trap_43_the_best_is_the_least_of_a_loss(tmp_path):
  plan = {"save_every": 1, "keep": 1, "keep_best": "sft/loss"}
  run(tmp_path, [0.9, 0.1, 0.5, 0.5], metric="sft/loss", **plan)
  assert saved_steps(tmp_path)[0] == [2, 3, 4]  # best, newest, final
  lessons = {
    "min": ("sft/loss", "reward_model/loss", "sft/perplexity", "ppo/kl_loss"),
    "max": ("preference/accuracy", "rollout/score_mean", "eval/gold"),
  }
  for best, names in lessons.items():
    for name in names:
      assert loop.Schedule(keep_best=name).best_of == best
      other = {"min": "max", "max": "min"}[best]
      assert loop.Schedule(keep_best=name, best=other).best_of == other


def test_a_metric_that_does_not_say_what_is_good_needs_a_word():
  for metric in (
    "rollout/length_mean",
    "reward/kl_term",
    "rollout/score_std",
    "preference/reward_rejected",
  ):
    with pytest.raises(ValueError, match="best='' with keep_best"):
      loop.Schedule(keep_best=metric)
    assert loop.Schedule(keep_best=metric, best="min").best_of == "min"


@pytest.mark.parametrize(
  ("scores", "how", "words"),
  [
    ([0.5, np.nan], {}, "score=nan at step 2, the last"),
    ([np.inf], {}, "score=inf at step 1, the last"),
    ([0.5] * 2, {"refused": (1, 2)}, "gradient at step 2.* 2 refused in a row"),
    ([0.5] * 5, {"refused": (5,)}, "gradient at step 5.* 1 refused in a row"),
    ([0.5] * 3, {"spoilt": np.nan}, "train/params after step 3, the last"),
    ([0.5] * 3, {"spoilt": np.inf}, "train/params after step 3, the last"),
  ],
)
@pytest.mark.filterwarnings("ignore:.*not finite; written as null")
def test_trap_45_a_run_that_ends_with_nan_is_not_finished(
  tmp_path, scores, how, words
):
  """Nor when the same command runs again."""
  for _ in range(2):
    with pytest.raises(loop.NonFiniteError, match=words):
      run(tmp_path, scores, save_every=1, keep=9, **how)
  assert len(scores) not in saved_steps(tmp_path)[0]


def test_numbers_of_a_finished_stage_are_finite():
  finite.check_facts(
    "sft", {"steps": 3, "validation_loss": 0.5, "halted": None}
  )
  for facts in (
    {"validation_loss": np.nan},
    {"normalisation": {"mean": -np.inf}},
    {"rounds": [{"a": 1.0}, {"a": np.inf}]},
  ):
    with pytest.raises(loop.NonFiniteError, match="^sft: .*(nan|inf): not"):
      finite.check_facts("sft", facts)


def test_a_refused_update_is_a_step_of_the_run_too(tmp_path, monkeypatch):
  """What stage.json calls steps are those that checkpoints are named by."""
  monkeypatch.setattr(
    supervised.mesh_lib, "shard_batch", lambda mesh, batch: batch
  )

  def update(state, frozen, number, key):
    is_refused = number == 2
    return state.replace(
      step=state.step + (not is_refused), skipped=jnp.int32(is_refused)
    ), {"score": float(number)}

  class Phase:
    name, mesh = "count", None
    world = types.SimpleNamespace(workdir=tmp_path)
    arrays = {"train": TrainState(jnp.int32(0), jnp.zeros(1), (), jnp.int32(0))}

    def __getitem__(self, name):
      return update

    def warn_of_room(self):
      pass

  for _ in range(2):  # a second time from its last checkpoint
    told = {}
    supervised.fit(
      Phase(),
      Numbers(),
      {},
      seed=0,
      schedule=loop.Schedule(steps=4, save_every=4),
      total_steps=4,
      identity=IDENTITY,
      show=(),
      told=told,
    )
    assert told == {"steps": 4}
