"""The HTML report: escaping, self-containment, missing parts, gaps."""

import html.parser
import math
import re

import numpy as np
import pytest

from rlhf_jax.evaluation import canvas, figures, report
from rlhf_jax.evaluation import reward_model as rm

ATTACK = "<script>x()</script>"
# Elements of HTML and SVG that need no closing tag.
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(html.parser.HTMLParser):
  """Reads tags, attributes and text; checks that tags are balanced."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.text, self.ids = [], [], [], []
    self.open = []
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    self.ids += [value for name, value in attrs if name == "id"]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def full_report(text="plain", pairs=60):
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(pairs, 2))
  labels = (rng.random(pairs) < 0.7).astype(float)
  lengths = rng.integers(3, 20, scores.shape)
  delta = scores[:, 0] - scores[:, 1]
  steps = [1, 2, 3, 4]
  return report.Report(
    title=f"Title {text}",
    subtitle=f"Subtitle {text}",
    facts=[("Seed", 0), (f"Fact {text}", f"value {text}")],
    caveats=[f"Caveat {text}"],
    summary_rows=[
      report.SummaryRow(
        f"Gold {text}", 0.0, -1.5, 0.06, f"Why {text}", is_headline=True
      ),
      report.SummaryRow("Win rate", None, 0.902, math.nan, decimals=3),
    ],
    curves=[
      figures.Curve(
        f"Reward {text}",
        f"unit {text}",
        {f"proxy {text}": (steps, [0, 1, None, 3]), "gold": ([2, 4], [1, 2])},
        {f"halt {text}": 2.0, "target": 0.5},
        caption=f"Caption {text}",
      )
    ],
    phase_seconds={f"Load {text}": 6.25, "PPO": 175.0},
    calibration=rm.calibration(delta, labels),
    length_bias={
      "length_difference": lengths[:, 0] - lengths[:, 1],
      "score_difference": delta,
      "rho": -0.31,
    },
    histograms=[
      figures.Histogram(
        f"Scores {text}", "score", {"before": [0, 1, 2], "after": [1, 2, 4]}
      )
    ],
    samples=[
      {
        "prompt": f"Prompt {text}",
        "before": f" before {text}",
        "after": f" after {text}",
        "proxy_before": 0.0,
        "proxy_after": 1.25,
        "gold_before": None,
      }
    ],
    warnings=[("warn", f"Careful {text}")],
  )


@pytest.fixture(scope="module")
def attacked():
  return report.render_report(full_report(ATTACK))


def test_user_text_is_escaped_everywhere(attacked):
  page = Page(attacked)
  assert "script" not in page.tags and "img" not in page.tags
  assert not [name for name, _ in page.attributes if name.startswith("on")]
  shown = "".join(page.text)
  for where in (
    *("Title", "Subtitle", "Fact", "value", "Caveat", "Gold", "Why", "Reward"),
    *("unit", "proxy", "halt", "Caption", "Load", "Scores", "Prompt"),
    *(" before", " after", "Careful"),
  ):
    assert f"{where} {ATTACK}" in shown, where


def test_page_is_self_contained(attacked):
  page = Page(attacked)
  for name, value in page.attributes:
    if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
      assert value == "data:," or value.startswith("#"), (name, value)
  assert not re.search(r"https?://|@import|url\((?!#)", attacked)
  assert "default-src 'none'" in attacked


def test_ids_are_unique_and_every_reference_resolves(attacked):
  ids = Page(attacked).ids
  assert len(ids) == len(set(ids)) > 0
  used = set(re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', attacked))
  assert {a or b for a, b in used} <= set(ids)


def test_colours_follow_the_theme(attacked):
  svgs = "".join(re.findall(r"<svg.*?</svg>", attacked, re.S))
  assert "var(--after)" in svgs and "var(--gold)" in svgs
  assert not re.search(r"#[0-9a-f]{6}\b", svgs)
  for name in re.findall(r"var\(--(\w+)\)", attacked):
    assert f"--{name}: {canvas.PALETTE[name][1]};" in attacked


def test_empty_report_leaves_every_part_out():
  text = report.render_report(report.Report(title="Only a title"))
  page = Page(text)
  assert not {"h2", "table", "svg", "figure", "ul", "dl"} & set(page.tags)
  assert "Only a title" in page.text


@pytest.mark.parametrize(
  ("field", "empty", "heading"),
  [
    ("facts", (), "What ran"),
    ("caveats", (), "Read this with care"),
    ("summary_rows", (), "Before and after"),
    ("phase_seconds", None, "Where the time went"),
    ("samples", (), "The same prompts"),
    ("warnings", (), 'class="warnings"'),
  ],
)
def test_missing_part_is_left_out(field, empty, heading):
  source = full_report()
  kept = {field, "title"}
  only = {name: getattr(source, name) for name in kept}
  assert heading in report.render_report(report.Report(**only))
  only[field] = empty
  assert heading not in report.render_report(report.Report(**only))


def test_reward_model_pictures_of_no_pairs_are_left_out():
  none = report.Report(
    title="t",
    calibration=rm.calibration([], []),
    length_bias={
      "length_difference": [],
      "score_difference": [],
      "rho": math.nan,
    },
  )
  assert "Reward model" not in report.render_report(none)
  assert "Reward model" in report.render_report(full_report())


def test_curve_without_a_finite_value_is_left_out():
  empty = figures.Curve("Nothing", "x", {"a": ([1, 2], [None, math.nan])})
  text = report.render_report(report.Report(title="t", curves=[empty]))
  assert "Nothing" not in text


def test_trap_18_zero_is_shown_and_missing_is_a_dash():
  text = report.render_report(full_report())
  row = re.search(r"<tr><td>Gold plain.*?</tr>", text)[0]
  assert re.findall(r">([^<>]+)</td>", row)[1:] == ["0.00", "−1.50", "0.06"]
  row = re.search(r"<tr><td>Win rate.*?</tr>", text)[0]
  assert re.findall(r">([^<>]+)</td>", row)[1:] == ["–", "0.902", "–"]
  assert "proxy <b>0.00</b>" in text.replace("+", "")
  assert "gold <b>" not in text


def test_gaps_break_the_line():
  values = figures.with_gaps([1.0, None, math.inf, math.nan, 0.0])
  np.testing.assert_array_equal(values, [1, np.nan, np.nan, np.nan, 0])
  steps = list(range(7))
  whole = figures.Curve("t", "y", {"a": (steps, [0, 1, 2, 3, 2, 1, 0])})
  gap = figures.Curve("t", "y", {"a": (steps, [0, 1, None, 3, None, 1, 0])})

  def segments(curve):
    """Moves of the pen in the clipped line of the series."""
    svg = canvas.inline_svg(figures.draw_curve, curve, "k")
    paths = re.findall(r'<path d="([^"]*)"[^>]*var\(--after\)', svg)
    return max(path.count("M") for path in paths)

  assert segments(whole) == 1
  assert segments(gap) >= 2


def test_a_point_between_gaps_is_drawn_as_a_dot():
  drawn = []
  for values in ([1, None, 2, None, 3, 3], [1, None, None, None, 3, 3]):
    curve = figures.Curve("t", "y", {"a": (range(6), values)})
    svg = canvas.inline_svg(figures.draw_curve, curve, "k")
    drawn.append(len(re.findall(r"<use [^>]*var\(--after\)", svg)))
  assert drawn[0] == drawn[1] + 1


def test_block_means_by_hand(monkeypatch):
  monkeypatch.setattr(figures, "MAX_POINTS", 2)
  steps, values, size = figures.block_means(
    np.arange(5.0), np.array([1, np.nan, 3, np.nan, np.nan])
  )
  assert size == 3
  np.testing.assert_allclose(steps, [1.0, 3.5])
  np.testing.assert_allclose(values, [2.0, np.nan])


def test_steps_and_values_must_match():
  curve = figures.Curve("KL", "nats", {"kl": ([1, 2, 3], [1.0, 2.0])})
  with pytest.raises(ValueError, match="'KL', 'kl': 3 steps but 2 values"):
    report.render_report(report.Report(title="t", curves=[curve]))


def test_colours_by_meaning():
  light = canvas.LIGHT
  assert figures.colours_of(["before", "after", "Gold reward"]) == [
    *(light["before"], light["after"], light["gold"]),
  ]
  assert len(set(figures.colours_of(["a", "b", "c", "d"]))) == 4
  assert len(set(light.values())) == len(light)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("warnings", ["careful"], "a warning is"),
    ("warnings", [("loud", "careful")], "'loud'"),
    ("samples", [{"prompt": "a", "before": "b"}], r"samples\[0\] has no"),
  ],
)
def test_report_refuses(field, value, message):
  with pytest.raises(ValueError, match=message):
    report.Report(title="t", **{field: value})


def test_numbers_and_durations():
  assert report.number(-1234.567, 1) == "−1,234.6"
  assert report.number(0.0, sign=True) == "+0.00"
  assert report.number(None) == report.number(math.nan) == "–"
  seconds = [6.25, 47.6, 345, 59.7, 12_000]
  assert [report.duration(value) for value in seconds] == [
    *("6.2 s", "48 s", "5 min 45 s", "1 min 00 s", "3 h 20 min"),
  ]


def test_write_report_and_overview(tmp_path):
  source = full_report()
  report.write_report(tmp_path / "new" / "report.html", source)
  written = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
  assert written == report.render_report(source)
  report.write_overview_png(tmp_path / "overview.png", source, 40)
  data = (tmp_path / "overview.png").read_bytes()
  assert data.startswith(b"\x89PNG")
  width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
  assert (width, height) == (480, 248)
  with pytest.raises(ValueError, match="nothing to draw"):
    report.write_overview_png(tmp_path / "no.png", report.Report(title="t"))


def test_overview_prefers_curves_then_scores_then_calibration():
  source = full_report()
  curve = source.curves[0]
  many = report.Report(
    title="t",
    curves=[
      figures.Curve(str(i), "y", curve.series, curve.lines) for i in range(9)
    ],
    histograms=source.histograms,
    calibration=source.calibration,
  )
  titles = [title for title, _, _ in report._panels(many)]
  assert titles == [*"0123", "Scores plain", "Reward model calibration"]
