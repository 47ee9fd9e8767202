"""Published sizes: parameters and FLOPs as published, as the modules have them, and as transformers has them."""

import pytest
import torch
import transformers

from configs.sizes import SIZES
from model.config import ModelConfig
from model.count import flops_per_token, num_params

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama_33b": 32_528_943_616,
    "llama_65b": 65_285_660_672,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_405b": 405_853_388_800,
}


def config(name: str) -> ModelConfig:
    fields = dict(SIZES[name])
    return ModelConfig(**fields | {"vocab_size": fields["vocab_size"] or 4096})


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_published(name):
    assert num_params(config(name)) == PUBLISHED[name]


def test_gpt3_has_175_billion_parameters():
    assert num_params(config("gpt3_175b")) == pytest.approx(175e9, rel=0.005)


def test_flops_are_near_published_training_compute():
    """Both papers count 6 a parameter and token: no attention, which adds 1.4 % to GPT-3 at 2048 tokens and 4 % to
    Llama 3 at 8192; the latter leaves the embedding table in, which multiplies nothing and takes 0.5 % off here."""
    gpt3, llama3 = config("gpt3_175b"), config("llama3_405b")
    assert flops_per_token(gpt3, 2048) * 300e9 == pytest.approx(3.14e23, rel=0.02)
    assert flops_per_token(llama3, 8192) * 15.6e12 == pytest.approx(3.8e25, rel=0.04)


def test_gpt2_and_llama_are_the_defaults_of_transformers():
    """Their configuration classes have these two models' published values as defaults."""
    gpt, llama = transformers.GPT2Config(), transformers.LlamaConfig()
    ours = config("gpt2")
    assert (gpt.n_layer, gpt.n_embd, gpt.n_head) == (ours.num_layers, ours.embed_dim, ours.num_heads)
    assert (gpt.n_positions, gpt.layer_norm_epsilon) == (ours.max_length, ours.norm_epsilon)
    assert gpt.activation_function == "gelu_new" and ours.activation == "gelu_tanh"
    ours = config("llama_7b")
    assert (llama.num_hidden_layers, llama.hidden_size) == (ours.num_layers, ours.embed_dim)
    assert (llama.num_attention_heads, llama.intermediate_size) == (ours.num_heads, ours.mlp_dim)
    assert (llama.max_position_embeddings, llama.rms_norm_eps) == (ours.max_length, ours.norm_epsilon)
    with torch.device("meta"):
        assert transformers.GPT2LMHeadModel(gpt).num_parameters() == PUBLISHED["gpt2"]
        assert transformers.LlamaForCausalLM(llama).num_parameters() == PUBLISHED["llama_7b"]
