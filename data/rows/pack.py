"""Packs documents of any length into rows of one length, and reads these rows from disk.

A document t1..tn is the stream [EOT] t1 .. tn [EOT], which has n + 1 (input, target) pairs: the model predicts t1 from
EOT alone, and EOT from the whole document. (If a published model has its own begin token, like LLaMA's <s>, that token
is the first input.) The pairs of all documents are concatenated and cut into rows of `seq_len` pairs ("concat and
split"). A document that crosses the end of a row continues in the next row as a new piece, with positions from 0 again.
So each token is a target exactly once, and no target crosses documents. Only the last row is padded.

On disk a row is one ArrayRecord record: the little-endian bytes of a [3, seq_len] array (tokens, targets, segment ids),
as uint16 if the vocabulary allows it, else as uint32. Left out: best-fit packing, which cuts fewer documents but pads;
and several files per split, because one ArrayRecord file allows random access at any size.

ArrayRecord stores a hash of each record, but silently opens a truncated file as one without records. So the number of
rows is compared with the number that was written.
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
    """Returns the smallest dtype that holds the ids and segment numbers of a row."""
    # A row of T one-token documents has segment ids up to T.
    return np.dtype("<u2" if vocab_size <= _UINT16_VALUES and seq_len < _UINT16_VALUES else "<u4")


class Packer:
    """Cuts a stream of documents into rows [N, 3, seq_len]; it holds less than one row at a time.

    Args:
      seq_len: length of a row, in tokens.
      eot_id: the token that ends a document.
      dtype: of the rows.
      begin_id: the token that begins a document; None: `eot_id`.
    """

    def __init__(self, seq_len: int, eot_id: int, dtype: np.dtype, begin_id: int | None = None):
        self._seq_len = seq_len
        self._eot = np.array([eot_id], dtype)
        self._begin = np.array(eot_id if begin_id is None else begin_id, dtype)
        # Pairs that don't fill a row yet: input, target, and whether the input begins a document.
        self._pending = np.empty((3, 0), dtype)

    def add(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Adds documents (arrays of ids, without EOT) and returns the rows that are full now, [N, 3, seq_len]."""
        if not documents:
            return np.empty((0, 3, self._seq_len), self._eot.dtype)
        dtype = self._eot.dtype
        # [EOT] doc0 [EOT] doc1 ... [EOT]: shifted by one, this gives the targets of all documents.
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
        """Returns the last row, padded; [1, 3, seq_len], or [0, 3, seq_len] if nothing is left."""
        left, self._pending = self._pending, self._pending[:, :0]
        if not left.shape[1]:
            return self._cut(left)
        row = self._cut(np.pad(left, ((0, 0), (0, self._seq_len - left.shape[1]))))
        row[:, 2, left.shape[1] :] = 0
        return row

    def _cut(self, pairs: np.ndarray) -> np.ndarray:
        rows = pairs.reshape(3, -1, self._seq_len).transpose(1, 0, 2).copy()
        rows[:, 2, 0] = 1  # the start of a row begins a piece
        np.cumsum(rows[:, 2], axis=1, dtype=rows.dtype, out=rows[:, 2])
        return rows


def write_rows(directory: Path, rows: Iterable[np.ndarray]) -> int:
    """Writes blocks of rows [N, C, T] to `directory` and returns the number of rows.

    Raises:
      OSError: not all of them could be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ROWS_FILE
    # One record per chunk, so that a shuffled read decodes one row without its neighbours.
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
    if found != written:  # on a full disk the writer may fail silently
        raise OSError(errno.ENOSPC, f"only {found} of {written} rows could be written", str(path))
    return written


class TextCounts(NamedTuple):
    """What was packed from a split of text."""

    rows: int
    tokens: int  # targets
    unknown: int  # unknown tokens, which replace text that the vocabulary can't express
    altered: int  # documents that change when they are encoded and decoded


def pack_texts(texts: Iterator[str], tokenizer: Tokenizer, seq_len: int, folder: Path, compare: bool) -> TextCounts:
    """Writes the packed rows of `texts` and returns their counts.

    Args:
      texts: the documents.
      tokenizer: encodes them.
      seq_len: length of a row, in tokens.
      folder: where the rows are written.
      compare: decode all documents to count the altered ones; otherwise `altered` is 0.

    Raises:
      OSError: not all rows could be written.
    """
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
    """Rows of a stream's files that can no longer be read.

    Each is counted, logged once, and read as padding, so that all other rows keep their places.

    Args:
      limit: how many such rows are tolerated.
    """

    def __init__(self, limit: int = 0):
        self._limit = limit
        self._rows: dict[tuple[Path, int], str] = {}

    def add(self, path: Path, row: int, why: str) -> None:
        """Records a damaged row.

        Raises:
          DataError: there are more than `limit` now.
        """
        if (path, row) in self._rows:
            return
        self._rows[path, row] = why
        line = f"row {row:,} of {path} can't be read ({why})"
        if len(self._rows) > self._limit:
            raise DataError(
                f"{line}, and neither can {len(self._rows) - 1} others; {self._limit} may be missing "
                f"(config.data.max_bad_lines; no held-out row may be missing). {_again(path)}"
            )
        _log_once(f"{line}; it is skipped, as up to {self._limit} rows may be")

    def lines(self) -> list[str]:
        """Returns a line for each damaged row so far, in the order in which they were found."""
        return [f"{path}, row {row}: {why}" for (path, row), why in list(self._rows.items())]


@functools.cache
def _log_once(line: str) -> None:
    """Logs once per process, however many streams meet the row."""
    logging.error("%s", line)


def _again(path: Path) -> str:
    """Returns what to do about a damaged file in DIR/rows/NAME/SOURCE/SPLIT."""
    return f"Move {path.parents[2]} away and start again: the same rows are packed again, and the run continues."


class RowReader:
    """Random access to packed rows, also from several threads at a time.

    Args:
      directory: the folder that `write_rows` wrote to.
      seq_len: length of a row, in tokens.
      hold: read all rows into memory once if they fit; each row then costs a copy instead of a seek and a decompression
        (30 us).
      channels: those of the rows.
      rows: how many were written; None: unknown.
      damage: records rows that can't be read; None: the first one raises an error.

    Raises:
      DataError: the file is missing, damaged, or has rows of another length.
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
        """Returns the rows at `indices` as [N, C, T]; rows that can no longer be read are padding.

        Raises:
          DataError: more rows are damaged than `damage` tolerates.
        """
        if self._held is not None:
            return self._held[indices]
        indices = [int(i) for i in indices]
        try:
            records = self._reader.read(indices)
        except RuntimeError:  # some can't be read, and the error does not say which
            records = map(self._record, indices)
        whole = [self._whole(i, record) for i, record in zip(indices, records, strict=True)]
        return np.frombuffer(b"".join(whole), self._dtype).reshape(len(whole), *self._shape)

    def _record(self, index: int) -> bytes | str:
        """Returns a record, or the reason why it can't be read."""
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
    """Returns ArrayRecord's message without the places in its own source and in the file."""
    return str(error).strip().split("\n")[0].split(", chunk at ")[0]
