"""What a run goes on from: its newest checkpoint whose files are as they were written. Others are set aside, in
WORKDIR/damaged, and never deleted. And a run that hangs is ended, so that it can go on."""

import contextlib
import datetime
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

_ROLL_BACKS = 3  # to one step


def check(config: ConfigDict) -> None:
    """
    Raises:
      ConfigError: a name is none of those that there are, or config.check_every would compare what this machine does
        not compute alike twice.
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
            f"config.check_every computes a step twice, and XLA's programs for GPUs add in any order; set "
            f"XLA_FLAGS={_DETERMINISTIC[0]}, which makes some slower"
        )


def settle(workdir: Path, level: str) -> list[dict]:
    """Compare the newest checkpoint with its manifest, all processes a share of it; set it aside if it is damaged, and
    go on to the one before. Returns what was set aside, and why.

    Raises:
      CheckpointError: one can't be read, or none that is good is left.
    """
    aside: list[dict] = []
    share = (jax.process_index(), jax.process_count())
    as_seen_by_first = distributed.gathered("checkpoints", json.dumps(workdirs.steps(workdir)))[0]
    for step in json.loads(as_seen_by_first):
        folder, place = workdir / "checkpoints" / str(step), str(_free(workdir / "damaged" / str(step)))
        try:
            mine = manifest.problems(folder, level, share)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename}: {error.strerror}. So it isn't known whether checkpoint {step} is good, and nothing "
                "was set aside; start again when it can be read"
            ) from error
        found = [json.loads(one) for one in distributed.gathered(f"checkpoint {step}", json.dumps([mine, place]))]
        lines = list(dict.fromkeys(line for part, _ in found for line in part))
        if not lines:
            return aside
        place = Path(found[0][1])
        distributed.first_writes(place, lambda folder=folder, place=place: _move(folder, place))
        shown = "".join(f"\n  {line}" for line in lines[:10]) + ("\n  ..." if len(lines) > 10 else "")
        print(f"checkpoint {step} is damaged and was set aside as {place}:{shown}", flush=True)
        aside.append({"set_aside": step, "why": lines[:10]})
    if (workdir / "damaged").exists():
        raise CheckpointError(
            f"no good checkpoint is left in {workdir}: all that there were are in {workdir / 'damaged'}. Bring one "
            "back into checkpoints/, or begin anew in another --workdir"
        )
    return aside


def listed(workdir: Path, verify: bool) -> tuple[list[str], bool]:
    """(a table, a line each; whether every checkpoint is good)."""
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
        if not folder.exists():  # the run goes on, and has just removed it
            continue
        health = "; ".join(found[:3]) + (f"; {len(found) - 3} more" if len(found) > 3 else "")
        whole = "every byte as written" if verify else "complete; --verify compares its bytes"
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
    """Inside, the watchdog of config.watchdog looks at the phases."""
    settings = config.watchdog.to_dict()
    settings.pop("barrier")
    with contextlib.ExitStack() as stack:
        if settings["seconds"]:
            stack.enter_context(Watchdog(phases, **settings, end=processes.end))
        yield


def earlier(rows: list[dict], saved: Mapping, began: float) -> dict[str, float]:
    """What goodput.Goodput begins with: what the processes before this one have done, to their last sign of life.

    Args:
      rows: of metrics.jsonl.
      saved: `loop` of the checkpoint to continue from, {} without one.  began: unix seconds.
    """
    signs = [(row.get("wall") or row.get("event", {}).get("wall"), row["time"]) for row in rows]
    last, when = max((sign for sign in signs if sign[0]), key=lambda sign: goodput.age(sign[0]), default=({}, began))
    return goodput.continued(saved.get("wall", {}), last, began - when)


def limit_roll_backs(rows: list[dict], step: int, back: RollBack) -> None:
    """
    Args:
      rows: of metrics.jsonl.

    Raises:
      TrainingStopped: the run was rolled back to this step often enough.
    """
    before = _roll_backs(rows, step)
    if len(before) >= _ROLL_BACKS:
        raise TrainingStopped(
            f"{back}; the run was rolled back to step {step} {len(before)} times before: look at the data from row "
            f"{before[0]['position']['next_row']:,} of the stream on (events in metrics.jsonl; --replay=STEP shows a "
            "step's), and start again with config.on_bad_steps=stop"
        )


def _roll_backs(rows: list[dict], step: int) -> list[dict]:
    return [row["event"] for row in rows if row["step"] == step and "rolled_back" in row.get("event", {})]


def position(rows: list[dict], step: int, saved: Mapping) -> dict | None:
    """Where the data go on after a step whose checkpoint was read: behind what a roll-back to it has left out.

    Args:
      rows, saved: as in `earlier`.
    """
    back = _roll_backs(rows, step)
    return back[-1]["position"] if back else saved.get("position")


def _move(folder: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    folder.rename(place)


def _free(place: Path) -> Path:
    """The path, or with a number behind it if it is taken."""
    number = 2
    while place.exists():
        place, number = place.with_name(f"{place.name.split('.')[0]}.{number}"), number + 1
    return place
