"""The report card of a reward model: is it fit to train a policy on?

Comparisons by people in, a page and numbers out: accuracy by any field,
calibration, length, lists of answers, ties, probes, how far it comes to what
another person reaches. Without data.source these are the comparisons that the
reward run held out itself. docs/report_card.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import distributed, schema, strict_json, terminal
from rlhf_jax.data import dataset, unread
from rlhf_jax.data.dataset import Data
from rlhf_jax.evaluation import (
  card_page,
  member_card,
  probes,
  report_card,
  table_page,
)
from rlhf_jax.evaluation.card_items import pairs_of
from rlhf_jax.exports import opened
from rlhf_jax.models import pretrained
from rlhf_jax.models.pretrained import Base
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import card_probes, card_rows, results
from rlhf_jax.pipelines.card_rows import Judged
from rlhf_jax.programs.pipeline import Pipeline
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.rewards.reader import Reader
from rlhf_jax.runs import stage_file, stages
from rlhf_jax.schema import FieldError

RESULT_FILE = "report_card.json"
SCORES_FILE = "scores.jsonl"
PAGE_FILE = "report_card.html"
CHUNK = 64  # rows between two lines of progress
PROBE_LENGTH = 4  # times data.max_length, in tokens of a row


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """What a reward model knows, and what fools it."""

  reward: str = ""  # folder of the finished reward run
  source: str = ""  # model under it; "": what its stage.json says
  data: Data = Data(max_length=1024)  # comparisons that it was not trained on;
  # source "": those that its own run held out
  by: str = ""  # fields of records, with commas between; "": the usual ones
  ceiling: float = 0.0  # how often another person agrees; 0: from the records
  probes: int = 100  # items whose answers are made worse on purpose
  seed: int = 0  # of intervals, probes, and pairs drawn from ratings
  mesh: mesh_lib.Config = mesh_lib.Config()

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    schema.check_least(self, probes=0)
    if self.ceiling and not 0.5 < self.ceiling <= 1.0:
      raise FieldError(
        f"ceiling={self.ceiling}: the share of pairs in which another person "
        "agrees, in (0.5, 1]. Set 0 if nobody knows."
      )

  @property
  def fields(self) -> list[str]:
    """The fields to break accuracy down by."""
    return results.listed(self.by)


def check(settings: Settings, world: World) -> None:
  """Checks what is examined, and on what."""
  del world
  if not settings.reward:
    raise FieldError(
      "reward is empty: name the folder of a finished reward run, "
      "--config.reward=runs/reward."
    )
  schema.check_local(settings.reward, "reward")
  stages.need_stage(settings.reward, stages.REWARD, "config.reward")
  _check_data(settings.data)


def _check_data(data: Data) -> None:
  """Raises FieldError for settings of data that nothing reads here."""
  usual = Settings().data
  if data.source:
    unread.check(data, "data", unread.COMPARISONS, packs=False)
    dataset.check(data, "data")
    names = ["end_token", "rankings"]
    if not any(map(data.has_format, ("ratings", "rated_dialogue"))):
      names.append("ties")
    why = "the reward model and the records say it"
  else:
    names = [field.name for field in dataclasses.fields(Data)]
    why = "without data.source the run's own comparisons are read"
  for name in names:
    value = getattr(data, name)
    if value != getattr(usual, name):
      raise FieldError(
        f"data.{name}={value!r}: nothing reads it, {why}. Leave it at "
        f"{getattr(usual, name)!r}."
      )


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns none: only the data tell what is read."""
  del settings, world
  return []


def load_data(settings: Settings, reader: Reader) -> tuple[Data, Judged, str]:
  """Returns the section that is read, what people compared, and a name for it.

  Args:
    settings: of the pipeline.
    reader: the reward model.
  """
  end = reader.scorer.reads_end_token
  if settings.data.source:
    data = dataclasses.replace(settings.data, end_token=end)
    judged = card_rows.load(data, reader.tokenizer, settings.seed, 0.0)
    return data, judged, data.source
  data, fraction, seed = card_rows.own(stages.place(settings.reward)[0])
  judged = card_rows.load(data, reader.tokenizer, seed, fraction)
  return data, judged, f"{data.source} (held out by the run)"


def score(
  name: str, reader: Reader, rows: Sequence[dict[str, np.ndarray]], world: World
) -> np.ndarray:
  """Returns [N, M] scores of rows, of each output of the model.

  Args:
    name: of what is scored, for the line of progress.
    reader: the reward model.
    rows: token rows.
    world: where it is.
  """
  ids = [row["tokens"].tolist() for row in rows]
  known: dict[tuple, int] = {}
  places = [known.setdefault(tuple(x), len(known)) for x in ids]
  distinct = [list(x) for x in known]
  parts = []
  with terminal.Progress(name, len(distinct), unit="text") as progress:
    for first in range(0, len(distinct), CHUNK):
      part = distinct[first : first + CHUNK]
      parts.append(reader.member_scores(part, world.mesh))
      progress.update(min(first + CHUNK, len(distinct)))
  return np.concatenate(parts).astype(np.float64)[places]


def _number(value: Any) -> float | None:
  return None if value is None else float(np.mean(distributed.fetch(value)))


def _by_item(values: np.ndarray, judged: Judged) -> list[np.ndarray]:
  """Returns values of all rows as those of each item, [K] or [K, M]."""
  ends = np.cumsum([len(rows) for rows in judged.rows])[:-1]
  return np.split(values, ends)


def _probe(
  settings: Settings, reader: Reader, world: World, data: Data, judged: Judged
) -> tuple[dict[str, probes.Probe], int]:
  """Returns probe -> what it found, and how many items did not fit."""

  # They are longer than what was compared; and prompts stay whole.
  room = min(reader.most, PROBE_LENGTH * data.max_length)
  data = dataclasses.replace(data, max_length=room)

  def rows_of(record: Any, texts: Sequence[str]) -> list[dict]:
    return card_rows.changed_rows(record, texts, data, reader.tokenizer)

  def scores_of(rows: Sequence[dict]) -> np.ndarray:
    return score("probes", reader, rows, world).mean(axis=1)

  return card_probes.run(
    judged,
    rows_of,
    scores_of,
    count=settings.probes,
    seed=settings.seed,
    chat=data.chat,
  )


def run(settings: Settings, world: World) -> dict:
  """Examines a reward model; returns what report_card.json holds."""
  path = world.workdir / RESULT_FILE
  folders = {"reward": settings.reward}
  origins = results.origins(folders, {})
  if path.is_file():
    results.check(path, origins, folders)
    return results.numbers(path)
  world.workdir.mkdir(parents=True, exist_ok=True)
  base, reader, info = _opened(settings, world)
  data, judged, said = load_data(settings, reader)
  dataset.report_dropped("report card", said, len(judged.items), judged.dropped)
  every = [row for rows in judged.rows for row in rows]
  longest = max(len(row["tokens"]) for row in every)
  pretrained.check_context(base, longest, "data")
  outputs = score("report card", reader, every, world)
  scores = _by_item(outputs.mean(axis=1), judged)
  lengths = _by_item(
    np.asarray([row["loss_mask"].sum() for row in every]), judged
  )
  facts = report_card.measure(
    judged.items,
    scores,
    lengths,
    by=settings.fields,
    ceiling=settings.ceiling if settings.ceiling else judged.ceiling,
    seed=settings.seed,
    nats=float(np.mean(distributed.fetch(reader.weights.std))),
  )
  if outputs.shape[1] > 1:
    facts["members"] = member_card.members(
      judged.items,
      scores,
      lengths,
      _by_item(outputs, judged),
      [str(x["name"]) for x in stage_file.outputs(info)],
      usual=_number(reader.weights.deviation),
    )
  lost = 0
  if settings.probes:
    facts["probes"], lost = _probe(settings, reader, world, data, judged)
    facts["remarks"] += probes.remarks(facts["probes"])
  facts["not_probed"] = lost
  if distributed.is_first():
    page = card_page.page(
      facts,
      "Report card of a reward model",
      f"{settings.reward}, on {said}",
      items=judged.items,
      scores=scores,
      pairs=pairs_of(judged.items, scores, lengths),
      origins=_origins(settings, info, said, judged, facts),
    )
    table_page.write(world.workdir / PAGE_FILE, page)
  plain = strict_json.plain(facts)
  results.write(path, plain, origins, _lines(judged, scores), SCORES_FILE)
  return plain


def _opened(
  settings: Settings, world: World
) -> tuple[Base, Reader, dict[str, Any]]:
  """Returns the model underneath, the reward model, and its stage.json."""
  info = stages.need_stage(settings.reward, stages.REWARD, "config.reward")
  model = opened.model_of(settings.reward, info, settings.source)
  base = world.base(model)
  scorer, weights, _ = reward_model.load(settings.reward, base, world)
  name = next(iter(results.named([settings.reward])))
  return base, Reader(name, scorer, weights, base.tokenizer), info


def _lines(judged: Judged, scores: list[np.ndarray]) -> list[dict[str, Any]]:
  """Returns a line of scores.jsonl for each item."""
  return [
    {
      "where": item.where,
      "scores": own.tolist(),
      "pairs": [list(pair) for pair in item.pairs],
    }
    for item, own in zip(judged.items, scores, strict=True)
  ]


def _origins(
  settings: Settings,
  info: dict[str, Any],
  said: str,
  judged: Judged,
  facts: dict[str, Any],
) -> list[tuple[str, Any]]:
  """Returns where the numbers come from, for the end of the page."""
  normalisation = info["normalisation"]
  found = [
    ("reward model", settings.reward),
    ("model", info["model_source"]),
    ("trained on", f"{info['comparisons']:,} comparisons"),
    ("epochs", f"{info['epochs']:.2f}"),
    ("normalised on", normalisation["source"]),
    ("comparisons", said),
    ("items", f"{facts['items']:,}"),
    ("pairs", f"{facts['pairs']:,}, and {facts['tied_pairs']:,} that tie"),
  ]
  found += [(f"left out: {why}", n) for why, n in judged.dropped.items()]
  if facts["not_probed"]:
    found.append(("items too long to probe", facts["not_probed"]))
  return found


def tell(settings: Settings, workdir: Path) -> None:
  """Prints accuracy, probes and remarks."""
  del settings
  facts = results.numbers(workdir / RESULT_FILE)
  rate = facts["accuracy"]
  rows = [["all", rate["value"], rate["low"], rate["high"], rate["count"]]]
  for field, groups in facts["by"].items():
    for name, group in groups.items():
      x = group["accuracy"]
      rows.append(
        [f"{field}: {name}", x["value"], x["low"], x["high"], x["count"]]
      )
  rows = [[x if x is not None else math.nan for x in row] for row in rows]
  heads = ["pairs", "accuracy", "low", "high", "count"]
  print("\n" + terminal.format_table(heads, rows))
  found = [
    [name, x["pays"]["value"], x["gain"], x["pays"]["count"]]
    for name, x in facts.get("probes", {}).items()
  ]
  if found:
    heads = ["probe", "pays", "gain", "items"]
    print("\n" + terminal.format_table(heads, found))
  for level, message in facts["remarks"]:
    print(f"{level}: {message}")
  print(f"\n{workdir / PAGE_FILE}")


PIPELINE = Pipeline(
  name="report_card",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  result=RESULT_FILE,
  describe=lambda settings: "a reward model is examined",
  tell=tell,
)
