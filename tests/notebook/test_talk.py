"""A talk with a policy: what is drawn, shown, kept and compiled."""

import dataclasses
import io
import json
import os
import signal
import sys
import types

import jax
import numpy as np
import pytest

from rlhf_jax import chat, generate, lab, startup
from rlhf_jax.data import formats, streams
from rlhf_jax.notebook import streaming, talk
from rlhf_jax.notebook.dialogue import Dialogue, fitted
from rlhf_jax.schema import UserError
from tests.notebook.lab_runs import ONE
from tests.pipelines import tiny_runs

NEW = 6
ASKED = ["the cat", "a", "sat on the cat and the cat with a cat is"]


@pytest.fixture(scope="module")
def model(compile_cache, tmp_path_factory):
  del compile_cache
  folder = tmp_path_factory.mktemp("talk") / "model"
  return tiny_runs.make_model(folder, max_length=134)


@pytest.fixture(scope="module")
def policy(model):
  return lab.load(model, mesh=ONE)


@pytest.fixture(scope="module")
def streamer(policy):
  return streaming.Streamer(policy, generate.Config(max_new_tokens=NEW))


def opened(policies, **changes):
  how = dict(
    seed=3,
    save="",
    pairs="",
    is_one_dialogue=True,
    is_terminal=False,
    has_colours=False,
  )
  config = generate.Config(max_new_tokens=NEW)
  return talk.Talk.of(policies, changes.pop("config", config), **how | changes)


def hear(talk_, capsys, *lines):
  """Returns what was shown, and what was said beside it."""
  for line in lines:
    talk_.hear(line)
  return capsys.readouterr()


def messages(text):
  return [{"role": "user", "content": text}]


def test_the_tokens_are_those_of_generate(policy, streamer):
  for n, text in enumerate(ASKED * 2):
    ids = streams.prompt(messages(text), policy.base.tokenizer)
    key = streaming.key_of(5, n)
    drawn = list(streamer.tokens(ids, key))
    samples, _ = policy.sample([messages(text)], key, max_new_tokens=NEW)
    expected = np.asarray(samples.tokens[0])[samples.response_mask[0] > 0]
    assert [token for token, _ in drawn] == expected.tolist()
    is_end = bool(samples.finish_reason[0] == 0)
    assert [end for _, end in drawn] == [*[False] * (len(drawn) - 1), is_end]


def test_turns_of_any_length_compile_no_more(policy, streamer):
  assert streaming.widths(256) == (64, 128, 256)
  key = jax.random.key(0)

  def turn(length):
    return len(list(streamer.tokens([7] * length, key)))

  before = startup.COMPILES.count
  for width in (64, 128):
    turn(width)
  assert startup.COMPILES.count - before <= 2 * 2 + 1
  before = startup.COMPILES.count
  for length in (1, 3, 20, 63, 65, 100, 127):
    assert turn(length) >= 1
  assert startup.COMPILES.count == before


def test_a_dialogue_goes_on_and_is_read_again(policy, tmp_path, capsys):
  file = tmp_path / "talks.jsonl"
  first = opened([("x", policy)], system="be brief", save=str(file))
  shown = hear(first, capsys, ASKED[0], "a", "/save").out
  assert len(first.dialogue.turns) == 2
  record = json.loads(file.read_text())
  said = [m["content"] for m in record["messages"]]
  assert said[0] == "be brief" and said[1::2] == [ASKED[0], "a"]
  assert all(answer in shown for answer in said[2::2])
  (example,) = formats.load(str(file), "messages")
  assert example.messages == record["messages"]
  hear(first, capsys, "/undo", "sat", "/reset", "/reset")
  assert [len(json.loads(x)["messages"]) for x in file.open()] == [5, 5]
  # The same seed and the same words give the same answers.
  again = opened([("x", policy)], system="be brief")
  assert hear(again, capsys, ASKED[0], "a").out == shown
  other = opened([("x", policy)], system="be brief")
  assert hear(other, capsys, "/seed 4", ASKED[0], "a").out != shown
  assert other.seed == 4


def test_two_policies_and_which_is_better(policy, tmp_path, capsys):
  file = tmp_path / "pairs.jsonl"
  other = dataclasses.replace(
    policy, params=jax.tree.map(lambda x: 0.9 * x, policy.params)
  )
  same = opened([("x", policy), ("y", policy)])
  hear(same, capsys, ASKED[0])
  assert same.answers[0] == same.answers[1]  # one seed
  assert "equal" in hear(same, capsys, "/better 1").err
  pair = opened([("x", policy), ("y", other)], pairs=str(file))
  for n in range(6):  # a sample may be the same
    hear(pair, capsys, f"/seed {n}", ASKED[2])
    if len({said.text.strip() for said in pair.answers} - {""}) == 2:
      break
  answers = [said.text for said in pair.answers]
  hear(pair, capsys, "/better 2")
  assert pair.dialogue.turns == [(ASKED[2], answers[1])]
  (example,) = formats.load(str(file), "comparison")
  assert example.prompt == messages(ASKED[2])
  assert [example.chosen, example.rejected] == answers[::-1]


def test_a_model_without_a_template_goes_on_with_a_text(
  policy, tmp_path, capsys
):
  file = tmp_path / "texts.jsonl"
  tokenizer = policy.base.tokenizer
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tokenizer, "chat_template", None)
    patch.setattr(tokenizer, "special_tokens", {"<|im_end|>": 2})
    plain = opened([("base", policy)], save=str(file))
    assert "base has no chat template" in capsys.readouterr().err
    with pytest.raises(UserError, match="base has none"):
      opened([("base", policy)], system="x")
    hear(plain, capsys, " the cat", " and", "/save")
  (one, first), (two, last) = plain.dialogue.turns
  assert [one, two] == [" the cat", " and"]
  (example,) = formats.load(str(file), "demonstration")
  assert example.prompt == one + first + two and example.response == last
  samples, texts = policy.sample(
    [" the cat"], streaming.key_of(3, 0), max_new_tokens=NEW
  )
  assert texts == [first]


def test_a_pipe_holds_prompts(policy, tmp_path, capsys, monkeypatch):
  file = tmp_path / "talks.jsonl"
  monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n\n//a\n/quit\nno\n"))
  piped = opened([("x", policy)], is_one_dialogue=False, save=str(file))
  piped.run()
  out = capsys.readouterr().out
  found = [json.loads(line)["messages"] for line in file.open()]
  assert [[m["content"] for m in x][0] for x in found] == ["the cat", "/a"]
  assert "\x1b" not in out
  assert out == "".join(f"{x[1]['content']}\n" for x in found)


def test_control_c_stops_an_answer_and_not_the_talk(
  policy, capsys, monkeypatch
):
  def tokens(self, prompt, key):
    del self, prompt, key
    for n, word in enumerate(policy.base.tokenizer.encode(" cat on")):
      if n == 1:
        os.kill(os.getpid(), signal.SIGINT)
      yield word, False
    pytest.fail("it was not stopped")

  one = opened([("x", policy)])
  before = signal.getsignal(signal.SIGINT)
  monkeypatch.setattr(streaming.Streamer, "tokens", tokens)
  found = hear(one, capsys, "the")
  assert found.out == " cat on\n" and "stopped" in found.err
  assert one.dialogue.turns == [("the", " cat on")]
  assert signal.getsignal(signal.SIGINT) is before
  stopping = talk.Stopping()
  stopping._ask(2, None)
  with pytest.raises(KeyboardInterrupt):
    stopping._ask(2, None)


def test_the_reward_is_shown(policy, capsys):
  judge = policy.reward_model(trainable="head")
  one = opened([("x", policy), ("y", policy)], reward=judge)
  shown = hear(one, capsys, ASKED[0]).out
  line = shown.splitlines()[-1]
  value = judge.score([messages(ASKED[0])], [one.answers[0].text])[0]
  if one.answers[0].has_end:
    assert line == f"reward [1] {value:+.2f}  [2] {value:+.2f}"
  assert line.startswith("reward [1] ")


def test_a_dialogue_that_is_too_long_loses_its_first_turns(policy):
  tokenizer = policy.base.tokenizer
  dialogue = Dialogue(turns=[("the cat", "sat"), ("on", "a")])
  before = dialogue.before("and")
  whole, is_cut = fitted(before, tokenizer, 500)
  assert not is_cut
  ids, is_cut = fitted(before, tokenizer, len(whole) - 1)
  assert is_cut and ids == streams.prompt(before[2:], tokenizer)
  with pytest.raises(UserError, match="longer than the 5 tokens"):
    fitted(before, tokenizer, 5)
  assert fitted("the cat sat", tokenizer, 2)[1]


def test_earlier_thoughts_are_kept_and_not_shown_again():
  dialogue = Dialogue(turns=[("a", "<think>\nb\n</think>\n\nc"), ("d", "e")])
  shown = [m["content"] for m in dialogue.before("f")]
  assert shown == ["a", "c", "d", "e", "f"]
  kept = [m["content"] for m in dialogue.record()["messages"]]
  assert kept == ["a", "<think>\nb\n</think>\n\nc", "d", "e"]
  opened_before = Dialogue(turns=[("a", "b</think>c")])  # by the template
  assert opened_before.before("d")[1]["content"] == "c"


def test_commands_say_what_they_want(policy, capsys):
  one = opened([("x", policy)])
  for line, word in (
    ("/halp", "Did you mean '/help'?"),
    ("/undo", "no turn"),
    ("/seed x", "whole number"),
    ("/save", "name a file"),
    ("/better 1", "two answers"),
    ("/help", "/better"),
    ("/save x.jsonl", "no answer yet"),
  ):
    assert word in hear(one, capsys, line).err
  assert not one.hear("/quit")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["MODEL", "MODEL", "MODEL"], "3 policies: one, or two"),
    (["MODEL", "--pairs=x"], "a comparison is of two answers"),
    (["MODEL", "--min-p=2"], "min_p=2.0: must be in 0..1"),
    (["MODEL", "--max-new-tokens=400"], "max_new_tokens=400: the context"),
    (["MODEL", "--plain", "--system=x"], "--plain uses none"),
    (["MODEL", "--reward=MODEL"], "--reward: a policy"),
    (["nowhere"], "nowhere"),
    (["MODELL"], "no such file or folder. Did you mean"),
  ],
)
def test_mistakes_are_one_line(model, capsys, arguments, message):
  arguments = [x.replace("MODEL", model) for x in arguments]
  assert chat.main(["chat", *arguments]) == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("error: ") and message in error


def test_no_control_character_reaches_a_terminal():
  assert talk.visible("a\x1b[2J\n\tb\x07\x9bé") == "a␛[2J\n\tb␇�é"


def test_the_best_of_several_is_what_the_reward_model_prefers(policy, capsys):
  """Shown is the best one alone; the first draw is that of a single answer."""

  class Reader:
    tokenizer = policy.base.tokenizer

    def told(self, asked, said):
      del asked
      return types.SimpleNamespace(ids=[], answer=said.text, is_cut=False)

    def scores(self, ids, mesh, answers):
      del ids, mesh
      self.seen = list(answers)
      return [float(len(text)) for text in answers]

  several = opened([("a", policy)], draws={"a": 4})
  several.reader = Reader()
  shown = hear(several, capsys, "the cat")
  drawn = several.reader.seen
  assert len(drawn) == 1  # the last question is about what was said
  alone = opened([("a", policy)])
  hear(alone, capsys, "the cat")
  first = alone.answers[0].text
  best = several.answers[0].text
  assert len(best) >= len(first) and best.strip() in shown.out
  assert "the best of 4, number" in shown.err
