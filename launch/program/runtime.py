"""Sets environment variables before jax is imported, and decides how a program ends.

Every program of launch/ begins with `from launch.program import runtime; runtime.configure(KIND)`. So this file imports
neither jax nor anything that imports jax.
"""

import ctypes
import difflib
import importlib.metadata
import importlib.util
import os
import re
import sys
import traceback
from pathlib import Path

# The variables that a program sets: (platform, kind of program, first jaxlib, variables). A variable that the user has
# set is kept; in _LISTS_OF_FLAGS, every flag that the user has set is kept. An unknown flag ends the program, so only
# flags that were seen to be accepted are listed: those for GPUs by jaxlib 0.10 and 0.12
# (tests/launch/program/test_runtime.py), those for TPUs by libtpu 0.0.42 and 0.0.50. The effects that the comments
# describe were seen in a layer scan compiled for a pod; no speed was measured.
ENVIRONMENT = (
    # oneDNN's matmuls use the CPU's matrix unit for bfloat16. The compilation cache can't store programs that call
    # oneDNN ("ToProto is not implemented"), so only training uses it, because it compiles once. oneDNN's own fusions
    # (--xla_cpu_experimental_onednn_fusion_type=dot) would be faster still, but their matmuls are wrong inside loops.
    (
        "cpu",
        "training",
        (0, 12),
        {
            "XLA_FLAGS": "--xla_cpu_use_onednn=true --xla_cpu_experimental_onednn_custom_call=true",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        },
    ),
    # Overlap communication with computation on TPUs: docs.jax.dev/en/latest/xla_flags.html,
    # openxla.org/xla/flags_guidance, MaxText's benchmarks/xla_flags_library.py. libtpu already does most of it by
    # default: the latency-hiding scheduler, asynchronous collectives, their fusion with computation on v5e, and
    # collective matmuls (steps of collective-permute). Other widely used flags are left to the user:
    #   xla_tpu_enable_async_collective_fusion and its relatives (continuation fusion): on by default on v5e. On other
    #     generations libtpu 0.0.50 refuses to compile with them, because results might be wrong.
    #   xla_tpu_enable_ici_ag_pipelining=true, with xla_should_allow_loop_variant_parameter_in_chain=ENABLED and
    #     xla_should_add_loop_invariant_op_in_chain=ENABLED: gathers the weights of a scan's next iteration during this
    #     one. That needed up to 50 % more memory.
    #   xla_tpu_scoped_vmem_limit_kib: scratch memory of a kernel; the best size differs by generation and model.
    (
        "tpu",
        "training",
        (0, 10),
        {
            "LIBTPU_INIT_ARGS": " ".join(
                (
                    # Overlaps the all-to-all of experts with computation (seen on v5e, not on v6e).
                    "--xla_tpu_enable_async_all_to_all=true",
                    # Multislice: overlaps the all-reduce of gradients over the slow network between slices with the
                    # backward pass (no difference was seen).
                    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
                    # The same if the results of a scan's iterations differ in size from the arrays that collect them.
                    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
                )
            ),
        },
    ),
    # The same on GPUs: docs.jax.dev/en/latest/gpu_performance_tips.html, docs.nvidia.com/jax-toolbox (GPU performance).
    # Programs were compiled by jaxlib 0.10 for 16 H100. With FSDP of 16, kernels ran between the start and the done of
    # 5 of 6 collectives without these flags, and of 13 of 13 with them, for 1 % more memory. With FSDP of 8 and tensor
    # parallelism of 2 it was 7 of 8 and 19 of 21, for 10 % more memory.
    # On by default: collectives on their own high-priority stream, and command buffers (CUDA graphs). Left to the user:
    # collective matmuls (xla_gpu_multi_streamed_windowed_einsum, xla_gpu_threshold_for_windowed_einsum_mib=0), matmuls
    # by cuBLAS only (xla_gpu_enable_triton_gemm=false), and settings that depend on the GPU and the network: NCCL's
    # variables, and CUDA_DEVICE_MAX_CONNECTIONS=1 (for Hopper, not for Blackwell).
    (
        "gpu",
        "training",
        (0, 10),
        {
            "XLA_FLAGS": " ".join(
                (
                    # Orders operations so that collectives overlap with computation (jaxlib 0.10's default).
                    "--xla_gpu_enable_latency_hiding_scheduler=true",
                    # In a scan over layers, start the collectives of an iteration during the previous one: the
                    # all-gather of FSDP's weights, the reduce-scatter of its gradients, and the all-reduce of data
                    # parallelism.
                    "--xla_gpu_enable_pipelined_all_gather=true",
                    "--xla_gpu_enable_pipelined_reduce_scatter=true",
                    "--xla_gpu_enable_pipelined_all_reduce=true",
                    # Unrolls that scan by two, so that pipelined arrays need no copies.
                    "--xla_gpu_enable_while_loop_double_buffering=true",
                    # Combines small collectives of FSDP up to 1 GiB, which is more than a layer of most models: a few
                    # large ones use the network better. All-reduces keep their low limit, because small ones overlap.
                    "--xla_gpu_all_gather_combine_threshold_bytes=1073741824",
                    "--xla_gpu_reduce_scatter_combine_threshold_bytes=1073741824",
                )
            ),
        },
    ),
)
_LISTS_OF_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")

# Settings of glibc's allocator: (parameter, value) of mallopt. By default it returns the gigabytes of a step's
# temporaries to the kernel and requests them again every step, and the kernel clears them page by page. So we use one
# heap, never mmap, and never return memory. The price is fragmentation: a process keeps up to about three times its
# largest temporary.
_ALLOCATOR = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}
_MADV_HUGEPAGE = 14


def configure(kind: str = "") -> None:
    """Applies the tables above, and turns on the compilation cache (in JAX_COMPILATION_CACHE_DIR).

    Args:
      kind: the kind of program, 'training' or ''.
    """
    os.environ.update(settings(platform(), kind))
    if platform() == "cpu" and importlib.util.find_spec("libtpu"):  # for launch.plan; without a TPU it prints warnings
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[2] / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if platform() == "cpu" and sys.platform == "linux":
        _configure_allocator()


def settings(platform: str, kind: str) -> dict[str, str]:
    """Returns the variables that ENVIRONMENT sets for this kind of program; the user's values are kept or merged."""
    jaxlib, found = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2]), {}
    for wanted_platform, wanted_kind, first, variables in ENVIRONMENT:
        if (wanted_platform, wanted_kind) == (platform, kind) and jaxlib >= first:
            for name, value in variables.items():
                mine = os.environ.get(name)
                found[name] = _merged(mine or "", value) if name in _LISTS_OF_FLAGS else value if mine is None else mine
    return found


def _merged(mine: str, ours: str) -> str:
    """Returns the user's flags, followed by those of ours that the user does not set."""
    names = {flag.split("=")[0] for flag in mine.split()}
    return " ".join([*mine.split(), *(flag for flag in ours.split() if flag.split("=")[0] not in names)])


def _configure_allocator() -> None:
    """Applies _ALLOCATOR, and asks for huge pages in the part of the heap that is not used yet."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return  # not glibc
    for parameter, value in _ALLOCATOR.values():
        libc.mallopt(parameter, value)
    libc.malloc.restype = ctypes.c_void_p
    # Half of the machine's memory. This reserves only address space; pages are allocated at their first use.
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    heap = libc.malloc(ctypes.c_size_t(size))
    if heap:
        start = (heap + (1 << 21) - 1) >> 21 << 21
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t((heap + size - start) >> 21 << 21), _MADV_HUGEPAGE)
        libc.free(ctypes.c_void_p(heap))


def platform() -> str:
    """Returns 'tpu', 'gpu' or 'cpu': what jax will probably use (a guess, because jax can't be imported yet)."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if wanted:
        first = wanted.split(",")[0]
        return "gpu" if first in ("cuda", "rocm", "gpu") else "tpu" if first == "tpu" else "cpu"
    if any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*")):
        return "tpu"
    return "gpu" if Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists() else "cpu"


def mistakes() -> tuple[type[Exception], ...]:
    """Returns the types of errors whose message is meant for the user."""
    from data.batch import DataError
    from launch.program.checking import ConfigError, ProcessMissing
    from model.interop.files.tensorfile import CheckpointFolderError
    from train.align.rewards.reward import RewardError
    from train.checkpoints.checkpoint import CheckpointError
    from train.early_stopping import UnknownMetric
    from train.loop import TrainingStopped
    from train.watch.silent_corruption import SilentCorruption

    of_data = (ConfigError, DataError, CheckpointError, CheckpointFolderError, UnknownMetric)
    return *of_data, RewardError, TrainingStopped, SilentCorruption, ProcessMissing


def words(error: BaseException) -> str | None:
    """Returns the message for the user of an error that is not a bug: a mistake of the user, or a disk that can't be
    written. Returns None for all other errors."""
    from data.stage import storage_problem

    if isinstance(error, mistakes()):
        return str(error)
    if isinstance(error, OSError) and (problem := storage_problem(error)):
        return f"{error.filename}: {error.strerror or problem}" if error.filename else str(error)
    return None


def _stuck() -> bool:
    """Whether threads of a failed save may be blocked forever; Python would join them at exit and never end."""
    checkpoint = sys.modules.get("train.checkpoints.checkpoint")
    return checkpoint is not None and checkpoint.Checkpoints.any_failed


def _leave(status: int) -> None:
    """Ends the process, without Python's cleanup if threads may be blocked forever."""
    sys.stdout.flush()
    if status == 130 or _stuck():
        os._exit(status)
    sys.exit(status)


def _mistake(error: Exception) -> str:
    """Returns what is wrong with the flags, or with the config file that they name."""
    words = str(error.args[-1] if error.args else error).strip()
    if len(words) > 1 and words[0] == words[-1] and words[0] in "'\"":  # a KeyError quotes its message
        words = words[1:-1]
    words = words.replace("\\n", ". ").replace("\\'", "'").strip()
    if absent := re.search(r"No such file or directory: '([^'\n]+\.py)", words):
        near = difflib.get_close_matches(absent[1], map(str, Path("configs").glob("*.py")), 1)
        return f"there is no config file {absent[1]}" + (f"; did you mean {near[0]}?" if near else "")
    if "get_config() takes 0 positional arguments" in words:
        file = re.search(r"--config=([^:\s]+):", words)
        return f"{file[1] if file else 'this config'} takes no argument: leave the colon and what follows it out"
    # A config file raises ValueError for its user; any other error is a bug in the file, and is shown in full.
    _, raised, reason = words.rpartition("\nValueError: ")
    where = traceback.extract_tb(error.__traceback__)[-1]
    if raised or not isinstance(error, KeyError | AttributeError):
        return reason if raised else words
    if "ml_collections" in where.filename:  # a flag names a field that the config does not have
        name, _, suggestion = words.removeprefix("'").partition("'")
        return f"the config has no field '{name}'{suggestion or '; flags can only change fields that it has'}"
    return f"{where.filename}, line {where.lineno}: {type(error).__name__}: {words}"


def run(main, arguments: bool = False) -> None:
    """Runs `main` like absl's app.run, but a user's mistake gives one clear line on stderr and exit status 1.

    Args:
      main: the program, without parameters.
      arguments: `main` gets the words that are no flags, as a list; other programs refuse them.
    """
    from absl import app, flags, logging

    def guarded(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax and tfds log each file that they open
        if len(argv) > 1 and not arguments:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; flags begin with --")
        try:
            main(argv[1:]) if arguments else main()
        except KeyboardInterrupt:  # the second one, or one before there was something to save
            print("interrupted", file=sys.stderr, flush=True)
            _leave(130)
        except Exception as error:
            message = words(error)
            text = "".join(traceback.format_exception(error)) if message is None else f"error: {message}\n"
            print(text, end="", file=sys.stderr, flush=True)
            _leave(1)
        if _stuck():
            _leave(0)

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
            if "config" in flags.FLAGS and flags.FLAGS.config is not None:
                flags.FLAGS.config.keys()  # ml_collections raises a failure to load the file only at its first use
            return rest
        except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError) as error:
            sys.exit(f"error: {_mistake(error)}")

    app.run(guarded, flags_parser=parse)
