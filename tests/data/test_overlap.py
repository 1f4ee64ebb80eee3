"""What training and held-out files share is counted and said."""

import json

import pytest

from rlhf_jax.data import overlap
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.examples import Demonstration
from tests.letters import Letters

LETTERS = Letters()


def pairs(path, *rows, format="comparison"):
  names = {
    "comparison": ("prompt", "chosen", "rejected"),
    "demonstration": ("prompt", "response"),
  }[format]
  lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
  path.write_text("\n".join(lines) + "\n")
  return Data(source=str(path), format=format)


@pytest.mark.parametrize("format", ["comparison", "demonstration"])
def test_trap_35_overlap_and_repeats_are_counted_and_said(
  tmp_path, capsys, format
):
  end = ("c",) if format == "comparison" else ()
  train = pairs(
    tmp_path / "train.jsonl",
    ("one", "a", *end),
    ("two", "a", *end),
    ("one", "b", *end),  # another answer to the same is no repeat
    ("  one", "a", *end),
    format=format,
  )
  held = pairs(
    tmp_path / "held.jsonl",
    ("three", "a", *end),
    ("two ", "x", *end),
    ("one", "x", *end),
    format=format,
  )
  overlap.say("here", train, held, LETTERS)
  lines = capsys.readouterr().out.splitlines()
  assert lines == [
    f"here: WARNING: 1 of 4 records of {train.source} repeat an earlier one, "
    f"{train.source}:4 that of {train.source}:1",
    f"here: WARNING: 2 of 3 held-out records of {held.source} ask what is "
    f"trained on in {train.source}, so their numbers are not held out, "
    f"{held.source}:2 that of {train.source}:2",
  ]


def test_nothing_is_said_where_nothing_is_shared(tmp_path, capsys):
  train = pairs(tmp_path / "a.jsonl", ("one", "a", "b"), ("two", "a", "b"))
  held = pairs(tmp_path / "b.jsonl", ("three", "a", "b"))
  overlap.say("here", train, held, LETTERS)
  overlap.say("here", train, Data(), LETTERS)
  assert capsys.readouterr().out == ""


def test_a_dialogue_and_a_text_ask_the_same(tmp_path):
  rows = [
    {"messages": [{"role": "user", "content": "one"}, answer]}
    for answer in (
      {"role": "assistant", "content": "a"},
      {"role": "assistant", "content": "b"},
    )
  ]
  path = tmp_path / "chat.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  from rlhf_jax.data import formats

  dialogues = formats.load(path, "messages")
  data = pairs(tmp_path / "a.jsonl", ("one", "a", "b"))
  texts = formats.load(data.source, "comparison")
  assert len(overlap.shared(texts, dialogues)) == 2
  assert overlap.repeated(dialogues) == []


def test_a_dialogue_asks_at_each_turn_that_is_answered():
  def talk(where, *texts):
    roles = ("user", "assistant") * len(texts)
    messages = [
      {"role": role, "content": text}
      for role, text in zip(roles, texts, strict=False)
    ]
    return Demonstration(where, messages=messages)

  long = talk("t:1", "What is 2?", "two", "And 3?", "three")
  first, second = talk("h:1", " What is  2?", "x"), talk("h:2", "And 3?", "x")
  plain = Demonstration("h:3", "What is 2?", "y")
  wanted = [("h:1", "t:1"), ("h:3", "t:1")]
  assert overlap.shared([long], [first, second, plain]) == wanted
  assert overlap.shared([first, second], [long]) == [("t:1", "h:1")]
