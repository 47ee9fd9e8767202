"""Words among tokens: which tokens go on with one, and which tokens stand for a part of a text.

A word is what a space, a mark or a digit begins, and the letters after it. Chinese and Japanese have no spaces: there
each token begins one. Left out: where their words of several tokens end, which takes a dictionary.
"""

import json
import re
from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

# How SentencePiece writes bytes; but for those that are ASCII, and 0xe3 to 0xe9, with which U+3000 to U+9FFF begin.
_LATER_BYTE = re.compile("<0x([89A-DF][0-9A-F]|E[0-2A-F])>")


def goes_on(backend: Backend) -> Callable[[str], bool]:
    """Tells of the name of a token whether it goes on with a word that began before it.

    WordPiece says so itself, with a prefix ('##'). Elsewhere a token goes on where its text begins with a letter, thus
    not with a space (also written 'Ġ' or '▁'), a line break, a digit or a punctuation mark. Bytes that are no whole
    character go on, but for the first one of a Chinese or Japanese character.
    """
    if isinstance(backend.model, models.WordPiece):
        prefix = backend.model.continuing_subword_prefix
        return lambda token: token.startswith(prefix)
    if "ByteLevel" not in json.dumps(json.loads(backend.to_str())["decoder"]):
        return lambda token: _is_letter(token[:1]) or _LATER_BYTE.fullmatch(token) is not None
    text = decoders.ByteLevel()

    def of_bytes(token: str) -> bool:
        start = text.decode([token])[:1]
        if start == "\ufffd":  # no whole character; the bytes 0xe3 to 0xe9 are written like these
            return not "\xe3" <= token[0] <= "\xe9"
        return _is_letter(start)

    return of_bytes


def _is_letter(char: str) -> bool:
    """A letter of a script with spaces."""
    return char.isalpha() and not "\u3000" <= char <= "\u9fff"


def stands_for(text: str, offsets: Sequence[tuple[int, int]], content: np.ndarray) -> list[bool]:
    """Which tokens of a text stand for content alone: all their characters do but for spaces before them.

    Args:
      offsets: where in the text each token begins and ends.
      content: of each character whether it is content, bool.
    """
    found = []
    for start, end in offsets:
        if word := text[start:end].lstrip():
            start = end - len(word)
        found.append(start < end and bool(content[start:end].all()))
    return found
