"""T5 (1.0 and 1.1) and Switch Transformers: encoder-decoders with relative positions."""

from typing import Any

from model.config import ModelConfig
from model.interop import family
from model.interop.config_json.fields import Given, Known, names
from model.interop.family import Family, Row, activation, layer_entries, norm, norm_entries, table_entry
from model.interop.layout import Entry
from model.interop.table import Table
from model.parts import Experts


def _table(config: ModelConfig, feed_forward: str) -> Table:
    entries = [table_entry("inputs/tokens/table", "shared.weight"), table_entry("unembedding/table", "lm_head.weight")]
    for side, stack, final, layers in (
        ("encoder", "encoder", "encoder_norm", config.encoder_layers or config.num_layers),
        ("decoder", "stack", "norm", config.num_layers),
    ):
        rows = _rows(side == "decoder", feed_forward, config.gated)
        entries += layer_entries(config, rows, side + ".block.{layer}", stack, layers)
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        entries += [Entry(f"{stack}/bias/table", bias, "bucket (kv group)", "bucket kv group")]
        entries += norm_entries(final, f"{side}.final_layer_norm")
    # Old files store an unused bias of cross-attention, and the shared table under additional names.
    ignored = (r".*EncDecAttention\.relative_attention_bias\.weight",)
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", *["lm_head.weight"] * config.tied)
    return Table(tuple(entries), ignored, ((r"^transformer\.", ""),), {"shared.weight": names})


def _rows(decoder: bool, feed_forward: str, gated: bool) -> list[Row]:
    projections = lambda name: [f"{name}.{w}" for w in "qkvo"]
    rows = [*norm("attention_norm", "layer.0.layer_norm"), *family.attention(*projections("layer.0.SelfAttention"))]
    if decoder:
        rows += norm("cross_norm", "layer.1.layer_norm")
        rows += family.attention(*projections("layer.1.EncDecAttention"), ours="cross")
    last = f"layer.{1 + decoder}"
    name = f"{last}.{feed_forward}"
    expert = f"{name}.experts.expert_{{expert}}"
    rows += norm("feed_forward_norm", f"{last}.layer_norm")
    rows += family.experts(f"{name}.router.classifier", f"{expert}.wi", f"{expert}.wo")
    if gated:
        return rows + family.feed_forward(f"{name}.wi_1", f"{name}.wo", f"{name}.wi_0")
    return rows + family.feed_forward(f"{name}.wi", f"{name}.wo")


def _common(c: Given, scaled: bool) -> dict[str, Any]:
    """Returns the fields that T5 and Switch share.

    Args:
      scaled: whether the output layer's scores are divided by the square root of the width.

    T5's output layer is tied if config.json has no tie_word_embeddings.
    """
    layers = c["num_decoder_layers"] or c["num_layers"]
    return dict(
        architecture="encoder_decoder",
        vocab_size=c["vocab_size"],
        num_layers=layers,
        encoder_layers=0 if c["num_layers"] == layers else c["num_layers"],
        embed_dim=c["d_model"],
        num_heads=c["num_heads"],
        head_dim=c["d_kv"],
        mlp_dim=c["d_ff"],
        max_length=c["n_positions"] or 512,  # relative positions have no limit; both were trained with 512
        norm="rmsnorm",
        norm_epsilon=c["layer_norm_epsilon"],
        position="relative",
        relative_buckets=c["relative_attention_num_buckets"],
        relative_distance=c["relative_attention_max_distance"],
        attention_scale=1.0,
        logit_scale=c["d_model"] ** -0.5 if scaled else 1.0,
        tied=c["tie_word_embeddings"] is not False,
    )


def _describe(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.embed_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_layers": config.encoder_layers or config.num_layers,
        "num_decoder_layers": config.num_layers,
        "num_heads": config.num_heads,
        "n_positions": config.max_length,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_distance,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def _t5(c: Given) -> dict[str, Any]:
    """Reads T5. Version 1.1 has a separate output layer and does not scale scores.

    transformers 4 expresses that by tie_word_embeddings, 5 by scale_decoder_outputs. Only the file's tensors show
    whether the layer exists (registry.py).
    """
    proj = c["feed_forward_proj"]
    gate, _, name = proj.rpartition("-")
    if gate not in ("", "gated"):
        raise ValueError(f"feed_forward_proj is {proj!r}; it must be an activation, or 'gated-' and an activation")
    gated = gate == "gated" if c["is_gated_act"] is None else c["is_gated_act"]
    # transformers also writes the two fields that it derives from feed_forward_proj, and they take precedence.
    act = "dense_act_fn" if c["dense_act_fn"] is not None else "feed_forward_proj"
    named = c["dense_act_fn"] or ("gelu_new" if proj == "gated-gelu" else name)
    scaled = c["tie_word_embeddings"] is not False if c["scale_decoder_outputs"] is None else c["scale_decoder_outputs"]
    return _common(c, scaled) | dict(gated=gated, activation=family.known(act, named, family.ACTIVATIONS))


def _describe_t5(config: ModelConfig) -> dict[str, Any]:
    act = family.activation_name(config, gelu_tanh="gelu_new")
    return _describe(config) | {
        # "gated-gelu" means the tanh approximation, so the two fields below must name gates with exact GELU.
        "feed_forward_proj": "gated-gelu" if config.gated and act == "gelu_new" else "gated-" * config.gated + act,
        "dense_act_fn": act,
        "is_gated_act": config.gated,
        "scale_decoder_outputs": config.logit_scale != 1,
    }


def _switch(c: Given) -> dict[str, Any]:
    steps = {side: _step(c, side) for side in ("encoder", "decoder")}
    if 0 in steps.values():
        raise ValueError(
            "num_sparse_encoder_layers or num_sparse_decoder_layers is larger than the number of layers (num_layers, "
            "num_decoder_layers)"
        )
    if steps["encoder"] != steps["decoder"]:
        raise ValueError(
            "by num_layers and num_sparse_encoder_layers, one in every "
            f"{steps['encoder']} layers of the encoder has experts, but by num_decoder_layers and "
            f"num_sparse_decoder_layers one in every {steps['decoder']} of the decoder; only equal steps can be read"
        )
    experts = Experts(
        count=c["num_experts"], per_token=1, mlp_dim=c["d_ff"], normalize=False, capacity=c["expert_capacity"]
    )
    return _common(c, c["tie_word_embeddings"]) | dict(
        gated=False,
        activation=activation(c, "dense_act_fn"),
        experts=experts,
        mlp_pattern=_pattern(steps["encoder"]),
    )


def _step(c: Given, side: str) -> int:
    """Returns the step between layers with experts.

    Without sparse layers transformers uses the number of layers, so that the second layer is sparse nevertheless.
    """
    layers = c["num_decoder_layers"] or c["num_layers"] if side == "decoder" else c["num_layers"]
    sparse = c[f"num_sparse_{side}_layers"]
    return c[f"{side}_sparse_step"] or (layers // sparse if sparse else layers)


def _pattern(step: int) -> tuple[str, ...]:
    """Returns mlp_pattern: a layer has experts if its number modulo `step` is 1; all layers do if `step` is 1."""
    if step == 1:
        return ("sparse",)
    return ("dense", "sparse", *["dense"] * (step - 2))


def _describe_switch(config: ModelConfig) -> dict[str, Any]:
    step, experts = len(config.mlp_pattern), family.needed(config.experts, "experts")
    sides = {"encoder": config.encoder_layers or config.num_layers, "decoder": config.num_layers}
    return (
        _describe(config)
        | {"dense_act_fn": family.activation_name(config, gelu_tanh="gelu_new")}
        | {"num_experts": experts.count, "expert_capacity": experts.capacity}
        | {f"num_sparse_{side}_layers": layers // step for side, layers in sides.items()}
        | {f"{side}_sparse_step": step for side in sides}
    )


_READ: dict[str, Any] = dict(
    vocab_size=32128,
    d_model=512,
    d_kv=64,
    d_ff=2048,
    num_layers=6,
    num_decoder_layers=None,
    num_heads=8,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
)
_SWITCH_READ: dict[str, Any] = _READ | dict(
    d_model=768,
    num_layers=12,
    num_decoder_layers=12,
    num_heads=12,
    expert_capacity=64,
    num_experts=8,
    num_sparse_encoder_layers=3,
    num_sparse_decoder_layers=3,
    dense_act_fn="relu",
    tie_word_embeddings=True,
)
_ONLY: dict[str, tuple] = {
    "add_cross_attention": (False,),
    "is_causal": (),
    "is_decoder": (False,),
    "is_encoder_decoder": (True,),
}
_NEUTRAL = names("classifier_dropout dropout_rate initializer_factor")
_ALIASES = {"hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
_OLDER_T5 = "dense_act_fn is_gated_act n_positions scale_decoder_outputs tie_word_embeddings"

T5 = Family(
    dict.fromkeys(("T5ForConditionalGeneration", "T5Model", "T5WithLMHeadModel"), "language_model"),
    Known(
        _READ | dict(feed_forward_proj="relu"),
        only=_ONLY,
        neutral=_NEUTRAL,
        older=names(_OLDER_T5),
        aliases=_ALIASES | {"head_dim": "d_kv"},
    ),
    _t5,
    _describe_t5,
    lambda config: _table(config, "DenseReluDense"),
    ties_absent_head=True,
)
SWITCH = Family(
    dict.fromkeys(("SwitchTransformersForConditionalGeneration", "SwitchTransformersModel"), "language_model"),
    Known(
        _SWITCH_READ,
        only=_ONLY
        | {
            "feed_forward_proj": ("relu",),
            "is_gated_act": (False,),
            "router_bias": (False,),
            "router_dtype": ("float32",),
            "router_ignore_padding_tokens": (False,),
            "router_type": ("tokens_masked",),
        },
        neutral=_NEUTRAL | names("add_router_probs router_aux_loss_coef router_jitter_noise router_z_loss_coef"),
        older=names("decoder_sparse_step encoder_sparse_step n_positions"),
        aliases=_ALIASES,
    ),
    _switch,
    _describe_switch,
    lambda config: _table(config, "mlp"),
)
