"""The targets that a step can be planned for: accelerators, their published rates, and how chips are connected.

This file does not import jax, because a program reads the table before it decides how to start the process with jax.

Rates are those of one chip, as jax counts devices (a v4 or v5p chip is one device, its two cores together). Sources:

    [v4] [v5e] [v5p] [v6e]  docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e: key specifications
    [book]                  jax-ml.github.io/scaling-book, "How to Think About TPUs": bandwidth of a link, host networks
    [H100]                  NVIDIA's data sheet of the H100 (SXM5), and of the DGX H100 for its network

Memory is what a program may use. For a TPU it comes from the compiler's message about a program that does not fit
("exceeds the hbm capacity of 15.75G"); for a GPU it is the whole card as its driver reports it.
"""

import dataclasses
import math

GIB = 2**30


class TargetError(ValueError):
    """The target does not exist. The message says which ones do."""


@dataclasses.dataclass(frozen=True)
class Chip:
    platform: str  # as in model.axes.platform
    device_kind: str  # jax's name of the device
    memory: float  # bytes that a program may use
    flops: float = 0.0  # dense bfloat16 FLOP/s; 0: no published rate, so no time is estimated
    memory_bandwidth: float = 0.0  # bytes/s
    tile: int = 1  # side of the matrix unit; dims of matmuls are padded to multiples of it
    link: float = 0.0  # bytes/s in one direction: TPU: over one link to a neighbour; GPU: over all its links in a node
    network: float = 0.0  # bytes/s from one chip to other slices or nodes
    torus_dims: int = 0  # dims of a TPU slice; 0: every chip of a node reaches every other at the full rate
    ring: int = 0  # a dim of a slice closes to a ring if its size is a multiple of this
    pod: int = 0  # maximum chips per slice
    host: int = 1  # maximum GPUs per node


CHIPS = {
    "v4": Chip(
        "tpu",
        "TPU v4",
        memory=30.75 * GIB,  # of 32
        flops=275e12,  # [v4]
        memory_bandwidth=1200e9,  # [v4]
        tile=128,  # [v4] MXUs are 128 x 128
        link=45e9,  # [book]
        network=6.25e9,  # [book]
        torus_dims=3,
        ring=4,  # [v4] tori of multiples of 4
        pod=4096,
    ),
    "v5e": Chip(
        "tpu",
        "TPU v5 lite",
        memory=15.75 * GIB,  # of 16
        flops=197e12,  # [v5e]
        memory_bandwidth=819e9,  # [v5e]
        tile=128,  # [v5e]
        link=45e9,  # [book]; [v5e] 400 GB/s over 4 links both ways
        network=3.125e9,  # [v5e] two NICs of 100 Gb/s for the 8 chips of a host
        torus_dims=2,
        ring=16,  # [book] only a whole side of the pod
        pod=256,
    ),
    "v5p": Chip(
        "tpu",
        "TPU v5",
        memory=95.74 * GIB,
        flops=459e12,  # [v5p]
        memory_bandwidth=2765e9,  # [v5p]
        tile=128,  # [v5p]
        link=90e9,  # [book]; [v5p] 1200 GB/s over 6 links both ways
        network=6.25e9,  # [v5p] 50 Gb/s a chip
        torus_dims=3,
        ring=4,
        pod=6144,  # [v5p] the largest slice
    ),
    "v6e": Chip(
        "tpu",
        "TPU v6 lite",
        memory=31.25 * GIB,  # of 32
        flops=918e12,  # [v6e]
        memory_bandwidth=1638e9,  # [v6e]
        tile=256,  # [v6e] MXUs are 256 x 256
        link=90e9,  # [book]; [v6e] 800 GB/s over 4 links both ways
        network=12.5e9,  # [book]
        torus_dims=2,
        ring=16,
        pod=256,
    ),
    "h100": Chip(
        "gpu",
        "NVIDIA H100 80GB HBM3",
        memory=84_929_347_584,  # what the driver reports of 80 GB
        flops=989.4e12,  # [H100] without the factor of two for 2:4 sparsity
        memory_bandwidth=3352e9,  # [H100]
        tile=64,  # rows of one wgmma instruction
        link=450e9,  # [H100] NVLink: 900 GB/s both ways, through NVSwitch
        network=50e9,  # [H100] DGX: an adapter of 400 Gb/s a GPU
        host=8,
    ),
    "cpu": Chip("cpu", "cpu", memory=0.0),  # devices of one machine, which share its memory
}


@dataclasses.dataclass(frozen=True)
class Target:
    """The chips to plan for: `slices` slices of `shape`.

    `shape` has the dims of a TPU slice, (nodes, GPUs per node), or (devices,) of a CPU.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def devices(self) -> int:
        return math.prod(self.shape) * self.slices

    def __str__(self) -> str:
        text = f"{self.name}:{'x'.join(map(str, self.shape))}"
        return f"{self.slices} slices of {text}" if self.slices > 1 else text


def parse(text: str, slices: int = 1) -> Target:
    """Parses a target: 'v5p:4x4x4', 'v5e:4x4', 'h100:8' (one node), 'h100:4x8' (four nodes), 'cpu:8'.

    Raises:
      TargetError: the chip is unknown, or there is no such shape of it.
    """
    name, _, sizes = text.partition(":")
    if name not in CHIPS:
        raise TargetError(f"unknown target {text!r}; begin with {', '.join(CHIPS)}, as v5p:4x4x4, v5e:4x4, h100:8")
    chip = CHIPS[name]
    try:
        shape = tuple(int(size) for size in sizes.split("x"))
    except ValueError:
        shape = ()
    dims = {"tpu": chip.torus_dims, "gpu": 2, "cpu": 1}[chip.platform]
    if chip.platform == "gpu" and len(shape) == 1:
        shape = (1, *shape)
    if len(shape) != dims or min(shape) < 1:
        example = {"tpu": "x".join(["4"] * dims), "gpu": "8 for one node or 4x8 for four", "cpu": "8"}[chip.platform]
        raise TargetError(f"target {text!r}: after {name}: {dims} size{'s' * (dims > 1)}, as {name}:{example}")
    if chip.platform == "gpu" and shape[1] > chip.host:
        raise TargetError(f"target {text!r}: a node has at most {chip.host} GPUs; four nodes are {name}:4x{chip.host}")
    if chip.pod and math.prod(shape) > chip.pod:
        raise TargetError(f"target {text!r}: a slice of {name} has at most {chip.pod} chips; --slices makes several")
    if slices < 1 or (slices > 1 and chip.platform != "tpu"):
        raise TargetError(f"slices={slices}: only TPUs come in several slices; nodes of GPUs stand in the target")
    return Target(name, chip, shape, slices)
