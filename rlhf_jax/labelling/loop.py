"""The page beside a pipeline: serve it, wait for people, go on.

with Store(folder, task) as store, serve(store) as page:
  print(page.links())
  store.add_items(rows, batch="round 1")
  records = wait_for(store, "round 1")
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.labelling import server
from rlhf_jax.labelling.store import Store
from rlhf_jax.labelling.task import Task
from rlhf_jax.labelling.tokens import Tokens
from rlhf_jax.schema import UserError

HOST = "127.0.0.1"
EVERY_ADDRESS = ("0.0.0.0", "::", "")  # no name that a page is called by
PORT = 8766
ALONE = "me"  # who labels where nobody is named
POLL_SECONDS = 1.0
TELL_SECONDS = 60.0  # between two words about the same state


@dataclasses.dataclass(frozen=True)
class Page:
  """A page that is served.

  address: http://HOST:PORT, without a token.
  thread: that serves; it ends with the process.
  """

  address: str
  thread: threading.Thread
  store: Store

  def admin(self) -> str:
    """Returns the link of whoever runs the task."""
    return f"{self.address}/admin#{Tokens(self.store.folder).admin()}"

  def link(self, annotator: str) -> str:
    """Returns the link of a person."""
    token = Tokens(self.store.folder).annotator(annotator)
    return f"{self.address}/#{token}"

  def links(self) -> str:
    """Returns a line for the admin, and one for each person."""
    names = self.store.annotators()
    wide = max(len(name) for name in ["admin", *names])
    lines = [("admin", self.admin())] + [(x, self.link(x)) for x in names]
    return "\n".join(f"  {name:{wide}}  {link}" for name, link in lines)


@contextlib.contextmanager
def serve(
  store: Store,
  port: int = 0,
  host: str = HOST,
  names: Collection[str] = (),
) -> Iterator[Page]:
  """Serves the page of a store while inside `with`, in a thread.

  Args:
    store: open.
    port: 0 for any that is free.
    host: address to listen on; others than this machine reach it only where
      this is another one. There is no TLS: put a server that has it in front.
    names: hosts that it may be called by, beside this machine's own.

  Raises:
    UserError: the extra is not installed, or the port cannot be had.
  """
  called = called_by(host, names)
  application = server.application(store, {called, *names})
  try:
    import uvicorn
  except ImportError as error:
    raise UserError(
      f"the labelling page needs uvicorn ({error}). Install it: pip install "
      "'rlhf_jax[label]'."
    ) from error
  listening = _listen(host, port)
  config = uvicorn.Config(
    application,
    access_log=False,
    log_config=None,
    log_level="warning",
    lifespan="off",
    server_header=False,
    timeout_graceful_shutdown=3,
  )
  running = uvicorn.Server(config)
  thread = threading.Thread(
    target=running.run, args=([listening],), name="label page", daemon=True
  )
  thread.start()
  while not running.started and thread.is_alive():
    time.sleep(0.01)
  port = listening.getsockname()[1]
  try:
    yield Page(f"http://{called}:{port}", thread, store)
  finally:
    running.should_exit = True
    thread.join()
    listening.close()


def called_by(host: str, names: Collection[str]) -> str:
  """Returns the name that links have: one that the page answers to.

  Args:
    host: that is listened on; links name a single address as it is.
    names: further ones, of which the first is in links where others than this
      machine can ask.
  """
  shown = f"[{host}]" if ":" in host else host
  if shown in server.LOCAL_NAMES:
    return shown
  if names:
    return next(iter(names))
  return HOST if host in EVERY_ADDRESS else shown


def _listen(host: str, port: int) -> socket.socket:
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  found = socket.socket(family)
  try:
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((host, port))
    found.listen(128)
  except (OSError, OverflowError) as error:
    found.close()
    raise UserError(
      f"--port={port}: cannot be listened on at {host} ({error}). Choose "
      "another one, or 0 for any that is free."
    ) from error
  return found


def wait_for(
  store: Store,
  batch: str = "",
  judgements: int = 0,
  *,
  poll_seconds: float = POLL_SECONDS,
  should_stop: Callable[[], bool] = lambda: False,
  tell: Callable[[str], None] = print,
) -> list[dict[str, Any]] | None:
  """Waits until people judged enough, then returns the records.

  Nothing is kept but in the store: after a kill the same call goes on. Who
  serves the page is not its business (`serve`).

  Args:
    store: with the items of the batch in it.
    batch: whose items are waited for.
    judgements: that are enough; 0 for all items closed. The items of the batch
      are withdrawn then, so that nobody labels for a round that is over.
    poll_seconds: between two looks.
    should_stop: asked at each look; where it says yes None is returned, and the
      batch stays open.
    tell: gets a sentence where something changed, or nothing for a minute.

  Returns:
    records of the format "ranking", decisions about disputed ones among them.
  """
  said, said_at = "", 0.0
  while True:
    now = store.progress(batch)
    is_done = now["closed"] >= now["items"]
    if judgements:
      is_done = is_done or now["judgements"] >= judgements
    if is_done:
      store.withdraw(batch)
      return store.records(batch)
    wanted = judgements if judgements else now["wanted"]
    text = f"waiting for people: {now['judgements']} of {wanted} judgements"
    if text != said or time.monotonic() - said_at > TELL_SECONDS:
      said, said_at = text, time.monotonic()
      tell(text)
    if should_stop():
      return None
    time.sleep(poll_seconds)


def ask(
  items: Sequence[Mapping[str, Any]],
  folder: str | Path,
  seed: int = 0,
  *,
  task: Task | None = None,
  annotators: Sequence[str] = (ALONE,),
  port: int = PORT,
  tell: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
  """Puts items before people, waits until all are judged, returns the records.

  A judge that a loop may name by import path. After a kill the same call goes
  on.

  Args:
    items: lines of items (labelling/items.py).
    folder: of the store.
    seed: of orders, where no task is given.
    task: what is asked.
    annotators: who may label; the admin's page adds more.
    port: of the page, on this machine.
    tell: gets the links, and how far people are.
  """
  with Store(folder, Task(seed=seed) if task is None else task) as store:
    for name in annotators:
      store.add_annotator(name)
    store.add_items(items)
    with serve(store, port) as page:
      tell(page.links())
      found = wait_for(store, tell=tell)
  assert found is not None  # nobody asked it to stop
  return found
