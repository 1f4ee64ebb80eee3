"""One policy or any number of them on capability tasks: what did they forget?

    policies = "runs/sft,runs/ppo,runs/ppo_ptx,model"

Each reads the same choices and texts and answers the same questions, greedily.
The first is what the others are compared with, item by item, with bootstrap
intervals over items (METHODS 14). Tasks are files in the layouts of MMLU, GSM8K
and HumanEval, texts for perplexity, tasks made here, and those of lm-eval.

A policy that was measured is read from its file again when a run goes on, so
one that is stopped loses at most the policy it was at.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from rlhf_jax import distributed, schema
from rlhf_jax.data import batches
from rlhf_jax.evaluation import table_page
from rlhf_jax.evaluation.tasks import loading, tables
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import results
from rlhf_jax.pipelines.evaluate_many import MODEL
from rlhf_jax.programs import (
  compared,
  harness,
  task_files,
  task_runs,
  task_suites,
)
from rlhf_jax.programs.pipeline import Pipeline
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError

RESULT_FILE, PAGE_FILE = "tasks.json", "tasks.html"
ITEMS_FILE = "items.jsonl"


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """Any number of policies on capability tasks."""

  model: Model = Model()
  policies: str = ""  # folders of finished policy runs, with commas between;
  # "model": the model itself; the others are compared with the first
  suite: task_suites.Config = task_suites.Config()
  harness: str = ""  # folder of YAML files with further tasks of lm-eval
  mesh: mesh_lib.Config = mesh_lib.Config()

  def __post_init__(self) -> None:
    if len(self.named) < len(self.folders):
      raise FieldError(
        f"policies={self.policies!r}: one of them stands there twice. Leave it "
        "out."
      )
    if self.harness and not self.suite.harness:
      raise FieldError(
        f"harness={self.harness!r}: no task of lm-eval is named, so nothing "
        "reads it. Name one, lm_eval:NAME, in suite.tasks, or set ''."
      )

  @property
  def folders(self) -> list[str]:
    """The folders of the policies, MODEL for the model itself."""
    return results.listed(self.policies)

  @property
  def named(self) -> dict[str, str]:
    """The folders by the shortest ends of their paths that differ."""
    return results.named(self.folders)

  @property
  def runs(self) -> dict[str, str]:
    """Field, or place in one -> folder of a finished stage, for messages."""
    return {f"policies: {x}": x for x in self.folders if x != MODEL}


def check(settings: Settings, world: World) -> None:
  """Checks settings together; reads no model."""
  del world
  if not settings.folders:
    raise FieldError(
      "policies is empty: name folders of finished policy runs, "
      "--config.policies=runs/sft,runs/ppo, or 'model'."
    )
  for folder in settings.folders:
    if folder != MODEL:
      schema.check_local(folder, "policies")
      stages.need_stage(folder, stages.POLICY, "config.policies")
  if not settings.suite.tasks:
    raise FieldError(
      "suite.tasks is empty: there is nothing to measure. Name tasks, "
      "--config.suite.tasks=mmlu:test.jsonl,made:capitals."
    )
  loading.check(settings.suite.named, "suite.tasks")
  if settings.suite.harness:
    harness.package()


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns none: only the data tell what is read."""
  del settings, world
  return []


def run(settings: Settings, world: World) -> dict:
  """Measures policies; returns what tasks.json holds."""
  path = world.workdir / RESULT_FILE
  origins = results.origins(settings.runs, {}) | {
    "suite": batches.fingerprint(dataclasses.asdict(settings.suite))
  }
  if path.is_file():
    results.check(path, origins, settings.runs)
    return results.numbers(path)
  tasks = task_suites.read(settings.suite, section="suite")
  base = world.base(settings.model)
  world.workdir.mkdir(parents=True, exist_ok=True)
  suite = task_suites.Suite.of(tasks, base, settings.suite)
  print(f"tasks: {task_suites.describe(suite)}", flush=True)
  found: dict[str, task_runs.Outcomes] = {}
  for name, folder in settings.named.items():
    origin = stages.stage_fingerprint("" if folder == MODEL else folder)
    kept = world.workdir / "outcomes" / f"{_file_name(name)}.jsonl"
    head = task_files.head(suite, settings.suite) | {"policy": origin}
    found[name] = task_files.kept(
      kept,
      head,
      suite,
      lambda folder=folder: _measure(settings, world, base, suite, folder),
    )
  told = tables.facts(found)
  if distributed.is_first():
    about = _about(settings, suite)
    page = tables.page(found, told, "Capability tasks", about)
    table_page.write(world.workdir / PAGE_FILE, page)
  rows = task_files.rows(found)
  results.write(path, told, origins, rows, ITEMS_FILE)
  return told


def _measure(
  settings: Settings,
  world: World,
  base: Base,
  suite: task_suites.Suite,
  folder: str,
) -> task_runs.Outcomes:
  """Returns the outcomes of one policy."""
  stage = compared.model_policy(base)
  if folder != MODEL:
    stage = stages.load(folder, stages.POLICY, base, world)
  config, (params, frozen) = settings.suite, stage.parts
  runner = task_runs.Runner(
    stage.role, frozen, base, world.mesh, config.batch_size
  )
  print(f"tasks: {folder}", flush=True)
  found = runner(params, suite)
  if config.harness:
    found |= harness.run(
      harness.model(
        stage.role, params, frozen, base, world.mesh, rows=config.batch_size
      ),
      [task.source for task in config.harness],
      shots=config.shots,
      limit=config.limit,
      chat=config.chat,
      folder=settings.harness,
    )
  return found


def _file_name(name: str) -> str:
  """Returns the name of a policy as that of a file."""
  return re.sub(r"[^\w@.-]+", "_", name)


def _about(
  settings: Settings, suite: task_suites.Suite
) -> list[tuple[str, Any]]:
  """Returns where the numbers come from, for the end of the page."""
  config = settings.suite
  found = [("model", settings.model.source), ("policies", settings.policies)]
  about = {x.name: f", {x.about}" for x in suite.tasks.values() if x.about}
  found += [
    (x.name, f"{x.kind}:{x.source}{about.get(x.name, '')}")
    for x in config.named
  ]
  told = "in the chat template" if config.chat else "as plain text"
  return [*found, ("shots", config.shots), ("prompts", told)]


def tell(settings: Settings, workdir: Path) -> None:
  """Prints a table: a row a number, a column a policy."""
  del settings
  told = results.numbers(workdir / RESULT_FILE)
  first = next(iter(told["policies"]))
  print(
    f"\nBehind a number its change to {first} with a 95 % interval over items, "
    "of shares in points\n"
  )
  print(tables.show(told))
  print(f"\n{workdir / PAGE_FILE}")


PIPELINE = Pipeline(
  name="evaluate_tasks",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  result=RESULT_FILE,
  describe=lambda settings: (
    f"{len(settings.suite.named)} tasks, {len(settings.folders)} policies"
  ),
  tell=tell,
)
