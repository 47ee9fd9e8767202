"""Compiles a step for chips that are not present, and reads memory use and text of the compiled program.

libtpu and the CUDA plug-in can compile for absent chips: a topology gives devices for a mesh, and a step is lowered and
compiled with abstract arrays. If the compiler is not installed, the step can still be traced over a mesh without
devices (jax.sharding.AbstractMesh), which gives everything that follows from types and shapes.
"""

import re
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType

from model import axes
from train.planning.estimate import Place
from train.planning.targets import Target, TargetError

# XLA's GpuTargetConfigProto for an H100 (SXM5). The limits of compute capability 9.0 come from NVIDIA's CUDA guide,
# and the numbers of the card from its data sheet. dnn_version_info is the cuDNN version that XLA may assume.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  device_memory_size: 84929347584
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class CompilerMissing(Exception):
    """The compiler for the target is not installed. The message says what to install."""


class OutOfMemory(Exception):
    """The program does not fit on a chip. It needs `needed` of `limit` bytes; 0 if unknown."""

    def __init__(self, words: str):
        self.needed, self.limit = _needed(words)
        super().__init__(words)


class Compiled(NamedTuple):
    text: str  # of the optimized program, of one device
    arguments: int  # bytes a device: state and batch
    peak: int  # bytes a device


def mesh(target: Target, shape: dict[str, int]) -> jax.sharding.Mesh:
    """Returns a mesh over the devices of the target.

    Raises:
      CompilerMissing: the target's compiler is not installed.
      ValueError: the shape does not fit the number of devices (axes.make_mesh).
    """
    return axes.make_mesh(shape, devices(target))


def abstract_mesh(target: Target, shape: dict[str, int]) -> AbstractMesh:
    """Returns the same mesh without devices, which is enough for tracing."""
    sizes = axes.mesh_sizes(shape, target.devices)
    device = jax.sharding.AbstractDevice(
        device_kind=target.chip.device_kind, num_cores=None, platform=target.chip.platform
    )
    types = (AxisType.Explicit,) * len(sizes)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=types, abstract_device=device)


def devices(target: Target) -> list:
    if target.chip.platform == "cpu":
        return jax.devices("cpu")[: target.devices]
    shape = "x".join(map(str, target.shape))
    try:
        if target.chip.platform == "tpu":
            options: dict[str, Any] = {"num_slices": target.slices} if target.slices > 1 else {}
            if min(target.shape[:2]) < 2:  # fewer than the usual 2 x 2 chips per host
                options["chips_per_host_bounds"] = [*(min(2, size) for size in target.shape[:2]), 1]
            if target.name == "v4":
                options["chip_config_name"] = "megacore"  # both cores of a chip as one device
            return list(topologies.get_topology_desc(f"{target.name}:{shape}", "tpu", **options).devices)
        jax.devices()  # registers the plug-in
        found = topologies.get_topology_desc(target.name, "cuda", target_config=_H100, topology=f"1x{shape}")
        return list(found.devices)
    except Exception as error:
        if "INVALID_ARGUMENT" in str(error):  # raised by the compiler, so it is installed
            raise TargetError(f"{target} is no topology: {str(error).splitlines()[0]}") from error
        what = "libtpu" if target.chip.platform == "tpu" else "the CUDA plug-in of jax"
        missing = re.search(r"libtpu|plugin|plug-in|not found|No module|not in|unknown backend|cuda", str(error), re.I)
        if missing is None:
            raise
        raise CompilerMissing(f"{what} is not installed ({str(error).splitlines()[0][:150]})") from error


def places(mesh: jax.sharding.Mesh, target: Target) -> list[Place]:
    """Returns the place of each device of a mesh, in the mesh's order."""
    if target.chip.platform == "tpu":
        return [Place(getattr(d, "slice_index", None) or 0, tuple(d.coords)) for d in mesh.devices.flat]
    size = target.shape[-1]
    order = {device: index for index, device in enumerate(sorted(mesh.devices.flat, key=lambda d: d.id))}
    return [Place(0, divmod(order[device], size)) for device in mesh.devices.flat]


def compiled(traced: jax.stages.Traced, platform: str) -> Compiled:
    """Returns the compiled program's text and memory use.

    Raises:
      OutOfMemory: the compiler reports it. GPU compilers do not; there the peak may exceed the chip's memory.
    """
    try:
        program = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error)) from error
        raise
    memory = program.memory_analysis()
    return Compiled(program.as_text(), memory.argument_size_in_bytes, peak_bytes(memory, platform))


def peak_bytes(memory: Any, platform: str) -> int:
    """Returns the peak bytes of a program by `Compiled.memory_analysis()`: arguments, results and temporaries.

    For a TPU it is the peak of bytes alive at once (including up to 0.1 GiB on the chip). The block of temporaries has
    holes, and programs can fit although their block would not. A GPU and a CPU reserve the whole block, so it counts;
    the peak that XLA reports for a CPU leaves it out.
    """
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.peak_memory_in_bytes if platform == "tpu" else held + memory.temp_size_in_bytes


def bytes_per_device(tree: Any) -> float:
    """Returns the bytes that one device holds of a tree of shapes with shardings."""
    return sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype) / 8
        for leaf in jax.tree.leaves(tree)
    )


def _needed(words: str) -> tuple[float, float]:
    """Returns (bytes needed, bytes available) from the TPU compiler's message; (0, 0) if it has neither."""
    number = r"([\d.]+)([KMGT])"
    bytes_of = lambda value, unit: float(value) * 1024 ** ("KMGT".index(unit) + 1)
    if match := re.search(rf"Used {number} of {number} hbm", words):
        return bytes_of(*match.groups()[:2]), bytes_of(*match.groups()[2:])
    if match := re.search(rf"\({number}\) exceeds available HBM \({number}\)", words):
        return bytes_of(*match.groups()[:2]), bytes_of(*match.groups()[2:])
    return 0.0, 0.0
