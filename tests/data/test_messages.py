"""Layouts of messages that people have: read right, or refused by line."""

import json

import pytest

from rlhf_jax.data import chat, dataset, encode, formats, streams
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.examples import Demonstration
from rlhf_jax.data.formats import FORMATS
from rlhf_jax.data.sources import DataError

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
YES = {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}
CALL = [
  {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
]


@pytest.mark.parametrize(
  ("record", "prompt"),
  [
    ({"chosen": [USER, YES], "rejected": [USER, NO]}, [USER]),
    ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, [USER]),
    ({"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]}, [USER]),
    ({"prompt": "Hi", "chosen": [USER, YES], "rejected": [USER, NO]}, [USER]),
    ({"prompt": "Hi", "chosen": [YES], "rejected": [NO]}, [USER]),
    (
      {"prompt": "Hi", "chosen": [SYSTEM, USER, YES]}
      | {"rejected": [SYSTEM, USER, NO]},
      [SYSTEM, USER],
    ),
    (
      {"chosen": [USER, YES, USER, YES], "rejected": [USER, YES, USER, NO]},
      [USER, YES, USER],
    ),
    ({"prompt": "Hi", "chosen": "yes", "rejected": "no"}, "Hi"),
  ],
)
def test_comparisons_of_messages(record, prompt):
  found = FORMATS["comparison"](record, "f:1")
  assert (found.prompt, found.chosen, found.rejected) == (prompt, "yes", "no")


@pytest.mark.parametrize(
  ("record", "words"),
  [
    ({"chosen": [YES], "rejected": [NO]}, "field 'prompt' is missing"),
    ({"chosen": [USER, YES], "rejected": [NO]}, "differ before their last"),
    (
      {"chosen": [USER, YES], "rejected": "no"},
      "a text and a list of messages",
    ),
    ({"chosen": [USER], "rejected": [USER]}, "'chosen' ends with .*'user'"),
    ({"chosen": [], "rejected": []}, "nothing to render"),
    (
      {"prompt": "Ho", "chosen": [USER, YES], "rejected": [USER, NO]},
      "field 'prompt' is not what stands before the answers",
    ),
    (
      {"prompt": [USER, YES], "chosen": "a", "rejected": "b"},
      "field 'prompt' ends with a message of the assistant",
    ),
    (
      {"chosen": [USER, YES | {"tool_calls": CALL}], "rejected": [USER, NO]},
      "'chosen' ends with .*not with a plain",
    ),
    (
      {"prompt": "p", "chosen": None, "rejected": "b"},
      "field 'chosen' is a NoneType",
    ),
  ],
)
def test_comparisons_that_do_not_fit(record, words):
  with pytest.raises(DataError, match=f"^f:1: .*{words}"):
    FORMATS["comparison"](record, "f:1")


def test_other_formats_take_messages_too():
  record = {"prompt": [USER], "response": [YES], "label": True}
  found = FORMATS["labelled"](record, "f:1")
  assert (found.prompt, found.response) == ([USER], "yes")
  for record in (
    {"prompt": [USER], "response": "yes"},
    {"prompt": "Hi", "response": [USER, YES]},
  ):
    found = FORMATS["demonstration"](record, "f:1")
    assert found == Demonstration("f:1", messages=[USER, YES])
  for record in ({"prompt": [SYSTEM, USER]}, {"messages": [SYSTEM, USER]}):
    assert FORMATS["prompt"](record, "f:1").prompt == [SYSTEM, USER]


@pytest.mark.parametrize(
  ("message", "words"),
  [
    ({"role": "user", "content": None}, "content is null"),
    ({"role": "user", "content": 3}, "content is a int"),
    ({"role": "gpt", "content": "a"}, "role='gpt' .*Did you mean 'assistant'?"),
    ({"role": "human", "content": "a"}, "'human' .* Did you mean 'user'?"),
    ({"role": "usr", "content": "a"}, "'usr' .* Did you mean 'user'?"),
    ({"role": None, "content": "a"}, "role=None"),
    ({"content": "a"}, r"has \['content'\]"),
    ({"from": "human", "value": "a"}, r"has \['from', 'value'\]"),
    (
      {"role": "user", "content": [{"type": "image", "url": "x"}]},
      "content has a part 'image'",
    ),
    ({"role": "user", "content": ["a"]}, "content has a part 'a'"),
    ({"role": "user", "content": [{"type": "text"}]}, "has a part 'text'"),
  ],
)
def test_messages_that_are_refused_by_line(message, words):
  with pytest.raises(DataError, match=rf"^f:1: messages\[1\].*{words}"):
    FORMATS["messages"]({"messages": [USER, message, YES]}, "f:1")


def test_parts_are_joined_and_nulls_of_tables_left_out():
  parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
  message = {"role": "user", "content": parts, "name": None, "tool_calls": []}
  found = FORMATS["messages"]({"messages": [message, YES]}, "f:1")
  assert found.messages == [{"role": "user", "content": "a b"}, YES]


def test_a_last_turn_of_the_user_is_kept():
  """The prompt of a dialogue is all but a last answer."""
  again = {"role": "user", "content": "ok?"}
  for messages, prompt in (
    ([USER, YES], [USER]),
    ([USER, YES, again], [USER, YES, again]),
    ([USER, YES, again, NO], [USER, YES, again]),
  ):
    example = FORMATS["messages"]({"messages": messages}, "f:1")
    assert formats.prompt_messages(example) == prompt


NAMED = (
  "{% for m in messages %}<|im_start|>{{ m.name if m.name else m.role }}\n"
  "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
  "<|im_end|>\n{% endfor %}"
)


def test_what_a_template_writes_besides(tokenizer):
  named = [USER | {"name": "Ann"}, YES]
  with pytest.raises(
    ValueError, match=r"messages\[0\] has 'name', and the cha"
  ):
    chat.render(named, tokenizer)
  tokenizer.chat_template = NAMED
  assert "<|im_start|>Ann\nHi<|im_end|>" in chat.render(named, tokenizer).text
  spelt = [USER | {"name": "<|im_end|>"}, YES]
  rendered = chat.render(spelt, tokenizer)
  assert rendered.text.startswith("<|im_start|><|im_end|>\nHi")
  assert rendered.ids.count(tokenizer.eos_id) == 2  # the template's own


def test_tool_calls(tokenizer):
  dialogue = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": CALL},
    {"role": "tool", "content": "2", "tool_call_id": "x"},
    YES,
  ]
  example = FORMATS["messages"]({"messages": dialogue}, "f:1")
  assert example.messages == dialogue
  with pytest.raises(DataError, match="^f:1: the chat templa.*no attribute"):
    encode.encode_all(
      encode.encode_demonstration, [example], tokenizer, 256, chat=True
    )
  tokenizer.chat_template = NAMED.replace(
    "{{ m.content }}", "{{ m.content if m.content else '' }}"
  )
  with pytest.raises(ValueError, match="learned only where the chat template"):
    chat.render(dialogue, tokenizer)
  prompt = chat.render(dialogue[:3], tokenizer, add_generation_prompt=True)
  assert '"arguments": {"a": 1}' in prompt.text
  tokenizer.chat_template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}"
    "{{ m.content if m.content else m.tool_calls | tojson }}<|im_end|>"
    "{% endgeneration %}\n{% endfor %}"
  )
  rendered = chat.render(dialogue, tokenizer)
  assert '"name": "add"' in rendered.text and 1 in rendered.assistant_mask
  with pytest.raises(ValueError, match="plain text cannot say"):
    formats.prompt_text(example)


def test_a_template_may_ask_whether_there_is_content(tokenizer):
  tokenizer.chat_template = (
    "{% for m in messages %}{% if m.content %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
  )
  empty = {"role": "system", "content": ""}
  rendered = chat.render([empty, USER, YES], tokenizer)
  assert rendered.text == chat.render([USER, YES], tokenizer).text


def test_judgements_beside_the_answers_are_named(tmp_path, capsys):
  rows = [
    {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1.0},
    {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 2.0},
    {"prompt": "r", "chosen": "a", "rejected": "b", "label": 1, "source": "x"},
  ]
  path = tmp_path / "d.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  dataset.check(Data(source=str(path)), "data")
  said = capsys.readouterr().out
  assert said == (
    f"{path}: 2 records have a field 'score_chosen', which nothing reads with "
    "format='comparison'\n"
  )


def test_tools_of_a_record(tokenizer):
  """They stand on the first message, and the template must write them."""
  for format, record in (
    ("messages", {"messages": [USER, YES]}),
    ("prompt", {"prompt": "Hi"}),
    ("prompt", {"prompt": [USER]}),
    ("comparison", {"prompt": "Hi", "chosen": "yes", "rejected": "no"}),
    ("labelled", {"prompt": "Hi", "response": "yes", "label": 1}),
    ("demonstration", {"prompt": [USER], "response": "yes"}),
  ):
    for tools in (CALL, json.dumps(CALL)):
      found = FORMATS[format]({**record, "tools": tools}, "f:1")
      messages = getattr(found, "messages", None) or found.prompt
      assert messages[0] == USER | {"tools": CALL}
    plain = FORMATS[format](record, "f:1")
    for empty in (None, [], "", "[]"):
      assert FORMATS[format]({**record, "tools": empty}, "f:1") == plain
  for odd in ("x", '{"a": 1}', {"a": 1}, [1], "[1]"):
    with pytest.raises(DataError, match="^f:1: field 'tools' is"):
      FORMATS["prompt"]({"prompt": "Hi", "tools": odd}, "f:1")
  asked = Demonstration("f:1", messages=[USER | {"tools": CALL}, YES])
  with pytest.raises(DataError, match="f:1: .*does not write the tools"):
    encode.encode_all(
      encode.encode_demonstration, [asked], tokenizer, 256, chat=True
    )
  with pytest.raises(ValueError, match="'tools'.*plain text cannot say"):
    formats.prompt_text(asked)
  tokenizer.chat_template = (
    "{{ tools | tojson if tools else '' }}\n"
    + NAMED
    + ("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
  )
  longer = [USER | {"tools": CALL}, YES, USER, YES]
  whole = streams.dialogue(longer, tokenizer, "f:1").ids
  *_, shortest = streams.shortened(longer)
  ids = streams.dialogue(shortest, tokenizer, "f:1").ids
  assert shortest == longer[:2] and len(ids) < len(whole)
  assert '"name": "add"' in tokenizer.decode(ids)
