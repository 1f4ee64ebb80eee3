"""Evaluation by hand: the summary, the columns of answers, the texts."""

import functools
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import checkpoint, generate
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.data import batches
from rlhf_jax.models import heads, roles, trees
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import build, defaults, evaluate, reward, stages
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.types import FINISH_EOS, FINISH_LENGTH, Rollout, Samples
from tests.letters import Letters
from tests.pipelines import tiny_runs

# Four prompts. Scores of the proxy: mean 2 and variance 2 before, and changes
# of 2, 0, 2 and -2. Those of gold: mean 2 and variance 1, changes of -1, 0, -1
# and 2.
BEFORE = evaluate.Answers(
  prompts=["p", "qq", "r", "sss"],
  texts=["a b", "a b", "c d e", "c"],
  scores={
    "reward": np.array([0.0, 2.0, 4.0, 2.0]),
    "gold": np.array([1.0, 1.0, 3.0, 3.0]),
  },
  kl=np.array([0.5, -0.5, 0.0, 0.0]),
  lengths=np.array([2.0, 2.0, 3.0, 1.0]),
  ended=np.array([True, True, False, False]),
)
AFTER = evaluate.Answers(
  prompts=BEFORE.prompts,
  texts=["a b a b", "a b", "x", "y"],
  scores={
    "reward": np.array([2.0, 2.0, 6.0, 0.0]),
    "gold": np.array([0.0, 1.0, 2.0, 5.0]),
  },
  kl=np.array([1.0, 2.0, 3.0, 6.0]),
  lengths=np.array([4.0, 2.0, 1.0, 2.0]),
  ended=np.array([True, False, False, False]),
)
# Win, tie, win, loss; and loss, tie, loss, win: the same spread.
RATE_ERROR = np.sqrt((2 * 0.375**2 + 0.125**2 + 0.625**2) / 3) / 2
SUMMARY = {
  "evaluation_prompts": 4,
  "proxy_before": 0.0,
  "proxy_after": 0.5 / np.sqrt(2),
  "proxy_standard_error": np.sqrt(11 / 3) / 2 / np.sqrt(2),
  "proxy_win_rate": 0.625,
  "proxy_win_rate_standard_error": RATE_ERROR,
  "gold_before": 0.0,
  "gold_after": 0.0,
  "gold_standard_error": np.sqrt(6 / 3) / 2,
  "gold_win_rate": 0.375,
  "gold_win_rate_standard_error": RATE_ERROR,
  "kl_nats": 3.0,
  "kl_standard_error": np.sqrt(14 / 3) / 2,
  # bigrams: ab, ab, cd, de; and ab, ba, ab, ab
  "distinct_2_before": 3 / 4,
  "distinct_2_after": 2 / 4,
  # "a b" twice: 1 each. "c d e": one word of three, of two bigrams and one
  # trigram a tenth. "c": found, but half as long as the closest.
  "self_bleu_before": (1 + 1 + (1 / 3 * 0.1 / 2 * 0.1) ** (1 / 3) + np.exp(-1))
  / 4,
  # "a b a b" in "a b": 2 words of 4, 1 bigram of 3, tenths of 2 and of 1.
  "self_bleu_after": ((2 / 4 / 3 * 0.1 / 2 * 0.1) ** (1 / 4) + 1 + 0 + 0) / 4,
  "duplicate_share_before": 1 / 4,
  "duplicate_share_after": 0.0,
  "length_before": 2.0,
  "length_after": 9 / 4,
  "eos_share_before": 1 / 2,
  "eos_share_after": 1 / 4,
}


def close(found, expected):
  """Asserts that two dicts hold the same numbers under the same names."""
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_every_number_of_the_summary_by_hand():
  close(evaluate.summarise(BEFORE, AFTER, False), SUMMARY)


def test_sentiment_is_of_prompt_and_answer(monkeypatch):
  """A lexicon for which a text is as good as it is long."""
  monkeypatch.setattr(
    evaluate.lexicon,
    "vader_scores",
    lambda texts: np.array([len(text) for text in texts], float),
  )
  found = evaluate.summarise(BEFORE, AFTER, True)
  # lengths 4, 5, 6, 4 and 8, 5, 2, 4: changes of 4, 0, -4 and 0
  close(
    found,
    SUMMARY
    | {
      "vader_before": 19 / 4,
      "vader_after": 19 / 4,
      "vader_standard_error": np.sqrt(32 / 3) / 2,
    },
  )


def test_without_gold_there_is_none():
  alone = [
    evaluate.Answers(**vars(x) | {"scores": {"reward": x.scores["reward"]}})
    for x in (BEFORE, AFTER)
  ]
  close(
    evaluate.summarise(*alone, False),
    {k: v for k, v in SUMMARY.items() if not k.startswith("gold")},
  )


def test_texts_hold_both_answers_and_raw_scores(tmp_path):
  evaluate._write_texts(tmp_path / "texts.jsonl", BEFORE, AFTER)
  rows = [json.loads(x) for x in (tmp_path / "texts.jsonl").open()]
  assert len(rows) == 4
  assert rows[2] == {
    "prompt": "r",
    "before": "c d e",
    "after": "x",
    "kl": 3.0,
    "proxy_before": 4.0,
    "proxy_after": 6.0,
    "gold_before": 3.0,
    "gold_after": 2.0,
  }


def test_the_columns_of_answers_by_hand(monkeypatch):
  """Two batches of two prompts; answers of 2 and 1 tokens, then of 1 and 2."""
  said = [[[97, 98], [99, 2]], [[2, 2], [100, 101]]]
  masks = [[[1, 1], [1, 0]], [[1, 0], [1, 1]]]
  ends = [[FINISH_LENGTH, FINISH_EOS], [FINISH_EOS, FINISH_LENGTH]]
  asked = []

  def sampled(params, prompts, key, **settings):
    number = len(asked)
    asked.append((params, prompts.index.tolist(), key, settings))
    mask = np.pad(np.float32(masks[number]), ((0, 0), (2, 0)))
    return Samples(
      tokens=np.concatenate([prompts.tokens, said[number]], axis=1),
      valid_mask=np.pad(np.asarray(prompts.valid_mask), ((0, 0), (0, 2)))
      + mask,
      response_mask=mask,
      behaviour_logprobs=-1.0 * mask,
      finish_reason=np.asarray(ends[number]),
    )

  def judged(weights, critic, samples, layout):
    assert (weights, critic, layout) == ("weights", {}, None)
    first = 2.0 * (len(asked) - 1)
    rollout = Rollout(
      **vars(samples),
      reference_logprobs=-1.5 * samples.response_mask,
      score=np.zeros(2),
    )
    return rollout, {
      "reward": np.array([first, first + 1]),
      "gold": np.array([9 - first, 8 - first]),
    }

  monkeypatch.setattr(generate, "generate", sampled)
  tokenizer = Letters()
  found = evaluate.answer(
    "params",
    "weights",
    judged,
    [
      batches.collate_prompts([[102], [103, 104]], 2, 2, index=[0, 1]),
      batches.collate_prompts([[105, 106], [107]], 2, 2, index=[2, 3]),
    ],
    "key",
    name="after",
    base=types.SimpleNamespace(config="model", tokenizer=tokenizer),
    mesh=mesh_lib.make_mesh(mesh_lib.Config(devices=1)),
    settings="settings",
    packed=packing.Config(),
  )
  assert [x[:3] for x in asked] == [
    ("params", [0, 1], "key"),
    ("params", [2, 3], "key"),
  ]
  assert asked[0][3] == {
    "model": "model",
    "config": "settings",
    "eos_ids": (2,),
    "pad_id": 2,
  }
  assert found.prompts == ["f", "gh", "ij", "k"]
  assert found.texts == ["ab", "c", "", "de"]
  assert sorted(found.scores) == ["gold", "reward"]
  np.testing.assert_array_equal(found.scores["reward"], [0, 1, 2, 3])
  np.testing.assert_array_equal(found.scores["gold"], [9, 8, 7, 6])
  np.testing.assert_array_equal(found.lengths, [2, 1, 1, 2])
  np.testing.assert_array_equal(found.ended, [False, True, True, False])
  np.testing.assert_allclose(found.kl, [1.0, 0.5, 0.5, 1.0])


# A whole evaluation of stages that were drawn, not trained.

COUNT, BATCH = 8, 4


def save_stage(folder, pipeline, base, role, trained, **facts):
  """Writes a finished stage with the given trainable tree."""
  with checkpoint.Checkpoints(str(folder / "checkpoints")) as saved:
    saved.save(
      1, {"train": {"params": trained}}, stages.identity(base), final=True
    )
  stages.write_stage(folder, pipeline, base, role, **facts)


def draw(tree, seed, size):
  """Returns a tree of the same shapes, drawn anew."""
  flat = trees.flatten(tree)
  keys = jax.random.split(jax.random.key(seed), len(flat))
  return trees.unflatten(
    {
      path: size * jax.random.normal(key, leaf.shape)
      for key, (path, leaf) in zip(keys, flat.items(), strict=True)
    }
  )


def make_config(files):
  config = defaults.evaluate()
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2)
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.update(
    max_new_tokens=tiny_runs.NEW_TOKENS, temperature=0.9, num_samples=1
  )
  config.update(count=COUNT, batch_size=BATCH, lexicon=False)
  return config


def make_stages(config, root):
  """Writes a start, a policy on it, and two reward models; names them."""
  base = tiny_runs.load_base(config)
  policy = roles.Role(base.config, trainable="lora")
  scorer = roles.Role(base.config, trainable="head", head=heads.Config())
  factors = roles.fresh_lora(policy, jax.random.key(0))
  start = root / "start"
  save_stage(start, "sft", base, policy, {"lora": draw(factors, 1, 0.3)})
  save_stage(
    root / "policy",
    "preference",
    base,
    policy,
    {"lora": draw(factors, 2, 0.3)},
    init_from=str(start),
  )
  head = heads.init(scorer.head, base.config.width, jax.random.key(0))
  for seed, name in ((3, "reward"), (4, "gold")):
    save_stage(
      root / name,
      "reward",
      base,
      scorer,
      {"head": draw(head, seed, 1.0)},
      reads_end_token=True,
      normalisation={"mean": 0.25, "std": 2.0},
    )
  for name in ("policy", "reward", "gold"):
    config[name] = str(root / name)
  return base


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
  """Returns base, config, numbers, and what was sampled and answered."""
  folder = tmp_path_factory.mktemp("evaluated")
  config = make_config(files)
  base = make_stages(config, folder)
  record = types.SimpleNamespace(samples=[], answers={}, folder=folder)
  sample, answer = generate.generate, evaluate.answer

  def watched_sample(params, prompts, key, **settings):
    found = sample(params, prompts, key, **settings)
    record.samples.append((params, prompts, key, found))
    return found

  def watched_answer(*arguments, name, **options):
    record.answers[name] = answer(*arguments, name=name, **options)
    return record.answers[name]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(generate, "generate", watched_sample)
    patch.setattr(evaluate, "answer", watched_answer)
    record.facts = evaluate.run(config, folder / "evaluation")
  return base, config, record


def loaded(base, config, name):
  """Returns the sampling parameters of the start or of the policy."""
  mesh = build.make_mesh(config)
  folder = Path(config.policy).parent / name
  stage = stages.load_stage(folder, "sft", base, mesh)
  parts = roles.split(stage.role, stage.variables)
  return stage.role, roles.sampling_params(stage.role, *parts)


def test_before_is_the_start_and_after_the_policy(whole):
  base, config, record = whole
  assert list(record.answers) == ["before", "after"]
  assert len(record.samples) == 2 * COUNT // BATCH
  for number, (params, *_) in enumerate(record.samples):
    name = "start" if number < COUNT // BATCH else "policy"
    _, expected = loaded(base, config, name)
    for path, leaf in trees.flatten(expected).items():
      np.testing.assert_array_equal(trees.flatten(params)[path], leaf)


def test_all_prompts_are_asked_once_with_keys_of_their_own(whole):
  _, _, record = whole
  half = record.samples[: COUNT // BATCH]
  index = [prompts.index.tolist() for _, prompts, _, _ in half]
  assert sum(index, []) == list(range(COUNT))
  rows = [json.loads(x) for x in Path(whole[1].prompts.source).open()]
  asked = [row["prompt"] for row in rows[:COUNT]]
  for answers in record.answers.values():
    assert answers.prompts == asked


def test_kl_and_scores_are_those_of_the_models(whole):
  base, config, record = whole
  role, after = loaded(base, config, "policy")
  _, before = loaded(base, config, "start")
  plain = roles.Role(role.model)
  logprobs = jax.jit(
    lambda params, samples: roles.logprobs(
      plain,
      {"params": params},
      roles.Rows.of(samples),
      samples.response_mask,
      temperature=0.9,
    )[0]
  )
  mesh = build.make_mesh(config)
  scorers = {
    name: reward.load(config[name], base, mesh)[:2]
    for name in ("reward", "gold")
  }
  samples = jax.tree.map(
    lambda *x: jnp.concatenate(x),
    *[found for *_, found in record.samples[COUNT // BATCH :]],
  )
  found = record.answers["after"]
  ratio = logprobs(after, samples) - logprobs(before, samples)
  np.testing.assert_allclose(found.kl, jnp.sum(ratio, axis=1), atol=2e-4)
  np.testing.assert_allclose(record.answers["before"].kl, 0.0, atol=1e-4)
  for name, (scorer, weights) in scorers.items():
    score = jax.jit(functools.partial(reward_model.score, scorer))
    expected = score(weights, samples)
    np.testing.assert_allclose(found.scores[name], expected, atol=1e-4)
  assert np.std(found.scores["reward"] - found.scores["gold"]) > 0.1


def test_the_result_is_the_summary_of_before_and_after(whole):
  _, config, record = whole
  before, after = record.answers["before"], record.answers["after"]
  expected = evaluate.summarise(before, after, False)
  assert record.facts == expected
  folder = record.folder / "evaluation"
  assert evaluate.read_result(folder) == expected
  rows = tiny_runs.rows_of(folder, evaluate.TEXTS_FILE)
  assert [row["before"] for row in rows] == before.texts
  assert [row["after"] for row in rows] == after.texts
  assert evaluate.run(config, folder) == expected  # and is not repeated
