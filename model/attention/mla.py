"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

Keys and values come from one narrow latent vector per token, and a cache stores only that. A head's scores are the sum
of two products: one of content features without position, computed from the latents of query and key, and one of rotary
features, whose key all heads share. There are two ways to compute the same result:

    expanded  compute each head's keys and values from the latents, then attend as usual: for training and long prefills
    absorbed  project the queries into the latent space (q_content key_up), let all heads attend to the latents as one
              shared key and value, and project the result to values: for decoding steps, which then never compute the
              keys and values of all earlier tokens

Dims: B batch, T length, S slots of a cache, D embed, K heads, G = 1 (attend.py's queries per key/value head), Q latent
of queries, R latent of keys and values, C content features, P rotary features, H = C + P, V value features.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from model import axes
from model.attention.attend import Rule, attend, probabilities
from model.attention.grouped import KEYS, QUERIES, Context
from model.attention.positions import Rotation, rotate
from model.config import ModelConfig
from model.layers import HIDDEN, RESIDUAL, Norm, residual_init
from model.parts import Latent
from model.roles import Role
from model.weights import einsum, param

# Epsilon of the latents' norms, whatever the config's is (DeepSeek's released code).
_EPSILON = 1e-6
# The heads are in attend.py's dim of queries that share a key.
_ABSORBED = ("batch", "length", "group", "kv_heads", "features")


class LatentAttention(nnx.Module):
    """Latent self-attention, in place of grouped.Attention.

    Args:
      kind: 'global' or 'local' (sliding window).
      causal: queries see no later keys.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, kind: str, *, causal: bool):
        d, k, h = config.embed_dim, config.num_heads, config.head_dim
        assert config.latent is not None  # transformer.py chooses this class by it
        self.latent = latent = config.latent
        q, r, v = latent.query_rank, latent.kv_rank, latent.value_dim
        init, dtype = nnx.initializers.normal(config.init_std), jnp.dtype(config.param_dtype)
        self.kind, self.interleaved = kind, config.rope.interleaved
        self.rule = Rule(
            causal=causal,
            window=config.window if kind == "local" else 0,
            scale=config.attention_scale,
            softcap=config.attention_softcap,
            implementation=config.attention,
            context=config.context,
        )
        norm = lambda dim: Norm(dataclasses.replace(config, norm_epsilon=_EPSILON), rngs, dim)
        matrix = lambda shape, names, inputs, init=init: param(
            rngs, shape, names, init, dtype, role=Role.MATRIX, inputs=inputs
        )
        heads = QUERIES[2:]
        self.query = None if q else matrix((d, k, 1, h), ("embed", *heads), ("embed",))
        self.query_down = matrix((d, q), ("embed", "features"), ("embed",)) if q else None
        self.query_norm = norm(q) if q else None
        self.query_up = matrix((q, k, 1, h), ("latent", *heads), ("latent",)) if q else None
        self.latent_down = matrix((d, r + latent.rope_dim), ("embed", "features"), ("embed",))
        self.latent_norm = norm(r)
        # Heads first: both ways of computing read these weights in their own layout.
        up = ("kv_heads", "head_dim", "latent")
        self.key_up = matrix((k, latent.content_dim, r), up, ("latent",))
        self.value_up = matrix((k, v, r), up, ("latent",))
        self.out = matrix((k, 1, v, d), (*heads, "embed"), heads, residual_init(config))

    def __call__(self, x_BTD, context: Context, cache=None, layer=None):
        """Returns the layer's output [B, T, D] and the cache (decode/cache.py) with this layer's latents."""
        turn, c = context.turns[self.kind], self.latent.content_dim
        assert turn is not None  # ModelConfig refuses other positions than rotary
        q_BTKGH = self.queries(x_BTD)
        q_BTKGC, q_BTKGP = q_BTKGH[..., :c], rotate(q_BTKGH[..., c:], turn, self.interleaved)
        latent_BSR, k_BSP = self.latents(x_BTD, turn)
        both_BSF = None
        if cache is not None:
            cache, both_BSF = cache.extend_latent(layer, jnp.concatenate([latent_BSR, k_BSP], axis=-1))
            latent_BSR, k_BSP = both_BSF[..., : self.latent.kv_rank], both_BSF[..., self.latent.kv_rank :]
        if both_BSF is None or expanding_is_less(self.latent, x_BTD.shape[1], both_BSF.shape[1]):
            q_BTKGH = jnp.concatenate([q_BTKGC, q_BTKGP], axis=-1)
            k_BSKH, v_BSKV = self.expand(latent_BSR, k_BSP)
            if context.tap and "attention" in context.tap:
                context.tap["attention"] = probabilities(q_BTKGH, k_BSKH, context.mask, self.rule)
            y_BTKGV = attend(q_BTKGH, k_BSKH, v_BSKV, context.mask, self.rule, aligned=cache is None)
        else:
            y_BTKGV = self._absorbed(q_BTKGC, q_BTKGP, both_BSF, context.mask)
        return einsum("BTKGV,KGVD->BTD", y_BTKGV, self.out, RESIDUAL), cache

    def queries(self, x_BTD) -> jax.Array:
        """Returns queries [B, T, K, G, H], before rotation."""
        if self.query is not None:
            return einsum("BTD,DKGH->BTKGH", x_BTD, self.query, QUERIES)
        assert self.query_norm is not None and self.query_down is not None and self.query_up is not None
        latent_BTQ = self.query_norm(einsum("BTD,DQ->BTQ", x_BTD, self.query_down, HIDDEN))
        return einsum("BTQ,QKGH->BTKGH", latent_BTQ, self.query_up, QUERIES)

    def latents(self, x_BTD, turn: Rotation) -> tuple[jax.Array, jax.Array]:
        """Returns what later tokens need of each token: its latent [B, T, R] and its rotary key [B, T, P]."""
        down_BTF = einsum("BTD,DF->BTF", x_BTD, self.latent_down, HIDDEN)
        latent_BTR, k_BTP = down_BTF[..., : self.latent.kv_rank], down_BTF[..., self.latent.kv_rank :]
        return self.latent_norm(latent_BTR), rotate(k_BTP, turn, self.interleaved)

    def expand(self, latent_BSR, k_BSP) -> tuple[jax.Array, jax.Array]:
        """Returns every head's keys [B, S, K, H] and values [B, S, K, V]."""
        k_BSKC = einsum("BSR,KCR->BSKC", latent_BSR, self.key_up, KEYS)
        v_BSKV = einsum("BSR,KVR->BSKV", latent_BSR, self.value_up, KEYS)
        shape = (*k_BSKC.shape[:3], k_BSP.shape[-1])
        k_BSKP = jnp.broadcast_to(k_BSP[:, :, None], shape, out_sharding=axes.out(*KEYS, shape=(*shape[:3], 0)))
        return jnp.concatenate([k_BSKC, k_BSKP], axis=-1), v_BSKV

    def _absorbed(self, q_BTKGC, q_BTKGP, both_BSF, mask) -> jax.Array:
        q_BTGKR = einsum("BTKGC,KCR->BTGKR", q_BTKGC, self.key_up, _ABSORBED)
        q_BTGKF = jnp.concatenate([q_BTGKR, jnp.swapaxes(q_BTKGP, 2, 3)], axis=-1)
        # The second product includes the rotary features, and the result drops them: slicing them off the cache first
        # would copy all of it for each token.
        y_BTGKF = attend(q_BTGKF, both_BSF[:, :, None], None, mask, self.rule, aligned=False)
        return einsum("BTGKR,KVR->BTKGV", y_BTGKF[..., : self.latent.kv_rank], self.value_up, QUERIES)


def expanding_is_less(latent: Latent, queries: int, keys: int) -> bool:
    """Returns whether T queries and S cached tokens need fewer multiply-adds (counted for one head) when expanded."""
    r, h = latent.kv_rank, latent.content_dim + latent.rope_dim
    up = r * (latent.content_dim + latent.value_dim)
    expanded = keys * up + queries * keys * (h + latent.value_dim)
    absorbed = queries * up + queries * keys * 2 * (r + latent.rope_dim)
    return expanded < absorbed
