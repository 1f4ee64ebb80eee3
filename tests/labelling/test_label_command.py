"""python -m rlhf_jax.label: what it reads, keeps and writes."""

import json

import pytest

from rlhf_jax import label
from rlhf_jax.labelling.store import Store
from tests.labelling.test_labelling_store import best_last
from tests.labelling.test_labelling_store import label as answer


def write(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs the command; the page is served for no time."""
  pytest.importorskip("uvicorn", reason="pip install -e '.[label]'")
  monkeypatch.setattr(label, "wait", lambda page: None)

  def run(*words):
    code = label.main(["label", "--port=0", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out + said.err

  return run


def test_a_run_before_and_after(tmp_path, command):
  run = tmp_path / "run"
  same = {"prompt": "c", "before": "z", "after": "z"}
  pair = {"before": "1:0", "after": "1:1", "gold_before": 1.0}
  write(
    run / "evaluation" / "texts.jsonl",
    *({"prompt": "a"} | pair, {"prompt": "b"} | pair, same),
  )
  code, said = command(run, "--annotators=anna,ben", "--overlap=2")
  assert code == 0 and "2 items (2 new), 0 of 4 judgements" in said
  assert "1 items whose answers are all alike" in said
  links = [x.split()[-1] for x in said.splitlines() if "http://" in x]
  assert len(links) == len(set(links)) == 3
  assert links[0].startswith("http://127.0.0.1:") and "/admin#" in links[0]
  with Store(run / "labelling") as store:
    assert store.annotators() == ["anna", "ben"] and store.task.overlap == 2
    answer(store, "anna", best_last)
    assert store.records()[0]["policies"] == ["run before", "run"]
  again = command(run, "--dimensions=kind,true", "--strengths", "--ties")
  assert "2 items (0 new), 2 of 4 judgements" in again[1]
  again_links = [x.split()[-1] for x in again[1].splitlines() if "http" in x]
  assert [x.partition("#")[2] for x in again_links] == [
    x.partition("#")[2] for x in links
  ]
  with Store(run / "labelling") as store:
    assert store.task.dimensions == ("kind", "true") and store.task.overlap == 2
  out = tmp_path / "x.jsonl"
  assert command(run, f"--export={out}")[0] == 0
  kept = [json.loads(line) for line in out.read_text().splitlines()]
  assert {x["annotator"] for x in kept} == {"anna"} and len(kept) >= 2


def test_two_runs_and_the_samples_of_one(tmp_path, command):
  for name in ("a", "b"):
    rows = [{"prompt": p, "response": f"{p}:{name}"} for p in "xy"]
    write(tmp_path / name / "answers.jsonl", *rows)
  code, said = command(tmp_path / "a", tmp_path / "b")
  assert code == 2 and "--folder: say where" in said
  folder = f"--folder={tmp_path / 'ab'}"
  code, said = command(tmp_path / "a", tmp_path / "b", folder)
  assert code == 0 and "2 items (2 new)" in said and "  me " in said
  code, said = command(tmp_path / "a")
  assert code == 2 and "no prompt has two different answers" in said
  assert not (tmp_path / "a" / "labelling").exists()
  rows = [{"step": s, "prompt": "x", "response": str(s)} for s in (1, 2, 3, 3)]
  write(tmp_path / "c" / "policy" / "samples.jsonl", *rows)
  write(tmp_path / "c" / "config.json", {"config": {"title": "c"}})
  code, said = command(tmp_path / "c", "--answers=2")
  assert code == 0 and "1 items (1 new)" in said
  assert "show their first 2 answers" in said
  with Store(tmp_path / "c" / "labelling") as store:
    assert sorted(store.next_item("me").answers) == ["1", "2"]


def test_files_of_every_form(tmp_path, command):
  path = write(
    tmp_path / "items.jsonl",
    {"prompt": "p", "answers": ["a", "b", "c"], "language": "ar"},
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": "r", "response": "1"},
    {"prompt": "r", "response": "2"},
    {
      "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
      ]
    },
  )
  gold = write(
    tmp_path / "g.jsonl",
    {"prompt": "g", "answers": ["a", "b"], "ranks": [0, 1]},
  )
  text = tmp_path / "g.md"
  text.write_text("# Be fair")
  people = write(tmp_path / "p.jsonl", {"annotator": "anna", "age": 3})
  code, said = command(
    *(path, f"--gold={gold}", f"--guidelines={text}", f"--annotators={people}")
  )
  assert code == 0 and "3 items (4 new)" in said
  assert "1 prompts with one answer are left out" in said
  with Store(tmp_path / "items-labelling") as store:
    assert store.guidelines()[1] == "# Be fair"
    turn = store.next_item("anna")
    ranks = list(range(len(turn.answers)))
    store.submit("anna", turn.assignment, {"ranks": ranks}, "x")
    kinds = ("item", "gold", "check")
    assert store.records(kinds=kinds)[0]["annotator_fields"] == {"age": 3}


@pytest.mark.parametrize(
  "words, rule",
  [
    (["none.jsonl"], "none.jsonl: no such file"),
    (["none"], "none: no such folder"),
    (["x.jsonl", "--order=uncertainty"], "has no 'probability'"),
    (["x.jsonl", "--order=clever"], "--order='clever'"),
    (["x.jsonl", "--random-share=0.5"], "--random-share=0.5: order='random'"),
    (["x.jsonl", "--answers=1"], "--answers=1: must be"),
    (["x.jsonl", "--guidelines=none.md"], "none.md"),
    (["x.jsonl", "--import=none.jsonl"], "none.jsonl"),
    (["x.jsonl", "--export=y.jsonl"], "holds no labels yet"),
    (["x.jsonl", "--port=99999999"], "--port=99999999"),
    (["bad.jsonl"], "item 1: 'prompt' must be"),
  ],
)
def test_mistakes_are_told(tmp_path, command, monkeypatch, words, rule):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "x.jsonl", {"prompt": "p", "answers": ["a", "b"]})
  write(tmp_path / "bad.jsonl", {"prompt": 3, "answers": ["a", "b"]})
  code, said = command(*words)
  assert code == 2 and rule in said, said
