"""Policies on capability tasks: a whole run, its files, what is refused."""

import json

import pytest

from rlhf_jax import pipelines
from rlhf_jax.evaluation.tasks import tables
from rlhf_jax.pipelines import defaults, evaluate_tasks
from rlhf_jax.programs import task_runs
from rlhf_jax.schema import FieldError, UserError
from tests.evaluation import test_tasks as by_hand
from tests.pipelines import tiny_runs


def make_config(files, policies):
  root = files.root
  groups = ("one", "two")
  choices = [
    {
      "prompt": f"the cat{' sat' * (n % 4)}",
      "choices": [" on", " xyz"],
      "answer": n % 2,
      "group": groups[n % 2],
    }
    for n in range(6)
  ]
  for name, rows in (
    ("words", choices),
    ("books", [{"text": "the cat sat on the cat"}, {"text": "and a cat"}]),
    ("asked", [{"prompt": "the cat", "answer": "sat"}] * 3),
  ):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / f"{name}.jsonl").write_text(text)
  config = defaults.evaluate_tasks()
  config.mesh.devices = 1
  config.model.source = files.model
  config.policies = policies
  config.suite.tasks = (
    f"choice:{root}/words.jsonl,text:{root}/books.jsonl,"
    f"asked=exact:{root}/asked.jsonl"
  )
  config.suite.batch_size = 2
  return config


def test_two_policies_are_compared_and_each_is_measured_once(
  files, sft_full, capsys
):
  config = make_config(files, f"model,{sft_full}")
  folder = files.root / "tasks"
  told = pipelines.run(config, folder)
  assert list(told["policies"]) == ["model", "sft_full"]
  assert told["policies"]["model"]["words"]["items"] == 6
  assert told["policies"]["model"]["words"]["accuracy"] == 0.5
  moved = told["changes"]["sft_full"]
  assert set(moved["words"]) == {"accuracy", "accuracy_per_byte"}
  books = moved["books"]["nats_per_token"]
  assert books["change"] == pytest.approx(books["after"] - books["before"])
  assert books["after"] < books["before"]  # it was fine-tuned on such words
  assert set(told["groups"]["words"]["model"]) == {"one", "two"}
  assert told["overall"]["sft_full"]["items"] == 9
  evaluate_tasks.tell(pipelines.read(config).settings, folder)
  printed = capsys.readouterr().out
  assert "words: accuracy" in printed and "all tasks, points" in printed
  page = (folder / evaluate_tasks.PAGE_FILE).read_text()
  assert "words, by group: accuracy" in page
  rows = (folder / evaluate_tasks.ITEMS_FILE).read_text().splitlines()
  assert len(rows) == 11
  assert set(json.loads(rows[0])["outcomes"]) == {"model", "sft_full"}

  (folder / evaluate_tasks.RESULT_FILE).unlink()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(task_runs.Runner, "__call__", None)  # nobody is measured anew
    assert pipelines.run(config, folder) == told
  config.suite.limit = 2
  with pytest.raises(UserError, match="suite: it has changed"):
    pipelines.run(config, folder)


def test_a_page_marks_what_was_clearly_lost():
  before = [by_hand.chosen(-1.0, -2.0, number=i) for i in range(40)]
  after = [
    by_hand.chosen(-1.0, -2.0 + 2 * (i < 8), number=i) for i in range(40)
  ]
  found = {"sft": {"t": before}, "ppo": {"t": after}}
  told = tables.facts(found)
  cells = tables.table(told).rows[0]
  assert cells[2].is_bad and "-20.0 [" in cells[2].small
  page = tables.page(found, told, "Tasks", [])
  assert [x.title for x in page.sections] == ["Tasks", "What ppo lost"]
  assert len(page.sections[1].examples) == tables.LOST


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"policies": ""}, "policies is empty"),
    ({"tasks": ""}, "suite.tasks is empty"),
    ({"tasks": "made:nothing"}, "made:nothing"),
    ({"tasks": "text:absent.jsonl"}, "absent.jsonl"),
    ({"policies": "model,model"}, "stands there twice"),
    ({"harness": "folder"}, "no task of lm-eval"),
  ],
)
def test_what_cannot_be_is_refused(files, changes, says):
  config = make_config(files, changes.get("policies", "model"))
  config.suite.tasks = changes.get("tasks", config.suite.tasks)
  config.harness = changes.get("harness", "")
  with pytest.raises((FieldError, UserError), match=says):
    tiny_runs.checked(config)
