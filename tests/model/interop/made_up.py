"""Two small tables for the Decoder, as LLaMA and as GPT-2, and transformers' models of the same shape."""

import jax
import torch
import transformers
from flax import nnx

from model import axes
from model.families import Decoder
from model.interop.layout import Entry
from model.interop.table import Table
from tests.model import tiny
from tests.model.test_families import redrawn
from train import state


def _linear(path, name, theirs, ours):
    return Entry(f"stack/blocks/{path}", f"model.layers.{{layer}}.{name}.weight", theirs, f"layer {ours}")


LLAMA = Table(
    entries=(
        Entry("embedding/table", "model.embed_tokens.weight", "vocab embed", "vocab embed"),
        Entry("unembedding/table", "lm_head.weight", "vocab embed", "vocab embed"),
        Entry("norm/scale", "model.norm.weight", "embed", "embed"),
        _linear("attention_norm/scale", "input_layernorm", "embed", "embed"),
        _linear("feed_forward_norm/scale", "post_attention_layernorm", "embed", "embed"),
        _linear("attention/query", "self_attn.q_proj", "(kv group head) embed", "embed kv group head"),
        _linear("attention/key", "self_attn.k_proj", "(kv head) embed", "embed kv head"),
        _linear("attention/value", "self_attn.v_proj", "(kv head) embed", "embed kv head"),
        _linear("attention/out", "self_attn.o_proj", "embed (kv group head)", "kv group head embed"),
        _linear("feed_forward/gate", "mlp.gate_proj", "mlp embed", "embed mlp"),
        _linear("feed_forward/up", "mlp.up_proj", "mlp embed", "embed mlp"),
        _linear("feed_forward/down", "mlp.down_proj", "embed mlp", "mlp embed"),
    ),
    ignored=(r".*\.rotary_emb\.inv_freq",),
)


def _gpt2(path, name, theirs, ours, slot=None):
    return Entry(f"stack/blocks/{path}", f"transformer.h.{{layer}}.{name}", theirs, f"layer {ours}", slot)


_QKV = (("query", "kv group head"), ("key", "kv head"), ("value", "kv head"))
GPT2 = Table(
    entries=(
        Entry("embedding/table", "transformer.wte.weight", "vocab embed", "vocab embed"),
        Entry("positions/table", "transformer.wpe.weight", "position embed", "position embed"),
        Entry("norm/scale", "transformer.ln_f.weight", "embed", "embed"),
        Entry("norm/bias", "transformer.ln_f.bias", "embed", "embed"),
        _gpt2("attention_norm/scale", "ln_1.weight", "embed", "embed"),
        _gpt2("attention_norm/bias", "ln_1.bias", "embed", "embed"),
        _gpt2("feed_forward_norm/scale", "ln_2.weight", "embed", "embed"),
        _gpt2("feed_forward_norm/bias", "ln_2.bias", "embed", "embed"),
        *(
            _gpt2(f"attention/{which}", "attn.c_attn.weight", f"embed (3 {dims})", f"embed {dims}", slot)
            for slot, (which, dims) in enumerate(_QKV)
        ),
        *(
            _gpt2(f"attention/{which}_bias", "attn.c_attn.bias", f"(3 {dims})", dims, slot)
            for slot, (which, dims) in enumerate(_QKV)
        ),
        _gpt2("attention/out", "attn.c_proj.weight", "(kv group head) embed", "kv group head embed"),
        _gpt2("attention/out_bias", "attn.c_proj.bias", "embed", "embed"),
        _gpt2("feed_forward/up", "mlp.c_fc.weight", "embed mlp", "embed mlp"),
        _gpt2("feed_forward/up_bias", "mlp.c_fc.bias", "mlp", "mlp"),
        _gpt2("feed_forward/down", "mlp.c_proj.weight", "mlp embed", "mlp embed"),
        _gpt2("feed_forward/down_bias", "mlp.c_proj.bias", "embed", "embed"),
    ),
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
    renames=((r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),),
)


def llama():
    """transformers' model for tiny.LLAMA."""
    settings = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=16, head_dim=4)
    settings |= dict(num_key_value_heads=8, rms_norm_eps=3e-3, vocab_size=64, max_position_embeddings=64)
    settings |= dict(rope_parameters={"rope_type": "default", "rope_theta": 100.0}, tie_word_embeddings=False)
    return redrawn(transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)))


def gpt2():
    """transformers' model for tiny.GPT."""
    settings = dict(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=8, n_inner=64)
    return redrawn(transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings, layer_norm_epsilon=1e-5)))


BOTH = {"llama": (tiny.LLAMA, LLAMA, llama), "gpt2": (tiny.GPT, GPT2, gpt2)}


def abstract(config):
    """Shapes, dtypes and shardings of a Decoder on the mesh that is set, if there is one."""
    make = lambda rngs: Decoder(config, rngs)
    return state.abstract_model(make) if axes.has_mesh() else jax.eval_shape(lambda: make(nnx.Rngs(0)))


def as_bits(tensor: torch.Tensor):
    """Its bytes, as numpy."""
    return tensor.contiguous().view(torch.uint8).numpy()
