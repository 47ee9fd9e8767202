"""What judges have in common: they are asked for one of a few options, and reply with a weight for each."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

UNREADABLE = "unreadable"  # the reply has no verdict
TOO_LONG = "too_long"  # the judge's context has no room for the question
FAILED = "failed"  # the server did not answer

Key = tuple[int, ...]  # which question it is


class Reply(NamedTuple):
    """A judge's reply to one question."""

    weights: tuple[float, ...] | None  # of each option, with the sum 1; None: there is no verdict
    why: str = ""  # why there is none: UNREADABLE, TOO_LONG or FAILED
    text: str = ""  # what the judge wrote
    mass: float | None = None  # probability of all options together, if the judge is a model


class Judge(Protocol):
    """Replies to questions, in any order."""

    def __call__(self, asked: Iterable[tuple[Key, str]], options: Sequence[str]) -> Iterator[list[tuple[Key, Reply]]]:
        """Yields replies as they come.

        Args:
          asked: questions, each with a key.
          options: the texts that are a verdict.
        """


_THOUGHT = re.compile(r".*</think>", re.DOTALL)
_BRACKETED = re.compile(r"\[\[\s*(\w+)\s*\]\]")
_ALONE = re.compile(
    r"\W*(?:(?:my|the|final|better|best|overall)\s+)*(?:answer|verdict|score|rating)?(?:\s+is)?[\W_]*"
    r"(?P<option>[a-z0-9]+)(?:\s+is\s+(?:the\s+)?better(?:\s+\w+)?|\s*/\s*10)?[\W_]*",
    re.IGNORECASE,
)


def parsed(text: str, options: Sequence[str]) -> tuple[float, ...] | None:
    """Returns the weights of a reply that is read as text: 1 for the option that it names; None if it names none.

    A reply names an option if its first or its last line is that option, alone or after words like "Verdict:", with or
    without marks around it. If both lines name different ones it names none. Other lines are not read, because a judge
    may quote an answer there.
    """
    lines = [line for line in _THOUGHT.sub("", text).splitlines() if line.strip()]
    named = {option for line in (lines[:1] + lines[-1:]) if (option := _option(line, options)) is not None}
    if len(named) != 1:
        return None
    (found,) = named
    return tuple(float(option == found) for option in options)


def _option(line: str, options: Sequence[str]) -> str | None:
    bracketed, alone = {*_BRACKETED.findall(line)}, _ALONE.fullmatch(line)
    named = bracketed.pop() if len(bracketed) == 1 else alone["option"] if alone else ""
    return named.upper() if named.upper() in options else None
