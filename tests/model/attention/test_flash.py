"""Attention kernels equal plain attention; splash is interpreted, on one device and over meshes."""

import functools
import math

import jax
import numpy as np
import pytest

from model import axes
from model.attention import masks
from model.attention.attend import Rule
from tests.model.attention.test_attend import RULES, inputs, values_and_gradients
from tests.model.test_meshes import sizes

ALL = {name: rule for name, rule in RULES.items() if not rule.alibi} | {"softcap": Rule(scale=0.35, softcap=0.7)}


@functools.cache
def plain(rule):
    q, k, v, dy, mask, real = inputs(256)
    y, *gradients = values_and_gradients(q, k, v, dy, mask, rule._replace(implementation="xla"))
    return jax.device_get((y * real, *gradients))


@pytest.mark.parametrize("name", ALL)
def test_splash_equals_plain_attention(name):
    q, k, v, dy, mask, real = inputs(256)
    y, *gradients = values_and_gradients(q, k, v, dy, mask, ALL[name]._replace(implementation="splash"))
    for found, expected in zip((y * real, *gradients), plain(ALL[name]), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-6)


MESHES = [
    (name, shape) for name in ("causal", "window", "both sides") for shape in ("data=2,tensor=2", "context=2,tensor=2")
]


@pytest.mark.parametrize(("name", "shape"), [*MESHES, ("causal", "stage=2,context=2,tensor=2")])
def test_splash_over_a_mesh(name, shape):
    """Rows split along their length are in zigzag order. Stages are a manual axis, as in a pipeline."""
    q, k, v, dy, mask, real = inputs(256)
    mesh = axes.make_mesh(sizes(shape), jax.devices()[: math.prod(sizes(shape).values())])
    order = axes.zigzag(256, 2) if "context" in shape else np.arange(256)
    with axes.use_mesh(mesh):
        names = ("batch", "length", "kv_heads")
        place = lambda a: axes.place(a[:, order], *names[: a.ndim], *(None,) * (a.ndim - 3))
        ids = masks.packed(*(place(a) for a in mask[:2]))
        rule = ALL[name]._replace(implementation="splash")
        run = functools.partial(values_and_gradients, rule=rule)
        if "stage" in shape:
            rows = dict(in_specs=axes.PartitionSpec("stage"), out_specs=axes.PartitionSpec("stage"))
            run = jax.jit(jax.shard_map(run, axis_names={"stage"}, check_vma=False, **rows))
        arguments = (*map(place, (q, k, v, dy)), ids)
        assert "pallas_call" in str(jax.make_jaxpr(run)(*arguments))
        y, *gradients = run(*arguments)
    back = np.argsort(order)
    found = [np.asarray(a)[:, back] for a in (y, *gradients)]
    for one, expected in zip((found[0] * np.asarray(real), *found[1:]), plain(ALL[name]), strict=True):
        np.testing.assert_allclose(one, expected, atol=5e-6)
