"""An experiment, checked as a whole before a model is loaded.

Every section of every stage becomes its dataclass once, and every file of
records is read once, so a mistake in the last stage of a long run is found in
the first seconds. Beyond single fields: files that are not there, batches that
do not divide, prompts without room.

Left out: what needs the model or its tokenizer (a prompt that is too long),
and TFDS sources; the stages say that when they read them.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import generate, optimizer
from rlhf_jax.algorithms import best_of_n
from rlhf_jax.algorithms import bond as bond_algorithm
from rlhf_jax.algorithms import reward as reward_algorithm
from rlhf_jax.algorithms import sft as sft_algorithm
from rlhf_jax.algorithms.policy_gradient import (
  epochs,
  importance,
  packing,
  shaping,
)
from rlhf_jax.algorithms.preference import pairing
from rlhf_jax.algorithms.preference import registry as preferences
from rlhf_jax.algorithms.preference import update as preference_update
from rlhf_jax.models import heads
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import (
  actors,
  bond,
  build,
  check_data,
  check_policy,
  defaults,
  method_sections,
  methods,
  online_preference,
  pretrained,
  rejection,
  rlhf,
  sampled,
  stages,
)
from rlhf_jax.pipelines.config import (
  ConfigError,
  Data,
  Model,
  Schedule,
  Trainable,
  check_sections,
  nearest,
  optimizer_section,
  section,
)

_COMMON = {
  "model": Model,
  "trainable": Trainable,
  "schedule": Schedule,
  "mesh": mesh_lib.Config,
  "generate": generate.Config,
  "packing": packing.Config,
  "data": Data,
  "validation": Data,
  "heldout": Data,
  "prompts": Data,
  "sample_prompts": Data,
  "ptx": Data,
  "head": heads.Config,
  "value": actors.Value,
  "shaping": shaping.Config,
  "epochs": epochs.Config,
  "importance": importance.Config,
  "accumulation": preference_update.Config,
  "rounds": rejection.Rounds,
  "selection": best_of_n.Config,
  "pairing": pairing.Config,
  "distillation": bond_algorithm.Config,
  "target": bond.Target,
  "guards": sampled.Guards,
  "optimizer": optimizer.Config,
  "policy_optimizer": optimizer.Config,
  "value_optimizer": optimizer.Config,
}
_LOSSES = {
  "sft": sft_algorithm.Config,
  "reward": reward_algorithm.Config,
  "rejection": sft_algorithm.Config,
}
READERS = {  # pipelines that learn from their own samples (sampled.py)
  "rejection": rejection.read_settings,
  "online_preference": online_preference.read_settings,
  "bond": bond.read_settings,
}
PIPELINE_OF_STAGE = {  # of the stages of pipelines/rlhf.py
  "sft": "sft",
  "reward": "reward",
  "gold": "reward",
  "policy": "policy",  # or another of rlhf.POLICY_STAGES
  "evaluation": "evaluate",
}
_GIVEN = {  # stage -> fields that pipelines/rlhf.py fills in
  "sft": ("seed",),
  "reward": ("seed", "reference_samples"),
  "gold": ("seed", "reference_samples"),
  "policy": ("seed", "init_from", "reward"),
  "evaluation": ("seed", "init_from", "policy", "reward", "gold"),
}
_LOWEST = {  # of plain fields
  "seed": 0,
  "samples": 0,
  "stop_layer": 0,
  "ptx_batch_size": 1,
  "count": 2,
  "batch_size": 1,
}
_SOME_STEPS = 2**31  # stands for a length that only the data can tell


def check_config(config: Any) -> None:
  """Checks all that can be checked without a model and without data.

  Raises:
    ConfigError, DataError, AssetError, ValueError: value, rule and remedy.
  """
  pipeline = config.get("pipeline")
  known = ("sft", "reward", "preference", "policy", *READERS)
  known += ("evaluate", "rlhf")
  if pipeline not in known:
    raise ConfigError(
      f"config.pipeline={pipeline!r}: must be one of {', '.join(known)}."
      f"{nearest(str(pipeline), known)}"
    )
  if pipeline != "rlhf":
    _check_stage(config, pipeline, "")
    _check_stages_before(config, pipeline)
    return
  _check_fields(config, defaults.rlhf(), "")
  rlhf.check_policy_stage(config)
  kinds = PIPELINE_OF_STAGE | {"policy": config.policy.pipeline}
  for stage, kind in kinds.items():
    _check_stage(config[stage], kind, f"{stage}.")
  _check_stages_agree(config, kinds)


def _check_stages_agree(config: Any, kinds: dict[str, str]) -> None:
  """Checks what the stages of one run have in common, or get from it."""
  for stage, fields in _GIVEN.items():
    default = getattr(defaults, kinds[stage])()
    for field in fields:
      if field not in default:
        continue
      usual = default[field]
      if config[stage][field] != usual:
        raise ConfigError(
          f"config.{stage}.{field}={config[stage][field]!r}: the run itself "
          f"sets it (seed and workdir say how). Leave it at {usual!r}; run the "
          "stages one by one to choose it."
        )
  if "verifier" in config.policy and config.policy.verifier.name:
    raise ConfigError(
      f"config.policy.verifier.name={config.policy.verifier.name!r}: this run "
      "trains a reward model to judge. Set '', or run the policy stage alone."
    )
  if config.sft.samples < 2:
    raise ConfigError(
      f"config.sft.samples={config.sft.samples}: reward scores are normalised "
      "on samples of the SFT policy. Set 2 or more; 256 is usual."
    )
  for field in ("temperature", "max_new_tokens"):
    values = {
      stage: config[stage].generate[field]
      for stage in ("sft", "policy", "evaluation")
      if "generate" in config[stage]
    }
    if len(set(values.values())) > 1:
      shown = ", ".join(f"{k}.generate.{field}={v}" for k, v in values.items())
      raise ConfigError(
        f"config.{shown}: must be equal. It is part of what policy and "
        "reference are, so scores and KL would compare different policies."
      )


def _check_fields(config: Any, default: ConfigDict, prefix: str) -> None:
  """Checks that sections and plain fields are those of the defaults."""
  check_sections(config, tuple(default), prefix)
  for key, value in default.items():
    if key not in config:
      raise ConfigError(
        f"config.{prefix}{key} is missing. Start the experiment file from "
        "rlhf_jax.pipelines.defaults, which holds every field."
      )
    found = config[key]
    is_whole_float = type(value) is float and type(found) is int
    if not isinstance(found, type(value)) and not is_whole_float:
      raise ConfigError(
        f"config.{prefix}{key}={found!r}: must be a {type(value).__name__}, "
        f"such as {value!r}."
      )
    if key in _LOWEST and type(value) is int and found < _LOWEST[key]:
      raise ConfigError(
        f"config.{prefix}{key}={found}: must be >= {_LOWEST[key]}."
      )


def _check_stage(config: Any, pipeline: str, prefix: str) -> None:
  default = getattr(defaults, pipeline)()
  _check_fields(config, default, prefix)
  classes = _COMMON | {"loss": _LOSSES.get(pipeline)}
  found = {
    key: section(classes[key], config[key], prefix + key)
    for key in default
    if key in classes and not key.endswith("optimizer")
  }
  if pipeline == "policy":
    found["algorithm"] = check_policy.check_method(config, found, prefix)
  if pipeline == "preference":
    _check_preference(config, found, prefix)
  if pipeline in READERS:
    READERS[pipeline](config, prefix)
    if not prefix:  # a whole run names the judge itself
      methods.check_judge(config)
  pretrained.check_source(found["model"].source, f"{prefix}model")
  _check_trainable(pipeline, found, prefix)
  _check_lengths(config, found, prefix)
  check_data.check_data(config, found, prefix)
  if pipeline in ("reward", "preference"):
    _check_reward(config, found, prefix)
  if pipeline == "evaluate":
    _check_evaluation(found["generate"], prefix)
  _check_rows(config, pipeline, found, prefix)
  if "prompts" in found:
    check_policy.check_room(
      found["prompts"], found["generate"], prefix + "prompts"
    )


def _check_preference(config: Any, found: dict, prefix: str) -> None:
  """Checks the preference method and that it can read the data."""
  method = method_sections.read(
    config.algorithm, preferences.ALGORITHMS, f"{prefix}algorithm"
  )
  for key in ("data", "heldout"):
    layout = found[key].format
    if not found[key].source or method.name in preferences.UNPAIRED:
      continue
    if layout == "labelled":
      raise ConfigError(
        f"config.{prefix}{key}.format='labelled': single answers, and "
        f"{method.name!r} compares two. Set algorithm.name='kto', or give "
        "comparisons."
      )


def _check_trainable(pipeline: str, found: dict, prefix: str) -> None:
  """Checks what trains against what the model has."""
  if "trainable" not in found:
    return
  mode = found["trainable"].mode
  if mode == "head" and pipeline != "reward":
    raise ConfigError(
      f"config.{prefix}trainable.mode='head': a policy has no head. Set 'full' "
      "or 'lora'."
    )
  if mode == "lora" and not found["model"].lora_rank:
    raise ConfigError(
      f"config.{prefix}trainable.mode='lora': needs factors, and model."
      f"lora_rank=0. Set --config.{prefix}model.lora_rank=16."
    )


def _check_lengths(config: Any, found: dict, prefix: str) -> None:
  """Checks optimizers against the number of updates, where it is known."""
  if "schedule" not in found:
    return
  schedule = found["schedule"]
  schedule.total_steps(_SOME_STEPS)
  updates = schedule.steps if schedule.steps else _SOME_STEPS
  if "epochs" in found and schedule.steps:
    updates *= found["epochs"].epochs * found["epochs"].minibatches
  for key in config:
    if key.endswith("optimizer"):
      optimizer_section(config[key], prefix + key, updates)


def _check_reward(config: Any, found: dict, prefix: str) -> None:
  for key in ("data", "heldout"):
    data = found[key]
    if data.source and data.format == "ratings" and data.pairs < 1:
      raise ConfigError(
        f"config.{prefix}{key}.pairs={data.pairs}: comparisons are drawn from "
        f"ratings; say how many, for example --config.{prefix}{key}"
        ".pairs=20000."
      )
  if not 0.0 <= config.heldout_fraction < 1.0:
    raise ConfigError(
      f"config.{prefix}heldout_fraction={config.heldout_fraction}: must be in "
      "[0, 1)."
    )


def _check_evaluation(settings: generate.Config, prefix: str) -> None:
  """Checks that answers are samples whose KL and errors mean something."""
  where = f"config.{prefix}generate"
  if settings.temperature == 0.0 or settings.top_k or settings.top_p < 1.0:
    raise ConfigError(
      f"{where}: temperature={settings.temperature}, top_k={settings.top_k}, "
      f"top_p={settings.top_p}: the KL compares full distributions, and "
      "greedy or truncated ones have none to the reference. Set a temperature "
      "> 0, top_k=0 and top_p=1.0."
    )
  if settings.num_samples > 1:
    raise ConfigError(
      f"{where}.num_samples={settings.num_samples}: answers to one prompt are "
      "not independent, and the standard errors assume that they are. Set 1 "
      "and a larger count."
    )


def _check_rows(config: Any, pipeline: str, found: dict, prefix: str) -> None:
  """Checks that each microbatch divides among the devices."""
  mesh = build.make_mesh(config, prefix)
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  is_evaluation = pipeline == "evaluate"
  rows = config.batch_size if is_evaluation else found["schedule"].batch_size
  field = "batch_size" if is_evaluation else "schedule.batch_size"
  key = "accumulation" if "accumulation" in found else "loss"
  parts = found[key].microbatches if key in found else 1
  if rows % (ways * parts):
    factors = [f"{key}.microbatches={parts}"] if parts > 1 else []
    factors += [check_policy.DEVICES.format(ways)] if ways > 1 else []
    raise ConfigError(
      f"config.{prefix}{field}={rows}: not a multiple of "
      f"{' x '.join(factors)}. Change one of them."
    )
  if pipeline == "policy":
    check_policy.check_batches(config, found, ways, prefix)
  sampled = {"sft": "samples", "evaluate": "batch_size"}.get(pipeline)
  if sampled is not None:
    check_policy.check_sampling(
      config[sampled], found["generate"], prefix, sampled
    )
  if pipeline == "policy":
    actors.check_sampling(found["generate"], mesh.size)
    check_policy.check_sampling(rows, found["generate"], prefix, field)
  if pipeline in READERS:
    check_policy.check_source_of_samples(found, mesh, prefix)
  if is_evaluation and config.count % rows:
    raise ConfigError(
      f"config.{prefix}count={config.count}: must be a multiple of "
      f"config.{prefix}batch_size={rows}."
    )


def _check_stages_before(config: Any, pipeline: str) -> None:
  """Checks that the finished runs that a stage starts from are there."""
  wanted = {"init_from": "sft"}
  if pipeline in ("policy", "evaluate", *READERS):
    wanted |= {"reward": "reward"}
  if pipeline == "evaluate":
    wanted |= {"policy": "policy", "gold": "reward"}
  for key, kind in wanted.items():
    folder = config.get(key)
    if folder:
      stages.need_stage(folder, kind, f"config.{key}")
    elif key == "reward" and pipeline in ("policy", *READERS):
      continue  # a verifier judges
    elif key in ("reward", "policy") and folder is not None:
      raise ConfigError(
        f"config.{key} is empty: name the --workdir of a finished {kind} run, "
        f"--config.{key}=runs/{kind}."
      )
  if pipeline == "policy":
    method = methods.read(config.algorithm, config.generate.num_samples)
    methods.check_judges(config, method)
