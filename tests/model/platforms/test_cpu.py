"""For every contraction of a model, the custom gradient for CPUs equals that of a plain einsum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import axes
from model.platforms import cpu, products
from model.platforms.table import PLATFORMS, here

SIZES = dict(zip("BTDFKGHQR", (2, 6, 4, 5, 2, 3, 4, 3, 16), strict=True))
SPECS = ("BTD,DF->BTF", "BTD,DKGH->BTKGH", "BTKGH,KGHD->BTD", "BTR,KHR->BTKH", "BTKGH,KHR->BTGKR", "BTQ,QKGH->BTKGH")


def drawn(dims, seed):
    return np.random.default_rng(seed).normal(size=[SIZES[dim] for dim in dims]).astype(np.float32)


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_equal_the_plain_ones(spec):
    """Computes the reference with numpy in float64."""
    x_dims, w_dims, y_dims = products.dims(spec)
    x, w, dy = (drawn(dims, seed) for seed, dims in enumerate((x_dims, w_dims, y_dims)))
    y, back = jax.vjp(lambda x, w: cpu.contraction(spec, None, x, w), x, w)
    wide = [a.astype(np.float64) for a in (x, w, dy)]
    expected = [
        np.einsum(f"{y_dims},{w_dims}->{x_dims}", wide[2], wide[1]),
        np.einsum(f"{x_dims},{y_dims}->{w_dims}", wide[0], wide[2]),
    ]
    np.testing.assert_allclose(y, np.einsum(spec, *wide[:2]), atol=1e-5)
    for found, wanted in zip(back(dy), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def barriers(spec, x, w):
    """Returns the shapes of the optimization barriers in the weight's gradient."""
    grad = jax.grad(lambda w, x: cpu.contraction(spec, None, x, w).sum())
    equations = jax.make_jaxpr(grad)(jnp.ones(w), jnp.ones(x)).eqns
    return [e.outvars[0].aval.shape for e in equations if e.primitive.name == "optimization_barrier"]


def test_the_smaller_operand_comes_first():
    """The compiler copies the first operand. Absorbed latent attention, whose heads are not rows, uses plain einsum."""
    assert barriers("BD,DF->BF", (64, 4), (4, 32)) == [(4, 32)]
    assert barriers("BD,DF->BF", (64, 32), (32, 4)) == [(4, 32)]
    assert barriers("BTKGH,KHR->BTGKR", (1, 2, 2, 1, 3), (2, 3, 4)) == []


def test_a_platform_that_is_not_listed_has_what_any_compiler_takes(monkeypatch):
    assert here() is PLATFORMS["cpu"]
    monkeypatch.setattr(axes, "platform", lambda: "metal")
    assert here().contraction is products.einsum and here().attention == "xla"
