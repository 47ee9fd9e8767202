"""Reads rows of several sources, text and examples, from disk and turns them into batches of one form.

In a mixture every row gets the channels of all sources; a channel that its own source lacks is 0. Only rows of text are
corrupted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.batch import CONTENT, ENCODER_CONTENT, TEXT, Batch, Channel, DataError, from_rows, marked, stored
from data.examples.packing import widened
from data.prepared import PreparedSource
from data.rows.augment import Augmentation
from data.rows.corrupt import Corruption
from data.rows.pack import Damage, RowReader


class Block(NamedTuple):
    rows: np.ndarray  # int32 [N, C, T]
    places: np.ndarray  # [N]: place in the stream, which seeds corruption and augmentation
    text: np.ndarray  # bool [N]: the row comes from a source of text


class Rows:
    """The rows of one split of some sources.

    Args:
      sources: where the rows come from.
      split: 'train' or 'validation'.
      seq_len: length of a row, in tokens.
      channels: those of every source of the prepared data, so that batches of any of its sources have the same arrays.
      hold, damage: as in `RowReader`.
    """

    def __init__(
        self,
        sources: Sequence[PreparedSource],
        split: str,
        seq_len: int,
        channels: Sequence[Channel],
        hold: bool = False,
        damage: Damage | None = None,
    ):
        self.counts = [getattr(source, f"{split}_rows") for source in sources]
        self._readers = [
            RowReader(getattr(source, split), seq_len, hold, source.channels, count, damage)
            for source, count in zip(sources, self.counts, strict=True)
        ]
        self._own = [source.channels for source in sources]
        self._text = np.array([own == TEXT for own in self._own])
        self._channels, self._seq_len = channels, seq_len

    def read(self, sources: np.ndarray, indices: np.ndarray, places: np.ndarray) -> Block:
        """Returns row indices[i] of source sources[i] for each i, and padding where the source is -1."""
        rows = np.zeros((len(sources), len(stored(self._channels)), self._seq_len), np.int32)
        for source in np.unique(sources[sources >= 0]):
            mine = np.flatnonzero(sources == source)
            read = self._readers[source].read(indices[mine])
            rows[mine] = widened(read, self._own[source], self._channels)
        return Block(rows, places, self._text[sources] & (sources >= 0))


def to_batch(
    block: Block,
    seed: int,
    channels: Sequence[Channel],
    corruption: Corruption | None = None,
    augmentation: Augmentation | None = None,
) -> Batch:
    """Returns a block of rows as a batch, with text corrupted and examples augmented.

    The random numbers depend only on the seed and on the place of a row.
    """
    batch = _corrupted(block, seed, channels, corruption)
    if augmentation is None:
        return batch
    content = marked(block.rows, ENCODER_CONTENT if "encoder_tokens" in batch else CONTENT)
    return augmentation(batch, content, block.places, seed)


def _corrupted(block: Block, seed: int, channels: Sequence[Channel], corruption: Corruption | None) -> Batch:
    rows, places, text = block
    if channels == TEXT and corruption is not None:
        return corruption(rows, places, seed)
    batch = from_rows(rows, channels)
    if corruption is None or not text.any():
        return batch
    for key, corrupted in corruption(rows[text, : len(TEXT)], places[text], seed).items():
        width = corrupted.shape[1]
        if width > rows.shape[2]:
            raise DataError(
                f"Span corruption of text gives targets of {width} tokens per row, but rows of examples have room for "
                f"{rows.shape[2]}: lower data.corruption.rate."
            )
        batch[key][text] = np.pad(corrupted, ((0, 0), (0, rows.shape[2] - width)))
    return batch
