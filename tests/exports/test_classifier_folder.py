"""A reward model becomes the classifier that transformers scored."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.exports import classifier
from rlhf_jax.exports.opened import Leaving
from rlhf_jax.models import (
  families,
  folder_writer,
  heads,
  huggingface,
  outputs,
  roles,
  trees,
)
from rlhf_jax.models.folder_writer import SCORE
from rlhf_jax.models.rows import Rows
from rlhf_jax.schema import UserError
from tests.oracles.family_weights import weight

ORACLES = Path(__file__).parents[1] / "oracles"
KNOWN = json.loads((ORACLES / "families.json").read_text())
GOLDEN = np.load(ORACLES / "classifiers.npz")
QUICK = ("llama3", "gemma3", "phi3")
LAYERS = 3  # of the models that make_classifier_goldens.py cuts
NAMES = [
  pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
  for name in KNOWN
  if not name.startswith("gpt")
]


def reward_role(name, **head):
  """Returns a golden model as a reward role, and its config.json."""
  entries = KNOWN[name]["config"]
  kind = entries["model_type"]
  config = families.FAMILIES[kind].config(kind, entries)
  stop = min(LAYERS, config.n_layers)
  role = roles.Role(
    model=config,
    trainable="head",
    stop_layer=stop,
    head=heads.Config(**head),
  )
  return role, entries


def variables_of(name, role, folder):
  """Returns the role's variables, of weights that follow from names."""
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(KNOWN[name]["config"]))
  shapes = KNOWN[name]["tensors"]
  tensors = {tensor: weight(tensor, shape) for tensor, shape in shapes.items()}
  save_file(tensors, folder / "model.safetensors")
  _, params = huggingface.load(folder)
  params = {
    path: np.asarray(leaf) for path, leaf in trees.flatten(params).items()
  }
  kernel = weight(SCORE, [1, role.model.width]).T
  head = {"output": {"kernel": kernel, "bias": np.zeros(1, np.float32)}}
  return {"params": trees.unflatten(params), "head": head}


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_transformers_for_the_exported_files(
  name, tmp_path
):
  role, original = reward_role(name)
  variables = variables_of(name, role, tmp_path / "model")
  tokens = GOLDEN["tokens"]
  mask = jnp.asarray(tokens > 0, jnp.float32)
  rows = Rows(jnp.asarray(tokens), mask, jnp.cumsum(mask, 1).astype(int) - 1)
  found = outputs.score(role, variables, rows, mask)[:, 0]
  np.testing.assert_allclose(found, GOLDEN[name], rtol=3e-4, atol=3e-5)

  folder_writer.save(
    tmp_path / "out",
    classifier.architecture(role),
    classifier.params(role, variables["params"]),
    original=classifier.original_entries(role, original),
    further={"architectures": [classifier.CLASSES[role.model.family]]},
    score=variables["head"]["output"]["kernel"].T,
  )
  said = json.loads((tmp_path / "out" / "config.json").read_text())
  assert said["num_hidden_layers"] == role.stop
  assert said["architectures"][0].endswith("ForSequenceClassification")
  tensors = load_file(tmp_path / "out" / "model.safetensors")
  assert "lm_head.weight" not in tensors
  gain = np.full(role.model.width, 1.0 - role.model.norm_offset, np.float32)
  for tensor, value in tensors.items():
    expected = weight(tensor, list(value.shape))
    if tensor == "model.norm.weight":
      expected = gain
    np.testing.assert_array_equal(value, expected, err_msg=tensor)
  layers = {int(x.split(".")[2]) for x in tensors if ".layers." in x}
  assert layers == set(range(role.stop))


@pytest.mark.parametrize(
  ("name", "head", "words"),
  [
    ("llama3", {"pooling": "mean_last"}, "pooling='mean_last', and transf"),
    ("llama3", {"hidden_units": 4}, "hidden_units=4, and transformers has"),
    ("llama3", {"outputs": 2}, "outputs=2; one score"),
    ("gpt2", {}, "the last norm of the gpt2 family subtracts a mean"),
    ("gpt_neox", {}, "the last norm of the gpt_neox family"),
  ],
)
def test_heads_that_transformers_has_not_are_refused_by_name(name, head, words):
  role, _ = reward_role(name, **head)
  with pytest.raises(UserError, match=f"runs/x: this reward model .*{words}"):
    classifier.check(role, "runs/x")


@dataclasses.dataclass(eq=False)
class Ids:
  """Special tokens of a tokenizer."""

  special_tokens: dict
  eos_id: int
  pad_id: int
  bos_id: int | None = None
  vocab_size: int = 61
  chat_template: str | None = None
  name: str = "ids"
  named_ends: tuple = ()


def test_padding_is_no_token_that_ends_a_row_which_is_read_to_its_end():
  role, _ = reward_role("llama3")
  config = role.model
  end_pads = Ids({"<eos>": 2, "<unk>": 1, "<s>": 0}, 2, 2, bos_id=0)
  kept = Ids({"<eos>": 2, "<other>": 7}, 2, 7)
  alone = Ids({"<eos>": 2}, 2, 2)

  def padding(ids, **how):
    return classifier.padding(ids, config, **how)

  assert padding(end_pads, reads_end=True) == (1, "<unk>")
  assert padding(end_pads, reads_end=False) == (2, "<eos>")
  assert padding(kept, reads_end=True) == (7, "<other>")
  with pytest.raises(UserError, match="none can be padding"):
    padding(alone, reads_end=True)
  wide = dataclasses.replace(config, vocab_size=64)
  assert classifier.padding(alone, wide, reads_end=True) == (61, None)


def test_what_a_linear_layer_cannot_hold_is_in_config_json():
  role, _ = reward_role("llama3")
  head = {"output": {"bias": np.asarray([0.5], np.float32)}}
  normalisation = {"mean": -1.5, "std": 2.0, "count": 256}
  leaving = Leaving(None, role, {}, {"normalisation": normalisation})
  assert classifier.facts(leaving, head) == {
    "reward_bias": 0.5,
    "reward_mean": -1.5,
    "reward_std": 2.0,
  }
