"""Defines an example (inputs and targets of a model) and a kind of examples.

A kind declares any arrays beyond those of all examples as channels (data/batch.py). data/examples/packing.py packs
examples into rows without splitting them.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.batch import CONTENT, ENCODER_CONTENT, TRAINED, Channel
from data.examples.asking import Asking
from data.tokens.tokenizer import Tokenizer

CUT = "examples were longer than {} tokens and were cut"  # a note


class LeftOut(ValueError):
    """A record is skipped because it does not fit into a row or has nothing to train on; the message is a note."""


class Example(NamedTuple):
    """A segment of a row: the tokens that a model reads, and its target at each token."""

    tokens: np.ndarray  # int32 [n]
    targets: np.ndarray  # int32 [n]: the next token, a class, or the bits of a float32 number
    marks: np.ndarray  # uint8 [n]: bits TRAINED, CONTENT and those that the kind declares
    source: np.ndarray | None = None  # int32 [m]: tokens of the encoder
    source_marks: np.ndarray | None = None  # uint8 [m]: ENCODER_CONTENT
    notes: tuple[str, ...] = ()  # what was done to the example; the number of each note is printed
    rank: int | None = None  # in an example of several segments (data/batch.py, ranks); None: its place there
    own: Mapping[str, np.ndarray] = {}  # the kind's own channels, [n]; those called 'encoder_...' are [m]

    @classmethod
    def of_ids(cls, ids, trained, content=False, source=None, source_content=False) -> "Example":
        """Returns the example that predicts each id from those before it, cut after the last trained id.

        Args:
          ids: int [n + 1].
          trained: which ids the loss counts, bool [n + 1].
          content: which ids are content (data/batch.py, CONTENT), bool [n + 1], or one bool for all.
          source: ids that the encoder reads, int [m]; None: there is no encoder.
          source_content: the same for `source`.
        """
        ids, trained = np.asarray(ids, np.int32), np.asarray(trained, bool)
        end = int(np.flatnonzero(trained)[-1]) + 1 if trained.any() else len(ids)
        marks = TRAINED * trained[1:end] | (CONTENT * np.broadcast_to(content, ids.shape))[: end - 1]
        example = cls(ids[: end - 1], ids[1:end], marks.astype(np.uint8))
        if source is None:
            return example
        source = np.asarray(source, np.int32)
        source_marks = ENCODER_CONTENT * np.broadcast_to(source_content, source.shape)
        return example._replace(source=source, source_marks=source_marks.astype(np.uint8))

    @property
    def trained(self) -> np.ndarray:
        """Which tokens have a target that the loss counts, bool [n]."""
        return self.marks & TRAINED > 0

    def sizes(self) -> list[int]:
        """Returns the number of tokens of the decoder, and of the encoder if there is one."""
        return [len(self.tokens)] + ([] if self.source is None else [len(self.source)])

    def at(self, places: np.ndarray | slice) -> "Example":
        """Returns the example with only these of its decoder tokens and their targets, marks and channels."""
        own = {name: values if is_encoders(name) else values[places] for name, values in self.own.items()}
        return self._replace(
            tokens=self.tokens[places], targets=self.targets[places], marks=self.marks[places], own=own
        )

    def source_at(self, places: np.ndarray | slice) -> "Example":
        """Returns the example with only these of its encoder tokens and their marks and channels."""
        assert self.source is not None and self.source_marks is not None
        own = {name: values[places] if is_encoders(name) else values for name, values in self.own.items()}
        return self._replace(source=self.source[places], source_marks=self.source_marks[places], own=own)


def is_encoders(name: str) -> bool:
    """Returns whether the channel called `name` goes with the encoder's tokens."""
    return name.startswith("encoder_")


class Context(NamedTuple):
    """What the encoding of a kind of examples depends on, beside the settings."""

    tokenizer: Tokenizer
    seq_len: int
    encoder: bool  # the model has an encoder beside its decoder
    train: Callable[[], Iterator[dict]]  # yields the kind's training records, as `parse` returned them
    prefix: tuple[int, ...] = ()  # ids that every example begins with; with an encoder, its source


class Encoding(NamedTuple):
    """How the records of one source become examples."""

    # parsed record -> example; a ValueError says what is wrong with the record, LeftOut why it is skipped. A list is an
    # example of several segments, which stay in one row and in this order; the kind must then declare GROUPS.
    encode: Callable[[dict], Example | list[Example]]
    facts: Mapping[str, Any] = {}  # JSON that is stored with the rows (PreparedSource.facts)
    warnings: tuple[str, ...] = ()  # what is odd about the training records as a whole; printed
    cut: Callable[[Example, int, int | None], Example] | None = None  # shortens a segment; None: `cut` below


class Kind(NamedTuple):
    """A kind of examples, for sources 'NAME:GLOB'; data/examples/kinds.py has the table of all kinds."""

    fields: Mapping[str, Any]  # the fields of the config's block data.NAME, with their defaults
    columns: tuple[str, ...]  # the names of those `fields` that `parse` depends on
    check: Callable[[Mapping[str, Any]], None]  # settings -> None; DataError if a value is not allowed
    # (record, settings) -> canonical JSON object; a ValueError says what is wrong with the record and what to do
    parse: Callable[[Mapping[str, Any], Mapping[str, Any]], dict]
    text: Callable[[dict], str]  # parsed record -> text to train a tokenizer on
    # (settings, tokenizer, encoder) -> JSON that changes when records are encoded differently; DataError if this
    # tokenizer can't encode them
    identity: Callable[[Mapping[str, Any], Tokenizer, bool], Any]
    # None: the records are not packed into rows, and what trains on them reads them itself
    encoding: Callable[[Mapping[str, Any], Context], Encoding] | None
    # settings -> the kind's own channels; one called 'targets' replaces that of all examples
    channels: Callable[[Mapping[str, Any]], tuple[Channel, ...]] = lambda settings: ()
    # (settings, tokenizer, encoder) -> the tokenizer with how conversations are written, so that other libraries write
    # them alike; DataError where they would make other tokens of them
    hand_on: Callable[[Mapping[str, Any], Tokenizer, bool], Tokenizer] = lambda settings, tokenizer, encoder: tokenizer
    asking: Asking | None = None  # how a model is asked for an answer; None: there are no answers to grade
    encoder: bool | None = None  # True: only for encoder-decoders; False: only for other models; None: for all
    # settings -> whether some words carry no target, which augmentation may change
    augmentable: Callable[[Mapping[str, Any]], bool] = lambda settings: True
    # (settings, special tokens) -> None; DataError if a tokenizer that is trained here lacks tokens that the kind needs
    check_trained: Callable[[Mapping[str, Any], Collection[str]], None] = lambda settings, specials: None


def cut(example: Example, seq_len: int, begin: int | None) -> Example:
    """Returns the part of an example that fits into a row.

    The prompt is cut from the left: the last `seq_len` tokens stay, after the begin token if the example has one. But
    the prompt keeps a quarter of the row (less if it is shorter), and the end of a last answer that exceeds the rest is
    cut. An encoder's source is cut like a prompt.

    Args:
      example: its own size may be anything.
      seq_len: the most tokens to keep on each side.
      begin: the token that begins a text; None: there is none.
    """
    n, source = len(example.tokens), example.source
    if source is not None:
        example = example.source_at(slice(-seq_len, None))._replace(source=cut_prompt(source, seq_len, begin))
    if n <= seq_len:
        return example
    untrained = np.flatnonzero(~example.trained)
    prompt = int(untrained[-1]) + 2 if len(untrained) else 1  # tokens before the last answer
    first = min(n - seq_len, max(prompt - max(seq_len // 4, 1), 0))
    part = slice(first, first + seq_len)
    return example.at(part)._replace(tokens=_keep_begin(example.tokens, first, seq_len, begin))


def cut_prompt(ids: np.ndarray, length: int, begin: int | None) -> np.ndarray:
    """Returns at most the last `length` of ids [n], after the begin token if they start with it."""
    return ids if len(ids) <= length else _keep_begin(ids, len(ids) - length, length, begin)


def cut_end(ids: np.ndarray, length: int) -> np.ndarray:
    """Returns at most `length` of ids [n]: the first ones, and the last one, which is the end token."""
    return ids if len(ids) <= length else np.concatenate([ids[: length - 1], ids[-1:]])


def _keep_begin(ids: np.ndarray, first: int, count: int, begin: int | None) -> np.ndarray:
    part = ids[first : first + count].copy()
    if ids[0] == begin:
        part[0] = begin
    return part


def prefixed(example: Example, prefix: Sequence[int]) -> Example:
    """Returns the example with `prefix` before it, without targets; with an encoder, before its source."""
    before = lambda values, fill: np.concatenate([np.asarray(fill, values.dtype), values])
    nothing = [0] * len(prefix)
    fills = dict(tokens=prefix, targets=nothing, marks=nothing)
    if example.source is not None:
        fills = dict(source=prefix, source_marks=nothing)
    side = example.source is not None
    own = {
        name: before(values, nothing) if is_encoders(name) == side else values for name, values in example.own.items()
    }
    values: dict[str, Any] = {name: before(getattr(example, name), fill) for name, fill in fills.items()}
    return example._replace(own=own, **values)
