"""Signs in texts: hand-made texts that show each, and near misses."""

import numpy as np
import pytest

from rlhf_jax.evaluation import probes, text_signs

PLAIN = "Water boils at 100 degrees. At height it boils earlier."
SHOWN = {
  "list": ["Do this:\n- rinse\n- dry", "1. Go.\n2. Stop.", "  * a\n  * b"],
  "bold": [
    *("**Answer** It is four.", "It is __four__.", "<b>Four</b>"),
    *("**`x`** is four", "\u7b54\u6848**\u56db**\u3002"),
  ],
  "header": ["# Answer\nFour.", "So:\n### Steps\nGo."],
  "hedging": [
    "As an AI language model, I have no view.",
    "It depends on the weather.",
    "Well, it\u2019s important to note that water is wet.",
  ],
  "refusal": [
    "I'm sorry, but I can't help with that.",
    "I cannot provide this.",
    "Unfortunately, I cannot share it.",
    "As an AI language model, I can't do so.",
    "I\u2019m unable to assist.",
    "I'm sorry to hear that. I can't help with it, though.",
    "I'm sorry, but I cannot tell you about that.",
    "I cannot talk about that.",
    "I cannot refund you for the delay.",
    "I won't lie for you.",
  ],
  "sycophancy": [
    "Great question! Four.",
    "You're absolutely right, it is five.",
    "Paris. That's a really good question!",
    "Wow, what a great idea for a story.",
    "Oh, great point.",
    "I completely agree. It is flat.",
  ],
}
MISSED = {
  "list": [
    "- one dash alone",
    "In 1998. And in 2001.",
    "well-known-fact",
    "3-4",
  ],
  "bold": [
    *("2 ** 3 is 8 and 3 ** 2 is 9", "snake_case__name", "a * b * c"),
    *("def __init__(self)", "2**3 + 4**5", "a__b__c", "Write `**so**`."),
    'if __name__ == "__main__":',
    "def __call__(self): return self.__dict__",
  ],
  "header": [
    *("#1 of the charts", "issue #3", "C# and F#"),
    "Do this:\n```python\n# add\nx = 1\n```\nDone.",
    "~~~\n# never closed",
  ],
  "hedging": ["Alas, an AI wrote it.", "She may come; perhaps he will."],
  "refusal": [
    "I'm sorry to hear that. Try tea.",
    "I can't wait to see it!",
    "I can't recommend it enough.",
    "I'm sorry to hear that. I can't imagine how it feels.",
    "I can\u2019t believe it's Friday!",
    "I cannot say enough good things about this film.",
    "I can't decide which scene I liked most.",
    "I apologize for the confusion. It is four.",
    "I'm sorry that you're going through this. Rest.",
    "Sure. I won't lie: it is hard.",
    "He said: 'I can.' " + "And so on. " * 9 + "I cannot say more.",
  ],
  "sycophancy": [
    "That is a question of taste.",
    "A great idea is to drink water.",
    "That is a good question for your doctor.",
    "Great idea is to wait.",
    "She had a brilliant idea.",
    "Turn left. " * 9 + "You're right there.",
    "If you are righteous",
  ],
}


@pytest.mark.parametrize("sign", SHOWN)
def test_a_sign_is_seen_and_a_near_miss_is_not(sign):
  found = text_signs.of_texts([*SHOWN[sign], *MISSED[sign], PLAIN])[sign]
  expected = [1.0] * len(SHOWN[sign]) + [0.0] * (len(MISSED[sign]) + 1)
  np.testing.assert_array_equal(found, expected)


def test_rates_are_means_by_hand():
  texts = ["a b c a b c", PLAIN, "- a\n- b", "**x** I cannot."]
  found = text_signs.rates(texts)
  # a b c, b c a, c a b, a b c: one of four was there before
  assert found["repetition"] == 0.25 / 4
  assert (found["list"], found["bold"], found["refusal"]) == (0.25, 0.25, 0.25)
  assert found["header"] == found["hedging"] == found["sycophancy"] == 0.0
  assert text_signs.rates(["", "two words"])["repetition"] == 0.0


def test_what_probes_add_is_seen():
  made = probes.variants([PLAIN, "Two and two are four."], 0, ["a", "b"])
  plain = text_signs.rates([PLAIN])
  assert not any(plain.values())
  for probe, sign in {
    "formatting": "bold",
    "hedging": "hedging",
    "flattery": "sycophancy",
    "repetition": "repetition",
  }.items():
    assert text_signs.rates([made[0][probe]])[sign] > 0
  assert text_signs.has_list(made[0]["formatting"])


def test_no_text_and_one_string_are_refused():
  with pytest.raises(ValueError, match="texts="):
    text_signs.of_texts("one")
  with pytest.raises(ValueError, match="Sample more"):
    text_signs.rates([])
