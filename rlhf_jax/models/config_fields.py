"""The entries of a config.json, or of a GGUF file's metadata, one by one.

A Fields is asked for each entry that matters, and says in the end which ones
nobody asked for: an entry that changes the numbers is read or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_jax.schema import UserError

MOST_LAYERS, MOST, MOST_NUMBER = 1_000, 2**31 - 1, 1e30
LAYERS = ("num_hidden_layers", "n_layer")
COPY = "Copy the file again from where the weights come from."

# Entries that do not change what a forward pass without dropout computes:
# training, generation, files and labels.
HARMLESS = frozenset(
  """
  architectures model_type torch_dtype dtype transformers_version use_cache
  _name_or_path name_or_path auto_map initializer_range pretraining_tp
  attn_implementation _attn_implementation _attn_implementation_autoset
  cache_implementation gradient_checkpointing torchscript use_bfloat16
  bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
  forced_bos_token_id forced_eos_token_id prefix tokenizer_class
  attention_dropout hidden_dropout classifier_dropout attn_pdrop embd_pdrop
  resid_pdrop summary_activation summary_first_dropout summary_proj_to_labels
  summary_type summary_use_proj summary_hidden_size return_dict
  return_dict_in_generate output_attentions output_hidden_states output_scores
  is_decoder is_encoder_decoder add_cross_attention tie_encoder_decoder
  cross_attention_hidden_size chunk_size_feed_forward pruned_heads
  finetuning_task id2label label2id num_labels problem_type
  task_specific_params bad_words_ids begin_suppress_tokens suppress_tokens
  diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
  exponential_decay_length_penalty length_penalty max_length min_length
  no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
  remove_invalid_values repetition_penalty temperature tf_legacy_loss top_k
  top_p typical_p unsloth_fixed unsloth_version reorder_and_upcast_attn
  """.split()
)


class Fields:
  """The entries of one model; `seen` are those that were asked for."""

  def __init__(self, values: Mapping[str, Any], family: str) -> None:
    self.values, self.family = values, family
    self.seen: set[str] = set()

  def get(self, field: str, usual: Any = None) -> Any:
    """Returns an entry; `usual` where it is not there."""
    self.seen.add(field)
    return self.values.get(field, usual)

  def has(self, field: str) -> bool:
    """Says whether an entry is there and no null."""
    return self.get(field) is not None

  def whole(self, field: str, usual: int | None = None) -> int:
    """Returns a size, a whole number; see `whole`."""
    self.seen.add(field)
    return whole(self.values, field, usual, self.family)

  def positive(self, field: str, usual: float) -> float:
    """Returns a positive number; see `positive`."""
    self.seen.add(field)
    return positive(self.values, field, usual)

  def flag(self, field: str, usual: bool) -> bool:
    """Returns true or false.

    Raises:
      UserError: it is something else.
    """
    value = self.get(field, usual)
    if not isinstance(value, bool):
      raise UserError(f"{field}={value!r:.60}: must be true or false. {COPY}")
    return value

  def only(self, field: str, allowed: Any) -> None:
    """Raises UserError unless an entry is what the family is written for.

    Args:
      field: its key; a null is as if it were not there.
      allowed: the only value.
    """
    value = self.get(field)
    if value is not None and value != allowed:
      raise UserError(
        f"{field}={value!r:.60}: the {self.family} family is implemented for "
        f"{allowed!r} only. Convert the model or extend "
        "rlhf_jax/models/family_configs.py."
      )

  def choice(self, field: str, choices: Mapping[Any, str], usual: Any) -> str:
    """Returns what an entry means, of the values that are known.

    Raises:
      UserError: another value.
    """
    value = self.get(field, usual)
    if not isinstance(value, str | None) or value not in choices:
      known = ", ".join(repr(name) for name in choices)
      raise UserError(
        f"{field}={value!r:.60}: the {self.family} family is implemented for "
        f"{known} only. Convert the model or extend "
        "rlhf_jax/models/family_configs.py."
      )
    return choices[value]

  def check_all_seen(self) -> None:
    """Raises UserError for an entry that might matter and nobody asked for."""
    unread = sorted(
      field
      for field, value in self.values.items()
      if field not in self.seen and field not in HARMLESS and value is not None
    )
    if unread:
      raise UserError(
        f"{unread[0]}={self.values[unread[0]]!r:.60}: the {self.family} family "
        "does not read this, and it may change the numbers. Take it out of "
        "config.json if it does not, or extend "
        "rlhf_jax/models/family_configs.py."
      )


def whole(
  values: Mapping[str, Any],
  field: str,
  usual: int | None = None,
  family: str = "llama",
) -> int:
  """Returns a size of a model, a whole number.

  Args:
    values: of config.json, or the metadata of a GGUF file.
    field: its key there.
    usual: where it is not given; None if it must be.
    family: for the message.

  Raises:
    UserError: it is not given, no whole number, or no size of a model.
  """
  if field not in values and usual is not None:
    return usual
  if field not in values:
    raise UserError(
      f"config.json names no {field!r}: it is not a complete {family} config. "
      f"{COPY}"
    )
  value = values[field]
  is_depth = field in LAYERS or field.endswith(".block_count")
  most = MOST_LAYERS if is_depth else MOST
  if type(value) is not int or not 1 <= value <= most:
    raise UserError(
      f"{field}={value!r:.60}: must be a whole number from 1 to {most}. {COPY}"
    )
  return value


def positive(values: Mapping[str, Any], field: str, usual: float) -> float:
  """Returns a number of a model that is positive and finite; see `whole`."""
  value = values.get(field, usual)
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not 0.0 < value < MOST_NUMBER:
    raise UserError(f"{field}={value!r:.60}: must be a positive number. {COPY}")
  return float(value)
