"""`python -m rlhf_jax.data` shows the rows that a run trains on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax import __main__ as commands
from rlhf_jax.data import __main__ as command
from rlhf_jax.data import dataset, judged, look, shown
from rlhf_jax.data.dataset import Data
from tests import tiny
from tests.letters import Letters

LETTERS = Letters()
ROOT = Path(__file__).parents[2]
CHAT = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
  "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
  "<|im_start|>assistant\n{% endif %}"
)


def write(path, *records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A folder with a tokenizer alone: nothing here reads weights."""
  folder = tmp_path_factory.mktemp("model")
  tiny.tiny_tokenizer_json(folder, chat_template=CHAT)
  return str(folder)


def run(capsys, *arguments):
  code = command.main(["data", *map(str, arguments)])
  said = capsys.readouterr()
  return code, said.out, said.err


PAIR = {"prompt": "cat", "chosen": " sat", "rejected": " on"}
SOURCES = {
  "demonstration": [
    {"prompt": "the cat", "response": " sat"},
    {"prompt": "the dog ran", "response": " on"},
    {"prompt": "p", "response": "x" * 40},
  ],
  "comparison": [PAIR, PAIR | {"rejected": " sat"}, PAIR | {"label": 0.5}],
  "labelled": [
    {"prompt": "the cat", "response": " sat", "label": True},
    {"prompt": "a dog", "response": " on", "label": False},
  ],
}


@pytest.mark.parametrize("format", SOURCES)
def test_what_is_shown_is_what_a_run_trains_on(tmp_path, format):
  source = write(tmp_path / "d.jsonl", *SOURCES[format])
  data = Data(source=source, format=format, max_length=12)
  found = look.take(data, LETTERS)
  shown_rows = [row for item in found.items for row in item.rows.values()]
  if format == "demonstration":
    rows, dropped = dataset.demonstrations(data, LETTERS)
  elif format == "comparison":
    made = dataset.comparisons(data, LETTERS, 0)
    rows, dropped = made.rows, made.dropped
  else:
    made = judged.load(data, LETTERS, 0)
    rows, dropped = made.rows, made.dropped
  assert len(shown_rows) == len(rows) > 0
  for (tokens, mask), row in zip(shown_rows, rows, strict=True):
    np.testing.assert_array_equal(tokens, row["tokens"])
    np.testing.assert_array_equal(mask, row["loss_mask"])
  counted = {**found.left_out, **found.cut}
  assert {why: len(places) for why, places in counted.items()} == dropped
  assert found.read == len(SOURCES[format])


def test_places_of_what_is_left_out_are_named(tmp_path):
  path = tmp_path / "d.jsonl"
  source = write(
    path,
    {"prompt": "the cat", "response": " sat"},
    {"prompt": "p", "response": "x" * 40},
    {"prompt": "p", "response": "  "},
  )
  found = look.take(
    Data(source=source, format="demonstration", max_length=12), LETTERS
  )
  assert found.read == 3 and len(found.items) == 1
  lines = "\n".join(look.counts(found))
  assert f"1 response does not fit in max_length ({path}:2)" in lines
  assert f"1 empty response ({path}:3)" in lines


def test_records_behind_a_limit_are_counted(tmp_path):
  source = write(tmp_path / "d.jsonl", *SOURCES["comparison"])
  found = look.take(Data(source=source, limit=1), LETTERS)
  assert found.read == 3 and len(found.items) == 1
  assert len(found.left_out[look.REST]) == 2


def test_a_mask_is_seen_with_and_without_colours():
  tokens, mask = [*map(ord, "ab\ncd"), 2], [0, 0, 0, 1, 1, 1]
  assert shown.render(tokens, mask, LETTERS) == "ab\n⟦cd<e>⟧"
  text = shown.render(tokens, mask, LETTERS, has_colours=True)
  green, end, dim = shown.LEARNED[""], shown.END, shown.CONTEXT
  assert text == f"{dim}ab\n{end}{green}cd<e>{end}"
  rejected = shown.render(
    tokens, mask, LETTERS, has_colours=True, name="rejected"
  )
  assert shown.LEARNED["rejected"] in rejected and green not in rejected


def test_texts_cannot_command_a_terminal_and_learned_breaks_are_seen():
  tokens = [*map(ord, "a\x1b[2Jb\n")]
  assert shown.render(tokens, [0] * 6 + [1], LETTERS) == "a\\x1b[2Jb⟦⏎\n⟧"


def test_long_texts_are_shortened_unless_asked_for():
  tokens = [ord("a")] * 700
  text = shown.render(tokens, [0] * 700, LETTERS)
  assert "[... 100 characters ...]" in text and len(text) < 650
  whole = shown.render(tokens, [0] * 700, LETTERS, is_whole=True)
  assert whole == "a" * 700


def test_suspicious_masks_are_named():
  def item(where, tokens, mask):
    return look.Item(where, {"": (np.asarray(tokens), np.asarray(mask))})

  found = look.Look(Data(source="x"), look.DEMONSTRATIONS)
  found.items = [
    item("f:1", [97, 98, 2], [0, 1, 1]),
    item("f:2", [97, 98, 2], [0, 0, 0]),
    item("f:3", [97, 98, 99], [0, 1, 1]),
    item("f:4", [97, 98, 2], [0, 1, 0]),
  ]
  lines = list(look.suspicions(found, LETTERS))
  assert len(lines) == 2
  assert lines[0].startswith("1 rows learn nothing") and "(f:2)" in lines[0]
  assert lines[1].startswith("2 rows end without") and "(f:3, f:4)" in lines[1]


def test_the_format_is_that_of_the_first_record(tmp_path, capsys, model):
  source = write(tmp_path / "d.jsonl", PAIR, PAIR)
  code, text, _ = run(capsys, source, f"--model={model}")
  assert code == 0 and "format 'comparison', for comparisons" in text
  assert "2 records, 2 kept" in text
  assert "1 of 2 records" in text and "repeat an earlier one" in text
  assert f"--- {source}:1, chosen:" in text and ", rejected:" in text
  assert "⟦ sat<|im_end|>⟧" in text
  assert text.count("⟦") == 5  # the legend, and two answers of two pairs


def test_half_a_comparison_is_no_prompt_without_a_word(tmp_path, capsys, model):
  half = {"prompt": "cat", "chosen": " sat"}
  source = write(tmp_path / "d.jsonl", half, half)
  code, text, _ = run(capsys, source, f"--model={model}")
  assert code == 0 and "format 'prompt'" in text
  assert "d.jsonl:1 has a field 'chosen' and none 'rejected'" in text
  source = write(tmp_path / "e.jsonl", PAIR)
  assert "and none" not in run(capsys, source, f"--model={model}")[1]


def test_dialogues_show_every_learned_turn(tmp_path, capsys, model):
  turns = [("user", "the cat"), ("assistant", "sat"), ("user", "the dog")]
  messages = [
    {"role": role, "content": text}
    for role, text in [*turns, ("assistant", "on")]
  ]
  source = write(tmp_path / "d.jsonl", {"messages": messages})
  _, text, _ = run(capsys, source, f"--model={model}")
  assert "⟦sat<|im_end|>⟧" in text and "⟦on<|im_end|>⟧" in text


def test_an_experiment_shows_all_its_sections(tmp_path, capsys, model):
  source = write(tmp_path / "d.jsonl", *SOURCES["demonstration"][:2])
  prompts = write(tmp_path / "p.jsonl", {"prompt": "the cat and the dog"})
  code, text, error = run(
    capsys,
    f"--config={ROOT}/configs/sft.py",
    f"--config.model.source={model}",
    f"--config.data.source={source}",
    f"--config.validation.source={source}",
    "--config.validation.format=demonstration",
    "--config.validation.chat=True",
    f"--config.sample_prompts.source={prompts}",
    "--config.sample_prompts.format=prompt",
    "--config.sample_prompts.max_length=20",
    "--config.generate.max_new_tokens=16",
    "--examples=1",
  )
  assert code == 0, error
  assert text.count("2 records, 2 kept") == 2
  assert "[sample_prompts]" in text and "|<- the answer" in text
  assert "longer than the 4 tokens" in text
  assert "2 of 2 held-out records" in text


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (("none.jsonl",), "no such file"),
    (("d.jsonl", "--examples=-1"), "--examples=-1"),
    (("odd.jsonl",), "odd.jsonl:1: fits no format; the record has ['text']"),
    (("odd.jsonl",), "columns=prompt=question"),
    (("d.jsonl", "--max-length=1"), "max_length=1: must be >= 2"),
    ((f"--config={ROOT}/configs/sft.py",), "names a source"),
    ((f"--config={ROOT}/configs/sft.py", "--examples=x"), "--examples=x"),
  ],
)
def test_mistakes_are_one_line(
  tmp_path, capsys, monkeypatch, model, arguments, words
):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "d.jsonl", PAIR)
  write(tmp_path / "odd.jsonl", {"text": "a"})
  also = () if arguments[0].startswith("--") else (f"--model={model}",)
  code, _, error = run(capsys, *arguments, *also)
  assert code == 2 and words in error
  assert error.startswith("error: ") and error.count("\n") == 1


def test_it_is_a_command_of_the_package(tmp_path, model):
  assert commands.commands()["data"].startswith("Show what a source of data")
  source = write(tmp_path / "d.jsonl", PAIR)
  done = subprocess.run(
    [sys.executable, "-m", "rlhf_jax", "data", source, f"--model={model}"],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )
  assert done.returncode == 0, done.stderr
  assert "⟦ sat<|im_end|>⟧" in done.stdout and "\x1b" not in done.stdout
