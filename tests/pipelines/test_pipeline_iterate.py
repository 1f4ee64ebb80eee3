"""Rounds of labels: what each hands to the next, what is kept, and resumes."""

import json

import numpy as np
import pytest

from rlhf_jax import interrupt, main, pipelines
from rlhf_jax.data import dataset
from rlhf_jax.pipelines import defaults, labelled_rounds, round_labels
from rlhf_jax.programs import iterated
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs

PREFERENCE = """
def planted(texts):
  return [text.count("cat") for text in texts]

def judge(items, folder, seed):
  found = []
  for item in items:
    counts = [text.count("cat") for text in item["answers"]]
    ranks = [int(max(counts) > x) for x in counts]
    found.append({"item": item["item"], "ranks": ranks, "annotator": "j"})
  return found

def broken(items, folder, seed):
  return [{"item": "gone", "ranks": [0, 1], "annotator": "j"}]
"""


@pytest.fixture(scope="module")
def code(files):
  path = files.root / "preference.py"
  path.write_text(PREFERENCE)
  return path


def make_config(files, code, **rounds):
  """Two rounds of 16 comparisons, by annotators who count a word."""
  config = defaults.iterate()
  config.title = "Tiny rounds"
  config.rounds.update(count=2, **rounds)
  config.comparisons.update(count=16, test=8)
  config.labels.preference = f"{code}:planted"
  config.annotators.update(count=2, temperature=0.25, ties=0.5)
  config.sft = tiny_runs.sft_config(files, "lora")
  config.sft.schedule.steps = 4
  learner = tiny_runs.policy_config(files, "lora", "", "")
  learner.schedule.steps = 2
  learner.value.pretrain_steps = 1
  config.policy = learner
  config.sft.generate.temperature = learner.generate.temperature
  judge = tiny_runs.reward_config(files, "head", "", "")
  judge.data.source = ""
  judge.schedule.update(batch_size=8, steps=20, save_every=20)
  config.reward = judge
  for stage in (config.sampling, config.evaluation):
    stage.mesh.devices = 1
    stage.model.update(source=files.model, lora_rank=2)
    stage.prompts.update(source=files.prompts, format="prompt", max_length=24)
    stage.generate.update(learner.generate.to_dict())
    stage.generate.num_samples = 1
    stage.batch_size = 8
  config.evaluation.count = 16
  return config


@pytest.fixture(scope="module")
def finished(files, code):
  folder = files.root / "iterate"
  config = make_config(files, code)
  config.policy.force = True
  return folder, pipelines.run(config, folder), config


def test_each_round_is_kept_with_the_origin_of_its_records(finished):
  folder, numbers, _ = finished
  assert [row["round"] for row in numbers["rounds"]] == [1, 2]
  for number, wrote in ((1, "sft"), (2, "round_1/policy")):
    where = folder / f"round_{number}"
    items = iterated.read(where / "items.jsonl")
    records = iterated.read(where / "labels.jsonl")
    assert len(records) == 2 * len(items)
    for record in records:
      assert record["round"] == number
      assert record["policies"] == [wrote, wrote]
      assert record["annotator"] in ("simulated-1", "simulated-2")
      assert record["time"][:2] == "20" and sorted(record["shown"]) == [0, 1]
    for stage, kind in (("reward", "reward"), ("policy", "policy")):
      info = stages.read_stage(where / stage)
      assert stages.kind_of(info) == kind
  kept = [
    iterated.read(folder / f"round_1/{x}.jsonl")
    for x in ("comparisons", "test", "items")
  ]
  items = {x["item"] for x in kept[2]}
  tested = {x["item"] for x in kept[1]}
  assert tested and not tested & {x["item"] for x in kept[0]}
  assert tested == {x["item"] for x in kept[2][:8]} & tested <= items


def test_the_reward_model_learns_from_all_rounds_and_not_from_the_test(
  finished,
):
  folder, numbers, config = finished
  settings = pipelines.read(config, folder).settings
  world = pipelines.read(config, folder).open(folder)
  job = labelled_rounds.Round(settings, world, 2).reward_job()
  assert job.settings.data.source.split(",") == [
    str(folder / f"round_{n}/comparisons.jsonl") for n in (1, 2)
  ]
  assert job.settings.heldout.source == str(folder / "round_1/test.jsonl")
  tested = iterated.read(folder / "round_1/test.jsonl")
  # Nor from other answers to its prompts, of which there are few here.
  asked = {x["prompt"] for x in tested}
  read, dropped = dataset.records(job.settings.data, None)
  assert read and not asked & {x.prompt for x in read}
  assert dropped[f"ask what {folder}/round_1/test.jsonl asks"] > 0
  assert sum(row["comparisons"] for row in numbers["rounds"]) == len(read)
  for row in numbers["rounds"]:
    assert 0 < row["reward_pairs"] <= len(tested)


def test_the_numbers_of_rounds_are_those_of_their_files(finished):
  folder, numbers, _ = finished
  assert json.loads((folder / "summary.json").read_text()) == numbers
  first, second = numbers["rounds"]
  assert second["freshness"] is None and 0.0 <= first["freshness"] <= 1.0
  found = json.loads((folder / "round_2/freshness.json").read_text())
  assert first["freshness_pairs"] == found["pairs"] > 0
  rows = tiny_runs.rows_of(folder / "round_2/evaluation", "texts.jsonl")
  for side in ("before", "after"):
    counts = [row[side].count("cat") for row in rows]
    np.testing.assert_allclose(second[f"judge_{side}"], np.mean(counts))
  page = (folder / "report.html").read_text()
  assert "Win rate against the first policy" in page
  assert "comparisons of the next round" in page


def test_a_finished_run_is_not_repeated_and_more_rounds_go_on(
  finished, monkeypatch
):
  folder, numbers, config = finished
  before = {p: p.stat().st_mtime_ns for p in folder.glob("round_*/**/*.jsonl")}
  again = pipelines.run(config, folder)
  assert {p: p.stat().st_mtime_ns for p in before} == before
  assert again["rounds"] == numbers["rounds"]
  monkeypatch.setattr("sys.argv", ["main"])
  assert main.run(config, folder) == 0
  changed = config.copy_and_resolve_references()
  changed.policy.policy_optimizer.learning_rate = 1e-3
  assert main.run(changed, folder) == main.EXIT_USAGE


@pytest.mark.parametrize("choice", ["first", "last"])
def test_reference_and_start_are_what_their_names_say(
  finished, choice, code, files
):
  folder, _, _ = finished
  config = make_config(files, code, reference=choice, policy_start=choice)
  job = pipelines.read(config, folder)
  found = labelled_rounds.Round(job.settings, job.open(folder), 2).policy_job()
  wanted = folder / ("sft" if choice == "first" else "round_1/policy")
  assert found.settings.reference == str(wanted)
  assert found.settings.init_from == str(wanted)


def test_the_policy_stage_says_its_reference(finished):
  folder, _, _ = finished
  info = stages.read_stage(folder / "round_2/policy")
  assert info["reference"] == "../../sft" == info["init_from"]


# -- labels, and who is waited for --


@pytest.fixture
def labelled(finished, files, code, tmp_path):
  """Returns a run that takes SFT over, in a folder of its own."""
  folder, _, _ = finished
  config = make_config(files, code)
  config.reuse, config.reuse_stages = str(folder), ("sft",)
  config.policy.force = True
  return config, tmp_path / "run"


def test_annotators_who_do_not_agree_stop_the_run(labelled, monkeypatch):
  config, folder = labelled
  config.annotators.update(temperature=0.5, flips=0.5, ties=0.0)
  config.agreement.action = "stop"
  with pytest.raises(UserError, match=r"threshold=0.7: in round 1 two annot"):
    pipelines.run(config, folder)
  assert not (folder / "round_1/agreement.json").exists()
  assert not (folder / "round_1/reward").exists()
  monkeypatch.setattr(labelled_rounds, "run_stage", _refuse)
  config.agreement.action = "warn"  # goes on where it stopped
  with pytest.raises(_Killed):
    pipelines.run(config, folder)
  facts = json.loads((folder / "round_1/agreement.json").read_text())
  assert facts["raw"] < 0.7 and facts["pairs"] > 8


class _Killed(BaseException):
  pass


def _refuse(job, folder, world):
  if not job.is_finished(folder):
    raise _Killed


def test_people_are_waited_for_by_a_file(labelled, capsys, monkeypatch):
  config, folder = labelled
  config.labels.update(by="file", preference="gold")
  config.annotators = defaults.iterate().annotators
  monkeypatch.setattr("sys.argv", ["main", "--config=x"])
  assert main.run(config, folder) == 75
  said = capsys.readouterr().out
  assert f"round 1 waits for {folder}/round_1/labels.jsonl" in said
  assert "To go on, run the same command" in said
  with pytest.raises(interrupt.Stopped):  # and waits on
    pipelines.run(config, folder)
  items = iterated.read(folder / "round_1/items.jsonl")
  records = [
    item | {"ranks": [0, 1], "annotator": name}
    for item in items
    for name in ("anna", "bo")
  ]
  iterated.write(folder / "round_1/labels.jsonl", records)
  monkeypatch.setattr(labelled_rounds, "run_stage", _refuse)
  with pytest.raises(_Killed):
    pipelines.run(config, folder)
  facts = json.loads((folder / "round_1/agreement.json").read_text())
  assert (facts["raw"], facts["annotators"]) == (1.0, 2)


def test_a_judge_by_import_path(labelled, code, monkeypatch):
  config, folder = labelled
  config.labels.update(by=f"{code}:broken", preference="gold", overlap=1)
  config.annotators = defaults.iterate().annotators
  config.agreement.action = "off"
  with pytest.raises(UserError, match="item 'gone' was not compared in this"):
    pipelines.run(config, folder)
  (folder / "round_1/labels.jsonl").unlink()
  config.labels.by = f"{code}:judge"
  monkeypatch.setattr(labelled_rounds, "run_stage", _refuse)
  with pytest.raises(_Killed):
    pipelines.run(config, folder)
  for record in iterated.read(folder / "round_1/comparisons.jsonl"):
    counts = [text.count("cat") for text in record["answers"]]
    assert record["ranks"] == [int(max(counts) > x) for x in counts]


def test_a_reward_model_is_continued_and_old_records_weigh(
  finished, code, files, tmp_path
):
  folder, _, _ = finished
  config = make_config(files, code, reward_start="continued", old_share=0.25)
  job = pipelines.read(config, folder)
  second = labelled_rounds.Round(job.settings, job.open(folder), 2)
  found = second.reward_job().settings
  assert found.continue_from == str(folder / "round_1/reward")
  assert found.data.weights == "0.25,0.75"
  labelled_rounds.run_stage(
    second.reward_job(), tmp_path / "reward", second.world
  )
  info = stages.read_stage(tmp_path / "reward")
  assert info["continue_from"].endswith("round_1/reward")
  with pytest.raises(UserError, match="was trained with head="):
    config.reward.head.pooling = "last"
    job = pipelines.read(config, folder)
    second = labelled_rounds.Round(job.settings, job.open(folder), 2)
    labelled_rounds.run_stage(
      second.reward_job(), tmp_path / "other", second.world
    )


def test_people_label_on_the_page_while_the_run_waits(labelled, monkeypatch):
  starlette = pytest.importorskip("starlette")
  del starlette
  from rlhf_jax.labelling import loop

  config, folder = labelled
  config.labels.update(by="page", preference="gold", people="anna,ben", port=0)
  config.annotators = defaults.iterate().annotators
  wait = loop.wait_for

  def label(store, batch):
    for name in store.annotators():
      while (turn := store.next_item(name)).state == "item":
        place = turn.shown.index(0)  # all prefer the first answer
        told = {"ranks": [int(i != place) for i in range(len(turn.shown))]}
        store.submit(name, turn.assignment, told, f"{name} {turn.assignment}")
    return wait(store, batch)

  monkeypatch.setattr(loop, "wait_for", label)
  monkeypatch.setattr(labelled_rounds, "run_stage", _after_answers)
  with pytest.raises(_Killed):
    pipelines.run(config, folder)
  records = iterated.read(folder / "round_1/labels.jsonl")
  items = iterated.read(folder / "round_1/items.jsonl")
  assert {x["annotator"] for x in records} == {"anna", "ben"}
  assert len(records) == 2 * len(items)
  for record in records:
    assert record["ranks"] == [0, 1] and record["policies"] == ["sft", "sft"]
  facts = json.loads((folder / "round_1/agreement.json").read_text())
  assert facts["raw"] == 1.0


RUN_STAGE = labelled_rounds.run_stage


def _after_answers(job, folder, world):
  """Runs the stages that come before labels."""
  if folder.name not in ("sft", "answers_0"):
    raise _Killed
  RUN_STAGE(job, folder, world)


def test_what_a_language_model_says_is_put_in_order():
  items = [
    {"item": f"i{n}", "prompt": "p", "answers": pair, "round": 1}
    for n, pair in enumerate((["a", "b"], ["c", "d"], ["e", "f"]))
  ]
  rows = [
    {"prompt": "p", "answers": ["b", "a"], "ranks": [0, 1], "label": 0.9},
    {"prompt": "p", "answers": ["c", "d"], "ranks": [1, 0], "label": 0.2},
    {"prompt": "p", "answers": ["a", "d"], "ranks": [1, 0], "label": 0.2},
  ]
  rows = [row | {"annotator": "ai:x", "item": "?"} for row in rows]
  first, second = round_labels._of_feedback(rows, items)
  assert first["item"] == "i0" and first["answers"] == ["a", "b"]
  assert first["ranks"] == [1, 0] and first["label"] == pytest.approx(0.1)
  assert (second["ranks"], second["label"]) == ([1, 0], 0.2)
  assert second["round"] == 1 and second["annotator"] == "ai:x"


@pytest.mark.slow
def test_an_ensemble_chooses_what_it_disagrees_on(files, code, tmp_path):
  config = make_config(files, code)
  config.comparisons.update(
    count=4, test=4, candidates=3, choose="disagreement"
  )
  config.reward.ensemble.members = 3
  config.reward.schedule.batch_size = 2
  config.policy.force = True
  config.policy.value.update(init="random", pretrain_steps=0)
  pipelines.run(config, tmp_path)
  assert not (tmp_path / "round_1/candidates.jsonl").exists()
  candidates = iterated.read(tmp_path / "round_2/candidates.jsonl")
  items = iterated.read(tmp_path / "round_2/items.jsonl")
  scored = iterated.read(tmp_path / "round_2/candidates/scores.jsonl")
  members = iter([next(iter(x["members"].values())) for x in scored])
  apart = {
    (x["prompt"], *x["answers"]): iterated.disagreement(
      [next(members) for _ in x["answers"]]
    )
    for x in candidates
  }
  found = [apart[x["prompt"], *x["answers"]] for x in items]
  np.testing.assert_allclose(found, sorted(apart.values())[::-1][:4])
  np.testing.assert_allclose(found, [x["deviation"] for x in items])


@pytest.mark.slow
def test_killed_at_every_boundary_it_ends_as_one_that_was_not(
  finished, files, code, tmp_path, monkeypatch
):
  _, numbers, config = finished
  run_stage, replace = labelled_rounds.run_stage, iterated.replace

  def stage_then_kill(job, folder, world):
    if not job.is_finished(folder):
      run_stage(job, folder, world)
      raise _Killed

  def file_then_kill(path, text):
    is_new = not path.exists()
    replace(path, text)
    if is_new:
      raise _Killed

  monkeypatch.setattr(labelled_rounds, "run_stage", stage_then_kill)
  monkeypatch.setattr(iterated, "replace", file_then_kill)
  kills, found = 0, None
  while found is None:
    try:
      found = pipelines.run(config, tmp_path / "run")
    except _Killed:
      kills += 1
  assert kills == 25
  assert found["rounds"] == numbers["rounds"]


def test_what_the_run_sets_and_what_nothing_reads_is_refused(files, code):
  def refused(message, **changes):
    config = make_config(files, code)
    for path, value in changes.items():
      section, _, field = path.rpartition("__")
      part = config
      for name in filter(None, section.split("__")):
        part = part[name]
      part[field] = value
    with pytest.raises(UserError, match=message):
      tiny_runs.checked(config)

  refused("policy.init_from='x': the run itself sets", policy__init_from="x")
  refused("policy.reference='x': the run itself", policy__reference="x")
  refused("overlap=3: there are 2 sim", labels__overlap=3)
  refused("agreement.action='warn' with labels.overlap=1", labels__overlap=1)
  refused("annotators: nothing reads it with", labels__by="file")
  refused("labels.people='': 0 names, and overlap=2", labels__by="page")
  refused("labels.people='a': nothing reads it with by=", labels__people="a")
  refused("judge: nothing reads it", judge__principles="ours")
  refused("rounds.late_from=3: there are rounds.count=2", rounds__late_from=3)
  refused("late_policy: nothing reads it", late_policy__schedule__batch_size=7)
  refused(
    "choose='uncertainty' with candidates=1", comparisons__choose="uncertainty"
  )
  refused(
    "choose='disagreement' with reward.ensemble.members=1",
    comparisons__choose="disagreement",
    comparisons__candidates=2,
  )
  refused("policies='newest': must be", comparisons__policies="newest")
  refused("reference='frist'.*Did you mean 'first'", rounds__reference="frist")
  refused(
    "comparisons.test=8: the frozen test set, and",
    reward__heldout__source="x.jsonl",
  )
