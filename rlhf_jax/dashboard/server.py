"""The page's server: three files and two questions, to this machine alone.

It answers GET and HEAD, writes nothing, and takes no path from a request: a
name is looked up among the stages that were found. It listens on 127.0.0.1 and
answers only where it is called by that name or localhost, so that no page of
the web can reach it by a name that leads here.
"""

from __future__ import annotations

import http.server
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rlhf_jax.dashboard.folder import Watched
from rlhf_jax.evaluation import canvas
from rlhf_jax.schema import UserError

HOST = "127.0.0.1"
NAMES = {"127.0.0.1", "localhost", "[::1]"}
HERE = Path(__file__).parent
FILES = {
  "/": ("page.html", "text/html"),
  "/page.css": ("page.css", "text/css"),
  "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
  "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
  "style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src data:; "
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cache-Control": "no-store",
}


def page(name: str) -> bytes:
  """Returns a file of the page; the style with the colours of the figures."""
  text = (HERE / name).read_text()
  if name != "page.css":
    return text.encode()
  light, dark = (
    "".join(f"  --{x}: {c[i]};\n" for x, c in canvas.PALETTE.items())
    for i in (0, 1)
  )
  screen = "@media screen and (prefers-color-scheme: dark)"
  return (
    f":root {{\n{light}}}\n{screen} {{ :root {{\n{dark}}} }}\n{text}".encode()
  )


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers one request."""

  server_version = "rlhf_jax"
  sys_version = ""
  protocol_version = "HTTP/1.1"
  timeout = 30  # seconds that a connection may stay idle
  watched: Watched  # of the class that `serve` makes

  def do_GET(self) -> None:
    """Answers with a file, with JSON, or with why not."""
    host = self.headers.get("Host", "").lower().rpartition(":")
    name = host[0] if host[1] and host[2].isdigit() else "".join(host)
    if name not in NAMES:
      self._say(403, {"error": "only as localhost"})
      return
    try:
      url = urlsplit(self.path)
    except ValueError:
      self._say(400, {"error": "no address"})
      return
    if url.path in FILES:
      file, kind = FILES[url.path]
      self._send(200, page(file), kind)
    elif url.path == "/api/runs":
      self._say(200, self.watched.runs())
    elif url.path == "/api/stage":
      names = parse_qs(url.query, keep_blank_values=True).get("id", [])
      found = self.watched.stage(names[0]) if len(names) == 1 else None
      wrong = {"error": "no such stage"}
      self._say(200 if found else 404, found if found else wrong)
    else:
      self._say(404, {"error": "no such page"})

  do_HEAD = do_GET

  def _say(self, status: int, value: dict[str, Any]) -> None:
    text = json.dumps(value, allow_nan=False)
    self._send(status, text.encode(), "application/json")

  def _send(self, status: int, content: bytes, kind: str) -> None:
    self.send_response(status)
    self.send_header("Content-Type", f"{kind}; charset=utf-8")
    self.send_header("Content-Length", str(len(content)))
    for name, value in HEADERS.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)

  def log_message(self, format: str, *args: Any) -> None:
    """Says nothing of each request."""
    del format, args


class Server(http.server.ThreadingHTTPServer):
  """Threads that end with the process."""

  daemon_threads = True
  allow_reuse_address = True

  def handle_error(self, request: Any, client_address: Any) -> None:
    """A reader that went away is no error; anything else is shown."""
    if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
      super().handle_error(request, client_address)


def make(root: Path, port: int) -> Server:
  """Returns a server of the runs of a folder, not yet serving.

  Args:
    root: a folder, which may still be empty.
    port: on this machine; 0 for any that is free.

  Raises:
    UserError: the port cannot be had.
  """
  handler = type("Bound", (Handler,), {"watched": Watched(root)})
  try:
    return Server((HOST, port), handler)
  except (OSError, OverflowError) as error:
    raise UserError(
      f"--port={port}: cannot be listened on ({error}). Choose another one, or "
      "0 for any that is free."
    ) from error
