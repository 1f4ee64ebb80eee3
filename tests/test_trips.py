"""How many files a value passes on its way: what tests.proofs.trips watches."""

import pytest

from tests.proofs import trips

MOST = {"clip_ratio": 6, "PPO gradient": 7, "jsonl line": 9, "mesh.fsdp": 5}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  root = tmp_path_factory.mktemp("trips")
  return {
    "jsonl line": trips.of_a_line(_made(root / "line")),
    "mesh.fsdp": trips.of_fsdp(_made(root / "mesh")),
  }


def _made(folder):
  folder.mkdir()
  return folder


@pytest.mark.parametrize("name", ["jsonl line", "mesh.fsdp"])
def test_a_trip_stays_short(found, name):
  assert 3 < len(found[name]) <= MOST[name], found[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip_ratio", "PPO gradient"])
def test_a_trip_through_an_update_stays_short(tmp_path, name):
  files = trips.of_clip_ratio_and_gradient(tmp_path)[name]
  assert 3 < len(files) <= MOST[name], files


def test_what_holds_a_value():
  assert trips.holds({"a": 7}, 7, 1) and not trips.holds({"a": 7}, 7, 0)
  assert trips.holds({"a": {"b": 7}}, 7, 2) and not trips.holds([8.0], 8, 1)
