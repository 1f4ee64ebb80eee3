"""Folders of several files, and names of tensors: what is wrong is named."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.models import huggingface, trees
from rlhf_jax.schema import UserError

ORACLES = Path(__file__).parents[1] / "oracles"
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path):
  """The tied model in two files; its norm is in the second."""
  folder = Path(shutil.copytree(ORACLES / "tiny_llama", tmp_path / "model"))
  tensors = load_file(folder / WEIGHTS)
  (folder / WEIGHTS).unlink()
  names = sorted(tensors)
  for file, part in zip(NAMES, (names[:7], names[7:]), strict=True):
    save_file({name: tensors[name] for name in part}, folder / file)
  weight_map = {name: NAMES[i >= 7] for i, name in enumerate(names)}
  size = sum(x.nbytes for x in tensors.values())
  write_index(folder, weight_map, size)
  return folder


def write_index(folder, weight_map, size):
  content = {"metadata": {"total_size": size}, "weight_map": weight_map}
  (folder / INDEX).write_text(json.dumps(content))


def index_of(folder):
  content = json.loads((folder / INDEX).read_text())
  return content["weight_map"], content["metadata"]["total_size"]


def edit(path, drop=(), **changes):
  tensors = load_file(path) | changes
  save_file({n: x for n, x in tensors.items() if n not in drop}, path)


def arrays(folder):
  return jax.tree.map(np.asarray, huggingface.load(folder)[1])


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_two_files_are_one_model(folder):
  whole = arrays(ORACLES / "tiny_llama")
  assert_same(arrays(folder), whole)
  weight_map, size = index_of(folder)
  write_index(folder, weight_map, float(size))
  assert_same(arrays(folder), whole)


def refused(folder, file, words):
  place = re.escape(str(folder / file))
  with pytest.raises(UserError, match=f"^{place}: .*{words}"):
    huggingface.load(folder)


def test_a_map_that_names_the_wrong_file(folder):
  weight_map, size = index_of(folder)
  write_index(folder, weight_map | {NORM: NAMES[0]}, size)
  refused(folder, NAMES[0], f"no tensor '{NORM}'.* It is in {NAMES[1]}")


def test_a_tensor_in_two_files(folder):
  edit(folder / NAMES[0], **{NORM: load_file(folder / NAMES[1])[NORM]})
  refused(folder, NAMES[1], f"holds '{NORM}', and {NAMES[0]} does too")


@pytest.mark.parametrize("size", [1, 10**9, 0])
def test_a_size_that_is_not_that_of_the_tensors(folder, size):
  weight_map, true = index_of(folder)
  write_index(folder, weight_map, size)
  refused(folder, INDEX, f"total_size={size}, .* have {true} bytes")


def test_a_size_that_is_no_number(folder):
  write_index(folder, index_of(folder)[0], "1")
  refused(folder, INDEX, "total_size is '1', not a number")


def test_a_file_that_is_not_there(folder):
  (folder / NAMES[1]).unlink()
  with pytest.raises(FileNotFoundError, match=NAMES[1]):
    huggingface.load(folder)


def test_tensors_that_are_missing_misshapen_or_too_many(folder):
  weight_map, size = index_of(folder)
  norm = load_file(folder / NAMES[1])[NORM]
  write_index(folder, {n: x for n, x in weight_map.items() if n != NORM}, None)
  assert arrays(folder)  # a file has it, although the index does not say so
  edit(folder / NAMES[1], drop=[NORM])
  refused(folder, INDEX, f"1 tensors are missing, the first is '{NORM}'")
  edit(folder / NAMES[1], **{NORM: norm[:-1]})
  refused(
    folder, NAMES[1], rf"tensor '{NORM}': final_norm/scale has shape \(31"
  )
  edit(folder / NAMES[1], **{NORM: norm, "model.further": norm})
  refused(folder, NAMES[1], "1 tensors have no place .* 'model.further'")
  del size


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_llama_untied"])
@pytest.mark.parametrize(
  "rename",
  [
    lambda name: name.removeprefix("model."),
    lambda name: "language_model." + name,
    lambda name: re.sub("^model", "model.language_model", name),
  ],
)
def test_other_prefixes_are_the_same_model(tmp_path, name, rename):
  folder = Path(shutil.copytree(ORACLES / name, tmp_path / "model"))
  tensors = load_file(folder / WEIGHTS)
  save_file({rename(n): x for n, x in tensors.items()}, folder / WEIGHTS)
  assert_same(arrays(folder), arrays(ORACLES / name))


def test_a_text_model_inside_another_one_is_refused(tmp_path):
  folder = Path(shutil.copytree(ORACLES / "tiny_llama", tmp_path / "model"))
  tensors = load_file(folder / WEIGHTS)
  inside = {"language_model." + name: x for name, x in tensors.items()}
  vision = {"vision_tower.patch.weight": np.ones((2, 2), np.float32)}
  save_file(inside | vision, folder / WEIGHTS)
  refused(folder, WEIGHTS, "'vision_tower.patch.weight' stands beside .*images")
  save_file(tensors | inside, folder / WEIGHTS)
  refused(folder, WEIGHTS, "is a part of another one")


def test_every_kind_of_damage_to_a_folder_is_said(folder):
  """Bytes of headers, index and config.json turned: it loads, or one error."""
  random = np.random.default_rng(0)
  whole = trees.flatten(arrays(folder))
  files = ("config.json", INDEX, *NAMES)
  originals = {file: (folder / file).read_bytes() for file in files}
  counts = dict.fromkeys(("loaded", "refused"), 0)
  for trial in range(200):
    file = files[trial % 4]
    content = bytearray(originals[file])
    most = len(content)
    if file in NAMES:  # the header
      most = 8 + int.from_bytes(content[:8], "little")
    place = int(random.integers(0, most))
    if trial % 5 == 0:
      content = content[:place]
    elif trial % 5 == 1:
      content[place] ^= 1 << int(random.integers(0, 8))
    elif trial % 5 == 2:
      content[place] = random.choice(list(b'0123456789"{}[],:-'))
    elif trial % 5 == 3:
      content[place:place] = content[place : place + 40]
    else:
      del content[place : place + 3]
    (folder / file).write_bytes(content)
    try:
      found = trees.flatten(arrays(folder))
      counts["loaded"] += 1
      assert {p: x.shape for p, x in found.items()} == {
        p: x.shape for p, x in whole.items()
      }
    except (UserError, FileNotFoundError) as error:
      counts["refused"] += 1
      assert str(folder) in str(error)
    (folder / file).write_bytes(originals[file])
  assert counts["refused"] > 100, counts
