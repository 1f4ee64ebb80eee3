"""Which method to start with: bounds, sources, costs, and the command."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from rlhf_jax import advise
from rlhf_jax.data.examples import Comparison, Prompt, Ranking
from rlhf_jax.planning import advice, costs, data_facts, topology
from rlhf_jax.planning.data_facts import Facts
from rlhf_jax.schema import UserError


def configs(**counts):
  return [stage.config for stage in advice.stages(Facts(**counts))]


def write(path, records):
  path.write_text("".join(json.dumps(x) + "\n" for x in records))
  return str(path)


def pairs(count, **fields):
  return [
    {"prompt": f"p{i}", "chosen": "long one", "rejected": "x", **fields}
    for i in range(count)
  ]


@pytest.mark.parametrize(
  ("count", "has"),
  [
    (4_999, ("configs/dpo.py",)),
    (
      5_000,
      ("configs/dpo.py", "configs/reward.py", "configs/report_card.py"),
    ),
    (10_000, ("configs/reward.py", "configs/report_card.py")),
  ],
)
def test_the_number_of_pairs_decides(count, has):
  found = configs(pairs=count, comparisons=count)
  ppo = () if count < 5_000 else ("configs/ppo.py",)
  assert found == [*has, *ppo, "configs/evaluate.py"]


def test_other_data_starts_elsewhere():
  assert configs(references=1, prompts=1)[0] == "configs/method.py:grpo"
  assert configs(labelled=9)[0] == "configs/kto.py"
  assert configs(steps=9)[0] == "configs/process_reward.py"
  assert configs(prompts=9)[0] == "python -m rlhf_jax.label"
  assert configs(demonstrations=9)[0] == "configs/sft.py"
  # K ranked answers of a prompt hold more pairs than records
  assert "configs/reward_rankings.py" in configs(pairs=60_000, comparisons=9)
  with pytest.raises(UserError, match="no record"):
    advice.stages(Facts())


def test_every_line_names_what_it_rests_on():
  facts = Facts(
    demonstrations=9,
    pairs=6_000,
    comparisons=6_000,
    references=3,
    longer=0.7,
    ties=0.5,
    annotators={"a": 1},
    languages={"en": 99, "de": 1},
    refused=2,
  )
  notes = advice.risks(facts)
  assert len(notes) == 8
  assert all(x.source for x in (*notes, *advice.stages(facts)))
  assert any("de" in x.text and "5%" in x.text for x in notes)


def test_what_is_cited_of_results_is_there():
  source = Path(advice.__file__).read_text()
  results = Path(__file__).parents[2] / "benchmarks" / "RESULTS.md"
  heads = re.findall("^## (.*)$", results.read_text().lower(), re.MULTILINE)
  cited = re.findall(r'RESULTS, ([^;"]+)', source)
  assert len(cited) > 3 and set(cited) <= set(heads)


def test_facts_of_examples_by_hand():
  ranked = Ranking(
    where="",
    prompt="p",
    answers=("aaa", "bb", "c"),
    ranks=(1, 0, None),
    fields={"annotator": "anna", "language": "en"},
  )
  scored = Ranking(
    where="", prompt="q", answers=("a", "b"), scores={"help": (2.0, 2.0)}
  )
  pair = Comparison(where="", prompt="p", chosen="aa", rejected="b", label=0.0)
  alike = [
    Comparison(where="", prompt="p", chosen=x, rejected="c") for x in "ab"
  ]
  last = Comparison(where="", prompt="p", chosen="aa", rejected="b")
  prompt = Prompt("", "z", reference="1")
  found = data_facts.of([ranked, scored, pair, *alike, last, prompt])
  # "bb" before "aaa" and "b" before "aa", then the longer one; of one length
  # neither counts
  assert (found.comparisons, found.pairs) == (6, 5)
  assert found.longer == pytest.approx(1 / 3)
  assert found.ties == pytest.approx(1 / 6)
  assert (found.prompts, found.references, found.prompt_keys) == (1, 1, 2)
  assert (found.annotators, found.languages) == ({"anna": 1}, {"en": 1})
  assert found.objectives == ("help",)


def test_layouts_that_say_more_than_their_kind(tmp_path):
  """GSM8K's answers are references too; rated dialogues are no sentences."""
  maths = [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in (1, 2)]
  rated = {
    "messages": [
      {"role": "user", "content": "a"},
      {"role": "assistant", "content": "b"},
    ],
    "ratings": {"witty": 7},
  }
  facts = data_facts.read([write(tmp_path / "a.jsonl", maths)])
  assert (facts.demonstrations, facts.references) == (2, 2)
  found = [stage.config for stage in advice.stages(facts)]
  assert found[:2] == ["configs/sft.py", "configs/method.py:grpo"]
  facts = data_facts.read([write(tmp_path / "b.jsonl", [rated])])
  (stage, _) = advice.stages(facts)
  assert stage.config == "configs/reward.py"
  assert "data.format=rated_dialogue" in stage.fields


def test_a_pair_of_equal_answers_is_none():
  same = Comparison(where="", prompt="p", chosen="a", rejected="a")
  other = Comparison(where="", prompt="p", chosen="a", rejected="b")
  found = data_facts.of([same, other], refused=1)
  assert (found.comparisons, found.pairs, found.refused) == (1, 1, 2)


def test_hours_grow_with_the_data_and_money_with_the_price(monkeypatch):
  monkeypatch.setattr(costs.remedies, "advice", lambda *_: "less")  # is slow
  slice_ = topology.parse("cpu:1")
  stage = next(
    x
    for x in advice.stages(Facts(pairs=640, comparisons=640))
    if x.config == "configs/dpo.py"
  )
  few = costs.of(stage, Facts(pairs=640), "shape:gemma_2b", slice_)
  many = costs.of(stage, Facts(pairs=6_400), "shape:gemma_2b", slice_)
  assert (few.steps, many.steps) == (10, 100)  # one epoch in batches of 64
  assert many.low == pytest.approx(10 * few.low)
  assert 0 < few.low <= few.high
  assert few.money(2.0) == pytest.approx((2 * few.low, 2 * few.high))
  stage = advice.stages(Facts(labelled=640))[0]
  cost = costs.of(stage, Facts(labelled=640), "shape:gemma_2b", slice_)
  assert (stage.config, cost.steps) == ("configs/kto.py", 640 // 64)
  assert not few.fits  # 2 billion parameters in 1 GiB
  assert few.remedies == "less"


def test_what_a_verifier_judges_needs_no_reward_model(monkeypatch):
  monkeypatch.setattr(costs.remedies, "advice", lambda *_: "less")
  slice_ = topology.parse("cpu:1")
  stage = advice.stages(Facts(prompts=9, references=9))[0]
  found, other = (
    costs.of(x, Facts(references=9), "shape:gemma_2b", slice_)
    for x in (stage, dataclasses.replace(stage, fields=()))
  )
  assert found.peak < other.peak - 2 * 2e9  # its weights
  assert found.high < other.high
  size, parts = (
    found.changes[name]
    for name in ("schedule.batch_size", "epochs.microbatches")
  )
  assert parts == size * 8  # answers of a prompt, one of them at a time
  lines = "\n".join(advise.stage_lines(1, stage, None, None))
  assert "configs/method.py:grpo --config.verifier.name=NAME" in lines


def test_the_command_says_all_of_it(tmp_path, capsys):
  name = write(tmp_path / "pairs.jsonl", pairs(20, annotator="anna"))
  code = advise.main(
    ["", f"--data={name}", "--annotation=0.5", f"--json={tmp_path / 'o.json'}"]
  )
  said = capsys.readouterr().out
  assert code == 0
  assert "1. DPO: configs/dpo.py" in said
  assert "the longer answer wins 100% of the pairs" in said
  assert "4,980 pairs more, to 5,000 for a reward model: 2,490.00" in said
  assert "a stop at 20" in said
  assert max(map(len, said.splitlines())) <= 80 + len(name)
  written = json.loads((tmp_path / "o.json").read_text())
  assert written["data"]["pairs"] == 20
  assert written["stages"][0]["cost"] is None


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--price=1"], "Add --chips"),
    (["--model=shape:lama3_8b"], "Add --chips"),
    (["--annotation=-1"], "price is >= 0"),
    (["--chips=v9:2x2"], "--chips=v9:2x2: no such generation"),
  ],
)
def test_mistakes_are_one_line(tmp_path, capsys, options, message):
  name = write(tmp_path / "pairs.jsonl", pairs(2))
  assert advise.main(["", f"--data={name}", *options]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
