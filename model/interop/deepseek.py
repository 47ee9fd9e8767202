"""DeepSeek-V2 and V3: latent attention, and mixtures of experts after the first layers."""

import math

from model.config import ModelConfig
from model.interop import family, llama
from model.interop.family import Family, known, norm, only
from model.interop.table import Table
from model.parts import Experts, Latent
from model.positions import yarn_factor

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
    """A published file has a layer more, which predicts the token after the next one (arXiv:2412.19437, section 2.2):
    it is for training and for drafting tokens, and the model's scores do not depend on it."""
    table = _table(config)
    return table._replace(ignored=(*table.ignored, rf"model\.layers\.{config.num_layers}\..*"))


def _common(c: dict, **experts) -> dict:
    only(c, attention_bias=False, moe_layer_freq=1)
    latent = Latent(
        kv_rank=c["kv_lora_rank"],
        content_dim=c["qk_nope_head_dim"],
        rope_dim=c["qk_rope_head_dim"],
        value_dim=c["v_head_dim"],
        query_rank=c.get("q_lora_rank") or 0,
    )
    fields = llama.common(c) | dict(
        latent=latent,
        experts=Experts(
            count=c["n_routed_experts"],
            per_token=c["num_experts_per_tok"],
            mlp_dim=c["moe_intermediate_size"],
            shared_dim=c["moe_intermediate_size"] * (c["n_shared_experts"] or 0),
            scale=c.get("routed_scaling_factor", 1.0),
            **experts,
        ),
    )
    dense = c.get("first_k_dense_replace") or 0
    sparse = max(0, c["num_hidden_layers"] - dense)
    fields["mlp_pattern"] = ("dense",) * dense + ("sparse",) * sparse if dense else ("sparse",)
    fields["rope"] |= dict(interleaved=c.get("rope_interleave", True))
    given = (c.get("rope_scaling") or {}) | (c.get("rope_parameters") or {})
    if fields["rope"]["scaling"] == "yarn" and given.get("mscale_all_dim"):
        # What sharpens all of attention, where attention_factor only reaches the rotary features.
        sharper = yarn_factor(fields["rope"]["factor"], given["mscale_all_dim"])
        fields["attention_scale"] = (latent.content_dim + latent.rope_dim) ** -0.5 * sharper**2
    return fields


def _groups(c: dict) -> dict:
    return dict(groups=c.get("n_group") or 1, groups_per_token=c.get("topk_group") or 1)


def _v2(c: dict) -> dict:
    """Where weights are to be normalized, the released code leaves out their scale and transformers does not normalize;
    no published model asks for it."""
    only(c, norm_topk_prob=False, scoring_func="softmax", mlp_bias=False)
    methods = {"greedy": {}, "group_limited_greedy": _groups(c)}
    groups = known("topk_method", c.get("topk_method") or "greedy", methods)
    return _common(c, normalize=False, **groups)


def _v3(c: dict) -> dict:
    only(c, scoring_func="sigmoid", topk_method="noaux_tc")
    return _common(
        c,
        score="sigmoid",
        normalize=c.get("norm_topk_prob", True),
        correction=True,
        group_score="top2",
        **_groups(c),
    )


def _describe(config: ModelConfig) -> dict:
    latent, experts, pattern = config.latent, config.experts, config.mlp_pattern
    dense = next((i for i in range(config.num_layers) if pattern[i % len(pattern)] == "sparse"), config.num_layers)
    described = llama.describe(config) | {
        "head_dim": latent.rope_dim,  # as transformers has it
        "kv_lora_rank": latent.kv_rank,
        "q_lora_rank": latent.query_rank or None,
        "qk_nope_head_dim": latent.content_dim,
        "qk_rope_head_dim": latent.rope_dim,
        "v_head_dim": latent.value_dim,
        "attention_bias": False,
        "n_routed_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.mlp_dim,
        "n_shared_experts": experts.shared_dim // experts.mlp_dim,
        "routed_scaling_factor": experts.scale,
        "norm_topk_prob": experts.normalize,
        "n_group": experts.groups,
        "topk_group": experts.groups_per_token,
        "first_k_dense_replace": dense,
        "moe_layer_freq": 1,
    }
    described["rope_parameters"] |= _mscale(config)
    return described


def _mscale(config: ModelConfig) -> dict:
    """The two weights that YaRN's factors were made of: what `_common` and family.rope do, the other way round."""
    rope = config.rope
    if rope.scaling != "yarn" or rope.factor <= 1:
        return {}
    # Rounded, so that 0.707 comes back as that.
    weight = lambda sharper: round((sharper - 1) / (0.1 * math.log(rope.factor)), 9)
    everywhere = weight(math.sqrt(config.attention_scale * math.sqrt(config.head_dim)))
    rotary = weight(rope.attention_factor * yarn_factor(rope.factor, everywhere))
    return {"mscale": rotary, "mscale_all_dim": everywhere}


def _describe_v2(config: ModelConfig) -> dict:
    method = "group_limited_greedy" if config.experts.groups > 1 else "greedy"
    return _describe(config) | {"topk_method": method, "scoring_func": "softmax", "mlp_bias": config.mlp_bias}


def _describe_v3(config: ModelConfig) -> dict:
    return _describe(config) | {
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "rope_interleave": config.rope.interleaved,
        "num_nextn_predict_layers": 0,
    }


V2 = Family("DeepseekV2ForCausalLM", _v2, _describe_v2, _table)
V3 = Family("DeepseekV3ForCausalLM", _v3, _describe_v3, _table_v3)
