"""lm-eval reads our policies: adapter, local tasks, its own numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import compared, harness, likelihoods, task_suites
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs

ORACLES = Path(__file__).parent.parent / "oracles"
real_file = pytest.mark.skipif(
  "RLHF_JAX_TEST_ASSETS" not in os.environ,
  reason="set RLHF_JAX_TEST_ASSETS=1 (or to a GGUF) for the real model",
)
YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
{rest}
metadata:
  version: 1.0
"""


class Request:
  """What lm-eval hands an adapter."""

  def __init__(self, *args):
    self.args = args


def opened(source):
  config = defaults.sft()
  config.mesh.devices = 1
  config.model.source = str(source)
  base = tiny_runs.load_base(config)
  mesh = mesh_lib.make_mesh(mesh_lib.Config(devices=1))
  stage = compared.model_policy(base)
  return base, stage.role, *stage.parts, mesh


def test_without_lm_eval_the_message_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "lm_eval", None)
  with pytest.raises(UserError, match=r"rlhf_jax\[eval\]"):
    harness.package()


def test_special_tokens_of_a_template_are_what_they_spell(files):
  tokenizer = opened(files.model)[0].tokenizer
  text = "<|im_start|>user\nthe cat<|im_end|>\n"
  found = harness._ids(text, tokenizer)
  special = tokenizer.special_tokens
  assert found[0] == special["<|im_start|>"]
  assert found.count(special["<|im_end|>"]) == 1
  assert tokenizer.decode(found, skip_special=False) == text


def test_requests_are_read_in_order_and_sampling_is_refused():
  how = {"until": ["."], "max_gen_toks": 4}
  found = harness._alike(
    [Request("a", how), Request("b", {}), Request("c", how)]
  )
  assert found == {(4, (".",)): [0, 2], (harness.NEW_TOKENS, ()): [1]}
  with pytest.raises(UserError, match="sampled answers"):
    harness._alike([Request("a", {"temperature": 0.7})])


def test_likelihoods_and_answers_of_a_tiny_policy(files):
  pytest.importorskip("lm_eval")
  base, role, params, frozen, mesh = opened(files.model)
  model = harness.model(role, params, frozen, base, mesh, rows=2)
  encode = base.tokenizer.encode
  reader = likelihoods.Reader(role, frozen, base, mesh)
  begin = [task_suites.begin_id(base.tokenizer)]
  pairs = [("the cat", " sat on"), ("the cat ", "sat"), ("", "the cat")]
  wanted = reader(
    params,
    [
      likelihoods.Pair(encode("the cat"), encode(" sat on")),
      likelihoods.Pair(encode("the cat"), encode(" sat")),
      likelihoods.Pair(begin, encode("the cat")),
    ],
  )
  found = model.loglikelihood([Request(*x) for x in pairs], disable_tqdm=True)
  np.testing.assert_allclose(
    [x for x, _ in found], [x.total for x in wanted], atol=1e-5
  )
  (rolled,) = model.loglikelihood_rolling([Request("the cat")])
  assert rolled == pytest.approx(wanted[2].total, abs=1e-5)
  how = {"until": [" and"], "max_gen_toks": 5}
  said = model.generate_until([Request("the cat", how), Request("a", how)])
  assert len(said) == 2 and not any(" and" in text for text in said)
  stopped = {"until": [said[0][1:3]], "max_gen_toks": 5}
  (cut,) = model.generate_until([Request("the cat", stopped)])
  assert cut == said[0][:1]


def test_tasks_of_local_files_run_offline(files, sft_full, monkeypatch):
  """A choice and an answer out of YAML and jsonl; two policies, one command."""
  pytest.importorskip("lm_eval")
  monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("HF_HOME", str(files.root / "hub"))
  folder = files.root / "harness"
  folder.mkdir()
  rows = [
    {"question": "the cat", "choices": ["sat", "xyz"], "answer": 0},
    {"question": "the dog", "choices": ["qqq", "and"], "answer": 0},
  ]
  data = folder / "items.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  for name, kind, rest in (
    (
      "our_choice",
      "multiple_choice",
      "doc_to_target: answer\ndoc_to_choice: choices",
    ),
    (
      "our_answer",
      "generate_until",
      'doc_to_target: "{{choices[0]}}"\ngeneration_kwargs:\n'
      '  until: ["\\n"]\n  max_gen_toks: 4\n'
      "metric_list:\n  - metric: exact_match",
    ),
  ):
    text = YAML.format(name=name, data=data, kind=kind, rest=rest)
    (folder / f"{name}.yaml").write_text(text)
  from rlhf_jax import pipelines

  config = defaults.evaluate_tasks()
  config.mesh.devices = 1
  config.model.source = files.model
  config.policies = f"model,{sft_full}"
  config.suite.tasks = "lm_eval:our_choice,lm_eval:our_answer"
  config.harness = str(folder)
  told = pipelines.run(config, files.root / "harness_run")
  numbers = told["policies"]["model"]
  assert numbers["our_choice"]["score"] == 0.5
  assert numbers["our_answer"]["items"] == 2
  assert told["changes"]["sft_full"]["our_choice"]["score"]["items"] == 2
  (files.root / "harness_run" / "tasks.json").unlink()
  assert pipelines.run(config, files.root / "harness_run") == told
  assert not {"torch", "transformers"} & set(sys.modules)


def test_importing_the_adapter_needs_neither_lm_eval_nor_torch():
  code = (
    "import sys; import rlhf_jax.programs.harness; "
    "assert not {'lm_eval', 'torch', 'datasets'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@real_file
def test_numbers_are_those_of_lm_evals_own_model():
  """SmolLM2 under HFLM of lm-eval, frozen: 1e-4 of a log-likelihood."""
  pytest.importorskip("lm_eval")
  golden = json.loads((ORACLES / "likelihoods.json").read_text())
  value = os.environ["RLHF_JAX_TEST_ASSETS"]
  source = "asset:smollm2-135m-instruct" if value == "1" else value
  base, role, params, frozen, mesh = opened(source)
  model = harness.model(role, params, frozen, base, mesh)
  pairs = golden["pairs"]
  found = model.loglikelihood([Request(*x[:2]) for x in pairs])
  np.testing.assert_allclose(
    [x for x, _ in found], [x[2] for x in pairs], rtol=0, atol=1e-4
  )
  assert [x for _, x in found] == [x[3] for x in pairs]
  short = harness.model(
    role, params, frozen, base, mesh, max_length=golden["window"] + 1
  )
  texts = golden["rolling"]
  found = short.loglikelihood_rolling([Request(x[0]) for x in texts])
  np.testing.assert_allclose(found, [x[1] for x in texts], rtol=1e-5)
  said = model.generate_until([Request(x[0], x[1]) for x in golden["answers"]])
  assert said == [x[2] for x in golden["answers"]]
