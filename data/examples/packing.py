"""Packing of examples: each is a segment of its own in a row, so that nothing leaks between them, or several that stay
beside each other, and is never cut over rows.

Examples are taken in groups of bounded size; in a group the longest come first, and each goes to the fullest row that
has room for it (best fit decreasing), which leaves little padding and is the same each time.

On disk a row is one ArrayRecord record as in data/rows/pack.py, of more channels, all `seq_len` long (data/batch.py).

B rows, C channels, T = seq_len, N examples, S sides (1, or 2 with an encoder).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.batch import BASE, GROUPS, MARKS, TRAINED, Channel, DataError, stored, wide
from data.examples.example import CUT, Context, Encoding, Example, LeftOut, cut, is_encoders, prefixed
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


def pack(
    examples: Iterable[Example | list[Example]], seq_len: int, channels: Sequence[Channel], dtype: np.dtype
) -> Iterator[np.ndarray]:
    """Yields blocks of rows [B, C, T] that hold all examples; none may be longer than `seq_len` on any side, a list of
    segments all together."""
    count = max(BLOCK_TOKENS // seq_len, 1)
    for group in _groups(map(segments_of, examples)):
        place = best_fit(np.array([_sizes(segments) for segments in group]), seq_len)
        for first in range(0, place.max() + 1, count):
            rows = np.zeros((min(count, place.max() + 1 - first), len(stored(channels)), seq_len), dtype)
            mine = np.flatnonzero((place >= first) & (place < first + count))
            _fill(rows, place[mine] - first, [group[i] for i in mine], channels)
            yield rows


def segments_of(found: Example | list[Example]) -> list[Example]:
    """The segments of an example (data/examples/example.py, `Encoding.encode`)."""
    return [found] if isinstance(found, Example) else found


def _sizes(segments: Sequence[Example]) -> list[int]:
    return [sum(side) for side in zip(*(segment.sizes() for segment in segments), strict=True)]


def _groups(examples: Iterable[list[Example]]) -> Iterator[list[list[Example]]]:
    group, tokens = [], 0
    for example in examples:
        group.append(example)
        tokens += max(_sizes(example))
        if len(group) == GROUP or tokens >= GROUP_TOKENS:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _fill(rows: np.ndarray, place: np.ndarray, examples: Sequence[list[Example]], channels: Sequence[Channel]) -> None:
    """Writes each example into its row of `rows`, behind those before it."""
    place_of = {channel.name: i for i, channel in enumerate(stored(channels))}
    dtype_of = {channel.name: channel.dtype for channel in channels}
    encoder, grouped = "encoder_tokens" in place_of, GROUPS[0] in channels
    bits = lambda values, dtype="int32": np.asarray(values, dtype).view(np.uint32)
    used = np.zeros((len(rows), 2), int)
    segments, groups = np.zeros((2, len(rows)), int)
    for row, example in zip(place, examples, strict=True):
        groups[row] += 1
        for rank, segment in enumerate(example):
            segments[row] += 1
            arrays = {"tokens": segment.tokens, "targets": bits(segment.targets), "segment_ids": segments[row]}
            if encoder:
                arrays |= {"encoder_tokens": segment.source, "encoder_segment_ids": segments[row]}
            if grouped:
                arrays |= {"group_ids": groups[row], "ranks": rank}
            arrays |= {name: bits(values, dtype_of[name]) for name, values in segment.own.items()}
            sizes = [*segment.sizes(), 0][:2]
            parts = [slice(begin, begin + size) for begin, size in zip(used[row], sizes, strict=True)]
            for name, values in arrays.items():
                rows[row, place_of[name], parts[is_encoders(name)]] = values
            for part, marks in zip(parts, (segment.marks, segment.source_marks), strict=True):  # of both sides
                if marks is not None:
                    rows[row, place_of[MARKS.name], part] |= marks
            used[row] += sizes


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
    records: Iterable[tuple[str, dict]],
    encoding: Encoding,
    context: Context,
    channels: Sequence[Channel],
    spec: str,
    folder: Path,
) -> Counts:
    """Writes the packed examples of (where, parsed record).

    Raises:
      DataError: a record can't become an example, or nothing of it would be trained; it names the record. Or all of
        them are left out.
    """
    ids = max(context.tokenizer.vocab_size, *(i + 1 for i in context.prefix), 0)
    dtype = np.dtype("<u4") if wide(channels) else row_dtype(ids, context.seq_len)
    begin, unknown_id = context.tokenizer.special.begin, context.tokenizer.unknown_id
    tokens = targets = unknown = 0
    notes = Counter()

    def examples() -> Iterator[list[Example]]:
        nonlocal tokens, targets, unknown
        for where, record in records:
            try:
                example = segments_of(encoding.encode(record))
                _check(example, channels)
                length = _longest(example, context)
            except LeftOut as why:
                notes[f"{why}, and are left out"] += 1
                continue
            except ValueError as error:
                raise DataError(f"{spec}, {where}: {error}.") from error
            long = [max(segment.sizes()) > length for segment in example]
            if any(long):
                shorten = encoding.cut or cut
                pairs = zip(example, long, strict=True)
                example = [shorten(segment, length, begin) if is_long else segment for segment, is_long in pairs]
                notes[CUT.format(context.seq_len)] += 1
            notes.update(note for segment in example for note in segment.notes)
            example = [prefixed(segment, context.prefix) for segment in example]
            tokens += sum(_sizes(example))
            sides = [side for segment in example for side in (segment.tokens, segment.source) if side is not None]
            if unknown_id is not None:
                unknown += sum(int(np.count_nonzero(ids == unknown_id)) for ids in sides)
            targets += sum(int(segment.trained.sum()) for segment in example)
            yield example

    rows = write_rows(folder, pack(examples(), context.seq_len, channels, dtype))
    if notes and not rows:
        raise DataError(f"{spec}: no example is left: {next(iter(notes.values()))} {next(iter(notes))}.")
    return Counts(rows, tokens, targets, notes, unknown)


def _check(example: Sequence[Example], channels: Sequence[Channel]) -> None:
    """ValueError where nothing of an example would be trained, or it has not what its kind declares."""
    if not any(segment.trained.any() for segment in example):
        raise ValueError("nothing in it would be trained: its answer is empty. Mend it or take it out")
    known = {channel.name for channel in BASE}
    declared = {channel.name for channel in stored(channels)} - known
    groups = {channel.name for channel in GROUPS}
    if len(example) > 1 and not groups <= declared:
        raise ValueError(
            f"it has {len(example)} segments, and its kind does not declare {' and '.join(sorted(groups))}"
        )
    for segment in example:
        if {*segment.own} != declared - groups:
            raise ValueError(
                f"it brings the channels {sorted(segment.own)}, and its kind declares {sorted(declared - groups)}"
            )


def _longest(example: Sequence[Example], context: Context) -> int:
    """How long its segments may be, so that they and their prefixes fit into one row: the longest are cut first."""
    room = context.seq_len - len(example) * len(context.prefix)
    length = min(_level(side, room) for side in zip(*(segment.sizes() for segment in example), strict=True))
    if length < 1:
        raise LeftOut(f"examples have more segments than rows of {context.seq_len} tokens have room for")
    return length


def _level(sizes: Sequence[int], room: int) -> int:
    """The largest length at which these sizes, those above cut down to it, fit into `room` together."""
    left = room
    for i, size in enumerate(sorted(sizes)):
        if size > (share := left // (len(sizes) - i)):
            return share
        left -= size
    return room  # all of them are whole


def widened(rows: np.ndarray, own: Sequence[Channel], channels: Sequence[Channel]) -> np.ndarray:
    """Rows [B, C, T] of a source's `own` channels as rows of these `channels`.

    What the source does not bring is 0 there; but all text that is no padding is marked as trained. So no encoder reads
    anything in a row of text; for one, text is corrupted (data/rows/corrupt.py)."""
    if own == channels:
        return rows
    place = {channel.name: i for i, channel in enumerate(stored(channels))}
    wide_rows = np.zeros((len(rows), len(place), rows.shape[2]), np.int32)
    wide_rows[:, [place[channel.name] for channel in stored(own)]] = rows
    if MARKS in channels and MARKS not in own:
        wide_rows[:, place[MARKS.name]] = np.where(rows[:, place["segment_ids"]] > 0, TRAINED, 0)
    return wide_rows
