"""Evaluation by hand: the summary, the columns of answers, the texts."""

import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax import generate, pipelines
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.data import batches
from rlhf_jax.models import heads, roles, trees
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import defaults, evaluate, results
from rlhf_jax.programs import answer_numbers, answers, compared
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from rlhf_jax.types import FINISH_EOS, FINISH_LENGTH, Rollout, Samples
from tests.letters import Letters
from tests.pipelines import tiny_runs
from tests.pipelines.drawn_stages import draw, save_stage

# Four prompts. Scores of the proxy: mean 2 and variance 2 before, and changes
# of 2, 0, 2 and -2. Those of gold: mean 2 and variance 1, changes of -1, 0, -1
# and 2.
BEFORE = answers.Answers(
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
AFTER = answers.Answers(
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
V = 50_000


def of_drawn(unique, count):
  """Returns unique n-grams over those of `count` draws from V."""
  return unique / (V * (1 - (1 - 1 / V) ** count))


SUMMARY = {
  "evaluation_prompts": 4,
  "proxy_before": 0.0,
  "proxy_after": 0.5 / np.sqrt(2),
  "proxy_standard_error": np.sqrt(11 / 3) / 2 / np.sqrt(2),
  "proxy_win_rate": 0.625,
  "proxy_win_rate_standard_error": RATE_ERROR,
  # of means of 4 draws 1.95 % are below 1/4 and 6.25 % are 1
  "proxy_win_rate_low": 0.25,
  "proxy_win_rate_high": 1.0,
  "gold_before": 0.0,
  "gold_after": 0.0,
  "gold_standard_error": np.sqrt(6 / 3) / 2,
  "gold_win_rate": 0.375,
  "gold_win_rate_standard_error": RATE_ERROR,
  "gold_win_rate_low": 0.0,
  "gold_win_rate_high": 0.75,
  "kl_nats": 3.0,
  "kl_standard_error": np.sqrt(14 / 3) / 2,
  # bigrams: ab, ab, cd, de; and ab, ba, ab, ab
  "distinct_2_before": 3 / 4,
  "distinct_2_after": 2 / 4,
  # unigrams, bigrams and so on: unique ones of all
  "expectation_adjusted_distinct_before": np.mean(
    [of_drawn(5, 8), of_drawn(3, 4), of_drawn(1, 1)]
  ),
  "expectation_adjusted_distinct_after": np.mean(
    [of_drawn(4, 8), of_drawn(2, 4), of_drawn(2, 2), of_drawn(1, 1)]
  ),
  "bigram_entropy_nats_before": 1.5 * np.log(2),
  "bigram_entropy_nats_after": np.log(4) - 0.75 * np.log(3),
  # "a b" twice: 1 each. "c d e": one word of three, of two bigrams and one
  # trigram a tenth. "c": found, but half as long as the closest.
  "self_bleu_before": (1 + 1 + (1 / 3 * 0.1 / 2 * 0.1) ** (1 / 3) + np.exp(-1))
  / 4,
  # "a b a b" in "a b": 2 words of 4, 1 bigram of 3, tenths of 2 and of 1.
  "self_bleu_after": ((2 / 4 / 3 * 0.1 / 2 * 0.1) ** (1 / 4) + 1 + 0 + 0) / 4,
  "duplicate_share_before": 1 / 4,
  "duplicate_share_after": 0.0,
  # trigrams: cde; and aba, bab: none comes twice
  "repeated_3grams_before": 0.0,
  "repeated_3grams_after": 0.0,
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
  close(answer_numbers.summarise(BEFORE, AFTER, False), SUMMARY)


def test_sentiment_is_of_prompt_and_answer(monkeypatch):
  """A lexicon for which a text is as good as it is long."""
  monkeypatch.setattr(
    answer_numbers.lexicon,
    "vader_scores",
    lambda texts: np.array([len(text) for text in texts], float),
  )
  found = answer_numbers.summarise(BEFORE, AFTER, True)
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
    answers.Answers(**vars(x) | {"scores": {"reward": x.scores["reward"]}})
    for x in (BEFORE, AFTER)
  ]
  close(
    answer_numbers.summarise(*alone, False),
    {k: v for k, v in SUMMARY.items() if not k.startswith("gold")},
  )


def test_a_verifier_gives_the_scores_it_gives():
  """Shares right: 1/4 before, 3/4 after; two wins, two ties."""
  right = {"before": [0.0, 0.0, 0.0, 1.0], "after": [1.0, 0.0, 1.0, 1.0]}
  pair = [
    answers.Answers(**vars(x) | {"scores": {"verifier": np.array(right[name])}})
    for x, name in ((BEFORE, "before"), (AFTER, "after"))
  ]
  found = answer_numbers.summarise(*pair, False)
  expected = {
    "verifier_before": 0.25,
    "verifier_after": 0.75,
    "verifier_standard_error": np.sqrt(1 / 3) / 2,
    "verifier_win_rate": 0.75,
  }
  assert {k: found[k] for k in expected} == pytest.approx(expected)
  assert not [name for name in found if name.startswith(("proxy", "gold"))]


def test_without_a_judge_there_are_kl_length_and_diversity():
  pair = [answers.Answers(**vars(x) | {"scores": {}}) for x in (BEFORE, AFTER)]
  shown = ("proxy", "gold")
  close(
    answer_numbers.summarise(*pair, False),
    {k: v for k, v in SUMMARY.items() if not k.startswith(shown)},
  )


def test_texts_hold_both_answers_and_raw_scores(tmp_path):
  path = tmp_path / "texts.jsonl"
  results.write_rows(path, evaluate._rows(BEFORE, AFTER))
  rows = [json.loads(x) for x in path.open()]
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


def test_the_columns_of_answers_by_hand():
  """Two batches of two prompts; answers of 2 and 1 tokens, then of 1 and 2."""
  said = [[[97, 98], [99, 2]], [[2, 2], [100, 101]]]
  masks = [[[1, 1], [1, 0]], [[1, 0], [1, 1]]]
  ends = [[FINISH_LENGTH, FINISH_EOS], [FINISH_EOS, FINISH_LENGTH]]
  asked = []

  class Said:
    """What a policy said, batch by batch."""

    base = types.SimpleNamespace(tokenizer=Letters())

    def with_streams(self, params, prompts, key):
      number = len(asked)
      asked.append((params, prompts.index.tolist(), key))
      mask = np.pad(np.float32(masks[number]), ((0, 0), (2, 0)))
      samples = Samples(
        tokens=np.concatenate([prompts.tokens, said[number]], axis=1),
        valid_mask=np.pad(np.asarray(prompts.valid_mask), ((0, 0), (0, 2)))
        + mask,
        response_mask=mask,
        behaviour_logprobs=-1.0 * mask,
        finish_reason=np.asarray(ends[number]),
      )
      return samples, {1: "stream"}

  def judged(weights, critic, samples, layout, streams):
    assert (weights, critic, layout) == ("weights", {}, None)
    assert streams == {1: "stream"}
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

  found = answers.answer(
    Said(),
    "params",
    judged,
    "weights",
    [
      batches.collate_prompts([[102], [103, 104]], 2, 2, index=[0, 1]),
      batches.collate_prompts([[105, 106], [107]], 2, 2, index=[2, 3]),
    ],
    "key",
    name="after",
    mesh=mesh_lib.make_mesh(mesh_lib.Config(devices=1)),
    packed=packing.Config(row_tokens=0),
  )
  assert asked == [("params", [0, 1], "key"), ("params", [2, 3], "key")]
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
  start = root / "start"
  save_stage(start, "sft", base, policy, draw(policy, "lora", 1, 0.3))
  save_stage(
    root / "policy",
    "preference",
    base,
    policy,
    draw(policy, "lora", 2, 0.3),
    init_from=str(start),
  )
  for seed, name in ((3, "reward"), (4, "gold")):
    save_stage(
      root / name,
      "reward",
      base,
      scorer,
      draw(scorer, "head", seed, 1.0),
      reads_end_token=True,
      normalisation={"mean": 0.25, "std": 2.0},
    )
  for name in ("policy", "reward", "gold"):
    config[name] = str(root / name)
  return base


def drawn(words, prompts, key, *, config, pad_id, **settings):
  """Returns answers that no model gave, of given tokens, drawn by the key."""
  del settings
  rows, new = prompts.tokens.shape[0], config.max_new_tokens
  seed = [int(jax.random.key_data(key)[-1]), int(prompts.index[0])]
  rng = np.random.default_rng(seed)
  mask = np.float32(np.arange(new) < rng.integers(1, new + 1, (rows, 1)))
  tokens = np.where(mask > 0, rng.choice(words, mask.shape), pad_id)
  wide = np.pad(mask, ((0, 0), (prompts.tokens.shape[1], 0)))
  samples = Samples(
    tokens=np.concatenate([prompts.tokens, tokens], axis=1),
    valid_mask=wide + np.pad(prompts.valid_mask, ((0, 0), (0, new))),
    response_mask=wide,
    behaviour_logprobs=np.float32(-wide * rng.random(wide.shape)),
    finish_reason=rng.integers(0, 2, rows),
  )
  return samples, {}


def scored(weights, critic, samples, layout, streams):
  """Returns what no model judged: lengths and first words are the scores."""
  del weights, critic, layout, streams
  lengths = np.sum(samples.response_mask, axis=1)
  rollout = Rollout(
    **vars(samples),
    reference_logprobs=np.zeros_like(samples.behaviour_logprobs),
    score=lengths,
  )
  first = np.argmax(samples.response_mask, axis=1)
  words = samples.tokens[np.arange(len(first)), first]
  return rollout, {"reward": lengths, "gold": np.float32(words)}


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
  """Returns base, config, and what was asked, answered and summed up."""
  folder = tmp_path_factory.mktemp("evaluated")
  config = make_config(files)
  base = make_stages(config, folder)
  record = types.SimpleNamespace(asked=[], weights=[], answers={})
  words = [base.tokenizer.encode(f" {word}")[0] for word in tiny_runs.WORDS]

  real_answer = answers.answer

  def watched_sample(params, prompts, key, **settings):
    record.asked.append((params, prompts.index.tolist()))
    return drawn(words, prompts, key, **settings)

  def watched_answer(sampler, params, judge, weights, *rest, name, **options):
    record.weights.append(weights)
    record.answers[name] = real_answer(
      sampler, params, judge, weights, *rest, name=name, **options
    )
    return record.answers[name]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(generate, "with_streams", watched_sample)
    patch.setattr(answers, "answer", watched_answer)
    patch.setattr(compared.judge, "make_judge", lambda plan: scored)
    record.facts = pipelines.run(config, folder / "evaluation")
  return base, config, record


def loaded(base, config, name):
  """Returns a stage that was written by `make_stages`."""
  folder = Path(config.policy).parent / name
  kind = stages.REWARD if name in ("reward", "gold") else stages.POLICY
  return stages.load(folder, kind, base, tiny_runs.world_of(config))


def assert_same(found, expected):
  found, expected = trees.flatten(found), trees.flatten(expected)
  assert found.keys() == expected.keys()
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_before_is_the_start_and_after_the_policy(whole):
  base, config, record = whole
  assert list(record.answers) == ["before", "after"]
  assert len(record.asked) == 2 * COUNT // BATCH
  for number, name in ((0, "start"), (-1, "policy")):
    stage = loaded(base, config, name)
    expected = roles.sampling_params(stage.role, *stage.parts)
    assert_same(record.asked[number][0], expected)


def test_the_start_is_the_reference_and_each_judge_itself(whole):
  """For both policies: the KL is to the start of the training."""
  base, config, record = whole
  for weights in record.weights:
    assert_same(weights.reference, loaded(base, config, "start").variables)
    for name in ("reward", "gold"):
      expected = loaded(base, config, name).variables
      assert_same(weights.scorers[name].variables, expected)
      assert (weights.scorers[name].mean, weights.scorers[name].std) == (
        0.25,
        2.0,
      )


def test_all_prompts_are_asked_once_with_numbers_of_their_own(whole):
  """The number is part of the random key of a prompt's answer."""
  _, config, record = whole
  index = [index for _, index in record.asked]
  assert index == 2 * [[0, 1, 2, 3], [4, 5, 6, 7]]
  rows = [json.loads(x) for x in Path(config.prompts.source).open()]
  asked = [row["prompt"] for row in rows[:COUNT]]
  for found in record.answers.values():
    assert found.prompts == asked


def test_the_result_is_the_summary_of_before_and_after(whole):
  _, config, record = whole
  before, after = record.answers["before"], record.answers["after"]
  expected = answer_numbers.summarise(before, after, False)
  assert expected != answer_numbers.summarise(after, before, False)
  assert record.facts == expected
  folder = Path(config.policy).parent / "evaluation"
  assert evaluate.read_result(folder) == expected
  rows = tiny_runs.rows_of(folder, evaluate.TEXTS_FILE)
  assert [row["before"] for row in rows] == before.texts
  assert [row["after"] for row in rows] == after.texts
  assert pipelines.run(config, folder) == expected  # and is not repeated


@pytest.mark.parametrize("field", ["policy", "reward", "gold"])
def test_a_result_is_of_the_runs_as_they_were(whole, field):
  """Another one in a folder of the same name is no finished evaluation."""
  _, config, _ = whole
  folder = Path(config.policy).parent / "evaluation"
  path = Path(config[field]) / "stage.json"
  before = path.read_text()
  path.write_text(json.dumps(json.loads(before) | {"steps": 12345}))
  try:
    with pytest.raises(UserError, match=f"^config.{field}=.*has changed since"):
      pipelines.run(config, folder)
  finally:
    path.write_text(before)
  pipelines.run(config, folder)


@pytest.mark.parametrize("judged", ["verifier", "reward_fn", "nothing"])
def test_two_policies_are_compared_without_a_reward_model(
  files, tmp_path, judged, monkeypatch
):
  """A verifier, a function or nothing judges."""
  config = make_config(files)
  base = make_stages(config, tmp_path)
  config.update(reward="", gold="", init_from=str(tmp_path / "start"))
  if judged == "verifier":
    config.verifier.name = "pattern"
    config.verifier.settings.update(pattern=".*cat.*")
    path = tmp_path / "prompts.jsonl"
    rows = tiny_runs.rows_of(files.root, "prompts.jsonl")
    path.write_text(
      "".join(json.dumps(row | {"reference": ""}) + "\n" for row in rows)
    )
    config.prompts.source = str(path)
  if judged == "reward_fn":
    path = tmp_path / "scores.py"
    path.write_text("def letters(texts):\n  return [len(t) for t in texts]\n")
    config.reward_fn = f"{path}:letters"
  words = [base.tokenizer.encode(f" {word}")[0] for word in tiny_runs.WORDS]
  monkeypatch.setattr(
    generate,
    "generate",
    lambda params, prompts, key, **settings: drawn(
      words, prompts, key, **settings
    ),
  )
  facts = pipelines.run(config, tmp_path / "evaluation")
  assert ("verifier_after" in facts) == (judged != "nothing")
  assert "proxy_after" not in facts and np.isfinite(facts["kl_nats"])
  rows = tiny_runs.rows_of(tmp_path / "evaluation", evaluate.TEXTS_FILE)
  assert ("verifier_after" in rows[0]) == (judged != "nothing")
  if judged == "reward_fn":
    lengths = [len(row["after"]) for row in rows]
    assert [row["verifier_after"] for row in rows] == lengths
    assert facts["verifier_after"] == pytest.approx(np.mean(lengths))
