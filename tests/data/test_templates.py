"""Templates are programs: what they do wrong is one error, within limits."""

import re

import pytest

from rlhf_jax.data import encode, templates
from rlhf_jax.data.examples import Comparison, Demonstration
from rlhf_jax.data.sources import DataError
from rlhf_jax.schema import UserError

LOOP = "{% for a in range(99999) %}"
MESSAGES = {"messages": [{"role": "user", "content": "a"}]}


@pytest.fixture
def is_hasty(monkeypatch):
  monkeypatch.setattr(templates, "CPU_SECONDS", 1)


@pytest.mark.parametrize(
  ("template", "words"),
  [
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ messages[9].content }}", "UndefinedError"),
    ("{{ messages | sum }}", "TypeError"),
    ("{{ none.x.y }}", "UndefinedError"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without an end"),
    ("{{ raise_exception('no') }}", "refused roles .'user'.: no. Change"),
    ("{{ 'a' * 10**10 }}", "more memory than allowed"),
    (
      "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
      "{% set n.x = n.x ~ n.x %}{% endfor %}",
      "(more memory than allowed|took more than 1 s .*memory)",
    ),
    ("{{ strftime_now('%d') }}", "strftime_now.*a copy with a fixed day"),
    ("{% for m in messages %}", "is not valid Jinja .line 1"),
    (3 * LOOP + 3 * "{% endfor %}", "took more than 1 s of processor"),
    ("{{ 'a' * 10**8 }}", "64 MiB of text"),
  ],
)
def test_a_template_that_fails(is_hasty, template, words):
  (error,) = templates.render(template, "tok", [MESSAGES])
  assert isinstance(error, UserError)
  assert re.search(f"chat template of tok .*{words}", str(error))
  assert templates.render("{{ messages[0].content }}", "t", [MESSAGES]) == ["a"]


def test_one_rendering_that_fails_costs_no_other():
  two = {"messages": [*MESSAGES["messages"], {"role": "user", "content": "b"}]}
  first, error = templates.render(
    "{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}x",
    "tok",
    [MESSAGES, two],
  )
  assert first == "x"
  assert "refused roles ['user', 'user']: no. Change" in str(error)


def test_tojson_takes_the_arguments_that_transformers_gives_it():
  template = "{{ messages[0] | tojson(indent=1, sort_keys=true) }}"
  (text,) = templates.render(template, "tok", [MESSAGES])
  assert text == '{\n "content": "a",\n "role": "user"\n}'


def test_the_day_that_a_template_writes_is_a_setting():
  template = "{{ strftime_now('%d %b %Y') }}{{ strftime_now is defined }}"
  given = MESSAGES | {templates.DAY: "2025-03-04"}
  assert templates.render(template, "tok", [given]) == ["04 Mar 2025True"]
  given[templates.DAY] = None
  (text,) = templates.render("{{ strftime_now is defined }}", "tok", [given])
  assert text == "False"
  with pytest.raises(UserError, match="template_day='4.3.': .*YYYY-MM-DD"):
    templates.check_day("4.3.")
  templates.check_day("")


@pytest.mark.parametrize(
  ("template", "text"),
  [
    ("{% set x = dict(a=1) %}{{ x.a }}", "1"),
    ("{{ dict.fromkeys('ab', 1) }}", "{'a': 1, 'b': 1}"),
    ("{% set n = namespace(self=2) %}{{ n.self }}", "2"),
    ("{% set n = namespace(_a=2) %}", "begins with an underscore"),
    ("{% set n = namespace() %}{% set n._a = 2 %}", "with an underscore"),
    ("{{ dict.__class__.__mro__ }}", "unsafe"),
    # What a block sets stays in it, as in transformers.
    (
      "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}"
      "{% endgeneration %}{{ a }}",
      "21",
    ),
    ("  {% generation %}\nx{% endgeneration %}\ny", "xy"),
    ("{{ '<é>' | tojson }}{{ [1, 2] | tojson(separators=(',', ':')) }}",)
    + ('"<é>"[1,2]',),
  ],
)
def test_what_a_template_has_is_what_it_has_in_transformers(template, text):
  given = MESSAGES | {"generation_open": "", "generation_close": ""}
  (found,) = templates.render(template, "tok", [given])
  assert found == text or text in str(found)


CHATML = (
  "{% for m in messages %}{% if m.content == 'bad' %}"
  "{{ raise_exception('not this one') }}{% endif %}"
  "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
  ("encoder", "example"),
  [
    (encode.encode_demonstration, Demonstration("f:7", "bad", "r")),
    (encode.encode_comparison, Comparison("f:7", "bad", "a", "b")),
  ],
)
def test_the_record_that_a_template_refuses_is_named(
  tokenizer, encoder, example
):
  tokenizer.chat_template = CHATML
  with pytest.raises(
    DataError, match="^f:7: the chat .*: not this one. Change"
  ):
    encode.encode_all(encoder, [example], tokenizer, 64, chat=True)


def test_the_prompt_that_a_template_refuses_is_named(tokenizer, tmp_path):
  from rlhf_jax.data import dataset
  from rlhf_jax.data.dataset import Data

  tokenizer.chat_template = CHATML
  (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "bad"}\n')
  data = Data(source=str(tmp_path / "p.jsonl"), format="prompt", chat=True)
  with pytest.raises(
    DataError, match="p.jsonl:2: the chat template .*not this"
  ):
    dataset.prompts(data, tokenizer, 64)
