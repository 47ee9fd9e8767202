"""Trains or loads tokenizers of the `tokenizers` library; data/tokens/tokenizer.py wraps them.

bpe   byte-level BPE (GPT-2, with Llama 3's split into words). Lossless for every text.
byte  the 256 bytes, no merges. Lossless.
char  one token for each character seen in training, and one for all other characters.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from data import files
from data.batch import DataError
from data.tokens import long_words
from data.tokens.special import EOT

UNKNOWN = "<|unknown|>"
KINDS = ("bpe", "byte", "char")
# Llama 3's split into words before merging (GPT-4's, except for the digits): at most three digits per word, and a run
# of newlines stays together. It gives 1 % fewer tokens than GPT-2's pattern on source code, at the same speed.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def trained(texts: Iterable[str], kind: str, vocab_size: int = 0, specials: Sequence[str] = ()) -> Backend:
    """Trains a tokenizer; the same texts in the same order give the same tokenizer.

    Args:
      texts: what to train on.
      kind: one of KINDS.
      vocab_size: includes the special tokens, EOT and `specials`. For bpe it is the size to reach (a small corpus may
        have too few merges); for byte and char it is an upper limit (0: none), and char keeps the most frequent
        characters.
      specials: names of further special tokens.

    Raises:
      DataError: the kind is unknown, or `vocab_size` is too small for it.
    """
    if kind not in KINDS:
        raise DataError(f"Unknown tokenizer kind {kind!r}: use one of {', '.join(KINDS)}, or 'file' with a path.")
    if kind == "char":
        return _train_char(texts, vocab_size, specials)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [EOT, *specials]
    least = len(alphabet) + len(special)
    if not vocab_size and kind == "bpe":
        raise DataError("A bpe tokenizer needs a vocab_size.")
    if vocab_size and vocab_size < least:
        names = ", ".join(special[:3]) + (", ..." if len(special) > 3 else "")
        raise DataError(f"A {kind} tokenizer needs a vocab_size of {least} (256 bytes and {names}), not {vocab_size}.")
    if kind == "byte":
        backend = Backend(models.BPE({token: i for i, token in enumerate(special + alphabet)}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.add_special_tokens(special)
    else:
        backend = Backend(models.BPE())
        words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, long_words.cut(), level])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _train_char(texts: Iterable[str], vocab_size: int, specials: Sequence[str]) -> Backend:
    specials = [EOT, UNKNOWN, *specials]
    if vocab_size and vocab_size <= len(specials):
        raise DataError(f"A char tokenizer needs a vocab_size above {len(specials)}, not {vocab_size}.")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    kept = sorted(counts, key=lambda char: (-counts[char], char))
    if vocab_size:
        kept = kept[: vocab_size - len(specials)]
    vocab = {token: i for i, token in enumerate(specials + sorted(kept))}
    # BPE without merges gives one token per character, five times faster than a word-level model that splits first.
    backend = Backend(models.BPE(vocab, [], unk_token=UNKNOWN))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(specials)
    return backend


def load(path: Path) -> Backend:
    """Returns the tokenizer of a tokenizer.json.

    Raises:
      DataError: the file is missing, damaged, or a Git LFS pointer.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"There is no tokenizer at {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The tokenizer {path} can't be read: {error}.") from error
    files.refuse_pointer(path)
    try:
        return Backend.from_str(content)
    except Exception as error:  # the library raises a plain Exception for every kind of broken file
        raise DataError(f"{path} is not a tokenizer.json: {error}.") from error
