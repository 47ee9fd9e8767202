"""Draws the plots of a sweep's report as inline SVG: values over trials, over each parameter, and over steps.

Complete trials are dots and other trials are rings; the best one has another colour. Trials without a value are crosses
at the worse edge. Values far worse than most are arrows at that edge, so that good values are not squeezed together.
"""

from collections.abc import Sequence

import numpy as np

from train.report.plots import INK, NARROW, TRAIN, VALIDATION, in_two_shapes, scale, svg


def over_trials(rows: Sequence, best: int, lower: bool, metric: str) -> str:
    """Returns a plot of the value of every trial and the best value so far. `best` is the number of the best trial."""

    def paint(axes) -> None:
        complete = [row for row in rows if row.state == "complete"]
        if complete:
            so_far = (np.minimum if lower else np.maximum).accumulate([row.value for row in complete])
            numbers = [*(row.number for row in complete), max(row.number for row in rows)]
            axes.step(numbers, [*so_far, so_far[-1]], where="post", color=VALIDATION, lw=1.4)
        _dots(axes, rows, [row.number for row in rows], best, lower)
        axes.set_xlim(-0.5, max(row.number for row in rows) + 0.5)
        axes.set_xlabel("trial", color=INK)
        axes.set_ylabel(metric, color=INK)

    return in_two_shapes(lambda size: svg(size, paint))


def over_parameter(rows: Sequence, field: str, kind: str, best: int, lower: bool) -> str:
    """Returns a plot of the value of every trial over one parameter. `kind` is one of launch/sweeps/search.py."""
    values = [row.parameters[field] for row in rows]

    def paint(axes) -> None:
        if kind == "choice":
            choices = sorted(set(values), key=lambda value: (str(type(value)), value))
            # Shifted a little by trial number, so that trials with the same choice do not overlap.
            at = [choices.index(v) + 0.1 * (row.number % 5 - 2) for v, row in zip(values, rows, strict=True)]
            _dots(axes, rows, at, best, lower)
            axes.set_xticks(range(len(choices)), [str(choice) for choice in choices])
            axes.set_xlim(-0.5, len(choices) - 0.5)
        else:
            _dots(axes, rows, values, best, lower)
            if kind == "log":
                scale(axes, "x", np.asarray(values, float))

    return svg(NARROW, paint, whole=kind == "int")


def over_steps(rows: Sequence, best: int) -> str:
    """Returns a plot of the evaluations of every trial. The best trial has a strong line; pruned ones end in a ring."""

    def paint(axes) -> None:
        for row in sorted(rows, key=lambda row: row.number == best):  # the best one last, on top
            steps = sorted(row.values)
            own = row.number == best
            axes.plot(
                *(steps, [row.values[step] for step in steps]),
                color=VALIDATION if own else TRAIN,
                lw=1.8 if own else 1,
                alpha=1 if own else 0.35,
                marker="." if len(steps) == 1 else "",
            )
            if row.state == "pruned" and steps:
                axes.plot(steps[-1], row.values[steps[-1]], "o", ms=4, mfc="none", color=TRAIN, alpha=0.6)
        values = np.asarray([value for row in rows for value in row.values.values()])
        scale(axes, "y", values)
        axes.set_xlim(0)
        axes.set_xlabel("step", color=INK)

    return in_two_shapes(lambda size: svg(size, paint))


def _dots(axes, rows: Sequence, x: Sequence, best: int, lower: bool) -> None:
    values = np.asarray([np.nan if row.value is None else row.value for row in rows], float)
    low, high = limits(values[np.isfinite(values)], lower)
    for row, at, value in zip(rows, x, values, strict=True):
        if not np.isfinite(value):
            axes.plot(at, 0.97 if lower else 0.03, "x", ms=5, color=INK, transform=axes.get_xaxis_transform())
            continue
        outside = value > high or value < low
        marker = ("^" if value > high else "v") if outside else "o"
        color = VALIDATION if row.number == best else TRAIN
        face = "none" if row.state != "complete" else color
        axes.plot(at, min(max(value, low), high), marker, ms=7 if row.number == best else 5, color=color, mfc=face)
    margin = 0.06 * (high - low)
    axes.set_ylim(low - margin, high + margin)


def limits(values: np.ndarray, lower: bool) -> tuple[float, float]:
    """Returns the range of an axis: from the best value to the worst, but at most three times as far as the median."""
    if not values.size:
        return 0.0, 1.0
    signed = np.sort(values if lower else -values)
    far = signed[0] + 3 * (np.median(signed) - signed[0])
    ends = signed[0], max(min(signed[-1], far), signed[0] + 1e-6 * (1 + abs(signed[0])))
    return ends if lower else (-ends[1], -ends[0])
