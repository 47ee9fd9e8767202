"""Tiny checkpoints of every family, made by transformers from its own config classes."""

import functools
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import transformers

_SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
_LLAMA = _SMALL | dict(intermediate_size=48, num_key_value_heads=2, rms_norm_eps=0.01, tie_word_embeddings=False)
_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
_GEMMA = _LLAMA | dict(head_dim=16, tie_word_embeddings=True)
_ROPE = {"rope_type": "default", "rope_theta": 100.0}
_LLAMA3 = dict(rope_type="llama3", rope_theta=100.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0) | dict(
    original_max_position_embeddings=16
)
_YARN = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=16)
_DEEPSEEK = _SMALL | dict(intermediate_size=48, rms_norm_eps=0.01, rope_parameters=_ROPE, num_key_value_heads=4)
_DEEPSEEK |= dict(kv_lora_rank=16, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5, q_lora_rank=None)
_DEEPSEEK |= dict(n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, n_shared_experts=2)
_DEEPSEEK |= dict(first_k_dense_replace=1, routed_scaling_factor=1.5, eos_token_id=None)
_GPT2 = dict(vocab_size=64, n_positions=64, n_embd=32, n_layer=3, n_head=4, n_inner=48, layer_norm_epsilon=0.01)
_PHI3 = _LLAMA | dict(rope_parameters=_ROPE, pad_token_id=None, eos_token_id=None)  # its defaults exceed 64
_OPT = _SMALL | dict(ffn_dim=48)

# name: (transformers' configuration class, its values)
CHECKPOINTS = {
    "gpt2": (transformers.GPT2Config, _GPT2),
    "llama": (transformers.LlamaConfig, _LLAMA | dict(rope_parameters=_ROPE)),
    "llama biases": (
        transformers.LlamaConfig,
        _LLAMA | dict(rope_parameters=_LLAMA3, attention_bias=True, mlp_bias=True, head_dim=16),
    ),
    "llama linear": (
        transformers.LlamaConfig,
        _LLAMA | dict(rope_parameters=_ROPE | dict(rope_type="linear", factor=4.0)),
    ),
    "llama yarn": (transformers.LlamaConfig, _LLAMA | dict(rope_parameters=_YARN, tie_word_embeddings=True)),
    "mistral": (transformers.MistralConfig, _LLAMA | dict(rope_parameters=_ROPE, sliding_window=5)),
    "phi3": (transformers.Phi3Config, _PHI3 | dict(sliding_window=5)),
    "phi3 multi-head": (transformers.Phi3Config, _PHI3 | dict(num_key_value_heads=4, tie_word_embeddings=True)),
    "opt": (transformers.OPTConfig, _OPT | dict(word_embed_proj_dim=32)),
    "opt post-norm": (transformers.OPTConfig, _OPT | dict(word_embed_proj_dim=16, do_layer_norm_before=False)),
    "bloom": (
        transformers.BloomConfig,
        dict(vocab_size=64, hidden_size=36, n_layer=3, n_head=6, layer_norm_epsilon=0.01),
    ),
    "qwen2": (
        transformers.Qwen2Config,
        _LLAMA | dict(rope_parameters=_ROPE, use_sliding_window=True, sliding_window=5, max_window_layers=2),
    ),
    "qwen3": (transformers.Qwen3Config, _LLAMA | dict(rope_parameters=_ROPE, head_dim=16)),
    "mixtral": (
        transformers.MixtralConfig,
        _LLAMA | dict(rope_parameters=_ROPE, num_local_experts=4, sliding_window=5),
    ),
    "qwen2 experts": (
        transformers.Qwen2MoeConfig,
        _LLAMA | _EXPERTS | dict(rope_parameters=_ROPE, decoder_sparse_step=2, shared_expert_intermediate_size=20),
    ),
    "qwen3 experts": (
        transformers.Qwen3MoeConfig,
        _LLAMA | _EXPERTS | dict(rope_parameters=_ROPE, head_dim=16, mlp_only_layers=[1], norm_topk_prob=True),
    ),
    "gemma": (transformers.GemmaConfig, _GEMMA | dict(rope_parameters=_ROPE)),
    "gemma2": (
        transformers.Gemma2Config,
        _GEMMA
        | dict(rope_parameters=_ROPE, query_pre_attn_scalar=20, sliding_window=5)
        | dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    ),
    "gemma3": (
        transformers.Gemma3TextConfig,
        _GEMMA
        | dict(num_hidden_layers=8, query_pre_attn_scalar=20, sliding_window=5)
        | dict(
            rope_parameters={
                "full_attention": _ROPE | dict(rope_type="linear", factor=4.0, rope_theta=1000.0),
                "sliding_attention": _ROPE,
            }
        ),
    ),
    "deepseek2": (transformers.DeepseekV2Config, _DEEPSEEK),
    "deepseek2 groups": (
        transformers.DeepseekV2Config,
        _DEEPSEEK
        | dict(q_lora_rank=8, topk_method="group_limited_greedy", n_group=4, topk_group=2)
        | dict(rope_parameters=_YARN | dict(mscale=0.707, mscale_all_dim=0.5)),
    ),
    "deepseek3": (
        transformers.DeepseekV3Config,
        _DEEPSEEK
        | dict(q_lora_rank=8, n_group=4, topk_group=2, first_k_dense_replace=2)
        | dict(rope_parameters=_YARN | dict(mscale=1.0, mscale_all_dim=1.0)),
    ),
    "deepseek3 one group": (
        transformers.DeepseekV3Config,
        _DEEPSEEK | dict(n_group=1, topk_group=1, first_k_dense_replace=0, norm_topk_prob=False, rope_interleave=False),
    ),
}


_T5 = dict(vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=3, num_heads=4, layer_norm_epsilon=0.01)
_T5 |= dict(relative_attention_num_buckets=12, relative_attention_max_distance=16)  # so that distances share buckets
_SWITCH = _T5 | dict(
    num_layers=4, num_decoder_layers=4, num_experts=4, num_sparse_encoder_layers=2, num_sparse_decoder_layers=2
)
ENCODER_DECODERS = {
    "t5": (transformers.T5Config, _T5 | dict(num_decoder_layers=2)),
    "t5 gated": (transformers.T5Config, _T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "switch": (transformers.SwitchTransformersConfig, _SWITCH | dict(expert_capacity=64)),
    "switch full": (transformers.SwitchTransformersConfig, _SWITCH | dict(expert_capacity=3)),
}


def each(names: Iterable[str]):
    """Groups the tests of a model on one worker, so that it is made and its programs are compiled once."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


@functools.cache
def encoder_decoder(name: str):
    """Makes the model and folder of `reference`."""
    kind, values = ENCODER_DECODERS[name]
    model = transformers.AutoModelForSeq2SeqLM.from_config(kind(**values, attn_implementation="eager"))
    if not values.get("tie_word_embeddings", True):  # transformers 5 ties them; files of T5 1.1 don't
        model.lm_head.weight = torch.nn.Parameter(torch.empty(64, 32))
    return saved(model)


@functools.cache
def reference(name: str):
    """Returns (transformers' model, the folder it was saved to)."""
    kind, values = CHECKPOINTS[name]
    return saved(transformers.AutoModelForCausalLM.from_config(kind(**values, attn_implementation="eager")))


def saved(model):
    """Returns (the model with all parameters redrawn, because initial 0 and 1 hide mistakes; its folder)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        biases = (b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))
        for parameter in (*model.parameters(), *biases):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
    model.eval().save_pretrained(folder)
    return model, folder
