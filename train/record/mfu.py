"""Model FLOPs utilization (MFU): the peak rate of devices, published or measured, and the share that a run uses."""

import fnmatch
import functools
import math
import time

import jax
import jax.numpy as jnp

MFU_CONVENTION = (
    "MFU = model FLOPs per second / peak FLOPs per second. Model FLOPs: 6 per matmul weight and token (2 forward, "
    "4 backward; 2 backward where the weight is frozen; 2 in all for a reference model) plus attention with only the "
    "causal half counted; recomputed activations are not counted. Peak: the published dense bf16 rate times the number "
    "of devices, whatever the run's dtype; on CPUs and unknown devices the best rate of a large square matmul in the "
    "compute dtype, measured at start-up."
)

# (pattern for jax's device_kind, published dense bf16 FLOP/s per device); the first match wins. The rates come from the
# vendors' data sheets, without the factor of two for 2:4 sparsity that NVIDIA prints. A slice of a GPU (MIG) has no
# published rate, so it is measured.
DEVICE_FLOPS = (
    ("*MIG*", None),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5*", 459e12),  # v5p calls itself "TPU v5"
    ("TPU v6*", 918e12),  # v6e: "TPU v6 lite"
    ("*A100*", 312e12),
    ("*H100 PCIe*", 756.5e12),
    ("*H[12]00 NVL*", 835.5e12),
    ("*H[12]00*", 989.4e12),
    ("*GB200*", 2500e12),
    ("*B200*", 2250e12),
)


def flops_rate(device) -> float | None:
    """Returns the published dense bf16 peak of one `jax.Device` in FLOP/s, or None if it is not in the table."""
    return next((rate for pattern, rate in DEVICE_FLOPS if fnmatch.fnmatchcase(device.device_kind, pattern)), None)


@functools.partial(jax.jit, static_argnums=2)
def _chain(x_NN, w_NN, products):
    # A module-level function keeps the program alive: jaxlib 0.12 aborts if a program with oneDNN matmuls is freed
    # right after it ran.
    return functools.reduce(lambda x_NN, _: x_NN @ w_NN, range(products), x_NN)


def measure_matmul_rate(dtype, seconds: float = 0.5) -> float:
    """Returns the FLOP/s of a large square matmul in `dtype` on this process's first device.

    It is the best of as many calls as fit into `seconds` (at least three), because a peak is wanted and not a mean.
    Operands are random, because GPUs clock higher on zeros. The precision is jax's default, as in training.
    """
    device = jax.local_devices()[0]
    # Large enough that the rate no longer grows. Several matmuls per call hide the launch time on accelerators.
    size, products = (2048, 1) if device.platform == "cpu" else (8192, 8)

    # A mesh of one device: under the run's mesh every device would compute the whole matmul, and 8 fake CPU devices
    # would do so one after the other.
    with jax.set_mesh(jax.sharding.Mesh([device], ("one",))):
        x_NN = jax.random.normal(jax.random.key(0), (size, size), dtype)
        w_NN = x_NN / math.sqrt(size)  # unit variance in, unit variance out
        jax.block_until_ready(_chain(x_NN, w_NN, products))  # compile
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            jax.block_until_ready(_chain(x_NN, w_NN, products))
            times.append(time.perf_counter() - start)
    return 2 * size**3 * products / min(times)


def peak_flops(devices, dtype) -> tuple[float, str]:
    """Returns the peak FLOP/s of all `devices` together, and a text that says where the number comes from."""
    kind, count = devices[0].device_kind, len(devices)
    if (rate := flops_rate(devices[0])) is not None:
        return rate * count, f"{count} x {kind}, published bf16 peak {rate / 1e12:g} TFLOP/s each"
    if devices[0].platform == "cpu":  # the CPU devices of a process share its cores, so the rate counts per process
        count = len({device.process_index for device in devices})
    rate = measure_matmul_rate(dtype)
    return rate * count, f"{count} x {kind}, measured {jnp.dtype(dtype).name} matmul {rate / 1e9:,.0f} GFLOP/s each"


def model_flops_utilization(flops_per_token: float, tokens_per_second: float, peak: float) -> float:
    """Returns the MFU as a fraction. `tokens_per_second` and `peak` are totals over all devices."""
    return flops_per_token * tokens_per_second / peak
