"""Examples to ids: masks, truncation, drops, on hand-counted characters."""

import numpy as np
import pytest

from rlhf_jax.data import dataset, encode
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.formats import (
  Comparison,
  Demonstration,
  Labelled,
  Prompt,
)
from rlhf_jax.data.tokenizer_backends import EncodingError
from rlhf_jax.schema import FieldError

EOS = 2
TURNS = [
  {"role": "user", "content": "ab"},
  {"role": "assistant", "content": "cd"},
  {"role": "user", "content": "ef"},
  {"role": "assistant", "content": "ghi"},
]


class Letters:
  """One token a character, so that lengths can be counted by eye."""

  name = "letters"
  vocab_size = 200
  bos_id = None
  eos_id = EOS
  pad_id = EOS  # trap 1
  chat_template = (
    "{% for m in messages %}{{ m.role[0] }}{{ m.content }}<e>{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
  )
  special_tokens = {"<e>": EOS}
  fingerprint = "letters"

  def encode(self, text):
    if "?" in text:
      raise EncodingError("no token spells '?'")
    return [ord(c) for c in text]

  def decode(self, ids, skip_special=True):
    return "".join("<e>" if i == EOS else chr(i) for i in ids)


LETTERS = Letters()


def spell(row):
  """Writes a row with a star behind each target."""
  pairs = zip(row["tokens"], row["loss_mask"], strict=True)
  return "".join(LETTERS.decode([i]) + "*" * int(m) for i, m in pairs)


def demonstration(prompt="abc", response="de"):
  return Demonstration("f:1", prompt, response)


def test_trap_01_end_token_keeps_its_weight_though_it_pads():
  row = encode.encode_demonstration(demonstration(), LETTERS, 20)
  assert spell(row) == "abcd*e*<e>*"
  assert row["tokens"].dtype == np.int32
  assert row["loss_mask"].dtype == np.float32


@pytest.mark.parametrize(
  "length, expected",
  [(6, "abcd*e*<e>*"), (5, "bcd*e*<e>*"), (4, "cd*e*<e>*"), (3, None)],
)
def test_truncation_cuts_the_prompt_only(length, expected):
  if expected is None:
    with pytest.raises(encode.DroppedExample, match="f:1: response does not"):
      encode.encode_demonstration(demonstration(), LETTERS, length)
  else:
    row = encode.encode_demonstration(demonstration(), LETTERS, length)
    assert spell(row) == expected


def test_first_token_is_never_a_target():
  example = demonstration(prompt="")
  row = encode.encode_demonstration(example, LETTERS, 3)
  assert spell(row) == "de*<e>*"
  with pytest.raises(encode.DroppedExample):
    encode.encode_demonstration(example, LETTERS, 2)


def test_train_on_prompt():
  row = encode.encode_demonstration(demonstration(), LETTERS, 5, True)
  assert spell(row) == "bc*d*e*<e>*"
  with pytest.raises(encode.DroppedExample):
    encode.encode_demonstration(demonstration(), LETTERS, 3, True)


def test_chat_demonstration():
  row = encode.encode_demonstration(demonstration(), LETTERS, 20, chat=True)
  assert spell(row) == "uabc<e>ad*e*<e>*"


@pytest.mark.parametrize(
  "length, expected",
  [
    (18, "uab<e>ac*d*<e>*uef<e>ag*h*i*<e>*"),
    (17, "uab<e>ac*d*<e>*uef<e>ag*h*i*<e>*"),
    (16, "uef<e>ag*h*i*<e>*"),
    (9, "uef<e>ag*h*i*<e>*"),
    (8, None),
  ],
)
def test_dialogues_are_cut_at_a_turn_of_the_user(length, expected):
  example = Demonstration("f:1", messages=TURNS)
  if expected is None:
    with pytest.raises(encode.DroppedExample, match="f:1: last turn and its"):
      encode.encode_demonstration(example, LETTERS, length, chat=True)
  else:
    row = encode.encode_demonstration(example, LETTERS, length, chat=True)
    assert spell(row) == expected and row["is_cut"] == (length < 17)


def test_the_prompt_of_a_pair_is_cut_at_a_turn_of_the_user():
  """With a template and as a transcript, and the system's turn stays."""
  system = {"role": "system", "content": "x"}
  example = Comparison("f:1", [system, *TURNS[:3]], "g", "hi")
  for chat, start in (
    (True, "sx<e>uef<e>a"),
    (False, "\n\nSystem: x\n\nHuman: ef\n\nAssistant:"),
  ):
    shortest = len(LETTERS.encode(start.replace("<e>", "."))) + 3 + (not chat)
    for length in (shortest, shortest + 5):
      pair = encode.encode_comparison(example, LETTERS, length, chat)
      assert spell(pair["chosen"]).startswith(start)
      assert pair["is_cut"] and len(pair["rejected"]["tokens"]) == shortest
    with pytest.raises(encode.DroppedExample, match="last turn"):
      encode.encode_comparison(example, LETTERS, shortest - 1, chat)
  whole = encode.encode_comparison(example, LETTERS, 90, chat=True)
  assert not whole["is_cut"] and whole["key"] == pair["key"]


def test_dialogue_without_template_is_refused():
  with pytest.raises(ValueError, match="f:1: .*Set chat=True"):
    encode.encode_demonstration(
      Demonstration("f:1", messages=TURNS), LETTERS, 20
    )


@pytest.mark.parametrize(
  "length, chosen, rejected",
  [
    (20, "abcd*<e>*", "abce*f*g*<e>*"),
    (7, "abcd*<e>*", "abce*f*g*<e>*"),
    (6, "bcd*<e>*", "bce*f*g*<e>*"),  # both lose the same token
    (5, "cd*<e>*", "ce*f*g*<e>*"),
    (4, None, None),
  ],
)
def test_candidates_share_their_prompt(length, chosen, rejected):
  example = Comparison("f:1", "abc", "d", "efg", 0.75)
  if chosen is None:
    with pytest.raises(encode.DroppedExample, match="does not fit"):
      encode.encode_comparison(example, LETTERS, length)
    return
  pair = encode.encode_comparison(example, LETTERS, length)
  assert spell(pair["chosen"]) == chosen
  assert spell(pair["rejected"]) == rejected
  assert pair["label"] == 0.75
  prompt = len(pair["prompt"])
  for name in ("chosen", "rejected"):
    assert tuple(pair[name]["tokens"][:prompt]) == pair["prompt"]


@pytest.mark.parametrize(
  "length, expected",
  [(6, "abcd*e*<e>*"), (5, "bcd*e*<e>*"), (4, "cd*e*<e>*"), (3, None)],
)
def test_judged_answers_are_kept_whole(length, expected):
  example = Labelled("f:1", "abc", "de", 1.0)
  if expected is None:
    with pytest.raises(encode.DroppedExample, match="does not fit"):
      encode.encode_labelled(example, LETTERS, length)
    return
  found = encode.encode_labelled(example, LETTERS, length)
  assert spell(found["answer"]) == expected
  assert found["label"] == 1.0
  prompt = len(found["prompt"])
  assert tuple(found["answer"]["tokens"][:prompt]) == found["prompt"]
  assert spell(found["answer"])[:prompt] == "abc"[3 - prompt :]


def test_comparison_prompts_chat_and_plain():
  example = Comparison("f:1", TURNS[:3], "g", "h")
  pair = encode.encode_comparison(example, LETTERS, 60, chat=True)
  assert spell(pair["chosen"]) == "uab<e>acd<e>uef<e>ag*<e>*"
  pair = encode.encode_comparison(example, LETTERS, 60)
  assert spell(pair["rejected"]).endswith("\n\nAssistant: *h*<e>*")
  pair = encode.encode_comparison(example, LETTERS, 60, end_token=False)
  assert spell(pair["rejected"]).endswith("\n\nAssistant: *h*")


def test_comparison_without_prompt():
  example = Comparison("f:1", "", "ab", "c")
  pair = encode.encode_comparison(example, LETTERS, 3)
  assert spell(pair["chosen"]) == "ab*<e>*"
  assert pair["prompt"] == ()
  with pytest.raises(encode.DroppedExample):
    encode.encode_comparison(example, LETTERS, 2)


def test_encode_prompt():
  assert LETTERS.decode(
    encode.encode_prompt(Prompt("f:1", TURNS[:1]), LETTERS, chat=True)
  ) == ("uab<e>a")
  assert encode.encode_prompt(Prompt("f:1", "ab"), LETTERS) == [97, 98]


def test_drops_are_counted():
  demonstrations = [
    demonstration(),
    demonstration(response="defghijk"),
    demonstration(response="what?"),
    demonstration(response=""),
    demonstration(prompt="abcdefgh"),
  ]
  rows, dropped = encode.encode_all(
    encode.encode_demonstration, demonstrations, LETTERS, 6
  )
  assert [spell(row) for row in rows] == ["abcd*e*<e>*", "fghd*e*<e>*"]
  assert dropped == {
    "response does not fit in max_length": 1,
    "a character has no token": 1,
    "empty response": 1,
    "prompts cut to fit max_length": 1,
  }
  comparisons = [
    Comparison("f:1", "a", "b", "c"),
    Comparison("f:2", "a", "b", "b"),
    Comparison("f:3", "a", "b", "cdefghi"),
  ]
  pairs, dropped = encode.encode_all(
    encode.encode_comparison, comparisons, LETTERS, 6
  )
  assert len(pairs) == 1
  assert dropped == {
    "candidates are equal": 1,
    "response does not fit in max_length": 1,
  }


def test_trap_28_ids_are_validated_with_file_and_line():
  with pytest.raises(ValueError, match=r"f:3: token 1 has id 9, .*\[0, 9\)"):
    encode.validate_token_ids([8, 9, 0], 9, "f:3")
  with pytest.raises(ValueError, match="f:3: token 0 has id -1"):
    encode.validate_token_ids([-1], 9, "f:3")
  encode.validate_token_ids([0, 8], 9, "f:3")
  with pytest.raises(ValueError, match="f:1: token 3 has id 8230"):
    encode.encode_demonstration(demonstration(response="…"), LETTERS, 20)


def test_max_length_leaves_room_for_context():
  with pytest.raises(ValueError, match="max_length=1"):
    encode.encode_demonstration(demonstration(), LETTERS, 1)


def test_only_the_last_answer_is_learned():
  """Ghost Attention: earlier answers are context, and nothing is cut."""
  example = Demonstration("f:1", messages=TURNS)
  row = encode.encode_demonstration(
    example, LETTERS, 20, chat=True, last_only=True
  )
  assert spell(row) == "uab<e>acd<e>uef<e>ag*h*i*<e>*"
  whole = encode.encode_demonstration(example, LETTERS, 20, chat=True)
  assert spell(whole) == "uab<e>ac*d*<e>*uef<e>ag*h*i*<e>*"
  np.testing.assert_array_equal(row["tokens"], whole["tokens"])
  size = len(row["tokens"])
  encode.encode_demonstration(example, LETTERS, size, chat=True, last_only=True)
  with pytest.raises(encode.DroppedExample, match="its first turn says"):
    encode.encode_demonstration(
      example, LETTERS, size - 1, chat=True, last_only=True
    )
  with pytest.raises(FieldError, match="only a dialogue has earlier answers"):
    Data(last_answer_only=True)
  data = Data(last_answer_only=True, chat=True)
  encoder = dataset.encoder([example], data, LETTERS)
  np.testing.assert_array_equal(encoder(example)["loss_mask"], row["loss_mask"])
