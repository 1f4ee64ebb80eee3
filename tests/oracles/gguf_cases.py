"""The tiny models of families.json as llama.cpp can have them.

llama.cpp computes the scale of Gemma's scores from sizes, and its file has no
key for another.
"""

CHANGES = {
  "gemma2": {"query_pre_attn_scalar": 12},
  "gemma3": {"query_pre_attn_scalar": 12},
}


def entries(name: str, known: dict) -> dict:
  """Returns config.json of a model.

  Args:
    name: of the model.
    known: its entry in families.json.
  """
  return known["config"] | CHANGES.get(name, {})
