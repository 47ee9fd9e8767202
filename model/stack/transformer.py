"""Block: one layer. Stack: all layers, with one scan per segment and a remat policy.

Layers that repeat a pattern are stacked along a leading dim and scanned over, so that the program's size does not grow
with the depth.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from model import axes
from model.attention.grouped import Attention, Context
from model.attention.mla import LatentAttention
from model.attention.positions import RelativeBias
from model.config import Kind, ModelConfig, Segment
from model.experts.moe import MoE
from model.experts.router import RouterStats
from model.layers import HIDDEN, FeedForward, Norm, dropout
from model.platforms import table
from model.stack import pipeline

# What a layer saves for the backward pass; it recomputes the rest (gradient checkpointing, arXiv:1604.06174).
_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Block(nnx.Module):
    """Attention, cross-attention to a memory (if `cross`) and feed-forward, each added to the residual stream.

    Norms come before each part (pre: GPT-2, LLaMA), after the sum (post: the original Transformer, BERT), or before and
    after the part (both: Gemma 2).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, kind: Kind, *, causal: bool, cross: bool):
        self.dropout, self.norm_position = config.dropout, config.norm_position
        after = lambda: Norm(config, rngs) if config.norm_position == "both" else None
        self.attention_norm = Norm(config, rngs)
        self.attention = (LatentAttention if config.latent else Attention)(config, rngs, kind.attention, causal=causal)
        self.attention_after = after()
        self.cross_norm = Norm(config, rngs) if cross else None
        self.cross = Attention(config, rngs, "global", causal=False, cross=True) if cross else None
        self.cross_after = after() if cross else None
        self.feed_forward_norm = Norm(config, rngs)
        self.feed_forward = MoE(config, rngs) if kind.mlp == "sparse" else FeedForward(config, rngs)
        self.feed_forward_after = after()
        # Set by bottleneck adapters (adapt/bottleneck.py).
        self.attention_adapter, self.feed_forward_adapter = nnx.data(None), nnx.data(None)

    def __call__(self, x_BTD, context: Context, key=None, cache=None, layer=None):
        """Returns the stream [B, T, D], the cache with this layer's keys and values, and the router's statistics."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)

        def add(x_BTD, part, norm, after, key, adapter=None):
            before, behind = (_same, norm) if self.norm_position == "post" else (norm, _same)
            y_BTD, extra = part(axes.place(before(x_BTD), *HIDDEN))
            y_BTD = dropout(y_BTD if after is None else after(y_BTD), self.dropout, key)
            if adapter is not None:
                y_BTD += adapter(behind(x_BTD + y_BTD) if adapter.reads_stream else y_BTD)
            return behind(x_BTD + y_BTD), extra

        attend = lambda part, cache: lambda x_BTD: part(x_BTD, context, cache, layer)
        x_BTD, cache = add(
            x_BTD,
            attend(self.attention, cache),
            self.attention_norm,
            self.attention_after,
            keys[0],
            self.attention_adapter,
        )
        if self.cross is not None:
            x_BTD, cache = add(x_BTD, attend(self.cross, cache), self.cross_norm, self.cross_after, keys[1])
        feed = self.feed_forward

        def run(x_BTD):
            if isinstance(feed, FeedForward):
                return feed(x_BTD), None
            return feed(x_BTD, context.mask.q_segments_BT != 0)

        x_BTD, router = add(
            x_BTD, run, self.feed_forward_norm, self.feed_forward_after, keys[2], self.feed_forward_adapter
        )
        return x_BTD, cache, router


class Stack(nnx.Module):
    """All layers of a model or of its encoder.

    Args:
      num_layers: 0: the config's.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, causal=True, cross=False, num_layers: int = 0):
        self.plan = config.segments(num_layers)
        self.unroll, self.remat = config.scan_unroll, config.remat
        self.pipeline_slots, self.pipeline_groups = config.pipeline_slots, config.pipeline_groups
        self.bias = RelativeBias(config, rngs, causal) if config.position == "relative" else None

        def stacked(segment: Segment, kind: Kind):
            make = lambda rngs: Block(config, rngs, kind, causal=causal, cross=cross)
            copies = 1 if segment.shared else segment.repeats
            blocks = nnx.vmap(make, transform_metadata={nnx.PARTITION_NAME: "layers"})(rngs.split(copies))
            return pipeline.spread(blocks)

        self.segments = nnx.List(nnx.List(stacked(segment, kind) for kind in segment.kinds) for segment in self.plan)

    @property
    def depth(self) -> int:
        """The number of layers that run."""
        return sum(len(segment.kinds) * segment.repeats for segment in self.plan)

    def __call__(self, x_BTD, context: Context, key=None, cache=None):
        """Runs all layers.

        Returns:
          (the residual stream [B, T, D] after the last layer, the cache with all new keys and values, router statistics
          with a leading dim of sparse layers). The statistics are None without sparse layers, and in cached decoding.

        Raises:
          ValueError: layers are tapped in cached decoding or in a pipeline.
        """
        if cache is not None:
            if context.tap is not None:
                raise ValueError("layers can't be tapped in cached decoding; pass all tokens at once")
            return (*self._decode(x_BTD, self.prepared(context), cache), None)
        routers, through = [], self._pipeline
        if axes.size("stage") == 1:
            context, through = self.prepared(context), self._scan if context.tap is None else self._tapped
            if context.tap is not None:
                context.tap.entered(x_BTD)
        elif context.tap is not None:
            raise ValueError("layers that are split over the mesh axis stage can't be tapped; choose a mesh without it")
        for number, (segment, blocks) in enumerate(zip(self.plan, self.segments, strict=True)):
            own = None if key is None else jax.random.fold_in(key, number)
            x_BTD, found = through(x_BTD, context, segment, blocks, own)
            routers += found
        return x_BTD, None, concatenated(routers)

    def _pipeline(self, x_BTD, context, segment: Segment, blocks, key):
        """Runs a segment as `_scan` does, split over the mesh axis `stage`."""

        def run(blocks, bias, x_BTD, context, key):
            context = self.prepared(context, bias)
            repeats = jax.tree.leaves(blocks)[0].shape[0]
            return self._scan(x_BTD, context, segment._replace(repeats=repeats), blocks, key)

        rows = x_BTD.shape[0] // axes.parts("batch")
        slots = self.pipeline_slots or max(n for n in range(1, pipeline.SLOTS + 1) if rows % n == 0)
        return pipeline.pipelined(
            run, list(blocks), self.bias, x_BTD, context, key, slots=slots, groups=self.pipeline_groups
        )

    def prepared(self, context: Context, bias: RelativeBias | None = None) -> Context:
        """Returns the context with the bias that all layers share.

        Inside a shard_map, pass the stack's bias as `bias`, because arrays that it closes over are not mapped.
        """
        if self.bias is None:
            return context
        distance = context.mask.distance(slice(None), slice(None))
        return context._replace(bias=(self.bias if bias is None else bias)(distance))

    def _scan(self, x_BTD, context, segment: Segment, blocks, key):
        """Runs a segment; returns the stream, and router statistics in a list of one, or an empty list."""
        keys = None if key is None else jax.random.split(key, segment.repeats)
        return self._repeats(x_BTD, context, segment, blocks, (None if segment.shared else list(blocks), keys))

    def _repeats(self, x_BTD, context, segment: Segment, blocks, repeats):
        """Runs `_scan`, given each repeat's layers (None: all repeats use `blocks`) and random key."""

        def body(x_BTD, repeat):
            x_BTD, routers, _ = self._repeat(x_BTD, context, blocks, *repeat)
            return x_BTD, routers

        unroll = min(self.unroll or (segment.repeats if table.here().unrolled else 1), segment.repeats)
        x_BTD, routers = jax.lax.scan(self._remat(body), x_BTD, repeats, length=segment.repeats, unroll=unroll)
        in_order = lambda *parts: jnp.stack(parts, 1).reshape(-1, *parts[0].shape[1:])
        return x_BTD, [jax.tree.map(in_order, *routers)] if routers else []

    def _tapped(self, x_BTD, context, segment: Segment, blocks, key):
        """Runs `_scan` in parts: repeats with a tapped layer run by themselves, and those between them in scans."""
        tap, context = context.tap, context._replace(tap=None)
        keys = None if key is None else jax.random.split(key, segment.repeats)
        own, routers = (None if segment.shared else list(blocks), keys), []
        for begin, end, wanted in tap.pieces(segment):
            part = jax.tree.map(lambda a, piece=slice(begin, end): a[piece], own)
            if wanted:
                x_BTD, found, records = self._tapped_repeat(x_BTD, context, blocks, part, wanted)
            else:
                shorter = segment._replace(repeats=end - begin)
                (x_BTD, found), records = self._repeats(x_BTD, context, shorter, blocks, part), []
            tap.ran((end - begin) * len(segment.kinds), records)
            routers += found
        return x_BTD, routers

    def _tapped_repeat(self, x_BTD, context, blocks, part, wanted):
        """Runs one repeat as `_repeats` does; returns the records of its layers as well."""
        run = self._remat(lambda x_BTD, own: self._repeat(x_BTD, context, blocks, *own, wanted))
        x_BTD, routers, records = run(x_BTD, jax.tree.map(lambda a: a[0], part))
        return x_BTD, [jax.tree.map(lambda a: a[None], router) for router in routers], records

    def _repeat(self, x_BTD, context, blocks, own, key, wanted=()):
        """Runs the layers of one repeat.

        Returns:
          (the stream, router statistics, each layer's record of `wanted` (taps.py), filled).
        """
        layers = [_layer(block, 0) for block in blocks] if own is None else own
        keys = (None,) * len(layers) if key is None else jax.random.split(key, len(layers))
        # Copies the records: a trace must not write into objects outside of it.
        routers, records = [], [dict(record) for record in wanted] or [None] * len(layers)
        for block, key, record in zip(layers, keys, records, strict=True):
            x_BTD, _, router = block(x_BTD, context._replace(tap=record), key)
            routers += [] if router is None else [router]
            if record and "hidden" in record:
                record["hidden"] = x_BTD
        return x_BTD, routers, records

    def _remat(self, body):
        if self.remat == "none":
            return body
        return jax.checkpoint(body, policy=_POLICIES[self.remat], prevent_cse=False)

    def _decode(self, x_BTD, context, cache):
        """Runs one layer after another: a scan would copy all layers' caches at each step."""
        for layer, block in enumerate(self.layers()):
            x_BTD, cache, _ = block(x_BTD, context, None, cache, layer)
        return x_BTD, cache

    def layers(self):
        """Yields every layer in the order they run, with its own slices of the arrays."""
        for segment, blocks in zip(self.plan, self.segments, strict=True):
            for repeat in range(segment.repeats):
                for block in blocks:
                    yield (
                        block[repeat] if isinstance(block, nnx.List) else _layer(block, 0 if segment.shared else repeat)
                    )

    def unstack(self) -> None:
        """Splits the stacked arrays into one array per layer, so that a loop of many steps does it once, before it."""
        cut = lambda segment, block: nnx.List(
            _layer(block, 0 if segment.shared else repeat) for repeat in range(segment.repeats)
        )
        self.segments = nnx.List(
            nnx.List(cut(segment, block) for block in blocks)
            for segment, blocks in zip(self.plan, self.segments, strict=True)
        )


def concatenated(routers: list[RouterStats]) -> RouterStats | None:
    """Concatenates router statistics along their dim of layers."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *routers) if routers else None


def _same(x_BTD):
    return x_BTD


def _layer(block: Block, index: int) -> Block:
    return jax.tree.map(lambda w: w[index], pipeline.collected(block))
