"""Words without an end: genomes, base64, a table's rules. A BPE is trained on pieces of them.

Training takes time that grows with the square of a word's length: 3 MB of ACGT as one word would take hours. In pieces
of LONGEST characters they take seconds, the merges are those of shorter words, and only a token that is longer than a
piece can't be learnt. Encoding does not cut words, and need not: it takes time that grows with the length alone.
"""

import re
from collections.abc import Iterable, Iterator

from tokenizers import Regex, pre_tokenizers

LONGEST = 256  # characters
_RUNS = re.compile(rf"[^\W\d_]{{{LONGEST + 1},}}|(?:[^\w\s]|_){{{LONGEST + 1},}}|\s{{{LONGEST + 1},}}")
_SPACES = re.compile(rf"\s{{{LONGEST + 1}}}")


def cut() -> pre_tokenizers.PreTokenizer:
    """Cuts what is longer than LONGEST characters; all else stays as it is."""
    return pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{LONGEST}}}"), "isolated")


class LongWords:
    """How many such words there were in texts that were read through it, and how long the longest was."""

    def __init__(self):
        self.count = self.longest = 0

    def watched(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            # Ten times as fast as looking for runs, and most texts have none.
            if any(len(word) > LONGEST for word in text.split()) or _SPACES.search(text):
                for run in _RUNS.finditer(text):
                    self.count, self.longest = self.count + 1, max(self.longest, len(run[0]))
            yield text
