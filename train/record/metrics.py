"""Reports the progress of a run: metrics.jsonl, TensorBoard events and the progress line.

    Writer    one JSON object per line in WORKDIR/metrics.jsonl, and the same values as events in WORKDIR/tensorboard
    Progress  one live line on a terminal; elsewhere one plain line per update
    Clock     median seconds per step

Other files decide which metrics there are and when (loop.py), write event files (events.py), account for the wall time
(goodput.py) and write the report (report/run_report.py). Paths are local.
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
    """Measures the median seconds per step over the last `window` laps, without compilation, evaluation and saving.

        clock.lap(step)     at each log, after waiting for the step's result
        clock.skip(step)    after anything but a step; the time since the last call does not count

    Waiting for every step would leave the device idle, so a lap usually spans several steps.
    """

    def __init__(self, step: int = 0, window: int = 20, now=time.perf_counter):
        self.now = now
        self.laps: deque[float] = deque(maxlen=window)
        self.skip(step)

    def skip(self, step: int):
        self.mark, self.step = self.now(), step

    def lap(self, step: int) -> float:
        """Records the steps since the last call and returns the median seconds per step; NaN before the first lap."""
        elapsed, steps = self.now() - self.mark, step - self.step
        if steps > 0:
            self.laps.append(elapsed / steps)
        self.skip(step)
        return statistics.median(self.laps) if self.laps else math.nan


def read(path) -> list[dict]:
    """Returns the lines of a metrics.jsonl as dicts; [] if there is no file.

    null becomes NaN, so that every value is a number. Incomplete lines are skipped: the last line may be incomplete
    while the run writes it.
    """
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

    Lines that a kill or a full disk left incomplete are removed first.

    Args:
      resume_step: step of the checkpoint that the run continues from; -1 if it starts over in a used workdir. Metrics
        of later steps are removed, because the run will write them again and each step must appear once. Lines with an
        `event` stay. With None nothing is removed.
      enabled: True on process 0 only. A disabled writer touches no file.
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
        """Writes one line {"step", "time" (Unix seconds), **values}.

        JSON has no NaN or infinity, so these become null; TensorBoard gets them unchanged. TensorBoard gets no arrays
        and no dicts. Arrays with one element count as numbers.
        """
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
        row = {key: _finite(np.asarray(value).round(4).tolist()) for key, value in values.items() if key not in numbers}
        row |= {key: _finite(value) for key, value in numbers.items()}
        self._line({"step": int(step), "time": round(now, 3), **row, **dicts})
        self.events.write(int(step), now, numbers)

    def event(self, step: int, what: dict):
        """Writes one line {"step", "time", "event": what} for a decision and its reasons.

        An event that an earlier process already recorded for the same step with the same words is not repeated.
        """
        if self.enabled:
            plain = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in what.items()}
            if (step, plain) in self._kept:
                self._kept.remove((step, plain))
            else:
                self._line({"step": int(step), "time": round(time.time(), 3), "event": plain})

    def _line(self, row: dict):
        self.lines.write(json.dumps(row, allow_nan=False).encode() + b"\n")

    def flush(self):
        """Waits until everything is on disk. Other processes can read the lines without this.

        Raises:
          OSError: the disk is full or read-only, so some lines are still in memory.
        """
        for file in (self.lines, self.events.file) if self.enabled else ():
            file.sync()

    def close(self):
        """Closes the files. Lines that cannot be written are logged as an error; `flush` would raise it."""
        if self.enabled and not self.lines.closed:
            try:
                self.flush()
            except OSError as error:
                logging.error("%s", error)
            self.lines.close()
            self.events.file.close()


def _finite(value):
    """Returns a number or nested lists of numbers, with None in place of those that are not finite."""
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value if math.isfinite(value) else None


def _trim(path: Path, last_step: int | None) -> list[tuple[int, dict]]:
    """Rewrites a metrics.jsonl atomically, without incomplete lines and without metrics of steps after `last_step`.

    Returns the events of these steps. A roll-back to one of these steps no longer counts, so its event is removed too.
    """
    if not path.exists():
        if last_step is not None and last_step > 0:
            logging.warning("%s is missing; the new one begins after step %d", path, last_step)
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
    """The progress line: one live line on a terminal, one plain line per update anywhere else (a file, CI).

    step 120/400  loss 3.412  ppl 30.3  12.3k tok/s  MFU 41 %  left 2:31  lr 8.1e-4

    Columns keep the width of the widest value so far. If the terminal is too narrow, fields are dropped in the order of
    `_DROP_FIRST`.

    Args:
      total_steps: of the run.
      tokens_per_step, peak_flops: of all devices together. Without a peak no MFU is shown; with 0 tokens per step,
        which means that their number varies, no tokens per second.
      flops_per_token: model FLOPs.
      start_step: steps that were done before.
      console: where to print; tests pass their own.
      perplexity: whether the loss has a perplexity, which is true for language models.
      shown: further metrics to show.
    """

    _DROP_FIRST = ("lr", "ppl", "MFU", "tok/s", "left", "loss")

    def __init__(
        self,
        total_steps,
        tokens_per_step,
        flops_per_token,
        peak_flops,
        start_step=0,
        console=None,
        perplexity=True,
        shown: tuple[str, ...] = (),
    ):
        self.total_steps, self.start_step, self.perplexity, self.shown = total_steps, start_step, perplexity, shown
        self.tokens_per_step, self.flops_per_token, self.peak_flops = tokens_per_step, flops_per_token, peak_flops
        self.console = console or Console()
        self.widths: dict[str, int] = {}
        # Without a refresh thread the line is drawn only when there is something new: no flicker, and no time lost.
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_interactive else None

    def __enter__(self):
        if self.live:
            self.live.start()
            self.live.update(_line({"step": f"{self.start_step}/{self.total_steps}", "compiling": "..."}), refresh=True)
        return self

    def __exit__(self, *_):
        if self.live:
            self.live.stop()

    def update(
        self,
        step: int,
        loss: float,
        learning_rate: float,
        seconds_per_step: float,
        means: Mapping[str, Any] = {},
    ):
        """Shows the state after `step` steps. The time left is estimated from `seconds_per_step`."""
        tokens_per_second = self.tokens_per_step / seconds_per_step if seconds_per_step > 0 else math.nan
        fields = {
            "step": f"{step:{len(str(self.total_steps))}}/{self.total_steps}",
            "loss": f"{loss:.3f}",
            **{name: f"{means[name]:.3f}" for name in self.shown if name in means},
            "ppl": short(math.exp(min(loss, 700.0))) if self.perplexity else "",
            "tok/s": short(tokens_per_second) if tokens_per_second > 0 else "",  # NaN while compiling
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
        """Prints text above the progress line. Markup is not interpreted, because the model may have generated it."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _line(fields: dict[str, str]) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for name, value in fields.items():
        parts = (value, (" " + name, "dim")) if name == "tok/s" else ((name + " ", "dim"), value)  # a unit comes last
        line.append_text(Text.assemble("  " if line else "", *parts))
    return line


def short(value: float) -> str:
    """Formats a number with three significant digits: 8.21, 30.3, 512, 12.3k, 1.50M, 2.4e+16."""
    if not abs(value) < 999.5e12:  # written like this, it is true for NaN
        return f"{value:.2g}"
    unit = 0
    while abs(value) >= 999.5:
        value, unit = value / 1000, unit + 1
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}{('', 'k', 'M', 'B', 'T')[unit]}"


def duration(seconds: float) -> str:
    """Formats seconds: 2:31, 1:02:31, 3d 04h; a dash if they are not finite."""
    if not math.isfinite(seconds):
        return "-"
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return clock if hours < 48 else f"{hours // 24}d {hours % 24:02}h"
