"""Judging runs that are killed go on; what nobody reads is refused."""

import dataclasses
import json

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.models.pretrained import Model
from rlhf_jax.pipelines import generate_answers, score_texts
from rlhf_jax.programs import answer_parts, answered, answers
from rlhf_jax.rewards import reader
from rlhf_jax.schema import FieldError, UserError
from tests.pipelines import test_evaluate_numbers as two
from tests.pipelines import test_generate_answers, test_score_texts, tiny_runs


class Killed(BaseException):
  """What no code of ours catches."""


def kill_at(patch, module, name, call):
  """Makes the function end the process at a call, counted from 1."""
  real, calls = getattr(module, name), []

  def watched(*args, **options):
    calls.append(1)
    if len(calls) == call:
      raise Killed
    return real(*args, **options)

  patch.setattr(module, name, watched)
  return calls


@pytest.fixture(scope="module")
def drawn(files, tmp_path_factory):
  root = tmp_path_factory.mktemp("parts")
  two.make_stages(two.make_config(files), root)
  return root


def test_a_part_comes_back_as_it_was(tmp_path):
  made = {"seed": "a", "data": "b"}
  parts = answer_parts.Parts(tmp_path, made)
  arrays = {"score/reward": np.float32([1.5, -2.0]), "ended": np.array([True])}
  parts.write("a/b c", 3, arrays, {"texts": ["\u00e9"]})
  assert parts.read("a/b c", 3) is None  # known are those of before
  again = answer_parts.Parts(tmp_path, made)
  found, said = again.read("a/b c", 3)
  assert said == {"texts": ["\u00e9"]} and found.keys() == arrays.keys()
  for name, x in arrays.items():
    np.testing.assert_array_equal(found[name], x)
    assert found[name].dtype == x.dtype
  assert again.read("a/b c", 2) is None and again.read("a_b c", 3) is None
  with pytest.raises(FieldError, match="^seed: it is another one than when"):
    answer_parts.Parts(tmp_path, made | {"seed": "c"})
  (file,) = (tmp_path / answer_parts.FOLDER).glob("*.npz")
  file.write_bytes(file.read_bytes()[:100])
  assert answer_parts.Parts(tmp_path, made).read("a/b c", 3) is None  # damaged
  again.done()
  assert not (tmp_path / answer_parts.FOLDER).exists()


def test_what_is_read_of_the_settings_is_in_the_identity():
  @dataclasses.dataclass(frozen=True)
  class Of:
    seed: int = 0
    choose: str = ""

  def made(of, data):
    return answer_parts.identity(of, {"policy": "p"}, data)

  whole = made(Of(), [np.arange(3), "a"])
  assert made(Of(choose="proxy"), [np.arange(3), "a"]) == whole
  assert made(Of(seed=1), [np.arange(3), "a"])["seed"] != whole["seed"]
  assert made(Of(), [np.arange(3), "b"])["data"] != whole["data"]


def test_answers_go_on_behind_the_last_batch(
  files, drawn, tmp_path, monkeypatch
):
  """Two batches: killed in the second, the first is not answered again."""
  config = test_generate_answers.make_config(files, drawn)
  whole = pipelines.run(config, tmp_path / "whole")
  with monkeypatch.context() as patch:
    kill_at(patch, answers, "sample_texts", 2)
    with pytest.raises(Killed):
      pipelines.run(config, tmp_path / "killed")
  parts = tmp_path / "killed" / answer_parts.FOLDER
  assert len(list(parts.glob("*.npz"))) == 1
  other = config.copy_and_resolve_references()
  other.seed = 9
  with pytest.raises(UserError, match="seed: it is another one than when"):
    pipelines.run(other, tmp_path / "killed")
  with monkeypatch.context() as patch:
    calls = kill_at(patch, answers, "sample_texts", 0)
    assert pipelines.run(config, tmp_path / "killed") == whole
    assert len(calls) == 1
  name = generate_answers.ANSWERS_FILE
  texts = [(tmp_path / x / name).read_text() for x in ("whole", "killed")]
  assert texts[0] == texts[1] and not parts.exists()


def test_scores_go_on_behind_the_last_texts(drawn, tmp_path, monkeypatch):
  rows = [
    {"prompt": "the", "response": word * n}
    for n in (1, 2, 3)
    for word in (" cat", " sat")
  ]
  test_score_texts.write(drawn / "texts.jsonl", rows)
  config = test_score_texts.make_config(drawn)
  config.rewards = f"{drawn / 'reward'},{drawn / 'gold'}"
  config.verifier.name = "pattern"
  config.verifier.settings.update(pattern=".*cat.*")
  for row in rows:
    row["reference"] = ""
  test_score_texts.write(drawn / "texts.jsonl", rows)
  monkeypatch.setattr(score_texts, "CHUNK", 2)
  whole = pipelines.run(config, tmp_path / "whole")
  with monkeypatch.context() as patch:
    kill_at(patch, reader.Reader, "member_scores", 5)  # of the second model
    with pytest.raises(Killed):
      pipelines.run(config, tmp_path / "killed")
  with monkeypatch.context() as patch:
    calls = kill_at(patch, reader.Reader, "member_scores", 0)
    patch.setattr(score_texts, "_verify", None)  # its scores are kept
    assert pipelines.run(config, tmp_path / "killed") == whole
    assert len(calls) == 2
  found = tiny_runs.rows_of(tmp_path / "killed", score_texts.SCORES_FILE)
  expected = tiny_runs.rows_of(tmp_path / "whole", score_texts.SCORES_FILE)
  assert found == expected


@pytest.mark.parametrize(
  ("section", "rank", "words"),
  [
    ({}, 2, ""),
    ({"lora_rank": 2}, 2, ""),  # what the run has may stand there
    ({"lora_rank": 2, "lora_alpha": 4.0}, 2, ""),
    ({"lora_rank": 2, "lora_scale": 3.0}, 2, "lora_scale=3: .* has 2, which"),
    ({"lora_rank": 4}, 2, "lora_rank=4: .* has factors of rank 2"),
    ({"lora_rank": 4}, 0, "lora_rank=4: nothing reads it, as no policy"),
    ({"lora_scale": 2.0}, 2, "lora_scale=2.0: nothing reads it here"),
    ({"lora_targets": "q_proj"}, 2, "lora_targets='q_proj': nothing reads it"),
  ],
)
def test_factors_come_with_the_runs(tmp_path, section, rank, words):
  role = {
    "trainable": "lora" if rank else "full",
    "first_layer": 0,
    "stop_layer": None,
    "lora_rank": rank,
    "lora_scale": 2.0,
    "head": None,
  }
  info = {
    "pipeline": "sft",
    "model_source": "m",
    "model_fingerprint": "m",
    "tokenizer_fingerprint": "t",
    "role": role,
  }
  (tmp_path / "stage.json").write_text(json.dumps(info))
  check = lambda: answered.check_factors(Model(**section), [str(tmp_path)])  # noqa: E731
  if words:
    with pytest.raises(FieldError, match=words):
      check()
  else:
    check()


def test_only_what_runs_alone_is_asked_for_its_factors(files, drawn):
  """A whole run has its own evaluation, and settles that itself."""
  config = two.make_config(files)
  for name in ("policy", "reward", "gold"):
    config[name] = str(drawn / name)
  tiny_runs.checked(config)
  config.model.lora_rank = 3
  with pytest.raises(UserError, match="config.model.lora_rank=3: .* of rank 2"):
    tiny_runs.checked(config)
  job = pipelines.read(config)
  job.check(job.open(""), is_alone=False)
