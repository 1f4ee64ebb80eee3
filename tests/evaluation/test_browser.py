"""The samples of a report: orders, filters, colours, tabs, escaping."""

import math
import re

import pytest

from rlhf_jax.data import statistics
from rlhf_jax.evaluation import browser, figures, report
from tests.evaluation.test_report import Page, full_report

HOSTILE = [
  "<script>alert(1)</script>",
  '"><img src=x onerror=alert(1)>',
  "</style><style>*{display:none}",
  "</div></article></main><h1>gone",
  "javascript:alert(1)",
  "{{ 7 * 7 }}{% raw %}",
  "<!--",
  "]]><svg onload=alert(1)>",
  "&lt;b&gt; &amp; &#60;",
  "\u202eright to left\u2028\u2029\x00\x1b[31m",
]


def sample(before, after, **more):
  texts = {"prompt": "p", "before": "b", "after": "a"}
  return texts | {"gold_before": before, "gold_after": after} | more


def test_places_by_hand():
  values = [0.5, None, 2.0, -1.0, 0.5]
  last = browser.LAST
  assert browser.places(values, is_rising=False) == [1, last, 0, 3, 2]
  assert browser.places(values, is_rising=True) == [1, last, 3, 0, 2]


def test_orders_filters_and_gains_by_hand():
  found = browser.make(
    [
      sample(0.0, 1.0, kl=2.0, proxy_after=3.0),
      sample(1.0, 0.5, kl=0.5, proxy_after=1.0),
      sample(1.0, 1.0, kl=math.nan, proxy_after=2.0),
      sample(None, 4.0),
    ]
  )
  assert found.judge == "gold"
  assert [row["class"] for row in found.rows] == ["better", "worse", "even", ""]
  assert found.filters == [
    ("better", "better", 1),
    ("worse", "worse", 1),
    ("even", "as before", 1),
  ]
  assert [key for key, _ in found.orders] == ["gold", "proxy", "gain", "kl"]
  assert [key for key, _ in found.rows[0]["places"]] == [
    f"{x}-{way}"
    for x in ("gold", "proxy", "gain", "kl")
    for way in ("high", "low")
  ]
  places = [dict(row["places"]) for row in found.rows]
  last = browser.LAST
  assert [x["gain-high"] for x in places] == [0, 2, 1, last]
  assert [x["kl-low"] for x in places] == [1, 0, last, last]
  assert [x["gold-high"] for x in places] == [1, 3, 2, 0]
  assert [row["shown_gain"] for row in found.rows] == [
    *("+1.00", "−0.50", "+0.00", "–"),
  ]


def test_samples_without_numbers_have_no_orders():
  found = browser.make([{"prompt": "p", "before": "b", "after": "a"}])
  assert found.orders == [] and found.filters == [] and found.judge == ""


@pytest.mark.parametrize(
  ("ratio", "name"),
  [
    (0.0, ""),
    (0.24, ""),
    (0.25, "u1"),
    (-0.25, "d1"),
    (1.0, "u2"),
    (-1.5, "d3"),
    (40.0, "u3"),
    (math.nan, ""),
    (math.inf, ""),
  ],
)
def test_shades(ratio, name):
  assert browser.shade(ratio) == name


def test_tokens_are_coloured_and_make_up_the_answer():
  pieces = [(" plain", 0.1), (" <b>up", 1.2), ("\n& down", -2.0)]
  row = sample(0, 1, pieces=pieces) | {"after": "".join(x for x, _ in pieces)}
  text = report.render_report(report.Report(title="t", samples=[row]))
  assert '<span class="u2" title="+1.20"> &lt;b&gt;up</span>' in text
  assert '<span class="d3" title="−2.00">\n&amp; down</span></div>' in text
  assert "</mark> plain<span" in text
  assert row["after"] in "".join(Page(text).text)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_a_policy_wrote_becomes_html(text):
  pieces = [(text, 2.0), (text, 0.0)]
  row = sample(0.0, 1.0, pieces=pieces)
  row |= {"prompt": f"p {text}", "before": f"b {text}", "after": text}
  quiet = sample(0.0, 1.0, pieces=[("x", 2.0), ("x", 0.0)])
  data = statistics.summary([1, 2])

  def page_of(one, said):
    found = report.Report(
      title="t",
      samples=[one, one],
      stages=[report.Stage(said, [(said, said)])],
      data=[report.Source(said, said, said, 1, {said: 2}, {"all": data})],
      curves=[figures.Curve("t", said, {said: ([1, 2], [1, 2])})],
    )
    return Page(report.render_report(found))

  page, harmless = page_of(row, text), page_of(quiet, "x")
  assert page.tags == harmless.tags
  names = [name for name, _ in page.attributes]
  assert names == [name for name, _ in harmless.attributes]
  shown = "".join(page.text)
  for part in (f"p {text}", f"b {text}", text + text):
    assert part.replace("\x00", "\ufffd") in shown.replace("\x00", "\ufffd")


def whole_report():
  source = full_report()
  more = {
    "stages": [
      report.Stage("SFT", [("steps", "9")], source.curves),
      report.Stage("Reward model", [("accuracy", "0.7")], source.curves),
    ],
    "data": [
      report.Source(
        "sft",
        "sft",
        "demos.jsonl",
        1200,
        {"cut at max_length": 7},
        {"all": statistics.summary([3, 4, 9])},
      )
    ],
  }
  return report.Report(**vars(source) | more)


def test_every_tab_has_its_part_and_every_part_its_tab():
  text = report.render_report(whole_report())
  tabs = re.findall(r'name="part" id="part-([\w-]+)"', text)
  assert tabs == [
    *("overview", "samples-tab", "policy", "stage-0", "stage-1", "data"),
  ]
  assert re.findall(r'class="panel ([\w-]+)"', text) == [
    *("overview", "samples-tab", "policy", "stage-0", "stage-1", "data"),
  ]
  for key in tabs:
    assert f"main:has(#part-{key}:checked) > .panel:not(.{key})" in text
    assert f'for="part-{key}"' in text
  assert text.count("checked>") == 4  # a tab, an order, its way and a filter
  panels = text.split('<div class="panel ')
  reward = next(panel for panel in panels if panel.startswith("stage-1"))
  assert "Calibration" in reward and "<dd>0.7</dd>" in reward
  data = next(panel for panel in panels if panel.startswith("data"))
  for said in ("demos.jsonl", "1,200", "cut at max_length", "longest 9"):
    assert said in data


def test_every_order_and_filter_has_its_rule():
  text = report.render_report(whole_report())
  keys = re.findall(r'id="order-([\w-]+)"', text)
  assert keys == ["drawn", "proxy", "gain"]
  assert re.findall(r'id="way-(\w+)"', text) == ["high", "low"]
  for key in keys[1:]:
    for way in ("high", "low"):
      chosen = f"has(#order-{key}:checked):has(#way-{way}:checked)"
      assert f"{chosen} .sample {{ order: var(--{key}-{way}); }}" in text
      assert re.search(rf'class="sample [^>]*--{key}-{way}:\d+;', text)
  assert "#only-better:checked) .sample:not(.better)" in text


def test_an_unfinished_report_has_no_tabs():
  text = report.render_report(report.Report(title="t", facts=[("a", 1)]))
  assert 'name="part"' not in text
