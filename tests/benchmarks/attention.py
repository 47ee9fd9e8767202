"""Compares the attention kernel of this device with plain XLA attention: largest differences, time with gradients.

    python -m tests.benchmarks.attention --length=4096

The input is packed causal rows of three documents in bfloat16, on the first device. One side is the kernel that
model/attention/attend.py chooses there (splash, cuDNN, or blocks on a CPU), the other is XLA's; they take turns.
Differences are measured against XLA's attention in float32, for the kernel and for XLA's own bfloat16 result.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from model.attention import masks
from model.attention.attend import Rule, attend
from tests.model.tiny import packed_rows


def inputs(rows: int, length: int, heads: int, group: int, features: int):
    """Returns (q, k, v, dy, mask) in float32; dy is 0 at padding."""
    rng = np.random.default_rng(0)
    _, segments, positions = packed_rows(rows, length)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    q, k, v = (draw(rows, length, heads, *more, features) for more in ((group,), (), ()))
    real = jnp.asarray(segments > 0)[:, :, None, None, None]
    return q, k, v, draw(*q.shape) * real, masks.packed(jnp.asarray(segments), jnp.asarray(positions)), real


def compiled(implementation: str, dtype, arguments):
    rule = Rule(scale=arguments[0].shape[-1] ** -0.5, implementation=implementation)

    def run(q, k, v, dy, mask, real):
        y, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask, rule, aligned=True), q, k, v)
        return y * real, *back(dy)

    cast = lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
    arguments = jax.tree.map(cast, arguments)
    program = jax.jit(run).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("rows", 4), ("length", 1024), ("heads", 8), ("group", 4), ("features", 128), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    arguments = inputs(args.rows, args.length, args.heads, args.group, args.features)
    runs = {name: compiled(name, jnp.bfloat16, arguments) for name in ("auto", "xla")}
    exact = compiled("xla", jnp.float32, arguments)()
    print(f"{jax.devices()[0].device_kind}: {args.rows} x {args.length}, {args.heads} x {args.group} heads")
    for name, run in runs.items():
        apart = [float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(run(), exact, strict=True)]
        words = ", ".join(f"{part} {value:.1e}" for part, value in zip(("y", "dq", "dk", "dv"), apart, strict=True))
        print(f"{name:<5} largest difference / largest entry: {words}")
    seconds = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    ratios = [plain / own for own, plain in zip(seconds["auto"], seconds["xla"], strict=True)]
    for name, values in seconds.items():
        print(f"{name:<5} {1e3 * statistics.median(values):9.2f} ms")
    print(f"speed {statistics.median(ratios):.2f} of xla's ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
