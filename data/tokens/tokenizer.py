"""Tokenizers: train one, load one, and a thin wrapper around both.

`tokenizer.json` (the format of the `tokenizers` library and of Hugging Face) is the only truth: whatever it says is
what training, evaluation and serving use. Beside the one of a published model (data/tokens/hub.py) stands
`special_tokens.json`: what a text begins with and ends at, which tokenizer.json has no place for. What can be
trained is in data/tokens/backends.py.

For masked language modelling and span corruption (data/rows/corrupt.py) they can be trained with a mask token and
sentinels; in a tokenizer.json of other people these are found by their usual names.

Left out: chat templates (data/examples/chat.py); Unigram and WordPiece training (a tokenizer.json of either can be
loaded).
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, count, takewhile
from pathlib import Path

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

# What other people's tokenizers call it.
_MASK_NAMES = ("[MASK]", "<mask>", MASK)


class Tokenizer:
    """Text to ids and back. Nothing is added to what is encoded, and a text can't smuggle a special token in.

    Args:
      special: of a published model. None: a document begins after the token that ends the one before, which is found
        by its usual names.
    """

    def __init__(self, backend: Backend, special: SpecialTokens | None = None):
        # The text "<|endoftext|>" inside a document is text; only the packer writes the token. This property and the
        # two below aren't (or shouldn't be) part of the file, so they are set each time.
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocab.values()) + 1  # published vocabularies may have holes
        self.special = special or usual_special_tokens(vocab)
        self.published = special is not None
        if not all(
            0 <= i < self.vocab_size for i in {self.special.begin, self.special.start, *self.special.end} - {None}
        ):
            raise DataError(
                f"A special token lies outside of the vocabulary of {self.vocab_size} tokens: begin "
                f"{self.special.begin}, end {', '.join(map(str, self.special.end))}, start {self.special.start}."
            )
        self.eot_id: int = self.special.end[0]
        self.start_id: int = self.eot_id if self.special.start is None else self.special.start
        self.unknown_id: int | None = unknown_token(backend)
        self.mask_id: int | None = next((vocab[name] for name in _MASK_NAMES if name in vocab), None)
        # In the order of their names, whatever their ids: T5's run downwards.
        names = takewhile(vocab.__contains__, map(SENTINEL.format, count()))
        self.sentinel_ids: tuple[int, ...] = tuple(vocab[name] for name in names)
        special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        special |= {*self.special.end, *self.sentinel_ids} | ({self.special.begin, self.mask_id} - {None})
        self.special_ids: tuple[int, ...] = tuple(sorted(special))

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in _encodings(self._backend.encode_batch_fast, texts)]

    def encode_parts(self, parts: Sequence[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
        """The ids of joined texts, and which of them stand for texts that are said to be content."""
        text = "".join(part for part, _ in parts)
        (encoding,) = _encodings(self._backend.encode_batch, [text])
        content = np.repeat([is_content for _, is_content in parts], [len(part) for part, _ in parts])
        return encoding.ids, stands_for(text, encoding.offsets, content)

    def encode_words(self, words: Sequence[str]) -> tuple[list[int], list[int | None]]:
        """The ids of words with spaces between them, and where each word's first token stands among these (None: the
        word has none, like one that is empty, or that a normalizer leaves nothing of)."""
        encoding = self._backend.encode(" ".join(words), add_special_tokens=False)
        begins = accumulate((len(word) + 1 for word in words[:-1]), initial=0)
        tokens = (map(encoding.char_to_token, range(i, i + len(word))) for i, word in zip(begins, words, strict=True))
        return encoding.ids, [next((token for token in of_word if token is not None), None) for of_word in tokens]

    def between(self) -> list[int]:
        """What stands between two texts: what the tokenizer itself puts there (RoBERTa's: its end twice), or else the
        end."""
        encoding = self._backend.encode("a", "b")
        of_first, of_second = (
            [i for i, text in enumerate(encoding.sequence_ids) if text == number] for number in (0, 1)
        )
        own = encoding.ids[of_first[-1] + 1 : of_second[0]] if of_first and of_second else []
        return own or [self.eot_id]

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts for a model to go on with: each begins as the documents did that it was trained on."""
        begin = [] if self.special.begin is None else [self.special.begin]
        return [begin + ids for ids in self.encode_batch(texts)]

    def inputs(self, texts: Sequence[str], encoder: bool) -> dict[str, list[list[int]] | None]:
        """`prompts` and `sources` of model.decode.generate: an encoder, where there is one, reads the texts, which it
        saw in training with their end, and with sentinels: "<extra_id_0>" stands for what is to be filled in."""
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
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def altered(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> int:
        """How many texts are not what their `ids` decode to, so that the ids say less than the text: of an unknown
        character, or after a normalizer. A space before a text does not count: some tokenizers put one there."""
        decoded = self._backend.decode_batch([list(map(int, row)) for row in ids], skip_special_tokens=True)
        return sum(
            (self.unknown_id is not None and self.unknown_id in row)
            or text.removeprefix(" ") != found.removeprefix(" ")
            for text, found, row in zip(texts, decoded, ids, strict=True)
        )

    def decode_spans(self, ids: Iterable[int]) -> str:
        """As `decode`, with the sentinels shown: what an encoder-decoder fills in, gap by gap."""
        pieces = [[]]
        for i in map(int, ids):
            if i in self.sentinel_ids:
                pieces += [SENTINEL.format(self.sentinel_ids.index(i)), []]
            else:
                pieces[-1].append(i)
        return "".join(piece if isinstance(piece, str) else self.decode(piece) for piece in pieces)

    def continuations(self) -> np.ndarray:
        """Which tokens go on with a word that began before them (data/tokens/words.py), bool [vocab_size]; all others
        begin one."""
        result, is_later = np.zeros(self.vocab_size, bool), goes_on(self._backend)
        for token, i in self._backend.get_vocab(with_added_tokens=True).items():
            result[i] = is_later(token)
        result[list(self.special_ids)] = False
        return result

    def save(self, path: str | os.PathLike) -> None:
        """Writes `path`, and special_tokens.json beside it where there are some of a published model."""
        files.replace(Path(path), self.to_json())
        beside = Path(path).with_name(FILE)
        if self.published:
            files.replace(beside, json.dumps(dataclasses.asdict(self.special), indent=2) + "\n")
        else:
            beside.unlink(missing_ok=True)

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return self._backend.to_str()

    @property
    def fingerprint(self) -> str:
        """Of everything that `save` writes: what ids depend on, and what is handed on with a model."""
        text = self.to_json()
        if self.published:
            text += json.dumps(dataclasses.asdict(self.special), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _encodings(encode: Callable[..., list], texts: Sequence[str]) -> list:
    try:
        return encode(list(texts), add_special_tokens=False)
    except TypeError as error:  # what the backend raises for a str that has no UTF-8 form
        raise DataError("Text to encode must be a str of valid Unicode, without lone surrogates.") from error


def specials(mask: bool, sentinels: int) -> list[str]:
    """Names of the special tokens that corrupted text needs: a mask token, and this many sentinels."""
    return [MASK] * mask + [SENTINEL.format(i) for i in range(sentinels)]


def train(texts: Iterable[str], kind: str, vocab_size: int = 0, specials: Sequence[str] = ()) -> Tokenizer:
    """As `backends.trained`."""
    return Tokenizer(backends.trained(texts, kind, vocab_size, specials))


def load(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer.json `path`, with the special_tokens.json beside it where there is one.

    Raises:
      DataError: no file, or a damaged one.
    """
    path = Path(path)
    return Tokenizer(backends.load(path), load_special(path.with_name(FILE)))
