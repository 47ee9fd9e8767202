"""DeepSeek's published config.json files, in their words; YaRN's factors and back; what published folders hold."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from model import families
from model.config import ModelConfig
from model.count import flops_per_token, num_params
from model.interop import registry
from model.interop.folder import Folder
from model.interop.tensorfile import CheckpointFolderError
from tests.model.interop import hub

_V2 = dict(model_type="deepseek_v2", vocab_size=102400, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
_V2 |= dict(kv_lora_rank=512, n_shared_experts=2, num_experts_per_tok=6, first_k_dense_replace=1, moe_layer_freq=1)
_V2 |= dict(max_position_embeddings=163840, rms_norm_eps=1e-6, rope_theta=10000, scoring_func="softmax")
_V2 |= dict(norm_topk_prob=False, attention_bias=False, hidden_act="silu", tie_word_embeddings=False)
_YARN = dict(type="yarn", factor=40, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1)
_LITE = _V2 | dict(hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408, num_hidden_layers=27)
_LITE |= dict(num_attention_heads=16, num_key_value_heads=16, q_lora_rank=None, n_routed_experts=64, n_group=1)
_LITE |= dict(topk_group=1, topk_method="greedy", routed_scaling_factor=1.0)
_BIG = _V2 | dict(hidden_size=5120, intermediate_size=12288, moe_intermediate_size=1536, num_hidden_layers=60)
_BIG |= dict(num_attention_heads=128, num_key_value_heads=128, q_lora_rank=1536, n_routed_experts=160, n_group=8)
_BIG |= dict(topk_group=3, topk_method="group_limited_greedy", routed_scaling_factor=16.0)
_V3 = _V2 | dict(model_type="deepseek_v3", vocab_size=129280, hidden_size=7168, intermediate_size=18432)
_V3 |= dict(moe_intermediate_size=2048, num_hidden_layers=61, num_attention_heads=128, num_key_value_heads=128)
_V3 |= dict(q_lora_rank=1536, n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8, n_group=8, topk_group=4)
_V3 |= dict(topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.5)
_V3 |= dict(first_k_dense_replace=3, num_nextn_predict_layers=1)
# name: (config.json as transformers 4 has it, parameters and those that a token meets, both as published in billions)
PUBLISHED = {
    "V2-Lite": (_LITE | dict(rope_scaling=_YARN | dict(mscale=0.707, mscale_all_dim=0.707)), 15.7, 2.4),
    "V2": (_BIG | dict(rope_scaling=_YARN | dict(mscale=0.707, mscale_all_dim=0.707)), 236, 21),
    "V3": (_V3 | dict(rope_scaling=_YARN | dict(mscale=1.0, mscale_all_dim=1.0)), 671, 37),
}


def described(values, tmp_path) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file({"none": np.zeros(1)}, tmp_path / "model.safetensors")
    return registry.read_config(Folder(tmp_path))[1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name, tmp_path):
    """Counts as published and as transformers has them (which counts no correction bias: a buffer); the softmax scale
    of DeepSeek's released code; and a description that gives the same back."""
    values, total, active = PUBLISHED[name]
    config = described(values, tmp_path)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    biases = sum(kind == "sparse" for kind in config.mlp_pattern) * config.experts.count if name == "V3" else 0
    assert num_params(config) == theirs.num_parameters() + biases
    assert num_params(config) / 1e9 == pytest.approx(total, rel=0.003)
    assert flops_per_token(config, 1, training=False) / 2e9 == pytest.approx(active, rel=0.12)
    assert config.attention_scale == pytest.approx(theirs.model.layers[0].self_attn.scaling, rel=1e-12)
    mscale = 0.1 * (1.0 if name == "V3" else 0.707) * np.log(40) + 1
    assert config.attention_scale == pytest.approx(192**-0.5 * mscale**2, rel=1e-12)
    assert config.rope.attention_factor == 1
    assert registry.family_of(config) == values["model_type"]
    rope = registry.FAMILIES[values["model_type"]].describe(config)["rope_parameters"]
    assert [rope[key] for key in ("mscale", "mscale_all_dim")] == [values["rope_scaling"]["mscale"]] * 2


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("V2", dict(norm_topk_prob=True), "norm_topk_prob is True; only False can be read"),
        ("V2", dict(topk_method="noaux_tc"), "topk_method is 'noaux_tc'; known are greedy, group_limited_greedy"),
        ("V3", dict(attention_bias=True), "attention_bias is True"),
        ("V3", dict(moe_layer_freq=2), "moe_layer_freq is 2"),
    ],
)
def test_what_is_refused(name, changes, words, tmp_path):
    with pytest.raises(CheckpointFolderError, match=words):
        described(PUBLISHED[name][0] | changes, tmp_path)


def with_tensors(tmp_path, names, shape=(2, 2)):
    """The folder of a tiny V3 with more tensors, and its abstract model."""
    shutil.copytree(hub.reference("deepseek3")[1], tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    save_file(load_file(file) | {name: np.ones(shape, np.float32) for name in names}, file)
    folder = Folder(tmp_path / "copy")
    config = registry.read_config(folder)[1]
    return folder, jax.eval_shape(lambda: families.make(config, nnx.Rngs(0)))


def test_the_layer_that_predicts_a_second_token_is_left_out(tmp_path):
    """The tiny model has layers 0 to 2."""
    folder, abstract = with_tensors(tmp_path, ["model.layers.3.eh_proj.weight", "model.layers.3.enorm.weight"])
    assert registry.read(folder, "deepseek_v3", abstract).config == abstract.config


def test_a_layer_too_many_is_refused(tmp_path):
    folder, abstract = with_tensors(tmp_path, ["model.layers.4.self_attn.o_proj.weight"])
    with pytest.raises(CheckpointFolderError, match=r"1 tensors are unexpected: model\.layers\.4"):
        registry.read(folder, "deepseek_v3", abstract)


def test_fp8_weights_are_refused(tmp_path):
    folder, abstract = with_tensors(tmp_path, ["model.layers.1.self_attn.o_proj.weight_scale_inv"], (1, 1))
    with pytest.raises(
        CheckpointFolderError, match=r"FP8.*o_proj\.weight_scale_inv; dequantize them to bfloat16 first"
    ):
        registry.read(folder, "deepseek_v3", abstract)


def test_a_model_that_no_family_holds():
    """Families are asked about parts that it does not have: latents, experts."""
    config = ModelConfig(8, 1, 8, 2, 8, 8, norm="layernorm", gated=True)
    with pytest.raises(CheckpointFolderError, match="no family"):
        registry.family_of(config)
