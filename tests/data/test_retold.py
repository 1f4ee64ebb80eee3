"""Answers of one tokenizer told again in another one's tokens."""

import dataclasses

import pytest

from rlhf_jax.data import examples, retold, stops, streams
from rlhf_jax.data.retold import Said
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.schema import UserError
from tests.letters import Letters
from tests.pipelines.tiny_runs import CHAT
from tests.tiny import LLAMA_TEMPLATE, tiny_llama, tiny_tokenizer_json

TEXTS = ("yes", "The cat sat.", "two  spaces\nand a line", "naïve 12 ✓", "é")
DIALOGUE = [
  {"role": "user", "content": "What is it?"},
  {"role": "assistant", "content": "A cat"},
  {"role": "user", "content": "Why"},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  """Two tokenizers: one marks starts of words, one is of bytes."""
  root = tmp_path_factory.mktemp("pair")
  return {
    "llama": load_tokenizer(
      tiny_llama(root / "llama", chat_template=LLAMA_TEMPLATE)
    ),
    "bytes": load_tokenizer(
      tiny_tokenizer_json(root / "bytes", chat_template=CHAT)
    ),
  }


ORDERS = [("llama", "bytes"), ("bytes", "llama"), ("llama", "llama")]


def retell(answered, tokenizer, judge, *, item, **how):
  """Returns what a judge reads of (prompt, answer) ids of a policy."""
  prompt, answer = answered
  settings = {"has_ended": True, "chat": not isinstance(item, str)} | how
  most, ends = settings.pop("most", 200), stops.end_ids(tokenizer)
  end_token = settings.pop("end_token", True)
  said = retold.said(prompt, answer, tokenizer, ends, **settings)
  asked = retold.asked(item, judge)
  return said, retold.told(asked, said, judge, most, end_token=end_token)


@pytest.mark.parametrize(("policy", "judge"), ORDERS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_dialogue_is_read_as_the_judge_was_trained(pair, policy, judge, text):
  policy, judge = pair[policy], pair[judge]
  messages = [*DIALOGUE, {"role": "assistant", "content": text}]
  found = streams.dialogue(messages, policy, "here")
  answered = found.ids[: found.prompt], found.ids[found.prompt :]
  said, told = retell(answered, policy, judge, item=DIALOGUE)
  assert said == Said(text, True)
  assert told.ids == streams.dialogue(messages, judge, "here").ids
  _, told = retell(answered, policy, judge, item=DIALOGUE, end_token=False)
  expected = streams.prompt(DIALOGUE, judge)
  expected += streams.answer(DIALOGUE, text, judge, "here", False)
  assert told.ids == expected and not told.is_cut


@pytest.mark.parametrize(("policy", "judge"), ORDERS)
@pytest.mark.parametrize("text", [*TEXTS, " a space first"])
def test_a_text_goes_on_where_it_did(pair, policy, judge, text):
  policy, judge = pair[policy], pair[judge]
  before = "Question: why?"
  prompt = streams.text_prompt(before, policy)
  answer = [*streams.continued(text, policy, prompt), policy.eos_id]
  said, told = retell((prompt, answer), policy, judge, item=before)
  assert said == Said(text, True)
  prompt = streams.text_prompt(before, judge)
  ids = [*prompt, *streams.continued(text, judge, prompt), judge.eos_id]
  assert told.ids == ids


def test_a_cut_answer_has_no_end(pair):
  policy, judge = pair["bytes"], pair["llama"]
  prompt = streams.prompt(DIALOGUE, policy)
  answer = policy.encode("It is é")
  cut = (prompt, answer[:-1])  # in the middle of the last character
  said, told = retell(cut, policy, judge, item=DIALOGUE, has_ended=False)
  assert said == Said("It is ", False)
  assert judge.eos_id not in told.ids[len(streams.prompt(DIALOGUE, judge)) :]
  assert told.ids[-1] == judge.encode("x ")[-1]  # the answer's own space
  # An end token that came just at the limit is one.
  ended = (prompt, [*answer, policy.eos_id])
  said, told = retell(ended, policy, judge, item=DIALOGUE)
  assert said.has_end and told.ids[-1] == judge.eos_id


def test_a_stop_string_is_no_end_token(pair):
  policy, judge = pair["bytes"], pair["llama"]
  prompt = streams.text_prompt("Say:", policy)
  said, told = retell(
    (prompt, policy.encode(" it. Question:")), policy, judge, item="Say:"
  )
  assert said == Said(" it. Question:", False)
  assert told.ids[-1] != judge.eos_id


def test_an_answer_may_be_nothing_and_special_tokens_are_no_text(pair):
  policy, judge = pair["bytes"], pair["llama"]
  prompt = streams.prompt(DIALOGUE, policy)
  start = policy.special_tokens["<|im_start|>"]
  said, told = retell((prompt, [policy.eos_id]), policy, judge, item=DIALOGUE)
  assert said == Said("", True) and told.ids[-1] == judge.eos_id
  said, _ = retell((prompt, [start]), policy, judge, item=DIALOGUE)
  assert said == Said("", False)
  ids = [*policy.encode("a"), start, *policy.encode("b"), policy.eos_id]
  assert retell((prompt, ids), policy, judge, item=DIALOGUE)[0].text == "ab"


def test_what_does_not_fit_is_cut_and_said(pair):
  judge = pair["bytes"]
  asked, said = retold.asked(DIALOGUE, judge), Said("It is old.", True)

  def told(most):
    return retold.told(asked, said, judge, most, end_token=True)

  whole = told(500)
  assert not whole.is_cut
  shorter = streams.prompt(DIALOGUE[-1:], judge)
  answer = whole.ids[len(streams.prompt(DIALOGUE, judge)) :]
  some = told(len(whole.ids) - 1)  # the first turns go
  assert some.is_cut and some.ids == shorter + answer
  some = told(len(answer) + 4)  # then the left of what is left
  assert some.is_cut and some.ids == shorter[-4:] + answer
  some = told(len(answer) - 2)  # then the end of the answer
  assert some.is_cut and some.ids == shorter[-1:] + answer[:-3]


def test_the_begin_of_a_text_stays(pair):
  judge = pair["llama"]
  asked = retold.asked("a long text before", judge)
  some = retold.told(asked, Said(" ab", True), judge, 8, end_token=True)
  assert some.is_cut and len(some.ids) == 8 and some.ids[0] == judge.bos_id


def test_characters_without_a_token_are_left_out_and_said(pair):
  class Seven(Letters):
    def encode(self, text):
      if any(ord(c) > 127 for c in text):
        raise retold.EncodingError("no token")
      return super().encode(text)

  found = retold.told(
    retold.asked("q", Seven()), Said("né", True), Seven(), 9, end_token=True
  )
  assert found.is_unspelled and found.ids == [ord("q"), ord("n"), 2]


def test_records_are_asked_as_the_policy_is(pair):
  judge = pair["bytes"]
  record = examples.Prompt("here", "Why?")
  plain = retold.of_record(record, judge, chat=False, text="")
  assert not plain.chat and plain.shortened(1) is None
  assert plain.shortened(0) == judge.encode("Why?")
  rendered = retold.of_record(record, judge, chat=True, text="")
  messages = [{"role": "user", "content": "Why?"}]
  assert rendered.chat
  assert rendered.shortened(0) == streams.prompt(messages, judge)
  rated = examples.RatedText("here", "a film, long", (1.0,))
  part = retold.of_record(rated, judge, chat=True, text="Review: a film")
  assert not part.chat and part.shortened(0) == judge.encode("Review: a film")


def test_a_judge_without_a_template_is_refused(pair, tmp_path):
  llama = load_tokenizer(tiny_llama(tmp_path / "plain"))
  record = examples.Prompt("here", DIALOGUE)
  with pytest.raises(UserError, match="reward: prompts are rendered with its"):
    retold.check([record], llama, "reward")
  retold.check([record], pair["llama"], "reward")
  rated = dataclasses.replace(
    examples.RatedText("here", "x", (1.0,)), ratings=(2.0,)
  )
  retold.check([rated], pair["llama"], "reward")
