"""Attention kernels that never store the scores: splash on TPUs, cuDNN on GPUs.

Each device runs a kernel on its own rows and heads, against all keys of its rows. Splash derives the causal mask from
the order of tokens, so keys are put back in order, and queries are in zigzag order if the length is split over
`context` (axes.zigzag). cuDNN takes an explicit mask, because packed documents need one.

Dims: B batch, T queries, S keys, K key/value heads, G queries per key/value head, N = K G heads, H head_dim.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from model import axes
from model.attention.masks import Mask

LANES = 128  # of a TPU's vector registers: the length and features of values must be multiples of it
_BLOCK = 512


def splash_fits(length: int) -> bool:
    return length % (LANES * axes.size("context")) == 0


def splash(rule, q_BTKGH, k_BSKH, v_BSKH, mask: Mask) -> jax.Array:
    """Returns softmax(q k) v of self-attention; q is already scaled, `mask` has the segments. Interpreted on a CPU."""
    length, shards = q_BTKGH.shape[1], axes.size("context")
    everything = not (rule.causal or rule.window)  # then all devices use the same mask
    heads = q_BTKGH.shape[2] * q_BTKGH.shape[3] // axes.size("tensor")
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([_order(rule, length, shards)] * heads),
        block_sizes=_block_sizes(length // shards, length),
        attn_logits_soft_cap=rule.softcap or None,
        head_shards=1,
        q_seq_shards=1 if everything else shards,
        interpret=axes.platform() == "cpu",
    )

    def local(kernel, q_BTKGH, k_BSKH, v_BSKH, q_segments_BT, kv_segments_BS):
        q_BNTH = jnp.moveaxis(q_BTKGH.reshape(*q_BTKGH.shape[:2], -1, q_BTKGH.shape[-1]), 1, 2)
        k_BKSH, v_BKSH = (jnp.moveaxis(_in_order(x, shards), 1, 2) for x in (k_BSKH, v_BSKH))
        features = v_BKSH.shape[-1]
        v_BKSH = jnp.pad(v_BKSH, ((0, 0),) * 3 + ((0, -features % LANES),))
        segments = splash_attention_kernel.SegmentIds(q_segments_BT, _in_order(kv_segments_BS, shards))
        y_BNTH = jax.vmap(kernel)(q_BNTH, k_BKSH, v_BKSH, segments)[..., :features]
        return jnp.moveaxis(y_BNTH, 2, 1).reshape(*q_BTKGH.shape[:-1], features)

    places = None
    if axes.has_mesh():
        over = PartitionSpec(None, "context" if shards > 1 and not everything else None)
        # A separate mesh: the pipeline's, with its manual axis, can't be asked for shapes.
        places = kernel.manual_sharding_spec(NamedSharding(AbstractMesh((shards,), ("context",)), over))
        kernel = jax.tree.map(jax.sharding.reshard, kernel, places)
    segments = (mask.q_segments_BT, mask.kv_segments_BS)
    return _on_each_device(local, kernel, places, q_BTKGH, k_BSKH, v_BSKH, *segments)


def cudnn_fits(rule, q_BTKGH, v_BSKH) -> bool:
    features = q_BTKGH.shape[-1]
    return (
        q_BTKGH.dtype == jnp.bfloat16
        and v_BSKH.shape[-1] == features
        and features % 8 == 0
        and features <= 128
        and not rule.softcap
    )


def cudnn(rule, q_BTKGH, k_BSKH, v_BSKH, mask: Mask) -> jax.Array:
    """Returns softmax(q k) v; q is already scaled."""

    def local(_, q_BTKGH, k_BSKH, v_BSKH, *ids):
        visible_BTS = Mask(*ids).block(slice(None), slice(None), rule.causal, rule.window)
        q_BTNH = q_BTKGH.reshape(*q_BTKGH.shape[:2], -1, q_BTKGH.shape[-1])
        y_BTNH = jax.nn.dot_product_attention(
            q_BTNH, k_BSKH, v_BSKH, mask=visible_BTS[:, None], scale=1.0, implementation="cudnn"
        )
        return y_BTNH.reshape(q_BTKGH.shape)

    ids = (mask.q_segments_BT, mask.q_positions_BT, mask.kv_segments_BS, mask.kv_positions_BS)
    return _on_each_device(local, None, None, q_BTKGH, k_BSKH, v_BSKH, *ids)


def _on_each_device(local, kernel, places, q_BTKGH, k_BSKH, v_BSKH, *ids):
    """Runs `local` on each device's rows and heads.

    Args:
      places: shardings of the kernel's arrays.
      ids: segments and positions of queries, then the same number of arrays for keys.
    """
    if not axes.has_mesh():
        return local(kernel, q_BTKGH, k_BSKH, v_BSKH, *ids)
    mesh, length = jax.sharding.get_abstract_mesh(), q_BTKGH.shape[1]
    queries = axes.out("batch", "length", "kv_heads", shape=(0, length, 0))
    q_ids, kv_ids, keys = PartitionSpec(*queries[:2]), axes.out("batch", None), axes.out("batch", None, "kv_heads")
    n = len(ids) // 2
    specs = (queries, keys, keys, *(q_ids,) * n, *(kv_ids,) * n)
    arrays = [jax.sharding.reshard(a, spec) for a, spec in zip((q_BTKGH, k_BSKH, v_BSKH, *ids), specs, strict=True)]
    return jax.shard_map(
        local,
        axis_names=set(mesh.axis_names) - set(mesh.manual_axes),
        in_specs=(places, *specs),
        out_specs=queries,
        check_vma=False,  # kernels don't declare over which axes their results vary
    )(kernel, *arrays)


def _order(rule, length: int, shards: int):
    """Returns splash's mask by position in the row; segments come in addition."""
    shape = (length, length)
    mask: splash_attention_mask.LocalMask | splash_attention_mask.CausalMask
    if rule.window:
        mask = splash_attention_mask.LocalMask(shape, (rule.window - 1, 0 if rule.causal else rule.window - 1), 0)
    elif rule.causal:
        mask = splash_attention_mask.CausalMask(shape)
    else:
        return splash_attention_mask.FullMask((length // shards, length))
    if shards > 1:
        mask.q_sequence = axes.zigzag(length, shards).astype(np.int32)
    return mask


def _in_order(x_BS, shards: int):
    """Restores the order of a whole row's keys from zigzag order."""
    if shards == 1:
        return x_BS
    parts = x_BS.reshape(x_BS.shape[0], shards, 2, -1, *x_BS.shape[2:])
    return jnp.concatenate([parts[:, :, 0], parts[:, ::-1, 1]], axis=1).reshape(x_BS.shape)


@functools.cache
def _block_sizes(queries: int, keys: int):
    largest = lambda length: max(size for size in range(LANES, min(_BLOCK, length) + 1, LANES) if length % size == 0)
    q, kv = largest(queries), largest(keys)
    return splash_attention_kernel.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
