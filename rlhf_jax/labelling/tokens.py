"""Who may see the page: a token a person, another one for the admin.

A token is an HMAC of the name under a secret of the folder, so that the same
command prints the same links after a restart, and no file holds a token. The
secret is in a file of its own that only its owner reads; neither the store nor
a backup has it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from rlhf_jax.schema import UserError

FILE = "secret"
_ADMIN, _ANNOTATOR = "admin:", "annotator:"


class Tokens:
  """Makes and knows the tokens of a folder."""

  def __init__(self, folder: Path) -> None:
    self._path = folder / FILE
    try:
      file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
      pass
    else:
      with os.fdopen(file, "w") as stream:
        stream.write(secrets.token_hex(32))
        stream.flush()
        os.fsync(stream.fileno())
    self._secret = self._path.read_text().strip().encode()
    if len(self._secret) < 32:
      raise UserError(
        f"{self._path}: holds no secret. Delete it; all links change."
      )

  def _of(self, what: str) -> str:
    digest = hmac.new(self._secret, what.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest[:24]).decode()

  def admin(self) -> str:
    """Returns the token of whoever runs the task."""
    return self._of(_ADMIN)

  def annotator(self, name: str) -> str:
    """Returns the token of a person."""
    return self._of(_ANNOTATOR + name)

  def is_admin(self, token: str) -> bool:
    """Says whether a token is the admin's, in constant time."""
    return hmac.compare_digest(token.encode(), self.admin().encode())

  def who(self, token: str, names: Iterable[str]) -> str | None:
    """Returns whose token it is; all names are compared, in constant time."""
    found = None
    for name in names:
      if hmac.compare_digest(token.encode(), self.annotator(name).encode()):
        found = name
    return found
