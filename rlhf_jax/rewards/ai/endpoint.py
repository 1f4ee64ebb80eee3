"""A judge behind a URL: any chat endpoint with OpenAI's interface.

Off unless a URL is given. What is sent are the questions, so whatever stands in
the prompts and answers leaves this machine; the key comes from an environment
variable and is written nowhere. Redirections are refused: they would carry the
key elsewhere.

What may pass (time-outs, 429, 5xx, a reply that is no JSON) is tried again
after a wait that doubles, or after what Retry-After says. A question that the
endpoint refuses (400, 413, 422) is out of form. Where `stop_after` questions in
a row fail nobody is there, and the run ends; what was answered is in the cache.

Standard library alone. Left out: streaming, batches by file, other interfaces.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import http.client
import json
import math
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_jax.rewards.ai import replies
from rlhf_jax.rewards.ai.questions import Messages, Question
from rlhf_jax.rewards.ai.replies import Again
from rlhf_jax.rewards.ai.voices import (
  FAILED,
  FORM,
  JudgeGone,
  Replies,
  Reply,
  Saying,
)
from rlhf_jax.schema import FieldError, UserError, check_choice, check_least

MOST_BYTES = 2**22  # of a reply
MOST_WAIT_SECONDS = 60.0
ALTERNATIVES = 20  # most likely tokens that are asked for: the interface's most
LABEL_TOKENS = 8  # of an answer that is read as text
_REFUSED = (400, 413, 422)
_WRONG = (401, 403, 404, 405)
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A chat endpoint that answers in the place of a local model."""

  url: str = ""  # up to /v1, such as http://localhost:8000/v1; "": none
  model: str = ""  # its name there
  key_variable: str = ""  # environment variable that holds the key; "": no key
  reads: str = "logprobs"  # of the labels; "text": the label that is said, for
  # endpoints that give no log-probabilities: a vote without a size
  limit_field: str = "max_tokens"  # what the endpoint calls the limit of an
  # answer; "max_completion_tokens" for some
  timeout_seconds: float = 60.0  # for one reply
  retries: int = 5  # of a question, after the first try
  wait_seconds: float = 1.0  # before the first of them; it doubles
  parallel: int = 4  # questions at a time
  stop_after: int = 3  # questions in a row that fail end the run

  def __post_init__(self) -> None:
    check_choice("reads", self.reads, ("logprobs", "text"))
    check_choice(
      "limit_field",
      self.limit_field,
      ("max_tokens", "max_completion_tokens"),
    )
    check_least(self, retries=0, wait_seconds=0, parallel=1, stop_after=1)
    if not 0.0 < self.timeout_seconds <= 3600.0:
      raise FieldError(
        f"timeout_seconds={self.timeout_seconds}: must be in (0, 3600]."
      )
    if not self.url:
      for field in ("model", "key_variable"):
        if getattr(self, field):
          raise FieldError(
            f"{field}={getattr(self, field)!r} with url='': no endpoint is "
            "asked. Set url too, or leave it empty."
          )
      return
    self._check_url()

  def _check_url(self) -> None:
    parts = urllib.parse.urlsplit(self.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
      raise FieldError(
        f"url={self.url!r}: is no URL. Give http://HOST:PORT/v1 or https://..."
      )
    if parts.username or parts.password or parts.query or parts.fragment:
      raise FieldError(
        "url: holds a name, a password or a query, which would be written into "
        "config.json. Leave them out; a key comes from key_variable."
      )
    if not self.model:
      raise FieldError(
        f"model is empty with url={self.url!r}: name the model that the "
        "endpoint serves."
      )
    if self.key_variable and not re.fullmatch(r"\w+", self.key_variable):
      raise FieldError(
        "key_variable: is the NAME of an environment variable, letters and "
        "digits; a key itself would be written into config.json."
      )
    if self.key_variable and parts.scheme == "http" and not self.is_local:
      raise FieldError(
        f"url={self.url!r} with key_variable={self.key_variable!r}: the key "
        "would go over the net unencrypted. Use https://."
      )

  @property
  def is_local(self) -> bool:
    """Whether it is on this machine."""
    return urllib.parse.urlsplit(self.url).hostname in _LOCAL

  def key(self) -> str:
    """Returns the key, "" where none is wanted.

    Raises:
      FieldError: the variable is not set.
    """
    if not self.key_variable:
      return ""
    found = os.environ.get(self.key_variable, "").strip()
    if not found:
      raise FieldError(
        f"endpoint.key_variable={self.key_variable!r}: this environment "
        "variable is not set. Put the key there: export "
        f"{self.key_variable}=..."
      )
    return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
  def redirect_request(self, *args: Any) -> None:
    return None


class _Refused(Exception):
  """The endpoint will not answer this question."""


class Remote:
  """An endpoint as a voice."""

  def __init__(self, settings: Endpoint):
    """Args: settings, with a url.

    Raises:
      FieldError: its key is not there.
    """
    self.settings, self._key = settings, settings.key()
    self.name = settings.model
    self.identity = {
      "url": settings.url,
      "model": settings.model,
      "reads": settings.reads,
    }
    handlers: list[Any] = [_NoRedirect]
    if settings.is_local:  # nobody between who would see the key
      handlers.append(urllib.request.ProxyHandler({}))
    self._open = urllib.request.build_opener(*handlers).open
    self._lock = threading.Lock()
    self._failed = 0  # questions in a row
    self._gone = threading.Event()  # nobody is asked any more

  def label_logprobs(self, questions: Sequence[Question]) -> Replies:
    """See voices.Voice."""
    reads_text = self.settings.reads == "text"
    wants = {"logprobs": True, "top_logprobs": ALTERNATIVES}
    more = {"temperature": 0.0} if reads_text else {"temperature": 0.0, **wants}
    read = replies.said_label if reads_text else replies.alternatives
    return self._all(
      [
        (
          q.messages,
          LABEL_TOKENS if reads_text else 1 + bool(replies.going_on(q.labels)),
          more,
          lambda choice, q=q: read(choice, q.labels),
        )
        for q in questions
      ]
    )

  def say(self, dialogues: Sequence[Messages], how: Saying) -> Replies:
    """See voices.Voice."""
    return self._all(
      [
        (
          messages,
          how.max_new_tokens,
          {"temperature": how.temperature, "seed": _seed(messages, how.seed)},
          replies.text,
        )
        for messages in dialogues
      ]
    )

  def _all(self, asked: list[tuple]) -> Replies:
    """Yields replies as they come, so many questions at a time."""
    pool = concurrent.futures.ThreadPoolExecutor(self.settings.parallel)
    self._gone.clear()
    try:
      work = {pool.submit(self._ask, *x): i for i, x in enumerate(asked)}
      gone = None
      for done in concurrent.futures.as_completed(work):
        try:
          reply = done.result()
        except (UserError, concurrent.futures.CancelledError) as error:
          if isinstance(error, UserError) and gone is None:
            gone = error
            self._gone.set()
            for other in work:
              other.cancel()
          continue
        yield work[done], reply
      if gone is not None:
        raise gone
    except BaseException:  # also where nobody wants the rest
      self._gone.set()  # ends what waits to try again
      raise
    finally:
      pool.shutdown(wait=True, cancel_futures=True)

  def _ask(
    self,
    messages: Messages,
    tokens: int,
    more: dict[str, Any],
    read: Callable[[dict[str, Any]], Reply],
  ) -> Reply:
    """Returns the reply to a question, tried again where that may help.

    Raises:
      JudgeGone: it is the last of `stop_after` that failed.
      UserError: the endpoint will answer none so.
    """
    body = {"model": self.settings.model, "messages": messages, **more}
    content = json.dumps(body | {self.settings.limit_field: tokens}).encode()
    wait, why = self.settings.wait_seconds, ""
    for trial in range(self.settings.retries + 1):
      if self._gone.is_set():
        raise JudgeGone("another question found that nobody answers.")
      try:
        reply = replies.read(self._post(content), read)
      except _Refused:
        self._failed = 0
        return Reply(None, FORM)
      except Again as error:
        why = str(error)
        if trial < self.settings.retries:
          asked = wait if error.seconds is None else error.seconds
          self._gone.wait(min(max(asked, 0.0), MOST_WAIT_SECONDS))
          wait = min(2.0 * wait, MOST_WAIT_SECONDS)
        continue
      self._failed = 0
      return reply
    with self._lock:
      self._failed += 1
      failed = self._failed
    if failed >= self.settings.stop_after:
      raise JudgeGone(
        f"endpoint.url={self.settings.url!r}: {failed} questions in a "
        f"row were not answered in {self.settings.retries + 1} tries each, "
        f"the last: {why}. What was answered is kept; when the endpoint is "
        "back, the same command goes on."
      )
    return Reply(None, FAILED)

  def _post(self, content: bytes) -> Any:
    """Returns the JSON value that comes back."""
    headers = {"Content-Type": "application/json"}
    if self._key:
      headers["Authorization"] = f"Bearer {self._key}"
    url = f"{self.settings.url.rstrip('/')}/chat/completions"
    request = urllib.request.Request(url, content, headers)
    try:
      with self._open(request, timeout=self.settings.timeout_seconds) as found:
        got = found.read(MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
      raise self._failure(error) from None
    except (OSError, http.client.HTTPException) as error:
      raise Again(f"{type(error).__name__}: {error}") from None
    if len(got) > MOST_BYTES:
      raise Again(f"a reply of more than {MOST_BYTES} bytes")
    try:
      return json.loads(got)
    except ValueError:
      raise Again(f"a reply that is no JSON: {got[:60]!r}") from None

  def _failure(self, error: urllib.error.HTTPError) -> Exception:
    """Returns what an HTTP error means; the key is in none of it."""
    with error:
      code, reason = error.code, str(error.reason)
      said = error.read(300).decode("utf-8", "replace")
      after = error.headers.get("Retry-After", "")
    said = " ".join(said.split())
    said = said.replace(self._key, "[key]") if self._key else said
    if code in _WRONG or 300 <= code < 400:
      more = "" if code in (401, 403) else f" It said: {said!r}."
      return JudgeGone(
        f"endpoint.url={self.settings.url!r}: HTTP {code} {reason}. Check url, "
        f"model={self.settings.model!r} and the key in key_variable="
        f"{self.settings.key_variable!r}.{more}"
      )
    if code in _REFUSED:
      if re.search(r"logprobs|max_tokens|max_completion_tokens", said):
        return JudgeGone(
          f"endpoint.url={self.settings.url!r}: HTTP {code}: {said!r}. Set "
          "endpoint.reads='text' where it gives no log-probabilities, or "
          "endpoint.limit_field."
        )
      return _Refused(said)
    try:
      seconds = float(after)
    except ValueError:
      seconds = None
    if seconds is not None and not math.isfinite(seconds):
      seconds = None
    return Again(f"HTTP {code} {reason}", seconds)


def _seed(messages: Messages, seed: int) -> int:
  text = json.dumps([messages, seed]).encode()
  return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") >> 1
