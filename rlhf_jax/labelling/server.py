"""The page's server: its files, and questions that only a token may ask.

Whoever asks sends their token in a header, so no other page can ask in their
name: there are no cookies. Tokens come in the part of a link that browsers keep
to themselves (after #), so none is in an address, a log or a referrer. It
answers only where it is called by one of its names, takes no path from a
request, and shows texts as JSON alone; pictures are images, in which nothing
runs or is loaded.
"""

from __future__ import annotations

import base64
import json
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import strict_json
from rlhf_jax.evaluation import canvas
from rlhf_jax.labelling import panel, results
from rlhf_jax.labelling.store import Store, TakenError, Turn
from rlhf_jax.labelling.task import STRENGTHS
from rlhf_jax.labelling.tokens import Tokens
from rlhf_jax.schema import UserError

LOCAL_NAMES = frozenset(("127.0.0.1", "localhost", "[::1]"))
LARGEST_BODY = 64 * 1024  # bytes of a request
HERE = Path(__file__).parent
FILES = {
  "/": ("page.html", "text/html"),
  "/admin": ("admin.html", "text/html"),
  "/label.css": ("label.css", "text/css"),
  "/judge.js": ("judge.js", "text/javascript"),
  "/page.js": ("page.js", "text/javascript"),
  "/admin.js": ("admin.js", "text/javascript"),
}
HEADERS = {
  "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
  "style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
  "form-action 'none'; frame-ancestors 'none'",
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cache-Control": "no-store",
}
Answer = tuple[int, bytes, str]  # status, content, kind


def file(name: str) -> bytes:
  """Returns a file of the page; the style with the colours of the figures."""
  text = (HERE / name).read_text(encoding="utf-8")
  if name != "label.css":
    return text.encode()
  light, dark = (
    "".join(f"  --{x}: {c[i]};\n" for x, c in canvas.PALETTE.items())
    for i in (0, 1)
  )
  screen = "@media screen and (prefers-color-scheme: dark)"
  return (
    f":root {{\n{light}}}\n{screen} {{ :root {{\n{dark}}} }}\n{text}".encode()
  )


class Desk:
  """Answers the questions of people and of the admin."""

  def __init__(self, store: Store) -> None:
    self.store, self.tokens = store, Tokens(store.folder)
    self.agreement = panel.Panel(store)

  def answer(self, path: str, token: str, content: bytes) -> Answer:
    """Returns the answer to a question.

    Args:
      path: /api/...
      token: of whoever asks, "" for none.
      content: a JSON object.
    """
    try:
      if path.startswith(ADMIN_AT):
        asked, who = ADMIN.get(path.removeprefix(ADMIN_AT)), ADMIN_AT
        if not self.tokens.is_admin(token):
          return _json(401, {"error": "This is for the admin's link."})
      else:
        asked = PERSON.get(path)
        who = self.tokens.who(token, self.store.annotators())
        if who is None:
          return _json(401, {"error": "This link is not known (any more)."})
      if asked is None:
        return _json(404, {"error": "no such page"})
      body = strict_json.loads(strict_json.decode(content))
      if not isinstance(body, dict):
        raise UserError("request: must be a JSON object.")
      return asked(self, who, body)
    except TakenError as error:
      return _json(409, {"error": str(error)})
    except ValueError as error:  # of JSON, and every UserError
      return _json(400, {"error": str(error)})
    except Exception:  # the server goes on; the reason is for its owner
      traceback.print_exc(file=sys.stderr)
      return _json(500, {"error": "The server failed; its owner sees why."})

  def task(self, who: str, body: Mapping[str, Any]) -> Answer:
    """Returns what is asked, with the guidelines."""
    return _json(200, {"name": who} | self._task())

  def _task(self) -> dict[str, Any]:
    task, (version, text) = self.store.task, self.store.guidelines()
    return {
      "title": task.title,
      "question": task.question,
      "ask": task.ask,
      "dimensions": list(task.dimensions),
      "strengths": list(STRENGTHS) if task.strengths else [],
      "ties": task.ties,
      "both_bad": task.both_bad,
      "reasons": task.reasons,
      "guideline": version,
      "guidelines": text,
    }

  def next(self, who: str, body: Mapping[str, Any]) -> Answer:
    """Returns what a person is to do now."""
    return _json(200, self._turn(who))

  def _turn(self, who: str) -> dict[str, Any]:
    turn: Turn = self.store.next_item(who)
    progress = self.store.progress()
    return {  # neither kind nor name of the item, which would tell
      "state": turn.state,
      "assignment": turn.assignment,
      "prompt": turn.prompt,
      "answers": turn.answers,
      "pictures": _images(turn.pictures),
      "language": turn.language,
      "previous": turn.previous,
      "last": turn.last,
      "mine": results.judged_by(self.store.database, who),
      "judgements": progress["judgements"],
      "wanted": progress["wanted"],
      "guideline": self.store.guidelines()[0],
    }

  def submit(self, who: str, body: Mapping[str, Any]) -> Answer:
    """Keeps a judgement, and then says what is next."""
    assignment, identity = _text(body, "assignment"), _text(body, "id")
    is_new = self.store.submit(who, assignment, body.get("judgement"), identity)
    return _json(200, {"is_new": is_new} | self._turn(who))

  def undo(self, who: str, body: Mapping[str, Any]) -> Answer:
    """Takes a judgement back, and then says what is next."""
    is_new = self.store.undo(who, _text(body, "id"))
    return _json(200, {"is_new": is_new} | self._turn(who))

  def state(self, who: str, body: Mapping[str, Any]) -> Answer:
    """Returns what the admin sees."""
    people = results.people(self.store.database)
    for row in people:
      row["token"] = self.tokens.annotator(row["name"])
    return _json(
      200,
      self._task()
      | {
        "folder": self.store.folder.name,
        "overlap": self.store.task.overlap,
        "order": self.store.task.order,
        "is_paused": self.store.is_paused(),
        "progress": self.store.progress(),
        "people": people,
        "agreement": self.agreement(),
        "disputed": len(results.disputed(self.store.database)),
      },
    )

  def disputed(self, who: str, body: Mapping[str, Any]) -> Answer:
    """Returns items on which people disagree."""
    found = results.disputed(self.store.database)
    for item in found:
      item["pictures"] = _images(item["pictures"])
    return _json(200, {"items": found})

  def adjudicate(self, who: str, body: Mapping[str, Any]) -> Answer:
    """Keeps a decision about an item on which people disagree."""
    self.store.adjudicate(_text(body, "item"), body.get("judgement"))
    return self.disputed(who, body)

  def pause(self, who: str, body: Mapping[str, Any]) -> Answer:
    """Stops or goes on, for one person or for all."""
    if type(body.get("is_paused")) is not bool:
      raise UserError("is_paused: must be true or false.")
    name = _text(body, "annotator") if "annotator" in body else None
    self.store.pause(body["is_paused"], name)
    return self.state(who, body)

  def add(self, who: str, body: Mapping[str, Any]) -> Answer:
    """Lets one more person label."""
    self.store.add_annotator(_text(body, "annotator"))
    return self.state(who, body)

  def export(self, who: str, body: Mapping[str, Any]) -> Answer:
    """Returns every judgement that holds, as lines of JSON."""
    text = "".join(
      json.dumps(record, ensure_ascii=False) + "\n"
      for record in results.everything(self.store.database)
    )
    return 200, text.encode(), "application/x-ndjson"

  def backup(self, who: str, body: Mapping[str, Any]) -> Answer:
    """Writes a backup."""
    return _json(200, {"file": self.store.backup().name})


PERSON: dict[str, Callable] = {
  "/api/task": Desk.task,
  "/api/next": Desk.next,
  "/api/submit": Desk.submit,
  "/api/undo": Desk.undo,
}
ADMIN_AT = "/api/admin/"
ADMIN: dict[str, Callable] = {
  "state": Desk.state,
  "disputed": Desk.disputed,
  "adjudicate": Desk.adjudicate,
  "pause": Desk.pause,
  "add": Desk.add,
  "records": Desk.export,
  "backup": Desk.backup,
}


def _text(body: Mapping[str, Any], name: str) -> str:
  if not isinstance(body.get(name), str):
    raise UserError(f"{name}: must be a text.")
  return body[name]


def _images(pictures: Sequence[str]) -> list[str]:
  """Returns SVG as addresses of images, in which no script runs."""
  return [
    f"data:image/svg+xml;base64,{base64.b64encode(x.encode()).decode()}"
    for x in pictures
  ]


def _json(status: int, value: Mapping[str, Any]) -> Answer:
  text = json.dumps(value, allow_nan=False)
  return status, text.encode(), "application/json"


def application(store: Store, names: Collection[str] = ()) -> Any:
  """Returns the ASGI application of a store.

  Args:
    store: open.
    names: hosts that it may be called by, beside this machine's own.

  Raises:
    UserError: starlette is not installed.
  """
  try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
  except ImportError as error:
    raise UserError(
      f"the labelling page needs starlette and uvicorn ({error}). Install "
      "them: pip install 'rlhf_jax[label]'."
    ) from error
  desk, allowed = Desk(store), LOCAL_NAMES | {x.lower() for x in names}

  async def answer(request: Request) -> Response:
    status, content, kind = await _answer(request)
    headers = HEADERS | {"Content-Type": f"{kind}; charset=utf-8"}
    return Response(content, status, headers)

  async def _answer(request: Request) -> Answer:
    if _host(request.headers.get("host", "")) not in allowed:
      return _json(403, {"error": "not by this name"})
    path = request.url.path
    if request.method in ("GET", "HEAD"):
      if path in FILES:
        name, kind = FILES[path]
        return 200, file(name), kind
      return _json(404, {"error": "no such page"})
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
      return _json(403, {"error": "only from its own page"})
    content = b""
    async for chunk in request.stream():
      content += chunk
      if len(content) > LARGEST_BODY:
        return _json(413, {"error": f"more than {LARGEST_BODY} bytes"})
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token if scheme == "Bearer" else ""
    return await run_in_threadpool(desk.answer, path, token, content)

  methods = ["GET", "HEAD", "POST"]
  return Starlette(routes=[Route("/{path:path}", answer, methods=methods)])


def _host(header: str) -> str:
  """Returns the name in a Host header, without its port."""
  name, colon, port = header.lower().rpartition(":")
  return name if colon and port.isdigit() else header.lower()
