"""Waiting for people: what a pipeline calls between two of its stages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rlhf_jax.labelling.store import Store

POLL_SECONDS = 1.0
TELL_SECONDS = 60.0  # between two words about the same state


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
