"""Decoders of the LLaMA kind whose feed-forward is a mixture of experts: Mixtral, Qwen2-MoE, Qwen3-MoE."""

from collections.abc import Callable

from model.config import ModelConfig
from model.interop import family, llama
from model.interop.family import Family
from model.interop.table import Table
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
    return lambda config: llama.table(config, (*llama.ROWS, *rows))


def sparse_layers(count: int, step: int, dense=()) -> tuple[str, ...]:
    """Every `step`-th layer has experts, the last of each `step`; but for those in `dense`."""
    return family.cycle("dense" if (layer + 1) % step or layer in dense else "sparse" for layer in range(count))


def _mixtral(c: dict) -> dict:
    experts = Experts(count=c["num_local_experts"], per_token=c["num_experts_per_tok"], mlp_dim=c["intermediate_size"])
    return llama.mistral(c) | dict(experts=experts, mlp_pattern=("sparse",))


def _describe_mixtral(config: ModelConfig) -> dict:
    return llama.describe(config) | {
        "sliding_window": config.window or None,
        "intermediate_size": config.experts.mlp_dim,
        "num_local_experts": config.experts.count,
        "num_experts_per_tok": config.experts.per_token,
    }


def _qwen(c: dict, **shared) -> dict:
    experts = Experts(
        count=c["num_local_experts"] if "num_local_experts" in c else c["num_experts"],
        per_token=c["num_experts_per_tok"],
        mlp_dim=c["moe_intermediate_size"],
        normalize=c.get("norm_topk_prob", False),
        **shared,
    )
    layers = sparse_layers(c["num_hidden_layers"], c.get("decoder_sparse_step", 1), c.get("mlp_only_layers") or ())
    return dict(experts=experts, mlp_pattern=layers)


def _qwen2(c: dict) -> dict:
    shared = dict(shared_dim=c["shared_expert_intermediate_size"], shared_gate=True)
    return llama.qwen(c) | dict(qkv_bias=c.get("qkv_bias", True)) | _qwen(c, **shared)


def _describe_qwen(config: ModelConfig) -> dict:
    experts, pattern = config.experts, config.mlp_pattern
    return llama.describe_qwen(config) | {
        "num_experts": experts.count,  # what transformers 4 says, and 5 for Qwen2
        "num_local_experts": experts.count,  # what 5 says for Qwen3
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.mlp_dim,
        "norm_topk_prob": experts.normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i in range(config.num_layers) if pattern[i % len(pattern)] == "dense"],
    }


MIXTRAL = Family("MixtralForCausalLM", _mixtral, _describe_mixtral, table(*_MIXTRAL))
QWEN2 = Family(
    "Qwen2MoeForCausalLM",
    _qwen2,
    lambda config: (
        _describe_qwen(config)
        | {"qkv_bias": config.qkv_bias, "shared_expert_intermediate_size": config.experts.shared_dim}
    ),
    table(*QWEN),
)
QWEN3 = Family(
    "Qwen3MoeForCausalLM",
    lambda c: llama.qwen3(c) | _qwen(c),
    lambda config: (
        _describe_qwen(config) | {"attention_bias": config.qkv_bias, "num_local_experts": config.experts.count}
    ),
    table(*QWEN),
)
