"""BERT, RoBERTa and ALBERT: post-norm encoders with a head for masked tokens, sequences or tokens, or with none."""

import dataclasses
import re
from typing import Any

from model.config import ModelConfig
from model.interop import family
from model.interop.config_json.fields import Given, Known, names
from model.interop.family import Family, activation, layer_entries, linear_entries, norm, norm_entries, table_entry
from model.interop.layout import Entry
from model.interop.table import Table

_HEADS = {
    "ForMaskedLM": "masked",
    "ForPreTraining": "masked",
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
    "Model": "none",
}
_ROWS = (
    *family.attention("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *norm("attention_norm", "attention.output.LayerNorm"),
    *family.feed_forward("intermediate.dense", "output.dense"),
    *norm("feed_forward_norm", "output.LayerNorm"),
)
_ALBERT_ROWS = (
    *family.attention("attention.query", "attention.key", "attention.value", "attention.dense"),
    *norm("attention_norm", "attention.LayerNorm"),
    *family.feed_forward("ffn", "ffn_output"),
    *norm("feed_forward_norm", "full_layer_layer_norm"),
)
_BIAS = "unembedding/bias"  # of the masked head's output layer
# Files from TensorFlow times use these names for a norm's scale and bias.
_RENAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


def _table(config, body, layers, masked, pooler, classifier) -> Table:
    """Returns the table of a family.

    Args:
      body: their name of the encoder.
      layers: prefix of the encoder -> entries of its layers.
      masked: their names of the masked head's dense layer, norm, bias and output layer.
      pooler, classifier: their names of these layers; the pooler's may contain {} for the prefix.
    """
    # A file of a model without a head lacks the prefix, but files of either kind are read with and without it.
    whole = config.head == "none"
    prefix = "" if whole else f"{body}."
    rename = (rf"^{body}\.", "") if whole else (r"^(?=(embeddings|encoder|pooler)\.)", prefix)
    words = f"{prefix}embeddings.word_embeddings.weight"
    dense, norm_name, bias, decoder = masked
    heads = [*linear_entries("unembedding/project", dense), *norm_entries("unembedding/norm", norm_name)]
    heads += [Entry(_BIAS, bias if config.tied else f"{decoder}.bias", "vocab", "vocab")]
    heads += [table_entry("unembedding/table", f"{decoder}.weight")]
    ignored = [r".*position_ids", r"cls\.seq_relationship\..*", r"sop_classifier\..*"]
    if config.head in ("masked", "token"):
        ignored += [rf"{body}\.pooler\..*"]
    if config.head != "masked":  # the file may come from a model that was trained with that head
        ignored += [rf"{re.escape(part)}\..*" for part in (dense, norm_name, decoder)] + [re.escape(bias)]
    elif not config.tied:
        ignored += [re.escape(bias)]  # transformers adds the decoder's own bias instead
    return Table(
        (
            *(
                table_entry(f"inputs/{ours}/table", f"{prefix}embeddings.{theirs}_embeddings.weight")
                for ours, theirs in (("tokens", "word"), ("positions", "position"), ("types", "token_type"))
            ),
            *norm_entries("inputs/norm", f"{prefix}embeddings.LayerNorm"),
            *linear_entries("inputs/project", f"{prefix}encoder.embedding_hidden_mapping_in"),
            *layers(f"{prefix}encoder"),
            *heads,
            *linear_entries("pooler", pooler.format(prefix)),
            *linear_entries("classifier", classifier),
        ),
        ignored=tuple(ignored),
        renames=(*_RENAMES, rename),
        others={words: (f"{decoder}.weight",)} if config.tied else {},
        overrides={bias: f"{decoder}.bias"},
    )


def _table_to_read(c: Given, table: Table) -> Table:
    """Uses the tied bias's name if config.json says that the output layer is tied.

    The file may store a separate output layer nevertheless (registry.py). transformers still ties its bias then, so the
    file stores the bias under one name.
    """
    if not c["tie_word_embeddings"]:
        return table
    ((bias, _),) = table.overrides.items()
    named = lambda entry: dataclasses.replace(entry, name=bias) if entry.path == _BIAS else entry
    return table._replace(entries=tuple(map(named, table.entries)))


def _bert_table(config: ModelConfig) -> Table:
    masked = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
    layers = lambda prefix: layer_entries(config, _ROWS, f"{prefix}.layer.{{layer}}")
    return _table(config, "bert", layers, (*masked, "cls.predictions.decoder"), "{}pooler.dense", "classifier")


def _roberta_table(config: ModelConfig) -> Table:
    masked = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder")
    layers = lambda prefix: layer_entries(config, _ROWS, f"{prefix}.layer.{{layer}}")
    sequence = config.head == "sequence"  # its pooler is part of the head
    pooler, classifier = ("classifier.dense", "classifier.out_proj") if sequence else ("{}pooler.dense", "classifier")
    return _table(config, "roberta", layers, masked, pooler, classifier)


def _albert_table(config: ModelConfig) -> Table:
    masked = ("predictions.dense", "predictions.LayerNorm", "predictions.bias", "predictions.decoder")

    def layers(prefix):
        for group in range(config.share_groups):
            for inner in range(config.share_inner):
                for path, name, theirs, ours in _ALBERT_ROWS:
                    yield Entry(
                        f"stack/segments/{group}/{inner}/{path}",
                        f"{prefix}.albert_layer_groups.{{layer}}.albert_layers.{inner}.{name}",
                        theirs,
                        f"layer {ours}",
                        layers=range(group, group + 1),
                    )

    return _table(config, "albert", layers, masked, "{}pooler", "classifier")


def _fields(c: Given) -> dict[str, Any]:
    return dict(
        architecture="encoder",
        vocab_size=c["vocab_size"],
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=c["num_attention_heads"],
        mlp_dim=c["intermediate_size"],
        max_length=c["max_position_embeddings"],
        norm="layernorm",
        norm_epsilon=c["layer_norm_eps"],
        norm_position="post",
        final_norm=False,
        embedding_norm=True,
        position="learned",
        token_types=c["type_vocab_size"],
        activation=activation(c, "hidden_act"),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=c["tie_word_embeddings"],
        output_bias=True,
        init_std=c["initializer_range"],
    )


def _roberta_fields(c: Given) -> dict[str, Any]:
    offset, fields = c["pad_token_id"] + 1, _fields(c)
    if fields["activation"] != "gelu":
        raise ValueError(
            f"hidden_act is {c['hidden_act']!r}; only 'gelu' can be read, which RoBERTa's masked head has whatever "
            "hidden_act says"
        )
    return fields | dict(position_offset=offset, max_length=c["max_position_embeddings"] - offset)


def _albert_fields(c: Given) -> dict[str, Any]:
    return _fields(c) | dict(
        table_dim=c["embedding_size"],
        share_groups=c["num_hidden_groups"],
        share_inner=c["inner_group_num"],
    )


def _describe(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_length + config.position_offset,
        "layer_norm_eps": config.norm_epsilon,
        "type_vocab_size": config.token_types,
        "hidden_act": family.activation_name(config, gelu_tanh="gelu_new"),
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
    }


def _describe_roberta(config: ModelConfig) -> dict[str, Any]:
    return _describe(config) | {"pad_token_id": config.position_offset - 1}


def _describe_albert(config: ModelConfig) -> dict[str, Any]:
    return _describe(config) | {
        "embedding_size": config.table_dim,
        "num_hidden_groups": config.share_groups,
        "inner_group_num": config.share_inner,
    }


def _known(**read) -> Known:
    return Known(
        _READ | read,
        only={
            "add_cross_attention": (False,),
            "is_causal": (False,),
            "is_decoder": (False,),
            "is_encoder_decoder": (False,),
            "pooler_type": ("first_token_transform",),
            "position_embedding_type": ("absolute",),
        },
        neutral=names(
            "attention_probs_dropout_prob classifier_dropout classifier_dropout_prob directionality down_scale_factor "
            "gap_size hidden_dropout_prob net_structure_type num_memory_blocks pooler_fc_size "
            "pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head"
        ),
    )


_READ: dict[str, Any] = dict(
    vocab_size=30522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    max_position_embeddings=512,
    type_vocab_size=2,
    initializer_range=0.02,
    layer_norm_eps=1e-12,
    tie_word_embeddings=True,
)
_ALBERT: dict[str, Any] = dict(
    vocab_size=30000,
    embedding_size=128,
    hidden_size=4096,
    num_hidden_groups=1,
    num_attention_heads=64,
    intermediate_size=16384,
    inner_group_num=1,
    hidden_act="gelu_new",
)


def _classes(name: str) -> dict[str, str]:
    return {name + suffix: head for suffix, head in _HEADS.items()}


BERT = Family(_classes("Bert"), _known(), _fields, _describe, _bert_table, _table_to_read)
ROBERTA = Family(
    _classes("Roberta"),
    _known(vocab_size=50265, pad_token_id=1),
    _roberta_fields,
    _describe_roberta,
    _roberta_table,
    _table_to_read,
)
ALBERT = Family(_classes("Albert"), _known(**_ALBERT), _albert_fields, _describe_albert, _albert_table, _table_to_read)
