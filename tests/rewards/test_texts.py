"""rewards/texts.py: what reaches a verifier of each prompt and sample."""

import dataclasses
import json

import numpy as np
import pytest

from rlhf_jax import distributed, schema
from rlhf_jax.data import examples
from rlhf_jax.data.dataset import Data
from rlhf_jax.rewards import functions, texts
from rlhf_jax.rewards.texts import Verifier
from rlhf_jax.schema import UserError
from rlhf_jax.types import FINISH_EOS, FINISH_LENGTH, Samples

PAD, END = 0, 1


class Letters:
  """Token 2 is "a", 3 is "b" and so on; 1 ends and pads, and has no text."""

  vocab_size, eos_id, pad_id = 28, END, END
  name, chat_template, special_tokens = "letters", None, {}

  def encode(self, text):
    return [ord(letter) - 95 for letter in text]

  def decode(self, ids):
    return "".join(chr(i + 95) for i in ids if i > END)


def samples_of(rows):
  """Returns Samples of (prompt, response ids) rows."""
  width = max(len(prompt) for prompt, _ in rows)
  length = width + max(len(ids) for _, ids in rows)
  tokens = np.full((len(rows), length), END, np.int32)
  valid, response = np.zeros((2, *tokens.shape), np.float32)
  for n, (prompt, ids) in enumerate(rows):
    start, end = width - len(prompt), width + len(ids)
    tokens[n, start:end] = [*Letters().encode(prompt), *ids]
    valid[n, start:end] = 1.0
    response[n, width:end] = 1.0
  reason = [FINISH_EOS if END in ids else FINISH_LENGTH for _, ids in rows]
  return Samples(tokens, valid, response, 0.0 * valid, np.array(reason))


SAMPLES = samples_of(
  [
    ("ab", [2, 3, END]),
    ("ab", [END]),
    ("c", [4, 4, 40]),  # the model's vocabulary is larger than the tokenizer's
    ("c", [4]),
  ]
)
FOUND = [
  examples.Prompt("f:1", "c", 7, {"prompt": "c", "reference": 7, "hard": True}),
  examples.Prompt("f:2", "ab", 8, {"prompt": "ab", "reference": 8, "hard": 3}),
]


@dataclasses.dataclass
class Spy:
  """Remembers the answers of each call."""

  seen: list = dataclasses.field(default_factory=list)

  def __call__(self, answers):
    self.seen.append(answers)
    return [10.0 * r + len(t) for r, t in self.rows(answers)], {
      "length": [len(text) for text in answers.texts]
    }

  def rows(self, answers):
    return zip(answers.references, answers.texts, strict=True)


def judge_of(spy, found=FOUND, prompts=("c", "ab")):
  parts = functions.bind(spy, {}, "verifier", "spy")
  return texts.judge_of(parts, found, Letters(), prompts)


def test_all_of_a_sample_reaches_the_verifier():
  spy = Spy()
  judge = judge_of(spy)
  spy.seen.clear()
  scores, logged = judge(SAMPLES, np.array([1, 0]))
  (answers,) = spy.seen
  assert answers.texts == ["ab", "", "cc", "c"]
  assert answers.prompts == ["ab", "ab", "c", "c"]
  assert answers.references == [8, 8, 7, 7]
  hard = {"prompt": "ab", "reference": 8, "hard": 3}
  easy = {"prompt": "c", "reference": 7, "hard": True}
  assert answers.records == [hard, hard, easy, easy]
  assert answers.token_ids == [[2, 3, END], [END], [4, 4, 40], [4]]
  assert answers.has_ended == [True, True, False, False]
  assert scores.tolist() == [82.0, 80.0, 72.0, 71.0]
  assert scores.dtype == np.float32
  assert list(logged) == ["component/length", "component/raised"]
  assert logged["component/length"].tolist() == [2.0, 0.0, 2.0, 1.0]


def test_each_prompt_is_tried_on_an_empty_answer():
  spy = Spy()
  judge_of(spy)
  assert [answers.texts for answers in spy.seen] == [[""], [""]]
  assert [answers.references for answers in spy.seen] == [[7], [8]]
  assert [answers.prompts for answers in spy.seen] == [["c"], ["ab"]]
  assert [answers.token_ids for answers in spy.seen] == [[[END]], [[END]]]
  assert [answers.has_ended for answers in spy.seen] == [[True], [True]]
  assert [answers.records[0]["hard"] for answers in spy.seen] == [True, 3]


def test_a_function_of_answers_alone_is_tried_once():
  calls = []
  parts = functions.bind(lambda texts: calls.append(1) or [0.0], {}, "f")
  texts.judge_of(parts, FOUND, Letters())
  assert calls == [1]


@pytest.mark.parametrize("processes", [2, 3])
def test_each_process_judges_whole_groups(monkeypatch, processes):
  """Three processes and two prompts: the last has nothing to judge."""
  spy = Spy()
  judge = judge_of(spy)
  spy.seen.clear()

  def by_share(compute, count):
    size = -(-count // processes)
    parts = []
    for i in range(processes):
      begin = min(i * size, count)
      parts.append(compute(slice(begin, min(begin + size, count))))
    scores, logged = zip(*parts, strict=True)
    assert {tuple(names) for names in logged} == {("length", "raised")}
    return np.concatenate(scores), {
      name: np.concatenate([part[name] for part in logged])
      for name in ("length", "raised")
    }

  monkeypatch.setattr(distributed, "by_share", by_share)
  scores, logged = judge(SAMPLES, np.array([1, 0]))
  assert [answers.prompts for answers in spy.seen] == [["ab"] * 2, ["c"] * 2]
  assert scores.tolist() == [82.0, 80.0, 72.0, 71.0]
  assert logged["component/length"].tolist() == [2.0, 0.0, 2.0, 1.0]


def test_answers_with_other_names_logged_score_zero():
  def score(texts):
    return [2.0] * len(texts), {t: [0.0] * len(texts) for t in {*texts, "x"}}

  parts = functions.bind(score, {}, "f")
  empty = samples_of([("ab", [END])])
  judge = texts.judge_of(parts, FOUND, Letters())
  names = {"component/", "component/x", "component/raised"}
  assert judge(empty, np.array([1]))[1].keys() == names
  scores, logged = judge(SAMPLES, np.array([1, 0]))
  assert scores.tolist() == [0.0, 2.0, 0.0, 0.0]
  assert logged.keys() == names
  assert logged["component/raised"].tolist() == [1.0, 0.0, 1.0, 1.0]


def test_a_reference_is_needed_by_who_reads_it():
  found = [examples.Prompt("f:1", "c"), examples.Demonstration("f:2", "c", "d")]
  spy = functions.bind(lambda texts, references: [0.0] * len(texts), {}, "f")
  with pytest.raises(UserError) as caught:
    texts.judge_of(spy, found, Letters())
  assert str(caught.value) == (
    "f:1: has nothing to judge an answer against. A verifier needs "
    '{"prompt", "reference"} or {"prompt", "response"} a line.'
  )
  assert texts.references(found[1:], spy) == ["d"]
  for free in (lambda texts: [0.0], lambda texts, references=None: [0.0]):
    judge = texts.judge_of(functions.bind(free, {}, "f"), found, Letters())
    assert judge.references == [None, "d"]


def test_a_dialogue_has_no_reference():
  turns = [{"role": "assistant", "content": "hi"}]
  free = functions.bind(lambda texts: [0.0], {}, "f")
  found = [examples.Demonstration("f:1", messages=turns)]
  assert texts.references(found, free) == [None]


def test_records_are_needed_by_who_reads_them():
  found = [examples.Labelled("f:1", "c", "d", 1.0)]
  needy = functions.bind(lambda records: [0.0] * len(records), {}, "f")
  with pytest.raises(UserError) as caught:
    texts.judge_of(needy, found, Letters())
  assert str(caught.value) == (
    "f:1: a Labelled keeps no further fields, and the verifier reads "
    "records. Give prompts or demonstrations."
  )
  free = functions.bind(lambda texts: [0.0], {}, "f")
  assert texts.judge_of(free, found, Letters()).records == [{}]


def bound(name, **settings):
  """Returns what a section `verifier` of an experiment is bound to."""
  values = {"name": name, "settings": settings}
  return schema.read(Verifier, values, "verifier").bound()


def test_a_reference_that_cannot_judge_names_its_line():
  found = [dataclasses.replace(FOUND[0]), examples.Prompt("f:2", "c", "x + 1")]
  with pytest.raises(UserError, match=r"^f:2: reference='x \+ 1': it is not"):
    texts.judge_of(bound("number"), found, Letters())


@pytest.fixture
def files(tmp_path, monkeypatch):
  """A reward function, and prompts, in the working folder."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "mine.py").write_text(
    "def score(texts, prompts, records, scale=1.0):\n"
    "  return [scale * record['bonus'] * prompt.count('a')\n"
    "          for record, prompt in zip(records, prompts)]\n"
    "score.full_marks = 3.0\n"
    "def free(texts):\n"
    "  return [0.0] * len(texts)\n"
    "def wrong(texts):\n"
    "  return 0.0\n"
  )
  rows = [{"prompt": "ab", "bonus": 2}, {"prompt": "aac", "bonus": 5}]
  lines = [json.dumps(row) + "\n" for row in rows]
  (tmp_path / "prompts.jsonl").write_text("".join(lines))
  return tmp_path


DATA = Data(source="prompts.jsonl", format="prompt", max_length=16)


def load(name, **settings):
  return texts.load(bound(name, **settings), DATA, Letters())


def test_a_reward_function_judges_a_file_of_prompts(files):
  judge = load("mine.py:score", scale=0.5)
  samples = samples_of([("aac", [END]), ("ab", [2])])
  scores, logged = judge(samples, np.array([1, 0]))
  assert scores.tolist() == [0.5 * 5 * 2, 0.5 * 2]
  assert list(logged) == ["component/raised"]
  assert judge.records[1] == {"prompt": "aac", "bonus": 5}
  assert texts.correct_above(bound("mine.py:score")) == 3.0 - 1e-4
  assert texts.correct_above(bound("mine.py:free")) is None
  assert texts.correct_above(bound("")) is None
  assert load("") is None


@pytest.mark.parametrize(
  "name, settings, message",
  [
    ("number", {}, "prompts.jsonl:1: has nothing to judge an answer"),
    (
      "mine.py:wrong",
      {},
      "prompts.jsonl:1: verifier='mine.py:wrong': its scores are a float.",
    ),
    (
      "mine.py:scor",
      {},
      "config.verifier: verifier='mine.py:scor': mine.py has no 'scor'.",
    ),
    (
      "mine.py:score",
      {"scal": 1},
      "config.verifier: verifier='mine.py:score': 'scal' is no setting. Did "
      "you mean 'scale'? It has scale.",
    ),
    ("numbr", {}, "config.verifier: verifier='numbr' is unknown."),
    ("", {"a": 1}, "config.verifier.settings={'a': 1}: are for no veri"),
  ],
)
def test_mistakes_are_refused_before_the_run(files, name, settings, message):
  with pytest.raises(UserError) as caught:
    load(name, **settings)
  assert str(caught.value).startswith(message)


def test_a_record_without_a_field_is_refused_before_the_run(files):
  with (files / "prompts.jsonl").open("a") as file:
    file.write('{"prompt": "a"}\n')
  with pytest.raises(UserError) as caught:
    load("mine.py:score")
  assert str(caught.value) == (
    "prompts.jsonl:3: verifier='mine.py:score': raised KeyError: 'bonus' "
    f"({files}/mine.py:2) on a batch of 1. Correct it: every answer gets a "
    "number, an empty one too."
  )


def test_means_of_parts_leave_the_sum_out():
  scores = {"component/a": np.float32([1, 0, 0]), "sum": np.float32([5, 5, 5])}
  assert texts.component_means(scores) == {
    "reward/component/a": pytest.approx(1 / 3)
  }


def test_an_answer_is_right_at_full_marks():
  """Penalties are no marks; rounding must not make a right answer wrong."""
  assert texts.correct_above(Verifier().bound()) is None
  assert 0.99 < texts.correct_above(bound("exact")) < 1.0
  has_a = {"pattern": "a", "mode": "search"}
  parts = (
    {"verifier": "exact", "weight": 0.7},
    {"verifier": "pattern", "weight": 0.2, "settings": has_a},
    {"verifier": "pattern", "weight": -0.4, "settings": has_a},
  )
  found = texts.correct_above(bound("sum", parts=parts))
  assert 0.89 < found < np.float32(0.7) + np.float32(0.2)
