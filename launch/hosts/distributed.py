"""Many processes as one run: how they find each other, and that they do the same.

Every process runs the same command, and `joined` makes them one. Process 0 alone writes to stdout; errors and logs go
to stderr from every process and say which one speaks, on which host.
What becomes of the others when one ends: launch/hosts/processes.py.
"""

import collections
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax._src.distributed import global_state  # the client has no public name; orbax reads it here too

from launch.hosts import processes
from launch.program import runtime
from launch.program.checking import ConfigError, ProcessMissing

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "Find the other processes in the environment of a TPU VM, Slurm, GKE or Open MPI. By default where variables of "
    "Slurm, Open MPI or a TPU pod show several processes; --nodistributed: this process is a run of its own.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT at which process 0 is reached, where no cluster says."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator: how many processes there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "With --coordinator: which one this is, from 0.", lower_bound=0)
_CONNECT_TIMEOUT = flags.DEFINE_integer("connect_timeout", 300, "Seconds to wait for all processes.", lower_bound=1)
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout", 60, "Seconds of silence after which a process is lost, and ends the others.", lower_bound=5
)

_NETWORK_DISK_SECONDS = 60  # after which a file that another host has made is seen
_DAY = 24 * 60 * 60 * 1000  # ms
_times: collections.Counter[tuple[str, str]] = collections.Counter()


@contextlib.contextmanager
def joined():
    """Inside, jax knows the devices of all processes that flags or the cluster name. To enter before the first use of a
    device. An error inside ends all processes; without several processes nothing changes.

    Raises:
      ConfigError: one flag without another, no cluster, or a coordinator that can't be reached.
    """
    if not _connect():
        if jax.process_count() > 1:  # a TPU pod's runtime knows that without being told
            raise ConfigError(
                "this is one of several processes of a TPU pod, which must know each other: --distributed"
            )
        yield
        return
    group = processes.Group(_HEARTBEAT_TIMEOUT.value)
    try:
        yield
    except BaseException as error:  # also what a second Ctrl-C raises
        group.fail(error)
    group.finish()


def refuse_several(program: str) -> None:
    """ConfigError where flags or the cluster would make this process one of several."""
    if _COORDINATOR.value or _PROCESSES.value or (_clusters() if _DISTRIBUTED.value is None else _DISTRIBUTED.value):
        raise ConfigError(
            f"{program} is one process: its trials are runs of their own. Start it once, without flags of several "
            "processes, or with --nodistributed"
        )


def agree(what: str, value: str) -> None:
    """Wait until process 0 has come here too, and check that it has the same `value`.

    Raises:
      ConfigError: it has another.
    """
    client, key = global_state.client, _key("agree", what)
    if client is None:
        return
    if jax.process_index() == 0:
        client.key_value_set(key, value)
    elif (there := client.blocking_key_value_get(key, _DAY)) != value:
        raise ConfigError(
            f"{what}: process 0 on {processes.host(0)} has {there}, this process has {value}; all need "
            "the same command, the same files and one --workdir on a file system that they share"
        )


def gathered(what: str, value: str) -> list[str]:
    """The `value` of every process, in their order."""
    client, key = global_state.client, _key("gathered", what)
    if client is None:
        return [value]
    client.key_value_set(f"{key}/{jax.process_index()}", value)
    return [client.blocking_key_value_get(f"{key}/{i}", _DAY) for i in range(jax.process_count())]


def meet(what: str, seconds: float) -> None:
    """Wait until all processes have come to this.

    Raises:
      ProcessMissing: some have not after so many seconds.
    """
    client, key = global_state.client, _key("meet", what)
    if client is None:
        return
    client.key_value_set(f"{key}/{jax.process_index()}", "")
    deadline = time.monotonic() + seconds
    for i in range(jax.process_count()):
        left = max(deadline - time.monotonic(), 0.001)
        try:
            client.blocking_key_value_get(f"{key}/{i}", int(1000 * left) + 1)
        except jax.errors.JaxRuntimeError as error:
            missing = [i for i in range(jax.process_count()) if not _is_set(f"{key}/{i}")]
            if not missing:
                return
            names = ", ".join(f"process {i} on {processes.host(i)}" for i in missing)
            raise ProcessMissing(
                f"{what}: all processes meet before it, and {names} did not come within {seconds:,.0f} seconds "
                "(config.watchdog.barrier). The same command continues from the last checkpoint"
            ) from error


def _is_set(key: str) -> bool:
    try:
        processes.client().key_value_try_get(key)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def device_name(device: jax.Device) -> str:
    """Of a device of any process."""
    where = processes.host(device.process_index) if global_state.client else socket.gethostname()
    return f"{device.device_kind} {device.id} of process {device.process_index} on {where}"


def _key(verb: str, what: str) -> str:
    """Of the n-th time that all processes come to this: a key is set once."""
    _times[verb, what] += 1
    return f"{verb}/{what}/{_times[verb, what]}"


def first_writes(path: Path, write: Callable[[], None]) -> None:
    """Process 0 calls `write`, which makes `path`; the others wait and check that they see it.

    Raises:
      ConfigError: they don't.
    """
    if jax.process_index() == 0:
        write()
    agree(path.name, "")
    deadline = time.monotonic() + _NETWORK_DISK_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"process 0 on {processes.host(0)} wrote {path}, which can't be seen here: --workdir must "
                "be on a file system that all processes share"
            )
        time.sleep(0.5)


def _connect() -> bool:
    """Whether this process is now one of several."""
    given = {"--coordinator": _COORDINATOR.value, "--processes": _PROCESSES.value, "--process": _PROCESS.value}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        raise ConfigError(
            f"{', '.join(name for name in given if name not in missing)} without {', '.join(missing)}; all three say "
            "where a process stands, and --distributed asks the cluster"
        )
    if missing and not (_clusters() if _DISTRIBUTED.value is None else _DISTRIBUTED.value):
        return False
    where: dict[str, Any] = {}
    coordinator, count, process = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    if coordinator is not None and count is not None and process is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"--coordinator {coordinator!r} is not HOST:PORT")
        if process >= count:
            raise ConfigError(f"--process {process} of --processes {count}: they count from 0")
        where = dict(
            coordinator_address=coordinator,
            num_processes=count,
            process_id=process,
            cluster_detection_method="deactivate",
        )
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_enable_preemption_service", True)  # by which a SIGTERM to one reaches all (train/loop.py)
    if runtime.platform() == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    who = f"process {process} of {count}" if where else "a process"
    late = (
        f"error: {who} on {socket.gethostname()} did not meet the others"
        f"{f' at --coordinator {coordinator}' if where else ''} within {_CONNECT_TIMEOUT.value} s "
        "(--connect_timeout). Does every process run, and can this host reach process 0?"
    )
    giving_up = threading.Timer(_CONNECT_TIMEOUT.value, lambda: processes.end(late))
    giving_up.start()
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=_CONNECT_TIMEOUT.value + 60,  # jax aborts then
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT.value,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        if missing:
            raise ConfigError(
                f"--distributed: {reason} (no cluster was found, or it does not say enough); name the processes by "
                "--coordinator=HOST:PORT --processes=N --process=I"
            ) from error
        raise ConfigError(f"{who} could not begin at --coordinator {coordinator}: {reason}") from error
    finally:
        giving_up.cancel()
    return global_state.num_processes > 1


def _clusters() -> bool:
    """Whether the environment shows that this process was started as one of several."""
    get = os.environ.get
    in_step = all(f"SLURM_{name}" in os.environ for name in ("JOB_ID", "STEP_NODELIST", "PROCID", "LOCALID"))
    hosts = get("TPU_PROCESS_ADDRESSES") or get("TPU_WORKER_HOSTNAMES") or ""
    counts = [get("SLURM_NTASKS", "1") if in_step else "1", get("OMPI_COMM_WORLD_SIZE"), get("MEGASCALE_NUM_SLICES")]
    return "," in hosts or any(int(count or 1) > 1 for count in counts)
