"""Packs examples into rows without splitting any of them over rows.

Each example is its own segment, so that attention can't leak between examples; an example of several segments keeps
them next to each other.

Examples are packed in groups of bounded size. Within a group the longest come first, and each goes to the fullest row
that has room for it (best fit decreasing). This leaves little padding and is deterministic.

On disk a row is one ArrayRecord record as in data/rows/pack.py, with more channels, each `seq_len` long
(data/batch.py).

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

# A group ends at this many examples or tokens, which bounds memory (9 bytes per token, beside a kind's own channels).
GROUP, GROUP_TOKENS = 8192, 1 << 24
BLOCK_TOKENS = 1 << 20  # size of a block of rows, in tokens


class Counts(NamedTuple):
    """What was packed from a split."""

    rows: int
    tokens: int  # that a model reads, on both sides
    targets: int  # tokens whose target the loss counts
    notes: Mapping[str, int]  # what was done to examples, and how often
    unknown: int  # unknown tokens, which replace text that the vocabulary can't express


def pack(
    examples: Iterable[Example | list[Example]], seq_len: int, channels: Sequence[Channel], dtype: np.dtype
) -> Iterator[np.ndarray]:
    """Yields blocks of rows [B, C, T] that hold all examples.

    Args:
      examples: each at most `seq_len` tokens long on each side; for a list of segments, all of them together.
      seq_len: length of a row, in tokens.
      channels: those of the rows.
      dtype: of the rows.
    """
    count = max(BLOCK_TOKENS // seq_len, 1)
    for group in _groups(map(segments_of, examples)):
        place = best_fit(np.array([_sizes(segments) for segments in group]), seq_len)
        for first in range(0, place.max() + 1, count):
            rows = np.zeros((min(count, place.max() + 1 - first), len(stored(channels)), seq_len), dtype)
            mine = np.flatnonzero((place >= first) & (place < first + count))
            _fill(rows, place[mine] - first, [group[i] for i in mine], channels)
            yield rows


def segments_of(found: Example | list[Example]) -> list[Example]:
    """Returns the segments of an example (data/examples/example.py, `Encoding.encode`)."""
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
    """Writes each example into its row of `rows`, after the examples that are already there."""
    place_of = {channel.name: i for i, channel in enumerate(stored(channels))}
    dtype_of = {channel.name: channel.dtype for channel in channels}
    encoder, grouped = "encoder_tokens" in place_of, GROUPS[0] in channels
    bits = lambda values, dtype="int32": np.asarray(values, dtype).view(np.uint32)
    used = np.zeros((len(rows), 2), int)
    segments, groups = np.zeros((2, len(rows)), int)
    for row, example in zip(place, examples, strict=True):
        groups[row] += 1
        for number, segment in enumerate(example):
            segments[row] += 1
            arrays = {"tokens": segment.tokens, "targets": bits(segment.targets), "segment_ids": segments[row]}
            if encoder:
                arrays |= {"encoder_tokens": segment.source, "encoder_segment_ids": segments[row]}
            if grouped:
                arrays |= {"group_ids": groups[row], "ranks": number if segment.rank is None else segment.rank}
            arrays |= {name: bits(values, dtype_of[name]) for name, values in segment.own.items()}
            sizes = [*segment.sizes(), 0][:2]
            parts = [slice(begin, begin + size) for begin, size in zip(used[row], sizes, strict=True)]
            for name, values in arrays.items():
                rows[row, place_of[name], parts[is_encoders(name)]] = values
            for part, marks in zip(parts, (segment.marks, segment.source_marks), strict=True):  # both sides share it
                if marks is not None:
                    rows[row, place_of[MARKS.name], part] |= marks
            used[row] += sizes


def best_fit(sizes_NS: np.ndarray, seq_len: int) -> np.ndarray:
    """Returns the row of each example, int [N]: longest first, each into the fullest row with room for all its sides.

    Args:
      sizes_NS: tokens of each example on each side.
      seq_len: length of a row, in tokens.
    """
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
    """Encodes records, writes them packed, and returns their counts.

    Args:
      records: (where it was found, parsed record) of each.
      encoding: that of their kind.
      context: what they are encoded for.
      channels: those of the rows.
      spec: the source, for error messages.
      folder: where the rows are written.

    Raises:
      DataError: a record can't be encoded or has nothing to train on (the message names it), or all are skipped.
    """
    ids = max(context.tokenizer.vocab_size, *(i + 1 for i in context.prefix), 0)
    dtype = np.dtype("<u4") if wide(channels) else row_dtype(ids, context.seq_len)
    begin, unknown_id = context.tokenizer.special.begin, context.tokenizer.unknown_id
    tokens = targets = unknown = 0
    notes: Counter[str] = Counter()

    def examples() -> Iterator[list[Example]]:
        nonlocal tokens, targets, unknown
        for where, record in records:
            try:
                example = segments_of(encoding.encode(record))
                _check(example, channels)
                length = _longest(example, context)
            except LeftOut as why:
                notes[f"{why}, and are skipped"] += 1
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
    """Raises a ValueError if an example has nothing to train on, or lacks a channel that its kind declares."""
    if not any(segment.trained.any() for segment in example):
        raise ValueError("there is nothing to train on, because its answer is empty; fix it or remove it")
    known = {channel.name for channel in BASE}
    declared = {channel.name for channel in stored(channels)} - known
    groups = {channel.name for channel in GROUPS}
    if len(example) > 1 and not groups <= declared:
        raise ValueError(
            f"it has {len(example)} segments, but its kind does not declare {' and '.join(sorted(groups))}"
        )
    for segment in example:
        if {*segment.own} != declared - groups:
            raise ValueError(
                f"it has the channels {sorted(segment.own)}, but its kind declares {sorted(declared - groups)}"
            )


def _longest(example: Sequence[Example], context: Context) -> int:
    """Returns the length to cut segments to, so that all of them and their prefixes fit into one row."""
    room = context.seq_len - len(example) * len(context.prefix)
    length = min(_level(side, room) for side in zip(*(segment.sizes() for segment in example), strict=True))
    if length < 1:
        raise LeftOut(f"examples have more segments than rows of {context.seq_len} tokens have room for")
    return length


def _level(sizes: Sequence[int], room: int) -> int:
    """Returns the largest length such that `sizes`, each cut to it, fit into `room` together."""
    left = room
    for i, size in enumerate(sorted(sizes)):
        if size > (share := left // (len(sizes) - i)):
            return share
        left -= size
    return room  # none of them is cut


def widened(rows: np.ndarray, own: Sequence[Channel], channels: Sequence[Channel]) -> np.ndarray:
    """Returns rows [B, C, T] of a source's `own` channels as rows of `channels`.

    Channels that the source lacks are 0, except that all text is marked as trained. So an encoder would read nothing in
    a row of text; span corruption gives it something to read (data/rows/corrupt.py).
    """
    if own == channels:
        return rows
    place = {channel.name: i for i, channel in enumerate(stored(channels))}
    wide_rows = np.zeros((len(rows), len(place), rows.shape[2]), np.int32)
    wide_rows[:, [place[channel.name] for channel in stored(own)]] = rows
    if MARKS in channels and MARKS not in own:
        wide_rows[:, place[MARKS.name]] = np.where(rows[:, place["segment_ids"]] > 0, TRAINED, 0)
    return wide_rows
