"""One round of labels: its stages, its files, and what each hands to the next.

    round_2/answers_0/      what each policy said to the prompts (a stage)
            candidates.jsonl, candidates/   of what it is chosen, where members
                            of an ensemble choose
            items.jsonl     what is compared
            preference/     what simulated annotators prefer (a stage)
            labels.jsonl    every judgement, format "ranking", with its origin
            comparisons.jsonl, test.jsonl   to learn from, and not to
            agreement.json  of the annotators; there once the gate is passed
            freshness/      the reward model before on these comparisons
            reward/, policy/, evaluation/   stages
            reward_safe/, evaluation_safe/  of each of several objectives

A file or a stage that is there whole is not made again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import distributed, schema
from rlhf_jax.data import dataset, sources
from rlhf_jax.data.dataset import Data
from rlhf_jax.evaluation import lexicon
from rlhf_jax.pipelines import (
  ai_feedback,
  evaluate,
  rlhf,
  round_answers,
  round_labels,
  score_texts,
)
from rlhf_jax.programs import iterated, iterated_settings
from rlhf_jax.programs.pipeline import Job
from rlhf_jax.programs.world import World
from rlhf_jax.runs import lock

ITEMS, TRAINED = iterated.ITEMS, iterated.TRAINED
TEXTS = "answers_to_score.jsonl"


def policy_of(settings: Any, number: int) -> str:
  """Returns the name of the policy stage of a round, counted from 1."""
  return "late_policy" if settings.rounds.is_late(number) else "policy"


def round_folder(workdir: Path, number: int) -> Path:
  """Returns the folder of a round, counted from 1."""
  return Path(workdir) / f"round_{number}"


def run_stage(job: Job, folder: Path, world: World) -> None:
  """Runs a stage in its folder, unless it is finished."""
  if job.is_finished(folder):
    return
  folder.mkdir(parents=True, exist_ok=True)
  name = _name(folder, world.workdir)
  with lock.held(folder), rlhf.timed(world.workdir, name):
    print(f"\n== {name}: {job.pipeline.describe(job.settings)}", flush=True)
    job.run(world.beside(job.settings.mesh, folder))


def _name(folder: Path, workdir: Path) -> str:
  """Returns the name of a stage's folder in a run: "round_1/reward"."""
  is_inside = folder.is_relative_to(workdir)
  return str(folder.relative_to(workdir)) if is_inside else str(folder)


def by_objective(job: Job, objective: str) -> Job:
  """Returns a reward stage that learns from judgements by an objective."""
  if not objective:
    return job
  of = job.settings
  parts = {"data": of.data, "heldout": of.heldout}
  return job.changed(
    **{
      name: dataclasses.replace(data, objective=objective)
      for name, data in parts.items()
      if data.source
    },
  )


@dataclasses.dataclass(frozen=True)
class Round:
  """A round, counted from 1, of a run with these settings in this world."""

  settings: Any
  world: World
  number: int

  @property
  def folder(self) -> Path:
    """The folder of the round."""
    return round_folder(self.world.workdir, self.number)

  @property
  def before(self) -> Round:
    """The round before."""
    return dataclasses.replace(self, number=self.number - 1)

  @property
  def sft(self) -> str:
    """The folder of the first policy."""
    return str(self.settings.folder("sft", self.world.workdir))

  def policy(self, number: int) -> str:
    """Returns the folder of a policy: 0 the SFT's, k of round k."""
    if number == 0:
      return self.sft
    return str(round_folder(self.world.workdir, number) / "policy")

  def by_name(self, choice: str) -> str:
    """Returns the folder of the "first" policy, or of the "last" one."""
    return self.policy(
      0 if choice == iterated_settings.FIRST else self.number - 1
    )

  def place(self, name: str, objective: str = "") -> Path:
    """Returns the folder of a stage of the round."""
    return self.folder / iterated.by_objective(name, objective)

  def run_stage(self, job: Job, folder: Path) -> None:
    """Runs a stage of the round, unless it is finished."""
    run_stage(job, folder, self.world)

  def seed_of(self, job: Job) -> int:
    """Returns the seed of a stage in this round."""
    return (job.settings.seed + 10_000 * self.number) % schema.SEED_LIMIT

  def run(self) -> None:
    """Runs what of the round is not there yet."""
    if self.is_finished:
      return
    if not (self.folder / iterated.AGREEMENT).is_file():
      self.once(ITEMS, lambda: round_answers.compare(self))
      round_labels.collect(self)
      round_labels.pass_gate(self)
    if self.number > 1:
      self._measure_freshness()
    objectives = self.settings.objectives
    for name in objectives:
      run_stage(self.reward_job(name), self.place("reward", name), self.world)
    run_stage(self.policy_job(), self.folder / "policy", self.world)
    for name in objectives:  # equal seeds: the same answers, other judges
      folder = self.place("evaluation", name)
      run_stage(self.evaluation_job(name), folder, self.world)

  @property
  def is_finished(self) -> bool:
    """Whether its last stages are finished."""
    for name in self.settings.objectives:
      folder = self.place("evaluation", name)
      if not self.settings.evaluation.is_finished(folder):
        return False
      job = self.evaluation_job(name)
      with schema.located(job.prefix):
        evaluate.check_result(job.settings, folder)
    return True

  def once(self, name: str, make: Callable[[], Sequence[dict]]) -> None:
    """Makes a file of the round, on the first process, if it is not there."""
    path = self.folder / name
    if not path.is_file():
      rows = make()
      if distributed.is_first():
        iterated.write(path, rows)
      distributed.barrier(f"{path.parent.name} {name}")

  # -- scores --

  def score(
    self,
    name: str,
    file: str,
    reward: Path | str,
    function: str = "",
    field: str = "scores",
  ) -> dict[str, list]:
    """Returns item -> the scores of its answers, by a stage that scores texts.

    Args:
      name: folder of that stage.
      file: of the round, with the items.
      reward: folder of the reward model that judges, or "".
      function: import path of a reward function in its place.
      field: "scores", or "members": those of each member of an ensemble.
    """
    items = self._items_of(file)
    folder, how = self.folder / name, self.settings.sampling
    source = self._texts(folder, file)
    data = Data(
      source=str(source),
      format=_format(source),
      chat=how.settings.prompts.chat,
      max_length=how.settings.prompts.max_length,
    )
    job = Job(
      score_texts.PIPELINE,
      score_texts.Settings(
        rewards=str(reward),
        reward_fn=function,
        data=data,
        mesh=how.settings.mesh,
      ),
      how.prefix,
    )
    run_stage(job, folder, self.world)
    rows = iterated.read(folder / score_texts.SCORES_FILE)
    column = (
      score_texts.VERIFIER if function else next(iter(job.settings.named))
    )
    scores = iter([row[field][column] for row in rows])
    return {k: [next(scores) for _ in x["answers"]] for k, x in items.items()}

  def feedback(self) -> list[dict]:
    """Returns what a language model said of the items, by a stage of it."""
    folder, job = self.folder / "judge", self.settings.judge
    source = self._texts(folder, ITEMS)
    own = job.settings.data
    data = dataclasses.replace(own, source=str(source), format=_format(source))
    job = job.changed(data=data, pairs_of_prompt=0, seed=self.seed_of(job))
    run_stage(job, folder, self.world)
    return iterated.read(folder / ai_feedback.FEEDBACK_FILE)

  def preferences(self, objective: str) -> dict[str, list[float]]:
    """Returns item -> what simulated annotators think of its answers."""
    preference = self.settings.labels.preferences[objective]
    if preference == iterated_settings.LEXICON:
      return {
        x["item"]: lexicon.vader_scores(
          [f"{_text(x['prompt'])}{answer}" for answer in x["answers"]]
        ).tolist()
        for x in iterated.read(self.folder / ITEMS)
      }
    gold = self.settings.folder("gold", self.world.workdir, objective)
    is_gold = preference == iterated_settings.GOLD
    return self.score(
      iterated.by_objective("preference", objective),
      ITEMS,
      gold if is_gold else "",
      "" if is_gold else preference,
    )

  def _items_of(self, file: str) -> dict[str, dict]:
    """Returns the items of a file of the round by name, each once."""
    return {x["item"]: x for x in iterated.read(self.folder / file)}

  def _texts(self, folder: Path, file: str) -> Path:
    """Returns a file with the answers of items, a record each."""
    path = folder / TEXTS
    if distributed.is_first() and not path.is_file():
      items = self._items_of(file).values()
      rows = [_told(x, answer) for x in items for answer in x["answers"]]
      iterated.write(path, rows)
    distributed.barrier(f"{folder.parent.name} {folder.name}")
    return path

  def _measure_freshness(self) -> None:
    """Writes how the reward model before orders these comparisons."""
    path = self.folder / iterated.FRESHNESS
    if path.is_file():
      return
    found, records = {}, iterated.read(self.folder / TRAINED)
    for name in self.settings.objectives:
      folder = iterated.by_objective("freshness", name)
      scores = self.score(folder, TRAINED, self.before.place("reward", name))
      right, total = iterated.accuracy(records, scores, name)
      of = f" ({name})" if name else ""
      print(
        f"round {self.number}: the reward model{of} of round "
        f"{self.number - 1} orders {right} of {total} new pairs as the "
        "annotators do"
      )
      found[name] = {"right": right, "pairs": total}
    if distributed.is_first():
      iterated.replace(path, f"{json.dumps(found.get('', found))}\n")

  # -- stages --

  def reward_job(self, objective: str = "") -> Job:
    """Returns the reward stage on the records of this round and before.

    Args:
      objective: by which they were judged, "" for the answers as a whole.
    """
    job, rounds = self.settings.reward, self.settings.rounds
    own = job.settings.data
    has_own = bool(own.source and rounds.old_share != 0.0)
    files, formats, sizes = [], [], []
    if has_own:
      files += sources.parts(own.source)
      formats += own.formats()
      sizes += [len(dataset.records(own, None)[0]) / len(files)] * len(files)
    first = self.number if rounds.old_share == 0.0 else 1
    for number in range(first, self.number + 1):
      path = round_folder(self.world.workdir, number) / TRAINED
      files.append(str(path))
      formats.append(iterated.RANKING)
      sizes.append(len(iterated.read(path)))
    weights = iterated.part_weights(sizes, rounds.old_share)
    data = dataclasses.replace(
      own,
      source=",".join(files),
      format=",".join(formats),
      weights=weights,
      columns=own.columns if has_own else "",
    )
    changes: dict[str, Any] = {"data": data, "seed": self.seed_of(job)}
    if self.settings.comparisons.test:
      test = str(round_folder(self.world.workdir, 1) / iterated.TEST)
      changes["heldout"] = dataclasses.replace(
        own, source=test, format=iterated.RANKING, weights="", columns=""
      )
      left_out = ",".join(filter(None, (own.exclude, test)))
      changes["data"] = dataclasses.replace(data, exclude=left_out)
    if rounds.reward_start == iterated_settings.CONTINUED and self.number > 1:
      start = str(self.before.place("reward", objective))
      changes |= {"continue_from": start, "init_from": ""}
    return by_objective(job.changed(**changes), objective)

  def policy_job(self) -> Job:
    """Returns the policy stage: its start, its reference, and its judge."""
    rounds = self.settings.rounds
    job = getattr(self.settings, policy_of(self.settings, self.number))
    return job.changed(
      init_from=self.by_name(rounds.policy_start),
      reference=self.by_name(rounds.reference),
      seed=self.seed_of(job),
      **self._judges(job),
    )

  def _judges(self, job: Job) -> dict[str, Any]:
    """Returns what judges in the policy stage: the round's reward models."""
    named = getattr(job.settings, "judges", {})
    if not named:
      return {"reward": str(self.folder / "reward")}
    first = dataclasses.replace(self, number=1)
    now = {
      str(first.place("reward", name)): str(self.place("reward", name))
      for name in self.settings.objectives
    }

    def of_round(judge: Mapping[str, Any]) -> dict[str, Any]:
      folder = judge.get("reward", "")
      return dict(judge) | ({"reward": now[folder]} if folder in now else {})

    return {"judges": {name: of_round(x) for name, x in named.items()}}

  def evaluation_job(self, objective: str = "") -> Job:
    """Returns the stage that compares the round's policy with the first.

    Args:
      objective: by which, "" for the answers as a whole.
    """
    of = self.settings
    changes: dict[str, Any] = {
      "init_from": self.sft,
      "policy": self.policy(self.number),
      "reward": str(self.place("reward", objective)),
    }
    preference = of.labels.preferences[objective] if of.is_simulated else ""
    if preference == iterated_settings.GOLD:
      gold = of.folder("gold", self.world.workdir, objective)
      changes["gold"] = str(gold)
    elif preference == iterated_settings.LEXICON:
      changes["lexicon"] = True
    elif preference:
      changes["reward_fn"] = preference
    return self.settings.evaluation.changed(**changes)


def _text(prompt: Any) -> str:
  if isinstance(prompt, str):
    return prompt
  return "\n".join(str(message["content"]) for message in prompt) + "\n"


def _format(path: Path) -> str:
  """Returns the format of what `_told` wrote."""
  has_messages = any("messages" in row for row in iterated.read(path))
  return "messages" if has_messages else "demonstration"


def _told(item: dict, answer: str) -> dict[str, Any]:
  """Returns an answer of an item as a record of a prompt with its answer."""
  if isinstance(item["prompt"], str):
    return {"prompt": item["prompt"], "response": answer}
  said = {"role": "assistant", "content": answer}
  return {"messages": [*item["prompt"], said]}


def agreement_of(folder: Path) -> dict[str, Any]:
  """Returns agreement.json of a round; {} where it is not there."""
  path = folder / iterated.AGREEMENT
  return json.loads(path.read_text()) if path.is_file() else {}
