"""Examples: what a model reads and what it must say, packed whole into rows.

An example is never cut over rows. Each is a segment of its own, so that nothing leaks between them. Examples are taken
in groups of bounded size; in a group the longest come first, and each goes to the fullest row that has room for it
(best fit decreasing), which leaves little padding and is the same each time.

On disk a row is one ArrayRecord record as in data/rows/pack.py, with 4 channels instead of 3: tokens, targets, segment
ids, marks; where there is an encoder, with 6: also encoder tokens and encoder segment ids. All are `seq_len` long. The
bits of the marks are those of data/batch.py.

B rows, C channels, T = seq_len, N examples, S sides (1, or 2 with an encoder).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.batch import CONTENT, ENCODER_CONTENT, TRAINED, DataError
from data.rows.pack import row_dtype, write_rows
from data.tokens.tokenizer import Tokenizer

# Examples that are packed together: so many of them, or of their tokens, which bounds memory (by 9 bytes a token).
GROUP, GROUP_TOKENS = 8192, 1 << 24
BLOCK_TOKENS = 1 << 20  # of rows that are handed over together
CUT = "examples were longer than {} tokens and were cut"  # a note


class LeftOut(ValueError):
    """A record that no row has room for, or of which nothing is left; the message is a note (see Example)."""


class Example(NamedTuple):
    """What a model reads, and what it must say at each token."""

    tokens: np.ndarray  # int32 [n]
    targets: np.ndarray  # int32 [n]: the next token; a class; of a number the bits of its float32
    marks: np.ndarray  # uint8 [n]: bits, TRAINED and CONTENT
    source: np.ndarray | None = None  # int32 [m]: what an encoder reads
    source_marks: np.ndarray | None = None  # uint8 [m]: ENCODER_CONTENT
    notes: tuple[str, ...] = ()  # what was done to it; how often each occurs is printed

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


class Context(NamedTuple):
    """What a kind of examples is encoded for."""

    tokenizer: Tokenizer
    seq_len: int
    encoder: bool  # the model has an encoder beside its decoder
    train: Callable[[], Iterator[dict]]  # the records of its kind to train on, as `parse` gave them
    prefix: tuple[int, ...] = ()  # what each example, or its source, begins with


class Encoding(NamedTuple):
    """How the records of one source become examples."""

    encode: Callable[[dict], Example]  # of a record; ValueError says what is wrong with it, LeftOut why it is skipped
    numbers: bool = False  # targets are float32 bits
    facts: Mapping[str, Any] = {}  # JSON that is kept with the rows (PreparedSource.facts)
    warnings: tuple[str, ...] = ()  # what is odd about the records to train on, all together; printed
    cut: Callable[[Example, int, int | None], Example] | None = None  # in place of `cut` below


class Kind(NamedTuple):
    """One kind of source of examples, 'NAME:GLOB'; the table of them is data/examples/kinds.py."""

    fields: Mapping[str, Any]  # of the config's block data.NAME, with their defaults
    columns: tuple[str, ...]  # those of `fields` that `parse` depends on
    check: Callable[[Mapping[str, Any]], None]  # settings -> DataError where a value can't be
    # (record, settings) -> canonical JSON object; ValueError says what is wrong with the record and what to do
    parse: Callable[[Mapping[str, Any], Mapping[str, Any]], dict]
    text: Callable[[dict], str]  # of a parsed record: what a tokenizer is trained on
    # (settings, tokenizer, encoder) -> JSON on which, beside the records, examples depend; DataError where they can't
    # be made with this tokenizer, or for a model with (or without) an encoder
    identity: Callable[[Mapping[str, Any], Tokenizer, bool], Any]
    encoding: Callable[[Mapping[str, Any], Context], Encoding]


class Counts(NamedTuple):
    """What was packed of a split."""

    rows: int
    tokens: int  # that a model reads, on both sides
    targets: int  # of these with weight
    notes: Mapping[str, int]  # what was done to examples, and how often
    unknown: int  # tokens that stand for text the vocabulary has none for


def row_channels(encoder: bool) -> int:
    return 6 if encoder else 4


def cut(example: Example, seq_len: int, begin: int | None) -> Example:
    """The part of an example that fits into a row.

    The prompt is cut from the left: the last `seq_len` tokens stay, after the begin token where the example has one.
    But a quarter of the row is the prompt's (less, where it is shorter), and what of the last answer is longer than the
    rest loses its end. An encoder's source is a prompt too.
    """
    n, source = len(example.tokens), example.source
    if source is not None:
        source = cut_prompt(source, seq_len, begin)
        example = example._replace(source=source, source_marks=example.source_marks[-seq_len:])
    if n <= seq_len:
        return example
    untrained = np.flatnonzero(~example.trained)
    prompt = int(untrained[-1]) + 2 if len(untrained) else 1  # tokens before the last answer
    first = min(n - seq_len, max(prompt - max(seq_len // 4, 1), 0))
    part = slice(first, first + seq_len)
    tokens = _keep_begin(example.tokens, first, seq_len, begin)
    return example._replace(tokens=tokens, targets=example.targets[part], marks=example.marks[part])


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
    return example._replace(**{name: before(getattr(example, name), fill) for name, fill in fills.items()})


def pack(examples: Iterable[Example], seq_len: int, channels: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yields blocks of rows [B, C, T] that hold all examples; none may be longer than `seq_len` on any side."""
    count = max(BLOCK_TOKENS // seq_len, 1)
    for group in _groups(examples):
        place = best_fit(np.array([example.sizes() for example in group]), seq_len)
        for first in range(0, place.max() + 1, count):
            rows = np.zeros((min(count, place.max() + 1 - first), channels, seq_len), dtype)
            mine = np.flatnonzero((place >= first) & (place < first + count))
            _fill(rows, place[mine] - first, [group[i] for i in mine])
            yield rows


def _groups(examples: Iterable[Example]) -> Iterator[list[Example]]:
    group, tokens = [], 0
    for example in examples:
        group.append(example)
        tokens += max(example.sizes())
        if len(group) == GROUP or tokens >= GROUP_TOKENS:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _fill(rows: np.ndarray, place: np.ndarray, examples: Sequence[Example]) -> None:
    """Writes each example into its row of `rows`, behind those before it."""
    used = np.zeros((len(rows), 2), int)
    segments = np.zeros(len(rows), int)
    for row, example in zip(place, examples, strict=True):
        segments[row] += 1
        begin, end = used[row, 0], used[row, 0] + len(example.tokens)
        target_bits = np.asarray(example.targets, np.int32).view(np.uint32)
        for channel, values in enumerate((example.tokens, target_bits, segments[row])):
            rows[row, channel, begin:end] = values
        rows[row, 3, begin:end] |= example.marks  # both sides share the channel
        used[row, 0] = end
        if example.source is not None:
            begin, end = used[row, 1], used[row, 1] + len(example.source)
            rows[row, 4, begin:end], rows[row, 5, begin:end] = example.source, segments[row]
            rows[row, 3, begin:end] |= example.source_marks
            used[row, 1] = end


def best_fit(sizes_NS: np.ndarray, seq_len: int) -> np.ndarray:
    """Which row each of N examples goes to, int [N]: longest first, each into the fullest row that has room for all of
    its sides."""
    left = np.full_like(sizes_NS, seq_len)
    place = np.empty(len(sizes_NS), int)
    opened = 0
    for i in np.argsort(-sizes_NS.max(1), kind="stable"):
        after = (left[:opened] - sizes_NS[i]).min(1)
        fits = np.flatnonzero(after >= 0)
        row = fits[np.argmin(after[fits])] if len(fits) else opened
        opened = max(opened, row + 1)
        left[row] -= sizes_NS[i]
        place[i] = row
    return place


def pack_records(
    records: Iterable[tuple[str, dict]], encoding: Encoding, context: Context, spec: str, folder: Path
) -> Counts:
    """Writes the packed examples of (where, parsed record).

    Raises:
      DataError: a record can't become an example, or nothing of it would be trained; it names the record. Or all of
        them are left out.
    """
    ids = max(context.tokenizer.vocab_size, *(i + 1 for i in context.prefix), 0)
    dtype = np.dtype("<u4") if encoding.numbers else row_dtype(ids, context.seq_len)
    room = context.seq_len - len(context.prefix)
    tokens = targets = unknown = 0
    notes, unknown_id = Counter(), context.tokenizer.unknown_id

    def examples() -> Iterator[Example]:
        nonlocal tokens, targets, unknown
        for where, record in records:
            try:
                example = encoding.encode(record)
                if not example.trained.any():
                    raise ValueError("nothing in it would be trained: its answer is empty. Mend it or take it out")
            except LeftOut as why:
                notes[f"{why}, and are left out"] += 1
                continue
            except ValueError as error:
                raise DataError(f"{spec}, {where}: {error}.") from error
            if max(example.sizes()) > room:
                example = (encoding.cut or cut)(example, room, context.tokenizer.special.begin)
                notes[CUT.format(context.seq_len)] += 1
            notes.update(example.notes)
            example = prefixed(example, context.prefix)
            tokens += sum(example.sizes())
            if unknown_id is not None:
                sides = (side for side in (example.tokens, example.source) if side is not None)
                unknown += sum(int(np.count_nonzero(ids == unknown_id)) for ids in sides)
            targets += int(example.trained.sum())
            yield example

    rows = write_rows(folder, pack(examples(), context.seq_len, row_channels(context.encoder), dtype))
    if notes and not rows:
        raise DataError(f"{spec}: no example is left: {next(iter(notes.values()))} {next(iter(notes))}.")
    return Counts(rows, tokens, targets, notes, unknown)


def widened(rows: np.ndarray, channels: int) -> np.ndarray:
    """Rows of text [B, 3, T] as rows [B, C, T] of examples: all that is no padding is trained. No encoder reads
    anything there; for one, text is corrupted (data/rows/corrupt.py)."""
    wide = np.zeros((len(rows), channels, rows.shape[2]), rows.dtype)
    wide[:, :3] = rows
    if channels > 3:
        wide[:, 3] = np.where(rows[:, 2] > 0, TRAINED, 0)
    return wide
