"""Where the wall time of a run goes, over all processes that have worked on it.

    step      training steps that were kept: the goodput is their share
    lost      steps that were done again, since a kill or a roll-back came before the next checkpoint
    compile, start, restore, data, evaluate, save, barrier, check, log    as the phases of the loop (phases.py)
    other     between them
    between   no process was there: not counted in the wall time

The seconds stand in metrics.jsonl, with each line that is logged, and in checkpoints; so what a process that was killed
had done by its last line is known. `data` and `save` are waiting: what runs behind steps costs nothing.
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


class Goodput:
    """
    Args:
      earlier: `wall()` of the processes before this one (`continued`).
    """

    def __init__(self, phases: Phases, earlier: Mapping[str, float]):
        self._phases, self._earlier = phases, earlier

    def wall(self) -> dict[str, float]:
        """Seconds by what they went into, and `starts`: how many processes there were."""
        seconds = self._phases.seconds()
        seconds["other"] = seconds.pop("", 0.0)
        names = sorted({*self._earlier, *seconds} - set(_APART))
        found = {name: round(self._earlier.get(name, 0.0) + seconds.get(name, 0.0), 3) for name in names}
        return found | {name: self._earlier[name] for name in _APART if name in self._earlier}


def continued(saved: Mapping[str, float], last: Mapping[str, float], between: float) -> dict[str, float]:
    """What the next process begins to count with.

    Args:
      saved: `wall()` in the checkpoint that it continues from, {} without one.
      last: `wall()` of the last sign of life, {} without one.
      between: seconds from then to the start of the process.
    """
    last = max(saved, last, key=age)
    found = {"starts": 0, "between": 0.0, **last}
    lost = max(last.get("step", 0.0) - saved.get("step", 0.0), 0.0)
    if lost:
        found |= {"step": last["step"] - lost, "lost": last.get("lost", 0.0) + lost}
    if last:
        found["between"] = round(found["between"] + max(between, 0.0), 3)
    return found | {"starts": found["starts"] + 1}


def rolled_back(saved: Mapping[str, float], last: Mapping[str, float]) -> dict[str, float]:
    """`continued` in the same process."""
    return continued(saved, last, between=0.0) | {"starts": last["starts"]}


def age(wall: Mapping[str, float]) -> tuple[float, float]:
    """By which of two the later one is found."""
    return total(wall), wall.get("starts", 0)


def total(wall: Mapping[str, float]) -> float:
    """Seconds of wall time in which there was a process."""
    return sum(seconds for name, seconds in wall.items() if name not in _APART)


def share(wall: Mapping[str, float]) -> float:
    """The goodput: from 0 to 1."""
    return wall.get("step", 0.0) / max(total(wall), 1e-9)


def parts(wall: Mapping[str, float]) -> dict[str, float]:
    """Seconds by name, the most first, without what rounds to nothing."""
    shown = {name: seconds for name, seconds in wall.items() if name not in _APART and seconds >= 0.05}
    return dict(sorted(shown.items(), key=lambda item: -item[1]))


def line(wall: Mapping[str, float]) -> str:
    """For a person, at the end."""
    seconds = ", ".join(f"{name} {spell(seconds)}" for name, seconds in parts(wall).items())
    return f"goodput {share(wall):.1%} of {spell(total(wall))}: {seconds}{restarts(wall, '; ')}"


def restarts(wall: Mapping[str, float], before: str = "") -> str:
    """How often the run was started, '' if once."""
    if wall.get("starts", 1) < 2:
        return ""
    return f"{before}{wall['starts']} starts, {spell(wall['between'])} between them"


def spell(seconds: float) -> str:
    """4.2 s, 2:31, 1:02:31"""
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


@contextlib.contextmanager
def counted(phases: Phases):
    """Inside, what jax compiles is counted as such."""

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event in _COMPILING and threading.current_thread() is threading.main_thread():
            phases.was_compiling(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
