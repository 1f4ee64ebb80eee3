"""A port for the processes of a run, which no other test is given.

Ports that the system gives (32768 and above) may be given again, to anyone,
before process 0 listens there.
"""

import itertools
import os
import socket

_PORTS = itertools.cycle(range(40))


def free_port() -> int:
  """Returns a port of this process's own forty at which nobody listens."""
  first = 15000 + os.getpid() % 400 * 40
  for _ in range(40):
    port = first + next(_PORTS)
    with socket.socket() as probe:
      try:
        probe.bind(("127.0.0.1", port))
      except OSError:
        continue
    return port
  raise RuntimeError(f"ports {first} to {first + 39} are all taken")
