"""How the rewards of a policy change with its distance to the reference, and the law that they follow.

A policy that is trained against a reward model exploits its errors: the reward that is trained rises on, while the one
that is wanted, here called gold, falls again. Gao et al. (arXiv:2210.10760, section 3.2) found that with
d = sqrt(KL(policy || reference)) reinforcement learning follows

    R(d) = R(0) + d (alpha - beta ln d)

which is linear in alpha and beta. Nats per token instead of per answer change d by a factor: then both constants
differ, but the law is the same.
"""

import math
from collections.abc import Mapping
from html import escape
from typing import NamedTuple

import numpy as np

from train.report import plots
from train.report.plots import INK, svg
from train.report.recorded import Recorded
from train.report.web_page import figure

REWARDS, KL = ("reward", "gold"), "kl"  # figures of evaluations
_POINTS = 6  # with fewer, two constants would fit almost anything


class Fit(NamedTuple):
    """R(d) = offset + d (alpha - beta ln d)."""

    offset: float
    alpha: float
    beta: float
    r2: float  # share of the variance of the rewards that the law explains

    def __call__(self, d: np.ndarray) -> np.ndarray:
        return self.offset + d * (self.alpha - self.beta * np.log(np.maximum(d, 1e-300)))

    def peak(self) -> float | None:
        """Returns the KL at which the reward is highest; None if it rises forever or overflows."""
        log_d = self.alpha / self.beta - 1 if self.beta > 0 else math.inf
        return math.exp(2 * log_d) if log_d < 300 else None


def fit(kl: np.ndarray, reward: np.ndarray) -> Fit | None:
    """Fits the law by least squares; the offset is the reward at a KL of 0.

    Args:
      kl: KL divergence to the reference of each evaluation, float64.
      reward: the reward of each evaluation.

    Returns:
      None if there are fewer than 6 evaluations, or none at a KL of (almost) 0, or if the constants are not determined.
    """
    known = np.isfinite(kl) & np.isfinite(reward)
    kl, reward = kl[known], reward[known]
    if kl.size < _POINTS:
        return None
    first = int(np.argmin(np.abs(kl)))
    if not abs(kl[first]) <= 0.01 * kl.max() > 0:
        return None
    away = kl > max(0.0, kl[first])
    d = np.sqrt(kl[away])
    terms, risen = np.stack([d, -d * np.log(d)], -1), reward[away] - reward[first]
    (alpha, beta), _, rank, _ = np.linalg.lstsq(terms, risen, rcond=None)
    spread = np.square(risen - risen.mean()).sum()
    if rank < 2 or not spread:
        return None
    r2 = 1 - np.square(risen - terms @ (alpha, beta)).sum() / spread
    return Fit(float(reward[first]), float(alpha), float(beta), float(r2))


def section(run: Recorded) -> str:
    """Returns the plot of rewards against KL; '' if no two evaluations have both."""
    found = {}
    for name in REWARDS:
        pairs = [(row[KL], row[name]) for row in run.evaluations if KL in row and name in row]
        kl, reward = np.array(pairs, float).reshape(-1, 2).T
        if (np.isfinite(kl) & np.isfinite(reward)).sum() > 1:
            found[name] = (kl, reward)
    if not found:
        return ""
    fits = {name: fit(*points) for name, points in found.items()}
    key = "".join(
        f'<span><i style="background-color:{plots.VARIABLES[plots.style(number)[0]]}"></i>{escape(name)}</span>'
        for number, name in enumerate(found)
    )
    svg = plots.in_two_shapes(lambda size: _draw(size, found, fits))
    words = (
        "Each dot is an evaluation. A reward that is only watched, and falls while the trained one rises, says that "
        "the policy exploits errors of the trained one."
    )
    caption = "".join(
        f"<p>{escape(_constants(name, one, np.nanmax(found[name][0])))}</p>" for name, one in fits.items() if one
    )
    law = "<p>Lines: R(d) = R(0) + d (α − β ln d) with d = √KL (Gao et al., arXiv:2210.10760), by least squares.</p>"
    plot = figure("Reward against KL to the reference", key, words, svg + (law + caption if caption else ""))
    return f"<section><h2>Over-optimization</h2>{plot}</section>"


def _constants(name: str, one: Fit, farthest: float) -> str:
    peak = one.peak()
    # Far outside of what was measured, the law says nothing.
    where = f"; highest at a KL of {peak:.3g}" if peak is not None and peak <= farthest else ""
    return f"{name}: R(0) = {one.offset:.3g}, α = {one.alpha:.3g}, β = {one.beta:.3g}, R² = {one.r2:.3f}{where}"


def _draw(size, found: Mapping[str, tuple[np.ndarray, np.ndarray]], fits: Mapping[str, Fit | None]) -> str:
    def paint(axes) -> None:
        for number, (name, (kl, reward)) in enumerate(found.items()):
            color, law = plots.style(number)[0], fits[name]
            d = np.sqrt(np.maximum(kl, 0))  # an estimate of a small KL may be negative
            axes.plot(d, reward, "o", ms=4, color=color)
            if law is None:
                axes.plot(d, reward, lw=0.8, color=color)
            else:
                along = np.linspace(0, np.nanmax(d), 200)
                axes.plot(along, law(along), lw=1.6, color=color)
        axes.set_xlim(-0.01 * axes.get_xlim()[1])
        axes.set_xlabel("√KL", color=INK)

    return svg(size, paint, whole=False)
