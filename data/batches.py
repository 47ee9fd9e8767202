"""Rows of several sources, text and examples, read from disk and made into batches of one kind.

Where there are examples in a mixture, rows of text get the same arrays as they. Corruption is for text alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.batch import CONTENT, ENCODER_CONTENT, Batch, DataError, from_rows, marked
from data.examples.packing import widened
from data.prepared import PreparedSource
from data.rows.augment import Augmentation
from data.rows.corrupt import Corruption
from data.rows.pack import Damage, RowReader


class Block(NamedTuple):
    rows: np.ndarray  # int32 [N, C, T]
    places: np.ndarray  # [N]: in the stream; random numbers of corruption follow from it
    text: np.ndarray  # bool [N]: the row is of text


class Rows:
    """The rows of one split of some sources.

    `channels` are those of all rows: the most that any source of the prepared data has, so that batches of some sources
    look like those of others. `hold` and `damage` as in `RowReader`.
    """

    def __init__(
        self,
        sources: Sequence[PreparedSource],
        split: str,
        seq_len: int,
        channels: int,
        hold: bool = False,
        damage: Damage | None = None,
    ):
        self.counts = [getattr(source, f"{split}_rows") for source in sources]
        self._readers = [
            RowReader(getattr(source, split), seq_len, hold, source.channels, count, damage)
            for source, count in zip(sources, self.counts, strict=True)
        ]
        self._text = np.array([source.channels == 3 for source in sources])
        self._shape = (channels, seq_len)

    def read(self, sources: np.ndarray, indices: np.ndarray, places: np.ndarray) -> Block:
        """Row indices[i] of source sources[i], for each i; padding where the source is -1."""
        rows = np.zeros((len(sources), *self._shape), np.int32)
        for source in np.unique(sources[sources >= 0]):
            mine = np.flatnonzero(sources == source)
            read = self._readers[source].read(indices[mine])
            rows[mine] = widened(read, len(rows[0])) if self._text[source] else read
        return Block(rows, places, self._text[sources] & (sources >= 0))


def to_batch(
    block: Block,
    seed: int,
    corruption: Corruption | None,
    numbers: bool,
    augmentation: Augmentation | None = None,
    token_types: bool = False,
) -> Batch:
    """The batch of a block; its text is corrupted, its examples augmented, with random numbers that follow from seed
    and place.

    Args:
      numbers: targets of examples are float32 bits.  token_types: examples are of two texts.
    """
    batch = _corrupted(block, seed, corruption, numbers, token_types)
    if augmentation is None:
        return batch
    content = marked(block.rows, ENCODER_CONTENT if "encoder_tokens" in batch else CONTENT)
    return augmentation(batch, content, block.places, seed)


def _corrupted(block: Block, seed: int, corruption: Corruption | None, numbers: bool, token_types: bool) -> Batch:
    rows, places, text = block
    if rows.shape[1] == 3:  # all sources are text
        return from_rows(rows) if corruption is None else corruption(rows, places, seed)
    batch = from_rows(rows, numbers, token_types)
    if corruption is None or not text.any():
        return batch
    for key, corrupted in corruption(rows[text, :3], places[text], seed).items():
        width = corrupted.shape[1]
        if width > rows.shape[2]:
            raise DataError(
                f"Spans taken out of text give targets of {width} tokens a row, but rows of examples have room for "
                f"{rows.shape[2]}: make data.corruption.rate smaller."
            )
        batch[key][text] = np.pad(corrupted, ((0, 0), (0, rows.shape[2] - width)))
    return batch
