r"""A reward for answers that are numbers, as in GSM8K.

Where the answer stands: in the last `\boxed{...}`; without one, on the line of the last `####`; without that, anywhere.
The last number there counts.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from train.align.rewards.reward import Ready, RewardError, column

# Two numbers that are not both whole are equal up to this relative difference. Rounded floats differ by less, and 0.333
# differs from 1/3 by more.
TOLERANCE = Fraction(1, 10**6)

# How numbers are written, and what is read instead. The order matters.
_REWRITE = [
    (re.compile(old), new)
    for old, new in (
        (r"[−﹣－]", "-"),
        (r"[％﹪]|\\%|percent\b", "%"),
        (r"[．٫]", "."),
        (r"٬|\{,\}|(?<=[0-9])[\u00a0\u202f\u2009](?=[0-9]{3})|(?<=[0-9])\\,(?=[0-9]{3})|,\\!", ","),
        (r"\\\$", "$"),
        (r"(?<=[0-9])\s*\\[dt]?frac", r" \\frac"),  # a mixed number
        (r"\\[dt]?frac\s*\{\s*([-+]?[0-9.,]+)\s*\}\s*\{\s*([-+]?[0-9.,]+)\s*\}", r"\1/\2"),
        (r"\\[dt]?frac\s*([0-9])\s*([0-9])", r"\1/\2"),
        (r"([0-9])\s*(?:\\times|\\cdot|[×x*])\s*10\s*\^\s*\{?([-+]?[0-9]+)\}?", r"\1e\2"),
        (r"(?<![0-9.])10\s*\^\s*\{?([-+]?[0-9]+)\}?", r"1e\1"),
    )
]

# A Fraction of more digits takes long, and nobody's answer has them.
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,100}|[0-9]{1,300})(?![0-9])"
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]{{1,300}}(?![0-9]))?|\.[0-9]{{1,300}}(?![0-9]))"
_NUMBER = re.compile(
    rf"""(?:(?<![A-Za-z0-9_)\]}}])(?P<sign>[-+])|(?<![A-Za-z0-9_^/])(?<![_^]\{{))  # 5-3 has no -3; H2O, m^2 have no 2
    \$?(?P<inner>-)?
    (?: (?:(?P<mixed>{_WHOLE})\ )?(?P<above>{_DECIMAL})/(?P<below>-?{_DECIMAL})(?!/)
      | (?P<plain>{_DECIMAL})(?:[eE](?P<exponent>[-+]?[0-9]{{1,3}})(?![A-Za-z0-9]))?(?!\s*\^) )
    (?P<percent>\s?%)?""",
    re.VERBOSE,
)


class Number(NamedTuple):
    """A number as it was written."""

    value: Fraction
    percent: bool  # whether a percent sign follows


@dataclasses.dataclass(frozen=True)
class Numeric(Ready):
    """1 if the completion's number equals the column's; else 0. A completion without a number, or empty, is wrong.

    Read are thousands separators, decimals, fractions, mixed numbers, powers of ten, LaTeX, a currency sign, and the
    digits of any script. The column may be a number, a text with one, or a whole solution with its `####` line. Units
    don't count. If only one side has a percent sign, 50% equals 50 and 0.5, because data sets write either.
    """

    column: str

    def expected(self, columns: Mapping[str, Any]) -> Number:
        """Returns the number that is right."""
        value = column(columns, self.column)
        number = read(str(value)) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
        if number is None:
            raise RewardError(f"column {self.column!r} must be or contain a number; it is {value!r:.80}")
        return number

    def check(self, columns: Mapping[str, Any]) -> None:
        self.expected(columns)

    def __call__(self, prompt: str, completion: str, columns: Mapping[str, Any]) -> float:
        right, found = self.expected(columns), read(completion)
        return float(found is not None and equal(found, right))


def equal(one: Number, other: Number) -> bool:
    """Returns whether two numbers count as equal."""
    if one.percent != other.percent:
        percent, plain = (one, other) if one.percent else (other, one)
        return _equal(percent.value, plain.value) or _equal(percent.value / 100, plain.value)
    return _equal(one.value, other.value)


def _equal(a: Fraction, b: Fraction) -> bool:
    if a.denominator == b.denominator == 1:
        return a == b
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def read(text: str) -> Number | None:
    """Returns the last number of the part of a text that holds its answer, or None."""
    text = "".join(_ascii(letter) for letter in _answer(text))
    for old, new in _REWRITE:
        text = old.sub(new, text)
    return next(filter(None, map(_number, reversed(list(_NUMBER.finditer(text))))), None)


def _ascii(letter: str) -> str:
    digit = unicodedata.decimal(letter, None)
    return letter if digit is None else str(digit)


def _answer(text: str) -> str:
    start = text.rfind("\\boxed{")
    if start < 0:
        return text.rpartition("####")[2].strip().partition("\n")[0] if "####" in text else text
    depth, inside = 1, text[start + len("\\boxed{") :]
    for at, letter in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if not depth:
            return inside[:at]
    return inside  # the completion was cut inside the box


def _number(match: re.Match) -> Number | None:
    fraction = lambda name: Fraction(match[name].replace(",", ""))
    if match["plain"]:
        exponent = int(match["exponent"] or 0)
        value = fraction("plain") * Fraction(10) ** exponent
    elif not fraction("below"):
        return None
    else:
        value = (fraction("mixed") if match["mixed"] else 0) + fraction("above") / fraction("below")
    negative = (match["sign"] == "-") != (match["inner"] == "-")
    return Number(-value if negative else value, bool(match["percent"]))
