"""Chat templates of known families, on messages as people have them."""

import json

import pytest
import tokenizers

from rlhf_jax.data import chat, encode, stops, streams
from rlhf_jax.data.examples import Comparison, Demonstration
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.schema import UserError
from tests.tiny import tiny_tokenizer_json

PHI_3 = (
  "{% for m in messages %}{% if m['role'] == 'user' %}"
  "{{'<|user|>\n' + m['content'] + '<|end|>\n'}}"
  "{% elif m['role'] == 'assistant' %}"
  "{{'<|assistant|>\n' + m['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
  "{% else %}{{ eos_token }}{% endif %}"
)
THOUGHTS = (  # of Qwen 3, for one question
  "{% for m in messages %}{% set text = m.content %}"
  "{% if m.role == 'assistant' %}{% set thought = '' %}"
  "{% if '</think>' in text %}"
  "{% set thought = text.split('</think>')[0].rstrip('\n')"
  ".split('<think>')[-1].lstrip('\n') %}"
  "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
  "{{ '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + "
  "'\n</think>\n\n' + text + '<|im_end|>\n' }}"
  "{% else %}{{ '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}"
  "{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
  "{{- bos_token }}{%- if not tools is defined %}{%- set tools = none %}"
  "{%- endif %}{%- if tools is not none %}{{- 'Environment: ipython' }}"
  "{%- endif %}{%- for m in messages %}"
  "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
  "+ m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
  "{%- if add_generation_prompt %}"
  "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
USER = {"role": "user", "content": "Hi"}
YES = {"role": "assistant", "content": "Yes."}
THOUGHT = {**YES, "content": "<think>\nwell\n</think>\n\nYes."}


def folder_of(path, special, template, rstrip=False, **files):
  """Writes a tokenizer's folder with more special tokens, and loads it."""
  tiny_tokenizer_json(path, chat_template=template, **files)
  file = path / "tokenizer.json"
  backend = tokenizers.Tokenizer.from_file(str(file))
  backend.add_special_tokens(
    [
      tokenizers.AddedToken(t, special=True, normalized=False, rstrip=rstrip)
      for t in special
    ]
  )
  backend.save(str(file))
  return backend


def learned(tokenizer, messages):
  """Returns the text that carries loss."""
  row = encode.encode_demonstration(
    Demonstration("f:1", messages=messages), tokenizer, 200, chat=True
  )
  ids = [i for i, m in zip(row["tokens"], row["loss_mask"], strict=True) if m]
  return tokenizer.decode(ids, skip_special=False)


def test_white_space_that_an_added_token_takes_in(tmp_path):
  special = ["<|user|>", "<|assistant|>", "<|end|>"]
  backend = folder_of(tmp_path, special, PHI_3, rstrip=True)
  tokenizer = load_tokenizer(tmp_path)
  rendered = chat.render([USER, YES, USER, YES], tokenizer)
  wanted = backend.encode(rendered.text, add_special_tokens=False).ids
  assert rendered.ids == wanted  # no token for "\n" after <|user|>
  prompt = streams.prompt([USER], tokenizer)
  assert prompt == wanted[: len(prompt)]
  assert learned(tokenizer, [USER, YES]) == "Yes.<|end|>"


def test_thoughts_of_an_answer_are_learned(tmp_path):
  folder_of(tmp_path, [], THOUGHTS)
  tokenizer = load_tokenizer(tmp_path)
  assert (
    learned(tokenizer, [USER, THOUGHT]) == THOUGHT["content"] + "<|im_end|>"
  )
  pair = Comparison("f:1", "Hi", THOUGHT["content"], "Yes.")
  with pytest.raises(UserError, match="Set model.prompt_end='answer'"):
    encode.encode_comparison(pair, tokenizer, 200, chat=True)
  tokenizer.prompt_end = "answer"
  assert learned(tokenizer, [USER, YES]) == "Yes.<|im_end|>"
  with pytest.raises(UserError, match="give all of them thoughts, or none"):
    encode.encode_comparison(pair, tokenizer, 200, chat=True)


def test_the_ends_of_llama_3(tmp_path):
  ends = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
  special = ["<|begin_of_text|>", *ends]
  special += ["<|start_header_id|>", "<|end_header_id|>"]
  backend = folder_of(tmp_path, special, LLAMA_3)
  ids = [backend.token_to_id(token) for token in ends]
  names = {"eos_token": ends[0], "bos_token": special[0]}
  (tmp_path / "tokenizer_config.json").write_text(
    json.dumps({**names, "chat_template": LLAMA_3})
  )
  tokenizer = load_tokenizer(tmp_path)
  # config.json's own end, and the template's; then those of the files
  assert stops.end_ids(tokenizer) == (ids[0], ids[2])
  (tmp_path / "generation_config.json").write_text(
    json.dumps({"eos_token_id": ids})
  )
  tokenizer = load_tokenizer(tmp_path)
  assert stops.end_ids(tokenizer) == tuple(ids)
  assert learned(tokenizer, [USER, YES]) == "Yes.<|eot_id|>"
  text = chat.render([USER], tokenizer, add_generation_prompt=True).text
  assert text.startswith("<|begin_of_text|><|start_header_id|>user")
  changed = tokenizer.chat_template.replace("eot_id", "eom_id")
  tokenizer.chat_template = changed  # what is kept of a template is its own
  assert learned(tokenizer, [USER, YES]) == "Yes.<|eom_id|>"


def test_a_message_that_a_template_passes_over_is_refused(tokenizer):
  tokenizer.chat_template = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
  )
  system = {"role": "system", "content": "Be kind."}
  words = r"messages\[0\]: the chat template does not write what the 'system'"
  with pytest.raises(UserError, match=words):
    chat.render([system, USER, YES], tokenizer)
  empty = {**system, "content": ""}
  assert chat.render([empty, USER, YES], tokenizer).text.count("im_start") == 2
