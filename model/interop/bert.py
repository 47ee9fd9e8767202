"""BERT, RoBERTa and ALBERT: post-norm encoders with a head for masked tokens, sequences, tokens, or none."""

import re

from model.config import ModelConfig
from model.interop import family
from model.interop.family import (
    Family,
    activation,
    known,
    layer_entries,
    linear_entries,
    norm,
    norm_entries,
    table_entry,
)
from model.interop.layout import Entry
from model.interop.table import Table
from model.interop.tensorfile import CheckpointFolderError

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
# Files of TensorFlow's days name a norm's scale and bias so.
_RENAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


def _table(config, body, layers, masked, pooler, classifier) -> Table:
    """
    Args:
      body: their name of the encoder.  masked: of the masked head's dense layer, its norm, its bias, its table.
    """
    prefix = "" if config.head == "none" else f"{body}."
    dense, norm_name, bias, decoder = masked
    heads = [*linear_entries("unembedding/project", dense), *norm_entries("unembedding/norm", norm_name)]
    heads += [Entry("unembedding/bias", bias, "vocab", "vocab")]
    ignored = (r".*position_ids", re.escape(decoder) + r"\..*", r"cls\.seq_relationship\..*", r"sop_classifier\..*")
    if config.head in ("masked", "token"):
        ignored += (rf"{body}\.pooler\..*",)
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
        ignored=ignored,
        renames=_RENAMES,
    )


def _bert_table(config: ModelConfig) -> Table:
    masked = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
    layers = lambda prefix: layer_entries(config, _ROWS, f"{prefix}.layer.{{layer}}")
    return _table(config, "bert", layers, (*masked, "cls.predictions.decoder"), "{}pooler.dense", "classifier")


def _roberta_table(config: ModelConfig) -> Table:
    masked = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder")
    layers = lambda prefix: layer_entries(config, _ROWS, f"{prefix}.layer.{{layer}}")
    sequence = config.head == "sequence"  # its pooler is a part of the head
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


def _fields(c: dict) -> dict:
    name = (c.get("architectures") or [""])[0]
    head = next((suffix for suffix in _HEADS if re.fullmatch(f"(Bert|Roberta|Albert){suffix}", name)), name)
    family.only(c, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
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
        activation=activation(c["hidden_act"]),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=True,
        output_bias=True,
        head=known("architectures", head, _HEADS),
        num_labels=family.num_labels(c),
        init_std=c.get("initializer_range", 0.02),
    )


def _roberta_fields(c: dict) -> dict:
    offset = c.get("pad_token_id", 1) + 1
    return _fields(c) | dict(position_offset=offset, max_length=c["max_position_embeddings"] - offset)


def _albert_fields(c: dict) -> dict:
    if c["num_hidden_groups"] < 1:
        raise CheckpointFolderError("config.json: num_hidden_groups is 0; layers share the parameters of at least 1")
    return _fields(c) | dict(
        table_dim=c["embedding_size"],
        share_groups=c["num_hidden_groups"],
        share_inner=c["inner_group_num"],
    )


def _describe(name: str):
    def describe(config: ModelConfig) -> dict:
        suffix = {head: suffix for suffix, head in reversed(_HEADS.items())}[config.head]
        return {
            "architectures": [name + suffix],
            "vocab_size": config.vocab_size,
            "num_hidden_layers": config.num_layers,
            "hidden_size": config.embed_dim,
            "num_attention_heads": config.num_heads,
            "intermediate_size": config.mlp_dim,
            "max_position_embeddings": config.max_length + config.position_offset,
            "layer_norm_eps": config.norm_epsilon,
            "type_vocab_size": config.token_types,
            "hidden_act": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
            **family.labels(config),
            "initializer_range": config.init_std,
        }

    return describe


def _describe_roberta(config: ModelConfig) -> dict:
    return _describe("Roberta")(config) | {"pad_token_id": config.position_offset - 1}


def _describe_albert(config: ModelConfig) -> dict:
    return _describe("Albert")(config) | {
        "embedding_size": config.table_dim,
        "num_hidden_groups": config.share_groups,
        "inner_group_num": config.share_inner,
    }


BERT = Family("BertForMaskedLM", _fields, _describe("Bert"), _bert_table)
ROBERTA = Family("RobertaForMaskedLM", _roberta_fields, _describe_roberta, _roberta_table)
ALBERT = Family("AlbertForMaskedLM", _albert_fields, _describe_albert, _albert_table)
