"""Cross-entropy equals PyTorch's in float64, and no [batch, length, vocabulary] array exists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.extend.core import jaxprs_in_params

from model import axes
from model.output import Output
from train.losses import cross_entropy

B, T, D, V = 4, 6, 8, 32


def inputs(seed=0, length=T):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, length, D)).astype(np.float32)
    table = rng.normal(size=(V, D)).astype(np.float32)
    targets = rng.integers(0, V, (B, length)).astype(np.int32)
    weights = rng.uniform(0, 2, (B, length)).astype(np.float32) * (rng.random((B, length)) > 0.3)
    return x, table, targets, weights.astype(np.float32)


def reference(x, table, targets, weights, z_loss, smoothing, bias=None, softcap=0.0):
    """Returns (total, nats, dx, dtable[, dbias]), computed by PyTorch in float64."""
    bias = np.zeros(V) if bias is None else bias
    x, table, bias = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, table, bias))
    targets, weights = torch.tensor(targets).long().flatten(), torch.tensor(weights, dtype=torch.float64).flatten()
    logits = (x @ table.T + bias).reshape(-1, V)
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    smoothed = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    total = (weights * (smoothed + z_loss * torch.logsumexp(logits, -1) ** 2)).sum()
    total.backward()
    return total.item(), (weights * plain).sum().item(), x.grad.numpy(), table.grad.numpy(), bias.grad.numpy()


def value_and_gradients(x, table, targets, weights, **settings):
    def total(x, table):
        loss = cross_entropy(Output(x, nnx.Param(table), None, 0.0), targets, weights, **settings)
        return loss.total, loss

    (_, loss), (dx, dtable) = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(x, table)
    return loss, dx, dtable


@pytest.mark.parametrize("length", [T, 7, 1])
@pytest.mark.parametrize("z_loss, smoothing", [(0.0, 0.0), (0.01, 0.1)])
def test_equals_float64(z_loss, smoothing, length):
    """Values and gradients are equal, also if the length does not divide into chunks."""
    arrays = inputs(length=length)
    loss, dx, dtable = value_and_gradients(*arrays, z_loss=z_loss, label_smoothing=smoothing)
    total, nats, dx_expected, dtable_expected, _ = reference(*arrays, z_loss, smoothing)
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    np.testing.assert_allclose(loss.cross_entropy, nats, rtol=1e-5)
    np.testing.assert_allclose(dx, dx_expected, atol=2e-6)
    np.testing.assert_allclose(dtable, dtable_expected, atol=5e-6)


def test_bias_and_softcap_equal_float64():
    x, table, targets, weights = inputs()
    bias = np.random.default_rng(5).normal(size=V).astype(np.float32)

    def total(x, table, bias):
        output = Output(x, nnx.Param(table), nnx.Param(bias), 3.0)
        return cross_entropy(output, targets, weights, z_loss=0.01, label_smoothing=0.1).total

    ours = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(x, table, bias)
    expected = reference(x, table, targets, weights, 0.01, 0.1, bias, 3.0)
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5)
    for gradient, wanted in zip(ours[1], expected[2:], strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=5e-6)


def test_bfloat16_stays_near():
    """Inputs are exact in bfloat16. Each logit (about 10) is rounded to 8 bits: 0.02 nats, averaged over all tokens."""
    x, table, targets, weights = inputs(length=64)
    x, table = (jnp.asarray(a, jnp.bfloat16) for a in (x, table))
    loss, dx, dtable = value_and_gradients(x, table, targets, weights)
    total, _, dx_expected, dtable_expected, _ = reference(
        *(np.asarray(a, np.float32) for a in (x, table)), targets, weights, 0.0, 0.0
    )
    np.testing.assert_allclose(loss.total, total, rtol=2e-3)
    for ours, expected in ((dx, dx_expected), (dtable, dtable_expected)):
        ours = np.asarray(ours, np.float64)
        assert np.linalg.norm(ours - expected) < 0.01 * np.linalg.norm(expected)


def test_evaluation_and_training_agree():
    """The forward pass without a gradient is another program, and must give the same sums."""
    x, table, targets, weights = inputs()
    alone = cross_entropy(
        Output(jnp.asarray(x), nnx.Param(jnp.asarray(table)), None, 0.0), targets, weights, z_loss=0.01
    )
    together, _, _ = value_and_gradients(x, table, targets, weights, z_loss=0.01)
    np.testing.assert_allclose(alone, together, rtol=1e-6)


@pytest.mark.parametrize(
    "shape", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"stage": 2, "context": 2, "tensor": 2}]
)
def test_vocabulary_and_rows_split_over_a_mesh(shape):
    x, table, targets, weights = (np.tile(a, (2,) + (1,) * (a.ndim - 1)) for a in inputs())
    table = table[:V]
    expected, dx_expected, dtable_expected = value_and_gradients(x, table, targets, weights, z_loss=0.01)
    mesh = axes.make_mesh(shape)
    with axes.use_mesh(mesh):
        place = lambda a: axes.place(jnp.asarray(a), *("batch", "length", "features")[: a.ndim])
        rows = [place(a) for a in (x, targets, weights)]
        split = jax.device_put(table, jax.NamedSharding(mesh, axes.spec("vocab", "embed")))
        loss, dx, dtable = value_and_gradients(rows[0], split, rows[1], rows[2], z_loss=0.01)
    np.testing.assert_allclose(loss.total, expected.total, rtol=1e-6)
    np.testing.assert_allclose(dx, dx_expected, atol=1e-6)
    np.testing.assert_allclose(dtable, dtable_expected, atol=1e-5)


def test_bfloat16_over_a_mesh():
    """A CPU adds the table's gradient over devices in float32; in bfloat16 its compiler would abort the process.

    The tolerance is one step of bfloat16 (2^-8) for each of the four devices that are added.
    """
    x, table, targets, weights = (np.tile(a, (2,) + (1,) * (a.ndim - 1)) for a in inputs())
    x, table = jnp.asarray(x, jnp.bfloat16), jnp.asarray(table[:V], jnp.bfloat16)
    _, _, expected = value_and_gradients(x, table, targets, weights)
    mesh = axes.make_mesh({"fsdp": 4, "tensor": 2})
    with axes.use_mesh(mesh):
        place = lambda a: axes.place(jnp.asarray(a), *("batch", "length", "features")[: a.ndim])
        split = jax.device_put(table, jax.NamedSharding(mesh, axes.spec("vocab", "embed")))
        _, _, found = value_and_gradients(place(x), split, place(targets), place(weights))
    expected, found = (np.asarray(a, np.float32) for a in (expected, found))
    assert np.linalg.norm(found - expected) <= 4 * 2**-8 * np.linalg.norm(expected)


def sizes_in(jaxpr):
    """Yields the number of elements of everything a program computes, including nested programs."""
    for equation in jaxpr.eqns:
        yield from (var.aval.size for var in equation.outvars if hasattr(var.aval, "size"))
        for inner in jaxprs_in_params(equation.params):
            yield from sizes_in(inner)


@pytest.mark.parametrize("length", [2, 64, 4096])
def test_never_holds_all_logits(length):
    table = jax.ShapeDtypeStruct((V * 64, 2), jnp.float32)
    x = jax.ShapeDtypeStruct((4, length, 2), jnp.float32)
    targets, weights = (jax.ShapeDtypeStruct((4, length), dtype) for dtype in (jnp.int32, jnp.float32))
    output = lambda x, table: Output(x, nnx.Param(table), None, 0.0)
    total = lambda x, table, targets, weights: cross_entropy(output(x, table), targets, weights).total
    program = jax.make_jaxpr(jax.grad(total, (0, 1)))(x, table, targets, weights)
    largest, everything = max(sizes_in(program.jaxpr)), 4 * length * V * 64
    assert largest <= everything / 2
    assert largest >= 4 * V * 64, "the program has no chunks of logits, so this test checks nothing"
