"""What a run says to wrong settings and wrong data: one error, code 2."""

import dataclasses

import pytest

from rlhf_jax import optimizer
from rlhf_jax.algorithms.policy_gradient import shaping
from rlhf_jax.config_tree import tree
from rlhf_jax.data import dataset, formats
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.pipelines import defaults
from rlhf_jax.runs import loop
from rlhf_jax.runs.loop import Schedule
from rlhf_jax.schema import UserError, read
from tests.pipelines.tiny_runs import checked
from tests.pipelines.wrong_files import (
  CONTEXT,
  make_files,
  refused,
  sft_config,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  return make_files(tmp_path_factory.mktemp("wrong"))


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
    lambda c: c.optimizer.update(warmup_steps=7, warmup_max_fraction=1.0),
    "config.optimizer.warmup_steps=7: the run has 3 updates",
  ),
  "mesh": (
    lambda c: c.mesh.update(devices=0, data=3),
    "config.mesh: data=3 x fsdp=1 x tensor=1 = 3 but 8 devices",
  ),
  "batch on mesh": (
    lambda c: c.mesh.update(devices=0),
    "config.schedule.batch_size=4: not a multiple of the 8 devices",
  ),
  "microbatches": (
    lambda c: c.loss.update(microbatches=3),
    "config.schedule.batch_size=4: not a multiple of loss.microbatches=3",
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
  config.reward = "judge"  # looked for last
  config.prompts.update(source=files["prompts.jsonl"], format="prompt")
  config.schedule.update(batch_size=4, steps=2)
  return config


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (
      lambda c: c.update(reward=""),
      "config.reward is empty: name the --workdir of a finished",
    ),
    (
      lambda c: c.update(init_from="gone"),
      "config.init_from='gone': wanted a finished policy run, found no such",
    ),
    (lambda c: c, "config.reward='judge': wanted a finished reward run, found"),
    (
      lambda c: c.epochs.update(minibatches=3),
      "minibatches=3 x microbatches=1 = 3 must divide schedule.batch_size",
    ),
    (
      lambda c: c.prompts.update(max_length=64),
      "config.prompts.max_length=64: leaves no room for a prompt",
    ),
    (lambda c: c.generate.update(top_k=5), "Set top_k=0, top_p=1.0 and"),
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
  with pytest.raises(UserError, match=f"config.{stage}|config.sft"):
    checked(config)


def test_experiment_files_of_the_repository_pass(files):
  from configs import overoptimise, quickstart

  for module in (quickstart, overoptimise):
    config = module.get_config()
    for stage in ("sft", "reward", "gold", "policy", "evaluation"):
      config[stage].mesh.devices = 1
    checked(config)


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
    found = getattr(read(_Fields, {field: value}, "part"), field)
    assert found == value
    assert type(found) is not int or field in ("whole", "optional_whole")
  for value in bad:
    with pytest.raises(UserError, match=f"^config.part.{field}="):
      read(_Fields, {field: value}, "part")


def test_a_range_error_carries_the_full_name():
  with pytest.raises(UserError, match=r"^config\.a\.b\.whole=-1: must be"):
    read(_Fields, {"whole": -1}, "a.b")


def test_a_section_that_is_no_section():
  with pytest.raises(UserError, match="config.part=3: is a section"):
    read(_Fields, 3, "part")


def test_a_bug_in_a_dataclass_is_not_a_mistake():
  @dataclasses.dataclass(frozen=True)
  class Buggy:
    x: int = 0

    def __post_init__(self) -> None:
      raise TypeError

  with pytest.raises(TypeError):
    read(Buggy, {}, "part")


def test_optional_fields_keep_their_type_while_they_are_none():
  part = tree(_Fields)
  part.optional_whole = None
  assert part.get_type("optional_whole") is int
  part.optional_whole = 4
  with pytest.raises(TypeError):
    part.optional_whole = "x"
  assert read(_Fields, part, "part").optional_whole == 4


def test_required_fields_are_named():
  with pytest.raises(UserError, match="config.o.learning_rate: not set"):
    read(optimizer.Config, {"schedule": "constant"}, "o")


def test_a_factor_must_be_finite_and_a_bound_need_not():
  config = tree(optimizer.Config(1e-3))
  for field in ("learning_rate", "weight_decay", "epsilon"):
    with pytest.raises(UserError, match=f"config.o.{field}=inf: must be fin"):
      read(optimizer.Config, config.to_dict() | {field: float("inf")}, "o")
  found = read(shaping.Config, {"halt_nats": float("inf")}, "shaping")
  assert found.halt_nats == float("inf")


def test_schedules_need_a_length():
  with pytest.raises(UserError, match="nothing would be trained"):
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
    ({"min_words": 3}, "config.data.min_words=3: nothing reads it"),
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
    dataset.demonstrations(data, load_tokenizer(files["model"]))


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
    dataset.prompts(data, load_tokenizer(files["model"]), CONTEXT - 8)


def test_every_format_is_a_choice():
  for name in formats.FORMATS:
    assert Data(format=name).format == name
