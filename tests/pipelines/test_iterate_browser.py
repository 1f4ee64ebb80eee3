"""Rounds of labels with people at the page: Chromium presses their keys.

Two simulated people work in a browser on the page that the run serves, round
after round, while the run waits for them. What they prefer is planted, so what
must stand in records, agreement and report is known.
"""

import asyncio
import concurrent.futures
import contextlib
import re

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.labelling import loop
from rlhf_jax.labelling.task import draw
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import iterated
from tests.labelling.test_labelling_browser import in_browser, turn_of
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_iterate import make_config
from tests.ports import free_port

pytestmark = pytest.mark.slow

ROUNDS = 3
NOISE = {"anna": 0.0, "ben": 0.25}


def says(name, answers):
  """Returns the place of the answer that somebody prefers; None for a tie."""
  counts = [answer.count(tiny_runs.PLANTED) for answer in answers]
  if counts[0] == counts[1]:
    return None
  best = counts.index(max(counts))
  words = sorted(" ".join(re.findall("[a-z]+", text)) for text in answers)
  return 1 - best if draw(0, name, *words) < NOISE[name] else best


async def work(page, link, name):
  """Labels with keys until nothing is left."""
  await page.goto(link)
  mark, _, answers = await turn_of(page)
  while mark.startswith("item"):
    place = says(name, answers)
    await page.keyboard.press("t" if place is None else "12"[place])
    await page.keyboard.press("Enter")
    mark, _, answers = await turn_of(page, mark)
  assert mark.startswith("done")


def people_of(served):
  """Returns what anna and ben do in a browser, each in a window of theirs."""

  async def both(browser):
    pages = [await (await browser.new_context()).new_page() for _ in NOISE]
    await asyncio.gather(
      *(
        work(page, served.link(name), name)
        for page, name in zip(pages, NOISE, strict=True)
      )
    )

  return both


@pytest.fixture
def attended(monkeypatch):
  """Has people at the page wherever one is served; returns its ports."""
  serve, wait_for, ports, working = loop.serve, loop.wait_for, [], []

  @contextlib.contextmanager
  def serve_people(store, port):
    with (
      serve(store, port) as page,
      concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
      ports.append(port)
      working.append(pool.submit(in_browser, people_of(page)))
      yield page
      working[-1].result()  # what went wrong in the browser

  def wait(store, batch):
    def has_failed():
      return working[-1].done() and working[-1].exception() is not None

    return wait_for(store, batch, poll_seconds=0.05, should_stop=has_failed)

  monkeypatch.setattr(loop, "serve", serve_people)
  monkeypatch.setattr(loop, "wait_for", wait)
  return ports


def votes_of(records):
  """Returns annotator -> unit -> first preferred, second, tie: 1, -1, 0."""
  found = {name: {} for name in NOISE}
  for record in records:
    pair = sorted(zip(record["answers"], record["ranks"], strict=True))
    unit = record["prompt"], pair[0][0], pair[1][0]
    found[record["annotator"]][unit] = int(np.sign(pair[1][1] - pair[0][1]))
  return found


def test_people_at_the_page_label_every_round(files, attended, tmp_path):
  (tmp_path / "gold.py").write_text(
    f"def planted(texts):\n"
    f"  return [text.count({tiny_runs.PLANTED!r}) for text in texts]\n"
  )
  config = make_config(files, "none", policy_start="last")
  config.rounds.count = ROUNDS
  port = free_port()
  config.labels.update(by="page", people="anna,ben", port=port)
  config.labels.preference = defaults.iterate().labels.preference
  config.annotators = defaults.iterate().annotators
  config.policy.schedule.steps = 6
  config.policy.force = True
  config.evaluation.reward_fn = f"{tmp_path / 'gold.py'}:planted"
  folder = tmp_path / "run"
  numbers = pipelines.run(config, folder)
  assert attended == [port] * ROUNDS and numbers["judge"] == "verifier"
  assert [row["round"] for row in numbers["rounds"]] == [1, 2, 3]
  for row in numbers["rounds"]:
    where = folder / f"round_{row['round']}"
    records = iterated.read(where / "labels.jsonl")
    items = {x["item"] for x in iterated.read(where / "items.jsonl")}
    told = {(x["annotator"], x["item"]) for x in records}
    assert told == {(name, item) for name in NOISE for item in items}
    for record in records:  # what was pressed, of the answers as they stood
      shown = record["shown"]
      place = says(record["annotator"], [record["answers"][i] for i in shown])
      ranks = [record["ranks"][i] for i in shown]
      assert ranks == ([0, 0] if place is None else [place, 1 - place])
      assert record["round"] == row["round"]
    anna, ben = votes_of(records).values()
    agreed = np.mean([anna[unit] == ben[unit] for unit in anna])
    np.testing.assert_allclose(row["agreement"], agreed)
    texts = tiny_runs.rows_of(where / "evaluation", "texts.jsonl")
    for side in ("before", "after"):
      gold = np.mean([x[side].count(tiny_runs.PLANTED) for x in texts])
      np.testing.assert_allclose(row[f"judge_{side}"], gold)
    assert row["judge_after"] > row["judge_before"] + 1  # they like the word
  page = (folder / "report.html").read_text()
  assert "What answers are worth (verifier)" in page
  assert "Agreement of annotators" in page
