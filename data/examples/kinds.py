"""The kinds of sources of examples, by the name before the colon. What is none of them is text."""

import functools
from collections.abc import Mapping
from typing import Any

from data.batch import TEXT as TEXT_CHANNELS
from data.batch import Channel, DataError, example_channels, united
from data.examples import chat_examples, labels, pairs
from data.examples.example import Kind
from data.read.records import RecordSource
from data.settings import merged

_PARSED = 2  # part of what names corpora of examples: raise it when `parse` makes something else of the same records

KINDS: dict[str, Kind] = {"chat": chat_examples.KIND, "pairs": pairs.KIND, "labels": labels.KIND}

TEXT = "text"


def kind_of(spec: str) -> str:
    """The kind of a source by its spec, TEXT if it is no source of examples."""
    name = spec.partition(":")[0]
    return name if name in KINDS and ":" in spec else TEXT


def open_source(spec: str, settings: Mapping[str, Any]) -> RecordSource:
    """The source of a spec 'KIND:GLOB'; `settings` are those of the config's block data.KIND."""
    name, _, pattern = spec.partition(":")
    kind = KINDS[name]
    parse = functools.partial(kind.parse, settings=settings)
    return RecordSource(pattern, parse, [_PARSED, name, {column: settings[column] for column in kind.columns}])


def asked(data_config: Mapping[str, Any]) -> str:
    """The kind of examples by which a model that learnt from these data is asked: of those that train and are answered
    in words the first one in KINDS; TEXT where there is none."""
    train = {kind_of(spec) for spec, weight in sources(data_config) if weight}
    return next((name for name, kind in KINDS.items() if name in train and kind.asking is not None), TEXT)


def channels(kind: str, settings: Mapping[str, Any], encoder: bool) -> tuple[Channel, ...]:
    """Those of the rows of a source of this kind; `settings` of all kinds, as `checked` gives them."""
    if kind == TEXT:
        return TEXT_CHANNELS
    return example_channels(KINDS[kind].channels(settings[kind]), encoder)


def batch_channels(data_config: Mapping[str, Any], encoder: bool) -> tuple[Channel, ...]:
    """Those of the batches that the config's block `data` gives, where no text is corrupted.

    Raises:
      DataError: two of its sources can't be in one batch.
    """
    settings = checked(data_config)
    return united({spec: channels(kind_of(spec), settings, encoder) for spec, _ in sources(data_config)})


def check_encoder(kind: str, encoder: bool) -> None:
    """DataError where examples of this kind are not for a model with (or without) an encoder beside its decoder."""
    wanted = None if kind == TEXT else KINDS[kind].encoder
    if wanted is False and encoder:
        raise DataError(f"Sources {kind}:GLOB are for decoders and encoders, and the model is an encoder-decoder.")
    if wanted and not encoder:
        raise DataError(f"Sources {kind}:GLOB are for encoder-decoders, and the model is none.")


def checked(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of every kind, with defaults, from the config's block `data`."""
    blocks = {}
    for name, kind in KINDS.items():
        blocks[name] = merged(given.get(name) or {}, kind.fields, f"data.{name}")
        kind.check(blocks[name])
    return blocks


def sources(data_config: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(spec, weight) of the config's block `data`: data.path first, then data.sources."""
    given, path, kind = data_config["sources"], data_config.get("path") or "", data_config.get("format") or "chat"
    try:
        pairs = [(str(spec), float(weight)) for spec, weight in given]
    except (TypeError, ValueError):
        raise DataError(
            f"data.sources must be pairs of a source and a weight, like (('stdlib', 1.0),), not {given!r}."
        ) from None
    if path and kind not in KINDS:
        raise DataError(f"data.format must be one of {', '.join(KINDS)}, not {kind!r}; it says what data.path holds.")
    return [(f"{kind}:{path}", 1.0)] * bool(path) + pairs
