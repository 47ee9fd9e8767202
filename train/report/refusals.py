"""The report's section on refusals: what each evaluation found, why it can't be the best one, and some answers.

The figures come from train/evals/refusals.py by way of metrics.jsonl, the answers from summary.json, where
launch.evaluate writes them.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from train.evals.intervals import spelled
from train.evals.refusals import FIGURES, VERDICTS
from train.report.recorded import HELD_OUT, Recorded, show

_LATEST = 20  # evaluations that the table shows


def section(run: Recorded) -> str:
    """Returns the section as HTML; '' if the run asked no prompts.

    Args:
      run: the run; of its summary, the entries `safety` and `best` are read.
    """
    found: dict[str, Any] = run.summary.get("safety") or {}
    evaluations = [row for row in run.evaluations if any(name in row for name in FIGURES)]
    if not evaluations and not found:
        return ""
    note = (
        "Shares of held-out prompts: harmful ones that were answered, and harmless ones that were refused. Written "
        "rules judge the answers; they read words and don't understand them."
    )
    parts = [f'<div class="card"><p>{note}</p></div>']
    if evaluations:
        parts.append(_evaluations(run.rows, evaluations, run.summary.get("best") or {}))
    if found:
        parts.append(_shares(found))
        parts.append(_table(("kind", "language", "prompts", *VERDICTS), found.get("counts") or []))
        parts.append(_answers(found.get("shown") or []))
    return f"<section><h2>Refusals</h2>{''.join(parts)}</section>"


def _evaluations(rows: list[dict], evaluations: list[dict], best: dict) -> str:
    """Returns a table of the latest evaluations and the best one."""
    excluded = {row["step"]: row["not_best"]["why"] for row in rows if "not_best" in row}
    names = [name for name in evaluations[-1] if name.endswith(FIGURES)]
    body = []
    for row in evaluations:
        why = excluded.get(row["step"], "").removeprefix(HELD_OUT)
        is_best = best.get("step") == row["step"]
        if is_best or row in evaluations[-_LATEST:]:
            judged = "best" if is_best else f"not best: {why}" if why else ""
            shares = {_head(name): show(row.get(name), "{:.3f}") for name in names}
            body.append({"step": row["step"], "": judged, **shares})
    return _table(("step", "", *map(_head, names)), body)


def _shares(found: dict) -> str:
    """Returns a table of the shares that launch.evaluate found, with their 95 % intervals; '' without intervals."""
    body, intervals = [], found.get("intervals") or {}  # older evaluations have none
    for name, ends in intervals.items():
        share = show((found.get("figures") or {}).get(name), "{:.3f}")
        row = {
            "": _head(name),
            "share": share,
            "95 % interval": spelled(ends, "{:.3f}"),
            "n": show(ends.get("n"), "{}"),
        }
        body.append(row)
    return _table(("", "share", "95 % interval", "n"), body) if body else ""


def _head(name: str) -> str:
    return name.replace("_", " ")


def _answers(shown: Sequence[Mapping[str, str]]) -> str:
    """Returns a table of answers. Its first column doesn't wrap, because on a phone it would break inside words."""
    cells = "<th>judged</th><th>prompt</th><th>answer</th>"
    for one in shown:
        judged = "\n".join(filter(None, (one.get(name, "") for name in ("kind", "verdict", "rule"))))
        cells += f'</tr><tr><td style="white-space:pre">{escape(judged)}</td>'
        cells += "".join(f"<td>{escape(one.get(name, ''))}</td>" for name in ("prompt", "answer"))
    return f'<div class="card scroll"><table class="answers"><tr>{cells}</tr></table></div>'


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    cells = ""
    for row in rows:
        cells += "<tr>" + "".join(f"<td>{escape(str(row.get(name, '')))}</td>" for name in columns) + "</tr>"
    return f'<div class="card scroll"><table><tr>{head}</tr>{cells}</table></div>'
