"""Finds which tokens continue a word, and which tokens represent a part of a text.

A word begins with a space, a punctuation mark, a digit or a letter, and includes the letters after it. Chinese and
Japanese have no spaces, so there each token begins a word. Left out: their words of several tokens, which would need a
dictionary.
"""

import json
import re
from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

# SentencePiece's byte tokens that continue a word: not ASCII, and not 0xe3 to 0xe9, which begin U+3000 to U+9FFF.
_LATER_BYTE = re.compile("<0x([89A-DF][0-9A-F]|E[0-2A-F])>")


def goes_on(backend: Backend) -> Callable[[str], bool]:
    """Returns a function that says by a token's name whether it continues a word that began before it.

    WordPiece marks such tokens with a prefix ('##'). In other models a token continues a word if its text begins with a
    letter, and not with a space (also written 'Ġ' or '▁'), a line break, a digit or a punctuation mark. Bytes that are
    not a whole character continue a word, except for the first byte of a Chinese or Japanese character.
    """
    if isinstance(backend.model, models.WordPiece):
        prefix = backend.model.continuing_subword_prefix
        return lambda token: token.startswith(prefix)
    if "ByteLevel" not in json.dumps(json.loads(backend.to_str())["decoder"]):
        return lambda token: _is_letter(token[:1]) or _LATER_BYTE.fullmatch(token) is not None
    text = decoders.ByteLevel()

    def of_bytes(token: str) -> bool:
        start = text.decode([token])[:1]
        if start == "\ufffd":  # not a whole character; byte-level BPE writes the bytes 0xe3 to 0xe9 as "ã" to "é"
            return not "\xe3" <= token[0] <= "\xe9"
        return _is_letter(start)

    return of_bytes


def _is_letter(char: str) -> bool:
    """Returns whether a character is a letter of a script that has spaces."""
    return char.isalpha() and not "\u3000" <= char <= "\u9fff"


def stands_for(text: str, offsets: Sequence[tuple[int, int]], content: np.ndarray) -> list[bool]:
    """Returns which tokens of a text are content: all of their characters are, except for leading spaces.

    Args:
      text: the text.
      offsets: where in the text each token begins and ends.
      content: which characters are content, bool [characters].
    """
    found = []
    for start, end in offsets:
        if word := text[start:end].lstrip():
            start = end - len(word)
        found.append(start < end and bool(content[start:end].all()))
    return found
