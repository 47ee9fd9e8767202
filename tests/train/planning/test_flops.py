"""FLOPs of programs equal counts by hand, and FLOPs of models equal 6N + attention."""

import math

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from configs import pretrain_decoder
from data.batch import DTYPES
from model import architectures, axes
from model.config import ModelConfig
from model.count import flops_per_token
from train import state
from train.objectives.language import Language
from train.optimizer import make_optimizer
from train.planning.flops import count
from train.planning.hlo import parse
from train.step import make_train_step

A = jax.ShapeDtypeStruct((8, 16), jnp.float32)
B = jax.ShapeDtypeStruct((16, 4), jnp.float32)
ONE = 2 * 8 * 16 * 4


def flops(f, *args):
    work = count(jax.make_jaxpr(f)(*args))
    assert work.per_device == work.total
    return work.total


def test_a_product_with_batch_dims():
    left, right = jax.ShapeDtypeStruct((3, 8, 16), jnp.float32), jax.ShapeDtypeStruct((3, 16, 4), jnp.float32)
    assert flops(lambda a, b: jnp.einsum("btd,bdf->btf", a, b), left, right) == 3 * ONE


def test_loops_run_as_often_as_they_do():
    scan = lambda a, b: jax.lax.scan(lambda c, _: (c + (a @ b).sum(), None), 0.0, length=7)[0]
    assert flops(scan, A, B) == 7 * ONE
    loop = lambda a, b: jax.lax.fori_loop(2, 7, lambda _, c: c + (a @ b).sum(), 0.0)
    assert flops(loop, A, B) == 5 * ONE
    nested = lambda a, b: jax.lax.scan(lambda c, _: (c + scan(a, b), None), 0.0, length=3)[0]
    assert flops(nested, A, B) == 21 * ONE


def test_a_while_loop_of_constant_ends_and_one_without():
    def loop(a, b, end):
        return jax.lax.while_loop(lambda c: c[0] < end, lambda c: (c[0] + 1, c[1] + (a @ b).sum()), (2, 0.0))

    work = count(jax.make_jaxpr(lambda a, b: loop(a, b, 7))(A, B))
    assert work.total == 5 * ONE and not work.notes
    work = count(jax.make_jaxpr(loop)(A, B, 7))
    assert work.total == ONE and "not constant" in work.notes[0]


def test_the_dearest_branch_counts():
    branches = lambda p, a, b: jax.lax.cond(p, lambda: (a @ b).sum() + (a @ b).max(), lambda: a.sum())
    assert flops(branches, True, A, B) == 2 * ONE


def test_what_is_computed_again_counts_again():
    f = jax.checkpoint(lambda a, b: jnp.sin(jnp.sin(a @ b) @ b.T).sum())
    # Forward costs 2, recomputation 1 or 2 (the gradient does not need the last product), backward 4.
    assert flops(jax.grad(f, argnums=(0, 1)), A, B) in (7 * ONE, 8 * ONE)
    assert flops(jax.jit(f), A, B) == 2 * ONE


def test_custom_rules_are_looked_into():
    @jax.custom_vjp
    def f(a, b):
        return a @ b

    f.defvjp(lambda a, b: (a @ b, (a, b)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    assert flops(f, A, B) == ONE
    assert flops(jax.grad(lambda a, b: f(a, b).sum(), (0, 1)), A, B) == 3 * ONE


def test_convolution():
    image, kernel = jax.ShapeDtypeStruct((2, 3, 10, 10), jnp.float32), jax.ShapeDtypeStruct((6, 3, 3, 3), jnp.float32)
    f = lambda a, b: jax.lax.conv(a, b, (1, 1), "VALID")
    assert flops(f, image, kernel) == 2 * (2 * 6 * 8 * 8) * (3 * 3 * 3)


def test_rows_meet_the_matrix_of_their_group_alone():
    rows, experts = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((5, 16, 4), jnp.float32)
    sizes = jax.ShapeDtypeStruct((5,), jnp.int32)
    assert flops(jax.lax.ragged_dot, rows, experts, sizes) == ONE
    grad = jax.grad(lambda a, b, s: jax.lax.ragged_dot(a, b, s).sum(), (0, 1))
    assert flops(grad, rows, experts, sizes) in (2 * ONE, 3 * ONE)  # the gradient does not need the forward product


@pytest.mark.parametrize("name", ["gelu", "kernel"])
def test_pallas_kernels_by_what_they_say_or_by_their_grid(name):
    from jax.experimental import pallas as pl

    def kernel(a, b, out):
        out[...] = a[...] @ b[...]

    estimate = pl.CostEstimate(flops=10 * ONE, transcendentals=0, bytes_accessed=0) if name == "gelu" else None
    call = pl.pallas_call(
        kernel,
        grid=(2,),
        in_specs=[pl.BlockSpec((4, 16), lambda i: (i, 0)), pl.BlockSpec((16, 4), lambda i: (0, 0))],
        out_specs=pl.BlockSpec((4, 4), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((8, 4), jnp.float32),
        cost_estimate=estimate,
    )
    work = count(jax.make_jaxpr(call)(A, B))
    assert work.total == (10 * ONE if estimate else ONE)
    assert bool(work.notes) == (estimate is None)


@pytest.mark.parametrize("name, products", [("fwd", 2), ("bwd", 5)])
def test_attention_of_cudnn_by_the_name_of_its_primitive(name, products):
    """A primitive of the same name replaces cuDNN's, because tracing the real one needs cuDNN."""
    primitive = jax.extend.core.Primitive(f"dot_product_attention_{name}_wrapper")
    primitive.def_abstract_eval(lambda q, k, v: q)
    q, k = jax.ShapeDtypeStruct((2, 8, 4, 16), jnp.bfloat16), jax.ShapeDtypeStruct((2, 6, 4, 16), jnp.bfloat16)
    assert flops(primitive.bind, q, k, k) == products * 2 * (2 * 4 * 8 * 6 * 16)


def test_what_one_device_computes():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    place = lambda s, *spec: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=jax.NamedSharding(mesh, jax.P(*spec)))
    with jax.set_mesh(mesh):
        split = lambda f, *args: count(jax.make_jaxpr(f)(*args), dict(mesh.shape))
        work = split(lambda a, b: a @ b, place(A, "x"), place(B, None, "y"))
        assert (work.total, work.per_device, work.products[0].dims) == (ONE, ONE / 8, (1, 2, 2, 16))
        work = split(lambda a, b: a @ b, place(A, "x"), place(B))  # devices along y do the same work
        assert (work.total, work.per_device) == (ONE, ONE / 4)
        mapped = jax.shard_map(
            lambda a, b: a @ b, in_specs=(jax.P("x"), jax.P()), out_specs=jax.P("x"), axis_names={"x"}
        )
        work = split(mapped, place(A, "x"), place(B))
        assert (work.total, work.per_device) == (ONE, ONE / 4)


def step_of(model, mesh, batch_size, length):
    """Returns (traced step, work) of a training step over abstract arrays."""
    config = pretrain_decoder.get_config()
    config.data.seq_len, config.batch_size = length, batch_size
    tx = make_optimizer(config.optimizer, lambda step: 1e-3, model)
    step = make_train_step(Language(), tx)
    with axes.use_mesh(mesh):
        abstract = state.abstract(lambda rngs: architectures.make(model, rngs), tx)
        sharding = axes.batch_sharding(mesh)
        shapes = {name: jax.ShapeDtypeStruct((batch_size, length), t, sharding=sharding) for name, t in DTYPES.items()}
        traced = step.trace(abstract, shapes)
        return traced, count(traced.jaxpr, dict(mesh.shape))


def model(remat="none", **fields):
    sizes = dict(vocab_size=128, num_layers=3, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=64, max_length=64)
    return ModelConfig(**(sizes | fields), remat=remat, attention="xla", dtype="float32", scan_unroll=1)


@pytest.mark.parametrize(
    "fields",
    [{}, {"tied": True}, {"gated": False, "position": "learned", "num_kv_heads": 4}],
    ids=["llama", "tied", "gpt"],
)
def test_a_model_is_6n_and_attention(fields):
    """A matmul weight costs 6 per token, and a feature of the heads 12 T, because masked scores are computed too."""
    config, rows, length = model(**fields), 4, 64
    features, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = config.embed_dim * (2 * features + 2 * kv + (3 if config.gated else 2) * config.mlp_dim)
    weights = config.num_layers * layer + config.vocab_size * config.embed_dim
    attention = config.num_layers * 12 * length * features
    mesh = axes.make_mesh({"data": 1}, jax.devices()[:1])
    _, work = step_of(config, mesh, rows, length)
    assert work.total == rows * length * (6 * weights + attention)
    assert flops_per_token(config, length) == 6 * weights + attention / 2
    _, again = step_of(model("full", **fields), mesh, rows, length)
    # Remat repeats the forward pass except for the last product, whose result nothing needs.
    more = config.num_layers * (2 * (layer - config.embed_dim * config.mlp_dim) + 4 * length * features)
    assert again.total - work.total == rows * length * more


@pytest.mark.parametrize("shape", [{"data": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}], ids=str)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_compiled_program_multiplies_as_much_as_the_trace_says(remat, shape):
    mesh = axes.make_mesh(shape)
    traced, work = step_of(model(remat), mesh, 8, 64)
    program = parse(traced.lower().compile().as_text())
    multiplied = 0
    for computation in program.values():
        for one in computation.instructions:
            if one.opcode == "dot":
                left = computation.by_name[one.operands[0]].shapes[0].dims
                contracted = [int(dim) for dim in one.attribute("lhs_contracting_dims").strip("{}").split(",") if dim]
                size = math.prod(one.shapes[0].dims) * math.prod(left[dim] for dim in contracted)
                multiplied += 2 * size * computation.runs
    assert multiplied == work.per_device == work.total / 8
