"""tpu_scripts/: bats, shellcheck, and a part that needs only bash and git.

The bats files of tests/tpu_scripts/ run the commands against a fake gcloud
that plays states, failures and preemptions, and whose workers really run what
ssh sends. By default a few of them run here, and all with `-m slow`. The rest
of this file drives the same fake from Python, so that the promises that cost
money are kept also where bats is not installed.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "tpu_scripts"
TESTS = ROOT / "tests" / "tpu_scripts"
COMMANDS = sorted(
  path.name
  for path in SCRIPTS.glob("*.sh")
  if path.name not in ("lib.sh", "worker.sh")
)
BATS_FILES = sorted(path.name for path in TESTS.glob("*.bats"))

needs_linux = pytest.mark.skipif(
  any(shutil.which(name) is None for name in ("bash", "git", "flock")),
  reason="the fake workers need bash, git and flock (util-linux)",
)


def installed(name: str) -> str:
  """Returns the path of a program, or skips the test with the remedy."""
  path = shutil.which(name)
  if path is None:
    pytest.skip(f"{name} is not installed: apt-get install {name}")
  return path


@pytest.fixture
def cloud(tmp_path: Path):
  """Yields run(command, *flags): a copy of the scripts on a fake cloud."""
  repository, fake = tmp_path / "repository", tmp_path / "cloud"
  fake.mkdir()
  (repository / "configs").mkdir(parents=True)
  shutil.copytree(SCRIPTS, repository / "tpu_scripts")
  (repository / "configs" / "x.py").write_text("experiment\n")
  (repository / "setup.py").write_text("packaging\n")
  git = ["git", "-C", repository, "-c", "user.name=a", "-c", "user.email=a@b"]
  subprocess.run([*git, "init", "-q"], check=True)
  subprocess.run([*git, "add", "."], check=True)
  subprocess.run([*git, "commit", "-qm", "a"], check=True)
  environment = {
    key: value for key, value in os.environ.items() if key[:4] != "TPU_"
  } | {
    "PATH": f"{TESTS / 'fake'}:{os.environ['PATH']}",
    "FAKE": str(fake),
    "TPU_NAME": "my-tpu",
    "TPU_ZONE": "zone-a",
    "TPU_TYPE": "v6e-8",
    "TPU_PROVISIONING": "spot",
    "TPU_OWNER": "ann",
    "TPU_CONFIG": "configs/x.py",
    "TPU_WORKDIR": "gs://bucket/ppo",
    "TPU_RETRY_SECONDS": "0",
    "TPU_POLL_SECONDS": "0.1",
  }

  def run(command: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
      [repository / "tpu_scripts" / command, *flags],
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      timeout=120,
    )

  run.fake = fake
  yield run
  for group in fake.glob("vms/*/*/rlhf_jax_runs/*/group"):
    try:
      os.killpg(int(group.read_text()), signal.SIGKILL)
    except ProcessLookupError:
      pass


def calls(fake: Path, words: str) -> int:
  """Returns how many calls of the fake gcloud hold these words."""
  path = fake / "calls"
  return path.read_text().count(words) if path.exists() else 0


def starts(fake: Path) -> list[str]:
  """Returns the command lines of the program on the first worker."""
  return (fake / "programs.my-tpu.0-0").read_text().splitlines()


def test_shellcheck():
  program = installed("shellcheck")
  files = [
    *sorted(SCRIPTS.glob("*.sh")),
    *sorted(TESTS.glob("*.ba*s*")),
    TESTS / "fake" / "gcloud",
    *sorted((TESTS / "fake" / "vm").iterdir()),
  ]
  assert len(files) > 20
  halves = [  # side by side; lib.sh is given to both, since all source it
    subprocess.Popen(
      [program, SCRIPTS / "lib.sh", *files[start::2]],
      stdout=subprocess.PIPE,
      text=True,
    )
    for start in (0, 1)
  ]
  printed = [half.communicate()[0] for half in halves]
  assert [half.returncode for half in halves] == [0, 0], "".join(printed)


def run_bats(name: str, least: int, *flags: str) -> None:
  """Runs one bats file, of at least so many tests; fails with its output."""
  result = subprocess.run(
    [installed("bats"), *flags, TESTS / name], capture_output=True, text=True
  )
  assert result.returncode == 0, result.stdout + result.stderr
  assert result.stdout.count("\nok ") >= least, result.stdout


def test_bats_create():
  names = "runtime version|FAILED says|looks secret|exists is neither"
  run_bats("create.bats", 4, "--filter", names)


@pytest.mark.slow
@pytest.mark.parametrize("name", BATS_FILES)
def test_bats(name: str):
  run_bats(name, 8)


def test_every_command_has_a_bats_file():
  text = "".join((TESTS / name).read_text() for name in BATS_FILES)
  assert len(COMMANDS) == 9
  for command in COMMANDS:
    assert f'run "$SCRIPTS/{command}"' in text, command


@needs_linux
def test_help_and_mistakes_touch_nothing(cloud):
  for command in COMMANDS:
    result = cloud(command, "--help")
    assert result.returncode == 0 and f"{command} --" in result.stdout
  result = cloud("create.sh", "--type=v5e-16")
  assert result.returncode == 2
  assert "--type=v5e-16: v5e is called v5litepod-16." in result.stdout
  result = cloud("watch.sh", "--", "--config.hub.password=1234")
  assert result.returncode == 2
  assert "looks secret" in result.stdout and "1234" not in result.stdout
  assert calls(cloud.fake, "gcloud") == calls(cloud.fake, "compute") == 0


@needs_linux
def test_create_and_status(cloud):
  (cloud.fake / "next_states").write_text("WAITING_FOR_RESOURCES ACTIVE\n")
  result = cloud("create.sh")
  assert result.returncode == 0 and "ACTIVE. It costs" in result.stdout
  assert calls(cloud.fake, "--runtime-version=v2-alpha-tpuv6e") == 1
  result = cloud("status.sh")
  assert result.returncode == 12 and "run setup.sh" in result.stdout
  result = cloud("list.sh")
  assert "my-tpu" in result.stdout and "1 of these" in result.stdout


@needs_linux
def test_failed_request_is_deleted(cloud):
  (cloud.fake / "next_states").write_text("PROVISIONING FAILED\n")
  (cloud.fake / "failure").write_text("no capacity\n")
  result = cloud("create.sh")
  assert result.returncode == 10 and "no capacity" in result.stdout
  assert not (cloud.fake / "slices" / "my-tpu").exists()


@needs_linux
def test_watch_resumes_after_a_preemption(cloud):
  (cloud.fake / "program").write_text(
    'mkdir -p "$workdir"\n'
    "if ((ATTEMPT == 1)); then\n"
    '  echo 7 >"$workdir/step"\n'
    '  echo SUSPENDED >"$FAKE/slices/$SLICE/states"\n'
    "  sleep 60 & wait\n"
    "fi\n"
    '[ "$(cat "$workdir/step")" = 7 ]\n'  # the bucket outlives the machines
    "exit\n"
  )
  result = cloud("watch.sh", "--", "--config.seed=1")
  assert result.returncode == 0, result.stdout
  assert calls(cloud.fake, "queued-resources create") == 2
  assert calls(cloud.fake, "queued-resources delete") == 1
  first, second = starts(cloud.fake)
  assert first == second and "--config.seed=1" in first


@needs_linux
def test_watch_never_retries_a_failure(cloud):
  (cloud.fake / "program").write_text('echo "error: not finite"\nexit 3\n')
  result = cloud("watch.sh")
  assert result.returncode == 3, result.stdout
  assert "error: not finite" in result.stdout
  assert "Not restarted" in result.stdout
  assert len(starts(cloud.fake)) == 1
  assert calls(cloud.fake, "queued-resources create") == 1
  result = cloud("watch.sh")  # nor when it is watched again
  assert result.returncode == 3, result.stdout
  assert len(starts(cloud.fake)) == 1
