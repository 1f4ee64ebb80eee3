"""One policy or any number of them on held-out prompts, judged alike.

    policies = "runs/sft,runs/dpo,runs/ppo@best,model"

All answer the same prompts. Each gets numbers of its own: mean scores, pass@k
and best-of-n curves of several answers to a prompt, diversity, length. Each but
the first is compared with the first, paired by prompt: difference, win rate,
KL. "model" is the model itself. Scores of reward models are in units of their
own reference (mean 0, deviation 1 of the samples that they were normalised on).

A policy that stands on another model than model.source answers with its own
model and tokenizer, as its run had them: same prompts, same judges, no KL.
Reward models read its text where their tokenizer is another one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from rlhf_jax import schema, terminal
from rlhf_jax.data import overlap
from rlhf_jax.data.dataset import Data
from rlhf_jax.evaluation import embeddings, win_rate
from rlhf_jax.models import roles
from rlhf_jax.models.pretrained import Base
from rlhf_jax.pipelines import results
from rlhf_jax.programs import (
  answer_numbers,
  answer_parts,
  answered,
  build,
  compared,
  heldout,
  policy_groups,
)
from rlhf_jax.programs.answer_numbers import SCORES
from rlhf_jax.programs.answers import Answers
from rlhf_jax.programs.pipeline import Pipeline
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import texts
from rlhf_jax.runs import answerers, stages
from rlhf_jax.schema import FieldError, check_least

RESULT_FILE = "evaluation.json"
MODEL = policy_groups.MODEL
_SHOWN = ("_standard_error", "_low", "_high")  # beside a number, not rows


@dataclasses.dataclass(frozen=True)
class Settings(answered.Judged):
  """Any number of policies on held-out prompts."""

  policies: str = ""  # folders of finished policy runs, with commas between;
  # "model": the model itself; FOLDER@best_of=16: the best of so many answers;
  # the others are compared with the first
  chooser: str = ""  # who chooses those: "proxy" (the reward model), "gold" or
  # "verifier"; "": the reward model, or what judges texts
  lexicon: bool = False  # VADER sentiment of the answers too
  embeddings: str = ""  # folder of an ONNX sentence model: how far answers are
  # from one another

  def __post_init__(self) -> None:
    super().__post_init__()
    check_least(self, count=2, batch_size=1)
    if len(self.named) < len(self.folders):
      raise FieldError(
        f"policies={self.policies!r}: one of them stands there twice. Leave it "
        "out."
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
  def draws(self) -> dict[str, int]:
    """Name of a policy -> answers of which it says the best."""
    named = self.named.items()
    return {name: answerers.split(x, "policies")[1] for name, x in named}

  @property
  def answering(self) -> list[str]:
    places = (answerers.split(x, "policies")[0] for x in self.folders)
    return [x for x in places if x != MODEL]

  @property
  def runs(self) -> dict[str, str]:
    """Field, or place in one -> folder of a finished stage, for messages."""
    places = {x: answerers.split(x, "policies")[0] for x in self.folders}
    found = {f"policies: {x}": y for x, y in places.items() if y != MODEL}
    return found | {"reward": self.reward, "gold": self.gold}


def check(settings: Settings, world: World) -> None:
  """Checks settings together and against the devices."""
  answered.check(settings, world)
  if not settings.folders:
    raise FieldError(
      "policies is empty: name folders of finished policy runs, "
      "--config.policies=runs/sft,runs/ppo, or 'model'."
    )
  answered.check_draws(settings, settings.draws)
  for named in settings.folders:
    folder, _ = answerers.split(named, "policies")
    if folder != MODEL:
      schema.check_local(folder, "policies")
      stages.need_stage(folder, stages.POLICY, "config.policies")


def _wire(
  settings: Settings, world: World, base: Base, group: policy_groups.Group
) -> compared.Compared:
  world.assume(stages.POLICY, roles.Role(model=base.config))
  policies, draws = {}, {}
  for name, said in group.named.items():
    folder, draws[name] = answerers.split(said, "policies")
    policies[name] = compared.model_policy(base)
    if folder != MODEL:
      policies[name] = stages.load(folder, stages.POLICY, base, world)
  return compared.wire(
    settings,
    world,
    base,
    policies,
    draws,
    tells_kl=group.number == 1,
    name=group.phase,
  )


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phases that a plan knows without data: one a model."""
  build.check_rows(world, settings.batch_size, "batch_size")
  base = world.base(settings.model)
  return [
    _wire(
      settings,
      world,
      policy_groups.base_of(group, settings, world, base),
      group,
    ).phase
    for group in policy_groups.of(settings, world, base)
  ]


def _answers(
  settings: Settings, world: World, origins: dict[str, str]
) -> tuple[dict[str, Answers], answer_parts.Parts]:
  """Returns the answers of each policy, in their order, and what keeps them."""
  base = world.base(settings.model)
  groups = policy_groups.of(settings, world, base)
  bases = [
    policy_groups.base_of(group, settings, world, base) for group in groups
  ]
  policy_groups.check_prompts(settings.prompts, bases, groups)
  overlap.say("evaluate", settings.prompts, Data(), base.tokenizer)
  prompts = [
    heldout.prompt_batches(
      settings.prompts,
      settings.generate.max_new_tokens,
      settings.count,
      settings.batch_size,
      own,
      "count",
      "evaluate",
    )
    for own in bases
  ]
  made = answer_parts.identity(
    settings, origins, answer_parts.content_of(prompts)
  )
  parts = answer_parts.Parts(world.workdir, made)
  numbers = {name: i for i, name in enumerate(settings.named)}
  found = {}
  for group, own, asked in zip(groups, bases, prompts, strict=True):
    if group.section != settings.model:
      print(
        f"evaluate: {', '.join(group.named)} on {group.section.source}, with "
        "its tokenizer; no KL to a policy on another model"
      )
    wired = _wire(settings, world, own, group)
    said = answered.answer(
      settings, wired, asked, own, world.mesh, parts, numbers
    )
    found |= {name: x.first(settings.count) for name, x in said.items()}
  return {name: found[name] for name in settings.named}, parts


def run(settings: Settings, world: World) -> dict:
  """Evaluates policies; returns what evaluation.json holds."""
  path = world.workdir / RESULT_FILE
  origins = results.origins(settings.runs, settings.code())
  if path.is_file():
    results.check(path, origins, settings.runs)
    return results.numbers(path)
  embed = embeddings.load(settings.embeddings)
  world.workdir.mkdir(parents=True, exist_ok=True)
  found, parts = _answers(settings, world, origins)
  right = texts.correct_above(settings.text_judge)
  facts = numbers_of(found, settings.lexicon, right, embed)
  for name, count in settings.draws.items():
    if count > 1:
      facts["policies"][name]["best_of_kl_bound"] = answerers.kl_bound(count)
  facts |= answered.by_value(
    settings,
    found,
    world.base(settings.model),
    lambda some: numbers_of(some, settings.lexicon, right, embed),
  )
  results.write(path, facts, origins, rows_of(found))
  parts.done()
  return facts


def _columns(found: Answers) -> dict[str, np.ndarray]:
  """Returns "proxy", "gold", "verifier" -> scores [P, G], those that are."""
  return {
    shown: found.by_prompt(found.scores[name])
    for shown, name in SCORES.items()
    if name in found.scores
  }


def numbers_of(
  found: dict[str, Answers],
  uses_lexicon: bool,
  correct_above: float | None,
  embed: embeddings.Embed | None = None,
) -> dict:
  """Returns the numbers of policies, each under its name in "policies".

  JUDGE: mean score; verifier_pass_K, JUDGE_best_of_N: see
    answer_numbers.of_several.
  JUDGE_difference, JUDGE_win_rate: against the first policy, paired.
  kl_nats: of an answer, to the first policy.
  best_of_kl_bound: of FOLDER@best_of=n, to the policy that draws, nats.
  *_standard_error: over prompts; several answers to one count as their mean.

  Args:
    found: answers of each policy to the same prompts.
    uses_lexicon: VADER sentiment of the texts too.
    correct_above: a verifier's score above it is a right answer, or None.
    embed: texts -> vectors, or None.
  """
  first, *_ = found
  before = _columns(found[first])
  policies = {}
  for name, said in found.items():
    own: dict[str, float | None] = {}
    columns = _columns(said)
    per_prompt = {shown: x.mean(axis=1) for shown, x in columns.items()}
    per_prompt |= answer_numbers.of_several(columns, correct_above)
    if uses_lexicon:
      per_prompt["vader"] = answer_numbers.sentiment(said).mean(axis=1)
    if said.kl is not None and name != first:
      per_prompt["kl_nats"] = said.by_prompt(said.kl).mean(axis=1)
    for key, values in per_prompt.items():
      own |= _estimate(key, win_rate.mean_with_error(values))
    if name != first:
      for shown, scores in columns.items():
        change = answer_numbers.difference(scores, before[shown])
        own |= _estimate(f"{shown}_difference", change)
        own |= answer_numbers.win_rates(shown, scores, before[shown])
    policies[name] = own | answer_numbers.of_texts(said, embed)
  group = found[first].group
  return {
    "evaluation_prompts": len(found[first].texts) // group,
    "evaluation_samples": group,
    "policies": policies,
  }


def _estimate(name: str, found: win_rate.Estimate) -> dict[str, float]:
  return {name: found.value, f"{name}_standard_error": found.standard_error}


def rows_of(found: dict[str, Answers]) -> list[dict]:
  """Returns every prompt with an answer of each policy and its raw scores."""
  first = next(iter(found.values()))
  return [
    {
      "prompt": prompt,
      "sample": i % first.group,
      "answers": {name: said.texts[i] for name, said in found.items()},
      "scores": {
        name: {
          shown: float(said.scores[judge][i])
          for shown, judge in SCORES.items()
          if judge in said.scores
        }
        for name, said in found.items()
      },
    }
    for i, prompt in enumerate(first.prompts)
  ]


def tell(settings: Settings, workdir: Path) -> None:
  """Prints a table: a row a number, a column a policy."""
  del settings
  found = results.numbers(workdir / RESULT_FILE)
  policies = found["policies"]
  several = found["evaluation_samples"]
  each = f", {several} answers to each" if several > 1 else ""
  against = ""
  if len(policies) > 1:
    against = f"; differences and wins are against {next(iter(policies))}"
  print(
    f"\n{found['evaluation_prompts']} held-out prompts{each}; beside a number "
    f"its standard error over prompts{against}\n"
  )
  show(policies)
  by = found.get("by", {"values": {}})
  for value, of in by["values"].items():
    print(f"\n{by['field']}={value}: {of['evaluation_prompts']} prompts\n")
    show(of.get("policies", {}))


def show(policies: dict[str, dict]) -> None:
  """Prints the numbers of policies: a row a number, a column a policy."""
  names = {key: None for numbers in policies.values() for key in numbers}
  rows = [
    [
      key.replace("_", " "),
      *(_cell(numbers, key) for numbers in policies.values()),
    ]
    for key in names
    if not key.endswith(_SHOWN)
  ]
  print(terminal.format_table(["", *policies], rows))


def _cell(numbers: dict, key: str) -> str:
  """Returns a number with its standard error, "" for none."""
  value, error = numbers.get(key), numbers.get(f"{key}_standard_error")
  if value is None or isinstance(value, int):
    return "" if value is None else str(value)
  shown = terminal.decimal(value, 3)
  return shown if error is None else f"{shown} ({terminal.decimal(error, 3)})"


PIPELINE = Pipeline(
  name="evaluate_many",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  result=RESULT_FILE,
  describe=lambda settings: (
    f"{settings.count} held-out prompts, {len(settings.folders)} policies"
  ),
  tell=tell,
)
