"""Published sizes equal their released config.json, and have the published parameters and FLOPs.

Parameters are counted three times: on our modules, on transformers' modules (on torch's meta device, from the released
config.json), and by the publisher of the model. So the size, the importer and the release must all agree.
"""

import dataclasses
import re

import jax
import pytest
import torch
import transformers
from flax import nnx

from configs.sizes import DECODERS, ENCODER_DECODERS, ENCODERS, SIZES, tiny
from model.architectures import make
from model.config import ModelConfig
from model.count import flops_per_token, num_params
from model.interop import registry
from model.interop.registry import FAMILIES, family_of
from model.interop.table import expected
from model.weights import by_name
from tests.configs.published import CONFIGS

OURS = {*tiny.DECODERS, *tiny.ENCODERS, *tiny.ENCODER_DECODERS, "gpt3_175b"}  # sizes without a released checkpoint

# Parameters, and parameters without embedding and output layer, as the publisher states them in the paper or on the
# model card. Zeros that come from rounding are left out ("0.34B" instead of "340M").
FIGURES = {
    "gpt2": ("124M",),
    "gpt2_medium": ("355M",),
    "gpt2_large": ("774M",),
    "gpt2_xl": ("1.5B",),
    "gpt3_175b": ("175B",),
    "llama_7b": ("6.7B",),
    "llama_13b": ("13.0B",),
    "llama_33b": ("32.5B",),
    "llama_65b": ("65.2B",),
    "llama3.2_1b": ("1.23B",),
    "llama3.2_3b": ("3.21B",),
    "llama3.1_405b": ("405B",),
    "mistral_7b_v0.1": ("7.24B",),
    "qwen2_0.5b": ("0.49B", "0.35B"),
    "qwen2_1.5b": ("1.54B", "1.31B"),
    "qwen2_72b": ("72.71B", "70.21B"),  # the 7.07B of 7b count only one of its two tables
    "qwen3_0.6b": ("0.6B", "0.44B"),
    "qwen3_1.7b": ("1.7B", "1.4B"),
    "qwen3_4b": ("4.0B", "3.6B"),
    "qwen3_8b": ("8.2B", "6.95B"),
    "qwen3_14b": ("14.8B", "13.2B"),
    "qwen3_32b": ("32.8B", "31.2B"),
    "gemma_2b": ("2.5B", "1981884416"),
    "gemma_7b": ("8.5B", "7751248896"),
    "gemma2_2b": ("2.6B", "2024M"),
    "gemma2_9b": ("9.2B", "8324M"),
    "gemma2_27b": ("27.2B", "26047M"),
    "gemma3_270m": ("0.27B", "100M"),
    "gemma3_1b": ("1.0B", "698M"),
    "gemma3_4b": ("3.9B", "3209M"),
    "gemma3_12b": ("11.8B", "10759M"),
    "gemma3_27b": ("27.0B", "25600M"),
    "opt_125m": ("125M",),
    "opt_1.3b": ("1.3B",),
    "opt_2.7b": ("2.7B",),
    "opt_6.7b": ("6.7B",),
    "opt_13b": ("13B",),
    "opt_30b": ("30B",),
    "opt_66b": ("66B",),
    "opt_175b": ("175B",),
    "bloom_560m": ("559214592",),
    "bloom_1.1b": ("1065314304",),
    "bloom_1.7b": ("1722408960",),
    "bloom_3b": ("3002557440",),
    "bloom_7.1b": ("7069016064",),
    "bloom_176b": ("176247271424",),
    "mixtral_8x7b": ("46.7B",),
    "mixtral_8x22b": ("141B",),
    "qwen1.5_moe_a2.7b": ("14.3B",),
    "qwen2_57b_a14b": ("57.41B", "56.32B"),
    "qwen3_30b_a3b": ("30.5B", "29.9B"),
    "qwen3_235b_a22b": ("235B", "234B"),
    "deepseek_v2_lite": ("15.7B",),
    "deepseek_v2": ("236B",),
    "deepseek_v3": ("671B",),
    "bert_base_uncased": ("0.11B",),
    "bert_large_uncased": ("0.34B",),
    "roberta_base": ("125M",),
    "roberta_large": ("355M",),
    "albert_base": ("11M",),
    "albert_large": ("17M",),
    "albert_xlarge": ("58M",),
    "albert_xxlarge": ("223M",),
    "t5_small": ("60M",),
    "t5_base": ("223M",),
    "t5_3b": ("2.8B",),
    "t5_11b": ("11B",),
    "t5_v1_1_small": ("77M",),
    "t5_v1_1_base": ("0.25B",),
    "t5_v1_1_large": ("0.8B",),
    "t5_v1_1_xl": ("3B",),
    "t5_v1_1_xxl": ("11B",),
    "switch_base_16": ("1.1B",),
    "switch_base_32": ("2.0B",),
    "switch_base_64": ("3.8B",),
    "switch_base_128": ("7.4B",),
    "switch_base_256": ("14.7B",),
    "switch_large_128": ("26B",),
}
DEFAULTS = ("gpt2", "llama_7b", "opt_125m", "gemma_7b", "gemma2_2b", "bert_base_uncased", "albert_xxlarge")


def config(name: str) -> ModelConfig:
    return ModelConfig(**SIZES[name])


def test_every_size_has_its_release():
    assert set(CONFIGS) == set(SIZES) - OURS


@pytest.mark.parametrize("name", CONFIGS)
def test_a_size_is_what_its_config_json_says(name):
    fields = registry.model_fields(CONFIGS[name]["model_type"], CONFIGS[name])
    assert config(name) == ModelConfig(**fields)
    assert set(fields) <= set(SIZES[name]), "a flag could not override these fields"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_size_describes_itself(name):
    ours, family = config(name), CONFIGS[name]["model_type"]
    assert ModelConfig(**registry.model_fields(family, registry.describe(family, ours))) == ours


@pytest.mark.parametrize("name", SIZES)
def test_a_size_can_be_exported(name):
    """The exporter finds the family from the parts of the model, and has a place for every parameter."""
    ours = ModelConfig(**SIZES[name] | {"vocab_size": SIZES[name]["vocab_size"] or 64})
    leaves = by_name(jax.eval_shape(lambda key: make(ours, nnx.Rngs(key)), jax.random.key(0)))
    assert expected(FAMILIES[family_of(ours)].table(ours), leaves)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_transformers(name):
    values = dict(CONFIGS[name])
    kind = values.pop("model_type")
    with torch.device("meta"):
        theirs = getattr(transformers, next(iter(FAMILIES[kind].classes)))(
            transformers.AutoConfig.for_model(kind, **values)
        )
    count = theirs.num_parameters()
    # DeepSeek-V3 updates the biases of its experts without gradients, so torch has them as buffers, not parameters.
    count += sum(buffer.numel() for path, buffer in theirs.named_buffers() if path.endswith("correction_bias"))
    if kind == "t5" and not values.get("tie_word_embeddings", True):
        count += theirs.lm_head.weight.numel()  # T5 1.1 was released with its own; transformers 5 ties it
    assert num_params(config(name)) == count


@pytest.mark.parametrize("name", FIGURES)
def test_parameters_are_as_published(name):
    """Counts are within one of the figure's last digit, because some publishers cut digits off instead of rounding.

    Encoders were counted without a head, but with the pooler.
    """
    ours = config(name)
    ours = dataclasses.replace(ours, head="none") if ours.architecture == "encoder" else ours
    for figure, embedding in zip(FIGURES[name], (True, False), strict=False):
        number, unit = re.fullmatch(r"([\d.]+)([MB]?)", figure).groups()
        unit = {"B": 1e9, "M": 1e6, "": 1}[unit]
        last_digit = unit / 10 ** len(number.partition(".")[2])
        assert abs(num_params(ours, embedding=embedding) - float(number) * unit) < last_digit


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_of_transformers_are_this_size(name):
    """Some configuration classes have a released model's values as defaults: a second source of config.json."""
    kind = CONFIGS[name]["model_type"]
    values = transformers.AutoConfig.for_model(kind).to_dict() | {"architectures": list(FAMILIES[kind].classes)[:1]}
    assert ModelConfig(**registry.model_fields(kind, values)) == config(name)


def test_flops_are_near_published_training_compute():
    """Our FLOPs per token are near the 6 N of both papers.

    The papers leave out attention, which adds 1.4 % to GPT-3 at 2048 tokens and 4 % to Llama 3 at 8192. Llama 3's count
    includes the embedding table, which multiplies nothing; without it we are 0.5 % lower.
    """
    gpt3, llama3 = config("gpt3_175b"), config("llama3.1_405b")
    assert flops_per_token(gpt3, 2048) * 300e9 == pytest.approx(3.14e23, rel=0.02)
    assert flops_per_token(llama3, 8192) * 15.6e12 == pytest.approx(3.8e25, rel=0.04)


def test_sizes_are_sorted_by_architecture():
    groups = {"decoder": DECODERS, "encoder": ENCODERS, "encoder_decoder": ENCODER_DECODERS}
    for architecture, sizes in groups.items():
        assert {fields["architecture"] for fields in sizes.values()} == {architecture}
    assert SIZES == {**DECODERS, **ENCODERS, **ENCODER_DECODERS}
