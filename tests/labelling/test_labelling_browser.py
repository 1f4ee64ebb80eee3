"""The labelling page in a real browser: people at work, a kill, hostile texts.

Simulated annotators press keys and buttons as people do. What they prefer is
planted: the answer of higher quality, or the other one where a draw of their
own says so; so every record that must come out is known beforehand.
"""

import asyncio
import collections
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from rlhf_jax.labelling import panel
from rlhf_jax.labelling.loop import serve
from rlhf_jax.labelling.store import Store
from rlhf_jax.labelling.task import Task, draw
from tests.labelling.test_labelling_store import store
from tests.ports import free_port

playwright = pytest.importorskip(
  "playwright.async_api", reason="pip install playwright"
)
pytest.importorskip("uvicorn", reason="pip install -e '.[label]'")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
  pytest.skip("no chromium is installed", allow_module_level=True)
pytestmark = pytest.mark.slow

NOISE = {"anna": 0.05, "ben": 0.25}
ITEMS, QUALITIES = 100, 10
SECONDS = 20_000  # milliseconds that the page may take for one step
ANSWER = re.compile(r"quality (\d+) ")
PATIENCE = {"timeout": SECONDS}


def in_browser(work, **context):
  """Runs work(browser) in Chromium; returns what it returns."""

  async def run():
    async with playwright.async_playwright() as found:
      browser = await found.chromium.launch(
        executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
      )
      try:
        return await work(browser)
      finally:
        await browser.close()

  return asyncio.run(run())


def planted_items():
  """Pairs of answers of known quality, each two qualities about as often."""
  pairs = [(a, b) for a in range(QUALITIES) for b in range(a)]
  rows = []
  for n in range(ITEMS):
    pair = pairs[n % len(pairs)]
    answers = [f"An answer of quality {q} to {n}." for q in pair]
    rows.append(
      {"item": f"i{n}", "prompt": f"Question {n}", "answers": answers}
    )
  return rows


def prefers(name, prompt, answers):
  """Returns the place of the answer that somebody says is better."""
  qualities = [int(ANSWER.search(answer)[1]) for answer in answers]
  best = qualities.index(max(qualities))
  return 1 - best if draw(0, name, prompt) < NOISE[name] else best


async def turn_of(page, before=""):
  """Waits for the next item; returns (its mark, prompt, answers)."""
  await page.wait_for_function(
    "before => (document.getElementById('item').dataset.turn || before) !== "
    "before",
    arg=before,
    **PATIENCE,
  )
  mark = await page.get_attribute("#item", "data-turn")
  texts = await page.locator("#item .text").all_inner_texts()
  return mark, (texts or [""])[0], texts[1:]


async def with_keys(page, place):
  await page.keyboard.press(["ArrowLeft", "2"][place])
  await page.keyboard.press("Enter")
  await page.keyboard.press("Enter")  # twice, by mistake


async def with_fingers(page, place):
  await page.get_by_role("button", name=f"Answer {place + 1}").tap()
  submit = page.get_by_role("button", name="Submit")
  await submit.dblclick(no_wait_after=True)


async def work(page, name, link, answer, seen):
  """Labels until nothing is left; every ninth time it changes its mind."""
  await page.goto(link)
  mark, prompt, answers = await turn_of(page)
  while mark.startswith("item"):
    place = prefers(name, prompt, answers)
    is_ninth = len(seen) % 9 == 8
    await answer(page, 1 - place if is_ninth else place)
    following = await turn_of(page, mark)
    if is_ninth:
      await page.keyboard.press("u")
      back = await turn_of(page, following[0])
      assert back == (mark, prompt, answers)
      pressed = page.locator(".choice[aria-pressed=true]")
      assert f"Answer {2 - place}" in await pressed.first.inner_text()
      await answer(page, place)
      following = await turn_of(page, mark)
    seen.append((prompt, place))
    mark, prompt, answers = following
  assert mark.startswith("done")


def start(folder, port):
  """Starts the command; returns the process and name -> link."""
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "rlhf_jax.label", "items.jsonl"),
      *("--annotators=anna,ben", "--overlap=2", f"--port={port}"),
      *("--check-share=0", "--gold-share=0"),
    ],
    cwd=folder,
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {"PYTHONUNBUFFERED": "1"},
  )
  links = {}
  for line in process.stdout:
    if "http://" in line:
      name, link = line.split()
      links[name] = link
    if line.startswith("Each link"):
      break
  assert len(links) == 3
  return process, links


def test_two_people_label_200_through_a_kill(tmp_path):
  (tmp_path / "items.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in planted_items())
  )
  port = free_port()
  process, links = start(tmp_path, port)
  seen = {name: [] for name in NOISE}

  async def both(browser):
    desk = await browser.new_context(viewport={"width": 1440, "height": 900})
    phone = await browser.new_context(
      viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    one, other = await desk.new_page(), await phone.new_page()
    errors = []
    for page in (one, other):
      page.on("pageerror", lambda error: errors.append(str(error)))
    working = asyncio.gather(
      work(one, "anna", links["anna"], with_keys, seen["anna"]),
      work(other, "ben", links["ben"], with_fingers, seen["ben"]),
    )
    while sum(map(len, seen.values())) < 90 and not working.done():
      await asyncio.sleep(0.02)
    nonlocal process
    process.send_signal(signal.SIGKILL)
    process.wait()
    await asyncio.sleep(0.3)  # they go on answering; nobody listens
    process, again = await asyncio.to_thread(start, tmp_path, port)
    assert again == links
    await working
    assert not errors

  try:
    in_browser(both)
  finally:
    process.terminate()
    process.wait()
  with Store(tmp_path / "items-labelling") as found:
    records = found.records()
    agreement = panel.agreement(found)
  # Nothing is lost, nothing doubled, all is what was pressed last.
  said = {(x["annotator"], x["prompt"]): x for x in records}
  assert len(records) == len(said) == 2 * ITEMS
  places = {(who, prompt): x for who in seen for prompt, x in seen[who]}
  assert places.keys() == said.keys()
  for key, record in said.items():
    assert record["ranks"][record["shown"][places[key]]] == 0
    best = prefers(*key, record["answers"])
    assert record["ranks"][best] == 0 and record["ranks"][1 - best] == 1
    assert record["seconds"] >= 0
  # The noise of each and their agreement are those that were planted.
  flips = {
    name: {
      f"Question {n}"
      for n in range(ITEMS)
      if draw(0, name, f"Question {n}") < noise
    }
    for name, noise in NOISE.items()
  }
  expected = 1 - len(flips["anna"] ^ flips["ben"]) / ITEMS
  assert agreement["pairs"] == ITEMS
  assert agreement["raw"] == pytest.approx(expected)
  assert abs(expected - (0.95 * 0.75 + 0.05 * 0.25)) < 0.13  # 3 deviations
  first = [x["shown"][0] for x in records]
  assert 70 < sum(first) < 130
  # And the order of the answers is the planted one.
  wins = collections.Counter()
  for record in records:
    winner = record["answers"][record["ranks"].index(0)]
    wins[int(ANSWER.search(winner)[1])] += 1
  order = sorted(range(QUALITIES), key=lambda q: wins[q])
  inversions = sum(
    order[i] > order[j] for j in range(QUALITIES) for i in range(j)
  )
  assert inversions <= 4, order


HOSTILE = [
  "<script>document.title = 'owned'</script>",
  "<img src=x onerror=\"document.title='owned'\"><svg onload=alert(1)>",
  "[a](javascript:alert(1)) \u0000\u0007\u001b[31m \u202eevil\u202c &lt;b&gt;",
  "x" * 300_000,
  "שלום עולם, זו תשובה.",
]


def test_texts_of_models_stay_texts(tmp_path):
  with store(tmp_path, overlap=3, reasons="no") as found:
    rows = [
      {
        "item": "a",
        "prompt": HOSTILE[0],
        "answers": HOSTILE,
        "language": "'\" onload=alert(1)",
      },
    ]
    found.add_items(rows)
    found.set_guidelines("# Rules\n" + "\n".join(HOSTILE[:3]))
    found.add_annotator(HOSTILE[1][:79])
    label_all(found, HOSTILE[1][:79])

    async def look(browser):
      await look_at(browser, "light", 1440)
      await look_at(browser, "dark", 390)

    async def look_at(browser, scheme, width):
      context = await browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme
      )
      page = await context.new_page()
      said, asked = [], []
      page.on("console", lambda x: said.append(x.text))
      page.on("dialog", lambda x: said.append(x.message))
      page.on("request", lambda x: asked.append(x.url))
      with serve(found) as served:
        await page.goto(served.link("anna"))
        await turn_of(page)
        texts = await page.locator("#item .answer .text").all_inner_texts()
        counts = await page.evaluate(
          "['script', 'img', 'svg', 'b', 'a:not(.skip-link)'].map(x => "
          "document.body.querySelectorAll(x).length)"
        )
        wide = await page.evaluate(
          "document.documentElement.scrollWidth <= innerWidth"
        )
        hebrew = await page.evaluate(
          "[...document.querySelectorAll('.text')].filter(x => getComputed"
          "Style(x).direction === 'rtl').map(x => x.innerText)"
        )
        assert await page.evaluate("location.hash") == ""
        await page.goto(served.admin())
        await page.wait_for_selector("#people tbody tr", **PATIENCE)
        assert await page.title() == "Which answer is better?: admin"
      assert sorted(map(len, texts))[-1] == 20_000  # and a button
      assert sum(HOSTILE[0] == x for x in texts) == 1
      assert any(
        "[U+0000][U+0007][U+001B][31m [U+202E]evil" in x for x in texts
      )
      assert counts == [2, 0, 0, 0, 0] and wide
      assert hebrew == [HOSTILE[4]]
      assert not said
      assert all(x.startswith(served.address) for x in asked)
      assert "#" not in "".join(asked) and "token" not in "".join(asked)
      await context.close()

    in_browser(look)


def label_all(found, name):
  turn = found.next_item(name)
  found.submit(name, turn.assignment, {"ranks": [0, 1, 2, 3, 4]}, "x")


def test_a_keyboard_is_enough(tmp_path):
  task = dict(
    dimensions=("kind", "true"), strengths=True, reasons="required", overlap=2
  )
  with store(tmp_path, order="given", **task) as found:
    found.add_items(
      [
        {"item": "a", "prompt": "p", "answers": ["0", "1"]},
        {"item": "b", "prompt": "q", "answers": ["0", "1", "2", "3"]},
        {"item": "c", "prompt": "r", "answers": ["0", "1"]},
      ]
    )
    found.set_guidelines("Be fair.")

    async def press(browser):
      page = await browser.new_page()
      with serve(found) as served:
        await page.goto(served.link("anna"))
        mark, _, pair = await turn_of(page)
        assert await page.locator("#guidelines").is_visible()  # the first time
        await keys(page, "g", "Enter")
        assert "Choose" in await page.inner_text("#status")
        await keys(page, "1", "3", "2", "Enter")
        assert "true" in await page.inner_text("#status")
        await keys(page, "t", "Enter")  # the reason is missing: goes there
        await page.keyboard.type("so 1 s u")
        await keys(page, "Escape", "Enter")
        mark, _, many = await turn_of(page, mark)
        await keys(page, *"31t4n12n21r")
        await page.keyboard.type("x")
        await keys(page, "Escape", "Enter")
        mark, _, last = await turn_of(page, mark)
        await keys(page, "b", "t", "t", "r")
        await page.keyboard.type("y")
        await keys(page, "Escape", "Tab", "Escape", "Enter")
        if await page.get_attribute("#item", "data-turn") == mark:
          await page.keyboard.press("Enter")
        mark, _, _ = await turn_of(page, mark)
        assert mark.startswith("done")
        return pair, many, last

    pair, many, _ = in_browser(press)
    one, two, three = found.records()
    assert one["ranks"][int(pair[0])] == 0 and one["strength"] == "slightly"
    assert one["objectives"]["kind"][int(pair[1])] == 0
    assert one["objectives"]["true"] == [0, 0] and one["reason"] == "so 1 s u"
    ranks = {int(many[0]): 1, int(many[2]): 0, int(many[3]): 1}
    assert two["ranks"] == [ranks.get(i) for i in range(4)]
    assert two["objectives"]["kind"][int(many[0])] == 0
    assert three["acceptable"] == [False, False] and three["ranks"] == [0, 0]


async def keys(page, *names):
  for name in names:
    await page.keyboard.press(name)


def test_what_was_not_saved_survives_a_reload(tmp_path):
  with store(tmp_path, order="given") as found:
    found.add_items(
      [{"prompt": str(n), "answers": ["a", "b"]} for n in range(2)]
    )
    port = free_port()

    async def press(browser):
      page = await browser.new_page()
      with serve(found, port) as served:
        await page.goto(served.link("anna"))
        mark, _, _ = await turn_of(page)
      await keys(page, "1", "Enter")
      await page.wait_for_selector("#status:has-text('Not saved')", **PATIENCE)
      assert not found.records()
      with serve(found, port):
        await page.reload()
        await turn_of(page)
      return None

    in_browser(press)
    assert len(found.records()) == 1


def test_a_task_that_changed_is_asked_anew(tmp_path):
  """A page that was open goes on; it asked the old questions for ever."""
  with store(tmp_path) as found, serve(found) as served:
    found.add_items(planted_items()[:1])

    async def one(browser):
      page = await browser.new_page()
      await page.goto(served.link("anna"))
      await turn_of(page)
      found.set_task(dataclasses.replace(found.task, dimensions=("kindness",)))
      await page.keyboard.press("1")
      await page.keyboard.press("Enter")
      asked = page.locator("#questions").get_by_text("kindness")
      await asked.first.wait_for(timeout=SECONDS)
      before = await page.get_attribute("#item", "data-turn")
      for key in ("1", "1", "Enter"):
        await page.keyboard.press(key)
      await turn_of(page, before)

    in_browser(one)
    (record,) = found.records()
    assert list(record["objectives"]) == ["kindness"]


def test_a_choice_among_many(tmp_path):
  with store(tmp_path, **vars(Task(ask="choice", gold_share=0.0))) as found:
    found.add_items(
      [{"prompt": str(n), "answers": list("abc")} for n in range(2)]
    )

    async def press(browser):
      page = await browser.new_page()
      with serve(found) as served:
        await page.goto(served.link("anna"))
        mark, _, answers = await turn_of(page)
        await keys(page, "1", "3", "Enter")
        mark, _, _ = await turn_of(page, mark)
        await keys(page, "1", "b", "Enter")
        await turn_of(page, mark)
        return answers[2]

    best = in_browser(press)
    one, two = found.records()
    assert "abc"[one["choice"]] == best and "ranks" not in one
    assert two["choice"] is None and two["acceptable"] == [False] * 3
