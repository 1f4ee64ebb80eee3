"""What the files beside a tokenizer say: special tokens, templates, ends.

tokenizer_config.json is read as transformers reads it. Its added_tokens_decoder
has the last word on added tokens; without one, special_tokens_map.json is read
over it and added_tokens.json beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from rlhf_jax import strict_json
from rlhf_jax.schema import UserError

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
TOOL_TEMPLATE = "tool_use"  # the name of a template for dialogues with tools
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


def read_json(path: Path) -> dict[str, Any]:
  """Returns the object in a file, {} where there is no file."""
  if not path.exists():
    return {}
  return strict_json.read_object(path, "Download the file again.")


@dataclass(frozen=True)
class Declared:
  """What a folder says of its tokens.

  folder: where.
  named: "bos_token" and the like -> text; a model may have names of its own.
  added: id -> token, of added_tokens_decoder and added_tokens.json.
  special: further special tokens, in the order in which they are added.
  config: tokenizer_config.json.
  template, tool_template: Jinja sources, None where there is none.
  """

  folder: Path
  named: dict[str, str] = field(default_factory=dict)
  added: dict[int, tokenizers.AddedToken] = field(default_factory=dict)
  special: tuple[tokenizers.AddedToken, ...] = ()
  config: dict[str, Any] = field(default_factory=dict)
  template: str | None = None
  tool_template: str | None = None


def read(folder: Path) -> Declared:
  """Returns what the files of a folder say of its tokens.

  Raises:
    UserError: an entry of another shape than transformers writes.
  """
  config = read_json(folder / "tokenizer_config.json")
  entries = dict(config)
  given = config.get("added_tokens_decoder")
  if given is None:
    entries |= read_json(folder / "special_tokens_map.json")
  roles = {
    key: entries[key]
    for key in [f"{role}_token" for role in ROLES]
    if entries.get(key) is not None
  }
  more = {
    key: value
    for key, value in entries.items()
    if key.endswith("_token") and key not in roles
    if isinstance(value, (str, dict))
  }
  if isinstance(entries.get("extra_special_tokens"), dict):
    more |= entries["extra_special_tokens"]
  named = {
    key: _named(key, value, folder) for key, value in (roles | more).items()
  }
  special = [
    _token(value, folder, special=True) for value in (roles | more).values()
  ]
  for key in ("additional_special_tokens", "extra_special_tokens"):
    values = entries.get(key) or []
    if isinstance(values, dict) and key == "extra_special_tokens":
      continue  # among the named ones
    if not isinstance(values, list):
      raise _odd(key, values, folder)
    special += [_token(value, folder, special=True) for value in values]
  texts = {token.content for token in special}
  return Declared(
    folder,
    named,
    _added(given, texts, folder),
    tuple({token.content: token for token in special}.values()),
    config,
    *_templates(config, folder),
  )


def _odd(key: str, value: Any, folder: Path) -> UserError:
  return UserError(
    f"{folder}: {key} is {str(value)[:60]} in tokenizer_config.json or "
    "special_tokens_map.json. Give one token: its text, or an object whose "
    "'content' is that."
  )


def _named(key: str, value: Any, folder: Path) -> str:
  text = value.get("content") if isinstance(value, dict) else value
  if not isinstance(text, str) or not text:
    raise _odd(key, value, folder)
  return text


def _token(value: Any, folder: Path, special: bool) -> tokenizers.AddedToken:
  """Returns a token given as its text or as an object."""
  text = _named("a token", value, folder)
  flags = {"normalized": not special}
  if isinstance(value, dict):
    flags |= {name: bool(value[name]) for name in _FLAGS if name in value}
  return tokenizers.AddedToken(text, special=special, **flags)


def _added(
  given: Any, special: set[str], folder: Path
) -> dict[int, tokenizers.AddedToken]:
  """Returns id -> token, of added_tokens_decoder or else added_tokens.json.

  Args:
    given: added_tokens_decoder, None where there is none.
    special: texts of tokens that other entries say are special.
    folder: for messages, and for added_tokens.json.
  """
  if given is None:
    ids = read_json(folder / "added_tokens.json")
    given = {
      i: {"content": text, "special": text in special}
      for text, i in ids.items()
    }
  found = {}
  if not isinstance(given, dict):
    raise _odd("added_tokens_decoder", given, folder)
  for i, value in given.items():
    if not str(i).isdecimal():
      raise _odd(f"an id of added_tokens_decoder ({i!r})", value, folder)
    is_special = isinstance(value, dict) and bool(value.get("special"))
    found[int(i)] = _token(value, folder, special=is_special)
  return dict(sorted(found.items()))


def _templates(
  config: dict[str, Any], folder: Path
) -> tuple[str | None, str | None]:
  """Returns the chat template of a folder, and that for tools.

  Raises:
    UserError: it is no text, or there are several and none is "default".
  """
  files = {
    "default": folder / "chat_template.jinja",
    TOOL_TEMPLATE: folder / "additional_chat_templates/tool_use.jinja",
  }
  named = {n: _text(file) for n, file in files.items() if file.is_file()}
  if not named:
    named = _of_config(config.get("chat_template"), folder)
  return named.get("default"), named.get(TOOL_TEMPLATE)


def _text(file: Path) -> str:
  try:
    return strict_json.decode(file.read_bytes())
  except ValueError as error:
    raise UserError(f"{file}: {error}. Download the file again.") from error


def _of_config(given: Any, folder: Path) -> dict[str, str]:
  """Returns name -> template of an entry of tokenizer_config.json."""
  if given is None:
    return {}
  if isinstance(given, list):
    names = [t.get("name") if isinstance(t, dict) else t for t in given]
    if names.count("default") != 1:
      raise UserError(
        f"{folder}: chat_template in tokenizer_config.json holds templates "
        f"named {names}. Name exactly one of them 'default'."
      )
    found = {t["name"]: t.get("template") for t in given if isinstance(t, dict)}
  else:
    found = {"default": given}
  for text in found.values():
    if not isinstance(text, str):
      raise UserError(
        f"{folder}: chat_template in tokenizer_config.json is a "
        f"{type(text).__name__}. Give the text of a Jinja template."
      )
  return found


def apply(declared: Declared, backend: tokenizers.Tokenizer) -> set[str]:
  """Adds the tokens that files declare to a tokenizer that lacks them.

  Args:
    declared: of its folder.
    backend: of its tokenizer.json; changed.

  Returns:
    texts of tokens that are special.

  Raises:
    UserError: an id that another token has.
  """
  special = {token.content for token in declared.special}
  known = {t.content for t in backend.get_added_tokens_decoder().values()}
  for i, token in declared.added.items():
    special |= {token.content} if token.special else set()
    if token.content not in known:
      _add(token, backend)
    if backend.token_to_id(token.content) != i:
      raise UserError(
        f"{declared.folder}: {token.content!r} has id {i} in "
        "added_tokens_decoder of tokenizer_config.json, and "
        f"{backend.token_to_id(token.content)} in tokenizer.json. Correct one."
      )
  known |= {token.content for token in declared.added.values()}
  named = declared.named
  roles = {named.get(f"{role}_token") for role in ROLES}
  for token in declared.special:
    # A named token that the vocabulary lacks has no row in the model.
    if token.content not in known:
      if backend.token_to_id(token.content) is not None or (
        token.content not in roles
      ):
        _add(token, backend)
  return special


def _add(token: tokenizers.AddedToken, backend: tokenizers.Tokenizer) -> None:
  add = backend.add_special_tokens if token.special else backend.add_tokens
  add([token])


def read_ends(folder: Path) -> tuple[int, ...]:
  """Returns the end tokens that generation_config.json and config.json name.

  Raises:
    UserError: an eos_token_id that is neither a number nor a list of them.
  """
  found: list[int] = []
  for name in ("generation_config.json", "config.json"):
    try:
      config = read_json(folder / name)
    except UserError:
      if name != "config.json":
        raise
      config = None
    if not isinstance(config, dict):
      continue  # what reads the model says so
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
      ends = part.get("eos_token_id")
      ends = ends if isinstance(ends, list) else [ends]
      for end in ends:
        if end is None:
          continue
        if type(end) is not int or end < 0:
          raise UserError(
            f"{folder / name}: eos_token_id={part['eos_token_id']!r}: is the "
            "id of an end token, or a list of ids. Correct it there."
          )
        found.append(end)
  return tuple(dict.fromkeys(found))
