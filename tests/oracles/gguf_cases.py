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


def letters():
  """Returns a tokenizer of 61 tokens, as many as the models have rows."""
  import tokenizers

  from rlhf_jax.data.tokenizer_backends import HuggingFaceTokenizer

  special = ["<pad>", "<s>", "</s>"]
  tokens = [*special, *map(chr, range(ord("A"), ord("A") + 57)), "AB"]
  vocabulary = {token: i for i, token in enumerate(tokens)}
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=vocabulary, merges=[("A", "B")])
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  backend.add_special_tokens(special)
  return HuggingFaceTokenizer(
    backend, "letters", eos="</s>", bos="<s>", pad="<pad>"
  )
