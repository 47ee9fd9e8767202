"""Cuts very long words (genomes, base64, rules of tables) into pieces for BPE training.

Training time grows with the square of a word's length: 3 MB of ACGT as one word would take hours. In pieces of LONGEST
characters it takes seconds, the merges are the same as for shorter words, and only tokens longer than a piece can't be
learned. Encoding does not need this, because its time grows linearly with the length.
"""

import re
from collections.abc import Iterable, Iterator

from tokenizers import Regex, pre_tokenizers

LONGEST = 256  # characters
_RUNS = re.compile(rf"[^\W\d_]{{{LONGEST + 1},}}|(?:[^\w\s]|_){{{LONGEST + 1},}}|\s{{{LONGEST + 1},}}")
_SPACES = re.compile(rf"\s{{{LONGEST + 1}}}")


def cut() -> pre_tokenizers.PreTokenizer:
    """Returns a pre-tokenizer that cuts words longer than LONGEST characters and leaves other words unchanged."""
    return pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{LONGEST}}}"), "isolated")


class LongWords:
    """Counts words longer than LONGEST characters in the texts that pass through it.

    Attributes:
      count: how many there were.
      longest: length of the longest one, in characters.
    """

    def __init__(self):
        self.count = self.longest = 0

    def watched(self, texts: Iterable[str]) -> Iterator[str]:
        """Yields the texts unchanged, and counts their long words."""
        for text in texts:
            # This test is ten times as fast as the search for runs, and most texts have none.
            if any(len(word) > LONGEST for word in text.split()) or _SPACES.search(text):
                for run in _RUNS.finditer(text):
                    self.count, self.longest = self.count + 1, max(self.longest, len(run[0]))
            yield text
