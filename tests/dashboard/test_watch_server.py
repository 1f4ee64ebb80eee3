"""The live page's server: what it answers, and to whom."""

import http.client
import json
import re
import socket
import threading

import pytest

from rlhf_jax import __main__ as commands
from rlhf_jax import watch
from rlhf_jax.dashboard import server
from rlhf_jax.evaluation import canvas
from tests.dashboard.test_watched_folder import HOSTILE, config, write_lines


@pytest.fixture(scope="module")
def served(tmp_path_factory):
  root = tmp_path_factory.mktemp("served")
  run = root / f"run{'<b>'}"
  config(run, title=HOSTILE, pipeline="sft")
  write_lines(run / "metrics.jsonl", {"step": 1, "phase": "sft", "sft/loss": 2})
  sample = {"step": 1, "prompt": HOSTILE, "response": HOSTILE, "score": None}
  write_lines(run / "samples.jsonl", sample)
  found = server.make(root, 0)
  thread = threading.Thread(target=found.serve_forever, daemon=True)
  thread.start()
  yield found
  found.shutdown()
  found.server_close()


def ask(served, path, method="GET", **headers):
  connection = http.client.HTTPConnection(*served.server_address[:2], timeout=9)
  try:
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
      connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer, answer.read()
  finally:
    connection.close()


def test_the_page_and_its_files_load_nothing_else(served):
  texts = []
  for path, kind in (("/", "html"), ("/page.css", "css"), ("/page.js", "java")):
    answer, content = ask(served, path)
    assert answer.status == 200 and kind in answer.headers["Content-Type"]
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    texts.append(content.decode())
  found = set(re.findall(r"https?://[^\"'\s)]+", "".join(texts)))
  assert found == {"http://www.w3.org/2000/svg"}  # a name, which nobody loads
  assert set(re.findall(r'(?:src|href)="([^"]+)"', texts[0])) == {
    *("data:,", "/page.css", "/page.js"),
  }
  for name in re.findall(r"var\(--(\w+)\)", texts[1]):
    assert f"--{name}: {canvas.PALETTE[name][1]};" in texts[1]


def test_texts_of_a_run_never_become_html():
  script = server.page("page.js").decode()
  for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write"):
    assert way not in script
  assert not re.search(r"\beval\(|new Function|setTimeout\(\"", script)


def test_runs_and_a_stage_as_json_hostile_texts_included(served):
  answer, content = ask(served, "/api/runs")
  assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
  assert answer.headers["X-Content-Type-Options"] == "nosniff"
  assert content.isascii() and b"\x00" not in content
  (run,) = json.loads(content)["runs"]
  assert run["name"] == "run<b>" and run["title"] == HOSTILE
  answer, content = ask(served, "/api/stage?id=run%3Cb%3E")
  found = json.loads(content)
  assert found["samples"][0]["response"] == HOSTILE
  assert found["curves"] == {"sft/loss": [[1, 2.0]]}


@pytest.mark.parametrize(
  ("path", "status"),
  [
    ("/etc/passwd", 404),
    ("/../setup.py", 404),
    ("/page.html", 404),
    ("/%2e%2e/page.js", 404),
    ("/api/stage", 404),
    ("/api/stage?id=..", 404),
    ("/api/stage?id=..%2f..%2fetc", 404),
    ("/api/stage?id=run%3Cb%3E&id=..", 404),
  ],
)
def test_nothing_else_is_served(served, path, status):
  ask(served, "/api/runs")
  answer, content = ask(served, path)
  assert answer.status == status and "error" in json.loads(content)


def test_what_is_no_address_is_answered(served):
  with socket.create_connection(served.server_address[:2], timeout=9) as line:
    line.sendall(b"GET http://[bad HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert line.recv(20).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
  "method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
)
def test_it_is_read_only(served, method):
  assert ask(served, "/api/runs", method)[0].status == 501


@pytest.mark.parametrize(
  ("host", "status"),
  [
    ("localhost", 200),
    ("LOCALHOST:1", 200),
    ("127.0.0.1:9", 200),
    ("[::1]:8765", 200),
    ("evil.example", 403),
    ("evil.example:8765", 403),
    ("localhost.evil.example", 403),
    ("", 403),
  ],
)
def test_only_who_calls_it_localhost_is_answered(served, host, status):
  assert ask(served, "/api/runs", Host=host)[0].status == status


def test_head_has_no_body_and_only_this_machine_is_listened_to(served):
  answer, content = ask(served, "/", "HEAD")
  assert answer.status == 200 and content == b""
  assert int(answer.headers["Content-Length"]) > 0
  assert served.server_address[0] == "127.0.0.1"


def test_the_command_is_listed_and_refuses(served, tmp_path, capsys):
  assert commands.commands()["watch"].startswith("Watch all runs")
  assert watch.main(["watch", str(tmp_path / "no")]) == 2
  assert "is no folder. Name one" in capsys.readouterr().err
  taken = str(served.server_address[1])
  assert watch.main(["watch", str(tmp_path), "--port", taken]) == 2
  assert f"--port={taken}: cannot be listened on" in capsys.readouterr().err
  assert watch.main(["watch", str(tmp_path), "--port=99999"]) == 2
