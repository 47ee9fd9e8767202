"""The sweep report has ranks and values as computed by hand, escapes text, and exists in every state of a sweep."""

import math
import re

import numpy as np
import pytest

from tests.train.report.test_run_report import Page
from train.report import plots, sweep_plots
from train.report.sweep_report import Trial, ranked, table, write

KINDS = {"optimizer.learning_rate": "log", "optimizer.name": "choice", "data.name": "choice"}


def trial(number, state, values, rate=1e-3, lower=True, why=""):
    parameters = {"optimizer.learning_rate": rate, "optimizer.name": "adamw", "data.name": "<b>&"}
    return Trial(number, state, parameters, dict(zip((10, 20, 30), values, strict=False)), lower, why)


def rows(lower=True):
    sign = 1 if lower else -1
    return [
        trial(0, "complete", [3 * sign, 2 * sign, 2.5 * sign], 1e-2, lower),
        trial(1, "failed", [], 1.0, lower, "steps 1 to 3 <gave> nothing"),
        trial(2, "pruned", [1.5 * sign], 2e-4, lower),
        trial(3, "complete", [math.nan, 1.75 * sign, math.inf], 1e-3, lower),
        trial(4, "unfinished", [9 * sign], 1e-3, lower),
        trial(5, "complete", [900 * sign], 1e-3, lower),
    ]


@pytest.mark.parametrize("lower", [True, False])
def test_ranks(lower):
    """Complete trials come first, by their best finite value; then the unfinished one, pruned ones and failed ones."""
    assert [row.number for row in ranked(rows(lower), lower)] == [3, 0, 5, 4, 2, 1]
    assert [(row.value, row.step) for row in rows(lower)[:2]] == [(2 if lower else -2, 20), (None, None)]


def test_the_table():
    head, *lines = table(rows(), "validation/loss", lower=True).split("\n")
    assert head.split() == [
        "rank",
        "trial",
        "validation/loss",
        "step",
        "state",
        "learning_rate",
        "optimizer.name",
        "data.name",
    ]
    assert [line.split()[:6] for line in lines[:6]] == [
        ["1", "3", "1.75", "20", "complete", "0.001"],
        ["2", "0", "2", "20", "complete", "0.01"],
        ["3", "5", "900", "10", "complete", "0.001"],
        ["–", "4", "9", "10", "unfinished", "0.001"],
        ["–", "2", "1.5", "10", "pruned", "0.0002"],
        ["–", "1", "–", "–", "failed", "1"],
    ]
    assert len({len(line) for line in (head, *lines[:6])}) == 1
    assert lines[6:] == ["trial 1 failed: steps 1 to 3 <gave> nothing"]


@pytest.mark.parametrize("lower", [True, False])
def test_the_page(lower, tmp_path):
    path = write(tmp_path, rows(lower), "validation/f1", lower, KINDS, "python -m launch.train --config='a<b'")
    html = path.read_text()
    parsed = Page(html)
    assert parsed.headings == ["Train the best again", "Trials and parameters", "Evaluations", "All trials"]
    assert parsed.tags.count("svg") == 2 + 3 + 2 and not {"script", "b", "gave", "link", "img"} & set(parsed.tags)
    assert "6 trials: 3 complete, 1 pruned, 1 failed, 1 unfinished" in parsed.text and "--config='a<b'" in parsed.text
    svg = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert set(re.findall(r"(?:stroke|fill): (#\w+|var\(--\w+\))", svg)) <= set(plots.VARIABLES.values())


def test_sweeps_that_have_just_begun(tmp_path):
    for number, made in enumerate(
        ([], [trial(0, "unfinished", [])], [trial(0, "failed", [math.nan])], [trial(0, "pruned", [2.0])])
    ):
        parsed = Page(write(tmp_path, made, "validation/loss", True, KINDS, "").read_text())
        assert "No trial is complete yet" in parsed.text
        assert parsed.tags.count("svg") == (7 if number == 3 else 0)
        table(made, "validation/loss", lower=True)


def test_far_values_do_not_hide_the_good_ones():
    """The axis ends three times as far from the best value as the median, or at the worst value if that is nearer."""
    far = np.array([1.2, 1.0, 50.0, 1.3, 1.1])
    np.testing.assert_allclose(sweep_plots.limits(far, lower=True), (1.0, 1.6))
    np.testing.assert_allclose(sweep_plots.limits(-far, lower=False), (-1.6, -1.0))
    np.testing.assert_allclose(sweep_plots.limits(np.array([1.0, 2.0, 3.0]), lower=True), (1.0, 3.0))
    low, high = sweep_plots.limits(np.array([2.0, 2.0]), lower=True)
    assert low == 2.0 < high < 2.001
