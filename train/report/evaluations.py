"""Evaluations in figures: the first, the best and the last one side by side, and plots of shares by bins."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from train.evals.intervals import wilson
from train.objectives.objective import Bins, meaning, numbers
from train.record.metrics import short
from train.report.plots import BAR, INK, TRAIN, scale, svg
from train.report.recorded import Recorded
from train.report.web_page import figure

MEANING = "meaning"  # the head of the column of explanations


def table(evaluations: Sequence[Mapping], best: int | None, meanings: Mapping[str, str]) -> list[list[str]]:
    """Returns the figures of the first, the best and the last evaluation as cells, header first.

    Args:
      evaluations: {"step", figure: value} each, at least one, in order.
      best: step of the best evaluation, which gets a column between them if it is neither; None: no such column.
      meanings: explanations of metrics, for the last column; without any that fits there is no such column.
    """
    first, last = evaluations[0], evaluations[-1]
    shown = {row["step"]: row for row in evaluations if row in (first, last) or row["step"] == best}
    mark = lambda step: " (best)" if step == best and step not in (first["step"], last["step"]) else ""
    rows = [["held out", *(f"step {step}{mark(step)}" for step in shown), MEANING]]
    in_all = set.intersection(*({*numbers(row)} for row in shown.values()))
    for name in last:
        # The baseline `unigram` does not depend on the model.
        if name in in_all and name != "step" and name.rpartition("/")[2] != "unigram":
            rows.append([name, *(f"{row[name]:.4g}" for row in shown.values()), meaning(name, meanings)])
    return rows if any(row[-1] for row in rows[1:]) else [row[:-1] for row in rows]


def section(run: Recorded) -> str:
    """Returns the table with the explanations below the names of metrics; '' if nothing was evaluated."""
    if not run.evaluations:
        return ""
    cells = table(run.evaluations, (run.summary.get("best") or {}).get("step"), run.objective.meanings)
    if len(cells) == 1:
        return ""
    explained = cells[0][-1] == MEANING
    row = lambda tag, inside: "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in inside) + "</tr>"
    body = row("th", cells[0][:-1] if explained else cells[0])
    for name, *figures in cells[1:]:
        words = f"<small>{escape(figures.pop())}</small>" if explained else ""
        body += row("td", [escape(name) + words, *figures])
    card = f'<div class="card scroll"><table class="figures">{body}</table></div>'
    return f"<section><h2>Evaluations</h2>{card}</section>"


def bins(run: Recorded) -> str:
    """Returns the plots by bins that the objective declares and the newest evaluation has."""
    drawn = ""
    for declared in run.objective.bins:
        table_N3 = joined(np.array(run.validation.get(declared.metric, ()), float).reshape(-1, 3))
        if table_N3.size and np.isfinite(table_N3).all():
            key = '<span><i class="dot own"></i>right</span><span><i class="block"></i>pairs</span>'
            plot = _shares((4.3, 3.2), table_N3, declared)
            drawn += figure(declared.title, key, declared.meaning, plot)
    words = (
        "In the newest evaluation. Vertical lines are 95 % intervals. All pairs of a list count as one, and bins of "
        "few pairs are joined."
    )
    return f'<section><h2>Scores</h2><p>{words}</p><div class="pair">{drawn}</div></section>' if drawn else ""


def joined(table_N3: np.ndarray) -> np.ndarray:
    """Joins neighbouring bins until each has 5 pairs and a fortieth of all: a share of few says nothing."""
    need, found = max(5.0, table_N3[:, 0].sum() / 40), [np.zeros(3)]
    for row in table_N3:
        if found[-1][0] >= need:
            found.append(np.zeros(3))
        found[-1] = found[-1] + row
    if len(found) > 1 and found[-1][0] < need:
        last = found.pop()
        found[-1] = found[-1] + last
    return np.array([row for row in found if row[0] > 0]).reshape(-1, 3)


def _shares(size, table_N3: np.ndarray, declared: Bins) -> str:
    """Draws what share is right in each bin, with its 95 % interval, and how many there are."""
    count_N, x_N, right_N = table_N3.T
    x_N, share_N = x_N / count_N, np.clip(right_N / count_N, 0, 1)
    low_N, high_N = wilson(share_N, count_N)

    def paint(axes) -> None:
        if declared.baseline is None:
            axes.plot([0.5, 1], [0.5, 1], color=INK, lw=1, ls=(0, (4, 3)))
            axes.set_xlim(0.49, 1.01)
            width_N = np.full(x_N.shape, 0.03)
        else:
            axes.axhline(declared.baseline, color=INK, lw=1, ls=(0, (4, 3)))
            scale(axes, "x", x_N)
            width_N = 0.2 * x_N if axes.get_xscale() == "log" else np.full(x_N.shape, 0.04 * max(np.ptp(x_N), 1e-9))
        axes.errorbar(
            x_N, share_N, (share_N - low_N, high_N - share_N), color=TRAIN, lw=1.6, elinewidth=1, marker="o", ms=4
        )
        # Counts stand below the shares: the lowest quarter of the plot is theirs.
        floor = min(0.4, math.floor(10 * low_N.min()) / 10)
        room = (1.02 - floor) / 3
        axes.set_ylim(floor - room, 1.02)
        axes.set_yticks([tick for tick in axes.get_yticks() if floor <= tick <= 1])
        axes.bar(x_N, 0.6 * room * count_N / count_N.max(), width_N, floor - room, color=BAR)
        for x, count in zip(x_N, count_N, strict=True):
            text = f"{count:.0f}" if 9.5 <= count < 1000 else short(count) if count >= 1000 else f"{count:.2g}"
            height = floor - room + 0.6 * room * count / count_N.max() + 0.01
            axes.text(x, height, text, color=INK, fontsize=7, ha="center", va="bottom")
        axes.set_xlabel(declared.x, color=INK)

    return svg(size, paint, whole=False)
