"""Writes verdicts as preferences to train on: {"prompt", "chosen", "rejected"}, which configs/dpo.py reads."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from launch.answers.growing import replace
from launch.comparing.pairs import TIE, Answered, Pair, Verdict

_KEPT = ("prompt", "system", "tools")  # columns of a prompt's record that belong to the conversation
WRITTEN, TIES, SPLIT, EMPTY = "written", "a tie", "no majority of the raters", "an empty answer"


def majority(verdicts: Iterable[Verdict]) -> dict[Pair, str | None]:
    """Returns the verdict that most raters gave on each pair; None if two are equally frequent."""
    heard: defaultdict[Pair, Counter[str]] = defaultdict(Counter)
    for pair, winner, _ in verdicts:
        heard[pair][winner] += 1
    found: dict[Pair, str | None] = {}
    for pair, counts in sorted(heard.items()):
        (winner, most), *others = counts.most_common()
        found[pair] = None if others and others[0][1] == most else winner
    return found


def export(path: Path, given: Sequence[Answered], verdicts: Iterable[Verdict]) -> Counter[str]:
    """Writes a record for each pair with a better answer, and returns how many pairs there are by what became of them.

    Preference methods learn from no empty answer, so pairs with one are left out.
    """
    of, counts, rows = {one.number: one for one in given}, Counter({WRITTEN: 0}), []
    for pair, winner in majority(verdicts).items():
        one = of[pair.prompt]
        empty = not all(one.answers[name].strip() for name in pair.names)
        why = SPLIT if winner is None else TIES if winner == TIE else EMPTY if empty else WRITTEN
        counts[why] += 1
        if why == WRITTEN:
            loser = pair.second if winner == pair.first else pair.first
            prompt = {name: one.record[name] for name in _KEPT if one.record.get(name)}
            rows.append(prompt | {"chosen": one.answers[winner or ""], "rejected": one.answers[loser]})
    replace(path, rows)
    return counts


def text(path: Path, counts: Counter[str]) -> str:
    """Returns a summary as lines."""
    left = [f"  {count:,} pairs are left out: {why}" for why, count in counts.items() if why != WRITTEN]
    return "\n".join([f"{counts[WRITTEN]:,} of {counts.total():,} pairs -> {path}", *left])
