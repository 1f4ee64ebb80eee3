"""How policies behave: sycophancy, refusals, persistence, truth, toxicity.

    policies = "runs/sft,runs/ppo"     before and after, on the same questions

Each suite asks every policy the same, in one turn or several, and counts by a
rule that has a name: words of a right answer, phrases of a refusal, a lexicon,
a judge's yes or no. behaviour.json has all rates with intervals and, of each
policy but the first, the paired change; behaviour.html shows them; what was
said stands in transcripts.jsonl. docs/behaviour.md.

Every reply is kept in judge_cache.jsonl as it comes, so that a run that was
killed goes on by the same command. Answers are greedy unless temperature is
set.

Left out: people's judgement, which all of these stand in for.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_jax import distributed, imported, schema, terminal
from rlhf_jax.data import attributes, facts, sources
from rlhf_jax.evaluation import table_page
from rlhf_jax.evaluation.behaviour import (
  page,
  persistence,
  refusals,
  suites,
  sycophancy,
  toxicity,
  truthfulness,
)
from rlhf_jax.evaluation.behaviour.suites import Found, Suite
from rlhf_jax.evaluation.behaviour.truthfulness import MISCONCEPTIONS
from rlhf_jax.models.pretrained import Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import results, text_scores
from rlhf_jax.programs import asking, speakers
from rlhf_jax.programs.pipeline import Pipeline, stage_field
from rlhf_jax.programs.policy_groups import MODEL
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.rewards.ai.endpoint import Endpoint
from rlhf_jax.rewards.ai.judging import Judge, Judging
from rlhf_jax.rewards.ai.voices import Saying
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, check_least

RESULT_FILE = "behaviour.json"
ROWS_FILE = "transcripts.jsonl"
PAGE_FILE = "behaviour.html"
SUITES = (
  *(sycophancy.FLIPS, sycophancy.OPINIONS, refusals.REFUSALS),
  *(persistence.PERSISTENCE, truthfulness.TRUTH, toxicity.TOXICITY),
)
SPOKEN = (  # suites whose answers are texts
  *(sycophancy.FLIPS, sycophancy.OPINIONS, refusals.REFUSALS),
  *(persistence.PERSISTENCE, toxicity.TOXICITY),
)
# Field -> the suites that read it; rewards read `facts` too.
READ_BY = {
  "facts": (sycophancy.FLIPS, sycophancy.OPINIONS),
  "refusal_pairs": (refusals.REFUSALS,),
  "attributes": (persistence.PERSISTENCE,),
  "turns": (persistence.PERSISTENCE,),
  "truth": (truthfulness.TRUTH,),
  "toxicity": (toxicity.TOXICITY,),
  "grader": (refusals.REFUSALS, toxicity.TOXICITY),
  "endpoint.url": (refusals.REFUSALS, toxicity.TOXICITY),
  "answer_tokens": SPOKEN,
  "temperature": SPOKEN,
}


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """Suites of behaviour on any number of policies, and reward models."""

  seed: int = 0  # of answers at a temperature
  model: Model = Model()
  policies: str = ""  # folders of finished policy runs, with commas between;
  # "model": the model itself; the others are compared with the first
  rewards: str = ""  # folders of reward runs: do they prefer a true answer to
  # one that agrees with the user?
  suites: str = ",".join(SUITES)  # what is asked, with commas between
  facts: str = "ours:test"  # questions of fact: "ours:test", "ours", or a file
  # of {"question", "right", "wrong"} (data/facts.py)
  matching: str = ""  # files in the layout of Anthropic's evals, with commas
  # between; each is a group of the suite "matching"
  refusal_pairs: str = refusals.OURS  # "ours", or a file of {"benign",
  # "harmful", "category"}
  attributes: str = attributes.OURS  # of the suite "persistence": "ours", or a
  # file of {"instruction", "kind", "value"} (data/attributes.py)
  turns: int = 4  # of the user's in its dialogues
  truth: str = MISCONCEPTIONS  # of the suite "truthfulness": its name, or a
  # file of facts or in TruthfulQA's layout
  toxicity: str = toxicity.OURS  # of the suite "toxicity": "ours", or a file of
  # {"prompt", "category"}
  grader: str = stage_field(
    stages.POLICY
  )  # folder of a policy run that says which answers refuse or are rude; "":
  # phrases and words alone
  endpoint: Endpoint = Endpoint()  # says so in its place
  count: int = 0  # items of each suite, the first of all; 0: all
  answer_tokens: int = 48  # of an answer at most
  temperature: float = 0.0  # of answers; 0 is greedy
  batch_size: int = 16  # dialogues that are answered together
  cache: str = ""  # file of replies, which runs may share; "": in the workdir
  mesh: mesh_lib.Config = mesh_lib.Config()

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    check_least(self, count=0, answer_tokens=1, temperature=0, batch_size=1)
    check_least(self, turns=2)
    for name in ("policies", "rewards"):
      folders = results.listed(getattr(self, name))
      if len(results.named(folders)) < len(folders):
        raise FieldError(
          f"{name}={getattr(self, name)!r}: one of them stands there twice. "
          "Leave it out."
        )
    known = (*SUITES, sycophancy.MATCHING)
    for name in self.asked:
      if name not in known:
        raise FieldError(
          f"suites={self.suites!r}: there is no {name!r}. Choose of "
          f"{', '.join(known)}.{imported.nearest(name, known)}"
        )
    self._check_read()
    is_asked = sycophancy.MATCHING in self.asked
    if is_asked != bool(self.matching):
      raise FieldError(
        f"suites={self.suites!r} with matching={self.matching!r}: the suite "
        "'matching' asks those files. Set both, or neither."
      )

  def _check_read(self) -> None:
    """Raises FieldError for a setting that no suite reads."""
    asks_nobody = bool(self.rewards and not results.listed(self.policies))
    asked = () if asks_nobody else self.asked
    read_by = READ_BY | ({"suites": ()} if asks_nobody else {})
    for name, suites_of in read_by.items():
      get = operator.attrgetter(name)
      value, usual = get(self), get(type(self))
      is_read = set(suites_of) & set(asked) or (
        name == "facts" and self.rewards
      )
      if value == usual or is_read:
        continue
      if asks_nobody:
        raise FieldError(
          f"{name}={value!r} with policies='': no policy is asked, so nothing "
          f"reads it. Leave it at {usual!r}, or name policies."
        )
      raise FieldError(
        f"{name}={value!r} with suites={self.suites!r}: nothing reads it. "
        f"Leave it at {usual!r}, or ask {' or '.join(suites_of)}."
      )

  @property
  def asked(self) -> list[str]:
    """The names of the suites."""
    return results.listed(self.suites)

  @property
  def has_grader(self) -> bool:
    """Whether a judge grades answers too."""
    return bool(self.grader or self.endpoint.url)

  @property
  def runs(self) -> dict[str, str]:
    """Place in a field -> folder of a finished stage, for messages."""
    found = {
      f"policies: {x}": x for x in results.listed(self.policies) if x != MODEL
    }
    found |= {f"rewards: {x}": x for x in results.listed(self.rewards)}
    return found | {"grader": self.grader}


def check(settings: Settings, world: World) -> None:
  """Checks who is asked, and reads what is asked."""
  del world
  policies = results.listed(settings.policies)
  if not policies and not settings.rewards:
    raise FieldError(
      "policies is empty: name folders of finished policy runs, "
      "--config.policies=runs/sft,runs/ppo, or 'model'; or set rewards."
    )
  kinds = {"policies": stages.POLICY, "rewards": stages.REWARD}
  for name, kind in kinds.items():
    for folder in results.listed(getattr(settings, name)):
      if folder != MODEL:
        schema.check_local(folder, name)
        stages.need_stage(folder, kind, f"config.{name}")
  speakers.check(settings.endpoint, settings.grader, "grader")
  facts.read(settings.facts)
  if settings.matching:
    sources.check(settings.matching, "matching")
    sycophancy.read_matching(settings.matching)
  if settings.refusal_pairs != refusals.OURS:
    sources.check(settings.refusal_pairs, "refusal_pairs")
    refusals.read(settings.refusal_pairs)
  attributes.read(settings.attributes)
  truthfulness.read(settings.truth)
  toxicity.read(settings.toxicity)


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns none: only the data tell what is read."""
  del settings, world
  return []


def _suites(settings: Settings) -> dict[str, Callable[[], Suite]]:
  """Returns name -> a function that begins a suite, of those that are asked."""
  most = settings.count if settings.count else None
  known = facts.read(settings.facts)[:most]
  found: dict[str, Callable[[], Suite]] = {
    sycophancy.FLIPS: lambda: sycophancy.flips(known),
    sycophancy.OPINIONS: lambda: sycophancy.opinions(known),
    sycophancy.MATCHING: lambda: sycophancy.matching(
      sycophancy.read_matching(settings.matching)[:most]
    ),
    refusals.REFUSALS: lambda: refusals.refusals(
      refusals.read(settings.refusal_pairs)[:most],
      has_judge=settings.has_grader,
    ),
    persistence.PERSISTENCE: lambda: persistence.persistence(
      attributes.each(attributes.read(settings.attributes))[:most],
      settings.turns,
    ),
    truthfulness.TRUTH: lambda: truthfulness.truthfulness(
      truthfulness.read(settings.truth)[:most]
    ),
    toxicity.TOXICITY: lambda: toxicity.toxicity(
      toxicity.read(settings.toxicity)[:most], has_judge=settings.has_grader
    ),
  }
  return {name: found[name] for name in settings.asked}


def run(settings: Settings, world: World) -> dict:
  """Asks all policies; returns what behaviour.json holds."""
  path = world.workdir / RESULT_FILE
  origins = results.origins(settings.runs, {})
  if path.is_file():
    results.check(path, origins, settings.runs)
    return results.numbers(path)
  world.workdir.mkdir(parents=True, exist_ok=True)
  cache = speakers.cache_of(settings.cache, world)
  unanswered: dict[str, int] = {}
  try:
    found = {
      name: _of_policy(settings, world, name, folder, cache, unanswered)
      for name, folder in results.named(
        results.listed(settings.policies)
      ).items()
    }
  finally:
    cache.close()
  found_rewards = {
    name: [_of_reward(settings, world, folder)]
    for name, folder in results.named(results.listed(settings.rewards)).items()
  }
  told = page.numbers(found) | {"unanswered": unanswered}
  if found_rewards:
    told["rewards"] = page.numbers(found_rewards)
  rows = [
    {"of": name, **row}
    for name, parts in (found | found_rewards).items()
    for suite in parts
    for row in suite.rows
  ]
  if distributed.is_first():
    shown = page.page(told, _origins(settings), rows)
    table_page.write(world.workdir / PAGE_FILE, shown)
  results.write(path, told, origins, rows, ROWS_FILE)
  return told


def _origins(settings: Settings) -> list[tuple[str, Any]]:
  found = [
    ("policies", settings.policies),
    ("reward models", settings.rewards),
    ("facts", settings.facts),
    ("refusal pairs", settings.refusal_pairs),
    ("attributes", settings.attributes),
    ("truth", settings.truth),
    ("toxicity", settings.toxicity),
    ("matching", settings.matching),
    ("temperature", settings.temperature),
    ("grader", settings.grader or settings.endpoint.model),
  ]
  return [(name, value) for name, value in found if value != ""]


def _judge(
  settings: Settings, world: World, endpoint: Endpoint, folder: str, cache: Any
) -> Judge:
  """Returns who answers, through the cache."""
  voice = speakers.open_voice(
    endpoint,
    "" if folder == MODEL else folder,
    settings.model,
    world,
    settings.batch_size,
  )
  how = Judging(batch_size=settings.batch_size)
  return Judge(voice, how, cache, settings.seed)


def _of_policy(
  settings: Settings,
  world: World,
  name: str,
  folder: str,
  cache: Any,
  unanswered: dict[str, int],
) -> list[Found]:
  """Returns what each suite found of a policy.

  Args:
    settings, world: of the run.
    name: of the policy, for progress.
    folder: of its run, or MODEL.
    cache: of replies.
    unanswered: name -> requests without a reply, which is filled in.
  """
  policy = _judge(settings, world, Endpoint(), folder, cache)
  asked = {suites.POLICY: policy}
  if settings.has_grader:
    asked[suites.GRADER] = _judge(
      settings, world, settings.endpoint, settings.grader, cache
    )
  how = Saying(settings.answer_tokens, settings.temperature, settings.seed)
  found, missing = [], 0
  begun = _suites(settings)
  with terminal.Progress(f"ask {name}", len(begun), unit="suite") as progress:
    for begin in begun.values():
      suite, lost = asking.drive(begin(), asked, how)
      found.append(suite)
      missing += lost
      progress.update(len(found))
  unanswered[name] = missing
  return found


def _of_reward(settings: Settings, world: World, folder: str) -> Found:
  """Returns what a reward model prefers where the user is wrong."""
  known = facts.read(settings.facts)
  known = known[: settings.count] if settings.count else known
  pairs = sycophancy.reward_pairs(known)
  model = text_scores.Texts(folder, world)
  dialogues = [prompt for _, prompt, _, _ in pairs for _ in range(2)]
  answers = [text for _, _, *texts in pairs for text in texts]
  scores = model.scores(dialogues, answers).reshape(-1, 2)
  return sycophancy.of_rewards(known, [tuple(x) for x in scores])


def tell(settings: Settings, workdir: Path) -> None:
  """Prints the table, and the changes against the first policy."""
  del settings
  told = results.numbers(workdir / RESULT_FILE)
  for heads, rows in page.tables(told):
    print("\n" + terminal.format_table(heads, rows))
  for level, message in page.remarks(told):
    print(f"{level}: {message}")
  print(f"\n{workdir / PAGE_FILE}")


PIPELINE = Pipeline(
  name="behaviour",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  result=RESULT_FILE,
  describe=lambda settings: f"suites {settings.suites}",
  tell=tell,
)
