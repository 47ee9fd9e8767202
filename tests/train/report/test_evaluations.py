"""Shares by bins: where the points stand, their counts, their intervals, and how bins are joined."""

import json
import re

import numpy as np
import pytest

from tests.train.report.pages import figures, lines, report, sections
from train.record import metrics
from train.report import evaluations


def run(workdir, **arrays):
    writer = metrics.Writer(workdir)
    writer.write(
        5, {"validation/loss": 0.6, "validation/accuracy": 0.7} | {f"validation/{k}": v for k, v in arrays.items()}
    )
    writer.close()
    (workdir / "config.json").write_text(json.dumps({"objective": {"name": "reward"}}))
    return report(workdir)


def test_reliability(tmp_path):
    """Means of three bins that are calibrated stand on the diagonal; of a fourth one, below it by their difference."""
    bins = [[10, 5.5, 5.5], [0, 0, 0], [40, 28, 28], [20, 17, 17], [30, 28.5, 22.5]]
    found = figures(run(tmp_path, reliability=bins))
    assert [*found][-1] == "Reliability"
    (svg,) = found["Reliability"].all("svg")
    ((x0, y0), (x1, y1)) = lines(svg, "muted", dashed=True)[0]  # from (0.5, 0.5) to (1, 1)
    (points,) = (line for line in lines(svg, "accent") if len(line) == 4)
    points = [(0.5 + (x - x0) / (x1 - x0) / 2, 0.5 + (y - y0) / (y1 - y0) / 2) for x, y in points]
    np.testing.assert_allclose(points, [(0.55, 0.55), (0.7, 0.7), (0.85, 0.85), (0.95, 0.75)], atol=0.002)
    counts = [one.text.strip() for one in svg.all("text") if "7px" in one.attributes.get("style", "")]
    assert counts == ["10", "40", "20", "30"]


@pytest.mark.parametrize("name", ["by_margin", "by_difference"])
def test_accuracy_by_margin(name, tmp_path):
    bins = [[8, 0.8, 4], [8, 8, 6], [8, 80, 8]]
    found = figures(run(tmp_path, **{name: bins}))
    (title,) = (title for title in found if title.startswith("Accuracy by"))
    (svg,) = found[title].all("svg")
    ((_, half), _), *_ = lines(svg, "muted", dashed=True)
    (points,) = (line for line in lines(svg, "accent") if len(line) == 3)
    assert points[0][1] == pytest.approx(half, abs=0.01) and points[1][1] == pytest.approx(
        (half + points[2][1]) / 2, abs=0.01
    )
    assert np.diff([x for x, _ in points]) == pytest.approx([points[1][0] - points[0][0]] * 2, rel=1e-3)  # 0.1, 1, 10


def test_other_runs_have_no_such_plots(tmp_path):
    page = run(tmp_path)
    assert "Scores" not in sections(page) and "Reliability" not in figures(page)


def test_a_diverged_model_has_no_such_plots(tmp_path):
    page = run(tmp_path, reliability=np.full((3, 3), np.nan))
    assert "Scores" not in sections(page) and "null" in (tmp_path / "metrics.jsonl").read_text()


def test_bins_of_few_pairs_are_joined():
    rng = np.random.default_rng(0)
    table = rng.uniform(0, 4, (27, 3)) * (rng.uniform(size=(27, 1)) < 0.7)
    found = evaluations.joined(table)
    np.testing.assert_allclose(found.sum(0), table.sum(0))
    assert 3 <= len(found) < 8 and (found[:, 0] >= 5).all()
    table[20, 0] = 400  # a fortieth of all is now more than 5
    assert (evaluations.joined(table)[:, 0] >= 10).all()
    few = evaluations.joined(np.array([[1.0, 2, 1], [0, 0, 0], [2.0, 3, 1]]))
    np.testing.assert_allclose(few, [[3, 5, 2]])
    assert evaluations.joined(np.zeros((4, 3))).shape == (0, 3)


def test_numbers_alone_are_in_the_table(tmp_path):
    page = run(tmp_path, reliability=[[10, 5.5, 5.5]])
    rows = [row.text for row in sections(page)["Evaluations"].all("tr")]
    assert len(rows) == 3 and not re.search("reliability", "".join(rows))
