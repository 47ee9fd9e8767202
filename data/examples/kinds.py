"""The table of kinds of examples, by the name before the colon of a source; all other sources are text."""

from collections.abc import Mapping
from typing import Any

from data.batch import TEXT as TEXT_CHANNELS
from data.batch import Channel, DataError, example_channels, united
from data.examples.chat_examples import KIND as CHAT
from data.examples.example import Kind
from data.examples.judged.preferences import PREFERENCES, RANKINGS
from data.examples.judged.prompts import PROMPTS
from data.examples.judged.unpaired import UNPAIRED
from data.examples.labels import KIND as LABELS
from data.examples.pairs import KIND as PAIRS
from data.read.records import RecordSource
from data.settings import merged
from data.tokens.tokenizer import Tokenizer

_PARSED = 2  # part of the hash of example corpora: raise it when `parse` returns something else for the same records

KINDS: dict[str, Kind] = {
    "chat": CHAT,
    "pairs": PAIRS,
    "labels": LABELS,
    "preferences": PREFERENCES,
    "rankings": RANKINGS,
    "unpaired": UNPAIRED,
    "prompts": PROMPTS,
}

TEXT = "text"


def kind_of(spec: str) -> str:
    """Returns the kind of a source by its spec, or TEXT if it does not hold examples."""
    name = spec.partition(":")[0]
    return name if name in KINDS and ":" in spec else TEXT


def open_source(spec: str, settings: Mapping[str, Any]) -> RecordSource:
    """Returns the source of a spec 'KIND:GLOB'; `settings` are the config's data.KIND."""
    name, _, pattern = spec.partition(":")
    kind = KINDS[name]
    parse = lambda record: kind.parse(record, settings)
    return RecordSource(pattern, parse, [_PARSED, name, {column: settings[column] for column in kind.columns}])


def asked(data_config: Mapping[str, Any]) -> str:
    """Returns the kind whose prompts a model trained on these data expects.

    It is the first one in KINDS that is trained on and whose answers are text, or TEXT if there is none.
    """
    return next((name for name in _trained(data_config) if KINDS[name].asking is not None), TEXT)


def hand_on(data_config: Mapping[str, Any], tokenizer: Tokenizer, encoder: bool) -> Tokenizer:
    """Returns the tokenizer with how this config's conversations are written, as the first kind in KINDS writes them.

    Raises:
      DataError: other libraries would encode a conversation differently.
    """
    kind = next(iter(_trained(data_config)), None)
    return KINDS[kind].hand_on(checked(data_config)[kind], tokenizer, encoder) if kind else tokenizer


def chat_settings(data_config: Mapping[str, Any]) -> dict[str, str]:
    """Returns how conversations that are trained on are written: {"template", "system"}, or {} if there are none."""
    blocks = (checked(data_config)[name] for name in _trained(data_config) if "template" in KINDS[name].fields)
    return next(({name: block[name] for name in ("template", "system")} for block in blocks), {})


def _trained(data_config: Mapping[str, Any]) -> list[str]:
    """Returns the kinds of examples that are trained on, in the order of KINDS."""
    train = {kind_of(spec) for spec, weight in sources(data_config) if weight}
    return [name for name in KINDS if name in train]


def channels(kind: str, settings: Mapping[str, Any], encoder: bool) -> tuple[Channel, ...]:
    """Returns the channels of a kind's rows; `settings` are those of all kinds, as `checked` returns them."""
    if kind == TEXT:
        return TEXT_CHANNELS
    if KINDS[kind].encoding is None:
        return ()
    return example_channels(KINDS[kind].channels(settings[kind]), encoder)


def batch_channels(data_config: Mapping[str, Any], encoder: bool) -> tuple[Channel, ...]:
    """Returns the channels of batches for the config's `data` block, without those of corruption.

    Raises:
      DataError: two of its sources can't be in one batch.
    """
    settings = checked(data_config)
    return united({spec: channels(kind_of(spec), settings, encoder) for spec, _ in sources(data_config)})


def asks(data_config: Mapping[str, Any]) -> bool:
    """Returns whether the config's `data` block has prompts, whose answers the model samples itself."""
    train = {kind_of(spec) for spec, weight in sources(data_config) if weight}
    return any(kind != TEXT and KINDS[kind].encoding is None for kind in train)


def learnable(kind: str) -> bool:
    """Returns whether rows of this kind of examples hold text to predict."""
    return KINDS[kind].asking is not None and KINDS[kind].encoding is not None


def check_encoder(kind: str, encoder: bool) -> None:
    """Raises a DataError if examples of this kind don't suit the model; `encoder`: it is an encoder-decoder."""
    wanted = None if kind == TEXT else KINDS[kind].encoder
    if wanted is False and encoder:
        raise DataError(f"Sources {kind}:GLOB are for decoders and encoders, but the model is an encoder-decoder.")
    if wanted and not encoder:
        raise DataError(f"Sources {kind}:GLOB are for encoder-decoders, but the model is not one.")


def checked(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the settings of every kind, with defaults filled in.

    Args:
      given: the config's `data` block.

    Raises:
      DataError: a field is unknown or its value is not allowed.
    """
    blocks = {}
    for name, kind in KINDS.items():
        blocks[name] = merged(given.get(name) or {}, kind.fields, f"data.{name}")
        kind.check(blocks[name])
    return blocks


def sources(data_config: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Returns (spec, weight) of each source in the config's `data` block: data.path first, then data.sources.

    Raises:
      DataError: data.sources are not pairs, or data.format is unknown.
    """
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
