"""Trains and loads tokenizers, and wraps them for the rest of the package.

`tokenizer.json` (the format of the `tokenizers` library and of Hugging Face) is the single source of truth for
training, evaluation and serving. A published model (data/tokens/hub.py) also has a `special_tokens.json`, which says
which tokens begin and end a text, because tokenizer.json has no field for that. data/tokens/backends.py has the kinds
that can be trained.

For masked language modelling and span corruption (data/rows/corrupt.py), tokenizers can be trained with a mask token
and sentinels. In other tokenizers these are found by their usual names.

Left out: chat templates (data/examples/chat.py), and training of Unigram and WordPiece (a tokenizer.json of either can
be loaded).
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, count, takewhile
from pathlib import Path
from typing import TypedDict

import numpy as np
from tokenizers import Tokenizer as Backend

from data import files
from data.batch import DataError
from data.tokens import backends
from data.tokens.special import FILE, SpecialTokens, load_special, unknown_token, usual_special_tokens
from data.tokens.words import goes_on, stands_for

MASK = "<|mask|>"
SENTINEL = "<extra_id_{}>"
_SENTINELS = re.compile(r"<extra_id_(\d+)>")

# Usual names of the mask token.
_MASK_NAMES = ("[MASK]", "<mask>", MASK)


class Inputs(TypedDict):
    """What a model continues (`prompts`) and what its encoder reads (`sources`; None: it has no encoder), as ids."""

    prompts: list[list[int]]
    sources: list[list[int]] | None


class Tokenizer:
    """Converts text to ids and back; it adds no tokens, and a text can't contain a special token.

    Args:
      backend: the tokenizer of the `tokenizers` library.
      special: the special tokens of a published model. None: the end token is found by its usual names, and a document
        begins with the end token of the one before.

    Raises:
      DataError: a special token lies outside the vocabulary.
    """

    def __init__(self, backend: Backend, special: SpecialTokens | None = None):
        # "<|endoftext|>" inside a document is text; only the packer writes the token. This property and the two below
        # aren't (or shouldn't be) part of the file, so they are set each time.
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocab.values()) + 1  # published vocabularies may have holes
        self.special = special or usual_special_tokens(vocab)
        self.published = special is not None
        named = (self.special.begin, self.special.start, *self.special.end)
        if not all(0 <= i < self.vocab_size for i in named if i is not None):
            raise DataError(
                f"A special token lies outside the vocabulary of {self.vocab_size} tokens: begin "
                f"{self.special.begin}, end {', '.join(map(str, self.special.end))}, start {self.special.start}."
            )
        self.eot_id: int = self.special.end[0]
        self.start_id: int = self.eot_id if self.special.start is None else self.special.start
        self.unknown_id: int | None = unknown_token(backend)
        self.mask_id: int | None = next((vocab[name] for name in _MASK_NAMES if name in vocab), None)
        # In the order of their names, because T5's ids run downwards.
        names = takewhile(vocab.__contains__, map(SENTINEL.format, count()))
        self.sentinel_ids: tuple[int, ...] = tuple(vocab[name] for name in names)
        ids = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        ids |= {*self.special.end, *self.sentinel_ids}
        ids |= {i for i in (self.special.begin, self.mask_id) if i is not None}
        self.special_ids: tuple[int, ...] = tuple(sorted(ids))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text.

        Raises:
          DataError: a text has lone surrogates.
        """
        return [encoding.ids for encoding in _encodings(self._backend.encode_batch_fast, texts)]

    def encode_parts(self, parts: Sequence[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
        """Returns the ids of concatenated (text, is content) parts, and which ids are content."""
        text = "".join(part for part, _ in parts)
        (encoding,) = _encodings(self._backend.encode_batch, [text])
        content = np.repeat([is_content for _, is_content in parts], [len(part) for part, _ in parts])
        return encoding.ids, stands_for(text, encoding.offsets, content)

    def encode_words(self, words: Sequence[str]) -> tuple[list[int], list[int | None]]:
        """Returns the ids of words joined by spaces, and the index of each word's first token.

        The index is None if a word has no token, because it is empty or a normalizer removes all of it.
        """
        encoding = self._backend.encode(" ".join(words), add_special_tokens=False)
        begins = accumulate((len(word) + 1 for word in words[:-1]), initial=0)
        tokens = (map(encoding.char_to_token, range(i, i + len(word))) for i, word in zip(begins, words, strict=True))
        return encoding.ids, [next((token for token in of_word if token is not None), None) for of_word in tokens]

    def between(self) -> list[int]:
        """Returns the separator of two texts: the tokenizer's own (RoBERTa: its end token twice), or the end token."""
        encoding = self._backend.encode("a", "b")
        of_first, of_second = (
            [i for i, text in enumerate(encoding.sequence_ids) if text == number] for number in (0, 1)
        )
        own = encoding.ids[of_first[-1] + 1 : of_second[0]] if of_first and of_second else []
        return own or [self.eot_id]

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts for a model to continue, each after the token that begins documents in training."""
        begin = [] if self.special.begin is None else [self.special.begin]
        return [begin + ids for ids in self.encode_batch(texts)]

    def inputs(self, texts: Sequence[str], encoder: bool) -> Inputs:
        """Returns `prompts` and `sources` of model.decode.generate for plain texts.

        An encoder reads the texts with the end token, as in training. "<extra_id_0>" in a text becomes a sentinel, a
        gap for the decoder to fill in.
        """
        if not encoder:
            return {"prompts": self.prompts(texts), "sources": None}
        return {"prompts": [[self.start_id]] * len(texts), "sources": [self._source(text) for text in texts]}

    def _source(self, text: str) -> list[int]:
        pieces = _SENTINELS.split(text)  # text, number, text, number, ..., text
        ids = self.encode(pieces[0])
        for number, piece in zip(map(int, pieces[1::2]), pieces[2::2], strict=True):
            if number >= len(self.sentinel_ids):
                raise DataError(
                    f"The text has {SENTINEL.format(number)}, but the tokenizer has {len(self.sentinel_ids)} sentinels."
                )
            ids += [self.sentinel_ids[number], *self.encode(piece)]
        return [*ids, self.eot_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of some ids, without special tokens."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def altered(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> int:
        """Returns how many texts differ from what their `ids` decode to, because of unknown tokens or a normalizer.

        A space before a text is ignored, because some tokenizers add one.
        """
        decoded = self._backend.decode_batch([list(map(int, row)) for row in ids], skip_special_tokens=True)
        return sum(
            (self.unknown_id is not None and self.unknown_id in row)
            or text.removeprefix(" ") != found.removeprefix(" ")
            for text, found, row in zip(texts, decoded, ids, strict=True)
        )

    def decode_spans(self, ids: Iterable[int]) -> str:
        """Returns the text of some ids with the names of sentinels, each before the text that fills its gap."""
        pieces: list[str] = []
        span: list[int] = []
        for i in map(int, ids):
            if i in self.sentinel_ids:
                pieces += [self.decode(span), SENTINEL.format(self.sentinel_ids.index(i))]
                span = []
            else:
                span.append(i)
        return "".join([*pieces, self.decode(span)])

    def continuations(self) -> np.ndarray:
        """Returns which tokens continue a word (data/tokens/words.py), bool [vocab_size]; all others begin one."""
        result, is_later = np.zeros(self.vocab_size, bool), goes_on(self._backend)
        for token, i in self._backend.get_vocab(with_added_tokens=True).items():
            result[i] = is_later(token)
        result[list(self.special_ids)] = False
        return result

    def save(self, path: str | os.PathLike) -> None:
        """Writes tokenizer.json to `path`, and for a published model special_tokens.json beside it."""
        files.replace(Path(path), self.to_json())
        beside = Path(path).with_name(FILE)
        if self.published:
            files.replace(beside, json.dumps(dataclasses.asdict(self.special), indent=2) + "\n")
        else:
            beside.unlink(missing_ok=True)

    def to_json(self) -> str:
        """Returns the content of tokenizer.json."""
        return self._backend.to_str()

    @property
    def fingerprint(self) -> str:
        """A hash of everything that `save` writes."""
        text = self.to_json()
        if self.published:
            text += json.dumps(dataclasses.asdict(self.special), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _encodings(encode: Callable[..., list], texts: Sequence[str]) -> list:
    try:
        return encode(list(texts), add_special_tokens=False)
    except TypeError as error:  # the backend raises it for a str that has no UTF-8 form
        raise DataError("Text to encode must be a str of valid Unicode, without lone surrogates.") from error


def specials(mask: bool, sentinels: int) -> list[str]:
    """Returns the names of the special tokens for corruption: a mask token if `mask`, and this many sentinels."""
    return [MASK] * mask + [SENTINEL.format(i) for i in range(sentinels)]


def train(texts: Iterable[str], kind: str, vocab_size: int = 0, specials: Sequence[str] = ()) -> Tokenizer:
    """Trains a tokenizer, with the arguments and errors of `backends.trained`."""
    return Tokenizer(backends.trained(texts, kind, vocab_size, specials))


def load(path: str | os.PathLike) -> Tokenizer:
    """Returns the tokenizer of the tokenizer.json `path`, with the special_tokens.json beside it if there is one.

    Raises:
      DataError: the file is missing or damaged.
    """
    path = Path(path)
    return Tokenizer(backends.load(path), load_special(path.with_name(FILE)))
