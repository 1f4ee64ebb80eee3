"""The reward of both sides in the comparison of GRPO."""


def spread(texts):
  """Returns how many different words there are, over 32; a number a text."""
  return [len(set(text.split())) / 32 for text in texts]
