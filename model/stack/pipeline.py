"""Pipeline parallelism: layers are split over the mesh axis `stage`, and micro-batches pass through its devices.

GPipe (arXiv:1811.06965) with S stages: M micro-batches take M + S - 1 turns. The circular schedule (the interleaved
schedule of arXiv:2104.04473, section 2.2, with separate forward and backward): every stage has R groups of layers, S
groups apart, and a micro-batch goes around R times. That takes M R + S - 1 turns, each 1 / R as long, so the S - 1 idle
turns cost 1 / R as much. Differentiating the loop over turns gives the backward pass.

Rows enter and leave split over the stages, because outside of the stack every device has its share of the work. So
there are three streams between neighbors. Waiting rows move left to the first stage. Rows in progress move right, along
with their masks and other context. Finished rows move left again, from the last stage to where they are stored. An idle
turn works on padding rows, which no statistic counts.

Dims: S stages, R groups of layers per stage, n micro-batches stored per stage (M = n S), B rows.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model import axes
from model.stack.clock import Clock

AXIS = "stage"
SLOTS = 4  # default micro-batches per stage, if the rows divide: at most 1 in 5 turns is idle


def spread(blocks):
    """Shards arrays [layers, ...] by layer over the stages.

    Arrays that don't divide stay whole. A model with such arrays can't run on this mesh (ModelConfig.check_mesh), but
    its checkpoint can be read, to be stacked in another way.
    """
    stages = axes.size(AXIS)
    if stages == 1:
        return blocks
    place = lambda a: jax.sharding.reshard(a, PartitionSpec(AXIS, *jax.typeof(a).sharding.spec[1:]))
    return jax.tree.map(lambda a: a if len(a) % stages else place(a), blocks)


def collected(blocks):
    """Gathers all layers onto every stage, for code that runs one layer after another without a pipeline."""
    if axes.size(AXIS) == 1:
        return blocks
    place = lambda a: jax.sharding.reshard(a, PartitionSpec(None, *jax.typeof(a).sharding.spec[1:]))
    return jax.tree.map(place, blocks)


def pipelined(run, blocks, shared, x_BTD, told, key, *, slots: int, groups: int):
    """Runs rows through all layers of a segment.

    Args:
      run: (blocks, shared, x, told, key) -> (x, statistics with a leading dim of layers); runs some of the layers.
      blocks: arrays [layers, ...], split over `stage`.
      shared: arrays that all layers read.
      told: the layers' context of each row, arrays [B, ...]; all zeros for padding.
      key: random key, or None.
      slots: n; divides the rows of a device.
      groups: R.

    Returns:
      (x [B, T, D], the statistics of all layers).
    """
    rows = lambda a: jax.sharding.reshard(a, PartitionSpec(*axes.spec("batch"), *jax.typeof(a).sharding.spec[1:]))
    stages = lambda tree: jax.tree.map(lambda _: PartitionSpec(AXIS), tree)
    everywhere = lambda tree: jax.tree.map(lambda _: PartitionSpec(), tree)
    told = jax.tree.map(rows, told)
    blocks = spread(blocks)  # changes only random keys, which are drawn for all layers at once

    def on_each_stage(blocks, shared, x_BTD, told, key):
        return _loop(run, blocks, shared, _cut((x_BTD, told), slots), key, groups)

    (x_BTD, stats) = jax.shard_map(
        on_each_stage,
        axis_names={AXIS},
        in_specs=(stages(blocks), everywhere(shared), PartitionSpec(AXIS), stages(told), everywhere(key)),
        out_specs=(PartitionSpec(AXIS), PartitionSpec(None, AXIS)),
        check_vma=False,  # else a shard_map inside (moe.py) saves residuals that vary over this axis too, and fails
    )(blocks, shared, x_BTD, told, key)
    whole = lambda a: jax.sharding.reshard(a, PartitionSpec())
    return x_BTD, jax.tree.map(lambda a: whole(a).reshape(-1, *a.shape[2:]), stats)


def _loop(run, blocks, shared, waiting, key, groups):
    """Runs one stage through all turns of clock.py's table.

    `waiting` [n, B / n, ...] are the rows stored here. A stage holds one micro-batch of each stream at a time:

        coming     <-  to stage 0, from the stages that store them, anew every round trip
        at_work    ->  to the next stage, and from the last one to stage 0 for the next group
        done       <-  from the last stage to the stages that store them, which keep them in `finished`
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
    # Sums each group's statistics over its turns. Idle turns ran padding, which counts as nothing.
    group_of_turn = clock.group(jnp.arange(clock.turns), me)
    by_group = (group_of_turn == jnp.arange(groups)[:, None]).astype(jnp.float32)
    return _joined(finished), jax.tree.map(lambda a: jnp.einsum("RN,N...->R...", by_group, a), stats)


def _cut(tree, slots):
    """[B, ...] -> [n, B / n, ...]. Strided, so that every device splits its own rows and none move."""

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
    """Whether these are random keys, for the dropout of layers' adapters."""
    return jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key)


def _folded(keys_L, turn):
    """Returns different keys every turn, because micro-batches must not share their dropout."""
    return jax.vmap(lambda key: jax.random.fold_in(key, turn))(keys_L)


def _at(a, index):
    return jax.lax.dynamic_index_in_dim(a, index, keepdims=False)


def _dealt(blocks, groups):
    """[layers of this stage, ...] -> [R, layers of a group, ...].

    Layers are stored as if there were one group, so that checkpoints do not depend on the schedule. With several, this
    sends groups to their stages, once a step.
    """
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
                # Group q of the model is stored at stage q // R, and runs on stage q % S as its group q // S.
                those = range(target * stages, (target + 1) * stages)
                ways = [(q // groups, q % stages) for q in those if q % groups == source]
                if ways:
                    dealt[target] += jax.lax.ppermute(a[source], AXIS, ways)
        return jnp.stack(dealt)

    return jax.tree.map(deal, blocks)
