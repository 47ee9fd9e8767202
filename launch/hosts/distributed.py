"""Connects the processes of a run, and checks that they agree.

Every process runs the same command inside `joined`. Only process 0 writes to stdout. Errors and logs of every process
go to stderr, with a prefix that names the process and its host. launch/hosts/processes.py ends all when one ends.
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
    "Find the other processes in the environment of a TPU VM, Slurm, GKE or Open MPI. Default: on if variables of "
    "Slurm, Open MPI or a TPU pod show several processes. --nodistributed runs this process alone.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if the environment does not give it. Needs --processes and --process."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator: the number of processes.", lower_bound=1)
_PROCESS = flags.DEFINE_integer(
    "process", None, "With --coordinator: the index of this process, from 0.", lower_bound=0
)
_CONNECT_TIMEOUT = flags.DEFINE_integer("connect_timeout", 300, "Seconds to wait for all processes.", lower_bound=1)
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout",
    60,
    "Seconds without a heartbeat after which a process counts as lost, which ends the others.",
    lower_bound=5,
)

_NETWORK_DISK_SECONDS = 60  # within which a network file system must show a file that another host wrote
_DAY = 24 * 60 * 60 * 1000  # ms
_times: collections.Counter[tuple[str, str]] = collections.Counter()


@contextlib.contextmanager
def joined():
    """Connects the processes that the flags or the cluster name; inside, jax sees the devices of all of them.

    It must be entered before a device is used. An error inside ends all processes. For a single process it does
    nothing.

    Raises:
      ConfigError: a flag is missing, no cluster was found, or the coordinator can't be reached.
    """
    if not _connect():
        if jax.process_count() > 1:  # the runtime of a TPU pod finds the others by itself
            raise ConfigError(
                "this is one of several processes of a TPU pod, which must be connected; add --distributed"
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
    """Checks that this process is not one of several.

    Raises:
      ConfigError: flags or the cluster make it one of several.
    """
    if _COORDINATOR.value or _PROCESSES.value or (_clusters() if _DISTRIBUTED.value is None else _DISTRIBUTED.value):
        raise ConfigError(
            f"{program} runs its trials in one process; start it once, without --coordinator, --processes and "
            "--distributed, or with --nodistributed"
        )


def agree(what: str, value: str) -> None:
    """Waits until process 0 has called this too, and checks that it has the same `value`.

    Args:
      what: names the value, in the error and for the other processes.
      value: the same in all processes.

    Raises:
      ConfigError: process 0 has another value.
    """
    client, key = global_state.client, _key("agree", what)
    if client is None:
        return
    if jax.process_index() == 0:
        client.key_value_set(key, value)
    elif (there := client.blocking_key_value_get(key, _DAY)) != value:
        raise ConfigError(
            f"{what}: process 0 on {processes.host(0)} has {there}, but this process has {value}; all need "
            "the same command, the same files and one --workdir on a shared file system"
        )


def gathered(what: str, value: str) -> list[str]:
    """Returns the `value` of every process, in the order of processes."""
    client, key = global_state.client, _key("gathered", what)
    if client is None:
        return [value]
    client.key_value_set(f"{key}/{jax.process_index()}", value)
    return [client.blocking_key_value_get(f"{key}/{i}", _DAY) for i in range(jax.process_count())]


def meet(what: str, seconds: float) -> None:
    """Waits until all processes have called this (a barrier).

    Args:
      what: names what comes next, in the error and for the other processes.
      seconds: to wait at most.

    Raises:
      ProcessMissing: some processes did not call it in time.
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
                f"{what}: all processes wait for each other before it, and {names} did not arrive within "
                f"{seconds:,.0f} seconds (config.watchdog.barrier). The same command continues from the last checkpoint"
            ) from error


def _is_set(key: str) -> bool:
    try:
        processes.client().key_value_try_get(key)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def device_name(device: jax.Device) -> str:
    """Returns the name of a device of any process, with its process and host."""
    where = processes.host(device.process_index) if global_state.client else socket.gethostname()
    return f"{device.device_kind} {device.id} of process {device.process_index} on {where}"


def _key(verb: str, what: str) -> str:
    """Returns a key with a counter, because each key can be set only once."""
    _times[verb, what] += 1
    return f"{verb}/{what}/{_times[verb, what]}"


def first_writes(path: Path, write: Callable[[], None], where: str = "--workdir") -> None:
    """Calls `write`, which creates `path`, in process 0; the others wait until they see the path.

    Args:
      path, write: as above.
      where: the flag or field that names the folder, for the error.

    Raises:
      ConfigError: this process does not see it, so the file system is not shared.
    """
    if jax.process_index() == 0:
        write()
    agree(path.name, "")
    deadline = time.monotonic() + _NETWORK_DISK_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"process 0 on {processes.host(0)} wrote {path}, but this process can't see it; {where} must "
                "be on a file system that all processes share"
            )
        time.sleep(0.5)


def _connect() -> bool:
    """Connects to the other processes, if there are any; returns whether this process is one of several.

    Raises:
      ConfigError: as of `joined`.
    """
    given = {"--coordinator": _COORDINATOR.value, "--processes": _PROCESSES.value, "--process": _PROCESS.value}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        raise ConfigError(
            f"{', '.join(name for name in given if name not in missing)} without {', '.join(missing)}; give all three, "
            "or --distributed to read them from the cluster"
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
            raise ConfigError(f"--process {process} of --processes {count}; processes are counted from 0")
        where = dict(
            coordinator_address=coordinator,
            num_processes=count,
            process_id=process,
            cluster_detection_method="deactivate",
        )
    jax.config.update("jax_enable_recoverability", True)  # see launch/hosts/processes.py
    jax.config.update("jax_enable_preemption_service", True)  # forwards SIGTERM of one process to all (train/loop.py)
    if runtime.platform() == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    who = f"process {process} of {count}" if where else "a process"
    late = (
        f"error: {who} on {socket.gethostname()} could not connect to the others"
        f"{f' at --coordinator {coordinator}' if where else ''} within {_CONNECT_TIMEOUT.value} s "
        "(--connect_timeout). Check that every process runs, and that this host can reach process 0"
    )
    giving_up = threading.Timer(_CONNECT_TIMEOUT.value, lambda: processes.end(late))
    giving_up.start()
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=_CONNECT_TIMEOUT.value + 60,  # jax would abort; giving_up comes first
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT.value,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        if missing:
            raise ConfigError(
                f"--distributed: {reason} (no cluster was found, or its environment is incomplete); give "
                "--coordinator=HOST:PORT --processes=N --process=I"
            ) from error
        raise ConfigError(f"{who} could not start at --coordinator {coordinator}: {reason}") from error
    finally:
        giving_up.cancel()
    return global_state.num_processes > 1


def _clusters() -> bool:
    """Whether the environment variables of a cluster show that this process is one of several."""
    get = os.environ.get
    in_step = all(f"SLURM_{name}" in os.environ for name in ("JOB_ID", "STEP_NODELIST", "PROCID", "LOCALID"))
    hosts = get("TPU_PROCESS_ADDRESSES") or get("TPU_WORKER_HOSTNAMES") or ""
    counts = [get("SLURM_NTASKS", "1") if in_step else "1", get("OMPI_COMM_WORLD_SIZE"), get("MEGASCALE_NUM_SLICES")]
    return "," in hosts or any(int(count or 1) > 1 for count in counts)
