"""DeepSeek-V2 and V3: latent attention, and mixtures of experts after the first layers."""

import math
from typing import Any

from model.attention.positions import yarn_factor
from model.config import ModelConfig
from model.interop import family
from model.interop.config_json.fields import Given
from model.interop.family import Family, known, norm
from model.interop.table import Table
from model.interop.tables import llama
from model.parts import Experts, Latent

_ATTENTION = (
    ("attention/query", "self_attn.q_proj.weight", "(kv group head) embed", "embed kv group head"),
    ("attention/query_down", "self_attn.q_a_proj.weight", "rank embed", "embed rank"),
    *norm("attention/query_norm", "self_attn.q_a_layernorm", "rank"),
    ("attention/query_up", "self_attn.q_b_proj.weight", "(kv group head) rank", "rank kv group head"),
    ("attention/latent_down", "self_attn.kv_a_proj_with_mqa.weight", "latent embed", "embed latent"),
    *norm("attention/latent_norm", "self_attn.kv_a_layernorm", "latent"),
    ("attention/key_up", "self_attn.kv_b_proj.weight", "(kv content+value) latent", "kv content latent"),
    ("attention/value_up", "self_attn.kv_b_proj.weight", "(kv content+value) latent", "kv value latent"),
    ("attention/out", "self_attn.o_proj.weight", "embed (kv group value)", "kv group value embed"),
)
_EXPERTS = (
    *family.experts("mlp.gate", *(f"mlp.experts.{{expert}}.{w}_proj" for w in ("up", "down", "gate"))),
    *family.feed_forward(*(f"mlp.shared_experts.{w}_proj" for w in ("up", "down", "gate")), ours="feed_forward/shared"),
    ("feed_forward/correction", "mlp.gate.e_score_correction_bias", "expert", "expert"),
)


def _table(config: ModelConfig) -> Table:
    return llama.table(config, (*llama.NORMS, *_ATTENTION, *llama.FEED_FORWARD, *_EXPERTS))


def _table_v3(config: ModelConfig) -> Table:
    """Ignores a published file's additional layer, which predicts the token after the next one.

    That layer (arXiv:2412.19437, section 2.2) is for training and speculative decoding; scores do not depend on it.
    """
    table = _table(config)
    return table._replace(ignored=(*table.ignored, rf"model\.layers\.{config.num_layers}\..*"))


def _common(c: Given, **experts) -> dict[str, Any]:
    latent = Latent(
        kv_rank=c["kv_lora_rank"],
        content_dim=c["qk_nope_head_dim"],
        rope_dim=c["qk_rope_head_dim"],
        value_dim=c["v_head_dim"],
        query_rank=c["q_lora_rank"] or 0,
    )
    _check_heads(c, latent)
    count = c["num_hidden_layers"]
    dense = min(c["first_k_dense_replace"] or 0, count)
    fields = llama.common(c) | dict(
        latent=latent,
        mlp_pattern=family.cycle(("dense",) * dense + ("sparse",) * (count - dense)),
        experts=None
        if dense == count
        else Experts(
            count=c["n_routed_experts"],
            per_token=c["num_experts_per_tok"],
            mlp_dim=c["moe_intermediate_size"],
            shared_dim=c["moe_intermediate_size"] * (c["n_shared_experts"] or 0),
            scale=c["routed_scaling_factor"],
            **experts,
        ),
    )
    given = c["rope_scaling"] or c["rope_parameters"] or {}
    if fields["rope"]["scaling"] != "none" and given.get("mscale_all_dim"):
        # This scales all of attention, while attention_factor only scales the rotary features. transformers does so
        # with every kind of scaling.
        sharper = yarn_factor(fields["rope"]["factor"], given["mscale_all_dim"])
        fields["attention_scale"] = (latent.content_dim + latent.rope_dim) ** -0.5 * sharper**2
    return fields


def _check_heads(c: Given, latent: Latent) -> None:
    """Checks other fields about heads: every head has its own key, and widths must equal the sum of their parts."""
    implied = dict(
        num_key_value_heads=c["num_attention_heads"],
        qk_head_dim=latent.content_dim + latent.rope_dim,
        head_dim=latent.rope_dim,
    )
    for field, value in implied.items():
        if c[field] not in (None, value):
            raise ValueError(f"{field} is {c[field]!r}; by the other fields it must be {value}")


def _groups(c: Given) -> dict[str, int]:
    return dict(groups=c["n_group"] or 1, groups_per_token=c["topk_group"] or 1)


def _v2(c: Given) -> dict[str, Any]:
    methods = {"greedy": {}, "group_limited_greedy": _groups(c)}
    groups = known("topk_method", c["topk_method"] or "greedy", methods)
    fields = _common(c, normalize=False, **groups)
    return fields | dict(rope=fields["rope"] | dict(interleaved=True))


def _v3(c: Given) -> dict[str, Any]:
    fields = _common(
        c,
        score="sigmoid",
        normalize=bool(c["norm_topk_prob"]),
        correction=True,
        group_score="top2",
        **_groups(c),
    )
    return fields | dict(rope=fields["rope"] | dict(interleaved=bool(c["rope_interleave"])))


def _describe(config: ModelConfig) -> dict[str, Any]:
    latent, experts, pattern = family.needed(config.latent, "latent attention"), config.experts, config.mlp_pattern
    dense = next((i for i in range(config.num_layers) if pattern[i % len(pattern)] == "sparse"), config.num_layers)
    described: dict[str, Any] = llama.describe(config) | {
        "head_dim": latent.rope_dim,  # as transformers has it
        "kv_lora_rank": latent.kv_rank,
        "q_lora_rank": latent.query_rank or None,
        "qk_nope_head_dim": latent.content_dim,
        "qk_rope_head_dim": latent.rope_dim,
        "v_head_dim": latent.value_dim,
        "attention_bias": False,
        "first_k_dense_replace": dense,
        "moe_layer_freq": 1,
    }
    if experts is not None:
        described |= {
            "n_routed_experts": experts.count,
            "num_experts_per_tok": experts.per_token,
            "moe_intermediate_size": experts.mlp_dim,
            "n_shared_experts": experts.shared_dim // experts.mlp_dim,
            "routed_scaling_factor": experts.scale,
            "norm_topk_prob": experts.normalize,
            "n_group": experts.groups,
            "topk_group": experts.groups_per_token,
        }
    described["rope_parameters"] |= _mscale(config)
    return described


def _mscale(config: ModelConfig) -> dict[str, float]:
    """Returns the two weights behind YaRN's factors: the inverse of `_common` and rope.read_object."""
    rope = config.rope
    if rope.scaling != "yarn" or rope.factor <= 1:
        return {}
    # Rounded, so that 0.707 survives the round trip.
    weight = lambda sharper: round((sharper - 1) / (0.1 * math.log(rope.factor)), 9)
    everywhere = weight(math.sqrt(config.attention_scale * math.sqrt(config.head_dim)))
    rotary = weight(rope.attention_factor * yarn_factor(rope.factor, everywhere))
    return {"mscale": rotary, "mscale_all_dim": everywhere}


def _describe_v2(config: ModelConfig) -> dict[str, Any]:
    method = "group_limited_greedy" if config.experts and config.experts.groups > 1 else "greedy"
    return _describe(config) | {"topk_method": method, "scoring_func": "softmax", "mlp_bias": config.mlp_bias}


def _describe_v3(config: ModelConfig) -> dict[str, Any]:
    return _describe(config) | {
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "rope_interleave": config.rope.interleaved,
        "num_nextn_predict_layers": 0,
    }


# Fields that only affect training: load balancing, and the layers that predict further tokens.
_NEUTRAL = f"aux_loss_alpha ep_size num_mtp_layers num_nextn_predict_layers seq_aux {llama.EXPERTS}"
_READ: dict[str, Any] = dict(
    moe_intermediate_size=2048,
    n_shared_experts=1,
    n_routed_experts=256,
    routed_scaling_factor=2.5,
    kv_lora_rank=512,
    q_lora_rank=1536,
    qk_rope_head_dim=64,
    v_head_dim=128,
    qk_nope_head_dim=128,
    n_group=8,
    topk_group=4,
    num_experts_per_tok=8,
    first_k_dense_replace=3,
)
_V2: dict[str, Any] = _READ | dict(
    vocab_size=102400,
    moe_intermediate_size=1407,
    n_shared_experts=2,
    n_routed_experts=64,
    routed_scaling_factor=1.0,
    n_group=None,
    topk_group=None,
    num_experts_per_tok=None,
    first_k_dense_replace=0,
    topk_method="greedy",
    head_dim=None,
)
_V3: dict[str, Any] = _READ | dict(
    vocab_size=129280,
    hidden_size=7168,
    intermediate_size=18432,
    num_hidden_layers=61,
    num_attention_heads=128,
    num_key_value_heads=128,
    max_position_embeddings=4096,
    norm_topk_prob=True,
    rope_interleave=True,
)
_ONLY = {"attention_bias": (False,), "moe_layer_freq": (1,)}
# With norm_topk_prob in V2, the released code skips routed_scaling_factor and transformers does not normalize, so it is
# ambiguous; no published model sets it.
_ONLY_V2 = _ONLY | {"norm_topk_prob": (False,), "scoring_func": ("softmax",), "mlp_bias": (False,)}
_ONLY_V3 = _ONLY | {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)}

V2 = Family(
    llama.classes("DeepseekV2"),
    llama.known("qk_head_dim", neutral=_NEUTRAL, only=_ONLY_V2, aliases={"num_experts": "n_routed_experts"}, **_V2),
    _v2,
    _describe_v2,
    _table,
)
V3 = Family(
    llama.classes("DeepseekV3"),
    llama.known(
        "head_dim qk_head_dim",
        neutral=_NEUTRAL,
        only=_ONLY_V3,
        aliases={"num_local_experts": "n_routed_experts"},
        **_V3,
    ),
    _v3,
    _describe_v3,
    _table_v3,
)
