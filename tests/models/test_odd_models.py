"""Model folders and GGUF files that are odd: one message, no traceback."""

import json
import os
import shutil
import struct
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models import gguf, huggingface, model_sources, pretrained
from rlhf_jax.models.pretrained import Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.schema import FieldError, UserError
from tests.models import test_gguf
from tests.tiny import tiny_tokenizer_json

ORACLES = Path(__file__).parents[1] / "oracles"
EMBEDDING = "model.embed_tokens.weight"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
  return Path(shutil.copytree(ORACLES / "tiny_llama", tmp_path / "model"))


def config_with(folder, **changes):
  path = folder / "config.json"
  config = json.loads(path.read_text()) | changes
  path.write_text(json.dumps(config))


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("[]", "holds a list, not an object"),
    ("null", "holds a NoneType"),
    ("", "not JSON"),
    ('{"a": 1, "a": 2}', "key 'a' stands twice"),
    ("[" * 100_000, "nested too deep"),
    ('{"model_type": ["llama"]}', r"model_type=\['llama'\] is not one of"),
    ('{"model_type": "llama", "vocab_size": NaN}', "NaN is not JSON"),
  ],
)
def test_a_config_that_is_no_object(folder, text, words):
  (folder / "config.json").write_text(text)
  with pytest.raises(UserError, match=f"config.json: .*{words}"):
    huggingface.load(folder)


def test_a_config_of_other_bytes(folder):
  (folder / "config.json").write_bytes(b"\xff\xfe{\x00}\x00")
  with pytest.raises(UserError, match="config.json: not JSON .not UTF-8"):
    huggingface.read_config(folder)


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("hidden_size", None, "hidden_size=None: must be a whole number from 1"),
    ("hidden_size", "32", "hidden_size='32': must be a whole number"),
    ("hidden_size", 32.0, "hidden_size=32.0: must be a whole number"),
    ("hidden_size", True, "hidden_size=True: must be"),
    ("vocab_size", 0, "vocab_size=0"),
    ("num_attention_heads", 0, "num_attention_heads=0"),
    ("num_key_value_heads", 0, "num_key_value_heads=0"),
    ("num_key_value_heads", 3, "n_heads=4 is not a multiple"),
    ("num_hidden_layers", 10**9, "num_hidden_layers=1000000000: .* to 1000"),
    ("num_hidden_layers", -1, "num_hidden_layers=-1"),
    ("intermediate_size", [40], r"intermediate_size=\[40\]"),
    ("head_dim", 7, "head_dim=7: rotary positions"),
    ("max_position_embeddings", None, "max_position_embeddings=None"),
    ("rms_norm_eps", "1e-5", "rms_norm_eps='1e-5': must be a positive number"),
    ("rms_norm_eps", 0, "rms_norm_eps=0: must be a positive"),
    ("rope_parameters", [1], r"rope_parameters='\[1\]': must be an object"),
    ("rope_parameters", {"rope_theta": None}, "rope_theta=None: must be a po"),
    ("rope_parameters", {"partial_rotary_factor": 0.5}, "partial_rotary_facto"),
    ("partial_rotary_factor", 0.5, "partial_rotary_factor=0.5: .* 1.0 only"),
    ("quantization_config", {"bits": 4}, "quantization_config=.'bits'"),
    ("tie_word_embeddings", "yes", "tie_word_embeddings='yes': must be true"),
    ("hidden_act", None, "hidden_act=None"),
  ],
)
def test_a_value_of_config_json_is_named(folder, field, value, words):
  config_with(folder, **{field: value})
  with pytest.raises(UserError, match=f"model/config.json: {words}"):
    huggingface.load(folder)


def test_a_base_of_rotary_positions_that_is_null_is_no_base(folder):
  config_with(folder, rope_parameters=None, rope_theta=None)
  with pytest.raises(UserError, match="rope_theta=None: must be a positive"):
    huggingface.load(folder)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda x: x.astype(np.int8), "'model.norm.weight' is I8; F64, F32, F16"),
    (lambda x: x.astype(np.int32), "is I32; .*BF16, F8_E4M3, F8_E5M2 are read"),
    (lambda x: x * np.nan, "'model.norm.weight' holds NaN"),
    (lambda x: x.astype(np.float64) + 1e300, "numbers beyond float32"),
  ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_weights_of_another_kind(folder, change, words):
  tensors = load_file(folder / WEIGHTS)
  tensors["model.norm.weight"] = change(tensors["model.norm.weight"])
  save_file(tensors, folder / WEIGHTS)
  with pytest.raises(UserError, match=f"model.safetensors: tensor .*{words}"):
    jax.tree.map(np.asarray, huggingface.load(folder)[1])


def indexed(folder, weight_map, keeps=False):
  (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
  if not keeps:
    (folder / WEIGHTS).rename(folder / "part.safetensors")


def test_an_index_beside_another_model(folder):
  names = load_file(folder / WEIGHTS)
  indexed(folder, dict.fromkeys(names, WEIGHTS), keeps=True)
  huggingface.load(folder)  # it names the file that is there
  indexed(folder, dict.fromkeys(names, "part.safetensors"), keeps=True)
  with pytest.raises(UserError, match="holds both model.safetensors and"):
    huggingface.load(folder)


@pytest.mark.parametrize(
  ("weight_map", "words"),
  [
    (None, "'weight_map' is None"),
    ({}, "'weight_map' is {}"),
    ({EMBEDDING: "../part.safetensors"}, "must be the name of a file in the"),
    ({EMBEDDING: "/etc/passwd"}, "must be the name of a file in the same"),
    ({EMBEDDING: 3}, "is in '3'; must be the name"),
    ({EMBEDDING: ".."}, "must be the name"),
  ],
)
def test_an_index_that_leaves_its_folder(folder, weight_map, words):
  indexed(folder, weight_map)
  with pytest.raises((UserError, OSError), match=words):
    huggingface.load(folder)


def test_an_index_that_promises_too_much(folder):
  names = dict.fromkeys(load_file(folder / WEIGHTS), "part.safetensors")
  indexed(folder, names)
  tensors = load_file(folder / "part.safetensors")
  del tensors["model.norm.weight"]
  save_file(tensors, folder / "part.safetensors")
  with pytest.raises(UserError, match="no tensor 'model.norm.weight', which"):
    huggingface.load(folder)
  (folder / "part.safetensors").write_bytes(b"\xff" * 100)
  with pytest.raises(UserError, match="part.safetensors: a file .* damaged"):
    huggingface.load(folder)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_pipe_is_not_waited_for(folder, name):
  (folder / name).unlink()
  os.mkfifo(folder / name)
  with pytest.raises(FileNotFoundError, match="is no regular file"):
    huggingface.load(folder)
  with pytest.raises(FieldError, match="is no regular file"):
    model_sources.check_source(str(folder / name))


# Tokenizers.


@pytest.fixture
def tokenizer_folder(tmp_path):
  return tiny_tokenizer_json(tmp_path / "tokenizer")


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"eos_token": ["</s>"]}, r"eos_token is \['</s>'\]"),
    ({"eos_token": {"lstrip": False}}, "eos_token is {'lstrip': False}"),
    ({"eos_token": {"content": None}}, "eos_token is {'content': None}"),
    ({"eos_token": None}, "no eos_token in"),
    ({"eos_token": 2}, "eos_token is 2"),
    ({"eos_token": "gone"}, "eos token 'gone' is not in the vocabulary"),
    ({"pad_token": []}, r"pad_token is \[\]"),
    ({"chat_template": 3}, "chat_template .* is a int. Give the text"),
    ({"chat_template": {"a": "b"}}, "is a dict. Give the text"),
    ({"chat_template": ["x"]}, r"templates named \['x'\]. Name exactly"),
    ({"chat_template": [{"name": "rag", "template": ""}]}, r"named \['rag'\]"),
    ({"chat_template": [{"name": "default"}]}, "is a NoneType. Give the"),
  ],
)
def test_a_tokenizer_whose_tokens_are_odd(tokenizer_folder, changes, words):
  path = tokenizer_folder / "tokenizer_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  with pytest.raises(UserError, match=words):
    load_tokenizer(tokenizer_folder)


def test_a_template_that_is_no_text(tokenizer_folder):
  (tokenizer_folder / "chat_template.jinja").write_bytes(b"\xff")
  with pytest.raises(UserError, match="chat_template.jinja: not UTF-8"):
    load_tokenizer(tokenizer_folder)


# GGUF.


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
  path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
  test_gguf.write(path, "tiny_llama", test_gguf.gguf_tensors("tiny_llama"))
  return path.read_bytes()


def test_every_kind_of_damage_to_a_gguf_file_is_said(tmp_path, gguf_bytes):
  """Bytes cut and turned at many places: it loads, or one error says why."""
  path, random = tmp_path / "tiny.gguf", np.random.default_rng(0)
  header = gguf_bytes.index(b"token_embd")
  for trial in range(60):
    content = bytearray(gguf_bytes)
    place = int(random.integers(0, header))
    if trial % 3 == 0:
      content = content[: int(random.integers(0, len(content)))]
    elif trial % 3 == 1:
      content[place] = int(random.integers(0, 256))
    else:  # a length that is far too large
      content[place : place + 8] = struct.pack("<Q", 2**60)
    path.write_bytes(content)
    for read in (gguf.load, gguf.read_config, load_tokenizer):
      try:
        read(path)
      except UserError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
  ("key", "value", "words"),
  [
    ("block_count", 0, "llama.block_count=0: must be a whole number from 1"),
    ("block_count", 10**9, "llama.block_count=1000000000: .* 1 to 1000"),
    ("attention.head_count", 0, "llama.attention.head_count=0"),
    ("context_length", 0, "llama.context_length=0"),
  ],
)
def test_a_size_in_a_gguf_file_is_named(
  tmp_path, gguf_bytes, key, value, words
):
  name = f"llama.{key}".encode()
  place = gguf_bytes.index(name) + len(name) + 4  # after the type
  content = bytearray(gguf_bytes)
  content[place : place + 4] = struct.pack("<I", value)
  path = tmp_path / "tiny.gguf"
  path.write_bytes(content)
  with pytest.raises(UserError, match=f"tiny.gguf: {words}"):
    gguf.load(path)


def test_nan_in_a_gguf_file(tmp_path):
  tensors = test_gguf.gguf_tensors("tiny_llama")
  tensors["output_norm.weight"] = tensors["output_norm.weight"] * np.nan
  path = test_gguf.write(tmp_path / "tiny.gguf", "tiny_llama", tensors)
  with pytest.raises(UserError, match="'output_norm.weight' holds NaN"):
    jax.tree.map(np.asarray, gguf.load(path))


def test_a_tokenizer_that_is_a_pipe(tmp_path):
  os.mkfifo(tmp_path / "pipe.model")
  with pytest.raises(FieldError, match="tokenizer=.*is no regular file"):
    pretrained.read_tokenizer(
      Model(tokenizer=str(tmp_path / "pipe.model")), tmp_path
    )


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
    ({"rope_theta": -1}, "rope_parameters says rope_theta=.* -1 stands"),
    ({"model_type": None}, "model_type=None .*Copy the file again"),
    ({"num_hidden_layers": 1}, "num_hidden_layers=1: the weights do not"),
  ],
)
def test_what_config_json_says_twice_or_not(folder, change, words):
  """Of both rotary settings the older one was passed over."""
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | change))
  with pytest.raises(UserError, match=words):
    huggingface.load(folder)


def test_folders_that_hold_no_weights(folder):
  weights = folder / WEIGHTS
  weights.write_text("version https://git-lfs.github.com/spec/v1\nsize 3\n")
  with pytest.raises(UserError, match="a pointer of Git LFS .*git lfs pull"):
    huggingface.load(folder)
  (folder / "config.json").rename(folder / "adapter_config.json")
  with pytest.raises(
    FileNotFoundError, match="an adapter .LoRA.: name its base"
  ):
    huggingface.load(folder)


def test_two_sections_of_one_model_share_its_weights(folder, monkeypatch):
  """A stage with factors beside one without, as in the quickstart."""
  reads, real = [], model_sources.read_weights
  monkeypatch.setattr(
    model_sources, "read_weights", lambda path: reads.append(path) or real(path)
  )
  tokenizer = types.SimpleNamespace(vocab_size=8, eos_id=2)
  monkeypatch.setattr(pretrained, "read_tokenizer", lambda *_: tokenizer)
  monkeypatch.setattr(pretrained, "empty_rows", lambda *_: ())
  mesh = mesh_lib.make_mesh(mesh_lib.Config(devices=1))
  plain, lora = (
    pretrained.load_base(Model(source=str(folder), lora_rank=rank), mesh)
    for rank in (0, 4)
  )
  assert (plain.config.lora_rank, lora.config.lora_rank) == (0, 4)
  assert plain.fingerprint == lora.fingerprint
  leaves = map(jax.tree.leaves, (plain.params, lora.params))
  assert all(one is other for one, other in zip(*leaves, strict=True))
  assert len(reads) == 1


def test_the_folder_of_an_export_names_the_one_inside(tmp_path):
  (tmp_path / "model").mkdir()
  for place in (tmp_path, tmp_path / "model"):
    (place / "config.json").write_text("{}")
  with pytest.raises(
    FieldError, match="its folder 'model' does. Give .*/model"
  ):
    model_sources.check_source(str(tmp_path))
  model_sources.check_source(str(tmp_path / "model"))


def test_the_folder_of_a_run_is_no_model(tmp_path):
  (tmp_path / "stage.json").write_text("{}")
  with pytest.raises(
    FieldError,
    match=r"ai_judge.source=.*--config.run=.*ai_judge.source=D/model",
  ):
    model_sources.check_source(str(tmp_path), "ai_judge")
