"""What must happen before jax is imported, and how a program ends. Imports neither jax nor anything that does.

Every file of launch/ begins with `from launch.program import runtime; runtime.configure(KIND)`.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from pathlib import Path

# What a program sets by itself: (platform, kind of program, first jaxlib, variables). A variable that the user has set
# stays as it is; of _LISTS_OF_FLAGS each flag does. An unknown flag ends the program, so a flag stands here only if it
# was seen to be accepted: those of GPUs by jaxlib 0.10 and 0.12 (tests/launch/program/test_runtime.py), those of TPUs
# by libtpu 0.0.42 and 0.0.50. No speed was measured: what is said of programs was seen in a layer scan compiled for a
# pod.
ENVIRONMENT = (
    # oneDNN's products: bfloat16 in the matrix unit. Programs with them cannot be kept in the compilation cache
    # ("ToProto is not implemented"), so they are for training, which compiles once. Not in fusions of its own, which
    # would be quicker still (--xla_cpu_experimental_onednn_fusion_type=dot): in loops they give wrong products.
    (
        "cpu",
        "training",
        (0, 12),
        {
            "XLA_FLAGS": "--xla_cpu_use_onednn=true --xla_cpu_experimental_onednn_custom_call=true",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        },
    ),
    # Communication behind computation, on TPUs: docs.jax.dev/en/latest/xla_flags.html, openxla.org/xla/flags_guidance,
    # MaxText's benchmarks/xla_flags_library.py. Most of it libtpu does by itself: the scheduler that hides latency,
    # asynchronous collectives, on v5e their fusion with computation, collective matmuls (steps of collective-permute).
    # What is widely set besides is left to the user:
    #   xla_tpu_enable_async_collective_fusion and its kin (continuation fusion): for v5e, where they are on. Elsewhere
    #     libtpu 0.0.50 refuses to compile with them, as results might be wrong.
    #   xla_tpu_enable_ici_ag_pipelining=true, with xla_should_allow_loop_variant_parameter_in_chain and
    #     xla_should_add_loop_invariant_op_in_chain =ENABLED: gather the weights of a scan's next iteration in this one.
    #     That took up to half as much memory again.
    #   xla_tpu_scoped_vmem_limit_kib: scratch memory of a kernel; the best size differs by generation and model.
    (
        "tpu",
        "training",
        (0, 10),
        {
            "LIBTPU_INIT_ARGS": " ".join(
                (
                    # The all-to-all of experts while something else computes (seen on v5e, not on v6e).
                    "--xla_tpu_enable_async_all_to_all=true",
                    # Multislice: sums of gradients over the slow network between slices while the backward pass goes
                    # on (no difference was seen), ...
                    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
                    # ... also where the results of a scan's iterations differ in size from what they go into.
                    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
                )
            ),
        },
    ),
    # The same on GPUs: docs.jax.dev/en/latest/gpu_performance_tips.html, docs.nvidia.com/jax-toolbox (GPU performance).
    # Compiled by jaxlib 0.10 for 16 H100 (FSDP of 16), 5 of 6 collectives had kernels between their start and done
    # without these flags, and 13 of 13 with them, at 1 % more memory; with FSDP of 8 and tensor parallelism of 2, 7 of
    # 8 and 19 of 21, at 10 %.
    # On already: collectives on a stream of their own with priority, command buffers (CUDA graphs). Left to the user:
    # collective matmuls (xla_gpu_multi_streamed_windowed_einsum, xla_gpu_threshold_for_windowed_einsum_mib=0), cuBLAS
    # alone for products (xla_gpu_enable_triton_gemm=false), and what differs by GPU and network: NCCL's variables, and
    # CUDA_DEVICE_MAX_CONNECTIONS=1 (for Hopper, not for Blackwell).
    (
        "gpu",
        "training",
        (0, 10),
        {
            "XLA_FLAGS": " ".join(
                (
                    # Order operations so that collectives run while something else computes (jaxlib 0.10's default).
                    "--xla_gpu_enable_latency_hiding_scheduler=true",
                    # In a scan over layers, begin an iteration's collectives in the one before: the weights that FSDP
                    # gathers, the gradients that it scatters, the sums of data parallelism.
                    "--xla_gpu_enable_pipelined_all_gather=true",
                    "--xla_gpu_enable_pipelined_reduce_scatter=true",
                    "--xla_gpu_enable_pipelined_all_reduce=true",
                    # Unroll that scan by two, so that what is pipelined needs no copies.
                    "--xla_gpu_enable_while_loop_double_buffering=true",
                    # Join small collectives of FSDP up to 1 GiB, more than a layer of most models: the network is used
                    # better by few and large ones. All-reduces keep their small limit, by which they overlap.
                    "--xla_gpu_all_gather_combine_threshold_bytes=1073741824",
                    "--xla_gpu_reduce_scatter_combine_threshold_bytes=1073741824",
                )
            ),
        },
    ),
)
_LISTS_OF_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")

# glibc's allocator. A step's temporaries are gigabytes that it would hand back to the kernel and ask for again at every
# step, to be cleared page by page; so: one heap, nothing mapped on the side, nothing handed back. The price is holes: a
# process keeps up to about three times its largest temporary. (parameter, value)
_ALLOCATOR = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}
_MADV_HUGEPAGE = 14


def configure(kind: str = "") -> None:
    """Apply the tables above to a program of this kind ('training' or ''), and keep compiled programs between runs
    (JAX_COMPILATION_CACHE_DIR says where)."""
    os.environ.update(settings(platform(), kind))
    if platform() == "cpu" and importlib.util.find_spec("libtpu"):  # there to plan: without a TPU it would complain
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[2] / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if platform() == "cpu" and sys.platform == "linux":
        _configure_allocator()


def settings(platform: str, kind: str) -> dict[str, str]:
    """The variables of the tables above for a program of this kind, the user's own kept or merged."""
    jaxlib, found = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2]), {}
    for wanted_platform, wanted_kind, first, variables in ENVIRONMENT:
        if (wanted_platform, wanted_kind) == (platform, kind) and jaxlib >= first:
            for name, value in variables.items():
                mine = os.environ.get(name)
                found[name] = _merged(mine or "", value) if name in _LISTS_OF_FLAGS else value if mine is None else mine
    return found


def _merged(mine: str, ours: str) -> str:
    """A list of flags: the user's, then those of ours that the user does not set."""
    names = {flag.split("=")[0] for flag in mine.split()}
    return " ".join([*mine.split(), *(flag for flag in ours.split() if flag.split("=")[0] not in names)])


def _configure_allocator() -> None:
    """Apply the table above, and ask for huge pages in the part of the heap that is yet to grow."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return  # not glibc
    for parameter, value in _ALLOCATOR.values():
        libc.mallopt(parameter, value)
    libc.malloc.restype = ctypes.c_void_p
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # address space; memory is taken when used
    heap = libc.malloc(ctypes.c_size_t(size))
    if heap:
        start = (heap + (1 << 21) - 1) >> 21 << 21
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t((heap + size - start) >> 21 << 21), _MADV_HUGEPAGE)
        libc.free(ctypes.c_void_p(heap))


def platform() -> str:
    """'tpu', 'gpu' or 'cpu': what jax will find, as far as that shows without importing it."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if wanted:
        first = wanted.split(",")[0]
        return "gpu" if first in ("cuda", "rocm", "gpu") else "tpu" if first == "tpu" else "cpu"
    if any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*")):
        return "tpu"
    return "gpu" if Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists() else "cpu"


def mistakes() -> tuple[type[Exception], ...]:
    """The errors whose text is meant for the user."""
    from data.batch import DataError
    from launch.program.checking import ConfigError, ProcessMissing
    from model.interop.files.tensorfile import CheckpointFolderError
    from train.checkpoints.checkpoint import CheckpointError
    from train.early_stopping import UnknownMetric
    from train.loop import TrainingStopped
    from train.watch.silent_corruption import SilentCorruption

    of_data = (ConfigError, DataError, CheckpointError, CheckpointFolderError, UnknownMetric)
    return *of_data, TrainingStopped, SilentCorruption, ProcessMissing


def words(error: BaseException) -> str | None:
    """What a user is told of an error that is no bug: a mistake, or a disk that can't be written; None of others."""
    from data.stage import storage_problem

    if isinstance(error, mistakes()):
        return str(error)
    if isinstance(error, OSError) and (problem := storage_problem(error)):
        return f"{error.filename}: {error.strerror or problem}" if error.filename else str(error)
    return None


def _stuck() -> bool:
    """Whether threads may wait for good, which Python would wait for at its end."""
    checkpoint = sys.modules.get("train.checkpoints.checkpoint")
    return checkpoint is not None and checkpoint.Checkpoints.any_failed


def _leave(status: int) -> None:
    """End the process, at once where threads wait for good."""
    sys.stdout.flush()
    if status == 130 or _stuck():
        os._exit(status)
    sys.exit(status)


def run(main) -> None:
    """absl's app.run, but a user's mistake ends in one clear line on stderr and exit status 1."""
    from absl import app, flags, logging

    def guarded(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax and tfds log each file that they open
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; flags begin with --")
        try:
            main()
        except KeyboardInterrupt:  # a second one, or before there was something to save
            print("interrupted", file=sys.stderr, flush=True)
            _leave(130)
        except Exception as error:
            said = words(error)
            text = "".join(traceback.format_exception(error)) if said is None else f"error: {said}\n"
            print(text, end="", file=sys.stderr, flush=True)
            _leave(1)
        if _stuck():
            _leave(0)

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
            if "config" in flags.FLAGS and flags.FLAGS.config is not None:
                flags.FLAGS.config.keys()  # a file that could not be loaded says so at its first use
            return rest
        except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError) as error:
            words = str(error.args[-1] if error.args else error).strip("'\" \n")
            words = words.replace("\\n", ". ").replace("\\'", "'")  # a KeyError quotes what it says
            # What a config file raises as ValueError is meant for its user; anything else is a bug in it, shown whole.
            _, raised, reason = words.rpartition("\nValueError: ")
            where = traceback.extract_tb(error.__traceback__)[-1]
            if isinstance(error, KeyError | AttributeError) and not raised:
                if "ml_collections" in where.filename:  # a flag for what is not there
                    name, _, suggestion = words.removeprefix("'").partition("'")
                    words = f"the config has no field '{name}'{suggestion or ': flags change what it sets'}"
                else:
                    words = f"{where.filename}, line {where.lineno}: {type(error).__name__}: {words}"
            sys.exit(f"error: {reason if raised else words}")

    app.run(guarded, flags_parser=parse)
