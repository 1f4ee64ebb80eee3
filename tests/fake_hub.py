"""A Hugging Face hub on this machine: folders served as huggingface.co would.

    with FakeHub() as hub:
      hub.add("org/name", {"main": folder})

Speaks what huggingface_hub asks for: /api/models/NAME[/revision/REVISION] and
/NAME/resolve/REVISION/FILE. A data set is added as datasets/org/name, and asked
for with "datasets" in front or in place of "models". `asked` holds every path
that was asked for.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import re
import threading
from pathlib import Path
from urllib.parse import unquote

API = re.compile(
  r"/api/(?:models/|(datasets/))([^/]+/[^/]+)(?:/revision/([^/]+))?"
)
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def commit_of(folder: Path) -> str:
  """Returns 40 hex digits that change with the contents of a folder."""
  digest = hashlib.sha1()
  for file in sorted(Path(folder).rglob("*")):
    if file.is_file():
      digest.update(f"{file.name}\0".encode() + file.read_bytes())
  return digest.hexdigest()


class FakeHub:
  """gated, private: names that answer as such models do."""

  def __init__(self) -> None:
    self.models: dict[str, dict[str, Path]] = {}
    self.gated: set[str] = set()
    self.asked: list[str] = []
    hub = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def log_message(self, *_: object) -> None:
        pass

      def do_HEAD(self) -> None:
        self._answer(is_head=True)

      def do_GET(self) -> None:
        self._answer(is_head=False)

      def _answer(self, is_head: bool) -> None:
        path = self.path.partition("?")[0]
        hub.asked.append(path)
        status, headers, body = hub.answer(path)
        self.send_response(status)
        for name, value in headers.items():
          self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not is_head:
          self.wfile.write(body)

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.address = f"http://127.0.0.1:{self._server.server_port}"

  def __enter__(self) -> FakeHub:
    serve = functools.partial(self._server.serve_forever, poll_interval=0.01)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._server.shutdown()
    self._server.server_close()

  def add(self, name: str, revisions: dict[str, Path]) -> None:
    """Serves folders; revisions: branch or tag -> folder, "main" too."""
    self.models[name] = revisions

  def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
    """Returns status, headers and body for a path without its query."""
    found, is_file = API.fullmatch(path), False
    if found is None:
      found, is_file = FILE.fullmatch(path), True
    name = "" if found is None else f"{found[1] or ''}{found[2]}"
    if name not in self.models:
      return 401, {"X-Error-Code": "RepoNotFound"}, b""
    revisions = self.models[name]
    revision = "main" if found[3] is None else unquote(found[3])
    commits = {commit_of(folder): folder for folder in revisions.values()}
    folder = revisions.get(revision, commits.get(revision))
    if folder is None:
      return 404, {"X-Error-Code": "RevisionNotFound"}, b""
    commit = commit_of(folder)
    if not is_file:
      files = [
        {"rfilename": str(file.relative_to(folder))}
        for file in folder.rglob("*")
        if file.is_file()
      ]
      content = {"id": found[2], "sha": commit, "siblings": files}
      return 200, {"X-Repo-Commit": commit}, json.dumps(content).encode()
    if name in self.gated:
      return 403, {"X-Error-Code": "GatedRepo"}, b""
    file = folder / unquote(found[4])
    if not file.is_file():
      headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
      return 404, headers, b""
    body = file.read_bytes()
    etag = hashlib.sha1(body).hexdigest()
    return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, body
