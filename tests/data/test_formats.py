"""Records to examples: every format, every refusal."""

import json

import pytest

from rlhf_jax.data import examples, formats
from rlhf_jax.data.formats import FORMATS
from rlhf_jax.data.sources import DataError

HH = {
  "chosen": "\n\nHuman: Hi\n\nAssistant:  Hello. \n\nHuman: ok?"
  "\n\nAssistant: y",
  "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: ok?"
  "\n\nAssistant: n",
}
TURNS = [
  {"role": "user", "content": "Hi"},
  {"role": "assistant", "content": "Hello."},
  {"role": "user", "content": "ok?"},
]


def write(path, *records):
  path.write_text("".join(json.dumps(r) + "\n" for r in records))
  return path


def test_hh_splits_at_the_last_answer():
  example = FORMATS["hh"](HH, "f:1")
  assert example.prompt == TURNS
  assert (example.chosen, example.rejected, example.label) == ("y", "n", 1.0)
  assert (
    formats.prompt_text(example)
    == "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: ok?\n\nAssistant:"
  )
  assert formats.response_text(example, "y") == " y"


@pytest.mark.parametrize(
  "change, reason",
  [
    ({"chosen": "\n\nHuman: Hi\n\nAssistant: x"}, "prompts differ"),
    ({"chosen": HH["chosen"][:-1]}, "empty response"),
  ],
)
def test_hh_refusals_are_counted(tmp_path, change, reason):
  path = write(tmp_path / "hh.jsonl", HH, {**HH, **change}, HH)
  kept, refused = formats.load_and_refuse(path, "hh")
  assert [e.where for e in kept] == [f"{path}:1", f"{path}:3"]
  assert [error.reason for error in refused] == [reason]
  with pytest.raises(DataError, match=f"hh.jsonl:2: .*1 of 3.*{reason}"):
    formats.load(path, "hh")


def test_hh_needs_transcripts(tmp_path):
  for text in ("just text", "\n\nHuman: only", "x\n\nHuman: a\n\nAssistant: b"):
    with pytest.raises(DataError, match="f:7: field 'rejected'.*no transcript"):
      FORMATS["hh"]({**HH, "rejected": text}, "f:7")
  record = {"prompt": "p", "chosen": "a", "rejected": "b"}
  with pytest.raises(DataError, match="Did you mean format='comparison'"):
    FORMATS["hh"](record, "f:7")


def test_a_comparison_has_a_label_between_0_and_1():
  record = {"prompt": "p", "chosen": "a", "rejected": "b"}
  assert FORMATS["comparison"](record, "f:1").label == 1.0
  for label in (0, 0.0, 0.5, 1):
    example = FORMATS["comparison"]({**record, "label": label}, "f:1")
    assert example.label == label
  assert FORMATS["comparison"]({**record, "prompt": TURNS}, "f").prompt == TURNS
  for label in (1.5, -0.1, True, "1", None):
    with pytest.raises(DataError, match="f:1: field 'label' is"):
      FORMATS["comparison"]({**record, "label": label}, "f:1")


def test_demonstrations_keep_their_text_and_want_an_answer():
  example = FORMATS["demonstration"]({"prompt": "p ", "response": "r"}, "f:1")
  assert (example.prompt, example.response) == ("p ", "r")
  example = FORMATS["gsm8k"]({"question": "2?", "answer": "#### 2"}, "f:1")
  assert (example.prompt, example.response) == ("2?\n", "#### 2")
  answer = {"role": "assistant", "content": "y"}
  example = FORMATS["messages"]({"messages": [*TURNS, answer]}, "f:1")
  assert formats.prompt_messages(example) == TURNS
  with pytest.raises(DataError, match="no message has the role 'assistant'"):
    FORMATS["messages"]({"messages": TURNS[:1]}, "f:1")
  with pytest.raises(DataError, match=r"f:1: messages\[0\] has"):
    FORMATS["messages"]({"messages": [{"role": "user"}]}, "f:1")
  with pytest.raises(DataError, match="empty response"):
    FORMATS["messages"]({"messages": [{**answer, "content": " "}]}, "f:1")


def test_prompts_want_a_text_and_ratings_finite_numbers():
  assert FORMATS["prompt"]({"prompt": "p"}, "f:1").prompt == "p"
  with pytest.raises(DataError, match="nothing to answer"):
    FORMATS["prompt"]({"prompt": " "}, "f:1")
  record = {"text": "t", "ratings": [1, 0.5, -2]}
  assert FORMATS["ratings"](record, "f:1").ratings == (1.0, 0.5, -2.0)
  for bad in ([], [1, "2"], [True], [float("nan")]):
    with pytest.raises(DataError, match="f:1: field 'ratings' is"):
      FORMATS["ratings"]({"text": "t", "ratings": bad}, "f:1")


@pytest.mark.parametrize("label", [True, False, 0, 1, 1.0])
def test_a_judged_answer_has_a_label_of_0_or_1(label):
  record = {"prompt": "p", "response": "r", "label": label}
  example = FORMATS["labelled"](record, "f:1")
  assert example == examples.Labelled("f:1", "p", "r", float(label))
  for bad in (0.5, 2, "yes", None):
    with pytest.raises(DataError, match="f:1: field 'label' is .*true or fals"):
      FORMATS["labelled"]({**record, "label": bad}, "f:1")


@pytest.mark.parametrize(
  "format, record",
  [
    ("prompt", {"prompt": "p", "reference": 3, "level": "hard", "n": [1]}),
    ("demonstration", {"prompt": "p", "response": "r", "level": None}),
    ("gsm8k", {"question": "2?", "answer": "#### 2", "id": 7}),
    (
      "messages",
      {"messages": [{"role": "assistant", "content": "y"}], "a": {}},
    ),
  ],
)
def test_all_fields_of_a_record_are_kept(tmp_path, format, record):
  path = write(tmp_path / "d.jsonl", record, record)
  kept = formats.load(path, format)
  assert [example.fields for example in kept] == [record, record]
  direct = FORMATS[format](record, f"{path}:1")
  assert direct == kept[0]  # the fields do not count
  assert direct.fields == {}


TOY = """
from rlhf_jax.data import examples, records

def parse(record, where):
  if record.get("q") == "":
    raise records.RefusedExample("no question", f"{where}: 'q' is empty.")
  question = records.field(record, "q", (str,), "toy", where)
  record.clear()
  return examples.Prompt(where, question + "?", reference=len(question))

def dict_parser(record, where):
  return record

def no_where(record):
  return None

def extra(record, where, depth):
  return None
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "toy.py").write_text(TOY)
  return tmp_path


def test_a_format_by_its_import_path(toy):
  rows = [{"q": "how", "level": 2}, {"q": ""}, {"q": "why"}]
  write(toy / "d.jsonl", *rows)
  kept, refused = formats.load_and_refuse("d.jsonl", "toy.py:parse")
  assert kept == [
    examples.Prompt("d.jsonl:1", "how?", 3),
    examples.Prompt("d.jsonl:3", "why?", 3),
  ]
  assert [example.fields for example in kept] == [rows[0], rows[2]]
  assert [error.reason for error in refused] == ["no question"]
  with pytest.raises(DataError, match=r"d.jsonl:2: 'q' is empty. \(1 of 3"):
    formats.load("d.jsonl", "toy.py:parse")
  assert formats.find("hh") is FORMATS["hh"]


@pytest.mark.parametrize(
  "name, message",
  [
    ("toy.py:pares", "toy.py has no 'pares'. Did you mean 'parse'?"),
    (
      "toy.py:no_where",
      "lacks the parameter 'where'. Add it; the names that are filled are "
      "record, where.",
    ),
    (
      "toy.py:extra",
      "nothing fills its parameter 'depth'. Name it one of record, where, or "
      "give it a default.",
    ),
    ("toy.py", "is a module, not a function."),
    ("ty.py:parse", "no such file. Did you mean 'toy.py'?"),
  ],
)
def test_a_wrong_parser_is_refused_before_any_file_is_read(toy, name, message):
  with pytest.raises(DataError) as caught:
    formats.load("no_such_file.jsonl", name)
  assert str(caught.value).startswith(f"format={name!r}: ")
  assert message in str(caught.value)
  with pytest.raises(DataError, match="^data.format='toy.py:no_where': lacks"):
    formats.find("toy.py:no_where", "data.format")


def test_what_a_parser_does_wrong_names_the_record(toy):
  write(toy / "d.jsonl", {"q": "how"}, {"Q": 3})
  with pytest.raises(DataError) as caught:
    formats.load("d.jsonl", "toy.py:parse")
  assert str(caught.value) == (
    "d.jsonl:2: field 'q' is missing; the record has ['Q']. format='toy' "
    "needs q."
  )
  with pytest.raises(DataError) as caught:
    formats.load("d.jsonl", "toy.py:dict_parser")
  assert str(caught.value) == (
    "d.jsonl:1: format='toy.py:dict_parser' returned a dict. Return one of "
    "Demonstration, Comparison, Ranking, Labelled, Prompt, RatedText, Steps "
    "(rlhf_jax/data/examples.py)."
  )
  (toy / "toy.py").write_text("def f(record, where):\n  return record['q']")
  write(toy / "d.jsonl", {"p": 1, "a": 2})
  with pytest.raises(DataError) as caught:
    formats.load("d.jsonl", "toy.py:f")
  assert str(caught.value) == (
    f"d.jsonl:1: format='toy.py:f' raised KeyError: 'q' ({toy}/toy.py:2); the "
    "record has ['a', 'p']. Correct the record or the parser."
  )


@pytest.mark.parametrize(
  "format, record, hint",
  [
    ("comparison", HH, "format='hh'"),
    ("demonstration", {"question": "q", "answer": "a"}, "format='gsm8k'"),
    ("gsm8k", {"prompt": "q", "response": "a"}, "format='demonstration'"),
    ("hh", {"messages": TURNS}, "format='messages'"),
  ],
)
def test_wrong_format_is_suggested(tmp_path, format, record, hint):
  path = write(tmp_path / "d.jsonl", record)
  with pytest.raises(DataError, match=f"d.jsonl:1: field .*{hint}"):
    formats.load(path, format)


def test_errors_name_field_and_find(tmp_path):
  path = write(tmp_path / "d.jsonl", {"prompt": "p", "response": 3})
  with pytest.raises(
    DataError, match="d.jsonl:1: field 'response' is a int .'3'.*needs str"
  ):
    formats.load(path, "demonstration")
  with pytest.raises(
    DataError, match=r"'sharegpt' is unknown.*\(my_file.py:parse\)"
  ):
    formats.load(path, "sharegpt")
  path = write(tmp_path / "e.jsonl", {"prompt": "p", "response": " "})
  with pytest.raises(DataError, match="every record was refused.*e.jsonl:1"):
    formats.load_and_refuse(path, "demonstration")
