"""Draws the plots of a report as inline SVG, without scripts: metrics over steps, and the load of experts."""

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# matplotlib draws in these placeholder colours. The page replaces them by CSS variables, so that plots follow the light
# and dark mode.
INK, GRID, TRAIN, VALIDATION, BAR = "#010101", "#020202", "#030303", "#040404", "#050505"
SEVERAL = (TRAIN, VALIDATION, "#060606", "#070707", "#080808", "#090909")  # of a plot's lines, in order
VARIABLES = {INK: "var(--muted)", GRID: "var(--line)", BAR: "var(--bar)"} | {
    color: f"var(--{name})"
    for color, name in zip(SEVERAL, ("accent", "second", "third", "fourth", "fifth", "sixth"), strict=True)
}


WIDE, NARROW = (9.6, 3.4), (4.3, 2.9)  # (width, height) in inches, of a plot alone and of one of two beside each other


def in_two_shapes(draw: Callable[[tuple[float, float]], str]) -> str:
    """Returns the plot `draw(size)` in two shapes, because a wide plot is unreadable on a phone."""
    return f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns an exponential moving average over about 3 % of the curve, over fewer points at its steep start. NaN is
    ignored."""
    mean, seen, result = math.nan, 0, np.full(values.shape, math.nan)
    for i, value in enumerate(values):
        if math.isfinite(value):
            mean = value if not seen else mean + (value - mean) / min(1 + 0.03 * values.size, 1 + 0.1 * seen)
            seen += 1
        result[i] = mean
    return result


def thin(steps: np.ndarray, values: np.ndarray, bins: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most 3 points per bin (the first and the extremes), so a long curve stays small and keeps spikes."""
    if values.size <= 3 * bins:
        return steps, values
    keep = []
    for part in np.array_split(np.arange(values.size), bins):
        order = part[np.argsort(values[part])]  # nan last
        keep += [part[0], order[0], order[max(np.isfinite(values[part]).sum() - 1, 0)]]
    kept = np.unique(keep)
    return steps[kept], values[kept]


class Series(NamedTuple):
    """A metric over the steps of a run, as (steps, values) each, float64."""

    line: tuple[np.ndarray, np.ndarray]  # of training
    dots: tuple[np.ndarray, np.ndarray]  # of evaluations

    def exists(self) -> bool:
        return bool(np.isfinite(self.line[1]).any() or np.isfinite(self.dots[1]).any())


def style(number: int) -> tuple[str, bool]:
    """Returns the colour of a plot's line of this number, from 0, and whether it is dashed."""
    return SEVERAL[number % len(SEVERAL)], number >= len(SEVERAL)


def curves(size, series: Sequence[Series], levels: Sequence[float] = (), log=False, smoothed=True) -> str:
    """Returns inline SVG of metrics over steps.

    Args:
      size: (width, height) in inches.
      series: at least one; one alone gets dots of another colour, and several have a colour each (`style`).
      levels: heights of dashed lines.
      log: whether the axis is logarithmic if the values span more than a factor of 4.
      smoothed: True draws lines thin, with a smoothed curve on top.
    """

    def paint(axes) -> None:
        for level in levels:
            axes.axhline(level, color=INK, lw=1, ls=(0, (4, 3)))
        for number, (line, dots) in enumerate(series):
            color, dashed = style(number)
            marker = "." if line[0].size == 1 else ""  # a line of one point would be invisible
            look: dict = {"color": color, "ls": (0, (3, 2)) if dashed else "-"}
            axes.plot(*thin(*line), lw=1 if smoothed else 1.6, alpha=0.4 if smoothed else 1, marker=marker, **look)
            if smoothed:
                axes.plot(*thin(line[0], smooth(line[1])), lw=1.6, **look)
            look["color"] = color if len(series) > 1 else VALIDATION
            axes.plot(*dots, lw=0.8, marker="o", ms=3.5 if dots[0].size < 60 else 2, **look)
        if log:
            scale(axes, "y", np.concatenate([levels, *(part[1] for one in series for part in one)]))
        axes.set_xlim(0, 1.02 * max(1, *(step for one in series for part in one for step in part[0])))
        axes.set_xlabel("step", color=INK)

    return svg(size, paint)


def scale(axes, name: str, values: np.ndarray) -> None:
    """Makes the axis 'x' or 'y' logarithmic if the finite `values` are positive and span more than a factor of 4."""
    from matplotlib.ticker import LogLocator, NullLocator

    values = values[np.isfinite(values)]
    if not values.size or values.min() <= 0 or (span := values.max() / values.min()) <= 4:
        return
    digits: tuple[float, ...] = (1, 1.5, 2, 3, 4, 5, 7) if span < 15 else (1, 2, 5) if span < 1000 else (1,)
    if name == "x":  # labels are side by side, so there is room for fewer
        digits = (1, 2, 5) if span < 15 else (1, 3) if span < 2000 else (1,)
    axis = getattr(axes, f"{name}axis")
    getattr(axes, f"set_{name}scale")("log")
    axis.set_major_formatter(_tick)
    axis.set_major_locator(LogLocator(subs=digits, numticks=12))
    axis.set_minor_locator(NullLocator())


def svg(size, paint, whole: bool = True) -> str:
    """Returns what `paint(axes)` draws, as inline SVG in the colours of VARIABLES.

    Args:
      size: (width, height) in inches.
      paint: draws on matplotlib axes.
      whole: whether the x axis has only whole numbers.
    """
    # Imported here, because the import takes half a second at the start of a training run. Figure has no global state.
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
        axes.xaxis.set_major_locator(MaxNLocator(size[0] + 1, integer=whole, steps=(1, 2, 5, 10), min_n_ticks=1))
        axes.xaxis.set_major_formatter(_tick)
        axes.yaxis.set_major_formatter(_tick)
        paint(axes)
        axes.grid(color=GRID, lw=0.7)
        axes.tick_params(length=0, colors=INK)
        axes.spines[:].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"|(?<=<g) id="[^"]*"', "", svg)  # HTML needs neither
    return re.sub("|".join(VARIABLES), lambda color: VARIABLES[color[0]], svg)


def _tick(value: float, _) -> str:
    unit, name = next(((10**e, name) for e, name in ((9, "B"), (6, "M"), (3, "k")) if abs(value) >= 10**e), (1, ""))
    return f"{value / unit:.4g}{name}".replace("e-0", "e-")


def loads(load_LE: np.ndarray) -> str:
    """Returns inline SVG with a row of squares per layer and a square per expert, darker the higher its load is.

    Args:
      load_LE: load as a multiple of an even share; 2 and more get the full colour.
    """
    layers, experts = load_LE.shape
    squares = "".join(
        f'<rect x="{e}.05" y="{layer}.05" width=".9" height=".9" fill-opacity="{min(load / 2, 1):.2f}"/>'
        for layer, row in enumerate(load_LE)
        for e, load in enumerate(row)
    )
    # A square is at most 28 pixels wide.
    return (
        f'<svg viewBox="0 0 {experts} {layers}" style="max-width:{28 * experts}px" fill="var(--accent)">{squares}</svg>'
    )
