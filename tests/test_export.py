"""A policy becomes a Hugging Face folder, and reads back as the same policy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import export, lab
from rlhf_jax.data import assets
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.exports import tokenizer_files
from rlhf_jax.models import huggingface, outputs, trees
from rlhf_jax.models.rows import Rows
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests import tiny
from tests.pipelines import tiny_runs

ONE = mesh_lib.Config(devices=1)
TOKENS = jnp.asarray([[5, 9, 30, 77, 2, 60], [8, 8, 12, 90, 41, 3]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("export") / "model"
  tiny_runs.make_model(folder)
  card = "---\nlicense: mit\nlanguage: en\n---\n# A tiny model\n"
  (folder / "README.md").write_text(card)
  (folder / "generation_config.json").write_text('{"temperature": 0.7}')
  return folder


@pytest.fixture(scope="module")
def policy(model):
  """A policy whose factors are not 0, as after training."""
  found = lab.load(model, lora_rank=2, mesh=ONE)
  params = jax.tree.map(lambda x: x + 0.1, found.params)
  return lab.dataclasses.replace(
    found,
    params=params,
    methods=(("sft", 3), ("grpo", 7)),
    origin=lab.Origin(folder=None),
  )


def logits(policy):
  """Returns [2, 6, V] next-token logits of fixed tokens."""
  mask = jnp.ones(TOKENS.shape)
  rows = Rows(TOKENS, mask, jnp.cumsum(mask, 1).astype(int) - 1)
  variables = trees.merge(policy.params, policy.frozen)
  x = outputs.stream(policy.role, variables, rows, None)
  weights = {"params": variables["params"]}
  return policy.role.network.apply(weights, x, method="unembed")


def test_the_folder_reads_back_to_equal_logits(policy, tmp_path):
  export.export(policy, tmp_path / "out")
  found = lab.load(tmp_path / "out", mesh=ONE)
  assert found.role.trainable == "full"
  expected = logits(policy)
  np.testing.assert_allclose(logits(found), expected, rtol=2e-5, atol=2e-5)
  base = lab.load(policy.base.source, mesh=ONE)
  assert np.abs(logits(base) - expected).max() > 0.1  # the factors are in it


def test_bfloat16_rounds_each_weight_once(policy, tmp_path):
  export.export(policy, tmp_path / "exact")
  export.export(policy, tmp_path / "half", dtype="bfloat16")
  config, half = huggingface.load(tmp_path / "half")
  _, exact = huggingface.load(tmp_path / "exact")
  written = json.loads((tmp_path / "half" / "config.json").read_text())
  assert written["torch_dtype"] == "bfloat16"
  assert config == huggingface.load(tmp_path / "exact")[0]
  exact = jax.tree.map(np.asarray, exact)
  for path, leaf in trees.flatten(half).items():
    rounded = trees.flatten(exact)[path].astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(leaf), rounded.astype(np.float32))
  sizes = [
    (tmp_path / name / "model.safetensors").stat().st_size
    for name in ("half", "exact")
  ]
  assert sizes[0] < 0.6 * sizes[1]


def test_what_stands_beside_the_weights(policy, model, tmp_path):
  export.export(policy, tmp_path / "out")
  for name in ("tokenizer.json", "tokenizer_config.json"):
    assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()
  found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
  ids = {"eos_token_id": 2, "pad_token_id": 2}
  assert found == {"temperature": 0.7} | ids
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["eos_token_id"] == policy.base.tokenizer.eos_id
  again = load_tokenizer(tmp_path / "out")
  assert again.fingerprint == policy.base.tokenizer.fingerprint
  assert again.chat_template == tiny_runs.CHAT
  card = (tmp_path / "out" / "README.md").read_text()
  assert card.startswith("---\nlicense: mit\nbase_model: model\n")
  for line in (
    "| licence of the base model | mit |",
    "| trained by | sft (3 steps), then grpo (7 steps) |",
    "| what trained last | LoRA of rank 2, from layer 0 |",
    "| weights | float32, LoRA factors merged |",
    "| run | in memory |",
  ):
    assert line in card


def test_a_run_is_named_as_everywhere(policy, tmp_path, capsys):
  policy.save(tmp_path / "run")
  code = export.main(
    [f"--run={tmp_path / 'run'}@10", f"--output={tmp_path / 'out'}"]
  )
  assert code == 0
  assert "model.safetensors" in capsys.readouterr().out
  card = (tmp_path / "out" / "README.md").read_text()
  assert f"| run | {tmp_path / 'run'}@10 |" in card
  found = lab.load(tmp_path / "out", mesh=ONE)
  np.testing.assert_allclose(
    logits(found), logits(policy), rtol=2e-5, atol=2e-5
  )


def test_the_vocabulary_of_a_gguf_file_becomes_tokenizer_json(tmp_path):
  path = tiny.tiny_gguf_vocabulary(tmp_path / "tiny.gguf")
  tokenizer = load_tokenizer(path)
  folder = tmp_path / "out"
  folder.mkdir()
  tokenizer_files.write_made(tokenizer, folder)
  found = load_tokenizer(folder)
  assert found.fingerprint == tokenizer.fingerprint
  assert found.chat_template == tokenizer.chat_template
  assert (found.eos_id, found.bos_id, found.pad_id) == (
    tokenizer.eos_id,
    tokenizer.bos_id,
    tokenizer.pad_id,
  )
  for text in ("the cat sat", " <|im_end|> 12+345", "naïve ☂"):
    assert found.encode(text) == tokenizer.encode(text)
    assert found.decode(found.encode(text)) == text


def test_the_licence_is_the_assets_or_the_cards(model, tmp_path):
  name = "smollm2-135m-instruct"
  assert (
    tokenizer_files.licence_of(f"asset:{name}") == assets.ASSETS[name].licence
  )
  assert tokenizer_files.licence_of(str(model)) == "mit"
  assert tokenizer_files.licence_of(str(tmp_path)) == ""


def test_wrong_exports(policy, tmp_path, capsys):
  policy.save(tmp_path / "run")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "something").touch()
  out = tmp_path / "out"
  for source, folder, dtype, message in (
    (tmp_path / "run", tmp_path / "full", "float32", "something already"),
    (tmp_path / "run", out, "float8", "dtype='float8': must be one of"),
    (tmp_path / "absent", out, "float32", "found no such folder"),
    (f"{tmp_path / 'run'}@3", out, "float32", "no step 3 was kept"),
  ):
    with pytest.raises(UserError, match=message):
      export.export(source, folder, dtype=dtype)
    assert not out.exists()
  code = export.main([f"--run={tmp_path / 'absent'}", f"--output={out}"])
  assert code == export.EXIT_USAGE
  assert capsys.readouterr().err.startswith("error: ")
  assert stages.read_stage(tmp_path / "run")["methods"][1] == ["grpo", 7]
