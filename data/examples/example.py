"""Examples: what a model reads and what it must say. They are packed whole into rows by data/examples/packing.py.

A kind of examples declares the arrays of its rows as channels (data/batch.py), beside those that all examples have.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.batch import CONTENT, ENCODER_CONTENT, TRAINED, Channel
from data.examples.asking import Asking
from data.tokens.tokenizer import Tokenizer

CUT = "examples were longer than {} tokens and were cut"  # a note


class LeftOut(ValueError):
    """A record that no row has room for, or of which nothing is left; the message is a note (see Example)."""


class Example(NamedTuple):
    """What a model reads, and what it must say at each token: a segment of a row."""

    tokens: np.ndarray  # int32 [n]
    targets: np.ndarray  # int32 [n]: the next token; a class; of a number the bits of its float32
    marks: np.ndarray  # uint8 [n]: bits, TRAINED and CONTENT and those that the kind declares
    source: np.ndarray | None = None  # int32 [m]: what an encoder reads
    source_marks: np.ndarray | None = None  # uint8 [m]: ENCODER_CONTENT
    notes: tuple[str, ...] = ()  # what was done to it; how often each occurs is printed
    own: Mapping[str, np.ndarray] = {}  # [n], or of names 'encoder_...' [m]: what the kind declares, by name

    @classmethod
    def of_ids(cls, ids, trained, content=False, source=None, source_content=False) -> "Example":
        """Predict each id from those before it; the loss counts where `trained`, and what follows the last such id is
        left out. `content` and `source_content` say which ids are (True or False: all, or none)."""
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
        """Where the loss counts, bool [n]."""
        return self.marks & TRAINED > 0

    def sizes(self) -> list[int]:
        """Tokens on each side."""
        return [len(self.tokens)] + ([] if self.source is None else [len(self.source)])

    def at(self, places: np.ndarray | slice) -> "Example":
        """The example with these of its tokens and of all that goes along with them."""
        own = {name: values if is_encoders(name) else values[places] for name, values in self.own.items()}
        return self._replace(
            tokens=self.tokens[places], targets=self.targets[places], marks=self.marks[places], own=own
        )

    def source_at(self, places: np.ndarray | slice) -> "Example":
        """The same of the encoder's tokens."""
        own = {name: values[places] if is_encoders(name) else values for name, values in self.own.items()}
        return self._replace(source=self.source[places], source_marks=self.source_marks[places], own=own)


def is_encoders(name: str) -> bool:
    """Whether a channel goes along with what an encoder reads."""
    return name.startswith("encoder_")


class Context(NamedTuple):
    """What a kind of examples is encoded for."""

    tokenizer: Tokenizer
    seq_len: int
    encoder: bool  # the model has an encoder beside its decoder
    train: Callable[[], Iterator[dict]]  # the records of its kind to train on, as `parse` gave them
    prefix: tuple[int, ...] = ()  # what each example, or its source, begins with


class Encoding(NamedTuple):
    """How the records of one source become examples."""

    # Of a record; ValueError says what is wrong with it, LeftOut why it is skipped. A list is an example of several
    # segments, which stay in one row and in their order; the kind then declares GROUPS, which says where they are.
    encode: Callable[[dict], Example | list[Example]]
    facts: Mapping[str, Any] = {}  # JSON that is kept with the rows (PreparedSource.facts)
    warnings: tuple[str, ...] = ()  # what is odd about the records to train on, all together; printed
    cut: Callable[[Example, int, int | None], Example] | None = None  # of each segment, in place of `cut` below


class Kind(NamedTuple):
    """One kind of source of examples, 'NAME:GLOB'; the table of them is data/examples/kinds.py."""

    fields: Mapping[str, Any]  # of the config's block data.NAME, with their defaults
    columns: tuple[str, ...]  # those of `fields` that `parse` depends on
    check: Callable[[Mapping[str, Any]], None]  # settings -> DataError where a value can't be
    # (record, settings) -> canonical JSON object; ValueError says what is wrong with the record and what to do
    parse: Callable[[Mapping[str, Any], Mapping[str, Any]], dict]
    text: Callable[[dict], str]  # of a parsed record: what a tokenizer is trained on
    # (settings, tokenizer, encoder) -> JSON on which, beside the records, examples depend; DataError where they can't
    # be made with this tokenizer
    identity: Callable[[Mapping[str, Any], Tokenizer, bool], Any]
    encoding: Callable[[Mapping[str, Any], Context], Encoding]
    # settings -> the channels of its rows beside those of all examples; one called 'targets' stands in place of theirs
    channels: Callable[[Mapping[str, Any]], tuple[Channel, ...]] = lambda settings: ()
    asking: Asking | None = None  # how a model is asked for an answer; None: there are none to grade
    encoder: bool | None = (
        None  # it is for models with an encoder beside their decoder alone, or without; None: for all
    )
    # settings -> whether there are words that carry no target, which augmentation may change
    augmentable: Callable[[Mapping[str, Any]], bool] = lambda settings: True
    # (settings, its special tokens) -> DataError where a tokenizer that is trained here lacks what examples need
    check_trained: Callable[[Mapping[str, Any], Collection[str]], None] = lambda settings, specials: None


def cut(example: Example, seq_len: int, begin: int | None) -> Example:
    """The part of an example that fits into a row.

    The prompt is cut from the left: the last `seq_len` tokens stay, after the begin token where the example has one.
    But a quarter of the row is the prompt's (less, where it is shorter), and what of the last answer is longer than the
    rest loses its end. An encoder's source is a prompt too.
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
    """At most the last `length` of ids [n], after the begin token where they have one."""
    return ids if len(ids) <= length else _keep_begin(ids, len(ids) - length, length, begin)


def cut_end(ids: np.ndarray, length: int) -> np.ndarray:
    """At most `length` of ids [n]: the first ones, and the last one, which ends them."""
    return ids if len(ids) <= length else np.concatenate([ids[: length - 1], ids[-1:]])


def _keep_begin(ids: np.ndarray, first: int, count: int, begin: int | None) -> np.ndarray:
    part = ids[first : first + count].copy()
    if ids[0] == begin:
        part[0] = begin
    return part


def prefixed(example: Example, prefix: Sequence[int]) -> Example:
    """The example behind these tokens, which nothing has to be said at; an encoder reads them where there is one."""
    before = lambda values, fill: np.concatenate([np.asarray(fill, values.dtype), values])
    nothing = [0] * len(prefix)
    fills = dict(tokens=prefix, targets=nothing, marks=nothing)
    if example.source is not None:
        fills = dict(source=prefix, source_marks=nothing)
    side = example.source is not None
    own = {
        name: before(values, nothing) if is_encoders(name) == side else values for name, values in example.own.items()
    }
    return example._replace(own=own, **{name: before(getattr(example, name), fill) for name, fill in fills.items()})
