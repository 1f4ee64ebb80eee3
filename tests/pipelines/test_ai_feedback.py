"""A language model labels pairs: from the file to the data of a reward run."""

import json
import math
import threading

import numpy as np
import pytest

from rlhf_jax import lab, pipelines
from rlhf_jax.comparisons import judges
from rlhf_jax.comparisons.sources import Policy
from rlhf_jax.data import dataset
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.examples import Comparison, Demonstration, Prompt
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import ai_feedback, defaults
from rlhf_jax.programs import judged_items
from rlhf_jax.schema import FieldError, UserError
from tests import fake_judge
from tests.pipelines import tiny_runs

BIAS = 1.0


def quality(answer):
  return float(answer.split()[0])


def planted(body):
  """Answers as a judge with a position bias would; "odd" is out of form."""
  text = body["messages"][-1]["content"]
  if "odd" in text:
    return fake_judge.said("Both", {"Both": -0.1})
  first, second = fake_judge.shown(text)
  z = quality(first) - quality(second) + BIAS
  tops = {"A": -math.log1p(math.exp(-z)), "B": -math.log1p(math.exp(z))}
  return fake_judge.said("A", tops)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Returns a file of pairs; every fourth pair people got wrong."""
  rng, rows = np.random.default_rng(0), []
  for n in range(24):
    best = rng.integers(3, 6)
    answers = [f"{best} good", f"{best - 2} worse answer"]
    answers = answers[::-1] if n % 4 == 0 else answers
    rows.append(
      {"prompt": f"q{n}", "chosen": answers[0], "rejected": answers[1]}
    )
  rows.append({"prompt": "odd", "chosen": "1 a", "rejected": "2 b"})
  rows.append({"prompt": "same", "chosen": "1 a", "rejected": "1 a "})
  path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def make_config(pairs, server=None):
  config = defaults.ai_feedback()
  config.mesh.devices = 1
  config.data.source = pairs
  if server is not None:
    config.endpoint.update(
      url=server.url, model="m", wait_seconds=0.001, retries=1, parallel=3
    )
  return config


@pytest.fixture(scope="module")
def finished(pairs, tmp_path_factory):
  folder = tmp_path_factory.mktemp("finished")
  with fake_judge.serving(planted) as server:
    facts = pipelines.run(make_config(pairs, server), folder)
    return folder, facts, len(server.bodies)


def test_labels_have_no_position_in_them(finished):
  folder, facts, asked = finished
  assert asked == 50 and facts["calls"] == 50 and facts["paid_now"] == 50
  assert facts["prompt_tokens"] == 500 and facts["answer_tokens"] == 50
  assert (facts["items"], facts["labelled"]) == (25, 24)
  assert (facts["out_of_form"], facts["equal_answers"]) == (1, 1)
  rows = tiny_runs.rows_of(folder, ai_feedback.FEEDBACK_FILE)
  for row in rows:
    s = quality(row["answers"][0]) - quality(row["answers"][1])
    assert row["label"] == pytest.approx(1.0 / (1.0 + math.exp(-s)))
    assert row["ranks"] == ([0, 1] if s > 0 else [1, 0])
    assert row["annotator"] == "ai:m" and len(row["item"]) == 16
    assert row["logits"] == pytest.approx([s + BIAS, -s + BIAS])
  firsts = [row["people_label"] for row in rows]
  assert 5 < sum(firsts) < 19  # the order was drawn
  (left,) = tiny_runs.rows_of(folder, ai_feedback.UNLABELLED_FILE)
  assert left["prompt"] == "odd" and left["failure"] == "out_of_form"
  assert "label" not in left


def test_the_judge_is_audited(finished, capsys):
  folder, facts, _ = finished
  assert facts["position_bias"] == pytest.approx(BIAS)
  assert facts["flip_rate"] == 0.0 and facts["gold_labels"] == 24
  assert facts["agreement"] == 0.75 and facts["kappa"] == pytest.approx(
    0.5, abs=0.1
  )
  ai_feedback.tell(None, folder)
  said = capsys.readouterr().out
  assert "m judged 24 of 25" in said and "flip rate" in said
  assert "out of form" in said and "format='ranking'" in said


def test_a_killed_run_pays_for_nothing_twice(finished, pairs, tmp_path):
  whole, facts, _ = finished
  count, lock = [0], threading.Lock()

  def breaks(body):
    with lock:
      count[0] += 1
      is_down = count[0] > 20
    return (500, {}, b"") if is_down else planted(body)

  with fake_judge.serving(breaks) as server:
    config = make_config(pairs, server)
    with pytest.raises(UserError, match="the same command goes on"):
      pipelines.run(config, tmp_path)
    kept = tiny_runs.rows_of(tmp_path, "judge_cache.jsonl")
    assert len(kept) == 20
    assert not (tmp_path / ai_feedback.RESULT_FILE).exists()
    server.answer, before = planted, len(server.bodies)
    found = pipelines.run(config, tmp_path)
    assert len(server.bodies) - before == 30
    again = pipelines.run(config, tmp_path)  # it is finished
    assert len(server.bodies) - before == 30
  assert found["paid_now"] == 30 and found["calls"] == 50
  same = {x: y for x, y in facts.items() if x != "paid_now"}
  assert {x: y for x, y in found.items() if x != "paid_now"} == same
  assert {x: again[x] for x in same} == same
  name = ai_feedback.FEEDBACK_FILE
  assert (tmp_path / name).read_text() == (whole / name).read_text()


def test_its_labels_are_those_of_a_reward_run(finished, files):
  folder, _, _ = finished
  config = tiny_runs.reward_config(files, "head", "", folder / "none.npz")
  config.data.update(
    source=str(folder / ai_feedback.FEEDBACK_FILE), format="ranking"
  )
  data = tiny_runs.settings_of(config).data
  base = tiny_runs.load_base(config)
  found = dataset.comparisons(data, base.tokenizer, 0)
  rows = tiny_runs.rows_of(folder, ai_feedback.FEEDBACK_FILE)
  wanted = [max(row["label"], 1.0 - row["label"]) for row in rows]
  np.testing.assert_allclose(found.labels, wanted, atol=1e-6)


def test_one_order_leaves_the_bias_in(pairs, tmp_path):
  with fake_judge.serving(planted) as server:
    config = make_config(pairs, server)
    config.judging.orders = "first"
    config.data.limit = 8
    facts = pipelines.run(config, tmp_path)
    assert len(server.bodies) == 8 and "flip_rate" not in facts
  for row in tiny_runs.rows_of(tmp_path, ai_feedback.FEEDBACK_FILE):
    s = quality(row["answers"][0]) - quality(row["answers"][1]) + BIAS
    assert row["label"] == pytest.approx(1.0 / (1.0 + math.exp(-s)))
    assert row["shown"] == [0, 1]


def test_scores_of_each_answer(pairs, tmp_path):
  def scores(body):
    text = body["messages"][-1]["content"]
    number = text.partition("This is the answer:\n")[2].split()[0]
    return fake_judge.said(number)

  with fake_judge.serving(scores) as server:
    config = make_config(pairs, server)
    config.kind, config.endpoint.reads = "scores", "text"
    config.data.limit = 8
    facts = pipelines.run(config, tmp_path)
  assert facts["labelled"] == 8 and facts["label_mass"] == 1.0
  assert facts["agreement"] == 0.75 and facts["gold_labels"] == 8
  assert facts["kappa"] > 0.3  # the order of the answers was drawn
  for row in tiny_runs.rows_of(tmp_path, ai_feedback.FEEDBACK_FILE):
    wanted = [2.0 * (quality(x) - 1.0) / 9.0 - 1.0 for x in row["answers"]]
    assert row["scores"] == pytest.approx(wanted)


@pytest.fixture(scope="module")
def model(files):
  return tiny_runs.make_model(files.root / "judge", max_length=512)


@pytest.fixture(scope="module")
def template(files):
  path = files.root / "template.txt"
  path.write_text("{principle} {prompt} 1: {first} 2: {second} {answer}")
  return str(path)


def test_a_model_judges_by_principles(model, template, pairs, tmp_path):
  config = make_config(pairs)
  config.model.source = model
  config.judging.update(template=template, least_mass=0.0, batch_size=8)
  config.update(principles="ours", principles_drawn=2)
  config.data.limit = 6
  facts = pipelines.run(config, tmp_path)
  assert facts["labelled"] == 6 and facts["calls"] == 24
  rows = tiny_runs.rows_of(tmp_path, ai_feedback.FEEDBACK_FILE)
  assert all(0.0 < row["label"] < 1.0 for row in rows)
  assert all(len(set(row["principles"])) == 2 for row in rows)
  assert len({tuple(row["principles"]) for row in rows}) > 2


def test_a_finished_policy_judges(model, template, pairs, tmp_path):
  """Of one whose factors are fresh the labels are those of its base."""
  policy = lab.load(model, lora_rank=2, mesh=mesh_lib.Config(devices=1))
  policy.save(tmp_path / "policy")
  config = make_config(pairs)
  config.model.update(source=model, lora_rank=2)
  config.judging.update(template=template, least_mass=0.0)
  config.judging.cache = str(tmp_path / "shared.jsonl")
  config.data.limit = 3
  found = []
  for name in ("", str(tmp_path / "policy")):
    config.policy = name
    facts = pipelines.run(config, tmp_path / f"of_{bool(name)}")
    assert facts["paid_now"] == 6  # another judge, so another reply
    rows = tiny_runs.rows_of(
      tmp_path / f"of_{bool(name)}", ai_feedback.FEEDBACK_FILE
    )
    found.append([row["label"] for row in rows])
  np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_it_scores_policies_that_are_compared(model, template):
  keys = [("the cat", 0), ("on", 0)]
  policies = [
    Policy(name, dict(zip(keys, texts, strict=True)))
    for name, texts in (("a", ["sat", ""]), ("b", ["is", "the"]))
  ]
  found = judges.named(f"ai:{model}", policies, keys, {})
  assert found.shape == (2, 2) and found[0, 1] == -1.0
  assert np.all(np.abs(found) <= 1.0)
  with pytest.raises(UserError, match="--judge=ai:gone"):
    judges.named("ai:gone", policies, keys, {})


def test_it_is_the_reward_of_a_policy(model, template, files, tmp_path):
  config = defaults.policy("rloo")
  config.mesh.devices = 1
  config.model.source = files.model
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.update(max_new_tokens=tiny_runs.NEW_TOKENS, num_samples=2)
  config.schedule.update(batch_size=4, steps=2, save_every=2)
  config.packing.row_tokens = 0
  config.verifier.name = "ai_judge"
  cache = tmp_path / "cache.jsonl"
  config.verifier.settings = {
    "source": model,
    "template": template,
    "least_mass": 0.0,
    "cache": str(cache),
  }
  pipelines.run(config, tmp_path / "run")
  rows = tiny_runs.rows_of(tmp_path / "run")
  assert all(row["reward/component/raised"] == 0.0 for row in rows)
  assert all(-1.0 <= row["rollout/score_mean"] <= 1.0 for row in rows)
  assert cache.read_text().count("\n") > 4
  shown = tiny_runs.rows_of(tmp_path / "run", "samples.jsonl")
  assert "ai_judge" in shown[0]


def records(*rows):
  return [
    Demonstration(f"f:{n}", prompt, text, fields={"policy": who, "kept": 1})
    for n, (prompt, text, who) in enumerate(rows)
  ]


def test_answers_of_one_prompt_are_an_item():
  found = judged_items.items_of(
    records(("p", "a", "x"), ("q", "b", "x"), ("p", "c", "y"), ("q", "d", "y")),
    Data(),
  )
  assert [item.answers for item in found] == [("a", "c"), ("b", "d")]
  assert found[0].policies == ("x", "y") and found[0].fields == {"kept": 1}
  with pytest.raises(UserError, match="f:0: the only answer"):
    judged_items.items_of(records(("p", "a", "x"), ("q", "b", "x")), Data())
  with pytest.raises(UserError, match="has no answers to compare"):
    judged_items.items_of([Prompt("f:1", "p")], Data())


def test_pairs_are_drawn_and_keep_what_belongs_together():
  texts = [("p", text, text) for text in "abcd"]
  (item,) = judged_items.items_of(records(*texts), Data())
  found, equal = judged_items.pairs_of([item], 0, 0)
  assert len(found) == 6 and not equal
  assert all(x.answers == x.policies for x in found)
  assert len({x.name for x in found}) == 6
  assert len(judged_items.pairs_of([item], 2, 0)[0]) == 2
  orders = set()
  for seed in range(20):
    ((pair,), _) = judged_items.pairs_of(
      judged_items.items_of([Comparison("f:1", "p", "a", "b", 0.9)], Data()),
      1,
      seed,
    )
    assert pair.label == pytest.approx(0.9 if pair.answers[0] == "a" else 0.1)
    orders.add(pair.answers)
  assert len(orders) == 2


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda c: None, "one of them judges"),
    (lambda c: c.update(kind="x"), r"kind='x'"),
    (lambda c: c.update(principles_drawn=2), "principles_drawn=2 with"),
    (lambda c: c.update(kind="scores", pairs_of_prompt=2), "is of pairs"),
    (lambda c: c.data.update(chat=True), "data.chat=True: nothing reads it"),
    (lambda c: c.update(principles="gone.txt"), "principles='gone.txt'"),
    (
      lambda c: c.update(principles="ours", principles_drawn=17),
      "principles_drawn=17: ours has 16",
    ),
    (lambda c: c.update(policy="gone"), "one of them answers"),
    (lambda c: c.judging.update(batch_size=3), "batch_size=3 with an endp"),
    (lambda c: c.update(kind="scores", own="me"), "own='me' with"),
    (
      lambda c: (c.update(principles="ours"), c.judging.update(rubric="x")),
      "stand in its place",
    ),
    (
      lambda c: c.endpoint.update(key_variable="NOT_SET_AT_ALL"),
      "NOT_SET_AT_ALL.*is not set",
    ),
  ],
)
def test_settings_that_cannot_be_are_refused(change, message, pairs):
  config = make_config(pairs)
  if message != "one of them judges":
    config.endpoint.update(url="http://127.0.0.1:9/v1", model="m")
  with pytest.raises((FieldError, UserError), match=message):
    change(config)
    tiny_runs.checked(config)
