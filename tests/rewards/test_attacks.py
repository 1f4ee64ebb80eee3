"""Answers that mean harm, behind each kind of walls, as root and not."""

import json
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rlhf_jax.rewards.sandbox import servers
from tests.rewards.attacks import files, resources, run, system

USER = 54321  # nobody's
SECONDS = 0.5  # of one attack
PROGRAMS = files.PROGRAMS | system.PROGRAMS | resources.PROGRAMS
LIBRARY = os.path.dirname(os.__file__)
PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock", LIBRARY)
PLACES += tuple(
  f"{LIBRARY}/{name}"
  for name in ("__pycache__", "site-packages", "dist-packages")
)
KEY = str(0x526C6866)


@pytest.fixture
def outside():
  """A folder of the run, with what must neither be read nor changed."""
  folder = Path(tempfile.mkdtemp(prefix="rlhf_jax_attacked_"))
  secret = run.PREFIX + secrets.token_hex(8)
  (folder / "secret.txt").write_text(secret)
  (folder / "module.py").write_text(f"word = {secret!r}")
  (folder / "victim.txt").write_text("whole")
  (folder / "home").mkdir()
  (folder / "home/.bashrc").write_text("whole")
  (folder / "empty").mkdir()
  base = sqlite3.connect(folder / "secret.db")
  base.execute("create table secrets (word)")
  base.execute("insert into secrets values (?)", [secret])
  base.commit()
  base.close()
  yield folder
  shutil.rmtree(folder)


def give(folder, user):
  for path in (folder, *folder.rglob("*")):
    os.chown(path, user, user)


def seen(folder):
  """Returns all there is to see of a folder, and of places to leave traces."""
  found = {}
  for path in (folder, *sorted(folder.rglob("*"))):
    facts = path.lstat()
    content = path.read_bytes() if path.is_file() else None
    attributes = os.listxattr(path, follow_symlinks=False)
    found[str(path)] = (
      *(facts.st_mode, facts.st_uid, facts.st_mtime_ns, facts.st_nlink),
      *(content, attributes),
    )
  for place in PLACES:
    names = os.listdir(place) if os.path.isdir(place) else []
    found[place] = [name for name in names if "rlhf_jax_escaped" in name]
  for kind in ("shm", "msg", "sem"):
    table = Path("/proc/sysvipc", kind)
    found[kind] = table.exists() and KEY in table.read_text()
  return found


def attack(folder, walls, uid):
  """Returns what run.py found, and asserts that it came to its end."""
  settings = {
    **{"level": walls.level, "user": walls.user},
    **{"has_tripwire": walls.has_tripwire, "seconds": SECONDS},
    **{"outside": str(folder), "uid": uid},
  }
  environment = {
    **os.environ,
    "SECRET": (folder / "secret.txt").read_text(),
    "HOME": str(folder / "home"),
    "PYTHONDONTWRITEBYTECODE": "1",
  }
  done = subprocess.run(
    [sys.executable, run.__file__, json.dumps(settings)],
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])


def walls_of(level, has_tripwire, uid):
  """Returns walls of a level, or skips: this machine or user has none such."""
  users = ("nobody", "nobody_reading") if os.geteuid() == 0 and not uid else ()
  for user in ("own",) if level == "namespace" else (*users, "own"):
    walls = servers.Walls(level, user, (), has_tripwire)
    try:
      servers.Server(walls, servers.Limits()).close()
      return walls
    except servers.ServerLost as error:
      reason = str(error)
  pytest.skip(f"this machine does not offer {level!r}: {reason}")


def test_the_corpus_is_large():
  assert len(PROGRAMS) >= 180


@pytest.mark.parametrize(
  ("level", "has_tripwire", "is_root"),
  [
    ("namespace", False, True),
    ("namespace", False, False),
    ("landlock", False, False),
    *(
      pytest.param(*rest, marks=pytest.mark.slow)
      for rest in (
        *(("landlock", False, True), ("audit", True, True)),
        *(("audit", True, False), ("namespace", True, True)),
        *(("namespace", True, False), ("landlock", True, False)),
      )
    ),
  ],
)
def test_no_attack_succeeds(outside, level, has_tripwire, is_root):
  if is_root and os.geteuid() != 0:
    pytest.skip("these tests do not run as root")
  uid = USER if os.geteuid() == 0 and not is_root else 0
  walls = walls_of(level, has_tripwire, uid)
  if uid:
    give(outside, uid)
  before = seen(outside)
  found = attack(outside, walls, uid)
  assert seen(outside) == before
  assert found["control"]
  assert found["harm"] == []
  assert {k: v for k, v in found["scores"].items() if v != 0} == {}
  assert found["scores"].keys() == PROGRAMS.keys()


@pytest.mark.parametrize(
  "name",
  [
    "reads: open",
    "reads: dir_fd of the root",
    "reads: sqlite",
    "reads: native open",
    "changes: appends to .bashrc",
    "changes: deletes by dir_fd",
    "changes: makes a pipe",
    "changes: native write",
  ],
)
def test_attacks_succeed_without_walls(outside, name):
  """Control: in a plain Python they do what they are meant to."""
  secret = (outside / "secret.txt").read_text()
  given = {"OUTSIDE": str(outside), "PREFIX": run.PREFIX}
  code = run.source(PROGRAMS[name], given) + "print(answer(0))"
  before = seen(outside)
  done = subprocess.run(
    [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True
  )
  if name.startswith("reads"):
    assert done.stdout.strip() == secret
  else:
    assert seen(outside) != before
