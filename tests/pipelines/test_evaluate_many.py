"""Any number of policies: numbers by hand, names, a whole run."""

import json

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.data.dataset import Data
from rlhf_jax.evaluation import comparison
from rlhf_jax.pipelines import defaults, evaluate_many
from rlhf_jax.programs import answer_numbers, answers, policy_groups
from rlhf_jax.schema import UserError
from tests import tiny
from tests.pipelines import test_evaluate_numbers as two
from tests.pipelines import tiny_runs


def said(scores, kl=None):
  """Returns answers of two prompts, three to each."""
  count = 6
  return answers.Answers(
    prompts=["p"] * 3 + ["q"] * 3,
    texts=[f"a b {n}" for n in range(count)],
    scores={name: np.array(x) for name, x in scores.items()},
    kl=None if kl is None else np.array(kl),
    lengths=np.full(count, 3.0),
    ended=np.ones(count, bool),
    group=3,
  )


# Right answers: 1 of 3 and 0 of 3; then 2 of 3 and 3 of 3.
FEW = said({"verifier": [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]})
MANY = said({"verifier": [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]}, kl=[1, 2, 3, 0, 0, 0])


def test_pass_at_k_and_win_rates_by_hand():
  """Chen et al. 2021: 1 - C(n - c, k) / C(n, k)."""
  found = evaluate_many.numbers_of({"few": FEW, "many": MANY}, False, 0.5)
  assert (found["evaluation_prompts"], found["evaluation_samples"]) == (2, 3)
  few, many = found["policies"]["few"], found["policies"]["many"]
  expected = {
    "verifier": (1 / 6, 5 / 6),
    "verifier_pass_1": (1 / 6, 5 / 6),
    "verifier_pass_2": ((2 / 3 + 0) / 2, (1 + 1) / 2),
    "verifier_pass_3": (1 / 2, 1.0),
    "verifier_best_of_2": ((2 / 3 + 0) / 2, 1.0),
    "verifier_best_of_3": (1 / 2, 1.0),
    "length": (3.0, 3.0),
  }
  for name, values in expected.items():
    assert (few[name], many[name]) == pytest.approx(values), name
  assert few["verifier_pass_1_standard_error"] == pytest.approx(1 / 6)
  assert few["verifier_pass_3_standard_error"] == pytest.approx(1 / 2)
  # First prompt: of 9 pairs 2 x 2 win, 1 x 1 loses, 4 tie; second: all win.
  assert many["verifier_win_rate"] == pytest.approx(((4 + 2) / 9 + 1) / 2)
  assert many["verifier_difference"] == pytest.approx(2 / 3)
  assert many["verifier_difference_standard_error"] == pytest.approx(1 / 3)
  assert many["kl_nats"] == pytest.approx(1.0)
  assert not {"verifier_win_rate", "verifier_difference", "kl_nats"} & set(few)


def test_one_policy_alone_and_no_full_marks():
  found = evaluate_many.numbers_of({"few": FEW}, False, None)
  assert list(found["policies"]) == ["few"]
  assert not [x for x in found["policies"]["few"] if "pass" in x]


def test_the_proxy_chooses_and_gold_says_what_it_is_worth():
  """Of 3 the proxy's best is the third, then any of two that it likes alike."""
  columns = {
    "proxy": np.array([[0.0, 1.0, 2.0], [5.0, 5.0, 1.0]]),
    "gold": np.array([[9.0, 8.0, 7.0], [1.0, 3.0, 8.0]]),
  }
  found = answer_numbers.of_several(columns, None)
  np.testing.assert_allclose(found["gold_best_of_3_by_proxy"], [7.0, 2.0])
  np.testing.assert_allclose(found["proxy_best_of_3"], [2.0, 5.0])
  np.testing.assert_allclose(found["gold_best_of_2_by_proxy"][0], 22 / 3)


def test_two_policies_are_compared_by_several_answers():
  facts = answer_numbers.summarise(FEW, MANY, False, 0.5)
  assert (facts["evaluation_prompts"], facts["evaluation_samples"]) == (2, 3)
  assert facts["verifier_pass_2_before"] == pytest.approx(1 / 3)
  assert facts["verifier_pass_2_after"] == pytest.approx(1.0)
  assert facts["verifier_pass_2_standard_error"] == pytest.approx(1 / 3)
  assert facts["verifier_win_rate"] == pytest.approx(5 / 6)
  assert facts["kl_nats"] == 1.0
  rows = {row.name: row for row in comparison.summary_rows(facts, "x", "y")}
  assert rows["pass@2"].after == pytest.approx(1.0)
  assert rows["Best of 3 (verifier)"].before == pytest.approx(0.5)
  greedy = answer_numbers.summarise(FEW, said(MANY.scores), False, 0.5)
  assert "kl_nats" not in greedy


@pytest.mark.parametrize(
  ("policies", "names"),
  [
    ("runs/sft, runs/ppo@best,model", ["sft", "ppo@best", "model"]),
    ("a/sft,b/sft,c", ["a/sft", "b/sft", "c"]),
    ("one", ["one"]),
  ],
)
def test_policies_are_named_as_shortly_as_they_differ(policies, names):
  settings = evaluate_many.Settings(policies=policies)
  assert list(settings.named) == names


def make_config(files, root):
  config = defaults.evaluate_many()
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2)
  path = root / "prompts.jsonl"
  rows = tiny_runs.rows_of(files.root, "prompts.jsonl")
  path.write_text(
    "".join(json.dumps(row | {"reference": ""}) + "\n" for row in rows)
  )
  config.prompts.update(source=str(path), format="prompt", max_length=24)
  config.generate.update(max_new_tokens=tiny_runs.NEW_TOKENS, num_samples=2)
  config.verifier.name = "pattern"
  config.verifier.settings.update(pattern=".*cat.*")
  config.update(count=5, batch_size=4)
  return config


@pytest.fixture(scope="module")
def drawn(files, tmp_path_factory):
  """Returns a config of stages that were drawn, and their folder."""
  root = tmp_path_factory.mktemp("many")
  of_two = two.make_config(files)
  two.make_stages(of_two, root)
  config = make_config(files, root)
  config.policies = f"{root / 'start'},{root / 'policy'},model"
  config.reward = str(root / "reward")
  return config, root


def test_three_policies_are_judged_by_two_judges(drawn, capsys):
  config, root = drawn
  facts = pipelines.run(config, root / "evaluation")
  assert list(facts["policies"]) == ["start", "policy", "model"]
  rows = tiny_runs.rows_of(root / "evaluation", "texts.jsonl")
  assert len(rows) == 10 and [row["sample"] for row in rows] == [0, 1] * 5
  for name, numbers in facts["policies"].items():
    scores = [row["scores"][name] for row in rows]
    right = [score["verifier"] for score in scores]
    proxy = [score["proxy"] for score in scores]
    assert right == ["cat" in row["answers"][name] for row in rows]
    assert numbers["verifier_pass_1"] == pytest.approx(np.mean(right))
    best = np.reshape(right, (5, 2)).max(axis=1)
    assert numbers["verifier_pass_2"] == pytest.approx(np.mean(best))
    assert numbers["proxy"] == pytest.approx(np.mean(proxy), rel=1e-5)
    assert ("kl_nats" in numbers) == (name != "start")
  again = pipelines.run(config, root / "evaluation")
  assert again == facts
  job = pipelines.read(config)
  job.pipeline.tell(job.settings, root / "evaluation")
  told = capsys.readouterr().out
  assert "5 held-out prompts, 2 answers to each" in told
  assert "verifier pass 2" in told and "against start" in told
  path = root / "policy" / "stage.json"
  before = path.read_text()
  path.write_text(json.dumps(json.loads(before) | {"steps": 12345}))
  try:
    with pytest.raises(UserError, match="policies: .*has changed since"):
      pipelines.run(config, root / "evaluation")
  finally:
    path.write_text(before)


@pytest.mark.slow
def test_policies_on_two_models(files, drawn, tmp_path, capsys):
  """Each answers as it would alone; judges read the other's text."""
  config, root = drawn
  config = config.copy_and_resolve_references()
  alone = pipelines.run(config, tmp_path / "alone")["policies"]
  source = tiny_runs.make_model(
    tmp_path / "other", 12, ["<|pad|>", "<|first|>", *tiny.SPECIAL]
  )
  of_other = two.make_config(files)
  of_other.model.source = source
  two.make_stages(of_other, tmp_path / "on_other")
  policy = tmp_path / "on_other" / "policy"
  config.policies = f"{root / 'start'},{policy},model"
  facts = pipelines.run(config, tmp_path / "both")["policies"]
  names = list(facts)
  assert names[0] == "start" and names[2] == "model"
  for name in ("start", "model"):  # as if the other were not there
    assert facts[name] == pytest.approx(alone[name], rel=1e-5), name
  other = facts[names[1]]
  assert "kl_nats" not in other and "kl_nats" in facts["model"]
  assert "proxy_win_rate" in other and np.isfinite(other["proxy"])
  told = capsys.readouterr().out
  assert f"on {source}, with its tokenizer; no KL" in told
  rows = tiny_runs.rows_of(tmp_path / "both", "texts.jsonl")
  right = ["cat" in row["answers"][names[1]] for row in rows]
  assert other["verifier_pass_1"] == pytest.approx(np.mean(right))
  with pytest.raises(UserError, match="prefix_tokens=3: prompts are the first"):
    data = Data(format="ratings", prompt="p", prefix_tokens=3)
    policy_groups.check_prompts(data, [None, None], [])


def test_one_greedy_policy(drawn):
  config, root = drawn
  config = config.copy_and_resolve_references()
  config.update(policies=str(root / "policy"), reward="")
  config.generate.update(temperature=0.0, num_samples=1)
  found = pipelines.run(config, root / "greedy")["policies"]
  assert list(found) == ["policy"]
  assert "verifier_pass_1" in found["policy"] and "kl_nats" not in found
  config.seed = 9
  assert pipelines.run(config, root / "seed")["policies"] == found


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"policies": ""}, "policies is empty: name folders"),
    ({"policies": "runs/a,./runs/a"}, "one of them stands there twice"),
    ({"policies": "/nowhere"}, "config.policies='/nowhere': wanted a finished"),
    ({"generate.temperature": 0.0}, "num_samples=2 with temperature=0.0"),
    ({"reward_fn": "x.py:f"}, "reward_fn='x.py:f': one of them judges"),
    ({"count": 1}, "count=1"),
  ],
)
def test_what_cannot_be_evaluated_is_refused(drawn, changes, words):
  config, _ = drawn
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=words):
    tiny_runs.checked(config)
