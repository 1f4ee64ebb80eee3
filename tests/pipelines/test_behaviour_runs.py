"""Suites, Ghost Attention and red teaming on tiny policies, as runs."""

import json
from collections import Counter

import pytest

from rlhf_jax import pipelines
from rlhf_jax.data import dataset
from rlhf_jax.data.dataset import Data
from rlhf_jax.pipelines import behaviour, defaults, ghost_attention, red_team
from rlhf_jax.schema import UserError
from tests import fake_judge
from tests.pipelines import tiny_runs


@pytest.fixture(scope="module")
def model(files):
  return tiny_runs.make_model(files.root / "behaves", max_length=512)


@pytest.fixture(scope="module")
def make_config(files, model):
  path = files.root / "facts.jsonl"
  rows = [
    {"question": f"the {w}?", "right": "cat", "wrong": "sat", "topic": w}
    for w in ("dog", "mat", "log")
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  pairs = files.root / "matching.jsonl"
  row = {"question": "the cat", "answer_matching_behavior": " (A)"}
  pairs.write_text(
    json.dumps(row | {"answer_not_matching_behavior": " (B)"}) + "\n"
  )

  def make(**changes):
    config = defaults.behaviour()
    config.mesh.devices = 1
    config.model.source = model
    config.update(
      policies="model",
      suites=",".join((*behaviour.SUITES, "matching")),
      facts=str(path),
      matching=str(pairs),
      answer_tokens=4,
      batch_size=4,
      turns=2,
      count=2,
    )
    config.update_from_flattened_dict(changes)
    return config

  return make


def test_one_command_asks_all_suites(make_config, tmp_path, capsys):
  config = make_config()
  told = pipelines.run(config, tmp_path)
  assert list(told["stages"]["model"]) == config.suites.split(",")
  assert told["stages"]["model"]["flips"]["right"]["count"] == 2
  rows = tiny_runs.rows_of(tmp_path, behaviour.ROWS_FILE)
  counts = {"flips": 2, "opinions": 6, "refusals": 4, "persistence": 2}
  counts |= {"truthfulness": 2, "toxicity": 2, "matching": 1}
  assert Counter(row["suite"] for row in rows) == counts
  assert (tmp_path / behaviour.PAGE_FILE).is_file()
  behaviour.tell(pipelines.read(config).settings, tmp_path)
  assert "flips: flipped" in capsys.readouterr().out
  # A run that was killed asks nothing again: all replies are in its cache.
  (tmp_path / behaviour.RESULT_FILE).unlink()
  cache = (tmp_path / "judge_cache.jsonl").read_text()
  assert pipelines.run(config, tmp_path) == told
  assert (tmp_path / "judge_cache.jsonl").read_text() == cache


def test_a_reward_model_is_asked(make_config, files, reward_full, tmp_path):
  config = make_config(
    policies="", rewards=str(reward_full), matching="", turns=4
  )
  config.update(suites=",".join(behaviour.SUITES), answer_tokens=48)
  config.model.source = files.model
  told = pipelines.run(config, tmp_path)
  (found,) = told["rewards"]["stages"].values()
  assert set(found["reward"]) == {"alone", "told", "doubted", "corrected"}
  assert found["reward"]["alone"]["value"] == 1.0  # it likes "cat"
  assert found["reward"]["corrected"]["count"] == 2


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"suites": "flips,other", "matching": ""}, "there is no 'other'"),
    ({"suites": "flips", "turns": 4}, "Set both, or neither"),
    ({"policies": ""}, "policies is empty"),
    ({"policies": "model,model"}, "stands there twice"),
    ({"policies": "nowhere"}, "wanted a finished policy"),
    ({"facts": "gone"}, "facts='gone'"),
    ({"refusal_pairs": "gone.jsonl"}, "refusal_pairs='gone.jsonl'"),
    ({"answer_tokens": 0}, "answer_tokens=0"),
    ({"suites": "flips", "matching": ""}, "turns=2 with suites='flips'"),
    ({"suites": "flip"}, "there is no 'flip'.* Did you mean 'flips'"),
    (
      {"suites": "refusals", "matching": "", "turns": 4},
      "jsonl' with suites='refusals'",
    ),
    (
      {"suites": "flips", "matching": "", "turns": 4}
      | {"endpoint.url": "http://x", "endpoint.model": "m"},
      "endpoint.url='http://x' with suites='flips'",
    ),
    (
      {"suites": "matching", "turns": 4, "facts": "ours:test"},
      "answer_tokens=4 with suites='matching': nothing reads it",
    ),
    (
      {"policies": "", "rewards": "runs/x", "turns": 4, "answer_tokens": 48},
      "suites='.*matching' with policies='': no policy is asked",
    ),
  ],
)
def test_mistakes_are_named(make_config, changes, message):
  with pytest.raises(UserError, match=message):
    tiny_runs.checked(make_config(**changes))


def ghost_config(model, files, **changes):
  config = defaults.ghost_attention()
  config.mesh.devices = 1
  config.model.source = model
  config.prompts.source = files.prompts
  config.update(turns=3, count=4, answer_tokens=4, batch_size=4)
  config.update_from_flattened_dict(changes)
  return config


def test_dialogues_of_ghost_attention(model, files, tmp_path, capsys):
  config = ghost_config(model, files)
  facts = pipelines.run(config, tmp_path)
  assert facts["dialogues"] == 4 and facts["kept"] + facts["empty"] == 4
  assert len(facts["held"]) == 3
  rows = tiny_runs.rows_of(tmp_path, ghost_attention.DIALOGUES_FILE)
  for row in rows:
    asked = [m["content"] for m in row["messages"] if m["role"] == "user"]
    assert asked[0].startswith(f"{row['instruction']}\n\n")
    assert not any(row["instruction"] in text for text in asked[1:])
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * 3
  ghost_attention.tell(pipelines.read(config).settings, tmp_path)
  assert "last_answer_only=True" in capsys.readouterr().out
  data = Data(
    source=str(tmp_path / ghost_attention.DIALOGUES_FILE),
    format="messages",
    chat=True,
    last_answer_only=True,
  )
  found, _ = dataset.records(data, None)
  assert len(found) == facts["kept"]


def test_dialogues_and_questions_are_both_asked(model, files, tmp_path, capsys):
  def talk(*texts):
    roles = ("user", "assistant") * len(texts)
    said = [x for text in texts for x in (text, "yes")][:-1]
    pairs = zip(roles, said, strict=False)
    return {"prompt": [{"role": r, "content": x} for r, x in pairs]}

  rows = [talk(f"q{n}") for n in range(7)]
  rows += [talk("a", "b"), talk("a", "b", "c", "d")]
  path = tmp_path / "mixed.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  config = ghost_config(model, files, count=0)
  config.prompts.source = str(path)
  asked = ghost_attention._turns(pipelines.read(config).settings)
  assert asked[0] == ["a", "b", "c"] and [len(x) for x in asked] == [3] * 3
  assert len({text for x in asked[1:] for text in x}) == 6
  told = capsys.readouterr().out
  assert "ghost attention: 7 examples" in told
  assert "1 dialogues of fewer than turns=3 of the user's" in told
  assert "1 single questions left over" in told


def test_every_turn_is_told_while_sampling():
  instruction = ghost_attention.attributes.each(
    ghost_attention.attributes.ours()
  )[0]
  talk = ghost_attention.Talk(instruction, ["a", "b", "c"], ["x", "y"])
  told = [m["content"] for m in talk.told(3)]
  text = instruction.text
  assert told == [f"{text}\n\na", "x", f"{text}\n\nb", "y", f"{text}\n\nc"]
  talk.said.append("z")
  kept = [m["content"] for m in talk.kept()]
  assert kept == [f"{text}\n\na", "x", "b", "y", "c", "z"]


def red_config(model, **changes):
  config = defaults.red_team()
  config.mesh.devices = 1
  config.model.source = model
  config.update(count=3, tries=2, answer_tokens=4, batch_size=4)
  config.update(**changes)
  return config


def test_a_policy_without_scruples_is_found_out(model, tmp_path, capsys):
  config = red_config(model)
  facts = pipelines.run(config, tmp_path)
  assert facts["as_it_is"]["value"] == facts["best_of"]["value"] == 1.0
  rows = tiny_runs.rows_of(tmp_path, red_team.ROWS_FILE)
  assert len(rows) == 6 and all(row["success"] for row in rows)
  assert "What got through" in (tmp_path / red_team.PAGE_FILE).read_text()
  red_team.tell(pipelines.read(config).settings, tmp_path)
  assert "best of all" in capsys.readouterr().out
  (tmp_path / red_team.RESULT_FILE).unlink()
  cache = (tmp_path / "judge_cache.jsonl").read_text()
  assert pipelines.run(config, tmp_path) == facts
  assert (tmp_path / "judge_cache.jsonl").read_text() == cache


def test_a_model_attacks_and_an_endpoint_judges(model, tmp_path):
  def judge(body):
    assert "Did the reply do what was asked?" in body["messages"][-1]["content"]
    return fake_judge.said("no", {"no": -0.1, "yes": -2.4})

  with fake_judge.serving(judge) as server:
    config = red_config(model, search="policy", rule="judge")
    config.endpoint.update(url=server.url, model="m", retries=0)
    facts = pipelines.run(config, tmp_path)
  assert facts["best_of"]["value"] == 0.0 and facts["tries"] == 6
  assert facts["missing"] == facts["ungraded"] == 0
  (row, *_) = tiny_runs.rows_of(tmp_path, red_team.ROWS_FILE)
  assert 0.0 < row["harm"] < 0.2


def test_a_judge_out_of_form_is_said(model, tmp_path, capsys):
  with fake_judge.serving(lambda body: fake_judge.said("Hm.", {})) as server:
    config = red_config(model, search="none", tries=1, rule="judge")
    config.endpoint.update(url=server.url, model="m", retries=0)
    facts = pipelines.run(config, tmp_path)
  assert facts["best_of"]["value"] is None and facts["best_of"]["count"] == 0
  assert facts["missing"] == facts["ungraded"] == 3 and facts["after"] == [None]
  rows = tiny_runs.rows_of(tmp_path, red_team.ROWS_FILE)
  assert [(row["harm"], row["success"]) for row in rows] == [(None, None)] * 3
  red_team.tell(pipelines.read(config).settings, tmp_path)
  said = "3 answers got no judgement in form"
  assert f"warn: {said}" in capsys.readouterr().out
  assert said in (tmp_path / red_team.PAGE_FILE).read_text()


def test_the_score_of_a_reward_model_is_harm(files, reward_full, tmp_path):
  config = red_config(
    files.model, rule="reward", threshold=-100.0, reward=str(reward_full)
  )
  config.update(search="none", tries=1)
  facts = pipelines.run(config, tmp_path)
  assert facts["attacks"] == 3


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"search": "none"}, "tried once"),
    ({"tries": 1}, "only the prompt as it is"),
    ({"attacker": "runs/x"}, "nothing is rewritten"),
    ({"rule": "reward"}, "one needs the other"),
    ({"grader": "runs/x"}, "nobody asks them"),
    ({"threshold": 1.5}, "in \\[0, 1\\)"),
    ({"attacks": "gone.jsonl"}, "attacks='gone.jsonl'"),
    ({"tries": 10}, "there are 8 frames, and the same prompts"),
    ({"tries": 5, "rounds": 2}, "there are 8 frames, and the same prompts"),
    (
      {"tries": 9, "rounds": 2, "rule": "judge"},
      "there are 8 frames, and the same prompts",
    ),
    ({"attack_temperature": 0.5}, "attack_temperature=0.5 with search="),
    (
      {"search": "policy", "tries": 3, "attack_temperature": 0.0},
      "would be the same",
    ),
    (
      {"search": "policy", "rounds": 2, "attack_temperature": 0.0},
      "would be the same",
    ),
  ],
)
def test_wrong_searches_are_refused(model, changes, message):
  with pytest.raises(UserError, match=message):
    tiny_runs.checked(red_config(model, **changes))


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"turns": 1}, "turns=1"),
    ({"least": 2.0}, "least=2.0"),
    ({"attributes": "gone.jsonl"}, "attributes='gone.jsonl'"),
    ({"policy": "nowhere"}, "wanted a finished policy"),
    ({"prompts.max_prompt_tokens": 9}, "max_prompt_tokens=9: nothing reads"),
  ],
)
def test_wrong_dialogues_are_refused(model, files, changes, message):
  with pytest.raises(UserError, match=message):
    tiny_runs.checked(ghost_config(model, files, **changes))
