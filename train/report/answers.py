"""What a model writes, in a run's report: completions before and after training, samples, and graded answers."""

from collections import defaultdict
from html import escape

from train.evals.intervals import p_value, spelled
from train.report.recorded import show

_LONG, _LINES = 700, 14  # characters and lines from which a text is folded
_BEGINNING = 300  # characters that a folded text shows


def completions(found: dict) -> str:
    """Returns each prompt with what the first and the last model that were sampled wrote, beside each other.

    Args:
      found: {"first": {"step", "shown": [{"prompt", "completion", "reward": number or None}]}, "last": the same}.
    """
    first, last = (found.get(name) or {} for name in ("first", "last"))
    # A prompt may be sampled several times: its n-th completions are a pair.
    before = defaultdict(list)
    for one in first.get("shown") or []:
        before[str(one.get("prompt", ""))].append(one)
    pairs = []
    for one in last.get("shown") or []:
        same = before[str(one.get("prompt", ""))]
        pairs.append((same.pop(0) if same else None, one))
    pairs += [(one, None) for rest in before.values() for one in rest]
    heads = [f"step {show(side.get('step'), '{:,}')}" for side in (first, last)]
    cards = ""
    for pair in pairs:
        prompt = next(str(one.get("prompt", "")) for one in pair if one)
        sides = "".join(_side(head, one) for head, one in zip(heads, pair, strict=True))
        cards += f'<div class="card"><div class="prompt">{_folded(prompt)}</div><div class="sides">{sides}</div></div>'
    return f"<section><h2>Completions before and after</h2>{cards}</section>" if pairs else ""


def _side(head: str, one: dict | None) -> str:
    if one is None:
        return f"<div><small>{head}</small><p>not sampled</p></div>"
    reward = show(one.get("reward"), "{:.4g}")
    reward = "" if reward == "–" else f"<b>reward {reward}</b>"
    text = str(one.get("completion") or "")
    return f"<div><small>{head}{reward}</small>{_folded(text) if text else '<p>empty</p>'}</div>"


def _folded(text: str) -> str:
    """Returns a text with its whitespace, escaped; a long one opens when its beginning is clicked."""
    lines = text.split("\n")
    # HTML drops a newline right after <pre>.
    if len(text) <= _LONG and len(lines) <= _LINES:
        return f"<pre>\n{escape(text)}</pre>"
    beginning = "\n".join(lines[: _LINES // 2])[:_BEGINNING]
    summary = f"<summary><span>{escape(beginning)}…</span><em>all {len(text):,} characters</em></summary>"
    return f"<details>{summary}<pre>\n{escape(text)}</pre></details>"


def samples(found: list[dict], others: bool) -> str:
    """Returns the samples; without any, '' if there are other completions and else a note."""
    cards = ""
    for sample in found:
        prompt, text = (escape(str(sample.get(key, ""))) for key in ("prompt", "text"))
        cards += f'<pre class="card">\n<mark>{prompt}</mark>{text}</pre>'  # HTML drops the newline after <pre>
    if not cards and others:
        return ""
    return f"<section><h2>Samples</h2>{cards or '<p class=card>No samples yet.</p>'}</section>"


def graded(grade: dict) -> str:
    """Returns the figures of graded answers with their 95 % intervals, and some answers; '' if nothing was graded."""
    figures, intervals = "", grade.get("intervals") or {}  # reports of older evaluations have none
    for name, value in (grade.get("figures") or {}).items():
        figure = show(value, "{:.2f}")
        if name in intervals:
            figure += f"<small>{spelled(intervals[name], '{:.2f}')}, n {show(intervals[name].get('n'), '{:,}')}</small>"
        figures += f"<div><dt>{escape(name)}</dt><dd>{figure}</dd></div>"
    signatures = "".join(
        f"<p>{escape(name)}: {escape(text)}</p>" for name, text in (grade.get("signatures") or {}).items()
    )
    columns = ("prompt", "reference", "answer")
    cells = "".join(f"<th>{name}</th>" for name in columns)
    for answer in grade.get("shown") or []:
        cells += "</tr><tr>" + "".join(f"<td>{escape(str(answer.get(name, '')))}</td>" for name in columns)
    table = f'<div class="card scroll"><table class="answers"><tr>{cells}</tr></table></div>'
    count, how = show(grade.get("examples"), "{:,}"), ", with 95 % intervals" if intervals else ""
    note = f"<p>{count} held-out examples; from 0 to 100{how}.</p>"
    head = f'<div class="card"><dl>{figures}</dl>{note}{signatures}</div>'
    return f"<section><h2>Answers</h2>{head}{_against(grade)}{table}</section>" if grade else ""


def _against(grade: dict) -> str:
    """Returns a table of the paired differences from another model; '' if there is none."""
    if not (found := grade.get("against")):
        return ""
    heads = ("", "this model", "the other one", "difference", "95 % interval", "p")
    cells = "".join(f"<th>{name}</th>" for name in heads)
    for name, one in (found.get("differences") or {}).items():
        row = [
            name,
            *(show(one.get(key), "{:.2f}") for key in ("this", "other")),
            show(one.get("difference"), "{:+.2f}"),
        ]
        row += [spelled(one, "{:+.2f}"), p_value(one["p"]) if "p" in one else "–"]
        cells += "</tr><tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row)
    note = f"<p>Against {escape(str(found.get('workdir', '–')))}, on the same examples.</p>"
    return f'<div class="card scroll">{note}<table><tr>{cells}</tr></table></div>'
