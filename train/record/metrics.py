"""What a run says about itself while it runs: metrics.jsonl, TensorBoard events, the progress line.

    Writer    one JSON object a line in WORKDIR/metrics.jsonl and the same values as events in WORKDIR/tensorboard
    Progress  one live line on a terminal, one plain line a log anywhere else
    Clock     median seconds a step

Left out: which metrics there are and when (loop.py), event files (events.py), what the wall time goes into
(goodput.py), the report (report.py). Paths are local.
"""

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from rich.console import Console
from rich.live import Live
from rich.text import Text

from data import files
from train.record.appending import AppendedFile
from train.record.events import EventFile
from train.record.mfu import model_flops_utilization


class Clock:
    """Median seconds a step over the last `window` laps, without compilation, evaluation and saving.

        clock.lap(step)     at each log, after waiting for the step's result
        clock.skip(step)    after anything that is no step: the time since the last call doesn't count

    Waiting for every step would idle the device, so a lap usually spans several.
    """

    def __init__(self, step: int = 0, window: int = 20, now=time.perf_counter):
        self.now = now
        self.laps: deque[float] = deque(maxlen=window)
        self.skip(step)

    def skip(self, step: int):
        self.mark, self.step = self.now(), step

    def lap(self, step: int) -> float:
        """Records the steps since the last call and returns the median seconds a step."""
        elapsed, steps = self.now() - self.mark, step - self.step
        if steps > 0:
            self.laps.append(elapsed / steps)
        self.skip(step)
        return statistics.median(self.laps) if self.laps else math.nan


def read(path) -> list[dict]:
    """The lines of a metrics.jsonl as dicts. null becomes nan, so that every value is a number; a line that is cut
    off (the last one, while the run goes on) is left out; a missing file is an empty list."""
    path = Path(path)
    rows = map(_parse, path.read_bytes().splitlines()) if path.exists() else ()
    return [{key: math.nan if value is None else value for key, value in row.items()} for row in rows if row]


def _parse(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:  # also broken UTF-8
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


class Writer:
    """Appends to WORKDIR/metrics.jsonl and to event files in WORKDIR/tensorboard.

    `resume_step`: the step of the checkpoint that the run continues from (-1 when it starts over in a used workdir).
    Figures of later steps are dropped, since the run will write them again: each step stands once. What happened in
    them, the lines with an `event`, stays. With None nothing is dropped. Either way what a kill or a full disk broke in
    the middle of a line is removed.
    `enabled`: True on process 0 only. A writer that isn't enabled touches no file.
    """

    def __init__(self, workdir, resume_step: int | None = None, enabled: bool = True):
        self.enabled = enabled
        if not enabled:
            return
        path = Path(workdir) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._kept = _trim(path, resume_step)
        self.lines = AppendedFile(path)  # a line is one write: a reader sees it whole
        self.events = EventFile(path.parent / "tensorboard", None if resume_step is None else resume_step + 1)

    def write(self, step: int, values: Mapping[str, Any]):
        """One line {"step", "time" (unix seconds), **values}. JSON has no nan or infinity: they are written as null,
        and as what they are to TensorBoard, which gets no arrays and no dicts (of numbers). Arrays of one element are
        taken as numbers."""
        if not self.enabled:
            return
        now = time.time()
        dicts = {key: value for key, value in values.items() if isinstance(value, dict)}
        values = {key: value for key, value in values.items() if key not in dicts}
        numbers = {
            key: value if isinstance(value, int) else float(value)
            for key, value in values.items()
            if np.size(value) == 1
        }
        row = {key: np.asarray(value).round(4).tolist() for key, value in values.items() if key not in numbers}
        row |= {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        self._line({"step": int(step), "time": round(now, 3), **row, **dicts})
        self.events.write(int(step), now, numbers)

    def event(self, step: int, what: dict):
        """One line {"step", "time", "event": what}, of what is no figure: a decision, with its reasons. What a process
        before this one has kept of the same step in the same words is not repeated."""
        if self.enabled:
            plain = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in what.items()}
            if (step, plain) in self._kept:
                self._kept.remove((step, plain))
            else:
                self._line({"step": int(step), "time": round(time.time(), 3), "event": plain})

    def _line(self, row: dict):
        self.lines.write(json.dumps(row, allow_nan=False).encode() + b"\n")

    def flush(self):
        """Waits until everything is on disk. Not needed for others to read along: every write reaches the system.

        Raises:
          OSError: what waits for a disk that is full or read-only still can't be written.
        """
        for file in (self.lines, self.events.file) if self.enabled else ():
            file.sync()

    def close(self):
        """What can't be written is said: where that is an error, `flush` has raised it."""
        if self.enabled and not self.lines.closed:
            try:
                self.flush()
            except OSError as error:
                logging.error("%s", error)
            self.lines.close()
            self.events.file.close()


def _trim(path: Path, last_step: int | None) -> list[tuple[int, dict]]:
    """Rewrites a metrics.jsonl, atomically, without broken lines and without figures of steps after `last_step`;
    returns the events of these. A roll-back to one of them no longer counts, and goes too."""
    if not path.exists():
        if last_step is not None and last_step > 0:
            logging.warning("%s is missing: the curve begins after step %d", path, last_step)
        return []
    old = path.read_bytes()
    rows = [(line, _parse(line)) for line in old.splitlines() if line.strip()]
    if broken := sum(row is None for _, row in rows):
        logging.warning("%s: removed %d broken line(s)", path, broken)
    later = lambda row: last_step is not None and row["step"] > last_step
    counts = lambda row: "rolled_back" not in row["event"] or row["step"] <= max(last_step or 0, 0)
    stays = lambda row: not later(row) or ("event" in row and counts(row))
    new = b"".join(line + b"\n" for line, row in rows if row and stays(row))
    if new != old:
        files.replace(path, new.decode())
    return [(row["step"], row["event"]) for _, row in rows if row and later(row) and "event" in row]


class Progress:
    """The progress line. On a terminal one live line, anywhere else (a file, CI) one plain line an update.

    step 120/400  loss 3.412  ppl 30.3  12.3k tok/s  MFU 41 %  left 2:31  lr 8.1e-4

    `tokens_per_step` and `peak_flops` are of all devices together; without a peak there is no MFU. `perplexity`: the
    loss has one, that of a language model. Columns keep the width of the widest value so far. A terminal too narrow for
    all fields loses the first in `_DROP_FIRST`.
    """

    _DROP_FIRST = ("lr", "ppl", "MFU", "tok/s", "left", "loss")

    def __init__(
        self, total_steps, tokens_per_step, flops_per_token, peak_flops, start_step=0, console=None, perplexity=True
    ):
        self.total_steps, self.start_step, self.perplexity = total_steps, start_step, perplexity
        self.tokens_per_step, self.flops_per_token, self.peak_flops = tokens_per_step, flops_per_token, peak_flops
        self.console = console or Console()
        self.widths = {}
        # No refresh thread: the line is drawn when there is something new, so it neither flickers nor takes time.
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_interactive else None

    def __enter__(self):
        if self.live:
            self.live.start()
            self.live.update(_line({"step": f"{self.start_step}/{self.total_steps}", "compiling": "..."}), refresh=True)
        return self

    def __exit__(self, *_):
        if self.live:
            self.live.stop()

    def update(self, step: int, loss: float, learning_rate: float, seconds_per_step: float):
        """Shows the state after `step` steps; the time left is that of the steps left, at `seconds_per_step` each."""
        tokens_per_second = self.tokens_per_step / seconds_per_step if seconds_per_step > 0 else math.nan
        fields = {
            "step": f"{step:{len(str(self.total_steps))}}/{self.total_steps}",
            "loss": f"{loss:.3f}",
            "ppl": short(math.exp(min(loss, 700.0))) if self.perplexity else "",
            "tok/s": short(tokens_per_second) if math.isfinite(tokens_per_second) else "",  # nothing but compiling yet
            "MFU": "",
            "left": duration((self.total_steps - step) * seconds_per_step),
            "lr": f"{learning_rate:.1e}".replace("e-0", "e-").replace("e+00", ""),
        }
        if self.peak_flops and fields["tok/s"]:
            mfu = 100 * model_flops_utilization(self.flops_per_token, tokens_per_second, self.peak_flops)
            fields["MFU"] = f"{mfu:.{int(mfu < 9.95)}f} %"
        self.widths = {name: max(len(value), self.widths.get(name, 0)) for name, value in fields.items()}
        fields = {name: value.rjust(self.widths[name]) for name, value in fields.items() if value}
        if self.live:
            for name in self._DROP_FIRST:
                if _line(fields).cell_len > self.console.width:
                    fields.pop(name, None)
            self.live.update(_line(fields), refresh=True)
        else:
            self.console.print(_line(fields), soft_wrap=True)

    def message(self, text: str):
        """Prints a line above the progress line. Markup in it is not interpreted: it may be a sample of the model."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _line(fields: dict[str, str]) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for name, value in fields.items():
        parts = (value, (" " + name, "dim")) if name == "tok/s" else ((name + " ", "dim"), value)  # a unit comes last
        line.append_text(Text.assemble("  " if line else "", *parts))
    return line


def short(value: float) -> str:
    """Three significant digits: 8.21, 30.3, 512, 12.3k, 1.50M, 2.4e+16."""
    if not abs(value) < 999.5e12:  # so written, nan too
        return f"{value:.2g}"
    unit = 0
    while abs(value) >= 999.5:
        value, unit = value / 1000, unit + 1
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}{('', 'k', 'M', 'B', 'T')[unit]}"


def duration(seconds: float) -> str:
    """2:31, 1:02:31, 3d 04h; a dash while it isn't known."""
    if not math.isfinite(seconds):
        return "-"
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return clock if hours < 48 else f"{hours // 24}d {hours % 24:02}h"
