"""Which maps have factors, by every way to name them; what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import lora_targets, pretrained, roles, transformer, trees
from rlhf_jax.models.pretrained import Model
from rlhf_jax.schema import FieldError, UserError
from tests.models.test_adapters import config_of

CONFIG = config_of("llama3")  # 2 layers
QV = ("attention/q_proj", "attention/v_proj")
FUSED = ("attention/k_proj", *QV)


@pytest.mark.parametrize(
  ("model", "targets", "expected"),
  [
    ("llama3", "all-linear", ()),
    ("llama3", "q_proj,v_proj", QV),
    ("llama3", "self_attn.q_proj, attention/v_proj", QV),
    ("llama3", r".*\.(q|v)_proj", QV),
    ("llama3", "layers.1.mlp.down_proj", ("layer_1/mlp/down_proj",)),
    ("llama3", r"model\.layers\.[01]\.mlp\.up_proj", ("mlp/up_proj",)),
    (
      "llama3",
      "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
      (),
    ),
    ("gpt2", "c_attn", FUSED),
    ("gpt2", "c_proj", ("attention/o_proj", "mlp/down_proj")),
    ("gpt2", "attn.c_proj,v_proj", ("attention/o_proj", "attention/v_proj")),
    (
      "gpt_neox",
      "query_key_value,dense",
      (*FUSED[:1], "attention/o_proj", *QV),
    ),
    ("phi3", "qkv_proj", FUSED),
    ("phi3", "gate_up_proj", ("mlp/gate_proj", "mlp/up_proj")),
    ("gemma2", "o_proj", ("attention/o_proj",)),
  ],
)
def test_targets_by_name(model, targets, expected):
  assert lora_targets.resolve(config_of(model), targets) == tuple(
    sorted(expected)
  )


@pytest.mark.parametrize(
  ("targets", "words"),
  [
    ("q_porj", "'q_porj': no linear map has such a name. The llama family has"),
    ("q_proj,c_attn", "'c_attn': no linear map"),
    ("lm_head", "'lm_head': embeddings and the output head have no factors"),
    ("q_proj|v_proj", "must match all of it, 'model.layers.0.self_attn.q_pr"),
    ("(q_proj", "neither names with commas between nor a regular expression"),
    ("", "no linear map has such a name"),
  ],
)
def test_targets_that_match_nothing(targets, words):
  with pytest.raises(UserError, match=words):
    lora_targets.resolve(CONFIG, targets)


def test_settings_of_a_model_section():
  def of(**settings):
    return pretrained.as_run(CONFIG, Model(lora_rank=4, **settings), "cpu")

  assert of().lora_scale == 1.0
  assert of(lora_scale=0.3).lora_scale == 0.3
  assert of(lora_alpha=6.0).lora_scale == 1.5
  stable = of(lora_alpha=6.0, lora_is_rank_stabilised=True)
  assert stable.lora_scale == 3.0
  with pytest.raises(FieldError, match="^model.lora_rank=4000: attention/"):
    pretrained.as_run(CONFIG, Model(lora_rank=4000), "cpu")
  some = Model(lora_rank=17, lora_targets="k_proj")
  with pytest.raises(FieldError, match="k_proj is 32 x 16, so"):
    pretrained.as_run(CONFIG, some, "cpu")
  wide = Model(lora_rank=17, lora_targets="q_proj")
  assert pretrained.as_run(CONFIG, wide, "cpu").lora_rank == 17


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"lora_rank": -1}, "lora_rank=-1: must be >= 0"),
    ({"lora_alpha": 8.0}, "lora_alpha=8.0: it is divided by the rank"),
    ({"lora_rank": 2, "lora_alpha": 0.0}, "lora_alpha=0.0: must be above 0"),
    (
      {"lora_rank": 2, "lora_alpha": 4.0, "lora_scale": 2.0},
      "lora_scale=2.0: both say",
    ),
    (
      {"lora_rank": 2, "lora_is_rank_stabilised": True},
      "and lora_alpha=None. Set lora_alpha",
    ),
    ({"lora_dropout": 0.1}, "lora_dropout=0.1: must be 0. The sampler"),
  ],
)
def test_settings_that_are_refused(settings, words):
  with pytest.raises(FieldError, match=words):
    Model(**settings)


def role(targets, first_layer=0, **changes):
  config = dataclasses.replace(
    CONFIG, lora_rank=3, lora_scale=0.5, lora_targets=targets
  )
  return roles.Role(config, "lora", first_layer, **changes)


def stems(factors):
  return {path.rpartition("/")[0] for path in trees.flatten(factors)}


def test_only_chosen_maps_have_factors_and_merging_is_applying_them():
  one = roles.fresh_lora(role(("layer_1/mlp/up_proj",)), jax.random.key(0))
  assert stems(one) == {"layer_1/mlp/up_proj"}
  chosen = role(("mlp/up_proj",))
  fresh = roles.fresh_lora(chosen, jax.random.key(0))
  assert stems(fresh) == {"layer_0/mlp/up_proj", "layer_1/mlp/up_proj"}
  factors = jax.tree.map(
    lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape), fresh
  )
  params = jax.jit(lambda key: transformer.init(CONFIG, key))(
    jax.random.key(1)
  )["params"]
  tokens = jnp.arange(12).reshape(2, 6)
  apply = jax.jit(transformer.Transformer(chosen.model).apply)
  ones = jnp.ones(tokens.shape)
  inside = apply({"params": params, "lora": factors}, tokens, ones)
  merged = roles.sampling_params(chosen, {"lora": factors}, {"params": params})
  outside = apply({"params": merged}, tokens, ones)
  np.testing.assert_allclose(inside, outside, atol=3e-5)
  plain = apply({"params": params}, tokens, ones)
  assert np.abs(np.asarray(inside - plain)).max() > 0.05


def test_scanned_layers_have_the_chosen_factors_too():
  scanned = dataclasses.replace(role(("mlp/up_proj",)).model, scan_layers=True)
  fresh = roles.fresh_lora(roles.Role(scanned, "lora"), jax.random.key(0))
  assert set(trees.flatten(fresh)) == {
    "layers/mlp/up_proj/lora_a",
    "layers/mlp/up_proj/lora_b",
  }
  with pytest.raises(UserError, match="scanned layers share one program"):
    dataclasses.replace(scanned, lora_targets=("layer_1/mlp/up_proj",))


def test_targets_outside_of_the_layers_that_train():
  with pytest.raises(UserError, match="none of these maps is in the layers"):
    roles.fresh_lora(role(("layer_0/mlp/up_proj",), 1), jax.random.key(0))


def test_layers_below_the_first_do_not_lengthen_a_name():
  model = role(("layer_0/mlp/up_proj", "layer_1/mlp/up_proj")).model
  assert lora_targets.from_layer(model, 1).lora_targets == ("mlp/up_proj",)
  one = role(("layer_1/mlp/up_proj",)).model
  assert lora_targets.from_layer(one, 0) == one
