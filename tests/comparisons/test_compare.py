"""Runs side by side: what is read, who judges, the page."""

import json
import re

import numpy as np
import pytest

from rlhf_jax import compare
from rlhf_jax.comparisons import judges, sources, tables
from rlhf_jax.schema import UserError
from tests.evaluation.test_report import ATTACK, Page

PROMPTS = [f"prompt {i}" for i in range(30)]
GOLD = "the fingerprint of a reward model"


def write_run(folder, shift=0.0, *, gold=GOLD, prompts=PROMPTS, rate=1e-5):
  """Writes a run that was evaluated; its answers score `shift` more."""
  folder.mkdir(parents=True)
  rng = np.random.default_rng(int(1000 * (shift + 1)))
  rows = []
  for i, prompt in enumerate(prompts):
    own = float(np.sin(i) + shift + 0.3 * rng.standard_normal())
    rows.append(
      {
        "prompt": prompt,
        "before": f"start {i}",
        "after": f"{folder.name} says a great {i}",
        "kl": 0.1,
        "gold_before": float(np.sin(i)),
        "gold_after": own,
        "proxy_before": 0.0,
        "proxy_after": own,
      }
    )
  _lines(folder / "texts.jsonl", rows)
  facts = {"gold_win_rate": 0.7, "kl_nats": 3.0 + shift}
  origins = {"gold": gold, "reward": f"another of {folder}"}
  _json(folder / "evaluation.json", facts | {"origins": origins})
  config = {"seed": 0, "optimizer": {"learning_rate": rate, "beta1": 0.9}}
  _json(folder / "config.json", {"config": config, "code": "1"})
  steps = [
    {"step": i, "phase": "", "time": 1.0, "rollout/score_mean": shift * i}
    for i in range(1, 5)
  ]
  _lines(folder / "metrics.jsonl", steps)
  return folder


def _json(path, values):
  path.write_text(json.dumps(values))


def _lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def runs(tmp_path):
  return [
    write_run(tmp_path / "a", 0.2),
    write_run(tmp_path / "b", 1.0, rate=3e-5),
    write_run(tmp_path / "c", -0.5),
  ]


def test_a_common_start_is_one_policy_and_the_first(runs, tmp_path):
  policies, prompts = sources.together(sources.read(runs))
  assert [x.name for x in policies] == ["before", "a", "b", "c"]
  assert [key[0] for key in prompts] == PROMPTS
  other = write_run(tmp_path / "d", 0.1)
  text = (other / "texts.jsonl").read_text().replace("start 3", "another")
  (other / "texts.jsonl").write_text(text)
  policies, _ = sources.together(sources.read([*runs, other]))
  found = [x.name for x in policies]
  assert found == ["before", "a", "b", "c", "d before", "d"]


def test_only_judges_that_are_the_same_in_all_runs_count(runs, tmp_path):
  policies, prompts = sources.together(sources.read(runs))
  known, left = judges.on_disk(policies, prompts)
  assert list(known) == ["gold"]
  assert "proxy: not the same judge in all runs" in left[0]
  other = write_run(tmp_path / "d", 0.1, gold="another")
  policies, prompts = sources.together(sources.read([*runs, other]))
  known, left = judges.on_disk(policies, prompts)
  assert not known and len(left) == 2


def test_prompts_that_stand_twice_are_told_apart(tmp_path):
  folder = write_run(tmp_path / "a", 0.2, prompts=["x", "y", "x"])
  other = write_run(tmp_path / "b", 0.3, prompts=["x", "z", "x"])
  _, prompts = sources.together(sources.read([folder, other]))
  assert prompts == [("x", 0), ("x", 1)]


def test_rows_of_one_policy_each(tmp_path):
  folder = tmp_path / "many"
  folder.mkdir()
  rows = [
    {"prompt": p, "policy": who, "response": f"{who} {p}", "gold": score}
    for who, score in (("x", 1.0), ("y", 2.0))
    for p in PROMPTS
  ]
  _lines(folder / "texts.jsonl", rows)
  policies, prompts = sources.together(sources.read([folder]))
  assert [x.name for x in policies] == ["many x", "many y"]
  known, left = judges.on_disk(policies, prompts)
  assert known["gold"].mean(axis=1).tolist() == [1.0, 2.0] and not left
  _lines(folder / "texts.jsonl", [{"prompt": "p", "said": "?"}])
  with pytest.raises(UserError, match="texts.jsonl:1: has no answer"):
    sources.read([folder])


def test_rows_of_all_policies_and_runs_evaluated_elsewhere(runs, tmp_path):
  folder = tmp_path / "evaluation"
  folder.mkdir()
  for run in runs[:2]:
    (run / "texts.jsonl").unlink()
  rows = [
    {
      "prompt": prompt,
      "sample": sample,
      "answers": {"a": "x", "b": "y", "other": "z"},
      "scores": {"a": {"gold": 1.0}, "b": {"gold": 2.0}, "other": {}},
    }
    for prompt in PROMPTS[:3]
    for sample in range(2)
  ]
  _lines(folder / "texts.jsonl", rows)
  policies, prompts = sources.together(sources.read([*runs[:2], folder]))
  assert [x.name for x in policies] == ["a", "b", "evaluation other"]
  assert compare.colours(["a", "b", "evaluation"], ["b", "x", "a"]) == [1, 3, 0]
  known, left = judges.on_disk(policies, prompts)
  assert not known and left == ["gold: no scores of evaluation other"]


def test_several_answers_to_a_prompt_are_one_unit(runs):
  policies, prompts = sources.together(sources.read(runs))
  known, _ = judges.on_disk(policies, prompts)
  once = tables.judgement("gold", policies, prompts, known["gold"])
  twice = [(prompt, i) for prompt, _ in prompts for i in range(2)]
  scores = np.repeat(known["gold"], 2, axis=1)
  again = tables.judgement("gold", policies, twice, scores)
  assert again.prompts == once.prompts == 30
  np.testing.assert_allclose(again.matrix, once.matrix)
  for row, other in zip(again.rows, once.rows, strict=True):
    assert row.ranked == pytest.approx(other.ranked)
    assert (row.low, row.high) == pytest.approx((other.low, other.high))


def test_chats_have_all_but_their_last_message_as_prompt(tmp_path):
  said = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
  ]
  (tmp_path / "a").mkdir()
  row = {"messages": said, "scores": {"mine": 1.0}, "length": 3}
  _lines(tmp_path / "a" / "scores.jsonl", [row])
  [run] = sources.read([tmp_path / "a"])
  [policy] = run.policies
  assert policy.answers == {("user: hello", 0): "hi"}
  assert list(policy.scores) == ["mine"]


def test_a_whole_run_is_read_from_its_stages(tmp_path):
  folder = tmp_path / "whole"
  write_run(folder / "evaluation", 0.1)
  (folder / "evaluation" / "metrics.jsonl").rename(folder / "metrics")
  (folder / "policy").mkdir()
  (folder / "metrics").rename(folder / "policy" / "metrics.jsonl")
  [run] = sources.read([folder])
  assert list(run.columns) == ["policy/rollout/score_mean"]
  assert [x.name for x in run.policies] == ["whole before", "whole"]
  assert run.policies[0].judges["gold"]


def test_settings_that_differ_and_nothing_else(runs):
  assert tables.settings(sources.read(runs)) == [
    ("optimizer.learning_rate", [1e-5, 3e-5, 1e-5])
  ]


def test_who_is_better_and_by_how_much(runs):
  policies, prompts = sources.together(sources.read(runs))
  known, _ = judges.on_disk(policies, prompts)
  found = tables.judgement("gold", policies, prompts, known["gold"])
  by_name = {row.name: row for row in found.rows}
  assert by_name["before"].difference is None
  assert by_name["b"].difference == pytest.approx(1.0, abs=0.2)
  assert by_name["b"].low < by_name["b"].difference < by_name["b"].high
  assert by_name["b"].low > 0 > by_name["c"].high
  elos = sorted(found.rows, key=lambda row: -row.ranked.elo)
  assert [row.name for row in elos] == ["b", "a", "before", "c"]
  np.testing.assert_allclose(found.matrix + found.matrix.T, 1.0)


def test_who_wins_everywhere_may_lose_elsewhere(runs):
  policies, prompts = sources.together(sources.read(runs))
  scores = np.arange(4.0)[:, None] * np.ones((4, 30))
  found = tables.judgement("any", policies, prompts, scores)
  assert found.rows[3].wins == 1.0 and found.rows[3].wins_high == 1.0
  assert found.rows[3].wins_low == pytest.approx(0.8865, abs=1e-3)  # Wilson


def test_judges_that_are_named(runs, tmp_path):
  policies, prompts = sources.together(sources.read(runs))

  def score(judge):
    return judges.named(judge, policies, prompts, {}).mean(axis=1)

  assert score("length")[1] == pytest.approx(
    np.mean([len(f"a says a great {i}") for i in range(30)])
  )
  vader = score("vader")
  assert vader[0] == 0.0 and vader[1] > 0.3
  mine = tmp_path / "mine.py"
  mine.write_text(
    "def ends(texts, prompts):\n"
    "  return [float(t[-1] == p[-1]) for t, p in zip(texts, prompts)]\n"
    "def needs(texts, references):\n"
    "  return [0.0] * len(texts)\n"
  )
  assert score(f"{mine}:ends").tolist() == [1.0] * 4
  for judge, words in (
    (f"{mine}:needs", "reads references, which texts on disk do not have"),
    (f"{mine}:gone", "gone"),
    ("golt", "no such judge. Name one of vader, length"),
  ):
    with pytest.raises(UserError, match=words):
      score(judge)


def write_page(runs, output, *more):
  argv = ["compare", *map(str, runs), f"--output={output}", *more]
  return compare.main(argv)


def test_the_page_holds_all_of_it(runs, tmp_path, capsys):
  output = tmp_path / "out" / "page.html"
  assert write_page(runs, output, "--texts=3") == 0
  printed = capsys.readouterr().out
  assert "gold, 30 prompts" in printed and "wins against before" in printed
  text = output.read_text()
  page = Page(text)
  said = " ".join("".join(page.text).split())
  for words in (
    "Judge: gold",
    "Share of prompts on which the row beats the column",
    "rollout/score_mean",
    "optimizer.learning_rate",
    "Left out, proxy: not the same judge",
    "a says a great 2",
    "3 of 30.",
  ):
    assert words in said, words
  assert "a says a great 3" not in said
  assert "beta1" not in said
  assert "script" not in page.tags and page.tags.count("svg") == 1
  assert not re.search(r'(?:src|href)="(?!data:,|#)', text)
  assert len(page.ids) == len(set(page.ids))


def test_texts_and_names_are_escaped(tmp_path):
  rows = [
    {"prompt": ATTACK + str(i), "before": ATTACK, "after": ATTACK + str(i)}
    for i in range(3)
  ]
  for name in ("a<b>", "c"):
    (tmp_path / name).mkdir()
    _lines(tmp_path / name / "texts.jsonl", rows)
    config = {"title": ATTACK, "name": name}
    _json(tmp_path / name / "config.json", {"config": config})
  output = tmp_path / "page.html"
  assert write_page([tmp_path / "a<b>", tmp_path / "c"], output) == 0
  page = Page(output.read_text())
  assert "script" not in page.tags and "b" not in page.tags
  assert "Nobody judged the answers of all policies" in "".join(page.text)


def test_runs_without_texts_are_compared_by_their_curves(tmp_path):
  for name in "ab":
    folder = write_run(tmp_path / name, 0.1)
    (folder / "texts.jsonl").unlink()
  output = tmp_path / "page.html"
  assert write_page([tmp_path / "a", tmp_path / "b"], output) == 0
  said = "".join(Page(output.read_text()).text)
  assert "rollout/score_mean" in said and "Who answers better" not in said


@pytest.mark.parametrize(
  ("more", "words"),
  [
    (["--first=nobody"], "There are before, a, b, c"),
    (["--judge=golt"], "Did you mean 'gold'"),
    (["--texts=-1"], "must be >= 0"),
    (["--curves=klx"], "--curves=klx: no metric of these runs has it in its"),
    (["NOWHERE"], "no such folder"),
    (["EMPTY"], "holds no run"),
    (["a"], "stands twice"),
    (["--output=page"], "End it with .html"),
  ],
)
def test_mistakes_are_told_in_one_line(runs, tmp_path, capsys, more, words):
  (tmp_path / "EMPTY").mkdir()
  more = [x if x[0] == "-" else str(tmp_path / x) for x in more]
  assert write_page(runs, tmp_path / "page.html", *more) == 2
  assert words in capsys.readouterr().err


def test_another_policy_may_be_the_first(runs, tmp_path, capsys):
  more = ("--first=b", "--judge=length", "--judge=gold")
  assert write_page(runs, tmp_path / "page.html", *more) == 0
  printed = capsys.readouterr().out
  assert "wins against b" in printed
  assert printed.index("length, 30") < printed.index("gold, 30")
