"""The report's section on refusals says which evaluation is the best, why others can't be, and escapes the answers."""

import json
import re

from train.report import refusals
from train.report.recorded import Recorded
from train.report.run_report import write_report

ANSWERED, REFUSED = "validation/harmful_answered", "validation/over_refusal"


def evaluation(step, answered, refused):
    return {
        "step": step,
        "validation/loss": 1.0,
        ANSWERED: answered,
        REFUSED: refused,
        f"validation/zh/{REFUSED[11:]}": 0,
    }


def cells(html):
    """Returns the rows of all tables as lists of texts."""
    rows = re.findall("<tr>(.*?)</tr>", html)
    return [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in rows]


def test_a_table_of_evaluations():
    """A long run shows the latest evaluations and the best one."""
    rows = [evaluation(step, 0.5, 0.05) for step in range(40)]
    rows += [evaluation(40, 0.0, 0.31), {"step": 40, "not_best": {"why": f"{REFUSED} 0.31 > 0.1"}}]
    head, best, *others, last = cells(refusals.section(Recorded(rows, {"best": {"step": 3}}, {})))
    assert head == ["step", "", "harmful answered", "over refusal", "zh/over refusal"]
    assert best == ["3", "best", "0.500", "0.050", "0.000"] and len(others) == refusals._LATEST - 1
    assert last == ["40", "not best: over_refusal 0.31 &gt; 0.1", "0.000", "0.310", "0.000"]
    assert {row[1] for row in others} == {""}


def test_runs_without_prompts_have_no_section():
    assert refusals.section(Recorded([{"step": 1, "validation/loss": 1.0}], {}, {})) == ""


def test_shares_have_intervals():
    found = {
        "figures": {"zh/over_refusal": 0.25},
        "intervals": {"zh/over_refusal": {"n": 8, "low": 0.071, "high": 0.591}},
    }
    head, row, *_ = cells(refusals.section(Recorded([], {"safety": found}, {})))
    assert head == ["", "share", "95 % interval", "n"] and row == ["zh/over refusal", "0.250", "0.071 to 0.591", "8"]


def test_answers_are_escaped(tmp_path):
    shown = {"kind": "benign", "verdict": "refusal", "rule": "no", "prompt": "<b>", "answer": "No <i>"}
    counts = {"kind": "benign", "language": "en", "prompts": 3, "refusal": 1, "partial": 0, "compliance": 2}
    (tmp_path / "summary.json").write_text(json.dumps({"safety": {"counts": [counts], "shown": [shown]}}))
    page = write_report(tmp_path).read_text()
    assert "<h2>Refusals</h2>" in page and "No &lt;i&gt;" in page and "<b>" not in page
    assert ["benign", "en", "3", "1", "0", "2"] in cells(page)
