"""The stream of training rows: random access to the row of a source at each place.

Place k holds row j of source s. The weights determine s (data/rows/mixture.py), and a shuffle of that source, a new one
in each epoch, determines j. The batch of a step is the next `batch_size` places, and each process reads those rows that
its devices need. So a position is a single number that is valid for any number of processes, any mesh and any batch
size. (grain's ElasticIterator keeps a single number too, but deals rows out in turn, so the order within a global batch
would change with the number of processes.)
"""

import hashlib
import sys
from functools import lru_cache

import numpy as np
from grain.experimental import index_shuffle

from data.batches import Block, Rows
from data.prepared import Prepared, PreparedSource
from data.rows.mixture import Mixture
from data.rows.pack import Damage

# Up to this many rows, an epoch's shuffled order is kept as a list (4 bytes per row). Beyond that, a cipher computes
# each place on its own, which takes no memory but 8 us per row (and 800 us for a handful of rows).
_LISTED_ROWS = 1 << 22
_BLOCK_TOKENS = 1 << 14  # a block has at least this many tokens


def trained_sources(prepared: Prepared) -> list[PreparedSource]:
    """Returns the sources whose rows are trained on: those with a weight above 0 and packed records."""
    return [source for source in prepared.sources if source.weight and source.channels]


class TrainBlocks:
    """Random access to this process's rows of each batch, in blocks of several batches.

    For a small batch the overhead of calls exceeds the work, so a thread reads a block of batches at once.

    Args:
      prepared: the data.
      batch_size: rows of the global batch.
      seed: of the shuffles.
      rows: indices of the global batch's rows that this process reads.
      first_row: the place in the stream at which block 0 begins.
      max_damaged: how many rows that can't be read are tolerated.

    Attributes:
      steps: batches per block.
      share: rows per batch of this process.
    """

    def __init__(
        self, prepared: Prepared, batch_size: int, seed: int, rows: np.ndarray, first_row: int, max_damaged: int
    ):
        self.batch_size = batch_size
        self.share = len(rows)
        self.first_row = first_row
        self.steps = -(-_BLOCK_TOKENS // (self.share * prepared.seq_len))
        self._seed = seed
        sources = trained_sources(prepared)
        self.names = [source.name for source in sources]
        self._mixture = Mixture([source.weight for source in sources])
        self.damage = Damage(max_damaged)
        self._rows = Rows(sources, "train", prepared.seq_len, prepared.channels, hold=True, damage=self.damage)
        steps = np.arange(self.steps)[:, None] * batch_size
        self._places = (steps + rows).reshape(-1)
        # A block may extend into the next epoch of a source, and another thread may be one block ahead.
        self._order = lru_cache(maxsize=2 * len(sources))(self._epoch_order)

    def __len__(self) -> int:
        return sys.maxsize // (self.batch_size * self.steps)

    def __getitem__(self, block: int) -> Block:
        places = self.first_row + block * self.steps * self.batch_size + self._places
        sources, indices = self.locate(places)
        return self._rows.read(sources, indices, places)

    def locate(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (index of the source, index of the row in it) for each of `places` in the stream."""
        sources, ranks = self._mixture.locate(places)
        indices = np.empty_like(ranks)
        for source in np.unique(sources):
            mine = sources == source
            indices[mine] = self._shuffled(int(source), ranks[mine])
        return sources, indices

    def _shuffled(self, source: int, ranks: np.ndarray) -> np.ndarray:
        """Returns the row of a source at each rank: every row once per epoch, in a new order in each epoch."""
        count = self._rows.counts[source]
        epochs, indices = np.divmod(ranks, count)
        rows = np.empty_like(indices)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            if count <= _LISTED_ROWS:
                rows[now] = self._order(source, int(epoch))[indices[now]]
            else:
                seed = self._epoch_seed(source, int(epoch))
                rows[now] = [index_shuffle(int(i), max_index=count - 1, seed=seed, rounds=4) for i in indices[now]]
        return rows

    def _epoch_order(self, source: int, epoch: int) -> np.ndarray:
        random = np.random.Generator(np.random.PCG64(self._epoch_seed(source, epoch)))
        return random.permutation(self._rows.counts[source]).astype(np.uint32)

    def _epoch_seed(self, source: int, epoch: int) -> int:
        key = f"{self._seed} {source} {epoch}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big")
