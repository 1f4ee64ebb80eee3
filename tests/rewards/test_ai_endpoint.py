"""A judge behind a URL that is slow, full, broken or out of form."""

import json
import math
import threading

import pytest

from rlhf_jax.rewards import guard, verifiers
from rlhf_jax.rewards.ai import direct, questions
from rlhf_jax.rewards.ai.endpoint import Endpoint, Remote
from rlhf_jax.rewards.ai.voices import FAILED, FORM, JudgeGone, Saying
from rlhf_jax.rewards.rows import Answers
from rlhf_jax.schema import FieldError, UserError
from tests import fake_judge
from tests.fake_judge import said

QUESTION = questions.which("Answer A:\nx\n\nAnswer B:\ny")
A, B = {"A": -0.1, " A": -4.0, "B": -3.0, "The": -5.0}, {"B": -0.2, "x": -6.0}


def settings(server, **more):
  usual = {"wait_seconds": 0.001, "retries": 2, "timeout_seconds": 5.0}
  return Endpoint(**({"url": server.url, "model": "m"} | usual | more))


def ask(answer, count=1, **more):
  """Returns replies by number, and the server."""
  with fake_judge.serving(answer) as server:
    voice = Remote(settings(server, **more))
    return dict(voice.label_logprobs([QUESTION] * count)), server


def after(failures, then):
  """Returns an answer that comes after others."""
  left, lock = list(failures), threading.Lock()

  def answer(body):
    with lock:
      found = left.pop(0) if left else then
    return found

  return answer


def test_log_probabilities_of_the_labels_are_read():
  found, server = ask(lambda body: said("A", A))
  first, second = found[0].value
  assert first == pytest.approx(math.log(math.exp(-0.1) + math.exp(-4.0)))
  assert second == -3.0
  assert (found[0].prompt_tokens, found[0].answer_tokens) == (10, 1)
  (body,) = server.bodies
  assert body["model"] == "m" and body["temperature"] == 0.0
  assert body["logprobs"] is True and body["max_tokens"] == 1
  assert body["messages"][-1]["content"].endswith(questions.WHICH)
  assert server.paths == ["/v1/chat/completions"]
  assert "Authorization" not in server.headers[0]


def test_a_label_that_is_not_told_has_at_most_the_last_ones_probability():
  found, _ = ask(lambda body: said("B", B))
  assert found[0].value == pytest.approx([-6.0, -0.2])


@pytest.mark.parametrize(
  "text, expected",
  [
    ("A", [0.0, -math.inf]),
    (" (B). ", [-math.inf, 0.0]),
    ("**B**", [-math.inf, 0.0]),
    ("A is better", None),
    ("Both", None),
    ("", None),
    (None, None),
    ("a", None),
  ],
)
def test_texts_that_are_a_label_are_votes(text, expected):
  found, server = ask(lambda body: said(text), reads="text")
  assert found[0].value == expected
  assert found[0].failure == ("" if expected else FORM)
  assert "logprobs" not in server.bodies[0]


def test_no_label_among_the_likeliest_is_out_of_form():
  found, _ = ask(lambda body: said("Well", {"Well": -0.1, "I": -3.0}))
  assert (found[0].value, found[0].failure) == (None, FORM)


@pytest.mark.parametrize(
  "failure",
  [
    (429, {"Retry-After": "0"}, b"slow down"),
    (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""),
    (503, {}, b""),
    (200, {}, b"{not json"),
    (200, {}, b'"a text"'),
    (200, {}, b'{"choices": []}'),
    (200, {}, json.dumps({"choices": [{"message": None}]}).encode()),
    said("A", {"A": "high"}),
  ],
  ids=range(8),
)
def test_what_may_pass_is_tried_again(failure):
  found, server = ask(after([failure, failure], said("A", A)))
  assert found[0].value[0] > found[0].value[1]
  assert len(server.bodies) == 3


def test_a_slow_endpoint_is_asked_again():
  free = threading.Event()
  turns = after([None], said("A", A))

  def answer(body):
    found = turns(body)
    if found is None:
      free.wait(5.0)
      return said("B", B)
    return found

  with fake_judge.serving(answer) as server:
    voice = Remote(settings(server, timeout_seconds=0.2))
    found = dict(voice.label_logprobs([QUESTION]))
    free.set()
  assert found[0].value[0] > found[0].value[1]
  assert len(server.bodies) == 2


def test_one_question_may_fail_and_is_counted():
  broken = [(500, {}, b"")] * 3
  found, server = ask(after(broken, said("A", A)), count=3, parallel=1)
  assert [found[n].failure for n in range(3)] == [FAILED, "", ""]
  assert len(server.bodies) == 5


def test_a_question_that_is_refused_is_out_of_form_at_once():
  found, server = ask(lambda body: (400, {}, b"context length exceeded"))
  assert found[0].failure == FORM and len(server.bodies) == 1


def test_nobody_there_ends_the_run():
  with pytest.raises(JudgeGone, match="2 questions in a row .* HTTP 502"):
    ask(lambda body: (502, {}, b""), count=9, parallel=1, stop_after=2)
  voice = Remote(
    Endpoint(
      "http://127.0.0.1:9/v1", "m", retries=0, wait_seconds=0.0, stop_after=1
    )
  )
  with pytest.raises(JudgeGone, match="the same command goes on"):
    list(voice.label_logprobs([QUESTION]))


@pytest.mark.parametrize(
  "answer, message",
  [
    ((401, {}, b"key sk-123 is wrong"), r"HTTP 401 .*key_variable='KEY_OF_T"),
    ((404, {}, b"no model sk-123"), r"HTTP 404 .*model='m'.*\[key\]"),
    ((302, {"Location": "http://127.0.0.1:9/"}, b""), "HTTP 302"),
    ((400, {}, b"logprobs are not supported"), "reads='text'"),
    (said("A"), "gives no log-probabilities"),
  ],
)
def test_what_cannot_pass_ends_it_at_once_and_shows_no_key(
  answer, message, monkeypatch
):
  monkeypatch.setenv("KEY_OF_TEST", "sk-123")
  with pytest.raises(UserError, match=message) as caught:
    ask(lambda body: answer, key_variable="KEY_OF_TEST")
  assert "sk-123" not in str(caught.value)


def test_the_key_is_sent_and_kept_nowhere(monkeypatch):
  monkeypatch.setenv("KEY_OF_TEST", "sk-123")
  _, server = ask(lambda body: said("A", A), key_variable="KEY_OF_TEST")
  assert server.headers[0]["Authorization"] == "Bearer sk-123"
  voice = Remote(settings(server, key_variable="KEY_OF_TEST"))
  assert "sk-123" not in repr((voice.identity, voice.settings))
  monkeypatch.delenv("KEY_OF_TEST")
  with pytest.raises(FieldError, match="KEY_OF_TEST.*is not set"):
    Remote(settings(server, key_variable="KEY_OF_TEST"))


def reward(server, **more):
  usual = {"url": server.url, "model": "m", "retries": 0, "wait_seconds": 0.0}
  return verifiers.bind_parts("ai_judge", endpoint=usual | more)


def answers(*texts):
  return Answers(list(texts), [None] * len(texts), ["q"] * len(texts))


def test_as_a_reward_it_is_a_score_in_minus_one_to_one():
  def scored(body):
    is_good = "answer:\ngood\n" in body["messages"][-1]["content"]
    return said("10" if is_good else "1 or so")

  with fake_judge.serving(scored) as server:
    judge = reward(server, reads="text")
    scores, logged = judge(answers("good", "bad", ""))
    assert len(server.bodies) == 2
  assert scores.tolist() == [1.0, 0.0, -1.0]
  assert logged["out_of_form"].tolist() == [0.0, 1.0, 0.0]
  assert logged["judge_tokens"].tolist() == [11.0, 11.0, 0.0]


def of_shares(**shares):
  """Returns token -> log-probability of _token -> probability."""
  found = {name.strip("_"): math.log(x) for name, x in shares.items()}
  return found | {"the last": -20.0}


@pytest.mark.parametrize(
  "tokens, mean",
  [
    # "10" is a token of its own.
    ([of_shares(_10=0.9, _1=0.1)], 9.1),
    # It is "1" and "0": the second token says how much of "1" it is.
    ([of_shares(_1=0.8, _2=0.2), of_shares(_0=0.75, _x=0.25)], 6.6),
    # Something else is drawn, so nobody knows: neither has it.
    ([of_shares(_8=0.6, _1=0.399, _7=0.001)], 8.0),
    # Nothing follows "1": it is a 1.
    ([of_shares(_1=0.9, _2=0.1)], 1.1),
  ],
)
def test_ten_is_no_one_where_a_tokenizer_writes_digits(tokens, mean):
  with fake_judge.serving(lambda body: said("1", *tokens)) as server:
    scores, _ = reward(server)(answers("x"))
    assert server.bodies[0]["max_tokens"] == 2
  assert scores[0] == pytest.approx(2 * (mean - 1) / 9 - 1, abs=0.01)


def test_a_reward_that_is_gone_stops_the_run():
  """And is no score of 0, as what else a reward function raises is."""
  with fake_judge.serving(lambda body: (503, {}, b"")) as server:
    judge = guard.Guard(reward(server, stop_after=2), direct.LOGGED)
    with pytest.raises(JudgeGone, match="the same command goes on"):
      judge(answers("a", "b", "c", "d"))
    assert len(server.bodies) <= 5


def test_texts_are_asked_with_a_seed_of_their_own():
  with fake_judge.serving(lambda body: said(" reasons ")) as server:
    voice = Remote(settings(server, limit_field="max_completion_tokens"))
    how = Saying(7, 1.0, 3)
    dialogues = [[questions.user("a")], [questions.user("b")]]
    found = dict(voice.say(dialogues, how))
  assert [found[n].value for n in (0, 1)] == ["reasons", "reasons"]
  assert {body["max_completion_tokens"] for body in server.bodies} == {7}
  assert len({body["seed"] for body in server.bodies}) == 2


@pytest.mark.parametrize(
  "values, message",
  [
    ({"url": "localhost:8000"}, "is no URL"),
    ({"url": "http://u:p@h/v1"}, "holds a name"),
    ({"url": "http://h/v1", "model": ""}, "model is empty"),
    ({"url": "", "model": "m"}, "url=''"),
    ({"url": "http://h/v1", "key_variable": "K"}, "unencrypted"),
    ({"url": "https://h/v1", "key_variable": "sk-1"}, "is the NAME"),
    ({"url": "http://h/v1", "reads": "x"}, "reads='x'"),
    ({"url": "http://h/v1", "timeout_seconds": 0.0}, "timeout_seconds=0.0"),
    ({"url": "http://h/v1", "parallel": 0}, "parallel=0"),
  ],
)
def test_settings_that_cannot_be_are_refused(values, message):
  with pytest.raises(FieldError, match=message) as caught:
    Endpoint(**({"model": "m"} | values))
  assert "sk-1" not in str(caught.value)
