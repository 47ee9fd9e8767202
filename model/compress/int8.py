"""8-bit integers with one scale per output: LLM.int8()'s weights (arXiv:2208.07339), as in bitsandbytes.

    code = round(w 127 / absmax), half to even;  w = code absmax / 127

absmax is the largest |w| of an output, so codes are in -127..127 (others use -128..127 with absmax / 127.5). Left out:
LLM.int8()'s integer matmuls and its activation outliers; the matmul uses dequantized weights.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from model.compress.quantized import QuantizedWeight, each, quantized


class Int8(QuantizedWeight):
    """An int8 weight.

    codes   int8, shaped like the weight
    absmax  float32, shaped like the weight without its input dims
    """

    def __init__(self, weight: nnx.Variable):
        super().__init__(weight)
        outputs = self.names[: self._lead + self._start] + self._names[self._start + len(self.inputs) :]
        codes, absmax = each(self._quantized, weight[...], self._lead)
        self.codes = quantized(codes, self.names)
        self.absmax = quantized(absmax, outputs)

    def _quantized(self, w):
        over = tuple(range(self._start, self._start + len(self.inputs)))
        absmax = jnp.abs(w.astype(jnp.float32)).max(over)
        factor = jnp.where(absmax > 0, 127 / absmax, 0)
        return jnp.round(w.astype(jnp.float32) * jnp.expand_dims(factor, over)).astype(jnp.int8), absmax

    def dequantized(self) -> jax.Array:
        over = tuple(range(self._start, self._start + len(self.inputs)))
        return self.codes[...].astype(jnp.float32) * jnp.expand_dims(self.absmax[...] * (1 / 127), over)

    def _stacked(self):
        return self.codes.shape[: self.codes.ndim - len(self._sizes)]
