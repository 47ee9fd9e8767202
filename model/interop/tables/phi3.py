"""Phi-3 and Phi-4: Mistral's equations; one tensor holds queries, keys and values, another one gate and up."""

from collections.abc import Mapping
from typing import Any

from model.config import ModelConfig
from model.interop.config_json import rope
from model.interop.config_json.fields import Given, names
from model.interop.family import Family
from model.interop.tables import llama

_QKV = (("query", "kv group head"), ("key", "kv head"), ("value", "kv head"))
_ALL = "+".join(f"({dims})" for _, dims in _QKV)
_ROWS = (
    *llama.NORMS,
    *(
        (f"attention/{path}", "self_attn.qkv_proj.weight", f"{_ALL} embed", f"embed {dims}", slot)
        for slot, (path, dims) in enumerate(_QKV)
    ),
    ("attention/out", "self_attn.o_proj.weight", "embed (kv group head)", "kv group head embed"),
    *(
        (f"feed_forward/{path}", "mlp.gate_up_proj.weight", "(2 mlp) embed", "embed mlp", slot)
        for slot, path in enumerate(("gate", "up"))
    ),
    ("feed_forward/down", "mlp.down_proj.weight", "embed mlp", "mlp embed"),
)


def _turned(c: Given) -> dict[str, Any]:
    """Returns the fields of the rotary positions.

    Raises:
      ValueError: they are rescaled. Of scalings, transformers' Phi-3 has only longrope (older names: su, yarn). It has
        other frequencies for a whole text once the text is long, which our models, whose tokens never change because of
        later ones, can't represent.
    """
    field = "rope_scaling" if c["rope_scaling"] else "rope_parameters"
    given = c[field] if isinstance(c[field], Mapping) else {}  # read() refuses others
    for name in ("rope_type", "type"):
        if (kind := given.get(name) or "default") != "default":
            raise ValueError(
                f"{field}.{name} is {kind!r}; of Phi-3 only models with 'default' can be read: the others' longrope "
                "rotates all of a text by other angles once it is longer than original_max_position_embeddings"
            )
    return rope.read(c)


def _describe(config: ModelConfig) -> dict[str, Any]:
    return llama.describe(config) | {
        "sliding_window": config.window or None,
        "original_max_position_embeddings": config.max_length,
        "pad_token_id": None,  # transformers' default of 32000 may be outside of the vocabulary, which it refuses
    }


PHI3 = Family(
    llama.classes("Phi3"),
    llama.known(
        # original_max_position_embeddings is for longrope only.
        neutral="embd_pdrop resid_pdrop original_max_position_embeddings",
        only={  # fields of Microsoft's own code in some releases
            "attention_bias": (False,),
            "full_attn_mod": (1,),
            "interpolate_factor": (1,),
            "lm_head_bias": (False,),
            "mlp_bias": (False,),
        },
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        sliding_window=None,
    )._replace(older=names("head_dim rope_theta rope_scaling")),
    lambda c: llama.common(c, _turned(c)) | llama.everywhere(c),
    _describe,
    lambda config: llama.table(config, _ROWS),
)
