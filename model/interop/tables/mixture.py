"""LLaMA-like decoders with a mixture of experts as feed-forward: Mixtral, Qwen2-MoE, Qwen3-MoE."""

from collections.abc import Callable
from typing import Any

from model.config import ModelConfig
from model.interop import family
from model.interop.config_json import rope
from model.interop.config_json.fields import Given
from model.interop.family import Family, attention_kinds
from model.interop.table import Table
from model.interop.tables import llama
from model.parts import Experts

_MIXTRAL = family.experts(
    "block_sparse_moe.gate", *(f"block_sparse_moe.experts.{{expert}}.{w}" for w in ("w3", "w2", "w1"))
)
QWEN = (
    *family.experts("mlp.gate", *(f"mlp.experts.{{expert}}.{w}_proj" for w in ("up", "down", "gate"))),
    *family.feed_forward(*(f"mlp.shared_expert.{w}_proj" for w in ("up", "down", "gate")), ours="feed_forward/shared"),
    ("feed_forward/shared_gate", "mlp.shared_expert_gate.weight", "one embed", "embed one"),
)


def table(*rows: family.Row) -> Callable[[ModelConfig], Table]:
    """Returns a function that makes the table of a model with these rows in addition to LLaMA's."""
    return lambda config: llama.table(config, (*llama.ROWS, *rows))


def sparse_layers(count: int, step: int, dense=()) -> tuple[str, ...]:
    """Returns mlp_pattern: the last of every `step` layers has experts, unless it is in `dense`."""
    return family.cycle("dense" if (layer + 1) % step or layer in dense else "sparse" for layer in range(count))


def _mixtral(c: Given) -> dict[str, Any]:
    experts = Experts(count=c["num_local_experts"], per_token=c["num_experts_per_tok"], mlp_dim=c["intermediate_size"])
    return (
        llama.common(c, rope.read(c, 1_000_000.0))
        | llama.everywhere(c)
        | dict(experts=experts, mlp_pattern=("sparse",))
    )


def _describe_mixtral(config: ModelConfig) -> dict[str, Any]:
    experts = family.needed(config.experts, "experts")
    return llama.describe(config) | {
        "sliding_window": config.window or None,
        "intermediate_size": experts.mlp_dim,
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
    }


def _qwen(c: Given, count: str, **shared) -> dict[str, Any]:
    """Reads Qwen's experts; `count`: the field with their number."""
    dense = c["mlp_only_layers"] or ()
    if not isinstance(dense, list | tuple) or not all(type(layer) is int for layer in dense):
        raise ValueError(f"mlp_only_layers is {dense!r}; it must be a list of layer numbers")
    experts = Experts(
        count=c[count],
        per_token=c["num_experts_per_tok"],
        mlp_dim=c["moe_intermediate_size"],
        normalize=c["norm_topk_prob"],
        **shared,
    )
    layers = sparse_layers(c["num_hidden_layers"], c["decoder_sparse_step"], dense)
    return dict(experts=experts if "sparse" in layers else None, mlp_pattern=layers)


def _qwen2(c: Given) -> dict[str, Any]:
    """Reads Qwen2-MoE. If windows are enabled, every other of the first `max_window_layers` layers has one."""
    used, first = c["use_sliding_window"], c["max_window_layers"]
    window = c["sliding_window"] if used else None
    shared = dict(shared_dim=c["shared_expert_intermediate_size"], shared_gate=True)
    return (
        llama.common(c)
        | attention_kinds(c, lambda layer: used and layer % 2 == 0 and layer < first, window)
        | dict(qkv_bias=c["qkv_bias"])
        | _qwen(c, "num_experts", **shared)
    )


def _qwen3(c: Given) -> dict[str, Any]:
    """Reads Qwen3-MoE. All layers have a window, or none; transformers ignores layer_types and max_window_layers."""
    window = c["sliding_window"] if c["use_sliding_window"] else None
    kind = "sliding_attention" if window else "full_attention"
    types = c["layer_types"]
    if types is not None and not (isinstance(types, list | tuple) and all(found == kind for found in types)):
        raise ValueError(f"layer_types is {types!r}, but by use_sliding_window all layers are {kind}")
    windows = dict(window=window, attention_pattern=("local",)) if window else {}
    return llama.common(c) | windows | llama.biases(c) | dict(qk_norm=True) | _qwen(c, "num_local_experts")


def _describe_qwen(config: ModelConfig) -> dict[str, Any]:
    experts, pattern = config.experts, config.mlp_pattern
    described = llama.describe(config) | llama.describe_windows(config)
    described["decoder_sparse_step"] = 1
    described["mlp_only_layers"] = [i for i in range(config.num_layers) if pattern[i % len(pattern)] == "dense"]
    if experts is not None:
        described |= {
            "num_experts": experts.count,
            "num_experts_per_tok": experts.per_token,
            "moe_intermediate_size": experts.mlp_dim,
            "norm_topk_prob": experts.normalize,
        }
    return described


def _describe_qwen2(config: ModelConfig) -> dict[str, Any]:
    shared = {"shared_expert_intermediate_size": config.experts.shared_dim} if config.experts else {}
    return _describe_qwen(config) | {"qkv_bias": config.qkv_bias} | shared


def _describe_qwen3(config: ModelConfig) -> dict[str, Any]:
    """Writes both num_experts, which transformers 4 reads, and num_local_experts, which 5 reads."""
    described = _describe_qwen(config) | {"attention_bias": config.qkv_bias}
    return described | ({"num_local_experts": config.experts.count} if config.experts else {})


_QWEN_READ: dict[str, Any] = llama.QWEN_READ | dict(
    hidden_size=2048,
    num_hidden_layers=24,
    norm_topk_prob=False,
    decoder_sparse_step=1,
    mlp_only_layers=None,
)
MIXTRAL = Family(
    llama.classes("Mixtral"),
    llama.known(
        neutral=llama.EXPERTS,
        aliases={"num_experts": "num_local_experts"},
        **llama.MISTRAL_READ,
        rms_norm_eps=1e-5,
        sliding_window=None,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
    _mixtral,
    _describe_mixtral,
    table(*_MIXTRAL),
)
QWEN2 = Family(
    llama.classes("Qwen2Moe"),
    llama.known(
        "head_dim",
        neutral=llama.EXPERTS,
        **_QWEN_READ
        | dict(
            intermediate_size=5632,
            num_attention_heads=16,
            num_key_value_heads=16,
            moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
            num_experts_per_tok=4,
            num_experts=60,
            qkv_bias=True,
            max_window_layers=28,
            layer_types=None,
        ),
    ),
    _qwen2,
    _describe_qwen2,
    table(*QWEN),
)
QWEN3 = Family(
    llama.classes("Qwen3Moe"),
    llama.known(
        "head_dim layer_types",
        neutral=f"max_window_layers {llama.EXPERTS}",
        aliases={"num_experts": "num_local_experts"},
        **_QWEN_READ
        | dict(
            intermediate_size=6144,
            num_key_value_heads=4,
            moe_intermediate_size=768,
            num_experts_per_tok=8,
            num_local_experts=128,
            attention_bias=False,
        ),
    ),
    _qwen3,
    _describe_qwen3,
    table(*QWEN),
)
