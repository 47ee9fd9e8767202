"""int8 quantization equals that of bitsandbytes."""

import bitsandbytes.functional as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from model.compress.int8 import Int8
from tests.model.compress.torch_layout import LAYOUTS, drawn, matrices


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_bitsandbytes(layout):
    _, names, inputs = LAYOUTS[layout]
    weight = drawn(layout)
    quantized, back = jax.jit(lambda w: ((q := Int8(w)), q.gathered(jnp.float32)))(weight)
    assert (quantized.shape, quantized.size) == (weight.shape, weight.size)
    codes, given, back = (matrices(array, names, inputs) for array in (quantized.codes[...], weight[...], back))
    absmax = quantized.absmax[...].reshape(len(given), -1)
    for number in range(len(given)):
        want, scale, _ = reference.int8_vectorwise_quant(torch.tensor(given[number]))
        np.testing.assert_array_equal(codes[number], want)
        np.testing.assert_array_equal(absmax[number], scale)
        np.testing.assert_allclose(back[number], reference.int8_vectorwise_dequant(want, scale), rtol=1e-6)


def test_zeros():
    weight = drawn("inputs first")
    zeros = Int8(weight.replace(jnp.zeros_like(weight[...]))).gathered(jnp.float32)
    np.testing.assert_array_equal(zeros, 0)
