"""Packing of examples: each is a segment of its own in a row, so that nothing leaks between them, and is never cut over
rows.

Examples are taken in groups of bounded size; in a group the longest come first, and each goes to the fullest row that
has room for it (best fit decreasing), which leaves little padding and is the same each time.

On disk a row is one ArrayRecord record as in data/rows/pack.py, with 4 channels instead of 3: tokens, targets, segment
ids, marks; where there is an encoder, with 6: also encoder tokens and encoder segment ids. All are `seq_len` long. The
bits of the marks are those of data/batch.py.

B rows, C channels, T = seq_len, N examples, S sides (1, or 2 with an encoder).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.batch import TRAINED, DataError
from data.examples.example import CUT, Context, Encoding, Example, LeftOut, cut, prefixed
from data.rows.pack import row_dtype, write_rows

# Examples that are packed together: so many of them, or of their tokens, which bounds memory (by 9 bytes a token).
GROUP, GROUP_TOKENS = 8192, 1 << 24
BLOCK_TOKENS = 1 << 20  # of rows that are handed over together


class Counts(NamedTuple):
    """What was packed of a split."""

    rows: int
    tokens: int  # that a model reads, on both sides
    targets: int  # of these with weight
    notes: Mapping[str, int]  # what was done to examples, and how often
    unknown: int  # tokens that stand for text the vocabulary has none for


def row_channels(encoder: bool) -> int:
    return 6 if encoder else 4


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
