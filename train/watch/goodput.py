"""Accounts for the wall time of a run, over all processes that have worked on it.

    step      training steps that were kept; goodput is their share of the wall time
    rollouts  sampling and scoring of what the steps learn from, which counts as goodput too
    lost      steps and rollouts that had to be repeated, because a kill or a roll-back came before the next checkpoint
    compile, start, restore, data, evaluate, save, barrier, check, log    the phases of the loop (phases.py)
    other     time between phases
    between   time without a process, which is not part of the wall time

The seconds are written to metrics.jsonl with every logged line, and to checkpoints. So the time of a killed process is
known up to its last line. `data` and `save` count only waiting, because work behind steps costs no time.
"""

import contextlib
import threading
from collections.abc import Mapping

import jax

from train.record.metrics import duration
from train.watch.phases import Phases

_COMPILING = tuple(
    f"/jax/core/compile/{what}_duration" for what in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)
_APART = ("between", "starts")
_WORK = ("step", "rollouts")


class Goodput:
    """The wall time of a run, including earlier processes.

    Args:
      phases: of this process.
      earlier: seconds of the earlier processes, as returned by `continued`.
    """

    def __init__(self, phases: Phases, earlier: Mapping[str, float]):
        self._phases, self._earlier = phases, earlier

    def wall(self) -> dict[str, float]:
        """Returns the seconds by name, and `starts`, the number of processes so far."""
        seconds = self._phases.seconds()
        seconds["other"] = seconds.pop("", 0.0)
        names = sorted({*self._earlier, *seconds} - set(_APART))
        found = {name: round(self._earlier.get(name, 0.0) + seconds.get(name, 0.0), 3) for name in names}
        return found | {name: self._earlier[name] for name in _APART if name in self._earlier}


def continued(saved: Mapping[str, float], last: Mapping[str, float], between: float) -> dict[str, float]:
    """Returns the seconds that the next process starts to count from.

    Args:
      saved: `wall()` in the checkpoint that it continues from; {} without one.
      last: the last known `wall()` of the process before; {} without one.
      between: seconds from then to the start of the next process.
    """
    last = max(saved, last, key=age)
    found = {"starts": 0, "between": 0.0, **last}
    for name in _WORK:
        if (lost := last.get(name, 0.0) - saved.get(name, 0.0)) > 0:
            found |= {name: last[name] - lost, "lost": found.get("lost", 0.0) + lost}
    if last:
        found["between"] = round(found["between"] + max(between, 0.0), 3)
    return found | {"starts": found["starts"] + 1}


def rolled_back(saved: Mapping[str, float], last: Mapping[str, float]) -> dict[str, float]:
    """Like `continued`, but for a roll-back in the same process."""
    return continued(saved, last, between=0.0) | {"starts": last["starts"]}


def age(wall: Mapping[str, float]) -> tuple[float, float]:
    """Returns a key that orders two `wall()` by time."""
    return total(wall), wall.get("starts", 0)


def total(wall: Mapping[str, float]) -> float:
    """Returns the seconds in which a process existed."""
    return sum(seconds for name, seconds in wall.items() if name not in _APART)


def share(wall: Mapping[str, float]) -> float:
    """Returns the goodput, from 0 to 1."""
    return sum(wall.get(name, 0.0) for name in _WORK) / max(total(wall), 1e-9)


def parts(wall: Mapping[str, float]) -> dict[str, float]:
    """Returns the seconds by name, the longest first, without those that round to 0.0."""
    shown = {name: seconds for name, seconds in wall.items() if name not in _APART and seconds >= 0.05}
    return dict(sorted(shown.items(), key=lambda item: -item[1]))


def line(wall: Mapping[str, float]) -> str:
    """Returns one line of text for the end of a run."""
    seconds = ", ".join(f"{name} {spell(seconds)}" for name, seconds in parts(wall).items())
    return f"goodput {share(wall):.1%} of {spell(total(wall))}: {seconds}{restarts(wall, '; ')}"


def restarts(wall: Mapping[str, float], before: str = "") -> str:
    """Returns how often the run was started, as text; '' if once."""
    if wall.get("starts", 1) < 2:
        return ""
    return f"{before}{wall['starts']} starts, {spell(wall['between'])} between them"


def spell(seconds: float) -> str:
    """Formats seconds: 4.2 s, 2:31, 1:02:31."""
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


@contextlib.contextmanager
def counted(phases: Phases):
    """Inside this context, the time in which jax traces and compiles counts as compilation."""

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event in _COMPILING and threading.current_thread() is threading.main_thread():
            phases.was_compiling(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
