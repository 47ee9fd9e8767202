"""Two small tables for the Decoder, as LLaMA and as GPT-2."""

import jax
from flax import nnx

from model import axes
from model.families import Decoder
from model.interop.layout import Entry
from model.interop.table import Table
from train import state


def _linear(path, name, theirs, ours):
    return Entry(f"stack/segments/0/0/{path}", f"model.layers.{{layer}}.{name}.weight", theirs, f"layer {ours}")


LLAMA = Table(
    entries=(
        Entry("inputs/tokens/table", "model.embed_tokens.weight", "vocab embed", "vocab embed"),
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
    return Entry(f"stack/segments/0/0/{path}", f"transformer.h.{{layer}}.{name}", theirs, f"layer {ours}", slot)


_QKV = (("query", "kv group head"), ("key", "kv head"), ("value", "kv head"))
GPT2 = Table(
    entries=(
        Entry("inputs/tokens/table", "transformer.wte.weight", "vocab embed", "vocab embed"),
        Entry("inputs/positions/table", "transformer.wpe.weight", "position embed", "position embed"),
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


def abstract(config):
    """Shapes, dtypes and shardings of a Decoder on the mesh that is set, if there is one."""
    make = lambda rngs: Decoder(config, rngs)
    return state.abstract_model(make) if axes.has_mesh() else jax.eval_shape(lambda: make(nnx.Rngs(0)))
