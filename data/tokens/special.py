"""Special tokens: which tokens begin and end a text, and which one replaces unknown text.

A published model's special tokens are stored in special_tokens.json, beside its tokenizer.json.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import models

from data.batch import DataError

FILE = "special_tokens.json"
EOT = "<|endoftext|>"

# Usual names of the token that ends a document, most specific first.
_EOT_NAMES = (EOT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The content of special_tokens.json."""

    begin: int | None  # comes before a prompt and a document; None: no token does
    end: tuple[int, ...]  # each of them ends a text; the first one is written after a document
    start: int | None = None  # first input of an encoder-decoder's decoder; None: the end token
    # For export: fields of config.json (bos_token_id, ...) and of tokenizer_config.json (bos_token, ...).
    config: dict[str, int | list[int] | None] = dataclasses.field(default_factory=dict)
    tokenizer_config: dict[str, Any] = dataclasses.field(default_factory=dict)


def usual_special_tokens(vocab: dict[str, int]) -> SpecialTokens:
    """Returns the special tokens of a tokenizer without further information.

    The first token of _EOT_NAMES that the vocabulary has both begins and ends documents.

    Raises:
      DataError: the vocabulary has none of them.
    """
    eot = next((name for name in _EOT_NAMES if name in vocab), None)
    if eot is None:
        raise DataError(f"The tokenizer has no token that ends a document: none of {', '.join(_EOT_NAMES)}.")
    i = vocab[eot]
    return SpecialTokens(i, (i,), None, {"bos_token_id": i, "eos_token_id": i}, {"bos_token": eot, "eos_token": eot})


def unknown_token(backend: Backend) -> int | None:
    """Returns the id of the unknown token, which replaces text outside the vocabulary; None: there is none."""
    if isinstance(backend.model, models.Unigram):
        return json.loads(backend.to_str())["model"]["unk_id"]
    name = backend.model.unk_token
    return backend.token_to_id(name) if name else None


def load_special(path: Path) -> SpecialTokens | None:
    """Returns the content of a special_tokens.json, or None if there is no such file.

    Raises:
      DataError: the file is damaged.
    """
    try:
        given = SpecialTokens(**json.loads(path.read_text(encoding="utf-8")))
        if not given.end or not all(isinstance(i, int) for i in [*given.end, given.begin or 0]):
            raise ValueError(f"begin is {given.begin!r}, end {given.end!r}")
        return dataclasses.replace(given, end=tuple(given.end))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): begin must be an id or null, end a list of ids.") from error
