"""A tiny policy does tasks: likelihoods against a naive pass, scores."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data import streams
from rlhf_jax.evaluation.tasks.items import Item, Task
from rlhf_jax.models import outputs, transformer
from rlhf_jax.models.rows import Rows
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import defaults, evaluate_tasks
from rlhf_jax.programs import compared, likelihoods, task_runs, task_suites
from rlhf_jax.programs.likelihoods import Pair
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs


@pytest.fixture(scope="module")
def policy(files):
  config = defaults.sft()
  config.mesh.devices = 1
  config.model.source = files.model
  base = tiny_runs.load_base(config)
  stage = compared.model_policy(base)
  mesh = mesh_lib.make_mesh(mesh_lib.Config(devices=1))
  return base, stage.role, *stage.parts, mesh


def runner(policy, **changes):
  base, role, _, frozen, mesh = policy
  return task_runs.Runner(role, frozen, base, mesh, **changes)


def naive(policy, before, after):
  """Returns log-probabilities of ids, out of a pass over one row alone."""
  base, role, params, frozen, _ = policy
  tokens = jnp.asarray([[*before, *after]])
  rows = Rows(tokens, jnp.ones(tokens.shape), jnp.arange(tokens.shape[1])[None])
  net = transformer.Transformer(base.config)
  variables = {**params, **frozen}
  x = outputs.stream(role, variables, rows, None)
  weights = {"params": variables["params"]}
  hidden = net.apply(weights, x, method="normed")
  logits = hidden @ net.apply(weights, method="unembedding")
  used = base.tokenizer.vocab_size
  log_p = jax.nn.log_softmax(np.float64(logits[0, :, :used]))
  first = len(before)
  return np.asarray(
    [log_p[first - 1 + i, token] for i, token in enumerate(after)]
  ), np.argmax(log_p[first - 1 : -1], axis=-1)


def test_shared_rows_read_what_a_row_alone_would(policy):
  base, role, params, frozen, mesh = policy
  encode = base.tokenizer.encode
  question, other = encode("the cat sat on the"), encode("a dog")
  pairs = [
    *(Pair(question, encode(x)) for x in (" mat", " log and the cat", " a")),
    *(Pair(other, encode(x)) for x in (" sat", " with")),
    Pair(question[:1], encode(" cat")),
  ]
  reader = likelihoods.Reader(role, frozen, base, mesh, 2, tells_top=True)
  for pair, read in zip(pairs, reader(params, pairs), strict=True):
    wanted, top = naive(policy, *pair[:2])
    np.testing.assert_allclose(read.logprobs, wanted, atol=2e-5)
    np.testing.assert_array_equal(read.is_top, top == np.asarray(pair.after))


def test_windows_cover_a_text_once():
  ids = list(range(10, 21))
  found = likelihoods.windows(ids, 0, 4)
  assert [list(p.after) for p in found] == [ids[:4], ids[4:8], ids[8:]]
  assert [list(p.before) for p in found] == [[0], [13], [16, 17]]
  assert [p[:2] for p in likelihoods.windows([5], 0, 4)] == [([0], [5])]


def test_choices_texts_and_answers_of_one_task(policy, tmp_path):
  """The model says WORDS; answers are scored by a function of one's own."""
  own = tmp_path / "own.py"
  own.write_text(
    "def score(texts, references):\n"
    "  return [float(a == b) for a, b in zip(texts, references)]\n"
  )
  base, _, params, _, _ = policy
  items = [
    Item("x:1", "choice", "the cat sat", (" on", " xyz"), 0),
    Item("x:2", "choice", "the cat sat", (" qqq", " and"), 1),
    Item("x:3", "perplexity", "", answer=" the cat sat on the cat"),
    Item("x:4", "generate", "the cat", answer="nothing"),
  ]
  task = Task("words", items, scorer=f"{own}:score", new_tokens=4)
  suite = task_suites.Suite.of([task], base, task_suites.Config())
  found = runner(policy, rows=2)(params, suite)["words"]
  assert [x.item for x in found] == items
  assert (found[0].chosen, found[1].chosen) == (0, 1)
  begin = task_suites.begin_id(base.tokenizer)
  ids = base.tokenizer.encode(items[2].answer)
  wanted, _ = naive(policy, [begin], ids)
  assert found[2].logprobs[0] == pytest.approx(wanted.sum(), abs=1e-4)
  assert found[2].tokens == (len(ids),)
  assert found[3].score == 0.0
  right = dataclasses.replace(items[3], answer=found[3].text)
  task = dataclasses.replace(task, items=[right])
  suite = task_suites.Suite.of([task], base, task_suites.Config())
  assert runner(policy)(params, suite)["words"][0].score == 1.0


def test_dialogues_are_read_behind_the_header_of_the_assistant(policy):
  base, _, params, _, _ = policy
  messages = [{"role": "user", "content": "the cat"}]
  item = Item("x", "choice", "the cat", (" sat", " on"), 0)
  suites = [
    task_suites.Suite.of([Task("t", [x])], base, task_suites.Config(chat=chat))
    for x, chat in (
      (item, True),
      (dataclasses.replace(item, prompt=tuple(messages)), False),
    )
  ]
  assert suites[0].pairs == suites[1].pairs
  before = streams.prompt(messages, base.tokenizer)
  assert list(suites[0].pairs[0].before) == before
  said = base.tokenizer.decode(suites[0].pairs[0].after)
  assert said == "sat"


def test_the_code_of_answers_is_run(policy, monkeypatch):
  """HumanEval's layout: a body that is right, and one that is not."""
  base, _, params, _, _ = policy
  from rlhf_jax.evaluation.tasks import layouts

  record = {
    "prompt": "def twice(x):\n",
    "test": "def check(f):\n  assert f(2) == 4",
    "entry_point": "twice",
  }
  items = [layouts.humaneval(record, f"x:{i}") for i in range(2)]
  task = Task("code", items, scorer="code", new_tokens=8)
  suite = task_suites.Suite.of([task], base, task_suites.Config())
  said = ["  return x * 2", "  return x"]
  monkeypatch.setattr(
    task_runs.Runner, "generate", lambda *_: [(x, [1], True) for x in said]
  )
  found = runner(policy)(params, suite)["code"]
  assert [x.score for x in found] == [1.0, 0.0]
  broken = layouts.humaneval(record | {"test": "def check(f): ..."}, "file:7")
  task = dataclasses.replace(task, items=[broken])
  with pytest.raises(UserError, match="file:7"):
    task_suites.Suite.of([task], base, task_suites.Config())


def test_what_does_not_fit_is_refused_with_its_place(policy):
  base = policy[0]
  item = Item("file:9", "choice", "the cat " * 80, (" a", " on"), 0)
  with pytest.raises(UserError, match="file:9"):
    task_suites.Suite.of([Task("t", [item])], base, task_suites.Config())


def test_an_answer_that_nothing_is_judged_by_is_refused_at_once(policy):
  from rlhf_jax.evaluation.tasks import layouts

  number = layouts.LAYOUTS["gsm8k"]
  items = [
    number.parse({"question": "q", "answer": answer}, f"file:{i}")
    for i, answer in ((1, "#### 4"), (2, "B"))
  ]
  task = Task("t", items, number.scorer, number.settings)
  with pytest.raises(UserError, match="^file:2: answer='B': it is not a sing"):
    task_suites.Suite.of([task], policy[0], task_suites.Config())


def test_the_files_of_tasks_are_read_before_the_model(tmp_path):
  (tmp_path / "x.jsonl").write_text("")
  suite = task_suites.Config(tasks=f"mmlu:{tmp_path / 'x.jsonl'}")
  settings = evaluate_tasks.Settings(policies="model", suite=suite)
  world = types.SimpleNamespace(workdir=tmp_path)  # it has no model
  with pytest.raises(UserError, match="x.jsonl:1: the file is empty"):
    evaluate_tasks.run(settings, world)


def test_answers_are_cut_before_what_ends_them():
  assert task_runs.cut("4\nQuestion: 5", ("\nQuestion:", "x")) == "4"
  assert task_runs.cut("4", ("\n",)) == "4"
