"""What is faster where: the one table of choices that depend on the platform. Results are the same but for rounding.

Left out: what a platform cannot do at all stands where it is done (attention/flash.py, experts/exchange.py).
"""

from collections.abc import Callable
from typing import NamedTuple

from model import axes
from model.platforms import cpu, products


class Platform(NamedTuple):
    contraction: Callable = products.einsum  # of activations with a weight: (spec, sharding, x, w) -> y
    attention: str = "xla"  # the implementation that 'auto' stands for (attention/attend.py)
    # Products of bfloat16 come out in float32. A CPU's compiler would widen the operands and lose their fast product.
    wide_products: bool = True
    unrolled: bool = False  # scans over layers
    # Rows of a small table are looked up; otherwise a product finds them, as the gradient of a look-up adds row by row.
    looks_up: bool = False
    # In decoding each layer has arrays of its own. A CPU's products copy a slice before they read it; elsewhere they
    # don't, and memory is dearer.
    unstacked: bool = False


PLATFORMS = {
    "cpu": Platform(cpu.contraction, "blocked", wide_products=False, unrolled=True, looks_up=True, unstacked=True),
    "tpu": Platform(attention="splash"),
    "gpu": Platform(attention="cudnn"),
}


def here() -> Platform:
    """Of the mesh that is set, else of the host."""
    return PLATFORMS.get(axes.platform(), Platform())
