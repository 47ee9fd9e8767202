"""The curves of a run's report: those that its objective declares, then those of the optimizer and the machine."""

from html import escape

import numpy as np

from train.objectives import objective
from train.objectives.objective import Curve
from train.report import plots
from train.report.recorded import HELD_OUT, Recorded
from train.report.web_page import figure

_ALL = (
    Curve(("learning_rate",), "Learning rate", smooth=False),
    Curve(("grad_norm",), "Gradient norm", log=True),
    Curve(("tokens_per_second",), "Tokens per second", log=True),
)


def section(run: Recorded) -> str:
    drawn: list[str] = []
    for curve in (*run.objective.curves, *_ALL):
        if card := _card(run, curve, first=not drawn):
            drawn.append(card)
    if not drawn or not run.names:
        return "<section><h2>Curves</h2><p class=card>No metrics yet.</p></section>"
    return f'<section><h2>Curves</h2><div class="plots">{"".join(drawn)}</div></section>'


def _card(run: Recorded, curve: Curve, first: bool) -> str:
    """Returns a plot with its title, legend and meaning; '' if the run has none of its metrics."""
    names = [name for metric in curve.metrics for name in objective.family(metric, run.names)]
    found = {name: plots.Series(run.series(name), run.series(HELD_OUT + name)) for name in names}
    found = {name: one for name, one in found.items() if one.exists()}
    if not found:
        return ""
    levels = run.baselines(curve.baselines)
    draw = lambda size: plots.curves(size, list(found.values()), list(levels.values()), curve.log, curve.smooth)
    svg = plots.in_two_shapes(draw) if first else draw(plots.NARROW)
    words = curve.meaning
    if not words and len(curve.metrics) == 1:
        words = objective.meaning(curve.metrics[0], run.objective.meanings)
    key = _key(curve, found, levels, first)
    return figure(curve.title, key, words, svg)


def _key(curve: Curve, found: dict[str, plots.Series], levels: dict[str, float], first: bool) -> str:
    """Returns the legend. Several metrics differ in colour; of a single one, the line and the dots do."""
    dots = any(np.isfinite(one.dots[1]).any() for one in found.values())
    lines = any(np.isfinite(one.line[1]).any() for one in found.values())
    several = len(curve.metrics) > 1 or curve.metrics[0].endswith("/*")
    parts = []
    if several:
        prefix = {metric[:-1] for metric in curve.metrics if metric.endswith("/*")}
        short = lambda name: next((name.removeprefix(one) for one in prefix if name.startswith(one)), name)
        for number, name in enumerate(found):
            color, dashed = plots.style(number)
            look = f'class="{"dash" if dashed else ""}" style="background-color:{plots.VARIABLES[color]}"'
            parts.append(f"<i {look}></i>{escape(short(name).replace('_', ' '))}")
        parts += ['<i class="dot ink"></i>validation'] if dots and lines else []
    else:
        parts += ['<i class="thin"></i>train', "<i></i>smoothed"] if lines and first else []
        parts += ["<i></i>train"] if lines and dots and not first else []
        parts += ['<i class="dot"></i>validation'] if dots else []
    parts += [f'<i class="level"></i>{escape(name)} {value:.4g}' for name, value in levels.items()]
    return "".join(f"<span>{part}</span>" for part in parts)
