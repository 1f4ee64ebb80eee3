"""A Model section -> a base model: architecture, weights, tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

import jax

from rlhf_jax import integrity, strict_json
from rlhf_jax.data import chat, templates
from rlhf_jax.data.token_files import read_ends
from rlhf_jax.data.tokenizers import (
  Tokenizer,
  empty_rows,
  end_ids,
  load_tokenizer,
)
from rlhf_jax.models import (
  attention,
  lora_targets,
  model_sources,
  quantised,
  quantised_files,
  roles,
  stored,
  transformer,
  trees,
)
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.schema import (
  FieldError,
  absence,
  as_field,
  check_choice,
  check_least,
)
from rlhf_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Model:
  """Which decoder, and how it runs."""

  source: str = ""  # asset:NAME, a .gguf file, a Hugging Face folder, or a
  # name of the hub: org/name[@revision]
  tokenizer: str = ""  # file or folder; "" reads the model's own
  chat_template: str = ""  # a Jinja file; "" for the tokenizer's own template
  template_day: str = ""  # YYYY-MM-DD that strftime_now of a chat template
  # writes; "": a template that asks for the day of the run is refused
  template_variables: str = ""  # a JSON object, what else the template is
  # given: '{"enable_thinking": false}' of Qwen 3, say
  prompt_end: str = "template"  # where prompts of dialogues end: as the
  # template's generation prompt, or "answer": where it writes the answer
  dtype: str = "float32"  # that the model computes in
  weights: str = "float32"  # that it rests in: whole weights that train are
  # then float32 masters; "bfloat16": half the bytes, no masters, updates are
  # rounded by chance (docs/memory.md); factors and heads stay float32
  attention: str = "auto"  # program of models/attention.py; "auto": by platform
  scan_layers: bool = False  # one compiled block for all layers: deep models
  remat: bool = False  # recompute blocks in the backward pass: less memory
  lora_rank: int = 0  # of the factors that mode "lora" trains; 0: none, or
  # those of init_from
  lora_scale: float = 1.0  # s of W + s A B, before the product of the factors
  lora_merge: bool = True  # the sampler adds factors to the weights: faster,
  # and one more copy of these while it samples
  lora_alpha: float | None = None  # in place of lora_scale: s = alpha / rank
  lora_is_rank_stabilised: bool = False  # rsLoRA (Kalajdzievski 2023,
  # arXiv:2312.03732): s = alpha / sqrt(rank)
  lora_targets: str = lora_targets.ALL  # which linear maps have factors: names
  # with commas between (q_proj,v_proj), or a regular expression
  lora_dropout: float = 0.0  # must be 0: every forward pass gives one number
  quantize: str = "none"  # bits of its matrices, which are frozen then: "int8",
  # "int4"; docs/quantisation.md

  def __post_init__(self) -> None:
    check_least(self, lora_rank=0)
    lora_targets.check_settings(self)
    check_choice("quantize", self.quantize, quantised.KINDS)
    check_choice("prompt_end", self.prompt_end, chat.PROMPT_ENDS)
    templates.check_day(self.template_day)
    templates.variables(self.template_variables)
    check_choice("dtype", self.dtype, ("float32", "bfloat16"))
    check_choice("weights", self.weights, ("float32", "bfloat16"))
    if self.weights == "bfloat16" and self.dtype == "float32":
      raise FieldError(
        "weights='bfloat16' with dtype='float32': what the sampler merges "
        "would be rounded where the trainer's sum is not. Set dtype='bfloat16' "
        "too, or weights='float32'."
      )
    check_choice("attention", self.attention, ("auto", *attention.KINDS))


@dataclasses.dataclass(frozen=True)
class Base:
  """A pretrained decoder, its tokenizer and what identifies both.

  source, tokenizer_source: of its Model section.
  """

  config: transformer.Config
  params: PyTree
  tokenizer: Tokenizer
  fingerprint: str
  source: str
  tokenizer_source: str = ""

  @property
  def identity(self) -> dict[str, str]:
    """What a checkpoint must agree with: model and tokenizer."""
    return {
      "model_fingerprint": self.fingerprint,
      "tokenizer_fingerprint": self.tokenizer.fingerprint,
    }


@functools.lru_cache(maxsize=4)
def load_base(model: Model, mesh: jax.sharding.Mesh) -> Base:
  """Returns the base model on the mesh; a second call returns the same.

  Two sections that differ in how the model runs share its weights; not those
  that differ in their bits.

  Raises:
    UserError: nothing there that could be a model, or its parts do not belong
      together.
  """
  path, source = (
    model_sources.locate(model.source),
    model_sources.pinned_source(model.source),
  )
  print(f"reading the model {source}", flush=True)
  tokenizer = read_tokenizer(model, path)
  read_config, params, fingerprint = _placed(
    path, model.scan_layers, model.weights, model.quantize, mesh
  )
  config = as_run(read_config, model, mesh.devices.flat[0].platform)
  if tokenizer.vocab_size > config.vocab_size:
    raise FieldError(
      f"model.tokenizer: {tokenizer.name} has {tokenizer.vocab_size} "
      f"tokens and the model {model.source} {config.vocab_size}: they do not "
      "belong together. Set model.tokenizer to the model's own."
    )
  beyond = [i for i in end_ids(tokenizer) if i >= config.vocab_size]
  if beyond:
    raise FieldError(
      f"model.source={source!r}: its files name the end token {beyond[0]}, and "
      f"the model has {config.vocab_size} rows: generation_config.json or "
      "config.json is of another model. Correct eos_token_id there."
    )
  rows = empty_rows(tokenizer, config.vocab_size)
  return Base(
    config=dataclasses.replace(config, empty_rows=rows),
    params=params,
    tokenizer=tokenizer,
    fingerprint=fingerprint,
    source=source,
    tokenizer_source=model.tokenizer,
  )


@functools.lru_cache(maxsize=2)
def _placed(
  path: Path, scans: bool, weights: str, quantize: str, mesh: jax.sharding.Mesh
) -> tuple[transformer.Config, PyTree, str]:
  """Returns the architecture, the weights on the mesh and their fingerprint.

  Args:
    path: of the model.
    scans: whether layers are stacked.
    weights: dtype they rest in; the fingerprint is that of the file.
    quantize: bits of matrices, see Model.
    mesh: where.
  """
  config, params = model_sources.read_weights(path)
  params = quantised_files.pending(params, quantize)
  if scans:
    params = stack_layers(params, config.n_layers)
  flat, bits = trees.flatten(params), {}
  del params
  for name in list(flat):  # what was read of one is dropped before the next
    leaf = {"params": {name: flat.pop(name)}}
    leaf = mesh_lib.place(leaf, rules.sharding_tree(mesh, leaf))["params"]
    bits |= integrity.bits_of(leaf)
    if not isinstance(leaf[name], quantised.Quantised):
      leaf[name] = leaf[name].astype(weights)
    flat |= leaf
  return config, trees.unflatten(flat), integrity.fingerprint(bits)


def forget() -> None:
  """Forgets the models that were read: their arrays may be deleted."""
  load_base.cache_clear()
  _placed.cache_clear()


def stack_layers(params: PyTree, n_layers: int) -> PyTree:
  """Returns the tree with layer_0..layer_{n-1} stacked under "layers"."""
  layers = [params[f"layer_{i}"] for i in range(n_layers)]
  rest = {k: v for k, v in params.items() if not k.startswith("layer_")}
  stacked = jax.tree.map(lambda *x: stored.StackedWeight(x), *layers)
  return rest | {"layers": stacked}


@functools.lru_cache(maxsize=16)
def variable_shapes(role: roles.Role) -> PyTree:
  """Returns abstract {"params", "lora"?, "head"?} of a role."""
  key = jax.random.key(0)
  plain = dataclasses.replace(role.model, lora_rank=0)
  found = jax.eval_shape(lambda k: transformer.init(plain, k), key)
  params = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, role.model.weights),
    found["params"],
  )
  variables = {"params": params}
  if role.trainable == "lora":
    variables["lora"] = jax.eval_shape(lambda k: roles.fresh_lora(role, k), key)
  if role.head is not None:
    variables["head"] = jax.eval_shape(lambda k: roles.fresh_head(role, k), key)
  return variables


def with_shardings(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
  """Returns ShapeDtypeStructs that carry the rules' shardings."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
    rules.sharding_tree(mesh, tree),
  )


def check_context(base: Base, longest: int, name: str) -> None:
  """Raises FieldError for rows longer than the model's context.

  Args:
    base: the model.
    longest: tokens of the longest row.
    name: of the Data section, for the message.
  """
  if longest > base.config.max_length:
    raise FieldError(
      f"{name}.max_length: a row has {longest} tokens and the context "
      f"of {base.source} is {base.config.max_length}. Set {name}.max_length <= "
      f"{base.config.max_length}."
    )


def as_run(
  config: transformer.Config, model: Model, platform: str
) -> transformer.Config:
  """Returns an architecture with what a Model section says of its run.

  Args:
    config: architecture.
    model: the section.
    platform: "cpu", "gpu" or "tpu", where it runs.

  Raises:
    UserError: an attention program that the platform does not have.
  """
  try:
    kind = attention.resolve(model.attention, platform, model.dtype)
  except ValueError as error:
    raise FieldError(f"model.{error}") from error
  if kind == "cudnn" and config.attention_cap is not None:
    if model.attention != "auto":
      raise FieldError(
        f"model.attention='cudnn': {model.source} caps its scores at "
        f"{config.attention_cap}, which cuDNN's kernel does not. Set 'auto'."
      )
    print(f"attention: the plain program, as {model.source} caps its scores")
    kind = "einsum"
  config = dataclasses.replace(
    config,
    dtype=model.dtype,
    weights=model.weights,
    quantize=model.quantize,
    attention=kind,
    scan_layers=model.scan_layers,
    remat=model.remat,
    lora_merge=model.lora_merge,
  )
  with as_field("model."):
    return lora_targets.adapted(config, model)


def read_tokenizer(model: Model, path: Path) -> Tokenizer:
  """Returns the tokenizer of a Model section; `path` is where its model is.

  Raises:
    UserError, ValueError: it is not there, or cannot be read.
  """
  tokenizer = _own_tokenizer(model, path)
  tokenizer.prompt_end = model.prompt_end
  tokenizer.template_day = model.template_day or None
  tokenizer.template_variables = templates.variables(model.template_variables)
  if model.chat_template:
    file = Path(os.path.expanduser(model.chat_template))
    if not os.path.isfile(file):
      raise FieldError(
        f"model.chat_template={model.chat_template!r}: {absence(file)}. Give a "
        "file that holds a Jinja template, or '' for the tokenizer's own."
      )
    try:
      tokenizer.chat_template = strict_json.decode(file.read_bytes())
      tokenizer.has_given_template = True  # its stages keep a copy
    except ValueError as error:
      raise FieldError(
        f"model.chat_template={model.chat_template!r}: {error}. Convert it to "
        "UTF-8."
      ) from error
  return tokenizer


def _own_tokenizer(model: Model, path: Path) -> Tokenizer:
  if not model.tokenizer:
    try:
      return load_tokenizer(path)
    except ValueError as error:
      raise FieldError(
        f"model.tokenizer is empty, so the model's own is read, but {error}"
      ) from error
  own = Path(os.path.expanduser(model.tokenizer))
  if not os.path.isfile(own) and not os.path.isdir(own):
    what = absence(own).replace("no such file", "no such file or folder")
    raise FieldError(
      f"model.tokenizer={model.tokenizer!r}: {what}. "
      "Give a tokenizer.json, a folder that holds one, a SentencePiece "
      "*.model, or '' for the model's own."
    )
  tokenizer = load_tokenizer(own)
  if path.is_dir():
    tokenizer.named_ends = (*tokenizer.named_ends, *read_ends(path))
  return tokenizer
