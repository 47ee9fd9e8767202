"""DeepSeek's published configs are read, YaRN's factors survive a round trip, and FP8 is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from model import architectures
from model.config import ModelConfig
from model.count import flops_per_token
from model.interop import registry
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from tests.configs.published import CONFIGS
from tests.model.interop import hub

# Active parameters per token, as published, in billions.
ACTIVE = {"deepseek_v2_lite": 2.4, "deepseek_v2": 21, "deepseek_v3": 37}


def described(values, tmp_path) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file({"none": np.zeros(1)}, tmp_path / "model.safetensors")
    return registry.read_config(Folder(tmp_path))[1]


@pytest.mark.parametrize("name", ACTIVE)
def test_published_configs(name, tmp_path):
    """Active parameters are as published, the softmax scale equals that of DeepSeek's released code and transformers,
    and YaRN's factors survive the round trip."""
    values = CONFIGS[name]
    config = described(values, tmp_path)
    assert flops_per_token(config, 1, training=False) / 2e9 == pytest.approx(ACTIVE[name], rel=0.12)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    assert config.attention_scale == pytest.approx(theirs.model.layers[0].self_attn.scaling, rel=1e-12)
    mscale = 0.1 * (1.0 if name == "deepseek_v3" else 0.707) * np.log(40) + 1
    assert config.attention_scale == pytest.approx(192**-0.5 * mscale**2, rel=1e-12)
    assert config.rope.attention_factor == 1
    rope = registry.FAMILIES[values["model_type"]].describe(config)["rope_parameters"]
    assert [rope[key] for key in ("mscale", "mscale_all_dim")] == [values["rope_scaling"]["mscale"]] * 2


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("deepseek_v2", dict(norm_topk_prob=True), "norm_topk_prob is True; only False can be read"),
        (
            "deepseek_v2",
            dict(topk_method="noaux_tc"),
            "topk_method is 'noaux_tc'; choose from greedy, group_lim",
        ),
        ("deepseek_v3", dict(attention_bias=True), "attention_bias is True"),
        ("deepseek_v3", dict(moe_layer_freq=2), "moe_layer_freq is 2"),
    ],
)
def test_what_is_refused(name, changes, words, tmp_path):
    with pytest.raises(CheckpointFolderError, match=words):
        described(CONFIGS[name] | changes, tmp_path)


def with_tensors(tmp_path, names, shape=(2, 2)):
    """Returns the folder of a tiny V3 with additional tensors, and its abstract model."""
    shutil.copytree(hub.reference("deepseek3")[1], tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    save_file(load_file(file) | {name: np.ones(shape, np.float32) for name in names}, file)
    folder = Folder(tmp_path / "copy")
    config = registry.read_config(folder)[1]
    return folder, jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0)))


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
    """Families look for parts that the model lacks: latents, experts."""
    config = ModelConfig(8, 1, 8, 2, 8, 8, norm="layernorm", gated=True)
    with pytest.raises(CheckpointFolderError, match=r"no family .* nearest is \w+, .* of model.*norm"):
        registry.family_of(config)
