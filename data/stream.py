"""The stream of training rows: which row of which source stands at each place, and random access to it.

Place k holds row j of source s, where s is set by the weights (data/rows/mixture.py) and j by a shuffle of that source
anew for each epoch. The batch of a step is the next `batch_size` places, and each process takes the rows of it that its
devices need. So a position is one number that holds for any number of processes, any mesh and any batch size. (grain's
ElasticIterator keeps one number too, but deals rows out in turn: the order within a global batch would change with the
number of processes.)
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

# Up to this many rows, an epoch's shuffled order is kept as a list (4 bytes a row). Beyond, each place is computed on
# its own by a cipher, which takes no memory but 8 us a row (and 800 us for a handful of rows).
_LISTED_ROWS = 1 << 22
_BLOCK_TOKENS = 1 << 14


def trained_sources(prepared: Prepared) -> list[PreparedSource]:
    return [source for source in prepared.sources if source.weight]


class TrainBlocks:
    """Random access to some `rows` of each batch after `first_row`, in blocks of `steps` batches.

    A small batch costs many small calls and little work, so a thread makes a block of them at once.
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
        # A block may reach from one epoch of a source into the next, and another thread may be a block ahead.
        self._order = lru_cache(maxsize=2 * len(sources))(self._epoch_order)

    def __len__(self) -> int:
        return sys.maxsize // (self.batch_size * self.steps)

    def __getitem__(self, block: int) -> Block:
        places = self.first_row + block * self.steps * self.batch_size + self._places
        sources, indices = self.locate(places)
        return self._rows.read(sources, indices, places)

    def locate(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of the source, number of the row in it) of places in the stream."""
        sources, ranks = self._mixture.locate(places)
        indices = np.empty_like(ranks)
        for source in np.unique(sources):
            mine = sources == source
            indices[mine] = self._shuffled(int(source), ranks[mine])
        return sources, indices

    def _shuffled(self, source: int, ranks: np.ndarray) -> np.ndarray:
        """Row of the source that comes at each rank: every row once an epoch, in an order of that epoch's own."""
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
