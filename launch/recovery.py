"""What a run goes on from: its newest checkpoint whose files are as they were written. Others are set aside, in
WORKDIR/damaged, and never deleted. And a run that hangs is ended, so that it can go on."""

import contextlib
import datetime
import os
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from launch import distributed, processes
from launch.checking import ConfigError
from train import goodput, manifest, metrics
from train.phases import Phases, Watchdog

_DETERMINISTIC = ("--xla_gpu_exclude_nondeterministic_ops=true", "--xla_gpu_deterministic_ops=true")


def check(config: ConfigDict) -> None:
    """
    Raises:
      ConfigError: config.verify_checkpoints is no level of manifest.problems, or config.check_every would compare what
        this machine does not compute alike twice.
    """
    if config.verify_checkpoints not in manifest.LEVELS:
        raise ConfigError(
            f"config.verify_checkpoints is {config.verify_checkpoints!r}; choose from {', '.join(manifest.LEVELS)}"
        )
    flags = os.environ.get("XLA_FLAGS", "")
    if config.check_every and jax.default_backend() == "gpu" and not any(flag in flags for flag in _DETERMINISTIC):
        raise ConfigError(
            f"config.check_every computes a step twice, and XLA's programs for GPUs add in any order; set "
            f"XLA_FLAGS={_DETERMINISTIC[0]}, which makes some slower"
        )


def steps(workdir: Path) -> list[int]:
    """Of all folders that would be checkpoints, the newest first."""
    folders = (workdir / "checkpoints").glob("*")
    return sorted((int(path.name) for path in folders if path.name.isdecimal()), reverse=True)


def settle(workdir: Path, level: str) -> None:
    """Compare the newest checkpoint with its manifest, all processes a share of it; set it aside if it is damaged, and
    go on to the one before."""
    share = (jax.process_index(), jax.process_count())
    for step in steps(workdir):
        folder = workdir / "checkpoints" / str(step)
        found = distributed.gathered(f"checkpoint {step}", "\n".join(manifest.problems(folder, level, share)))
        lines = list(dict.fromkeys(line for part in found for line in part.splitlines()))
        if not lines:
            return
        place = _free(workdir / "damaged" / str(step))
        distributed.first_writes(place, lambda folder=folder, place=place: _move(folder, place))
        shown = "".join(f"\n  {line}" for line in lines[:10]) + ("\n  ..." if len(lines) > 10 else "")
        print(f"checkpoint {step} is damaged and was set aside as {place}:{shown}", flush=True)
    if (workdir / "damaged").exists():
        print("no good checkpoint is left: the run begins anew", flush=True)


def listed(workdir: Path, verify: bool) -> tuple[list[str], bool]:
    """(a table, a line each; whether every checkpoint is good)."""
    if not (workdir / "checkpoints").exists():
        raise ConfigError(f"{workdir} holds no checkpoints")
    lines, good, start, read = [f"{'step':>8}  {'size':>10}  {'written':<16}  health"], True, time.perf_counter(), 0
    for folder in sorted(workdir.glob("damaged/*")):
        lines.append(_line(folder, folder.name, "set aside"))
    for step in reversed(steps(workdir)):
        folder = workdir / "checkpoints" / str(step)
        found = manifest.problems(folder, "full" if verify else "sizes")
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


def earlier(workdir: Path, saved: Mapping, began: float) -> dict[str, float]:
    """What goodput.Goodput begins with: what the processes before this one have done, to their last sign of life.

    Args:
      saved: `loop` of the checkpoint to continue from, {} without one.  began: unix seconds.
    """
    rows = metrics.read(workdir / "metrics.jsonl")
    signs = [(row.get("wall") or row.get("event", {}).get("wall"), row["time"]) for row in rows]
    last, when = max((sign for sign in signs if sign[0]), key=lambda sign: goodput.total(sign[0]), default=({}, began))
    return goodput.continued(saved.get("wall", {}), last, began - when)


def _move(folder: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    folder.rename(place)


def _free(place: Path) -> Path:
    """The path, or with a number behind it if it is taken."""
    number = 2
    while place.exists():
        place, number = place.with_name(f"{place.name.split('.')[0]}.{number}"), number + 1
    return place
