"""What a text begins with and ends at: special_tokens.json, which stands beside the tokenizer of a published model. And
which token stands for what is unknown."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import models

from data.batch import DataError

FILE = "special_tokens.json"
EOT = "<|endoftext|>"

# What other people's tokenizers call the token that ends a document, most specific first.
_EOT_NAMES = (EOT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """What a text begins with and ends at: the content of special_tokens.json."""

    begin: int | None  # stands before a prompt and a document; None: nothing does
    end: tuple[int, ...]  # each of them ends a text; the first is written after a document
    start: int | None = None  # what a decoder beside an encoder begins with; None: as its documents end
    # For an export: fields of config.json (bos_token_id, ...) and of tokenizer_config.json (bos_token, ...).
    config: dict[str, int | list[int] | None] = dataclasses.field(default_factory=dict)
    tokenizer_config: dict[str, Any] = dataclasses.field(default_factory=dict)


def usual_special_tokens(vocab: dict[str, int]) -> SpecialTokens:
    """Those of a tokenizer about which nothing else is known: the first token of _EOT_NAMES parts documents."""
    eot = next((name for name in _EOT_NAMES if name in vocab), None)
    if eot is None:
        raise DataError(f"The tokenizer has no token that ends a document: none of {', '.join(_EOT_NAMES)}.")
    i = vocab[eot]
    return SpecialTokens(i, (i,), None, {"bos_token_id": i, "eos_token_id": i}, {"bos_token": eot, "eos_token": eot})


def unknown_token(backend: Backend) -> int | None:
    """The token that stands for what the vocabulary has no token for; None where the model has no such token."""
    if isinstance(backend.model, models.Unigram):
        return json.loads(backend.to_str())["model"]["unk_id"]
    name = backend.model.unk_token
    return backend.token_to_id(name) if name else None


def load_special(path: Path) -> SpecialTokens | None:
    """The content of a special_tokens.json; None where there is no such file."""
    try:
        given = SpecialTokens(**json.loads(path.read_text(encoding="utf-8")))
        if not given.end or not all(isinstance(i, int) for i in [*given.end, given.begin or 0]):
            raise ValueError(f"begin is {given.begin!r}, end {given.end!r}")
        return dataclasses.replace(given, end=tuple(given.end))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): begin must be an id or null, end a list of ids.") from error
