"""Answers that are criticised and revised: every stage is on record."""

import json
import threading

import pytest

from rlhf_jax import pipelines
from rlhf_jax.data import dataset
from rlhf_jax.pipelines import constitution, defaults
from rlhf_jax.rewards.ai import questions
from rlhf_jax.schema import UserError
from tests import fake_judge
from tests.pipelines import tiny_runs

PROMPTS = ["the cat", "on the mat", "is a dog", "with", "and the"]


def critic(body):
  """Criticises by quoting the principle, revises by counting; one is empty."""
  messages = [m["content"] for m in body["messages"]]
  if messages[-1] == questions.REVISION:
    assert messages[-2].startswith("critique of")
    text = "" if messages[0] == PROMPTS[1] else f"revised {messages[1]}"
  else:
    text = f"critique of {messages[-1].split(' Judge ')[0]}"
  return fake_judge.said(text)


@pytest.fixture(scope="module")
def make_config(files):
  model = tiny_runs.make_model(files.root / "answers", max_length=512)
  path = files.root / "red_team.jsonl"
  rows = [{"prompt": prompt} for prompt in PROMPTS]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))

  def make(server=None):
    config = defaults.constitution()
    config.mesh.devices = 1
    config.model.source = model
    config.prompts.update(source=str(path), chat=True)
    config.update(answer_tokens=6, critique_tokens=6, batch_size=4, rounds=2)
    if server is not None:
      config.endpoint.update(
        url=server.url, model="m", retries=0, parallel=2, stop_after=1
      )
    return config

  return make


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
  folder = tmp_path_factory.mktemp("finished")
  with fake_judge.serving(critic) as server:
    facts = pipelines.run(make_config(server), folder)
    return folder, facts, len(server.bodies)


def test_every_stage_is_recorded(finished):
  folder, facts, asked = finished
  assert asked == 2 * 5 + 2 * 4  # the empty one ends in the first round
  rows = tiny_runs.rows_of(folder, constitution.REVISIONS_FILE)
  known = questions.principles(questions.OURS)
  assert [row["messages"][0]["content"] for row in rows] == [
    prompt for prompt in PROMPTS if prompt != PROMPTS[1]
  ]
  for row in rows:
    first, *rounds = row["stages"]
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
    assert row["messages"][-1]["content"] == (
      f"revised revised {first['answer']}"
    )
    for stage in rounds:
      principle = known[stage["principle"]]
      assert stage["principle_text"] == principle
      assert stage["critique"] == f"critique of {principle}"
    assert rounds[-1]["revision"] == row["messages"][-1]["content"]
  drawn = {stage["principle"] for row in rows for stage in row["stages"][1:]}
  assert len(drawn) > 2
  (left,) = tiny_runs.rows_of(folder, constitution.UNREVISED_FILE)
  assert left["prompt"] == PROMPTS[1] and left["failure"] == "empty"
  assert (facts["prompts"], facts["revised"], facts["empty"]) == (5, 4, 1)
  assert facts["changed"] == 1.0 and facts["calls"] == 23
  assert facts["repeated"] == 0.0
  assert facts["revision_characters"] > facts["answer_characters"]


def test_a_killed_run_goes_on(finished, make_config, tmp_path):
  whole, facts, _ = finished
  count, lock = [0], threading.Lock()

  def breaks(body):
    with lock:
      count[0] += 1
      is_down = count[0] > 7
    return (500, {}, b"") if is_down else critic(body)

  with fake_judge.serving(breaks) as server:
    config = make_config(server)
    with pytest.raises(UserError, match="the same command goes on"):
      pipelines.run(config, tmp_path)
    server.answer, before = critic, len(server.bodies)
    found = pipelines.run(config, tmp_path)
    assert len(server.bodies) - before == 18 - 7
  assert found["paid_now"] == 18 - 7
  name = constitution.REVISIONS_FILE
  assert (tmp_path / name).read_text() == (whole / name).read_text()
  assert found | {"paid_now": 0} == facts | {"paid_now": 0}


def test_a_model_criticises_itself(make_config, tmp_path, capsys):
  config = make_config()
  config.update(rounds=1, count=3)
  facts = pipelines.run(config, tmp_path)
  assert facts["prompts"] == 3 and facts["failed"] == 0
  constitution.tell(pipelines.read(config).settings, tmp_path)
  said = capsys.readouterr().out
  assert "format='messages'" in said and "revision characters" in said


def test_a_revision_that_is_the_critique_is_counted(make_config, tmp_path):
  with fake_judge.serving(lambda body: fake_judge.said("same")) as server:
    config = make_config(server)
    config.update(rounds=1, count=2)
    facts = pipelines.run(config, tmp_path)
  assert facts["repeated"] == facts["changed"] == 1.0


def test_its_data_is_that_of_sft(finished, files, make_config):
  folder, _, _ = finished
  config = defaults.sft()
  config.mesh.devices = 1
  config.model.source = make_config().model.source
  config.data.update(
    source=str(folder / constitution.REVISIONS_FILE),
    format="messages",
    chat=True,
  )
  config.schedule.steps = 1
  settings = tiny_runs.checked(config)
  found, _ = dataset.records(settings.data, None)
  assert [len(record.messages) for record in found] == [2] * 4


@pytest.mark.parametrize(
  "values, message",
  [
    ({"rounds": 0}, "rounds=0"),
    ({"principles": "gone"}, "principles='gone'"),
    ({"critic": "gone"}, "gone"),
    ({"temperature": -1.0}, "temperature"),
  ],
)
def test_settings_that_cannot_be_are_refused(values, message, make_config):
  config = make_config()
  config.update(values)
  with pytest.raises(UserError, match=message):
    tiny_runs.checked(config)
