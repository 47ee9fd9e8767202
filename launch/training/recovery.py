"""Finds the checkpoint and the data position that a run continues from, and ends a run that hangs.

A run continues from its newest checkpoint whose files are as they were written. Damaged ones are moved to
WORKDIR/damaged and never deleted. A run that hangs is ended, so that it can be restarted.
"""

import contextlib
import datetime
import functools
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from launch.hosts import distributed, processes
from launch.program.checking import ConfigError
from launch.run import workdirs
from train.checkpoints import manifest
from train.checkpoints.checkpoint import CheckpointError
from train.loop import ON_BAD_STEPS, RollBack, TrainingStopped
from train.watch import goodput
from train.watch.phases import Phases, Watchdog

_DETERMINISTIC = ("--xla_gpu_exclude_nondeterministic_ops=true", "--xla_gpu_deterministic_ops=true")

_ROLL_BACKS = 3  # at most so many roll-backs to the same step


def check(config: ConfigDict) -> None:
    """Checks the fields of a config that are about recovery.

    Raises:
      ConfigError: a name is unknown, or config.check_every is set for a GPU whose programs are not deterministic.
    """
    if config.verify_checkpoints not in manifest.LEVELS:
        raise ConfigError(
            f"config.verify_checkpoints is {config.verify_checkpoints!r}; choose from {', '.join(manifest.LEVELS)}"
        )
    if config.on_bad_steps not in ON_BAD_STEPS:
        raise ConfigError(f"config.on_bad_steps is {config.on_bad_steps!r}; choose from {', '.join(ON_BAD_STEPS)}")
    flags = os.environ.get("XLA_FLAGS", "")
    if config.check_every and jax.default_backend() == "gpu" and not any(flag in flags for flag in _DETERMINISTIC):
        raise ConfigError(
            f"config.check_every is {config.check_every}, but it compares two runs of a step, and XLA's programs for "
            f"GPUs sum in any order; set XLA_FLAGS={_DETERMINISTIC[0]}, which makes some operations slower"
        )


def settle(workdir: Path, level: str) -> list[dict]:
    """Sets damaged checkpoints aside, from the newest on until one is intact.

    Each process compares a share of the checkpoint with its manifest, and process 0 moves damaged ones.

    Args:
      workdir: of the run.
      level: how much is compared, see manifest.problems.

    Returns:
      An event for metrics.jsonl for each checkpoint that was set aside: {"set_aside": step, "why": problems}.

    Raises:
      CheckpointError: a checkpoint can't be read, or no intact one is left.
    """
    aside: list[dict] = []
    share = (jax.process_index(), jax.process_count())
    # All processes use the list of process 0, because they may see different folders on a network file system.
    listed_by_first = distributed.gathered("checkpoints", json.dumps(workdirs.steps(workdir)))[0]
    for step in json.loads(listed_by_first):
        folder, free = workdir / "checkpoints" / str(step), str(_free(workdir / "damaged" / str(step)))
        try:
            mine = manifest.problems(folder, level, share)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename}: {error.strerror}. So it is unknown whether checkpoint {step} is intact, and "
                "nothing was set aside. Start again when the file can be read"
            ) from error
        found = [json.loads(one) for one in distributed.gathered(f"checkpoint {step}", json.dumps([mine, free]))]
        lines = list(dict.fromkeys(line for part, _ in found for line in part))
        if not lines:
            return aside
        place = Path(found[0][1])
        distributed.first_writes(place, functools.partial(_move, folder, place))
        shown = "".join(f"\n  {line}" for line in lines[:10]) + ("\n  ..." if len(lines) > 10 else "")
        print(f"checkpoint {step} is damaged and was set aside as {place}:{shown}", flush=True)
        aside.append({"set_aside": step, "why": lines[:10]})
    if (workdir / "damaged").exists():
        raise CheckpointError(
            f"no intact checkpoint is left in {workdir}; all are in {workdir / 'damaged'}. Move one back to "
            "checkpoints/, or start a new run in another --workdir"
        )
    return aside


def listed(workdir: Path, verify: bool) -> tuple[list[str], bool]:
    """Lists the checkpoints of a workdir, those that were set aside included.

    Args:
      workdir: of a run.
      verify: compare all bytes, not only names and sizes.

    Returns:
      (the lines of a table, whether all checkpoints that were not set aside are intact).

    Raises:
      ConfigError: there are no checkpoints.
    """
    if not (workdir / "checkpoints").exists():
        raise ConfigError(f"{workdir} holds no checkpoints")
    lines, good, start, read = [f"{'step':>8}  {'size':>10}  {'written':<16}  health"], True, time.perf_counter(), 0
    for folder in sorted(workdir.glob("damaged/*")):
        lines.append(_line(folder, folder.name, "set aside"))
    for step in reversed(workdirs.steps(workdir)):
        folder = workdir / "checkpoints" / str(step)
        try:
            found = manifest.problems(folder, "full" if verify else "sizes")
        except OSError as error:
            found = [f"can't be read: {error.strerror} ({error.filename})"]
        if not folder.exists():  # the run is still training, and has just removed it
            continue
        health = "; ".join(found[:3]) + (f"; {len(found) - 3} more" if len(found) > 3 else "")
        whole = "every byte as written" if verify else "complete; --verify compares all bytes"
        lines.append(_line(folder, str(step), health or whole))
        good, read = good and not found, read + manifest.size(folder)
    if verify:
        lines.append(f"read {_bytes(read)} in {time.perf_counter() - start:.2f} s")
    return lines, good


def _line(folder: Path, name: str, health: str) -> str:
    written = folder / manifest.NAME
    when = datetime.datetime.fromtimestamp((written if written.exists() else folder).stat().st_mtime)
    return f"{name:>8}  {_bytes(manifest.size(folder)):>10}  {when:%Y-%m-%d %H:%M}  {health}"


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


@contextlib.contextmanager
def watched(config: ConfigDict, phases: Phases):
    """Runs the watchdog of config.watchdog inside; it ends the process if a phase takes too long."""
    settings = config.watchdog.to_dict()
    settings.pop("barrier")
    with contextlib.ExitStack() as stack:
        if settings["seconds"]:
            stack.enter_context(Watchdog(phases, **settings, end=processes.end))
        yield


def earlier(rows: list[dict], saved: Mapping, began: float) -> dict[str, float]:
    """Returns the wall time of the run's earlier processes, which goodput.Goodput continues to count.

    An earlier process counts until the last row that it wrote; the time from then to `began` is between processes.

    Args:
      rows: of metrics.jsonl.
      saved: the `loop` of the checkpoint to continue from, {} without one.
      began: when this process began, in unix seconds.
    """
    signs = [(row.get("wall") or row.get("event", {}).get("wall"), row["time"]) for row in rows]
    last, when = max((sign for sign in signs if sign[0]), key=lambda sign: goodput.age(sign[0]), default=({}, began))
    return goodput.continued(saved.get("wall", {}), last, began - when)


def spelled(place: Mapping) -> str:
    """Returns a position of the data in words."""
    if "next_row" in place:
        return f"from row {place['next_row']:,} of the stream"
    return f"from step {place['made'] + 1} of round {place['round']} of rollouts"


def limit_roll_backs(rows: list[dict], step: int, back: RollBack) -> None:
    """Ends a run that is rolled back to the same step again and again.

    Args:
      rows: of metrics.jsonl.
      step: that the run is rolled back to.
      back: the roll-back.

    Raises:
      TrainingStopped: the run was already rolled back to this step 3 times.
    """
    before = _roll_backs(rows, step)
    if len(before) >= _ROLL_BACKS:
        raise TrainingStopped(
            f"{back}; the run was rolled back to step {step} {len(before)} times before. Look at the data "
            f"{spelled(before[0]['position'])} on (metrics.jsonl has the events, --replay=STEP shows the rows of a "
            "step), and start again with config.on_bad_steps=stop"
        )


def _roll_backs(rows: list[dict], step: int) -> list[dict]:
    return [row["event"] for row in rows if row["step"] == step and "rolled_back" in row.get("event", {})]


def position(rows: list[dict], step: int, saved: Mapping) -> dict | None:
    """Returns the data position after a checkpoint; if the run was rolled back to it, after the data that this skipped.

    Args:
      rows, saved: as in `earlier`.
      step: of the checkpoint.
    """
    back = _roll_backs(rows, step)
    return back[-1]["position"] if back else saved.get("position")


def _move(folder: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    folder.rename(place)


def _free(place: Path) -> Path:
    """Returns the path, with a number appended if it exists already."""
    number = 2
    while place.exists():
        place, number = place.with_name(f"{place.name.split('.')[0]}.{number}"), number + 1
    return place
