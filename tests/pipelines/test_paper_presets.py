"""Each experiment of configs/papers runs whole, on a tiny model and tiny files.

What a preset is stays as it is: stages, losses, methods, what rounds stand on.
Lengths, batches and answers are cut by --smoke's own rules.
"""

import json
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rlhf_jax import pipelines
from rlhf_jax.pipelines import smoke
from tests.pipelines import tiny_runs

FOLDER = Path(__file__).parent.parent.parent / "configs" / "papers"
FILES = sorted(FOLDER.glob("*.py"))
NAMES = [path.stem for path in FILES]


@pytest.fixture(scope="module")
def sources(files):
  """Returns format -> a file of it."""
  rankings = files.root / "rankings.jsonl"
  lines = Path(files.comparisons).read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  rankings.write_text(
    "".join(
      json.dumps(
        {
          "prompt": row["prompt"],
          "answers": [row["chosen"], row["rejected"], " on the"],
          "ranks": [0, 1, 2],
          "objectives": {"helpful": [0, 1, None], "safe": [1, 0, None]},
        }
      )
      + "\n"
      for row in rows
    )
  )
  dialogues = files.root / "dialogues.jsonl"
  lines = Path(files.demonstrations).read_text().splitlines()
  told = [json.loads(line) for line in lines]
  dialogues.write_text(
    "".join(
      json.dumps(
        {
          "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
          ]
        }
      )
      + "\n"
      for row in told
    )
  )
  prompts = files.root / "many_prompts.jsonl"
  rows = [json.loads(line) for line in Path(files.prompts).open()] * 3
  prompts.write_text(
    "".join(
      json.dumps(row | {"risky": n % 3 == 0}) + "\n"
      for n, row in enumerate(rows)
    )
  )
  problems = files.root / "problems.jsonl"
  problems.write_text(
    "".join(
      json.dumps({"question": f" sat {i} on", "answer": f"#### {i}"}) + "\n"
      for i in range(72)
    )
  )
  return {
    "messages": str(dialogues),
    "demonstration": files.demonstrations,
    "comparison": files.comparisons,
    "ranking": str(rankings),
    "prompt": str(prompts),
    "gsm8k": str(problems),
  }


def tiny(path, files, sources):
  """Returns a preset on the tiny model, its sources named as a user would."""
  config = runpy.run_path(str(path))["get_config"]()
  # One that is a single stage is that stage.
  for name, stage in [("", config), *config.items()]:
    if not isinstance(stage, ConfigDict) or "mesh" not in stage:
      continue
    stage.mesh.devices = 1
    if is_unread(config, name):
      continue
    if "model" in stage:
      stage.model.source = files.model
    if "generate" in stage:
      stage.generate.max_new_tokens = tiny_runs.NEW_TOKENS
    if name == "constitution":
      stage.prompts.source = sources["prompt"]
      stage.count = 8
      stage.update(rounds=2, answer_tokens=16, critique_tokens=16)
      continue
    for field in ("data", "prompts", "sample_prompts", "ptx", "heldout"):
      if field not in stage or name == "judge":
        continue
      if field == "heldout" and name:
        continue  # of whole runs: a share of the data
      stage[field].max_length = 48
      is_made = config.pipeline == "iterate" and name == "reward"
      is_made |= path.stem == "constitutional" and (name, field) == (
        "sft",
        "data",
      )
      is_ptx = field == "ptx" and not stage.algorithm.ptx_coefficient
      if not is_made and not is_ptx:
        stage[field].source = sources[stage[field].format]
  if path.stem == "aya":
    spoken = files.root / "spoken.jsonl"
    lines = Path(files.comparisons).read_text().splitlines()
    rows = [
      json.loads(line) | {"language": "de" if i % 3 else "en"}
      for i, line in enumerate(lines)
    ]
    spoken.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.data.source = config.heldout.source = str(spoken)
  if path.stem == "constitutional":
    # A tiny model knows no letters.
    config.judge.judging.least_mass = 0.0
    folder = files.root / "judge_model"
    folder.mkdir(exist_ok=True)
    model = tiny_runs.make_model(folder, max_length=8192)
    config.judge.model.source = config.constitution.model.source = model
  return config


def is_unread(config, name):
  """Says whether a stage does not run in rounds."""
  return config.pipeline == "iterate" and (
    (name == "gold" and config.labels.by != "simulated")
    or (name == "gold" and config.labels.preference != "gold")
    or (name == "late_policy" and not config.rounds.late_from)
    or (name == "judge" and config.labels.by != "judge")
    or (name == "constitution" and config.labels.by != "judge")
  )


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_all_sections_parse(path, files, sources, tmp_path):
  tiny_runs.checked(tiny(path, files, sources))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_docstring_says_paper_values_changes_and_command(path):
  text = path.read_text()
  assert f"--config=configs/papers/{path.name}" in text
  assert "arXiv:" in text and "\nChanged: " in text
  assert "Not yet run with these values." in text


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_it_runs_whole(path, files, sources, tmp_path):
  config = tiny(path, files, sources)
  smoke.shorten(config, tmp_path)
  found = pipelines.run(config, tmp_path)
  if "mesh" in config:
    assert {row["step"] for row in tiny_runs.rows_of(tmp_path)} == {1, 2}
    assert set(found.get("by", {}).get("values", ())) in (set(), {"en", "de"})
    return
  assert (tmp_path / "report.html").is_file()
  if config.pipeline == "iterate":
    count = min(2, config.rounds.count) * max(1, len(config.labels.objectives))
    assert len(found["rounds"]) == count
    assert all(row["kl_nats"] is not None for row in found["rounds"])
    if path.stem == "constitutional":
      made = tmp_path / "constitution" / "revisions.jsonl"
      assert len(json.loads(made.open().readline())["stages"]) == 3
  else:
    assert found["policy_steps"] == 2 + config.policy.value.pretrain_steps
