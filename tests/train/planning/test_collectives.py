"""Collectives of compiled programs have known bytes, and device groups are parsed in the forms of other compilers."""

import jax
import jax.numpy as jnp
import pytest

from train.planning.collectives import collectives, first_group
from train.planning.hlo import parse

P = jax.P


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=(jax.sharding.AxisType.Explicit,) * 3)


def of(f, mesh, *args):
    with jax.set_mesh(mesh):
        program = jax.jit(f).lower(*args).compile()
    return collectives(parse(program.as_text()), dict(mesh.shape))


def placed(mesh, shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, P(*spec)))


@pytest.mark.parametrize(
    "kind, axes, inside, payload",
    [
        ("all-reduce", ("b",), lambda x: jax.lax.psum(x, "b"), 4 * 4 * 16),
        ("all-reduce", ("a", "c"), lambda x: jax.lax.psum(x, ("a", "c")), 4 * 4 * 16),
        ("all-gather", ("c",), lambda x: jax.lax.all_gather(x, "c"), 2 * 4 * 4 * 16),
        ("reduce-scatter", ("a",), lambda x: jax.lax.psum_scatter(x, "a", tiled=True), 4 * 4 * 16),
        ("all-to-all", ("b",), lambda x: jax.lax.all_to_all(x, "b", 0, 1, tiled=True), 4 * 4 * 16),
        ("collective-permute", ("c",), lambda x: jax.lax.ppermute(x, "c", [(0, 1), (1, 0)]), 4 * 4 * 16),
    ],
)
def test_each_kind_with_its_axes_and_bytes(mesh, kind, axes, inside, payload):
    mapped = jax.shard_map(inside, in_specs=P(), out_specs=P(), check_vma=False)
    found = of(mapped, mesh, placed(mesh, (4, 16)))
    assert [(one.kind, one.axes, one.runs) for one in found] == [(kind, axes, 1)]
    assert found[0].payload == payload


def test_bytes_that_are_sent(mesh):
    mapped = jax.shard_map(lambda x: jax.lax.psum(x, ("a", "b")), in_specs=P("a"), out_specs=P(), check_vma=False)
    (one,) = of(mapped, mesh, placed(mesh, (8, 16), "a"))
    assert one.group == (0, 2, 4, 6) and one.sent == 2 * 3 / 4 * (4 * 4 * 16)


def test_what_stands_in_a_loop_counts_as_often_as_it_runs(mesh):
    def f(x):
        body = lambda c, _: (jnp.sin(jax.lax.psum(c, "b")), None)
        return jax.lax.scan(body, x, length=5)[0]

    found = of(jax.shard_map(f, in_specs=P(), out_specs=P(), check_vma=False), mesh, placed(mesh, (4, 16)))
    assert [(one.kind, one.axes, one.runs) for one in found] == [("all-reduce", ("b",), 5)]


@pytest.mark.parametrize(
    "groups, expected",
    [
        ("replica_groups={{0,2},{1,3},{4,6},{5,7}}", [0, 2]),
        ("replica_groups={}", list(range(8))),
        ("replica_groups=[4,2]<=[8]", [0, 1]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [0, 2, 4, 6]),
        ("replica_groups=mesh['x'=4,'y'=2] {'x'}", [0, 2, 4, 6]),
        ("replica_groups=mesh['x'=2,'y'=1,'z'=4] {'x','y'}", [0, 4]),
        ("replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}", [0, 2, 4, 6]),
        ("replica_groups=mesh['x'=2,'y'=4] {'y':(2)2}", [0, 1]),
        ("replica_groups=mesh['x'=2,'y'=4] {'y':(1)2}", [0, 2]),
        ("source_target_pairs={{0,0},{3,1},{1,3}}", [3, 1]),
    ],
)
def test_forms_of_groups(groups, expected):
    text = "ENTRY %main (p: f32[4]) -> f32[4] {\n  %p = f32[4]{0} parameter(0)\n"
    text += f"  ROOT %x = f32[4]{{0}} all-reduce(%p), channel_id=1, {groups}, use_global_device_ids=true\n}}\n"
    (instruction,) = [i for i in parse(text)["main"].instructions if i.opcode == "all-reduce"]
    assert first_group(instruction, 8) == expected


# As printed by the TPU compiler: a gather that is fused twice, in a loop without a known trip count.
_TPU = """
%part.1 (p: bf16[8,64]) -> bf16[16,64] {
  %p = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g.1 = bf16[16,64]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=7, GROUPS_AND_CHAIN
}
%part.2 (p.2: bf16[8,64]) -> bf16[16,64] {
  %p.2 = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g.2 = bf16[16,64]{1,0:T(8,128)S(1)} all-gather(%p.2), channel_id=7, GROUPS_AND_CHAIN
}
%cond (c: (s32[], bf16[8,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(32), metadata={op_name="a(4)"}
  %c = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}
%body (b: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %b = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[8,64]{1,0:T(8,128)(2,1)} get-tuple-element(%b), index=1
  %f.1 = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kCustom, calls=%part.1
  %f.2 = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kCustom, calls=%part.2
  %sum = bf16[8,64]{1,0:T(8,128)(2,1)} all-reduce(%x), channel_id=8, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  %n = s32[]{:T(128)} get-tuple-element(%b), index=0
  ROOT %t = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)(2,1)}) tuple(%n, %sum)
}
ENTRY %main (a: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %a = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %w = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)(2,1)}) while(%a), condition=%cond, body=%body
}
"""


def test_parts_of_one_collective_count_once():
    text = _TPU.replace("GROUPS_AND_CHAIN", 'replica_groups=[4,2]<=[8], frontend_attributes={chain_id="3"}')
    gather, total = collectives(parse(text), {"a": 4, "b": 2})
    assert (gather.kind, gather.axes, gather.payload, gather.runs) == ("all-gather", ("b",), 2 * 16 * 64, 32)
    assert gather.asynchronous
    assert (total.kind, total.axes, total.runs, total.asynchronous) == ("all-reduce", ("a",), 32, False)


_DOT = "dot(%p, %p), lhs_contracting_dims={0}, rhs_contracting_dims={0}"


@pytest.mark.parametrize(
    "between, hidden", [(f"  %work = f32[] {_DOT}\n", True), ("  %work = f32[4]{0} negate(%p)\n", False), ("", False)]
)
def test_hidden_where_products_stand_between_start_and_end(between, hidden):
    text = "ENTRY %main (p: f32[4]) -> f32[8] {\n  %p = f32[4]{0} parameter(0)\n"
    text += "  %s = (f32[4]{0}, f32[8]{0}) all-gather-start(%p), channel_id=1, replica_groups={{0,1}}, dimensions={0}\n"
    text += between + "  ROOT %d = f32[8]{0} all-gather-done(%s)\n}\n"
    (one,) = collectives(parse(text), {"a": 2})
    assert (one.kind, one.payload, one.asynchronous) == ("all-gather", 32, hidden)
