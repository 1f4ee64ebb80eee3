"""Requests of a suite go to those who answer, part by part."""

import pytest

from rlhf_jax.evaluation.behaviour.suites import POLICY, Say
from rlhf_jax.programs import asking
from rlhf_jax.rewards.ai.voices import LONG, Reply, Saying


class Echo:
  """Answers with the words of the last turn; what is "7" is too long for it."""

  def __init__(self):
    self.parts = []

  def texts(self, dialogues, how):
    self.parts.append((how.seed, len(dialogues)))
    words = [messages[-1]["content"] for messages in dialogues]
    return [Reply(None, LONG) if w == "7" else Reply(w) for w in words]


@pytest.mark.parametrize("shown", ["", "attack"])
def test_many_texts_are_asked_in_parts_and_come_back_in_order(shown, capsys):
  count = 2 * asking.CHUNK + 3
  asked = [
    Say([{"role": "user", "content": str(n)}], draw=n % 2) for n in range(count)
  ]

  def suite():
    return (yield asked)

  echo = Echo()
  how = Saying(max_new_tokens=4, temperature=0.0, seed=5)
  found, missing = asking.drive(suite(), {POLICY: echo}, how, shown=shown)
  assert found == [None if n == 7 else str(n) for n in range(count)]
  assert missing == 1
  half = asking.CHUNK
  assert echo.parts == [(5, half), (5, 2), (6, half), (6, 1)]
  said = capsys.readouterr().err
  assert (f"attack {count}/{count}" in said) == bool(shown)
