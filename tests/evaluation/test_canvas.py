"""The colours of figures and pages: for everybody, in light and in dark."""

import itertools

import numpy as np
import pytest

from rlhf_jax.evaluation import canvas, figures

# How people see who lack one kind of cone: Machado et al. 2009, severity 1.0,
# on linear RGB.
SIGHTS = {
  "usual": np.eye(3),
  "no red": [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
  ],
  "no green": [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
  ],
  "no blue": [
    [1.255528, -0.076749, -0.178779],
    [-0.078411, 0.930809, 0.147602],
    [0.004733, 0.691367, 0.303900],
  ],
}
DIFFERENT = 15.0  # CIELAB units; 2.3 is just noticeable side by side


def linear(colour):
  """Returns linear RGB of "#rrggbb"."""
  values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
  return np.where(
    values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
  )


def lab(rgb):
  """Returns CIELAB of linear RGB, white D65."""
  to_xyz = [
    [0.4124, 0.3576, 0.1805],
    [0.2126, 0.7152, 0.0722],
    [0.0193, 0.1192, 0.9505],
  ]
  found = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
  x, y, z = np.where(found > 0.008856, np.cbrt(found), 7.787 * found + 16 / 116)
  return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one, other, sight):
  seen = [lab(np.array(SIGHTS[sight]) @ linear(x)) for x in (one, other)]
  return float(np.linalg.norm(seen[0] - seen[1]))


def contrast(one, other):
  """Returns the contrast ratio of WCAG 2."""
  low, high = sorted(
    float(np.dot([0.2126, 0.7152, 0.0722], linear(x))) for x in (one, other)
  )
  return (high + 0.05) / (low + 0.05)


def test_known_answers_of_the_measures():
  assert contrast("#000000", "#ffffff") == pytest.approx(21)
  np.testing.assert_allclose(lab(linear("#ffffff")), [100, 0, 0], atol=0.02)
  np.testing.assert_allclose(lab(linear("#ff0000")), [53, 80, 67], atol=0.6)
  # Without red cones this red and this green are hard to tell apart.
  assert distance("#8f6a00", "#6f7a00", "no red") < DIFFERENT
  assert distance("#ff0000", "#0000ff", "no red") > 60


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHTS)
def test_any_two_colours_of_series_are_told_apart(theme, sight):
  for one, other in itertools.combinations(canvas.SERIES, 2):
    pair = canvas.PALETTE[one][theme], canvas.PALETTE[other][theme]
    assert distance(*pair, sight) >= DIFFERENT, (one, other)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_marks_and_text_stand_out_from_what_is_behind_them(theme):
  behind = [canvas.PALETTE[name][theme] for name in ("page", "card")]
  least = {name: 3.0 for name in canvas.SERIES} | {"ink": 7, "muted": 4.5}
  for name, ratio in least.items():
    colour = canvas.PALETTE[name][theme]
    assert min(contrast(colour, x) for x in behind) >= ratio, name


def test_series_differ_by_their_dashes_too():
  curve = figures.Curve(
    "t", "y", {name: ([1, 2], [i, i]) for i, name in enumerate("abcd")}
  )
  with canvas.styled():
    figure, axes = canvas.new_figure(canvas.SMALL_INCHES)
    figures.draw_curve(axes[0, 0], curve)
    lines = [x for x in axes[0, 0].lines if x.get_label() in set("abcd")]
  styles = {str(line._dash_pattern) for line in lines}
  assert len(lines) == 4 and len(styles) == 4


def test_one_drawing_is_a_page_picture_and_a_file():
  curve = figures.Curve("KL", "nats", {"k1": ([1, 2, 3], [0.5, 1.0, 2.0])})
  svg, png = canvas.svg_and_png(figures.draw_curve, curve, "k", "KL <b>")
  assert svg == canvas.inline_svg(figures.draw_curve, curve, "k")
  assert png.startswith(b"\x89PNG")
  width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
  assert (width, height) == (670, 430)
