"""A reward for answers in one language."""

import dataclasses
from collections.abc import Mapping
from typing import Any

try:
    import pycld2
except ImportError:  # there is no wheel for Linux on ARM; pip then compiles it, if there is a compiler
    pycld2 = None

from train.align.rewards.reward import Ready, RewardError, nearest

# CLD2 has old codes for some languages, and writes Chinese in two ways.
_OTHER_CODES = {"he": ("iw",), "jv": ("jw",), "nb": ("no",), "zh": ("zh", "zh-Hant"), "zh-hant": ("zh-Hant",)}


@dataclasses.dataclass(frozen=True)
class Language(Ready):
    """The share of the completion's text that is in a language, from 0 to 1, as CLD2 finds it.

    CLD2 reads runs of letters, by script and by four-letter sequences, and gives bytes of text for up to three
    languages; the share is of those. Digits and signs don't count; program code counts as some language. A few words
    in Latin letters are too little for it: then it finds nothing, and the reward is 0.
    """

    codes: tuple[str, ...]

    @classmethod
    def of(cls, argument: str) -> "Language":
        if pycld2 is None:
            raise RewardError("the language of a text needs the package pycld2: pip install pycld2")
        code = argument.strip().lower()
        known = {code.lower() for _, code in pycld2.LANGUAGES if not code.startswith(("xx", "zz"))}
        if code not in known | _OTHER_CODES.keys():
            raise RewardError(f"{argument!r} is no code of a language{nearest(code, known)} (such as en, de, zh, ar)")
        return cls(_OTHER_CODES.get(code, (code,)))

    def __call__(self, prompt: str, completion: str, columns: Mapping[str, Any]) -> float:
        text = "".join(letter if letter.isprintable() else " " for letter in completion)  # CLD2 refuses control letters
        _, _, found = pycld2.detect(text, isPlainText=True, bestEffort=True)
        shares = {code: percent for _, code, percent, _ in found if code != "un"}
        return sum(shares.get(code, 0) for code in self.codes) / (sum(shares.values()) or 1)
