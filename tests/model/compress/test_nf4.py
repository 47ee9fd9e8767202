"""NF4 quantization equals that of bitsandbytes."""

import bitsandbytes.functional as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from model.compress.nf4 import CODES, NF4, dynamic_codes
from model.roles import Role
from tests.model.compress.torch_layout import LAYOUTS, drawn, matrices


def test_codes():
    np.testing.assert_array_equal(np.float32(CODES), reference.get_4bit_type("nf4", "cpu"))
    np.testing.assert_array_equal(dynamic_codes(), reference.create_dynamic_map())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("double", [False, True])
def test_equals_bitsandbytes(layout, double):
    _, names, inputs = LAYOUTS[layout]
    weight = drawn(layout)
    quantized, back = jax.jit(lambda w: ((q := NF4(w, double=double)), q.gathered(jnp.float32)))(weight)
    assert (quantized.shape, quantized.size) == (weight.shape, weight.size)
    flat = [name for name in names if name not in inputs[1:]]
    codes, absmax = (matrices(array[...], flat, inputs[:1]) for array in (quantized.codes, quantized.absmax))
    given, back = (matrices(array, names, inputs) for array in (weight[...], back))
    for number in range(len(given)):
        want, state = reference.quantize_4bit(
            torch.tensor(given[number]), blocksize=64, quant_type="nf4", compress_statistics=double
        )
        want_back = reference.dequantize_4bit(want, state).numpy()
        np.testing.assert_array_equal(codes[number].ravel(), want.numpy().ravel())
        if not double:
            np.testing.assert_array_equal(absmax[number].ravel(), state.absmax)
            np.testing.assert_array_equal(back[number], want_back)
            continue
        # The mean is summed in another order, so a code may be off by one.
        off = np.abs(absmax[number].astype(int).ravel() - state.absmax.numpy().astype(int))
        assert off.max() <= 1 and off.mean() < 0.02
        mean, inner = (array[...].reshape(len(given), -1)[number] for array in (quantized.mean, quantized.inner))
        np.testing.assert_allclose(mean, state.offset, rtol=1e-6)
        np.testing.assert_allclose(inner, state.state2.absmax, rtol=1e-5)
        same = np.repeat(off == 0, 64).reshape(want_back.shape)
        np.testing.assert_allclose(back[number][same], want_back[same], atol=1e-7)


def test_every_code_comes_back():
    """One block contains every code, and one only zeros."""
    w = np.zeros((128, 1), np.float32)
    w[:64, 0] = 3 * np.tile(np.float32(CODES), 4)
    weight = nnx.Param(
        jnp.asarray(w), out_sharding=("embed", "mlp"), inputs=("embed",), role=Role.MATRIX, eager_sharding=False
    )
    np.testing.assert_array_equal(NF4(weight, double=False).gathered(jnp.float32), w)


@pytest.mark.parametrize(("inputs", "block"), [(192, 64), (96, 32)])
def test_blocks_are_as_large_as_divides_the_inputs(inputs, block):
    w = np.random.default_rng(0).standard_normal((inputs, 8)).astype(np.float32)
    weight = nnx.Param(
        jnp.asarray(w), out_sharding=("embed", "mlp"), inputs=("embed",), role=Role.MATRIX, eager_sharding=False
    )
    quantized = NF4(weight, double=False)
    assert quantized.block == block
    want, _ = reference.quantize_4bit(torch.tensor(w.T.copy()), blocksize=block, quant_type="nf4")
    np.testing.assert_array_equal(quantized.codes[...].T.ravel(), want.numpy().ravel())


def test_too_odd_a_number_of_inputs():
    weight = nnx.Param(
        jnp.ones((24, 8)), out_sharding=("embed", "mlp"), inputs=("embed",), role=Role.MATRIX, eager_sharding=False
    )
    with pytest.raises(ValueError, match="24 inputs; nf4 needs a multiple of 16"):
        NF4(weight, double=True)
