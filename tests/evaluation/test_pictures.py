"""Pictures as files: their names, and their numbers as CSV."""

import csv
import io
import math

import numpy as np

from rlhf_jax.data import statistics
from rlhf_jax.evaluation import figures, pictures, report
from rlhf_jax.evaluation import reward_model as rm


def table(picture):
  return list(csv.reader(io.StringIO(pictures.csv_text(picture))))


def test_a_curve_as_csv_with_gaps_and_all_of_its_points():
  curve = figures.Curve(
    "KL, to the start",
    "nats",
    {"k1": ([1, 2], [0.5, None]), "k3": ([1, 2], [np.float32(0.25), math.nan])},
  )
  (picture,) = pictures.of_curves([curve], "policy")
  assert picture.name == "policy_kl_to_the_start"
  assert table(picture) == [
    ["series", "step", "nats"],
    ["k1", "1", "0.5"],
    ["k1", "2", ""],
    ["k3", "1", "0.25"],
    ["k3", "2", ""],
  ]
  long = figures.Curve("t", "y", {"a": (range(1000), np.arange(1000.0))})
  assert len(table(pictures.of_curves([long], "x")[0])) == 1001


def test_the_numbers_of_the_other_pictures():
  calibration = rm.calibration([2.0, -1.0, 0.3], [1.0, 1.0, 0.0])
  bias = {"length_difference": [3, -1], "score_difference": [0.5, 0.25]}
  one, two = pictures.of_reward_model(calibration, bias | {"rho": 0.1})
  counts = [int(row[2]) for row in table(one)[1:]]
  assert sum(counts) == 3 and counts == list(calibration["counts"])
  assert table(two)[1:] == [["3", "0.5"], ["-1", "0.25"]]
  (scores,) = pictures.of_histograms(
    [figures.Histogram("gold scores", "score", {"before": [1.5], "after": [2]})]
  )
  assert table(scores) == [
    ["series", "score"],
    ["before", "1.5"],
    ["after", "2"],
  ]
  lengths = {"prompt": statistics.summary([4, 4, 5])}
  (picture,) = pictures.of_lengths("sft", lengths)
  assert table(picture)[1:] == [["prompt", "4", "5", "2"], ["prompt", *"561"]]
  assert picture.notes == [
    "Prompt: mean 4.3, median 4, 95 % up to 5, longest 5"
  ]


def test_names_of_files_are_plain_whatever_a_title_is():
  assert pictures.slug("Policy", "KL / ../x\n\u202e=cmd") == "policy_kl_x_cmd"
  assert pictures.slug("日本") == "picture"
  assert len(pictures.slug("a" * 300)) == 80


def test_a_report_writes_each_picture_as_png_and_csv(tmp_path):
  curve = figures.Curve("Loss", "nats", {"a": ([1, 2], [3.0, 2.0])})
  empty = figures.Curve("Nothing", "x", {"a": ([1], [None])})
  source = report.Report(
    title="t",
    curves=[curve, curve, empty],
    stages=[report.Stage("SFT", curves=[curve])],
    data=[
      report.Source(
        "sft",
        "sft, validation",
        "x.jsonl",
        3,
        lengths={"all": statistics.summary([1, 2])},
      )
    ],
  )
  report.write_report(tmp_path / "report.html", source)
  names = {
    "policy_loss",
    "policy_loss_2",
    "sft_loss",
    "lengths_sft_sft_validation",
  }
  found = {path.name for path in (tmp_path / "figures").iterdir()}
  assert found == {f"{x}.{end}" for x in names for end in ("png", "csv")}
  page = (tmp_path / "report.html").read_text()
  for name in names:
    assert f"figures/{name}.png, .csv" in page
  assert (tmp_path / "figures/sft_loss.png").read_bytes()[:4] == b"\x89PNG"
