"""Shows the counts of a judge to the user."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.judging.replies import TOO_LONG, UNREADABLE
from launch.judging.samples import ONE_ANSWER
from launch.judging.verdicts import ALL_TIE

_REPLIES = {  # what is wrong, and what follows
    UNREADABLE: ("replies name no verdict (their text is in the file of verdicts)", ""),
    TOO_LONG: ("questions are longer than the judge's context", ""),
    "unanswered": ("questions have no reply, because the server failed", "; the same command asks them again"),
}


def text(found: Mapping[str, Any], output: Path) -> str:
    """Returns a summary as lines."""
    lines = [f"{found.get('written', 0):,} of {found['records']:,} records -> {output}"]
    for why in (ALL_TIE, ONE_ANSWER):
        lines += [f"  {found[why]:,} records {why} are left out"] if found.get(why) else []
    repeated, empty = found["repeated answers"], found["empty answers"]
    lines.append(f"{found['answers']:,} answers: {empty:,} are empty and left out, {repeated:,} repeat another one")
    lines.append(f"{found['questions']:,} questions about {found['pairs']:,} pairs of answers")
    none = "they are ties" if "flips" in found else "their answers have no score and are left out"
    for why, (what, then) in _REPLIES.items():
        count = found.get(f"questions {why}", 0)
        lines += [f"  {count:,} {what}; {none}{then}"] if count else []
    percent = lambda name: "none" if found[name] is None else f"{100 * found[name]:.1f} %"
    if "probability of a verdict" in found:
        lines.append(f"  probability of all verdicts together: {percent('probability of a verdict')}")
    if "flips" in found:
        lines.append(f"  verdicts that changed with the order of the answers: {percent('flips')}")
        lines.append(f"  verdicts for the answer that is shown first: {percent('verdicts for the first')}")
    elif found["mean score"] is not None:
        lines.append(f"  mean score: {found['mean score']:.2f}")
    lines.append(f"  ties: {percent('ties')}")
    if found["better answer is longer"] is not None:
        better, worse = found["characters of better answers"], found["characters of worse answers"]
        lines.append(
            f"  characters of better and worse answers: {better:.0f} and {worse:.0f}; the better one is longer in "
            f"{percent('better answer is longer')}"
        )
    return "\n".join(lines)
