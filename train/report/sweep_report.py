"""The results of a sweep: a table for the terminal and a self-contained sweep.html.

launch/sweeps/trials.py chooses and runs the trials; this file only reports them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from data import files
from train.report import sweep_plots
from train.report.web_page import page


@dataclass(frozen=True)
class Trial:
    """The current state of one trial."""

    number: int
    state: str  # complete, pruned, failed or unfinished
    parameters: Mapping
    values: Mapping[int, float]  # {step: value of the metric} of its evaluations
    lower: bool  # whether lower is better
    why: str = ""  # the reason why it failed

    @property
    def step(self) -> int | None:
        """The step of its best evaluation; None if no value was finite."""
        finite = {step: value for step, value in self.values.items() if math.isfinite(value)}
        return (min if self.lower else max)(finite, key=lambda step: finite[step]) if finite else None

    @property
    def value(self) -> float | None:
        return None if self.step is None else self.values[self.step]

    def outcome(self) -> str:
        figure = f"{self.value:.5g} at step {self.step}" if self.value is not None else "no value"
        if self.state == "pruned":
            return f"pruned after step {max(self.values)}, {figure}"
        return figure if self.state == "complete" else f"{self.state}, {figure}"


def ranked(rows: Sequence[Trial], lower: bool) -> list[Trial]:
    """Returns the trials, the best first: complete ones, then unfinished, then pruned, then failed ones."""

    def key(row: Trial):
        value = math.inf if row.value is None else row.value if lower else -row.value
        return ("complete", "unfinished", "pruned", "failed").index(row.state), value, row.number

    return sorted(rows, key=key)


def cells(rows: Sequence[Trial], metric: str, lower: bool) -> list[list[str]]:
    """Returns a table, header first: rank, trial, value, step, state, parameters. Only complete trials get a rank."""
    fields = list(dict.fromkeys(field for row in rows for field in row.parameters))
    table = [["rank", "trial", metric, "step", "state", *_short(fields)]]
    for rank, row in enumerate(ranked(rows, lower), 1):
        figures = ["–", "–"] if row.value is None else [f"{row.value:.5g}", str(row.step)]
        parameters = [show(row.parameters[field]) if field in row.parameters else "–" for field in fields]
        table.append([str(rank) if row.state == "complete" else "–", str(row.number), *figures, row.state, *parameters])
    return table


def table(rows: Sequence[Trial], metric: str, lower: bool) -> str:
    """Returns `cells` as lines of text, and the reasons why trials failed."""
    body = cells(rows, metric, lower)
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in body]
    return "\n".join([*lines, *(f"trial {row.number} failed: {row.why}" for row in rows if row.why)])


def write(
    workdir: Path, rows: Sequence[Trial], metric: str, lower: bool, kinds: Mapping[str, str], command: str
) -> Path:
    """Writes WORKDIR/sweep.html and returns its path.

    Args:
      kinds: {field: 'float', 'log', 'int' or 'choice'}.
      command: the command that trains the best trial again; '' if no trial is complete.
    """
    states = ("complete", "pruned", "failed", "unfinished")
    counts = {state: sum(row.state == state for row in rows) for state in states}
    above = f"{len(rows)} trials: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    sections = _head(rows, metric, lower, command) + _plots(rows, metric, lower, kinds) + _table(rows, metric, lower)
    written = "Written from sweep.db in the same folder."
    path = workdir / "sweep.html"
    files.replace(path, page(f"Sweep {workdir.name}", [above], sections, [written]))
    return path


def _head(rows: Sequence[Trial], metric: str, lower: bool, command: str) -> str:
    if not command:
        return '<section><p class="card">No trial is complete yet.</p></section>'
    best = ranked(rows, lower)[0]
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(show(best.parameters[field]))}</dd></div>"
        for field, name in zip(best.parameters, _short(list(best.parameters)), strict=True)
    )
    figure = f"""<small>Best {escape(metric)}, {"lower" if lower else "higher"} is better</small>
<div class="figure">{best.value:.5g}</div><small>trial {best.number}, step {best.step}</small>"""
    return f"""<section class="head"><div class="card">{figure}</div><dl class="card">{tiles}</dl></section>
<section><h2>Train the best again</h2><pre class="card">{escape(command)}</pre></section>"""


def _plots(rows: Sequence[Trial], metric: str, lower: bool, kinds: Mapping[str, str]) -> str:
    # A trial may have been interrupted before it got all its parameters.
    shown = [row for row in rows if set(kinds) <= set(row.parameters)]
    if not any(row.value is not None for row in shown):
        return ""
    best = ranked(shown, lower)[0].number
    marks = (
        '<i class="dot own"></i>complete',
        '<i class="dot ring"></i>pruned or unfinished',
        '<i class="dot"></i>best so far',
        f"{'▲' if lower else '▼'} beyond the edge",
        "× failed",
    )
    key = f'<span class="key">{"".join(f"<span>{mark}</span>" for mark in marks)}</span>'
    drawn = {f"Value of each trial{key}": sweep_plots.over_trials(shown, best, lower, metric)}
    for (field, kind), name in zip(kinds.items(), _short(list(kinds)), strict=True):
        drawn[escape(name)] = sweep_plots.over_parameter(shown, field, kind, best, lower)
    cards = "".join(f'<figure class="card"><h3>{title}</h3>{svg}</figure>' for title, svg in drawn.items())
    steps = f'<figure class="card"><h3>{escape(metric)} over steps</h3>{sweep_plots.over_steps(shown, best)}</figure>'
    return f"""<section><h2>Trials and parameters</h2><div class="plots">{cards}</div></section>
<section><h2>Evaluations</h2>{steps}</section>"""


def _table(rows: Sequence[Trial], metric: str, lower: bool) -> str:
    head, *body = ([escape(cell) for cell in row] for row in cells(rows, metric, lower))
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
    titles = "".join(f"<th>{cell}</th>" for cell in head)
    why = "".join(f"<p>Trial {row.number} failed: {escape(row.why)}</p>" for row in rows if row.why)
    card = f'<div class="card scroll"><table><tr>{titles}</tr>{lines}</table></div>'
    return f"<section><h2>All trials</h2>{card}{why}</section>"


def _short(fields: list[str]) -> list[str]:
    """Returns the last part of each name, or the whole name if the last part is not unique."""
    last = [field.rpartition(".")[2] for field in fields]
    return [name if last.count(name) == 1 else field for field, name in zip(fields, last, strict=True)]


def show(value) -> str:
    """Formats the value of a parameter; numbers get three digits."""
    return f"{value:.3g}".replace("e-0", "e-") if isinstance(value, float) else str(value)
