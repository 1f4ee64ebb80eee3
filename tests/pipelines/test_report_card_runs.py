"""Report cards of finished reward runs: the run's own numbers, other files."""

import json
import shutil

import pytest

from rlhf_jax import pipelines
from rlhf_jax.data import formats
from rlhf_jax.data.sources import DataError
from rlhf_jax.pipelines import card_rows, defaults, report_card
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs


def make_config(reward, **data):
  config = defaults.report_card()
  config.mesh.devices = 1
  config.reward = str(reward)
  config.data.update(data)
  config.probes = 0
  return config


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


@pytest.fixture(scope="module")
def recorded(files, reward_head, sft_lora, tmp_path_factory):
  """Returns a reward run whose settings are written down, as main does."""
  root = tmp_path_factory.mktemp("recorded")
  shutil.copytree(reward_head, root / "reward")
  config = tiny_runs.reward_config(files, "head", "", sft_lora / "samples.npz")
  record = {"config": {"reward": json.loads(config.to_json_best_effort())}}
  (root / "config.json").write_text(json.dumps(record))
  return root / "reward"


@pytest.fixture(scope="module")
def own_card(recorded, tmp_path_factory):
  """Returns the folder of the card of a run on what it held out."""
  folder = tmp_path_factory.mktemp("card") / "own"
  config = make_config(recorded)
  config.probes = 8
  pipelines.run(config, folder)
  return folder


def test_the_runs_own_comparisons_give_the_runs_own_numbers(
  recorded, own_card, capsys
):
  info = json.loads((recorded / "stage.json").read_text())
  facts = json.loads((own_card / report_card.RESULT_FILE).read_text())
  for name, value in info["diagnosis"].items():
    if value is not None:
      assert facts["diagnosis"][name] == pytest.approx(value, abs=2e-4), name
  rows = tiny_runs.rows_of(own_card, report_card.SCORES_FILE)
  assert len(rows) == facts["items"] == facts["pairs"]
  assert (
    facts["not_probed"]
    + facts["probes"].get("padding", {"pays": {}})["pays"].get("count", 0)
    == 8
  )
  page = (own_card / report_card.PAGE_FILE).read_text()
  assert "held out by the run" in page and "Surest mistakes" in page
  job = pipelines.read(make_config(recorded))
  job.pipeline.tell(job.settings, own_card)
  assert "accuracy" in capsys.readouterr().out
  assert (own_card / "figures" / "reward_model_calibration.png").is_file()


def test_a_finished_card_is_read_again(recorded, own_card):
  before = (own_card / report_card.RESULT_FILE).stat().st_mtime_ns
  config = make_config(recorded)
  assert pipelines.run(config, own_card)["items"] > 0
  assert (own_card / report_card.RESULT_FILE).stat().st_mtime_ns == before


def test_rankings_of_several_people(reward_head, tmp_path):
  rows = []
  for n in range(12):
    for who, ranks in (("a", [0, 1, 2]), ("b", [0, 2, 1]), ("c", [1, 0, 2])):
      rows.append(
        {
          "prompt": " sat" + " on" * (n + 1),
          "answers": [" cat", f" is{' a' * (n + 1)}", " with"],
          "ranks": ranks,
          "objectives": {"kind": ranks[::-1]},
          "annotator": who,
          "language": "en" if n % 2 else "sw",
        }
      )
  source = write(tmp_path / "ranked.jsonl", rows)
  config = make_config(
    reward_head, source=source, format="ranking", max_length=60
  )
  facts = pipelines.run(config, tmp_path / "card")
  assert facts["pairs"] == 3 * 36
  assert set(facts["by"]["annotator"]) == {"a", "b", "c"}
  assert set(facts["by"]["language"]) == {"en", "sw"}
  assert facts["by"]["objective"]["kind"]["accuracy"]["count"] == 108
  assert facts["listwise"]["best_of"]["3"]["count"] == 36
  assert facts["listwise"]["kendall_tau_b"]["count"] == 36
  # Votes on the pairs (cat, is), (cat, with), (is, with) agree in 1, 3, 1 of 3.
  assert facts["ceiling"] == pytest.approx(5 / 9)
  config.by = "planet"
  with pytest.raises(UserError, match="by='planet'"):
    pipelines.run(config, tmp_path / "other")


def test_a_choice_says_nothing_of_the_others():
  record = {
    "prompt": "p",
    "answers": ["a", "b", "c"],
    "choice": 1,
    "annotator": "x",
  }
  item = card_rows.item_of(formats.find("ranking")(record, "f:1"))
  assert sorted(item.pairs) == [(0, 1, 0.0), (1, 2, 1.0)]
  assert list(item.right) == [False, True, False] and not len(item.ranks)
  assert item.ends()[0] == 1


def test_files_laid_out_as_benchmarks(reward_head, tmp_path):
  rows = [
    {
      "id": f"{kind}:{n}",
      "prompt": f" sat on {n}",
      "chosen": [" cat a", " a cat"][: 1 + (kind == "tied")],
      "rejected": [" with", " is the"],
      "num_correct": 1 + (kind == "tied"),
      "subset": "Ties",
    }
    for n in range(4)
    for kind in ("ref", "tied")
  ]
  source = write(tmp_path / "ties.jsonl", rows)
  config = make_config(
    reward_head, source=source, format="rewardbench", max_length=60
  )
  facts = pipelines.run(config, tmp_path / "ties")
  assert facts["ties"]["prompts"] == 4
  assert facts["listwise"]["best_of"]["3"]["count"] == 4
  assert 0 <= facts["ties"]["score"] <= 1.01


@pytest.mark.parametrize(
  "format, record, ranks",
  [
    ("llmbar", {"input": "i", "output_1": "a", "output_2": "b", "label": 2}, 1),
    (
      "judgebench",
      {
        "question": "q",
        "response_A": "a",
        "response_B": "b",
        "label": "A>B",
        "source": "math",
      },
      0,
    ),
    (
      "rewardbench",
      {"prompt": "p", "chosen": "a", "rejected": "b", "subset": "x"},
      0,
    ),
  ],
)
def test_benchmark_records(format, record, ranks):
  found = formats.find(format)(record, "f:1")
  assert found.answers == ("a", "b") and found.ranks[0] == ranks
  assert formats.guess(record, "f:1") == format
  assert found.fields == record
  wrong = {**record, "label": "B=A", "chosen": [3]}
  with pytest.raises(DataError, match="f:1: field"):
    formats.find(format)(wrong, "f:1")


def test_pairs_drawn_from_ratings(files, reward_head, tmp_path):
  config = make_config(
    reward_head, source=files.ratings, format="ratings", pairs=50, max_length=60
  )
  facts = pipelines.run(config, tmp_path / "card")
  assert facts["pairs"] == 50
  assert 0.5 < facts["ceiling"] <= 1.0


def test_dialogues_that_were_rated_as_a_whole(reward_head, tmp_path):
  """Pairs by the mean of all ratings, and how each objective sees them."""
  rows = []
  for n in range(8):
    turns = [
      {"role": "user", "content": " is the"},
      {"role": "assistant", "content": " cat" + " a" * n},
    ]
    ratings = {"witty": n, "upbeat": 9 - n // 2, "calm": 5}
    rows.append({"messages": turns, "ratings": ratings})
  rows[0]["messages"][0]["content"] = " is" * 90  # does not fit
  source = write(tmp_path / "rated.jsonl", rows)
  config = make_config(
    reward_head,
    source=source,
    format="rated_dialogue",
    pairs=30,
    chat=True,
    max_length=60,
  )
  config.probes = 5
  facts = pipelines.run(config, tmp_path / "card")
  assert facts["pairs"] == 30 and facts["ceiling"] is None
  by = facts["by"]["objective"]
  assert by["witty"]["accuracy"]["count"] == 30
  assert by["calm"]["accuracy"]["count"] == 0  # all tie
  assert facts["not_probed"] == 5 and not facts["probes"]
  rows = tiny_runs.rows_of(tmp_path / "card", report_card.SCORES_FILE)
  assert ":1" not in {x["where"][-2:] for x in rows}


@pytest.mark.parametrize(
  "change, message",
  [
    ({"reward": ""}, "reward is empty"),
    ({"ceiling": 0.3}, "ceiling=0.3"),
    ({"probes": -1}, "probes"),
    ({"data": {"chat": True}}, "data.chat=True: nothing reads it"),
  ],
)
def test_settings_that_cannot_be_meant(change, message, reward_head):
  config = defaults.report_card()
  config.reward = str(reward_head)
  config.update(change)
  with pytest.raises(UserError, match=message):
    tiny_runs.checked(config)


def test_settings_of_files_that_nothing_reads(files, reward_head):
  for change in ({"ties": "soft"}, {"rankings": "pairs"}, {"end_token": False}):
    config = make_config(
      reward_head, source=files.comparisons, max_length=60, **change
    )
    with pytest.raises(UserError, match=f"data.{[*change][0]}="):
      tiny_runs.checked(config)


def test_a_run_that_does_not_say_what_it_held_out(tmp_path):
  with pytest.raises(UserError, match="data.source is empty"):
    card_rows.own(tmp_path)


def test_a_stage_of_a_whole_run_has_a_seed_of_its_own(tmp_path):
  section = {"source": "a.jsonl"}
  stage = {"data": section, "heldout_fraction": 0.2, "seed": 0}
  config = {"pipeline": "rlhf", "seed": 7, "reward": stage}
  record = tmp_path / "config.json"
  record.write_text(json.dumps({"config": config}))
  data, fraction, seed = card_rows.own(tmp_path / "reward")
  assert (data.source, fraction, seed) == ("a.jsonl", 0.2, 1007)
  stage["heldout"] = {"source": "b.jsonl"}
  record.write_text(json.dumps({"config": config}))
  data, fraction, seed = card_rows.own(tmp_path / "reward")
  assert (data.source, fraction, seed) == ("b.jsonl", 0.0, 1008)
