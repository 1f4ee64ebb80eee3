"""People see segments move in a browser, and a key says which is better."""

import pytest

from rlhf_jax.labelling.loop import serve
from rlhf_jax.programs.segments import people
from tests.labelling.test_labelling_browser import PATIENCE, in_browser, turn_of
from tests.labelling.test_labelling_store import store
from tests.programs.test_segment_people import rows

pytestmark = pytest.mark.slow

DRAWN = """() => {
  const found = [...document.querySelectorAll('#item img')];
  return found.length === 2 && found.every((x) => x.complete && x.naturalWidth);
}"""


def test_a_person_sees_both_segments_and_prefers_one(tmp_path):
  seen = []

  async def work(browser):
    page = await browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text))
    await page.goto(link)
    mark, _, answers = await turn_of(page)
    while mark.startswith("item"):
      await page.wait_for_function(DRAWN, **PATIENCE)
      sizes = await page.locator("#item img").evaluate_all(
        "found => found.map(x => [x.naturalWidth, x.alt])"
      )
      assert [x[0] for x in sizes] == [360, 360]
      assert sizes[0][1] == "Drawing of answer 1"
      place = [x.endswith("b") for x in answers].index(True)
      await page.keyboard.press(["1", "2"][place])
      await page.keyboard.press("Enter")
      seen.append(place)
      mark, _, answers = await turn_of(page, mark)
    assert errors == []

  with store(tmp_path, ("me",), both_bad=False) as found:
    found.add_items(rows(), batch="turn 3")
    with serve(found) as page:
      link = page.link("me")
      in_browser(work)
    records = found.records("turn 3")
  label, is_comparable = people.labels(records, [x["item"] for x in rows()])
  assert label.tolist() == [0.0] * 6 and is_comparable.all()
  assert set(seen) == {0, 1}
