"""What verdicts say about the models: win rates, ratings, a win matrix, and how far the raters agree."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.comparing.pairs import TIE, Answered, Verdict
from train.evals import ratings


def outcome(given: Sequence[Answered], verdicts: Sequence[Verdict], equal: Sequence[Verdict] = ()) -> dict[str, Any]:
    """Returns the results as JSON; they do not depend on the order of the verdicts.

    Args:
      given: the prompts with all answers.
      verdicts: on pairs of these.
      equal: further verdicts, ties on pairs with equal answers (pairs.ties). They are no sign that raters agree.
    """
    names, answers = sorted(given[0].answers), {one.number: one.answers for one in given}
    rows = []
    for (prompt, first, second, _), winner, _ in (*verdicts, *equal):
        texts = answers[prompt]
        score = {first: 1.0, second: 0.0, TIE: 0.5}[winner]
        rows.append((names.index(first), names.index(second), score, prompt, len(texts[first]), len(texts[second])))
    raters = Counter(verdict.rater for verdict in verdicts)
    found: dict[str, Any] = {
        "prompts": len(given),
        "comparisons": len(verdicts),
        "ties": sum(verdict.winner == TIE for verdict in verdicts),
        "equal answers": len(equal),
        "raters": dict(sorted(raters.items())),
        "agreement": ratings.agreement((verdict.pair, verdict.winner) for verdict in verdicts),
        "characters": {name: float(np.mean([len(one.answers[name]) for one in given])) for name in names},
    }
    if not rows:
        return found
    table, n = ratings.Comparisons.of(rows), len(names)
    won_MM, count_MM = ratings.wins(table, n)
    plain, controlled = (ratings.rate(table, n, control=control) for control in (False, True))
    found["points for length"] = controlled.length
    found["groups"] = [[names[i] for i in group] for group in ratings.groups(table, n)]
    found["models"] = {
        name: {
            "comparisons": int(count_MM[i].sum()),
            "wins": float(won_MM[i].sum()),
            "rating": _interval(plain, i),
            "rating at equal lengths": _interval(controlled, i),
            "wins over": {names[j]: [float(won_MM[i, j]), int(count_MM[i, j])] for j in range(n) if count_MM[i, j]},
        }
        for i, name in enumerate(names)
    }
    return found


def _interval(found: ratings.Ratings, i: int) -> list[float]:
    return [round(float(values[i]), 1) for values in found[:3]]


def ranked(found: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the models that were compared, the best one first."""
    models = {name: own for name, own in found.get("models", {}).items() if own["comparisons"]}
    return sorted(models.items(), key=lambda item: -item[1]["rating"][0])


def notes(found: Mapping[str, Any]) -> list[str]:
    """Returns sentences for the user about what the figures rest on."""
    raters, ties = found["raters"], found["ties"]
    who = ", ".join(f"{name} {count:,}" for name, count in raters.items())
    lines = [f"{found['comparisons']:,} comparisons on {found['prompts']:,} prompts, {ties:,} of them ties ({who})."]
    if not raters:
        lines = [f"No comparisons yet, on {found['prompts']:,} prompts."]
    if found["equal answers"]:
        lines.append(f"{found['equal answers']:,} further comparisons are ties because the answers are equal.")
    if len(raters) > 1:
        alpha = found["agreement"]
        said = "can't be computed: no two raters judged the same pair, or all said the same" if alpha is None else ""
        lines.append(f"Agreement of the raters, Krippendorff's alpha (1: full, 0: chance): {said or f'{alpha:.2f}'}.")
    if found.get("models"):
        lines.append(
            "Ratings: Elo scale with the mean 1000; 95 % intervals by bootstrap over prompts. At equal lengths: length "
            f"is one more coefficient ({found['points for length']:+.0f} points for a usual difference)."
        )
    groups = [group for group in found.get("groups", ()) if len(group) > 1]
    if len(groups) > 1:
        texts = " | ".join(", ".join(group) for group in groups)
        lines.append(f"No comparisons connect these groups, so only ratings within one can be compared: {texts}.")
    return lines


HEADS = ("model", "rating", "95 %", "at equal lengths", "95 %", "wins", "comparisons", "characters")


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Returns the table of ratings, with the columns HEADS."""
    table = []
    for name, own in ranked(found):
        cells = [name]
        for kind in ("rating", "rating at equal lengths"):
            value, low, high = own[kind]
            cells += [f"{value:.0f}", f"{low:.0f} – {high:.0f}"]
        share = 100 * own["wins"] / own["comparisons"]
        table.append([*cells, f"{share:.0f} %", f"{own['comparisons']:,}", f"{found['characters'][name]:.0f}"])
    return table


def matrix(found: Mapping[str, Any]) -> list[list[str]]:
    """Returns the win matrix with its heads: wins of the row's model over the column's, and how many comparisons."""
    order = ranked(found)
    cell = lambda won, count: f"{100 * won / count:.0f} % of {count:,}" if count else "–"
    table = [["", *(name for name, _ in order)]]
    return table + [
        [name, *("" if other == name else cell(*own["wins over"].get(other, (0, 0))) for other, _ in order)]
        for name, own in order
    ]


def text(found: Mapping[str, Any]) -> str:
    """Returns the results for the terminal."""
    parts = ["\n".join(notes(found))]
    if found.get("models"):
        parts += [
            _aligned([list(HEADS), *rows(found)]),
            "Wins of the row over the column; a tie is half a win for both:",
        ]
        parts.append(_aligned(matrix(found)))
    return "\n\n".join(parts)


def _aligned(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        [cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in table
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)
