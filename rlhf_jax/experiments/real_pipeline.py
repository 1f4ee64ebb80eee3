"""Over-optimisation on a finished whole run: its SFT and gold, new judges.

METHODS annex A2c. The experiment file says which reward models are trained, and
which policies against them (configs/overoptimisation_lab.py):

  rewards/   a sweep of reward runs, normalised on the SFT policy's samples
  policies/  a sweep of policy runs, judged by them and watched by gold
  trials/    their curves, and those of best of n from the SFT policy's samples

The whole run's own policy, with its KL penalty, is a judge of its own here:
what a penalty and early stopping do is the same curve.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import experiment_file, lab, metrics, output, pipelines
from rlhf_jax.algorithms import best_of_n, ensemble
from rlhf_jax.algorithms.ensemble import Combination
from rlhf_jax.experiments import study
from rlhf_jax.experiments.curves import Curve, read, write
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import rlhf
from rlhf_jax.programs import heldout
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.rewards import model as reward_scores
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from rlhf_jax.sweeps import processes, running, trials
from rlhf_jax.types import Samples

TRIALS = "configs/overoptimisation_lab.py"
SFT, _, GOLD, *_ = rlhf.STAGES  # folders of a whole run
WIDTH = 5  # steps that are averaged to find a peak


@dataclasses.dataclass(frozen=True)
class Judge:
  """Who judges a policy, see `judges` of the experiment file.

  settings: field -> value of its policy run.
  """

  judge: str
  reward: str
  rule: str = "single"
  uncertainty_weight: float | None = None
  ladders: Mapping[str, int] = dataclasses.field(default_factory=dict)
  single: str = ""
  has_policy: bool = True
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def combination(self) -> Combination:
    """How its members are combined."""
    if self.rule == "single":
      return Combination()
    return Combination(self.rule, self.uncertainty_weight)

  @property
  def policy_settings(self) -> dict[str, Any]:
    """What its policy run sets beside folders."""
    found = dict(self.settings)
    if self.rule not in ("single", "mean"):
      found["scoring.combine"] = self.rule
    if self.uncertainty_weight is not None:
      found["scoring.uncertainty_weight"] = self.uncertainty_weight
    return found


@dataclasses.dataclass(frozen=True)
class Plan:
  """A study.

  workdir: of it.
  runs: finished whole runs; seed i stands on runs[i % len(runs)].
  seeds: how many.
  file: the experiment of the trials.
  jobs: trials at once.
  prompts, samples: of best of n: prompts, and answers to each.
  """

  workdir: Path
  runs: Sequence[Path]
  seeds: int
  file: str = TRIALS
  jobs: int = 1
  is_smoke: bool = False
  prompts: int = 48
  samples: int = 64

  def run_of(self, seed: int) -> Path:
    """Returns the whole run that a seed stands on."""
    return self.runs[seed % len(self.runs)]

  @functools.cached_property
  def source(self) -> dict[str, Any]:
    """What the experiment file defines.

    Raises:
      UserError: it cannot be read, or lacks a function.
    """
    path = experiment_file.place(self.file)
    try:
      found = runpy.run_path(path)
    except Exception as error:  # whatever the experiment file does
      raise UserError(experiment_file.complaint(path, error)) from error
    for name in ("get_config", "rewards", "judges"):
      if not callable(found.get(name)):
        raise UserError(
          f"--trials={self.file}: it has no {name}(). Write it as {TRIALS} "
          "does."
        )
    return found

  def rewards(self, seed: int) -> dict[str, dict[str, Any]]:
    """Returns name -> what a reward run of a seed sets."""
    return self.source["rewards"](seed)

  @property
  def judges(self) -> list[Judge]:
    """Who judges.

    Raises:
      UserError: a judge that cannot be, or two whose curves are one file.
    """
    where, found = f"--trials={self.file}: judges()", []
    for values in self.source["judges"]():
      try:
        found.append(Judge(**values))
        _ = found[-1].combination
      except (TypeError, ValueError) as error:
        raise UserError(f"{where} holds {values!r}: {error}") from error
    files = [Curve(x.judge, "rl", 0, (), (), ()).name for x in found]
    names, rewards = [x.judge for x in found], list(self.rewards(0))
    for one, file in zip(found, files, strict=True):
      if files.count(file) > 1:
        raise UserError(
          f"{where} has two whose curves would be one file, {file}.json, as "
          f"{one.judge!r}. Give each a name of its own, in letters and digits."
        )
      if one.reward not in rewards:
        raise UserError(
          f"{where} names the reward {one.reward!r}, and rewards(seed) has "
          f"{', '.join(rewards)}. Name one of them."
        )
      if one.single and one.single not in names:
        raise UserError(
          f"{where} holds {one.judge!r} against single={one.single!r}, and "
          f"there are {', '.join(names)}. Name one of them, or leave it out."
        )
    return found

  def reward_folder(self, name: str, seed: int) -> Path:
    """Returns the folder of a reward run."""
    names = list(self.rewards(seed))
    number = seed * len(names) + names.index(name)
    return self.workdir / "rewards" / f"{number + 1:03d}"

  def policy_folder(self, judge: Judge, seed: int) -> Path:
    """Returns the folder of a policy run."""
    trained = [x for x in self.judges if x.has_policy]
    number = seed * len(trained) + trained.index(judge)
    return self.workdir / "policies" / f"{number + 1:03d}"


def check(plan: Plan) -> None:
  """Checks that whole runs are finished, before anything is trained.

  Raises:
    UserError: which is not, and what to do.
  """
  if not plan.runs:
    raise UserError(
      "--runs=DIR missing: finished quickstarts, with commas between. Run "
      "`python -m rlhf_jax.main --config=configs/quickstart.py "
      "--workdir=runs/quickstart`, then give --runs=runs/quickstart."
    )
  for run in plan.runs:
    for name in (SFT, GOLD):
      if not run.is_dir() or stages.read_stage(run / name) is None:
        raise UserError(
          f"--runs={run}: {run / name} is not finished. Name folders of "
          "finished whole runs (configs/quickstart.py)."
        )
    if not (run / SFT / "samples.npz").is_file():
      raise UserError(
        f"--runs={run}: {run / SFT} has no samples.npz, on which scores are "
        "normalised. Run its SFT with samples=256."
      )
  _ = plan.judges


def _reward_trials(plan: Plan) -> list[dict[str, Any]]:
  return [
    {
      **own,
      "reference_samples": str(plan.run_of(seed) / SFT / "samples.npz"),
      "seed": seed,
    }
    for seed in range(plan.seeds)
    for own in plan.rewards(seed).values()
  ]


def _policy_trials(plan: Plan) -> list[dict[str, Any]]:
  return [
    {
      **judge.policy_settings,
      "init_from": str(plan.run_of(seed) / SFT),
      "monitors.gold": str(plan.run_of(seed) / GOLD),
      "reward": str(plan.reward_folder(judge.reward, seed)),
      "seed": seed,
    }
    for seed in range(plan.seeds)
    for judge in plan.judges
    if judge.has_policy
  ]


def _sweep(
  plan: Plan, stage: str, folder: Path, settings: list[dict[str, Any]]
) -> int:
  """Runs the trials of a stage that are not done; returns an exit code."""
  file = f"{experiment_file.place(plan.file)}:{stage}"
  found = trials.make(settings, None, 1)
  trials.check(found, file, (), folder)
  how = running.Plan(
    workdir=folder, file=file, jobs=plan.jobs, is_smoke=plan.is_smoke
  )
  folder.mkdir(parents=True, exist_ok=True)
  with processes.Signals() as signals:
    trials.record(folder, found, {"smoke": plan.is_smoke})
    print(f"{len(found)} {stage} runs; logs in {folder}", flush=True)
    sweep = running.Sweep(how, found, signals)
    sweep.run()
    if signals.number is not None:
      return output.EXIT_INTERRUPTED
  is_done = [x.status == running.DONE for x in sweep.states.values()]
  return 0 if all(is_done) else 1


def run(plan: Plan, say: Callable[[str], None] = print) -> int:
  """Trains and measures what is missing; returns an exit code.

  Args:
    plan: of the study.
    say: prints a line.

  Raises:
    UserError: value, rule and remedy.
  """
  check(plan)
  sizes = {"prompts": plan.prompts, "samples": plan.samples}
  facts = {"level": "pipeline", "smoke": plan.is_smoke, **sizes}
  study.record(plan.workdir, facts)
  parts = (
    ("reward", "rewards", _reward_trials(plan)),
    ("policy", "policies", _policy_trials(plan)),
  )
  code = 0
  for stage, name, settings in parts:
    code = _sweep(plan, stage, plan.workdir / name, settings)
    if code == output.EXIT_INTERRUPTED or (code and stage == "reward"):
      return code
  _write_policies(plan)
  there = {(x.judge, x.seed) for x in read(plan.workdir) if x.method != "rl"}
  for seed in range(plan.seeds):
    if any((x.judge, seed) not in there for x in plan.judges):
      _write_best_of_n(plan, seed, say)
  return code


# -- curves -----------------------------------------------------------------


def _accuracy(folder: Path) -> dict[str, float]:
  """Returns the held-out accuracy of a reward run, if it is known."""
  found = stages.read_stage(folder).get("diagnosis") or {}
  known = {k.rpartition("/")[2]: x for k, x in found.items()}
  accuracy = known.get("accuracy")
  return {} if accuracy is None else {"accuracy": float(accuracy)}


def _common(plan: Plan, judge: Judge, seed: int) -> dict[str, Any]:
  facts: dict[str, Any] = _accuracy(plan.reward_folder(judge.reward, seed))
  if judge.single:
    facts["single"] = judge.single
  return {
    "judge": judge.judge,
    "seed": seed,
    "ladders": dict(judge.ladders),
    "rule": judge.rule,
    "facts": facts,
  }


def of_policy(folder: Path, common: Mapping[str, Any]) -> Curve | None:
  """Returns the curve of a policy run, None where it has no gold.

  KL, gold and proxy are of each rollout, before the step that learns from it;
  the probe is of held-out prompts, after the step. Gold is in deviations of the
  SFT policy's samples, whose mean is 0; the proxy is set to 0 at the start.

  Args:
    folder: of the run.
    common: further fields of Curve.
  """
  path = folder / "metrics.jsonl"
  rows = metrics.read_metrics(path) if path.is_file() else []
  rows = [x for x in rows if "eval/gold" in x and "rollout/kl_k1_sum" in x]
  if not rows:
    return None
  proxy = [x["rollout/score_mean"] for x in rows]
  probe = [x.get(f"heldout/{GOLD}_score") for x in rows]
  return Curve(
    method="rl",
    distance=[math.sqrt(max(x["rollout/kl_k1_sum"], 0.0)) for x in rows],
    gold=[x["eval/gold"] for x in rows],
    proxy=[x - proxy[0] for x in proxy],
    probe=probe if any(x is not None for x in probe) else (),
    width=WIDTH,
    **{**common, "facts": {**common["facts"], "folder": str(folder)}},
  )


def _write_policies(plan: Plan) -> None:
  """Writes the curves of all policy runs that have one."""
  for seed in range(plan.seeds):
    for judge in plan.judges:
      if judge.has_policy:
        folder = plan.policy_folder(judge, seed)
        found = of_policy(folder, _common(plan, judge, seed))
        if found is not None:
          write(plan.workdir, found)
    own = plan.run_of(seed)
    common = {"judge": "the run's own, KL penalty", "seed": seed, "facts": {}}
    if seed < len(plan.runs):
      found = of_policy(own / "policy", common)
      if found is not None:
        write(plan.workdir, found)


@dataclasses.dataclass(frozen=True)
class _Drawn:
  """Answers of the SFT policy to held-out prompts, in parts.

  prompts: whose answers stand beside each other in each part.
  """

  parts: Sequence[Samples]
  prompts: int

  def scored(self, model: lab.RewardModel) -> np.ndarray:
    """Returns [prompts, answers, members] float64."""
    scorer, weights = model.scorer
    score = reward_scores.make_member_scores(scorer)
    with mesh_lib.current(model.mesh):
      each = [np.asarray(score(weights, x), np.float64) for x in self.parts]
    rows = (self.prompts, -1, model.role.members)
    return np.concatenate([x.reshape(rows) for x in each], axis=1)


def _draw(plan: Plan, seed: int) -> _Drawn:
  """Returns answers of the SFT policy of a seed."""
  config = plan.source["get_config"]("policy")
  settings = pipelines.read(config, plan.workdir).settings
  policy = lab.load(plan.run_of(seed) / SFT)
  how = dataclasses.replace(settings.generate, num_samples=min(8, plan.samples))
  [batch] = heldout.prompt_batches(
    settings.heldout,
    how.max_new_tokens,
    plan.prompts,
    plan.prompts,
    policy.base,
    "prompts",
  )
  sampler = Sampler(policy.role, policy.frozen, policy.base, how)
  with mesh_lib.current(policy.mesh):
    placed = mesh_lib.spread_batch(policy.mesh, batch)
    keys = [
      jax.random.fold_in(jax.random.key(seed), i)
      for i in range(plan.samples // how.num_samples)
    ]
    parts = [sampler(policy.params, placed, key) for key in keys]
  return _Drawn(parts, plan.prompts)


def _write_best_of_n(plan: Plan, seed: int, say: Callable[[str], None]) -> None:
  """Writes the curves of best of n of all judges of a seed."""
  title = f"best of {plan.samples}, seed {seed}"
  say(f"{title}: {plan.prompts * plan.samples} answers")
  drawn = _draw(plan, seed)
  say(f"{title}: judged by gold")
  gold = drawn.scored(lab.load(plan.run_of(seed) / GOLD))[..., 0]
  ns = best_of_n.curve_points(gold.shape[1])
  scored: dict[str, np.ndarray] = {}  # reward -> scores of its members
  for judge in plan.judges:
    if judge.reward not in scored:
      say(f"{title}: judged by {judge.reward}")
      model = lab.load(plan.reward_folder(judge.reward, seed))
      scored[judge.reward] = drawn.scored(model)
    proxy = ensemble.combined(scored[judge.reward], judge.combination)
    curves = {
      name: best_of_n.best_of_n_curve(proxy, scores, ns).mean(axis=0)
      - scores.mean()
      for name, scores in (("gold", gold), ("proxy", proxy))
    }
    write(
      plan.workdir,
      Curve(
        method="best_of_n",
        distance=[math.sqrt(best_of_n.kl_bound(n)) for n in ns],
        gold=curves["gold"].tolist(),
        proxy=curves["proxy"].tolist(),
        **_common(plan, judge, seed),
      ),
    )
