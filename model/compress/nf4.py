"""4-bit NormalFloat with double quantization: the frozen weights of QLoRA (arXiv:2305.14314, section 3).

Each block of 64 weights of one output is divided by its absmax, and each weight is rounded to the nearest of 16 codes,
quantiles of a normal distribution. Double quantization then rounds the absmax of all blocks, minus their mean, to 256
codes of an 8-bit dynamic data type (arXiv:1511.04561), in blocks of 256. That takes 4.127 bits per weight. Codes equal
bitsandbytes' for the weight in PyTorch's layout [outputs, inputs]. Two share a byte, the first in its high half.

If 64 does not divide the inputs, blocks have 32 or 16 weights.

Dims of a matrix: I inputs, N blocks of inputs, O outputs, M inner blocks.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model import axes
from model.compress.quantized import Quantized, QuantizedWeight, each, fitting, quantized

BLOCKS = (64, 32, 16)
INNER_BLOCK = 256
# Appendix E of the paper.
CODES: tuple[float, ...] = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635)
CODES += (-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725)
CODES += (0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941)
CODES += (0.7229568362236023, 1.0)


@functools.cache
def dynamic_codes() -> np.ndarray:
    """Returns the 256 codes of double quantization, float32, ascending.

    For each sign and k = 0..6, they are the midpoints of 2^k equal parts of (0.1, 1), times 10^(k - 6); and 0 and 1.
    """

    def edges(parts):
        step, n = float((1 - np.float32(0.1)) / np.float32(parts)), np.arange(parts + 1)
        from_below = n < (parts + 1) // 2  # computes from both ends, as bitsandbytes' linspace, to round as it does
        return np.where(from_below, float(np.float32(0.1)) + step * n, 1 - step * (parts - n)).astype(np.float32)

    sizes = [np.float32(10.0 ** (k - 6)) * ((edges(2**k)[:-1] + edges(2**k)[1:]) / 2) for k in range(7)]
    positive = np.concatenate(sizes)
    return np.sort(np.concatenate([-positive, np.array([0, 1], np.float32), positive]))


class NF4(QuantizedWeight):
    """An nf4 weight.

    codes   uint8 [.., I / 2, ..]: two codes per byte; the weight's dims, with its input dims merged into one
    absmax  uint8 [.., N, ..]; float32 without double quantization
    inner   float32 [M]: the largest absmax, minus the mean, of each inner block; blocks are in the order [O, N]
    mean    float32 []: mean of absmax

    All have the dims of layers and experts first. Codes and absmax are sharded like the weight if that keeps blocks
    whole; otherwise they are replicated. inner and mean are always replicated: they are 1 / 4000 of the bytes.

    Args:
      double: quantize absmax too.

    Raises:
      ValueError: no block size divides the inputs.
    """

    def __init__(self, weight: nnx.Variable, *, double: bool):
        super().__init__(weight)
        a, end = self._start, self._start + len(self.inputs)
        total = math.prod(self._sizes[a:end])
        self.block = next((size for size in BLOCKS if total % size == 0), 0)
        if not self.block:
            raise ValueError(f"it has {total} inputs; nf4 needs a multiple of {BLOCKS[-1]}, int8 takes any number")
        # Names and sizes of the matrix with merged input dims, and names of codes and absmax.
        self._flat_names = (*self._names[: a + 1], *self._names[end:])
        self._flat = (*self._sizes[:a], total, *self._sizes[end:])
        self._codes_names = fitting(self._flat_names, _put(self._flat, a, total // 2))
        self._absmax_names = fitting(self._flat_names, _put(self._flat, a, total // self.block))
        lead, names = self.names[: self._lead], (self._codes_names, self._absmax_names, (None,), ())
        arrays = each(functools.partial(self._quantized, double=double), weight[...], self._lead)
        made = [quantized(array, (*lead, *own)) for array, own in zip(arrays, names, strict=False)]
        self.codes, self.absmax = made[:2]
        self.inner: Quantized | None = made[2] if double else None
        self.mean: Quantized | None = made[3] if double else None

    def _quantized(self, w, double):
        a, names = self._start, self._absmax_names
        blocks = _put(self._flat, a, self._flat[a] // self.block, self.block)
        w = axes.place(_reshape(w.astype(jnp.float32), self._flat, self._flat_names), *names)
        w = _reshape(w, blocks, _put(names, a, names[a], None))
        absmax = jnp.abs(w).max(a + 1)
        w = w * jnp.expand_dims(_inverse(absmax), a + 1)
        codes = sum((w > middle).astype(jnp.uint8) for middle in _middles(np.float32(CODES)))
        pairs = _put(blocks, a + 1, self.block // 2, 2)
        codes = _reshape(codes, pairs, _put(names, a, names[a], None, None))
        high, low = (jax.lax.index_in_dim(codes, n, a + 2, keepdims=False) for n in (0, 1))
        codes = axes.place(
            _reshape(high << 4 | low, _put(self._flat, a, self._flat[a] // 2), names), *self._codes_names
        )
        return (codes, *self._double(absmax)) if double else (codes, absmax)

    def _double(self, absmax):
        """Double-quantizes absmax (float32); returns (absmax uint8, inner, mean)."""
        whole = axes.place(jnp.moveaxis(absmax, self._start, -1), *(None,) * absmax.ndim)
        flat = whole.reshape(-1)
        mean = jax.lax.optimization_barrier(_sum(flat) / flat.size)  # force the rounding before it is subtracted
        flat = jnp.pad(flat - mean, (0, -flat.size % INNER_BLOCK)).reshape(-1, INNER_BLOCK)
        inner = jnp.abs(flat).max(1)
        flat = flat * _inverse(inner)[:, None]
        codes = (flat[..., None] > _middles(dynamic_codes())).sum(-1, dtype=jnp.uint8)
        codes = codes.reshape(-1)[: whole.size].reshape(whole.shape)
        return axes.place(jnp.moveaxis(codes, -1, self._start), *self._absmax_names), inner, mean

    def dequantized(self) -> jax.Array:
        a, names = self._start, axes.used(*self._flat_names)
        shifts = jnp.array([4, 0], jnp.uint8).reshape(2, *(1,) * (len(self._flat) - a - 1))
        codes = jnp.expand_dims(self.codes[...], a + 1) >> shifts & 15
        w = _reshape(_chosen(codes), self._flat, axes.used(*self._codes_names))
        absmax = self.absmax[...] if self.inner is None else self._absmax()
        blocks = _put(self._flat, a, self._flat[a] // self.block, self.block)
        split = axes.used(*self._absmax_names)
        absmax = jnp.broadcast_to(
            jnp.expand_dims(absmax, a + 1), blocks, out_sharding=axes.out(*_put(split, a, split[a], None))
        )
        w = axes.place(w, *names) * axes.place(_reshape(absmax, self._flat, split), *names)
        return _reshape(w, self._sizes, axes.used(*self._names))

    def _absmax(self):
        """Returns absmax as float32 [.., N, ..]."""
        # Expand to the shape of the codes, in their order; the last inner block may be incomplete.
        shape = jnp.moveaxis(self.absmax[...], self._start, -1).shape
        inner = jnp.broadcast_to(self.inner[...][:, None], (self.inner.shape[-1], INNER_BLOCK))
        inner = inner.reshape(-1)[: math.prod(shape)].reshape(shape)
        inner = axes.place(jnp.moveaxis(inner, -1, self._start), *axes.used(*self._absmax_names))
        codes, table = self.absmax[...].astype(jnp.int32), jnp.asarray(dynamic_codes())
        return table.at[codes].get(out_sharding=axes.out(*axes.used(*self._absmax_names))) * inner + self.mean[...]

    def _stacked(self):
        return self.codes.shape[: self.codes.ndim - len(self._flat)]


def _chosen(codes):
    """Returns CODES[codes] by a tree of selects: a lookup is as fast on a CPU, slow on a TPU, and loses shardings."""
    values = [jnp.float32(value) for value in CODES]
    for bit in (1, 2, 4, 8):
        on = codes & bit != 0
        values = [jnp.where(on, second, first) for first, second in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _sum(x):
    """Sums a vector by halves: compilers choose the order of a plain sum, so its last bits would depend on the mesh."""
    x = jnp.pad(x, (0, (1 << (x.size - 1).bit_length()) - x.size))
    while x.size > 1:
        x = x[: x.size // 2] + x[x.size // 2 :]
    return x[0]


def _middles(codes: np.ndarray) -> np.ndarray:
    return (codes[:-1] + codes[1:]) / 2


def _inverse(absmax):
    return jnp.where(absmax > 0, 1 / absmax, 0)


def _put(entries: tuple, place: int, *instead) -> tuple:
    """Returns the tuple with entry `place` replaced by these entries."""
    return (*entries[:place], *instead, *entries[place + 1 :])


def _reshape(x, shape, names):
    return jnp.reshape(x, shape, out_sharding=axes.out(*names))
