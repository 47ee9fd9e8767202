"""Tokenizers: train one, load one, and a thin wrapper around both.

`tokenizer.json` (the format of the `tokenizers` library and of Hugging Face) is the only truth: whatever it says is
what training, evaluation and serving use. Three kinds can be trained here:

    bpe   byte-level BPE (GPT-2; Llama 3's split into words). Lossless for every text.
    byte  the 256 bytes, no merges. Lossless.
    char  one token for each character seen, and one for all the others.

Left out: chat templates; Unigram and WordPiece training (a tokenizer.json of either kind can be loaded).
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from data.batch import DataError

EOT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
KINDS = ("bpe", "byte", "char")

# What other people's tokenizers call the token that ends a document, most specific first.
_EOT_NAMES = (EOT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")

# How Llama 3 (and, but for the digits, GPT-4) cuts text into words before merging: at most three digits to a word, a
# run of newlines kept together. Gives 1 % fewer tokens than GPT-2's pattern on source code, at the same speed.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Text to ids and back. Nothing is added to what is encoded, and a text can't smuggle a special token in."""

    def __init__(self, backend: Backend):
        # The text "<|endoftext|>" inside a document is text; only the packer writes the token. This property and the
        # two below aren't (or shouldn't be) part of the file, so they are set each time.
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocab.values()) + 1  # published vocabularies may have holes
        eot = next((name for name in _EOT_NAMES if name in vocab), None)
        if eot is None:
            raise DataError(f"The tokenizer has no token that ends a document: none of {', '.join(_EOT_NAMES)}.")
        self.eot_id: int = vocab[eot]
        self.unknown_id: int | None = vocab.get(UNKNOWN)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as error:  # what the backend raises for a str that has no UTF-8 form
            raise DataError("Text to encode must be a str of valid Unicode, without lone surrogates.") from error
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, path: str | os.PathLike) -> None:
        Path(path).write_text(self._backend.to_str(), encoding="utf-8")

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()[:16]


def train(texts: Iterable[str], kind: str, vocab_size: int = 0) -> Tokenizer:
    """Makes a tokenizer of `kind` from `texts`; the same texts in the same order give the same tokenizer.

    `vocab_size` counts the special tokens. For bpe it is the size asked for (a small corpus may have too few merges to
    reach it); for byte and char it is an upper limit (0: none), and char keeps the most frequent characters.
    """
    if kind not in KINDS:
        raise DataError(f"Unknown tokenizer kind {kind!r}: use one of {', '.join(KINDS)}, or 'file' with a path.")
    if kind == "char":
        return _train_char(texts, vocab_size)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(alphabet) + 1
    if not vocab_size and kind == "bpe":
        raise DataError("A bpe tokenizer needs a vocab_size.")
    if vocab_size and vocab_size < least:
        raise DataError(f"A {kind} tokenizer needs a vocab_size of {least} (256 bytes and {EOT}), not {vocab_size}.")
    if kind == "byte":
        backend = Backend(models.BPE({EOT: 0} | {byte: i for i, byte in enumerate(alphabet, 1)}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.add_special_tokens([EOT])
    else:
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[EOT],
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


def _train_char(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    specials = [EOT, UNKNOWN]
    if vocab_size and vocab_size <= len(specials):
        raise DataError(f"A char tokenizer needs a vocab_size above {len(specials)}, not {vocab_size}.")
    counts = Counter()
    for text in texts:
        counts.update(text)
    kept = sorted(counts, key=lambda char: (-counts[char], char))
    if vocab_size:
        kept = kept[: vocab_size - len(specials)]
    vocab = {token: i for i, token in enumerate(specials + sorted(kept))}
    # BPE without merges gives one token a character, five times faster than a word-level model that splits first.
    backend = Backend(models.BPE(vocab, [], unk_token=UNKNOWN))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(specials)
    return Tokenizer(backend)


def load(path: str | os.PathLike) -> Tokenizer:
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"There is no tokenizer at {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The tokenizer {path} can't be read: {error}.") from error
    try:
        backend = Backend.from_str(content)
    except Exception as error:  # the library raises a plain Exception for every kind of broken file
        raise DataError(f"{path} is not a tokenizer.json: {error}.") from error
    return Tokenizer(backend)
