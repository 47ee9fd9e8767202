"""A step compiled for a target that is not here, and what the compiled program says of itself.

libtpu and the CUDA plug-in compile for chips that are absent: a topology gives devices to make a mesh of, and a step is
lowered and compiled over abstract arrays. Where the compiler is not installed, a mesh of sizes alone
(jax.sharding.AbstractMesh) still lets the step be traced, and everything that types and shapes tell is known.
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

# XLA's GpuTargetConfigProto of an H100 (SXM5): limits of compute capability 9.0 from NVIDIA's CUDA programming guide,
# the card's own numbers from its data sheet; the cuDNN version that XLA may count on.
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
    """What to install."""


class OutOfMemory(Exception):
    """The program does not fit a chip; `needed` bytes of `limit`, 0 where the compiler's words do not say."""

    def __init__(self, words: str):
        self.needed, self.limit = _needed(words)
        super().__init__(words)


class Compiled(NamedTuple):
    text: str  # of the optimized program, of one device
    arguments: int  # bytes a device: state and batch
    peak: int  # bytes a device


def mesh(target: Target, shape: dict[str, int]) -> jax.sharding.Mesh:
    """A mesh over devices of the target.

    Raises:
      CompilerMissing: what compiles for it is not installed.
      ValueError: of axes.make_mesh.
    """
    return axes.make_mesh(shape, devices(target))


def abstract_mesh(target: Target, shape: dict[str, int]) -> AbstractMesh:
    """The same mesh without devices, for tracing alone."""
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
            if min(target.shape[:2]) < 2:  # less than the 2 x 2 chips that a host has else
                options["chips_per_host_bounds"] = [*(min(2, size) for size in target.shape[:2]), 1]
            if target.name == "v4":
                options["chip_config_name"] = "megacore"  # both cores of a chip as one device
            return list(topologies.get_topology_desc(f"{target.name}:{shape}", "tpu", **options).devices)
        jax.devices()  # registers the plug-in
        found = topologies.get_topology_desc(target.name, "cuda", target_config=_H100, topology=f"1x{shape}")
        return list(found.devices)
    except Exception as error:
        if "INVALID_ARGUMENT" in str(error):  # by the compiler, which is there
            raise TargetError(f"{target} is no topology: {str(error).splitlines()[0]}") from error
        what = "libtpu" if target.chip.platform == "tpu" else "the CUDA plug-in of jax"
        missing = re.search(r"libtpu|plugin|plug-in|not found|No module|not in|unknown backend|cuda", str(error), re.I)
        if missing is None:
            raise
        raise CompilerMissing(f"{what} is not installed ({str(error).splitlines()[0][:150]})") from error


def places(mesh: jax.sharding.Mesh, target: Target) -> list[Place]:
    """Where each device of a mesh stands, in the mesh's order."""
    if target.chip.platform == "tpu":
        return [Place(getattr(d, "slice_index", None) or 0, tuple(d.coords)) for d in mesh.devices.flat]
    size = target.shape[-1]
    order = {device: index for index, device in enumerate(sorted(mesh.devices.flat, key=lambda d: d.id))}
    return [Place(0, divmod(order[device], size)) for device in mesh.devices.flat]


def compiled(traced: jax.stages.Traced, platform: str) -> Compiled:
    """
    Raises:
      OutOfMemory: the compiler says so; compilers for GPUs do not, their peak may be more than there is.
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
    """Of `Compiled.memory_analysis()`: arguments, results, and all that lives between them.

    Of a TPU what is alive at once (with up to 0.1 GiB on the chip): programs fit whose block of temporaries, which has
    holes, would not. A GPU and a CPU reserve that block; what is said to be a CPU's peak leaves it out.
    """
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.peak_memory_in_bytes if platform == "tpu" else held + memory.temp_size_in_bytes


def bytes_per_device(tree: Any) -> float:
    """Of shapes with shardings: what one device holds of them."""
    return sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype) / 8
        for leaf in jax.tree.leaves(tree)
    )


def _needed(words: str) -> tuple[float, float]:
    """(bytes needed, bytes there are) in the words of TPU's compiler."""
    number = r"([\d.]+)([KMGT])"
    bytes_of = lambda value, unit: float(value) * 1024 ** ("KMGT".index(unit) + 1)
    if match := re.search(rf"Used {number} of {number} hbm", words):
        return bytes_of(*match.groups()[:2]), bytes_of(*match.groups()[2:])
    if match := re.search(rf"\({number}\) exceeds available HBM \({number}\)", words):
        return bytes_of(*match.groups()[:2]), bytes_of(*match.groups()[2:])
    return 0.0, 0.0
