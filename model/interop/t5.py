"""T5 (1.0 and 1.1) and Switch Transformers: encoder-decoders with relative positions."""

from model.config import ModelConfig
from model.interop import family
from model.interop.family import Family, Row, activation, layer_entries, norm, norm_entries, only, table_entry
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
    # Old files hold the shared table under other names too, and a bias of cross-attention that was never used.
    ignored = (r"(en|de)coder\.embed_tokens\.weight", r".*EncDecAttention\.relative_attention_bias\.weight")
    return Table(tuple(entries), ignored=(*ignored, r"lm_head\.weight") if config.tied else ignored)


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


def _common(c: dict, scaled: bool) -> dict:
    """What both say; `scaled`: scores are divided by the root of the width."""
    layers = c.get("num_decoder_layers") or c["num_layers"]
    return dict(
        architecture="encoder_decoder",
        vocab_size=c["vocab_size"],
        num_layers=layers,
        encoder_layers=0 if c["num_layers"] == layers else c["num_layers"],
        embed_dim=c["d_model"],
        num_heads=c["num_heads"],
        head_dim=c["d_kv"],
        mlp_dim=c["d_ff"],
        max_length=c.get("n_positions") or 512,  # relative positions have no end; both were trained at 512
        norm="rmsnorm",
        norm_epsilon=c.get("layer_norm_epsilon", 1e-6),
        position="relative",
        relative_buckets=c.get("relative_attention_num_buckets", 32),
        relative_distance=c.get("relative_attention_max_distance", 128),
        attention_scale=1.0,
        logit_scale=c["d_model"] ** -0.5 if scaled else 1.0,
    )


def _describe(config: ModelConfig) -> dict:
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


def _t5(c: dict) -> dict:
    """Version 1.1 has an output layer of its own and does not scale: transformers 4 says so by tie_word_embeddings, 5
    by scale_decoder_outputs, and whether the layer is there only the file says."""
    kind = c.get("feed_forward_proj", "relu")
    tied = c.get("tie_word_embeddings", True)
    return _common(c, c.get("scale_decoder_outputs", tied)) | dict(
        gated=kind.startswith("gated-"),
        activation="gelu_tanh" if kind == "gated-gelu" else activation(kind.removeprefix("gated-")),
        tied=tied and "lm_head.weight" not in c.get("tensors", ()),
    )


def _describe_t5(config: ModelConfig) -> dict:
    names = {"gelu_tanh": "gelu" if config.gated else "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu"}
    return _describe(config) | {
        "feed_forward_proj": "gated-" * config.gated + names[config.activation],
        "scale_decoder_outputs": config.logit_scale != 1,
    }


def _switch(c: dict) -> dict:
    only(c, router_bias=False, router_ignore_padding_tokens=False)
    steps = {_step(c, side) for side in ("encoder", "decoder")}
    if len(steps) > 1:
        only(c, decoder_sparse_step=min(steps), encoder_sparse_step=min(steps))
    step = steps.pop()
    experts = Experts(
        count=c["num_experts"], per_token=1, mlp_dim=c["d_ff"], normalize=False, capacity=c["expert_capacity"]
    )
    tied = c.get("tie_word_embeddings", True)
    return _common(c, tied) | dict(
        gated=False,
        activation=activation(c.get("dense_act_fn", "relu")),
        tied=tied,
        experts=experts if step else None,
        mlp_pattern=_pattern(step),
    )


def _step(c: dict, side: str) -> int:
    """Every how many layers one has experts; 0: none."""
    layers = c.get("num_decoder_layers") or c["num_layers"] if side == "decoder" else c["num_layers"]
    sparse = c.get(f"num_sparse_{side}_layers", 3)
    return c.get(f"{side}_sparse_step", layers // sparse if sparse else 0)


def _pattern(step: int) -> tuple[str, ...]:
    """A layer has experts where its number modulo `step` is 1; all, if `step` is 1."""
    if step < 2:
        return ("sparse",) if step else ("dense",)
    return ("dense", "sparse", *["dense"] * (step - 2))


def _describe_switch(config: ModelConfig) -> dict:
    step = len(config.mlp_pattern)
    sides = {"encoder": config.encoder_layers or config.num_layers, "decoder": config.num_layers}
    return (
        _describe(config)
        | {"dense_act_fn": "gelu_new" if config.activation == "gelu_tanh" else config.activation}
        | {"num_experts": config.experts.count, "expert_capacity": config.experts.capacity}
        | {f"num_sparse_{side}_layers": layers // step for side, layers in sides.items()}
        | {f"{side}_sparse_step": step for side in sides}
    )


T5 = Family("T5ForConditionalGeneration", _t5, _describe_t5, lambda config: _table(config, "DenseReluDense"))
SWITCH = Family(
    "SwitchTransformersForConditionalGeneration", _switch, _describe_switch, lambda config: _table(config, "mlp")
)
