"""What is trained is what is sampled: prompts, rows, pairs, odd templates."""

import itertools
import json

import pytest

from rlhf_jax.data import chat, dataset, encode, stops, streams
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.examples import Comparison, Demonstration, Labelled, Prompt
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models import pretrained
from rlhf_jax.models.pretrained import Model
from tests.tiny import LLAMA_TEMPLATE, tiny_llama, tiny_tokenizer_json

HEAD = "<|im_start|>{{ m['role'] }}\n"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chatml(content="{{ m['content'] }}", ask=ASK, end="<|im_end|>\n"):
  return f"{{% for m in messages %}}{HEAD}{content}{end}{{% endfor %}}{ask}"


CLEAN = {
  "chatml": chatml(),
  "spaced": chatml("{{ ' ' + m['content'] + ' ' }}"),
  "trimmed": chatml("{{ m['content'] | trim }}"),
  "break": chatml("\n{{ m['content'] | trim }}"),
  "another end": chatml(end="<|endoftext|>"),
  "rule in the last turn": (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    + chatml(
      "{% if loop.index0 == ns.last %}Be short. {% endif %}{{ m['content'] }}"
    )
  ),
}
THINK = "<think>\n\n</think>\n\n"
TWO = {
  "empty thoughts": chatml(
    "{% if loop.last and m['role'] == 'assistant' %}"
    "{{ '" + THINK.replace("\n", "\\n") + "' }}{% endif %}{{ m['content'] }}"
  ),
  "opened thoughts": chatml(ask=ASK.replace("{% endif", "<think>\n{% endif")),
  "no header": chatml(ask=""),
}

ANSWERS = ("yes", " yes", "yes\n", "  12\n\nno", "<think>x</think> 4", "é")
ASKED = ("What?", " 1 ", "a\n", "the cat sat\n\n", "[x]", "<|im_end|>", "no")


def conversations():
  """Returns 42 dialogues of one to three questions, without last answers."""
  found = []
  for n, (answer, asked) in enumerate(itertools.product(ANSWERS, ASKED)):
    turns = [{"role": "system", "content": "Be kind."}] if n % 4 == 3 else []
    for k in range(n % 3):
      turns.append({"role": "user", "content": ASKED[(n + k) % 7]})
      turns.append({"role": "assistant", "content": ANSWERS[(n + k) % 6]})
    found.append(([*turns, {"role": "user", "content": asked}], answer))
  return found


@pytest.fixture
def load(tmp_path):
  """Returns a function that loads a tokenizer with a template."""

  def made(template, prompt_end="template"):
    tokenizer = load_tokenizer(tiny_tokenizer_json(tmp_path / "a"))
    tokenizer.chat_template, tokenizer.prompt_end = template, prompt_end
    return tokenizer

  return made


def check(turns, answer, tokenizer):
  """Checks one dialogue as every stage reads it; returns its answer's ids."""
  prompt = encode.encode_prompt(Prompt("f:1", turns), tokenizer, chat=True)
  whole = [*turns, {"role": "assistant", "content": answer}]
  example = Demonstration("f:1", messages=whole)
  row = encode.encode_demonstration(example, tokenizer, 999, chat=True)
  tokens, count = row["tokens"].tolist(), len(prompt)
  assert tokens[:count] == prompt
  assert row["loss_mask"][count:].all() and not row["loss_mask"][count - 1]
  said = tokens[count:]
  pair = encode.encode_comparison(
    Comparison("f:1", turns, answer, "other"), tokenizer, 999, chat=True
  )
  assert pair["prompt"] == tuple(prompt)
  assert pair["chosen"]["tokens"].tolist() == tokens
  judged = encode.encode_labelled(
    Labelled("f:1", turns, answer, 1.0), tokenizer, 999, chat=True
  )
  assert judged["answer"]["tokens"].tolist() == tokens
  assert said[-1] in stops.end_ids(tokenizer)
  return said


@pytest.mark.parametrize("name", CLEAN)
def test_trap_36_prompts_rows_and_pairs_are_one_stream(load, name):
  tokenizer = load(CLEAN[name])
  for turns, answer in conversations():
    said = check(turns, answer, tokenizer)
    text = tokenizer.decode(said[:-1], skip_special=False)
    assert text.strip() == answer.strip()


@pytest.mark.parametrize("scheme", ["prepend", "always", "first"])
def test_trap_36_word_starts_after_a_prompt(tmp_path, scheme):
  folder = tiny_llama(tmp_path / "a", scheme, chat_template=LLAMA_TEMPLATE)
  tokenizer = load_tokenizer(folder)
  turns = [{"role": "user", "content": "hi"}]
  said = check(turns, "yes", tokenizer)
  pieces = [tokenizer._backend.id_to_token(i) for i in said]
  assert pieces == ["▁y", "e", "s", "▁", "</s>"]
  # As the tokenizers library reads the whole text.
  whole = [*turns, {"role": "assistant", "content": "yes"}]
  rendered = chat.render(whole, tokenizer)
  tokenizer._backend.encode_special_tokens = False
  expected = tokenizer._backend.encode(rendered.text, add_special_tokens=False)
  assert rendered.ids == expected.ids


@pytest.mark.parametrize("name", TWO)
def test_two_streams_are_refused_with_record_and_remedy(load, name, tmp_path):
  tokenizer = load(TWO[name])
  turns = [{"role": "user", "content": "hi"}]
  whole = [*turns, {"role": "assistant", "content": "yes"}]
  remedy = "f:1: the chat template of .*model.prompt_end='answer'"
  with pytest.raises(ValueError, match=remedy):
    encode.encode_demonstration(
      Demonstration("f:1", messages=whole), tokenizer, 99, chat=True
    )
  with pytest.raises(ValueError, match=remedy):
    encode.encode_comparison(
      Comparison("f:1", turns, "yes", "no"), tokenizer, 99, chat=True
    )
  path = tmp_path / "prompts.jsonl"
  path.write_text(json.dumps({"prompt": "hi"}) + "\n")
  data = Data(source=str(path), format="prompt", chat=True)
  with pytest.raises(ValueError, match="prompts.jsonl:1: .*prompt_end"):
    dataset.prompts(data, tokenizer, 99)


@pytest.mark.parametrize("name", [*CLEAN, *TWO])
def test_prompts_may_end_where_the_answer_is_written(load, name):
  tokenizer = load({**CLEAN, **TWO}[name], "answer")
  for turns, answer in conversations():
    check(turns, answer, tokenizer)
  prompt = streams.prompt([{"role": "user", "content": "hi"}], tokenizer)
  text = tokenizer.decode(prompt, skip_special=False)
  assert text.endswith(THINK if name == "empty thoughts" else "")
  assert "assistant" in text


def test_the_model_section_names_template_and_end_of_prompts(tmp_path):
  folder = tiny_tokenizer_json(tmp_path / "a", chat_template=chatml())
  file = tmp_path / "own.jinja"
  file.write_text(TWO["no header"])
  model = Model(chat_template=str(file), prompt_end="answer")
  tokenizer = pretrained.read_tokenizer(model, folder)
  prompt = streams.prompt([{"role": "user", "content": "hi"}], tokenizer)
  assert tokenizer.decode(prompt).endswith("assistant\n")
  with pytest.raises(ValueError, match="chat_template='gone'"):
    pretrained.read_tokenizer(Model(chat_template="gone"), folder)
  with pytest.raises(ValueError, match="prompt_end"):
    Model(prompt_end="nowhere")
  file.write_text("{{ strftime_now('%Y') }}{{ messages[0].content }}")
  model = Model(chat_template=str(file), template_day="1999-12-31")
  tokenizer = pretrained.read_tokenizer(model, folder)
  prompt = streams.prompt([{"role": "user", "content": "hi"}], tokenizer)
  assert tokenizer.decode(prompt) == "1999hi"
  with pytest.raises(ValueError, match="template_day='today'"):
    Model(template_day="today")
  file.write_text("{{ messages[0].content }}{% if a is false %}!{% endif %}")
  model = Model(chat_template=str(file), template_variables='{"a": false}')
  tokenizer = pretrained.read_tokenizer(model, folder)
  prompt = streams.prompt([{"role": "user", "content": "hi"}], tokenizer)
  assert tokenizer.decode(prompt) == "hi!"
  tokenizer.chat_template = "{{ messages[0].content }}"
  with pytest.raises(ValueError, match="template_variables has .'a'.*not read"):
    streams.prompt([{"role": "user", "content": "hi"}], tokenizer)
  for odd in ("{a}", "[]", "3"):
    with pytest.raises(ValueError, match="template_variables=.*no JSON object"):
      Model(template_variables=odd)


def test_an_earlier_answer_behind_another_text_is_context(load):
  tokenizer = load(CLEAN["rule in the last turn"])
  turns, _ = conversations()[2]
  whole = [*turns, {"role": "assistant", "content": "yes"}]
  rows, dropped = encode.encode_all(
    encode.encode_demonstration,
    [Demonstration("f:1", messages=whole)],
    tokenizer,
    999,
    chat=True,
  )
  learned = rows[0]["tokens"][rows[0]["loss_mask"] > 0].tolist()
  assert tokenizer.decode(learned) == "yes"
  assert dropped == {encode.SKIPPED: 1}


def test_an_end_that_ends_no_sampling_is_refused(load):
  tokenizer = load(
    "{% for m in messages %}<|im_start|>{% generation %}{{ m['content'] }}."
    "{% endgeneration %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>{% endif %}"
  )
  whole = [{"role": role, "content": "x"} for role in ("user", "assistant")]
  with pytest.raises(ValueError, match="f:1: .* ends an answer with '.'"):
    streams.dialogue(whole, tokenizer, "f:1")
