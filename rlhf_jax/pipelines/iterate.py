"""Rounds of labels: sample, label, reward model, policy, evaluation, again.

    round k:  the policies so far answer prompts; some answers are compared
              people, simulated annotators or a judge say which are better
              they agree, or the run says so (or stops)
              a reward model learns from this and the earlier rounds
              a policy learns from it, and meets the first one, the SFT's

Bai et al. 2022 (arXiv:2204.05862, section 4) iterate so weekly; Llama 2
(Touvron et al. 2023, section 3.2) did five times. What a later round stands on
is a choice with a name: what the KL is measured to (rounds.reference), where
its policy starts (rounds.policy_start), whether its reward model is fresh
(rounds.reward_start) and how much of its data is old (rounds.old_share).

Each round is a folder, round_1/, with all that it read and made: items.jsonl
(what was compared), labels.jsonl (every judgement: who, when, on answers of
which policies), reward/, policy/, evaluation/. What is finished is not
repeated, what was stopped goes on, and where people are waited for the same
command goes on when they are done.

With `labels.objectives` answers are judged by several objectives, each for
itself; each has a reward model of its own, reward_helpful/, which is the judge
of that name in the policy stage (Touvron et al. 2023, section 3.2.2).

Left out: prompts that people write; rounds that overlap in time.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rlhf_jax import distributed, imported, schema
from rlhf_jax.algorithms import ensemble
from rlhf_jax.labelling import simulated
from rlhf_jax.models.pretrained import Model
from rlhf_jax.pipelines import (
  ai_feedback,
  evaluate,
  generate_answers,
  labelled_rounds,
  rounds_given,
  rounds_report,
  summary,
  whole_run,
)
from rlhf_jax.pipelines import constitution as constitution_pipeline
from rlhf_jax.pipelines import policy as policy_pipeline
from rlhf_jax.pipelines import reward as reward_pipeline
from rlhf_jax.pipelines import sft as sft_pipeline
from rlhf_jax.programs import (
  answers,
  iterated,
  iterated_settings,
  pipeline,
)
from rlhf_jax.programs.pipeline import Job, Pipeline, stage_of_run
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.schema import FieldError

STAGES, REUSABLE = rounds_given.STAGES, rounds_given.REUSABLE
# Of its own accord it names neither a model nor an endpoint.
_JUDGE = ai_feedback.Settings(model=Model(source="asset:smollm2-135m-instruct"))


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """Rounds of labels, reward models and policies; METHODS 10."""

  title: str = "Rounds of labels"  # of the report
  seed: int = 0  # of the first stage; each other one has its own
  reuse: str = ""  # folder of another whole run whose stages are taken over
  reuse_stages: tuple = REUSABLE  # which of them
  rounds: iterated_settings.Rounds = iterated_settings.Rounds()
  comparisons: iterated_settings.Comparisons = iterated_settings.Comparisons()
  labels: iterated_settings.Labels = iterated_settings.Labels()
  annotators: simulated.Config = simulated.Config()  # where they are simulated
  agreement: iterated_settings.Agreement = iterated_settings.Agreement()
  # answers that a model criticises and revises, for the first policy to learn;
  # runs where its prompts.source is set
  constitution: Job = stage_of_run(constitution_pipeline.PIPELINE, "prompts")
  # the first policy
  sft: Job = stage_of_run(sft_pipeline.PIPELINE, "samples")
  # a reward model that simulated annotators prefer by, and none trains on
  gold: Job = stage_of_run(reward_pipeline.PIPELINE, "reference_samples")
  # answers that are compared
  sampling: Job = stage_of_run(
    generate_answers.PIPELINE, "policy", "reward", "skip", "choose"
  )
  # what learns from the comparisons of each round; its data, if there are any,
  # are mixed in from the first round on
  reward: Job = stage_of_run(reward_pipeline.PIPELINE, "reference_samples")
  # what is aligned in each round, by any pipeline that samples
  policy: Job = stage_of_run(
    policy_pipeline.PIPELINE, "init_from", "reference", "reward"
  )
  # the same from rounds.late_from on
  late_policy: Job = stage_of_run(
    policy_pipeline.PIPELINE, "init_from", "reference", "reward"
  )
  # each round's policy against the first one
  evaluation: Job = stage_of_run(
    evaluate.PIPELINE, "init_from", "policy", "reward", "gold"
  )
  # a language model that labels, with labels.by="judge"
  judge: Job = dataclasses.field(
    default=Job(ai_feedback.PIPELINE, _JUDGE),
    metadata={
      "leaves": ai_feedback.PIPELINE.leaves,
      "fields": ("data", "principles", "pairs_of_prompt"),
    },
  )
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  # of the report: name -> text
  caveats: tuple = ()  # of the report: what to keep in mind, a text each

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    late = self.rounds.late_from
    if late > self.rounds.count:
      raise FieldError(
        f"rounds.late_from={late}: there are rounds.count={self.rounds.count} "
        "rounds. Lower it; 0 for never."
      )
    whole_run.check_sampling(
      self.jobs,
      "It is part of what a policy is, so people would judge other policies "
      "than those that learn.",
    )
    self._check_objectives()
    if not self.is_simulated:
      for name, usual in (
        ("annotators", simulated.Config()),
        ("labels.preference", iterated_settings.Labels().preference),
      ):
        section, _, field = name.partition(".")
        value = getattr(self, section)
        value = getattr(value, field) if field else value
        if value != usual:
          raise FieldError(
            f"{name}: nothing reads it with labels.by={self.labels.by!r}. "
            "Leave it as it is, or set labels.by='simulated'."
          )
    elif self.labels.overlap > self.annotators.count:
      raise FieldError(
        f"labels.overlap={self.labels.overlap}: there are "
        f"{self.annotators.count} simulated annotators. Lower it, or raise "
        "annotators.count."
      )
    if self.agreement.action != "off" and self.labels.overlap < 2:
      raise FieldError(
        f"agreement.action={self.agreement.action!r} with labels.overlap=1: "
        "agreement is not known where nobody judges the same. Set "
        "labels.overlap=2, or agreement.action='off'."
      )
    if (
      self.labels.by == iterated_settings.JUDGE
      and self.comparisons.answers != 2
    ):
      raise FieldError(
        f"comparisons.answers={self.comparisons.answers}: a judge compares two "
        "answers. Set 2."
      )
    held = self.reward.settings.heldout.source
    if self.comparisons.test and held:
      raise FieldError(
        f"comparisons.test={self.comparisons.test}: the frozen test set, and "
        f"reward.heldout.source={held!r} is another. Set one of them."
      )

  def _check_objectives(self) -> None:
    """Raises FieldError unless the policy has a judge for each objective."""
    names, choose = self.labels.objectives, self.comparisons.choose
    members = getattr(self.reward.settings, "ensemble", ensemble.Config())
    if choose == iterated_settings.DISAGREEMENT and members.members < 2:
      raise FieldError(
        f"comparisons.choose={choose!r} with reward.ensemble.members=1: one "
        "model disagrees with nobody. Set reward.ensemble.members=4, or "
        "choose='uncertainty'."
      )
    if not names:
      return
    if getattr(self.reward.settings, "objectives", ()):
      raise FieldError(
        f"reward.objectives={self.reward.settings.objectives}: each of "
        f"labels.objectives={names} has a reward model of its own. Set ()."
      )
    if choose != iterated_settings.RANDOM:
      raise FieldError(
        f"comparisons.choose={choose!r}: each of "
        f"labels.objectives={names} would choose other comparisons. Set "
        "'random'."
      )
    for stage in ("policy", "late_policy"):
      judges = getattr(self.jobs.get(stage), "settings", None)
      known = getattr(judges, "judges", {})
      absent = [name for name in names if name not in known]
      if judges is not None and absent:
        raise FieldError(
          f"{stage}.judges: {', '.join(known) or 'nobody'}; each of "
          f"labels.objectives={names} has a reward model that judges. Add "
          f"{stage}.judges.{absent[0]}, such as {{'reward': ''}}."
        )

  @property
  def objectives(self) -> tuple[str, ...]:
    """What answers are judged by, ("",) for one judgement of the whole."""
    return self.labels.objectives or ("",)

  @property
  def is_simulated(self) -> bool:
    """Whether annotators are simulated."""
    return self.labels.by == iterated_settings.SIMULATED

  @property
  def has_gold(self) -> bool:
    """Whether simulated annotators prefer by a gold reward model."""
    return self.is_simulated and self.prefers(iterated_settings.GOLD)

  def prefers(self, what: str) -> bool:
    """Says whether simulated annotators prefer so by any objective."""
    return what in self.labels.preferences.values()

  @property
  def jobs(self) -> dict[str, Job]:
    """The stages that run, by name, in their order."""
    absent = set() if self.has_gold else {"gold"}
    if not self.rounds.late_from:
      absent.add("late_policy")
    if self.rounds.late_from == 1:
      absent.add("policy")
    if self.labels.by != iterated_settings.JUDGE:
      absent.add("judge")
    if not self.constitution.settings.prompts.source:
      absent.add("constitution")
    return {x: getattr(self, x) for x in STAGES if x not in absent}

  @property
  def planned(self) -> dict[str, Job]:
    """The stages, those with data that name some that come to be in a round."""
    found = self.jobs
    for name in ("reward", "judge"):
      if name in found and not found[name].settings.data.source:
        of = found[name].settings
        path = f"round_1/{iterated.LABELS}"
        data = dataclasses.replace(
          of.data, source=path, format=iterated.RANKING
        )
        settings = dataclasses.replace(of, data=data)
        found[name] = dataclasses.replace(found[name], settings=settings)
    return found

  def folder(self, name: str, workdir: Path, objective: str = "") -> Path:
    """Returns the folder of a stage before the rounds; maybe another run's."""
    place = iterated.by_objective(name, objective)
    if self.reuse and name in self.reuse_stages:
      return Path(self.reuse).expanduser() / place
    return Path(workdir) / place

  def before(self, workdir: Path) -> dict[Path, Job]:
    """Folder -> job of each stage before the rounds, in their order."""
    found = {}
    sft = self.folder("sft", workdir)
    if "constitution" in self.jobs and sft.parent == Path(workdir):
      found[sft.parent / "constitution"] = self.constitution
    found[sft] = self.sft
    if self.has_gold:
      for name, preference in self.labels.preferences.items():
        if preference == iterated_settings.GOLD:
          folder = self.folder("gold", workdir, name)
          found[folder] = labelled_rounds.by_objective(self.gold, name)
    return found


def connect(values: Any, name: str, workdir: Path) -> Any:
  """Tells each stage what the run itself sets; see rounds_given.connect."""
  fields = Settings.__dataclass_fields__
  usual = {stage: fields[stage].default for stage in STAGES}
  return rounds_given.connect(values, name, workdir, usual)


def check(settings: Settings, world: World) -> None:
  """Checks every stage, before the first one begins."""
  for name, job in settings.jobs.items():
    of = job.settings
    with schema.located(job.prefix):
      there = job.open(world.workdir)
      pipeline.check_models(of)
      job.pipeline.check(settings.planned[name].settings, there)
      if name != "sft" or "constitution" not in settings.jobs:
        pipeline.check_data(of)  # else some of it comes to be
  with schema.located(settings.evaluation.prefix):
    answers.check_sampling(settings.evaluation.settings.generate)
  if settings.sampling.settings.generate.num_samples != 1:
    raise FieldError(
      "sampling.generate.num_samples: comparisons.answers says how many "
      "answers a prompt gets. Leave it at 1."
    )
  whole_run.check_samples(settings)
  preferences = settings.labels.preferences.values()
  for field, paths in (
    ("labels.by", [settings.labels.by]),
    ("labels.preference", preferences),
  ):
    for path in filter(imported.is_path, paths):
      with schema.as_field():
        imported.load(path, field)
  before = {} if not settings.reuse else settings.before(world.workdir)
  parent = Path(settings.reuse).expanduser()
  whole_run.check_reuse(settings, [x for x in before if x.parent == parent])


def run(settings: Settings, world: World) -> dict:
  """Runs all rounds and writes summary.json and report.html."""
  world.workdir.mkdir(parents=True, exist_ok=True)
  rounds = settings.rounds
  print(
    f"{settings.title}: {_describe(settings)}\n"
    f"  reference of each round: {_which(rounds.reference)}\n"
    f"  each round's policy starts from: {_which(rounds.policy_start)}\n"
    f"  each round's reward model: {rounds.reward_start}",
    flush=True,
  )
  for folder, job in settings.before(world.workdir).items():
    labelled_rounds.run_stage(job, folder, world)
  for number in range(1, rounds.count + 1):
    labelled_rounds.Round(settings, world, number).run()
  if not distributed.is_first():
    return {}
  return rounds_report.write(settings, world.workdir)


def _which(choice: str) -> str:
  return {
    iterated_settings.FIRST: "the first one, of the SFT stage",
    iterated_settings.LAST: "the policy of the round before",
  }[choice]


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phases of a round, and of the stages before it."""
  found = []
  for name, job in settings.jobs.items():
    is_before = name in REUSABLE
    several = name in ("gold", "reward")
    for objective in settings.objectives if several else ("",):
      place = iterated.by_objective(name, objective)
      folder = world.workdir / ("" if is_before else "round_1") / place
      with schema.located(job.prefix):
        there = world.beside(job.settings.mesh, folder)
      found += [
        dataclasses.replace(phase, name=place) for phase in job.phases(there)
      ]
  return found


def _results(settings: Settings, workdir: Path) -> list[tuple[str, Path]]:
  """Returns (prefix of its fields, file that marks it done) of each stage."""
  found = [
    (job.prefix, folder / job.pipeline.result)
    for folder, job in settings.before(workdir).items()
  ]
  for number in range(1, settings.rounds.count + 1):
    folder = workdir / f"round_{number}"
    policy = labelled_rounds.policy_of(settings, number)
    by = settings.objectives
    for name, places in (
      ("sampling", ["answers_0"]),
      ("reward", [iterated.by_objective("reward", x) for x in by]),
      (policy, ["policy"]),
      ("evaluation", [iterated.by_objective("evaluation", x) for x in by]),
    ):
      result = settings.jobs[name].pipeline.result
      found += [(f"{name}.", folder / place / result) for place in places]
  return found


def _describe(settings: Settings) -> str:
  by = settings.labels.by
  return (
    f"{settings.rounds.count} rounds of {settings.comparisons.count} "
    f"comparisons, labels by {by}"
  )


PIPELINE = Pipeline(
  name="iterate",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  result=summary.SUMMARY_FILE,
  describe=_describe,
  connect=connect,
  stages=lambda settings: settings.planned,
  results=_results,
)
