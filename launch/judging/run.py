"""Asks a judge everything about a file of answers, and writes preferences.

Replies are appended to OUTPUT.verdicts.jsonl as they come, and a question whose reply is there is not asked again. The
output is made from them at the end, in the order of the samples, so it does not depend on the order of the replies.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.answers.growing import Growing, replace
from launch.judging import replies, verdicts
from launch.judging.questions import SCORES, VERDICTS
from launch.judging.replies import Judge, Key, Reply
from launch.judging.samples import Sample
from launch.program.progress import Progress


def known(journal: Growing) -> dict[Key, Reply]:
    """Returns the replies that the journal has."""
    found = {}
    for line in journal.lines():
        weights, why = line["weights"], line.get("why", "")
        found[(line["record"], *line["answers"])] = Reply(
            None if weights is None else tuple(weights), why, line.get("reply", ""), line.get("mass")
        )
    return found


def ask(judge: Judge, given: Sequence[Sample], journal: Growing, *, principles: str, mode: str, seed: int) -> None:
    """Asks every question whose reply the journal does not have, and appends the replies.

    Args:
      judge: replies to questions.
      given: the records.
      journal: the file of replies.
      principles: by which it judges.
      mode: compare or score.
      seed: chooses the pairs of answers.
    """
    there = known(journal)
    total = sum(len(sample.keys(mode, seed)) for sample in given)
    progress = Progress("questions", total, len(there))

    def questions() -> Iterator[tuple[Key, str]]:
        for sample in given:
            for key in sample.keys(mode, seed):
                if key not in there:
                    yield key, sample.asked(key, principles)

    for batch in judge(questions(), VERDICTS if mode == "compare" else SCORES):
        journal.append(_line(key, reply) for key, reply in batch if reply.why != replies.FAILED)
        progress.add(len(batch))


def _line(key: Key, reply: Reply) -> dict[str, Any]:
    line: dict[str, Any] = {"record": key[0], "answers": list(key[1:]), "weights": reply.weights}
    line |= {"why": reply.why} if reply.why else {}
    line |= {"reply": reply.text} if reply.text else {}
    return line | ({} if reply.mass is None else {"mass": reply.mass})


def write(
    path: Path, given: Sequence[Sample], journal: Growing, counts: Counter[str], *, mode: str, seed: int
) -> dict[str, Any]:
    """Writes the records whose answers differ, and returns what was counted."""
    tally, heard = verdicts.Tally(), known(journal)

    def rows() -> Iterator[dict[str, Any]]:
        for sample in given:
            own = tally.compared(sample, seed, heard) if mode == "compare" else tally.scored(sample, heard)
            row = verdicts.ranked(sample, own)
            counts["written" if row else verdicts.ALL_TIE] += 1
            if row:
                yield row

    replace(path, rows())
    return dict(counts) | tally.summary(mode, any(reply.mass is not None for reply in heard.values()))
