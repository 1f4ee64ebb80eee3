"""A chat endpoint on this machine that answers as a test says, and a voice."""

import contextlib
import http.server
import json
import math
import threading

from rlhf_jax.rewards.ai.voices import Reply


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers by `server.answer(body)` -> (status, headers, text)."""

  def do_POST(self):
    size = int(self.headers["Content-Length"])
    body = json.loads(self.rfile.read(size))
    with self.server.lock:
      self.server.bodies.append(body)
      self.server.headers.append(dict(self.headers))
      self.server.paths.append(self.path)
    status, headers, text = self.server.answer(body)
    with contextlib.suppress(OSError):  # who asked has gone
      self.send_response(status)
      for name, value in headers.items():
        self.send_header(name, value)
      self.send_header("Content-Length", str(len(text)))
      self.end_headers()
      self.wfile.write(text)

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def serving(answer):
  """Yields a server, with url, bodies, headers and paths of what was asked."""
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.answer, server.lock = answer, threading.Lock()
  server.bodies, server.headers, server.paths = [], [], []
  server.url = f"http://127.0.0.1:{server.server_port}/v1"
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def said(text, tops=None, *further):
  """Returns a reply in the interface's form.

  Args:
    text: the message.
    tops: token -> log-probability, of the first token; None for none.
    *further: the same of those after it.
  """
  choice = {"message": {"content": text}, "finish_reason": "stop"}
  if tops is not None:
    content = [
      {
        "token": max(of, key=of.get, default=""),
        "top_logprobs": [{"token": t, "logprob": x} for t, x in of.items()],
      }
      for of in (tops, *further)
    ]
    choice["logprobs"] = {"content": content}
  found = {
    "choices": [choice],
    "usage": {"prompt_tokens": 10, "completion_tokens": 1},
  }
  return 200, {}, json.dumps(found).encode()


def shown(question):
  """Returns the two answers that our template shows."""
  rest = question.partition("\nAnswer A:\n")[2]
  first, _, rest = rest.partition("\n\nAnswer B:\n")
  return first, rest.partition("\n\nWhich answer")[0]


class Planted:
  """A voice whose logit of "A" is known: quality, position and length.

  quality: answer -> number.
  position, length: what they are worth, nats, the second a character.
  noise: question -> nats; None for none.
  """

  name = "planted"

  def __init__(self, quality, position=0.0, length=0.0, noise=None):
    self.quality, self.position, self.length = quality, position, length
    self.noise, self.count = noise, 0
    self.identity = {"planted": [position, length]}

  def logit(self, text):
    first, second = shown(text)
    z = self.quality(first) - self.quality(second) + self.position
    z += self.length * (len(first) - len(second))
    return z + (self.noise(text) if self.noise else 0.0)

  def label_logprobs(self, questions):
    for n, question in enumerate(questions):
      self.count += 1
      z = self.logit(question.messages[-1]["content"])
      yield n, Reply([-math.log1p(math.exp(-z)), -math.log1p(math.exp(z))])

  def say(self, dialogues, how):
    for n, messages in enumerate(dialogues):
      self.count += 1
      yield n, Reply(f"{len(messages)} {messages[-1]['content'][:5]}")
