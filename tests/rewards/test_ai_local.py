"""A model as a judge: probabilities of labels, however they are spelled."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data import rendering, streams
from rlhf_jax.data.tokenizers import encode_inside, load_tokenizer
from rlhf_jax.models import pretrained
from rlhf_jax.models.pretrained import Model
from rlhf_jax.models.roles import Role
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.rewards import verifiers
from rlhf_jax.rewards.ai import direct, local, questions, spelling
from rlhf_jax.rewards.ai.questions import Question, user
from rlhf_jax.rewards.ai.voices import LONG, Saying
from rlhf_jax.rewards.rows import Answers
from rlhf_jax.schema import FieldError, UserError
from tests import tiny
from tests.pipelines import tiny_runs

SCORE = questions.how_good("{answer}", "", "", "the cat")
PAIR = questions.which("the cat\nor the dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_runs.make_model(tmp_path_factory.mktemp("judge"), max_length=384)


@pytest.fixture(scope="module")
def base(folder):
  mesh = mesh_lib.make_mesh(mesh_lib.Config(devices=1))
  return pretrained.load_base(Model(source=folder), mesh)


def voice(base, **more):
  mesh = mesh_lib.make_mesh(mesh_lib.Config(devices=1))
  role, variables = Role(model=base.config), {"params": base.params}
  return direct.voice_of("tiny", base, role, variables, mesh, 4, **more)


def next_logprobs(base, ids):
  """Returns [V] of the whole model over these ids alone."""
  role = Role(model=base.config)
  tokens = jnp.asarray([ids], jnp.int32)
  logits = role.network.apply(
    {"params": base.params}, tokens, jnp.ones(tokens.shape)
  )[0, -1]
  known = logits[: base.tokenizer.vocab_size]  # rows beyond have no token
  return np.asarray(jax.nn.log_softmax(known), np.float64)


def test_labels_of_a_pair_by_the_whole_model(base):
  ids = streams.prompt(PAIR.messages, base.tokenizer)
  ids = [*ids, *encode_inside(f"{PAIR.prefix}A", base.tokenizer)]
  told = next_logprobs(base, ids[:-1])
  other = encode_inside(f"{PAIR.prefix}B", base.tokenizer)[-1]
  (_, reply), *_ = voice(base).label_logprobs([PAIR])
  assert reply.value == pytest.approx([told[ids[-1]], told[other]], abs=1e-4)
  assert reply.prompt_tokens == len(ids) - 1


def test_ten_goes_on_from_one(base):
  """The tokenizer spells 10 as 1 and 0: P(1) is that of no 0 behind it."""
  (_, reply), *_ = voice(base).label_logprobs([SCORE])
  spelled = spelling.spelled(
    SCORE.prefix, SCORE.labels, base.tokenizer, is_single=False, space=" "
  )
  one, ten = spelled.labels[0], spelled.labels[9]
  assert len(one) == 1 and ten[:1] == one and len(ten) == 2
  ids = [*streams.prompt(SCORE.messages, base.tokenizer), *spelled.prefix]
  first, second = next_logprobs(base, ids), next_logprobs(base, [*ids, *one])
  wanted = np.array([first[path[0]] for path in spelled.labels[:9]])
  wanted[0] += np.log1p(-np.exp(second[ten[1]]))
  wanted = [*wanted, first[one[0]] + second[ten[1]]]
  assert reply.value == pytest.approx(wanted, abs=1e-4)
  assert base.tokenizer.decode([*spelled.prefix, *ten]) == "The score is 10"


def test_many_questions_are_each_answered_as_alone(base):
  asked = [
    questions.which("the cat " * n) if n % 2 else SCORE for n in range(1, 8)
  ]
  alone = [next(iter(voice(base).label_logprobs([q])))[1] for q in asked]
  together = dict(voice(base).label_logprobs(asked))
  for n, reply in enumerate(alone):
    assert together[n].value == pytest.approx(reply.value, abs=1e-4)


def test_what_does_not_fit_is_counted(base):
  long = questions.which("the cat " * 400)
  found = dict(voice(base).label_logprobs([long, PAIR]))
  assert found[0].failure == LONG and found[1].failure == ""
  talks = [[user("the cat " * 400)], [user("the cat")]]
  said = dict(voice(base).say(talks, Saying(4)))
  assert said[0].failure == LONG and said[1].failure == ""


def test_texts_depend_on_no_batch(base):
  talks = [[user("the cat " * n)] for n in range(1, 7)]
  how = Saying(6, 1.0, 5)
  together = dict(voice(base).say(talks, how))
  for n in (0, 3, 5):
    ((_, alone),) = voice(base).say([talks[n]], how)
    assert alone == together[n]
  other = dict(voice(base).say(talks, Saying(6, 1.0, 6)))
  assert [x.value for x in other.values()] != [
    x.value for x in together.values()
  ]
  assert 0 < together[0].answer_tokens <= 6


def test_without_a_template_it_is_a_transcript(tmp_path, base):
  class Bare:
    def __getattr__(self, name):
      return None if name == "chat_template" else getattr(bare, name)

    special_tokens: dict = {}

  bare = base.tokenizer
  plain = local.Local(
    "plain",
    Role(model=base.config),
    {"params": base.params},
    Bare(),
    mesh_lib.make_mesh(mesh_lib.Config(devices=1)),
    {},
    2,
  )
  text = bare.decode(plain._ids([user("the cat")]))
  assert text == "Human: the cat\n\nAssistant:"
  (_, reply), *_ = plain.label_logprobs([PAIR])
  ids = plain._ids(PAIR.messages, encode_inside(f" {PAIR.prefix}A", bare))
  told = next_logprobs(base, ids[:-1])
  assert reply.value[0] == pytest.approx(told[ids[-1]], abs=1e-4)
  with pytest.raises(UserError, match="no chat template"):
    local.Local("plain", Role(model=base.config), {}, Bare(), None, {}, 2, True)
  assert rendering.template_of(bare)


def test_spellings_that_cannot_be_read_are_refused(base, tmp_path):
  tokenizer = base.tokenizer

  def spell(labels, is_single=True, prefix="It is ("):
    return spelling.spelled(prefix, labels, tokenizer, is_single=is_single)

  with pytest.raises(UserError, match="'357' is 3 tokens .* must be one"):
    spell(("1", "357"))
  with pytest.raises(UserError, match="are not told apart"):
    spell(("A", "A"))
  assert len(spell(("1", "357"), is_single=False).labels[1]) == 3
  other = load_tokenizer(tiny.tiny_sentencepiece(tmp_path / "t.model"))
  found = spelling.spelled("It is (", ("A", "B"), other, is_single=True)
  assert [len(x) for x in found.labels] == [1, 1]
  assert other.decode([*found.prefix, *found.labels[1]]) == "It is (B"


def test_as_a_reward_it_scores_and_counts(folder, base, tmp_path):
  path = tmp_path / "template.txt"
  path.write_text("{principle} {prompt} {answer}")
  cache = str(tmp_path / "cache.jsonl")
  judge = verifiers.bind_parts(
    "ai_judge", source=folder, template=str(path), rubric="cats", cache=cache
  )
  assert judge.needs == {"texts", "prompts"} and judge.full_marks is None
  texts = ["the cat", "  ", "the cat " * 400, "on the log"]
  record = {"messages": [user("who?")], "prompt": 3}
  answers = Answers(
    texts, [None] * 4, prompts=["user who?"] * 4, records=[record] * 4
  )
  scores, logged = judge(answers)
  assert scores[1] == -1.0 and logged["empty"].tolist() == [0, 1, 0, 0]
  assert scores[2] == 0.0 and logged["too_long"].tolist() == [0, 0, 1, 0]
  assert -1.0 < scores[0] < 1.0 and scores[0] != scores[3]
  asked = questions.how_good(path.read_text(), "cats", "Human: who?", "the cat")
  (_, reply), *_ = voice(base).label_logprobs([asked])
  p = np.exp(reply.value)
  wanted = 2.0 * (p @ np.arange(1, 11) / p.sum() - 1.0) / 9.0 - 1.0
  assert scores[0] == pytest.approx(wanted, abs=1e-4)
  assert logged["mass"][0] == pytest.approx(p.sum(), rel=1e-3)
  assert len([json.loads(x) for x in open(cache)]) == 3
  assert logged["judge_tokens"][0] == reply.prompt_tokens


@pytest.mark.parametrize(
  "values, message",
  [
    ({}, "one of them judges"),
    ({"source": "a", "endpoint": {"url": "http://h", "model": "m"}}, "one of"),
    ({"source": "gone"}, r"ai_judge\.source='gone'"),
    ({"endpoint": {"ulr": "x"}}, "endpoint has no 'ulr'"),
    ({"endpoint": {"url": "x"}}, "is no URL"),
    ({"rubrik": "x"}, "Did you mean 'rubric'"),
  ],
)
def test_rewards_that_cannot_judge_are_refused(values, message):
  with pytest.raises((FieldError, UserError), match=message):
    verifiers.bind_parts("ai_judge", **values)


def test_a_question_of_ours_fits_the_templates():
  assert isinstance(SCORE, Question) and SCORE.labels[-1] == "10"
