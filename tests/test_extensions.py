"""docs/extending.md: every file there trains when an experiment names it."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from rlhf_jax import imported, integrity, main, pipelines
from rlhf_jax.algorithms.policy_gradient import objectives, registry
from rlhf_jax.data import formats
from rlhf_jax.models import families
from rlhf_jax.pipelines import defaults, evaluate
from rlhf_jax.rewards import verifiers
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, UserError
from tests.pipelines import tiny_runs

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
BLOCKS = dict(
  re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL)
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  root = tmp_path_factory.mktemp("extensions")
  for name, text in BLOCKS.items():
    (root / name).write_text(text)
  made = tiny_runs.make_files(root)
  lines = [
    json.dumps({"prompt": f" cat{' sat' * (i % 3)}", "word": "cat"})
    for i in range(8)
  ]
  (root / "words.jsonl").write_text("\n".join(lines) + "\n")
  asked = [line.replace('"prompt"', '"q"') for line in lines]
  (root / "asked.jsonl").write_text("\n".join(asked) + "\n")
  return made


@pytest.fixture
def config(files):
  """REINFORCE or RLOO for one rollout on the prompts with words."""

  def make(name="reinforce"):
    config = defaults.policy(name)
    config.mesh.devices = 1
    config.model.source = files.model
    config.prompts.update(
      source=str(files.root / "words.jsonl"), format="prompt", max_length=24
    )
    config.generate.update(max_new_tokens=4, num_samples=2)
    config.schedule.update(batch_size=4, steps=1, save_every=1)
    config.shaping.update(kl_horizon=80.0)
    config.epochs.update(epochs=1, minibatches=1)
    config.reward_fn = f"{files.root}/my_reward.py:score"
    return config

  return make


def rows(folder):
  text = (folder / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_the_page_holds_the_parts_it_speaks_of():
  assert sorted(BLOCKS) == [
    "my_advantage.py",
    "my_format.py",
    "my_method.py",
    "my_objective.py",
    "my_pairs.py",
    "my_pipeline.py",
    "my_reward.py",
  ]


def test_a_reward_and_a_format_of_ones_own(files, config, tmp_path):
  changed = config()
  changed.prompts.update(
    source=str(files.root / "asked.jsonl"),
    format=f"{files.root}/my_format.py:question",
  )
  assert main.run(changed, tmp_path / "run") == 0
  (row,) = rows(tmp_path / "run")
  assert 0.0 <= row["reward/component/found"] <= 1.0
  texts = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
  for sample in map(json.loads, texts):
    bonus = sample["score"] - float("cat" in sample["response"])
    assert abs(abs(bonus) - 0.1) < 1e-6


def test_a_format_that_leaves_the_rest_to_another(files, tmp_path):
  (tmp_path / "pairs.jsonl").write_text(
    '{"q": "cat", "answers": [" sat", " on"], "rater": "ann"}\n'
    '{"q": "cat", "answers": ["", " on"], "rater": "bo"}\n'
  )
  kept, refused = formats.load_and_refuse(
    str(tmp_path / "pairs.jsonl"), f"{files.root}/my_pairs.py:pairs"
  )
  assert (kept[0].chosen, kept[0].rejected) == (" sat", " on")
  assert kept[0].fields["rater"] == "ann"
  assert [error.reason for error in refused] == ["empty response"]


OWN = {
  "reward_fn": "my_reward.py",
  "objective_fn": "my_objective.py",
  "advantage_fn": "my_advantage.py",
  "algorithm": "my_method.py",
  "verifier_part_1": "my_reward.py",
  "verifier_part_1_part_0": "my_reward.py",  # a sum within a sum
}


@pytest.mark.parametrize("field", OWN)
def test_code_that_changed_is_named_when_a_run_goes_on(field, files, config):
  changed = config("rloo")
  code = files.root / OWN[field]
  path = f"{code}:score"
  if field == "algorithm":
    changed = config(str(code))
  elif field == "objective_fn":
    changed.objective_fn = f"{code}:soft_clip"
  elif field == "advantage_fn":
    changed.advantage_fn = f"{code}:centred"
  elif field.startswith("verifier_part_1"):
    changed.reward_fn = ""
    changed.verifier.name = "sum"
    exact = {"verifier": "exact", "weight": 0.5, "reference": "word"}
    own = {"verifier": path, "weight": 1.0}
    if field.endswith("part_0"):
      own = {"verifier": "sum", "weight": 1.0, "settings": {"parts": (own,)}}
    changed.verifier.settings = {"parts": (exact, own)}
  read = pipelines.read(changed, files.root).settings.origins
  meta, before = read(), code.read_text()
  integrity.check_meta(meta, read())
  try:
    code.write_text(before + "# other words\n")
    with pytest.raises(integrity.CheckpointError) as caught:
      integrity.check_meta(meta, read())
  finally:
    code.write_text(before)
  assert str(caught.value).startswith(f"{field}_fingerprint: the checkpoint")
  assert f"Resume with the {field} that wrote" in str(caught.value)
  del meta[f"{field}_fingerprint"]  # a checkpoint of before
  integrity.check_meta(meta, read())


def test_an_evaluation_by_code_that_changed_is_refused(tmp_path):
  code = tmp_path / "judge.py"
  code.write_text("def score(texts):\n  return [0.0 for _ in texts]\n")
  settings = evaluate.Settings(reward_fn=f"{code}:score")
  done = {evaluate.ORIGINS: evaluate._origins(settings)}
  (tmp_path / evaluate.RESULT_FILE).write_text(json.dumps(done))
  evaluate.check_result(settings, tmp_path)
  code.write_text(code.read_text() + "# other words\n")
  with pytest.raises(
    FieldError, match="^reward_fn_fingerprint: it has changed"
  ):
    evaluate.check_result(settings, tmp_path)


def test_an_objective_and_an_advantage_of_ones_own(files, config, tmp_path):
  changed = config("rloo")
  changed.objective_fn = f"{files.root}/my_objective.py:soft_clip"
  changed.advantage_fn = f"{files.root}/my_advantage.py:centred"
  assert main.run(changed, tmp_path / "run") == 0
  assert stages.read_stage(tmp_path / "run")["steps"] == 1


def test_a_method_of_ones_own(files, config, tmp_path):
  changed = config(f"{files.root}/my_method.py")
  changed.algorithm.limit = 0.5
  settings = pipelines.read(changed, tmp_path).settings
  assert settings.method.limit == 0.5
  assert settings.method.group_size == 2  # as many as are sampled
  assert main.run(changed, tmp_path / "run") == 0


def test_a_pipeline_of_ones_own_with_a_section_of_its_own(files, tmp_path):
  changed = defaults.of(f"{files.root}/my_pipeline.py:PIPELINE")
  changed.model.source = files.model
  whole = pipelines.run(changed, _made(tmp_path / "whole"))["parameters"]
  changed.counting.layers_only = True
  layers = pipelines.run(changed, _made(tmp_path / "layers"))["parameters"]
  assert whole - layers == 352 * 16 + 16  # embedding and final norm
  changed.counting.update({"layers": True})
  with pytest.raises(UserError, match="config.counting.layers: no such field"):
    pipelines.read(changed)


def _made(folder):
  folder.mkdir()
  return folder


@pytest.mark.parametrize(
  ("field", "path", "words"),
  [
    ("reward_fn", "my_reward.py:scor", "Did you mean 'score'"),
    ("reward_fn", "my_advantage.py:centred", "rollout"),
    ("objective_fn", "my_advantage.py:centred", "objective_fn="),
    ("advantage_fn", "my_objective.py:soft_clip", "advantage_fn="),
    ("advantage_fn", "gone.py:f", "no such file"),
  ],
)
def test_a_wrong_part_is_refused_before_anything_is_loaded(
  files, config, tmp_path, field, path, words
):
  changed = config("rloo")
  changed[field] = f"{files.root}/{path}"
  with pytest.raises(UserError, match=rf"^config\.{field}=.*") as error:
    pipelines.read(changed, tmp_path)
  assert words in str(error.value)


def test_one_line_each_in_the_tables_of_the_package(
  files, config, tmp_path, monkeypatch
):
  """What a new part of this package touches besides its own file."""
  parts = {
    name: imported.load(f"{files.root}/my_{name}.py", "file")
    for name in ("objective", "method", "format", "reward", "pipeline")
  }
  for table, part in (
    (objectives.OBJECTIVES, parts["objective"].soft_clip),
    (registry.ALGORITHMS, parts["method"]),
    (formats.FORMATS, parts["format"].question),
    (pipelines.PIPELINES, parts["pipeline"].PIPELINE),
  ):
    monkeypatch.setitem(table, "toy", part)
  monkeypatch.setitem(families.FAMILIES, "toy", families.FAMILIES["llama"])
  score = parts["reward"].score
  judge = verifiers.Verifier(
    Nothing,
    lambda answers, config: score(
      answers.texts, answers.records, answers.has_ended
    ),
  )
  monkeypatch.setitem(verifiers.VERIFIERS, "toy", judge)
  changed = config("toy")
  fields = {"pipeline", "seed", "model", "mesh", "counting"}
  assert set(defaults.toy()) == fields
  changed.reward_fn, changed.verifier.name = "", "toy"
  changed.algorithm.objective = "toy"
  changed.prompts.update(source=str(files.root / "asked.jsonl"), format="toy")
  model = shutil.copytree(files.model, tmp_path / "model")
  described = json.loads((model / "config.json").read_text())
  (model / "config.json").write_text(
    json.dumps(described | {"model_type": "toy"})
  )
  changed.model.source = str(model)
  assert main.run(changed, tmp_path / "run") == 0
  (sample, *_) = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
  assert "toy" in json.loads(sample)


@dataclasses.dataclass(frozen=True)
class Nothing:
  """Of a verifier without settings."""
