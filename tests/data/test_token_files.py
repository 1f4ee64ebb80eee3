"""Special and added tokens of a folder against transformers; begin tokens."""

import json
from pathlib import Path

import pytest
from tokenizers import processors

from rlhf_jax.data import chat, encode, streams
from rlhf_jax.data.examples import Demonstration, Prompt
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.schema import UserError
from tests.oracles import chat_styles, token_folders
from tests.tiny import tiny_llama

ORACLES = Path(__file__).parent.parent / "oracles"
GOLDENS = json.loads((ORACLES / "tokens.json").read_text())


@pytest.mark.parametrize("name", token_folders.FOLDERS)
def test_tokens_are_those_of_transformers(tmp_path, name):
  golden = GOLDENS[name]
  tokenizer = load_tokenizer(token_folders.write(name, tmp_path))
  assert tokenizer.vocab_size == golden["size"]
  assert tokenizer.special_tokens == golden["special"]
  assert dict(tokenizer.added_tokens) == golden["added"]
  assert dict(tokenizer.named_tokens) == golden["named"]
  for text, ids in zip(token_folders.TEXTS, golden["ids"], strict=True):
    assert tokenizer.encode(text) == ids
  for text in golden["special"]:
    assert golden["special"][text] not in tokenizer.encode(f"a{text} b")


def config(folder, **entries):
  path = folder / "tokenizer_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | entries))
  return folder


@pytest.mark.parametrize(
  ("entries", "words"),
  [
    ({"added_tokens_decoder": ["x"]}, "added_tokens_decoder is"),
    ({"added_tokens_decoder": {"a": {"content": "x"}}}, "an id of added_token"),
    ({"added_tokens_decoder": {"3": {"special": True}}}, "a token is"),
    (
      {"added_tokens_decoder": {"3": {"content": "<|im_end|>"}}},
      "has id 3 in added_tokens_decoder .* and [0-9]+ in tokenizer.json",
    ),
    ({"additional_special_tokens": "<x>"}, "additional_special_tokens is <x>"),
    ({"additional_special_tokens": [3]}, "a token is 3"),
  ],
)
def test_odd_entries_are_refused(tmp_path, entries, words):
  folder = config(chat_styles.write("qwen3", tmp_path), **entries)
  with pytest.raises(UserError, match=words):
    load_tokenizer(folder)


def test_a_template_for_tools(tmp_path):
  folder = chat_styles.write("qwen3", tmp_path)
  (folder / "chat_template.jinja").unlink()
  templates = [
    {"name": "default", "template": "{{ messages[0].content }}"},
    {"name": "tool_use", "template": "{{ tools }}{{ messages[0].content }}"},
  ]
  tokenizer = load_tokenizer(config(folder, chat_template=templates))
  asked = [{"role": "user", "content": "a"}]
  assert chat.render(asked, tokenizer).text == "a"
  found = chat.render(asked, tokenizer, tools=[{"name": "f"}])
  assert found.text == "[{'name': 'f'}]a"
  more = folder / "additional_chat_templates"
  more.mkdir()
  (folder / "chat_template.jinja").write_text("x{{ messages[0].content }}")
  (more / "tool_use.jinja").write_text("y{{ tools }}{{ messages[0].content }}")
  tokenizer = load_tokenizer(folder)
  assert chat.render(asked, tokenizer).text == "xa"
  assert chat.render(asked, tokenizer, tools=[{}]).text == "y[{}]a"


ASKED = [{"role": "user", "content": "the cat"}]
SAID = [*ASKED, {"role": "assistant", "content": "Yes."}]


@pytest.mark.parametrize("name", chat_styles.STYLES)
def test_one_begin_token_at_most(tmp_path, name):
  """The post-processor's own is for plain texts, the template's for dialogues.

  transformers tokenises dialogues without the post-processor too.
  """
  tokenizer = load_tokenizer(chat_styles.write(name, tmp_path))
  tokenizer.template_day = chat_styles.DAY
  begin = tokenizer.bos_id
  text = streams.text_prompt("the cat", tokenizer)
  assert text.count(begin) == (begin is not None)
  assert begin is None or text[0] == begin
  writes = "bos_token" in tokenizer.chat_template
  tokenizer.prompt_end = (
    "answer" if name in ("qwen3", "smollm3") else "template"
  )
  if name == "phi3":
    assert not writes and streams.prompt(ASKED, tokenizer)[0] != begin
  ids = streams.prompt(ASKED, tokenizer)
  assert ids.count(begin) == writes and (not writes or ids[0] == begin)
  row = encode.encode_demonstration(
    Demonstration("f:1", messages=SAID), tokenizer, 400, chat=True
  )
  assert row["tokens"].tolist()[: len(ids)] == ids
  asked = encode.encode_prompt(Prompt("f:1", ASKED), tokenizer, chat=True)
  assert asked == ids


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("writes", [True, False])
def test_begin_tokens_in_all_four_cases(tmp_path, adds, writes):
  folder = tiny_llama(tmp_path)
  tokenizer = load_tokenizer(folder)
  if not adds:
    tokenizer._backend.post_processor = processors.Sequence([])
    tokenizer.first_ids = ()
  begin = "{{ bos_token }}" if writes else ""
  tokenizer.chat_template = begin + "{{ messages[0].content }}{{ eos_token }}"
  ids = streams.prompt(ASKED, tokenizer)
  assert ids.count(1) == writes and (ids[0] == 1) == writes
  text = streams.text_prompt("the cat", tokenizer)
  assert text.count(1) == adds and (text[0] == 1) == adds
