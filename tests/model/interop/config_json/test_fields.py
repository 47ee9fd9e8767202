"""The tables of config.json's fields equal transformers' config classes, and other fields are refused."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model.config import ModelConfig
from model.interop import registry
from model.interop.config_json import classes, fields
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from tests.configs.published import CONFIGS

FAMILIES = list(registry.FAMILIES)


def of_class(name: str) -> dict:
    """Returns the fields that a family's transformers config class declares, with their defaults."""
    found = {field.name: field for field in dataclasses.fields(CONFIG_MAPPING[name]) if field.init}
    return {
        name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for name, field in found.items()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_of_transformers_class_has_a_row(name):
    known, declared = registry.FAMILIES[name].known, of_class(name)
    alias = known.aliases
    rows = {*known.read, *known.only, *known.neutral, *known.older, *fields._NEUTRAL, *fields._ONLY}
    assert {alias.get(field, field) for field in declared} - rows == set()


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_are_those_of_transformers(name):
    known, declared = registry.FAMILIES[name].known, of_class(name)
    theirs = {known.aliases.get(field, field): value for field, value in declared.items()}
    assert known.read == {field: theirs.get(field, "no such field") for field in known.read}
    for field, values in (known.only | fields._ONLY).items():
        assert field not in theirs or theirs[field] in values, field


@pytest.mark.parametrize("name", FAMILIES)
def test_aliases_are_those_of_transformers(name):
    ours, theirs = registry.FAMILIES[name].known.aliases, CONFIG_MAPPING[name].attribute_map
    neutral = registry.FAMILIES[name].known.neutral
    assert {alias: field for alias, field in theirs.items() if alias not in neutral}.items() <= ours.items()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_table_calls_read_is_read(name):
    """Each field is read in one of these configs: some are read only if another one asks for it."""
    family, asked = registry.FAMILIES[name], set()
    turned = {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10.0}}
    for values in ({}, turned, {"use_sliding_window": True}):
        fields = {*family.known.read, *family.known.older, "num_experts_per_tok"}
        given = registry.given_of(name, {field: value for field, value in values.items() if field in fields})
        with contextlib.suppress(ValueError):  # DeepSeek-V2's default of num_experts_per_tok is null
            family.fields(given)
        family.table_to_read(given, family.table(_config(name)))
        asked |= given.asked
    assert asked >= {*family.known.read, *family.known.older}


def _config(name: str):
    """Returns the config of a published size, or of transformers' defaults if the family has no size here."""
    sizes = [values for values in CONFIGS.values() if values["model_type"] == name]
    values = sizes[0] if sizes else CONFIG_MAPPING[name]().to_dict()
    return ModelConfig(**registry.model_fields(name, values))


def read(tmp_path, values):
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file({"none": np.zeros(1)}, tmp_path / "model.safetensors")
    return registry.read_config(Folder(tmp_path))[1]


@pytest.mark.parametrize("size", ["gpt2", "llama_7b", "bert_base_cased", "t5_small", "deepseek_v3"])
def test_a_field_that_nobody_knows_is_refused(size, tmp_path):
    with pytest.raises(CheckpointFolderError, match=r"config\.json: attention_sinks is 4; the field is not known"):
        read(tmp_path, CONFIGS[size] | {"attention_sinks": 4})
    assert read(tmp_path, CONFIGS[size] | {"attention_sinks": None, "use_cache": False, "transformers_version": "4"})


@pytest.mark.parametrize(
    ("size", "change", "words"),
    [
        ("llama_7b", dict(is_causal=False), "is_causal is False; only True"),
        ("llama_7b", dict(is_causal=None), "is_causal is None; only True"),
        ("gemma2_2b", dict(use_bidirectional_attention=True), "use_bidirectional_attention is True"),
        ("llama_7b", dict(per_layer_config={"0": {"head_dim": 4}}), "per_layer_config is"),
        ("llama_7b", dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5; only None or 1"),
        ("llama_7b", dict(rope_scaling=dict(rope_type="longrope", factor=2)), "rope_scaling.rope_type is 'longrope'"),
        ("llama_7b", dict(rope_scaling=dict(type="linear")), "rope_scaling.factor is None; the type linear needs"),
        ("llama_7b", dict(rope_scaling=dict(type="linear", factor=2, odd=1)), "rope_scaling.odd is 1"),
        ("llama_7b", dict(rope_parameters=dict(rope_type="yarn", factor=2.0, truncate=False)), "truncate is False"),
        ("llama_7b", dict(rms_norm_eps=float("nan")), "rms_norm_eps is nan; it must be a number"),
        ("llama_7b", dict(tie_word_embeddings="false"), "tie_word_embeddings is 'false'; it must be true or false"),
        ("mistral_7b_v0.1", dict(layer_types=["full_attention"] * 32), "layer_types is"),
        ("mistral_7b_v0.1", dict(sliding_window=0), "sliding_window is 0; it must be at least 1, or null"),
        (
            "qwen2_7b",
            dict(layer_types=["sliding_attention"] * 28),
            "by layer_types.*sliding_window is 131072 and use_sliding_window is false",
        ),
        (
            "qwen2_7b",
            dict(layer_types=["full_attention"]),
            "layer_types is .*; it must name the kind of each of the 28",
        ),
        (
            "phi4",
            dict(rope_scaling=dict(type="longrope", short_factor=[1.0] * 48, long_factor=[2.0] * 48)),
            r"rope_scaling\.type is 'longrope'; of Phi-3 only models with 'default' can be read",
        ),
        ("phi4", dict(rope_scaling=dict(type="su", short_factor=[1.0] * 48)), r"rope_scaling\.type is 'su'"),
        ("phi4", dict(rope_parameters=dict(rope_type="yarn", factor=2.0)), r"rope_parameters\.rope_type is 'yarn'; of"),
        ("phi4", dict(partial_rotary_factor=0.75), "partial_rotary_factor is 0.75; only None or 1"),
        (
            "phi4",
            dict(rope_parameters=dict(rope_type="default", partial_rotary_factor=0.75)),
            r"rope_parameters\.partial_rotary_factor is 0.75; only 1",
        ),
        ("phi4", dict(attention_bias=True), "attention_bias is True; only False"),
        ("phi4", dict(rope_scaling="longrope"), "rope_scaling is 'longrope'; it must be an object"),
        ("gemma2_2b", dict(sliding_window=None), "some layers have a window .as in all models.*sliding_window is None"),
        ("gemma_2b", dict(hidden_activation="relu"), "hidden_activation is 'relu', but the model's"),
        (
            "gemma3_1b",
            dict(rope_parameters=dict(sliding_attention=dict(rope_type="linear", factor=8.0))),
            r"rope_parameters\.sliding_attention\.rope_type is 'linear'; only 'default'",
        ),
        ("gemma3_1b", dict(rope_parameters=dict(rope_theta=1.0)), "rope_parameters is .*full_attention and sliding"),
        ("gpt2", dict(hidden_size=64), "hidden_size is 64, but n_embd is 768"),
        ("bloom_560m", dict(slow_but_exact=True), "slow_but_exact is True"),
        ("opt_125m", dict(enable_bias=False), "enable_bias is False"),
        ("bert_base_cased", dict(is_decoder=True), "is_decoder is True"),
        ("bert_base_cased", dict(position_embedding_type="relative_key"), "position_embedding_type is 'relative_key'"),
        ("roberta_base", dict(pad_token_id=None), "pad_token_id is None; it must be an integer of at least 0"),
        (
            "bert_base_cased",
            dict(architectures=["BertForQuestionAnswering"]),
            "choose for model_type bert from BertForMaskedLM",
        ),
        ("llama_7b", dict(architectures=["A", "B"]), "it must be a list with the name of one class"),
        (
            "bert_base_cased",
            dict(architectures=["BertForSequenceClassification"], id2label="a"),
            "id2label is 'a'; it must map numbers",
        ),
        (
            "bert_base_cased",
            dict(architectures=["BertForSequenceClassification"], id2label={"good": 0}),
            "id2label has the key 'good'",
        ),
        (
            "bert_base_cased",
            dict(architectures=["BertForSequenceClassification"], problem_type="multi_label_classification"),
            "problem_type is 'multi_label_classification'; with 2 labels only",
        ),
        ("t5_small", dict(feed_forward_proj="gated-quick_gelu"), "feed_forward_proj is 'quick_gelu'"),
        ("switch_base_8", dict(router_dtype="bfloat16"), "router_dtype is 'bfloat16'"),
        ("switch_base_8", dict(num_sparse_decoder_layers=3), "num_sparse_encoder_layers, one in every 2 layers"),
        ("deepseek_v3", dict(num_key_value_heads=64), "num_key_value_heads is 64; by the other fields it must be 128"),
        ("deepseek_v3", dict(qk_head_dim=64), "qk_head_dim is 64"),
        ("qwen3_30b_a3b", dict(mlp_only_layers="0"), "mlp_only_layers is '0'"),
        ("qwen3_30b_a3b", dict(layer_types=5), "layer_types is 5"),
        ("qwen3_30b_a3b", dict(layer_types=[["a"]]), "layer_types is"),
        ("llama_7b", dict(note="path/model.bin"), "note is 'path/model.bin'; the field is not known"),
        ("llama_7b", dict(rope_scaling=dict(rope_type=["yarn"], factor=2.0)), "rope_scaling.rope_type is .'yarn'."),
        (
            "llama_7b",
            dict(rope_scaling=dict(type="yarn", factor=2.0, original_max_position_embeddings="x")),
            "rope_scaling.original_max_position_embeddings is 'x'",
        ),
        ("llama_7b", dict(rope_scaling=dict(type="linear", factor=0.0)), "rope_parameters is 0.0; it must be"),
        ("llama_7b", dict(max_position_embeddings=-1), "max_position_embeddings is -1"),
        ("llama_7b", dict(rope_theta=0), "rope_theta is 0"),
        ("llama_7b", dict(num_hidden_layers=10**30), "num_hidden_layers is 1000.*less than 2.31"),
        (
            "llama3.1_8b",
            dict(rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=4.0, high_freq_factor=1.0)),
            "rope_scaling.low_freq_factor must be less than high_freq_factor",
        ),
        ("gemma2_2b", dict(attn_logit_softcapping=0.0), "attn_logit_softcapping is 0.0; it must be above 0, or null"),
        (
            "bert_base_cased",
            dict(architectures=["BertForSequenceClassification"], problem_type="regression", num_labels=3),
            "problem_type is 'regression'; with 3 labels only 'single_label_classification'",
        ),
        (
            "bert_base_cased",
            dict(architectures=["BertForSequenceClassification"], num_labels=2, id2label={0: "a", 1: "b", 2: "c"}),
            "num_labels is 2, but id2label has 3 classes",
        ),
        (
            "bert_base_cased",
            dict(architectures=["BertForSequenceClassification"], id2label={"0": "x", "1": "x"}),
            "id2label gives two classes the name 'x'",
        ),
        ("gemma3_1b", dict(rope_scaling=[1]), r"rope_scaling is \[1\]; it must be an object"),
        ("gemma3_1b", dict(rope_parameters=dict(full_attention=3)), "full_attention is 3; it must be an object"),
        ("deepseek_v3", dict(rope_scaling=dict(type="yarn", factor=2.0, mscale_all_dim="x")), "mscale_all_dim is 'x'"),
        ("deepseek_v3", dict(n_group=7), "n_routed_experts 256 is not a multiple of n_group 7"),
        (
            "switch_base_8",
            dict(num_sparse_encoder_layers=99),
            "num_sparse_encoder_layers .* is larger than the number of layers",
        ),
    ],
)
def test_values_that_can_not_be_read_are_refused_by_name(size, change, words, tmp_path):
    with pytest.raises(CheckpointFolderError, match=words) as error:
        read(tmp_path, CONFIGS[size] | change)
    assert str(error.value).startswith(f"{tmp_path}: config.json: ")


def test_an_absent_field_is_transformers_default(tmp_path):
    """For every family, an empty config.json gives the model of transformers' empty config class."""
    for name in FAMILIES:
        # Its default is None, which gives no model.
        lacking = {"num_experts_per_tok": 2} if name == "deepseek_v2" else {}
        given = CONFIG_MAPPING[name](**lacking).to_dict()
        ours, theirs = (registry.model_fields(name, values) for values in ({"model_type": name, **lacking}, given))
        assert ModelConfig(**ours) == ModelConfig(**theirs), name


def test_rope_scaling_replaces_rope_parameters(tmp_path):
    both = dict(rope_scaling=dict(rope_type="linear", factor=2.0), rope_parameters=dict(rope_type="linear", factor=4.0))
    assert read(tmp_path, CONFIGS["llama_7b"] | both).rope.factor == 2
    assert CONFIG_MAPPING["llama"](**both).rope_parameters["factor"] == 2


def test_activations_pass_through_an_export():
    for name in FAMILIES:
        for activation in ("silu", "relu", "gelu", "gelu_tanh"):
            if name == "bloom" or (name == "roberta" and activation != "gelu"):
                continue
            config = dataclasses.replace(_config(name), activation=activation)
            again = registry.model_fields(name, registry.describe(name, config))
            assert again["activation"] == activation, (name, activation)


def test_names_of_classes_that_only_label2id_gives():
    assert classes.names({"label2id": {"pos": 1, "neg": 0}, "num_labels": 2}) == ["neg", "pos"]


def test_patterns_are_the_same_however_they_are_spelt():
    config = dataclasses.replace(_config("gemma2"), attention_pattern=("local", "global") * 2)
    assert registry.describe("gemma2", config)["layer_types"][:2] == ["sliding_attention", "full_attention"]


def test_what_can_not_be_expressed_is_refused():
    config = dataclasses.replace(_config("bloom"), activation="relu")
    with pytest.raises(
        CheckpointFolderError, match=r"a checkpoint of bloom has no place for this model's model\.activ"
    ):
        registry.describe("bloom", config)


def test_a_model_that_a_family_can_not_hold_is_refused():
    config = dataclasses.replace(_config("roberta"), activation="relu")
    with pytest.raises(
        CheckpointFolderError, match=r"a checkpoint of roberta can't hold this model: hidden_act is 're"
    ):
        registry.describe("roberta", config)
    with pytest.raises(CheckpointFolderError, match=r"a checkpoint of mixtral can't hold this model"):
        registry.describe("mixtral", _config("llama"))
