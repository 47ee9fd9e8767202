"""Rewards that compare characters: an exact answer, a pattern, a length."""

import dataclasses
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from train.align.rewards.reward import Ready, RewardError, column


@dataclasses.dataclass(frozen=True)
class Exact(Ready):
    """1 if the completion is the column's text, or one of its texts if it is a list; else 0.

    Both are stripped, and normalized to NFC, because "é" can be one character or two that look the same. NFKC would go
    too far: it makes "10²" equal "102". Case and inner spaces matter. A whole number in the column means its digits.
    """

    column: str

    def accepted(self, columns: Mapping[str, Any]) -> set[str]:
        """Returns the texts that are right."""
        value = column(columns, self.column)
        values = value if isinstance(value, list) else [value]
        wrong = [v for v in values if not isinstance(v, str | int) or isinstance(v, bool) or not _plain(str(v))]
        if wrong or not values:
            raise RewardError(
                f"column {self.column!r} must be a text or a list of texts, not empty; it is {value!r:.80}"
            )
        return {_plain(str(v)) for v in values}

    def check(self, columns: Mapping[str, Any]) -> None:
        self.accepted(columns)

    def __call__(self, prompt: str, completion: str, columns: Mapping[str, Any]) -> float:
        return float(_plain(completion) in self.accepted(columns))


@dataclasses.dataclass(frozen=True)
class Pattern(Ready):
    """1 if the whole completion, stripped, matches a regular expression; else 0.

    The whole must match, because a pattern that may stand anywhere rewards a completion that also says anything else.
    `.*` allows text before and after; a dot matches line ends too.
    """

    pattern: re.Pattern

    @classmethod
    def of(cls, argument: str) -> "Pattern":
        try:
            return cls(re.compile(argument, re.DOTALL))
        except re.error as error:
            where = "" if error.pos is None else f" at character {error.pos + 1}"
            raise RewardError(f"the pattern {argument!r} is not a regular expression: {error.msg}{where}") from error

    def __call__(self, prompt: str, completion: str, columns: Mapping[str, Any]) -> float:
        return float(self.pattern.fullmatch(completion.strip()) is not None)


@dataclasses.dataclass(frozen=True)
class Length(Ready):
    """1 if the completion, stripped, has LOW to HIGH characters; else 0.

    Characters mean the same in every script; words do not exist in some.
    """

    low: int
    high: int

    @classmethod
    def of(cls, argument: str) -> "Length":
        match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", argument)
        if not match:
            raise RewardError(f"a range of lengths is LOW-HIGH in characters, such as 20-400, not {argument!r}")
        low, high = int(match[1]), int(match[2])
        if low > high:
            raise RewardError(f"the range of lengths {low}-{high} is empty; write {high}-{low}")
        return cls(low, high)

    def __call__(self, prompt: str, completion: str, columns: Mapping[str, Any]) -> float:
        return float(self.low <= len(completion.strip()) <= self.high)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()
