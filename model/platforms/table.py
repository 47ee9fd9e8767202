"""What is faster where: the one table of choices that depend on the platform. Results differ only by rounding.

It leaves out what a platform cannot do at all; those checks are next to the code (attention/flash.py,
experts/exchange.py).
"""

from collections.abc import Callable
from typing import NamedTuple

from model import axes
from model.platforms import cpu, products


class Platform(NamedTuple):
    contraction: Callable = products.einsum  # of activations with a weight: (spec, sharding, x, w) -> y
    attention: str = "xla"  # the kernel that 'auto' selects (attention/attend.py)
    # Whether bfloat16 matmuls return float32. A CPU's compiler would then convert the operands to float32 and lose its
    # fast bfloat16 matmul.
    wide_products: bool = True
    # Whether a shard_map over some of the mesh axes can add bfloat16 arrays. XLA's CPU compiler aborts on the sharding
    # annotation that jax 0.10 writes into such an addition ("Invalid binary instruction opcode copy").
    narrow_sums: bool = True
    unrolled: bool = False  # unroll scans over layers
    # Whether to read a small table by lookup. Otherwise a matmul with one-hot rows reads it, because the gradient of a
    # lookup adds row by row.
    looks_up: bool = False
    # Whether decoding stores each layer's arrays separately. A CPU's matmuls copy a slice of a stacked array before
    # reading it. Other platforms don't, and their memory is scarcer.
    unstacked: bool = False


PLATFORMS = {
    "cpu": Platform(
        cpu.contraction,
        "blocked",
        wide_products=False,
        narrow_sums=False,
        unrolled=True,
        looks_up=True,
        unstacked=True,
    ),
    "tpu": Platform(attention="splash"),
    "gpu": Platform(attention="cudnn"),
}


def here() -> Platform:
    """Returns the choices for the current mesh's platform, or the host's without a mesh."""
    return PLATFORMS.get(axes.platform(), Platform())
