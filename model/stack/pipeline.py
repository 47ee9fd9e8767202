"""Layers split over the mesh axis `stage`, and micro-batches that go through its devices one after another.

GPipe (arXiv:1811.06965) with S stages: M micro-batches take M + S - 1 turns. Circular (the interleaved schedule of
arXiv:2104.04473, section 2.2, forward and backward apart): every stage has R groups of layers, each S times as far from
the last, and a micro-batch goes round R times, in M R + S - 1 turns of an R-th of the length each: the S - 1 that are
idle cost an R-th. Differentiating the loop over turns gives the way back.

Rows lie split over the stages when they come and when they leave, as outside of the stack every device has its share of
the work. So there are three streams from neighbour to neighbour: rows yet to come go left, to the first stage; those at
work go right, with all that layers are told of them; and what is done goes left again, from the last stage to where it
came from. A turn with nothing to do works on rows of padding, which no statistic counts.

Dims: S stages, R groups of layers of a stage, n micro-batches that begin and end at a stage (M = n S), B rows.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model import axes
from model.stack.clock import Clock

AXIS = "stage"
SLOTS = 4  # micro-batches that begin at a stage, if the rows allow: an idle part of at most 1 in 5


def spread(blocks):
    """Arrays [layers, ...], their layers split over the stages."""
    if axes.size(AXIS) == 1:
        return blocks
    place = lambda a: jax.sharding.reshard(a, PartitionSpec(AXIS, *jax.typeof(a).sharding.spec[1:]))
    return jax.tree.map(place, blocks)


def collected(blocks):
    """The arrays with all layers on every stage: for who goes from layer to layer by himself."""
    if axes.size(AXIS) == 1:
        return blocks
    place = lambda a: jax.sharding.reshard(a, PartitionSpec(None, *jax.typeof(a).sharding.spec[1:]))
    return jax.tree.map(place, blocks)


def pipelined(run, blocks, shared, x_BTD, told, key, *, slots: int, groups: int):
    """Rows through all layers of a segment.

    Args:
      run: (blocks, shared, x, told, key) -> (x, statistics with a leading dim of layers), for some of the layers.
      blocks: of arrays [layers, ...], split over `stage`.
      shared: of arrays that all layers read.
      told: what layers are told of each row, arrays [B, ...]; padding is all zeros.
      key: random key, or None.
      slots: n, which divides the rows of a device.
      groups: R.

    Returns:
      (x [B, T, D], the statistics of all layers).
    """
    rows = lambda a: jax.sharding.reshard(a, PartitionSpec(*axes.out("batch"), *jax.typeof(a).sharding.spec[1:]))
    stages = lambda tree: jax.tree.map(lambda _: PartitionSpec(AXIS), tree)
    everywhere = lambda tree: jax.tree.map(lambda _: PartitionSpec(), tree)
    told = jax.tree.map(rows, told)
    blocks = spread(blocks)  # as they are but for random keys, which are drawn for all layers at once

    def on_each_stage(blocks, shared, x_BTD, told, key):
        return _loop(run, blocks, shared, _cut((x_BTD, told), slots), key, groups)

    (x_BTD, stats) = jax.shard_map(
        on_each_stage,
        axis_names={AXIS},
        in_specs=(stages(blocks), everywhere(shared), PartitionSpec(AXIS), stages(told), everywhere(key)),
        out_specs=(PartitionSpec(AXIS), PartitionSpec(None, AXIS)),
        check_vma=False,  # or a map inside (moe.py) keeps things for its gradient by this axis too, and fails
    )(blocks, shared, x_BTD, told, key)
    whole = lambda a: jax.sharding.reshard(a, PartitionSpec())
    return x_BTD, jax.tree.map(lambda a: whole(a).reshape(-1, *a.shape[2:]), stats)


def _loop(run, blocks, shared, waiting, key, groups):
    """What one stage does, by the table of clock.py.

    `waiting` [n, B / n, ...] are the rows that lie here. Of each stream a stage holds one micro-batch at a time:

        coming     <-  to stage 0, from where they lie, every round trip anew
        at_work    ->  to the next stage, and from the last to stage 0 for the next group
        done       <-  from the last stage to where they came from, which keeps them in `finished`
    """
    me = jax.lax.axis_index(AXIS)
    clock = Clock(axes.size(AXIS), groups, jax.tree.leaves(waiting)[0].shape[0])
    stages, slots = clock.stages, clock.slots
    blocks = _dealt(blocks, groups)
    right = [(stage, (stage + 1) % stages) for stage in range(stages)]
    left = [(end, start) for start, end in right]

    def turn(carry, number):
        at_work, coming, done, finished = carry
        slot, into = number // clock.round_trip, number % clock.round_trip
        fresh = jax.tree.map(lambda a: _at(a, jnp.minimum(slot, slots - 1)) * (slot < slots).astype(a.dtype), waiting)
        coming = jax.tree.map(lambda new, old: jnp.where(into == 0, new, old), fresh, coming)
        since, group = clock.since(number, me), clock.group(number, me)
        x, told = jax.tree.map(lambda new, old: jnp.where((me == 0) & (group == 0), new, old), coming, at_work)

        layers = jax.tree.map(lambda a: _at(a, group), blocks) if groups > 1 else jax.tree.map(lambda a: a[0], blocks)
        layers = jax.tree.map(lambda a: _folded(a, since) if _is_key(a) else a, layers)
        one = None if key is None else jax.random.fold_in(jax.random.fold_in(key, since), me * groups + group)
        x, stats = run(layers, shared, x, told, one)

        done = jnp.where((me == stages - 1) & (group == groups - 1), x, done)
        place, home = clock.arrived(number)
        kept = jnp.where(home, done, _at(finished, place))
        finished = jax.lax.dynamic_update_index_in_dim(finished, kept, place, 0)
        at_work = jax.lax.ppermute((x, told), AXIS, right)
        coming, done = jax.lax.ppermute((coming, done), AXIS, left)
        return (at_work, coming, done, finished), stats

    empty = jax.tree.map(lambda a: jnp.zeros_like(a[0]), waiting)
    carry = (empty, empty, empty[0], jnp.zeros_like(waiting[0]))
    (*_, finished), stats = jax.lax.scan(turn, carry, jnp.arange(clock.turns))
    # Of each group the sums over its turns; in idle ones there was padding, which counts as nothing.
    group_of_turn = clock.group(jnp.arange(clock.turns), me)
    by_group = (group_of_turn == jnp.arange(groups)[:, None]).astype(jnp.float32)
    return _joined(finished), jax.tree.map(lambda a: jnp.einsum("RN,N...->R...", by_group, a), stats)


def _cut(tree, slots):
    """[B, ...] -> [n, B / n, ...]. Strided, so that every device cuts its own rows and none travel."""

    def cut(a):
        spec = jax.typeof(a).sharding.spec
        a = jnp.reshape(
            a, (a.shape[0] // slots, slots, *a.shape[1:]), out_sharding=PartitionSpec(spec[0], None, *spec[1:])
        )
        return jnp.swapaxes(a, 0, 1)

    return jax.tree.map(cut, tree)


def _joined(x_nBTD):
    spec = jax.typeof(x_nBTD).sharding.spec
    shape = (x_nBTD.shape[0] * x_nBTD.shape[1], *x_nBTD.shape[2:])
    return jnp.reshape(jnp.swapaxes(x_nBTD, 0, 1), shape, out_sharding=PartitionSpec(*spec[1:]))


def _is_key(a) -> bool:
    """Whether these are random keys: of the dropout of layers' adapters."""
    return jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key)


def _folded(keys_L, turn):
    """Others every turn: micro-batches must not share their dropout."""
    return jax.vmap(lambda key: jax.random.fold_in(key, turn))(keys_L)


def _at(a, index):
    return jax.lax.dynamic_index_in_dim(a, index, keepdims=False)


def _dealt(blocks, groups):
    """[layers of this stage, ...] -> [R, layers of a group, ...]. They are stored as if there were one group, so that a
    checkpoint knows nothing of schedules: with several, groups go to their stages here, once a step."""
    stages = axes.size(AXIS)

    def deal(a):
        spec = jax.typeof(a).sharding.spec
        shape = (groups, a.shape[0] // groups, *a.shape[1:])
        a = jnp.reshape(a, shape, out_sharding=PartitionSpec(None, *spec))
        if groups == 1 or _is_key(a):
            return a
        dealt = [jnp.zeros_like(a[0])] * groups
        for source in range(groups):
            for target in range(groups):
                # Group q of all lies at stage q // R, and belongs to stage q % S as its group q // S.
                those = range(target * stages, (target + 1) * stages)
                ways = [(q // groups, q % stages) for q in those if q % groups == source]
                if ways:
                    dealt[target] += jax.lax.ppermute(a[source], AXIS, ways)
        return jnp.stack(dealt)

    return jax.tree.map(deal, blocks)
