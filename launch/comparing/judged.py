"""Has a model judge the answers, as launch.judge does: every pair in both orders; contradicting verdicts are a tie."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.answers.growing import Growing
from launch.comparing.pairs import TIE, Answered, Pair, Verdict
from launch.judging import run, verdicts
from launch.judging.replies import Judge
from launch.judging.samples import Sample


def judged(
    judge: Judge,
    facts: Mapping[str, Any],
    principles: str,
    given: Sequence[Answered],
    asked: Sequence[Pair],
    folder: Path,
) -> tuple[list[Verdict], dict[str, Any]]:
    """Returns the verdicts, and what was counted (verdicts.Tally.summary).

    The replies are in FOLDER/judged-DIGEST.jsonl, where the digest is one of everything that they depend on. So another
    judge, other principles or a further model write another file, and the same command asks nothing twice.

    Args:
      judge: replies to questions.
      facts: what its replies depend on.
      principles: by which it judges.
      given: the prompts with all answers. An empty answer is judged like others.
      asked: the pairs.
      folder: of the comparison.
    """
    texts = {one.number: sorted({answer.strip() for answer in one.answers.values()}) for one in given}
    samples = [
        Sample(one.number, one.record, one.question, [*one.answers.values()], texts[one.number])
        for one in given
        if len(texts[one.number]) > 1
    ]
    content = hashlib.sha256(json.dumps([[s.number, s.question, s.texts] for s in samples]).encode()).hexdigest()
    settings = {**facts, "principles": principles, "answers": content[:16]}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    path = folder / f"judged-{digest}.jsonl"
    journal = Growing(path, settings, path)
    try:
        run.ask(judge, samples, journal, principles=principles, mode="compare", seed=0)
        tally, heard = verdicts.Tally(), run.known(journal)
        for sample in samples:
            tally.compared(sample, 0, heard)
        summary = tally.summary("compare", any(reply.mass is not None for reply in heard.values()))
        journal.finish(summary)
    finally:
        journal.close()
    answers = {one.number: one.answers for one in given}
    found = []
    for pair in asked:
        own = [texts[pair.prompt].index(answers[pair.prompt][name].strip()) for name in pair.names]
        i, j = sorted(own)
        said = tally.verdicts.get((pair.prompt, i, j))
        if said is not None:  # of more than five different answers to a prompt, not all pairs are judged
            better = (i if said > 0 else j) if said else None
            winner = TIE if better is None else pair.first if better == own[0] else pair.second
            found.append(Verdict(pair, winner, "judge"))
    return found, summary


def text(counted: Mapping[str, Any]) -> str:
    """Returns a line on how reliable the judge is."""
    percent = lambda name: "none" if counted[name] is None else f"{100 * counted[name]:.0f} %"
    line = (
        f"{counted['questions']:,} questions; verdicts that changed with the order of the answers, which are ties: "
        f"{percent('flips')}; verdicts for the answer that is shown first: {percent('verdicts for the first')}."
    )
    lost = sum(count for name, count in counted.items() if name.startswith("questions "))
    return line + (f" {lost:,} questions have no verdict; their pairs are ties." if lost else "")
