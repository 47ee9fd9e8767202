"""Packing: documents of any length become rows of one length, once, on disk.

A document t1..tn is the stream [EOT] t1 .. tn [EOT], which has n + 1 (input, target) pairs: the model predicts t1 from
EOT alone and EOT from the whole document. (Where a published model has a token of its own to begin with, like LLaMA's
<s>, that one is the first input.) The pairs of all documents are laid one after another and cut into rows of
`seq_len` pairs ("concat and split"). A document that crosses the end of a row goes on in the next one as a new piece,
with positions from 0 again, so each token is a target exactly once and never across documents. Only the last row is
padded.

On disk a row is one ArrayRecord record: the little-endian bytes of a [3, seq_len] array (tokens, targets, segment ids),
uint16 where the vocabulary allows it, else uint32. Left out: best-fit packing, which cuts fewer documents but pads; and
several files a split, since one ArrayRecord file is read at random at any size.

ArrayRecord keeps a hash of each record, but opens a file that was cut off as one of no records, without a word; so the
number of rows is compared with what was written.
"""

import errno
import functools
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from data.batch import TEXT, Channel, DataError, stored
from data.tokens.tokenizer import Tokenizer

ROWS_FILE = "rows.array_record"
_UINT16_VALUES = 1 << 16
_HELD_BYTES = 128 << 20
_ENCODE_CHARACTERS = 4 << 20  # texts are encoded in groups of about this size, to bound memory


def row_dtype(vocab_size: int, seq_len: int) -> np.dtype:
    # A row of T one-token documents has segment ids up to T.
    return np.dtype("<u2" if vocab_size <= _UINT16_VALUES and seq_len < _UINT16_VALUES else "<u4")


class Packer:
    """Cuts a stream of documents into rows [N, 3, seq_len], handed out as they fill up; holds less than one row."""

    def __init__(self, seq_len: int, eot_id: int, dtype: np.dtype, begin_id: int | None = None):
        self._seq_len = seq_len
        self._eot = np.array([eot_id], dtype)
        self._begin = np.array(eot_id if begin_id is None else begin_id, dtype)
        # Pairs that don't fill a row yet: inputs, targets, and whether the input begins a document.
        self._pending = np.empty((3, 0), dtype)

    def add(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Takes documents (arrays of ids, without EOT) and returns the rows that are now full."""
        if not documents:
            return np.empty((0, 3, self._seq_len), self._eot.dtype)
        dtype = self._eot.dtype
        # [EOT] doc0 [EOT] doc1 ... [EOT]: shifted by one, this is the targets of all documents.
        pieces = [self._eot]
        for document in documents:
            pieces += (np.asarray(document, dtype), self._eot)
        stream = np.concatenate(pieces)
        starts = np.zeros(len(stream) - 1, dtype)
        starts[np.cumsum([0] + [len(document) + 1 for document in documents[:-1]])] = 1
        inputs = np.where(starts, self._begin, stream[:-1])
        self._pending = np.concatenate([self._pending, np.stack([inputs, stream[1:], starts])], axis=1)
        full = self._pending.shape[1] // self._seq_len * self._seq_len
        ready, self._pending = self._pending[:, :full], self._pending[:, full:].copy()
        return self._cut(ready)

    def flush(self) -> np.ndarray:
        """Returns the last row, padded, or no row where nothing is left."""
        left, self._pending = self._pending, self._pending[:, :0]
        if not left.shape[1]:
            return self._cut(left)
        row = self._cut(np.pad(left, ((0, 0), (0, self._seq_len - left.shape[1]))))
        row[:, 2, left.shape[1] :] = 0
        return row

    def _cut(self, pairs: np.ndarray) -> np.ndarray:
        rows = pairs.reshape(3, -1, self._seq_len).transpose(1, 0, 2).copy()
        rows[:, 2, 0] = 1  # what begins a row begins a piece
        np.cumsum(rows[:, 2], axis=1, dtype=rows.dtype, out=rows[:, 2])
        return rows


def write_rows(directory: Path, rows: Iterable[np.ndarray]) -> int:
    """Writes blocks of rows [N, C, T] to `directory` and returns how many there are."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ROWS_FILE
    # One record a chunk, so that a shuffled read decodes one row and not its neighbours.
    writer = ArrayRecordWriter(str(path), "group_size:1")
    written = 0
    for block in rows:
        for row in block:
            writer.write(row.tobytes())
        written += len(block)
    writer.close()
    reader = ArrayRecordReader(str(path))
    found = reader.num_records()
    reader.close()
    if found != written:  # the writer may fail without a word where the disk is full
        raise OSError(errno.ENOSPC, f"only {found} of {written} rows could be written", str(path))
    return written


class TextCounts(NamedTuple):
    """What was packed of a split of text."""

    rows: int
    tokens: int  # targets
    unknown: int  # tokens that stand for text the vocabulary has none for
    altered: int  # documents that the tokenizer does not give back as they were


def pack_texts(texts: Iterator[str], tokenizer: Tokenizer, seq_len: int, folder: Path, compare: bool) -> TextCounts:
    """Writes the packed rows of `texts`; `compare` decodes all documents to count those that are altered (else 0)."""
    dtype = row_dtype(tokenizer.vocab_size, seq_len)
    packer = Packer(seq_len, tokenizer.eot_id, dtype, tokenizer.special.begin)
    tokens = unknown = altered = 0

    def rows() -> Iterator[np.ndarray]:
        nonlocal tokens, unknown, altered
        for group in _groups(texts):
            encoded = tokenizer.encode_batch(group)
            altered += tokenizer.altered(group, encoded) if compare else 0
            documents = [np.array(ids, dtype) for ids in encoded]
            tokens += sum(len(ids) + 1 for ids in documents)
            if tokenizer.unknown_id is not None:
                unknown += sum(int(np.count_nonzero(ids == tokenizer.unknown_id)) for ids in documents)
            yield packer.add(documents)
        yield packer.flush()

    return TextCounts(write_rows(folder, rows()), tokens, unknown, altered)


def _groups(texts: Iterator[str]) -> Iterator[list[str]]:
    while group := list(islice(texts, 1)):
        size = len(group[0])
        while size < _ENCODE_CHARACTERS and (text := next(texts, None)) is not None:
            group.append(text)
            size += len(text)
        yield group


class Damage:
    """Rows that can't be read any more, of all files of a stream. Each is said once, named and counted, and read as
    padding, so that no other row changes its place."""

    def __init__(self, limit: int = 0):
        self._limit, self._rows = limit, {}

    def add(self, path: Path, row: int, why: str) -> None:
        """
        Raises:
          DataError: there are more than `limit` by now.
        """
        if (path, row) in self._rows:
            return
        self._rows[path, row] = why
        line = f"row {row:,} of {path} can't be read ({why})"
        if len(self._rows) > self._limit:
            raise DataError(
                f"{line}, and {len(self._rows) - 1} before it; {self._limit} may be missing "
                f"(config.data.max_bad_lines; of held-out rows none). {_again(path)}"
            )
        _say(f"{line}; it is left out, as up to {self._limit} may be")

    def lines(self) -> list[str]:
        """All so far, in the order in which they were found."""
        return [f"{path}, row {row}: {why}" for (path, row), why in list(self._rows.items())]


@functools.cache
def _say(line: str) -> None:
    """Once in a process, however many streams come to it."""
    logging.error("%s", line)


def _again(path: Path) -> str:
    """What to do about a file of DIR/rows/NAME/SOURCE/SPLIT."""
    return f"Move {path.parents[2]} away and start again: the same rows are made of its text, and the run continues."


class RowReader:
    """Random access to packed rows, from several threads at a time.

    With `hold`, rows that fit are read into memory once: a row then costs a copy, not a seek and a decompression (30
    us).

    Args:
      channels: of the rows.
      rows: how many were written, None: unknown.
      damage: takes rows that can't be read; by default the first is an error.
    """

    def __init__(
        self,
        directory: Path,
        seq_len: int,
        hold: bool = False,
        channels: Sequence[Channel] = TEXT,
        rows: int | None = None,
        damage: Damage | None = None,
    ):
        self._path, self._damage = Path(directory) / ROWS_FILE, Damage() if damage is None else damage
        if not self._path.exists():
            raise DataError(f"There are no packed rows at {self._path}. {_again(self._path)}")
        try:
            self._reader = ArrayRecordReader(str(self._path), "readahead_buffer_size:0,max_parallelism:0")
            self._count = self._reader.num_records()
        except RuntimeError as error:
            raise DataError(f"{self._path} can't be read ({_reason(error)}). {_again(self._path)}") from error
        if rows is not None and self._count != rows:
            raise DataError(
                f"{self._path} is damaged: {rows:,} rows were written, {self._count:,} are found. {_again(self._path)}"
            )
        self._held, self._shape = None, (len(stored(channels)), seq_len)
        if not self._count:
            return
        values = int(np.prod(self._shape))
        size = len(next((found for found in map(self._record, range(self._count)) if isinstance(found, bytes)), b""))
        if size not in (values * 2, values * 4):
            raise DataError(f"The rows in {self._path} are not of length {seq_len}. {_again(self._path)}")
        self._dtype, self._padding = "<u2" if size == values * 2 else "<u4", bytes(size)
        if hold and self._count * size <= _HELD_BYTES:
            self._held = self.read(range(self._count))

    def __len__(self) -> int:
        return self._count

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the rows at `indices` as [N, C, T]; what can't be read any more is padding.

        Raises:
          DataError: `damage` takes no more.
        """
        if self._held is not None:
            return self._held[indices]
        indices = [int(i) for i in indices]
        try:
            records = self._reader.read(indices)
        except RuntimeError:  # of some of them, which does not say which
            records = map(self._record, indices)
        whole = [self._whole(i, record) for i, record in zip(indices, records, strict=True)]
        return np.frombuffer(b"".join(whole), self._dtype).reshape(len(whole), *self._shape)

    def _record(self, index: int) -> bytes | str:
        """A record, or why it can't be read."""
        try:
            return self._reader.read([index])[0]
        except RuntimeError as error:
            return _reason(error)

    def _whole(self, index: int, record: bytes | str) -> bytes:
        if isinstance(record, bytes) and len(record) == len(self._padding):
            return record
        why = f"{len(record)} of {len(self._padding)} bytes" if isinstance(record, bytes) else record
        self._damage.add(self._path, index, why)
        return self._padding


def _reason(error: Exception) -> str:
    """The words of ArrayRecord, without the place in its own source and the file's."""
    return str(error).strip().split("\n")[0].split(", chunk at ")[0]
