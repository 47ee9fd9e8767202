"""Adds a channel to prepared rows that is computed from them once, such as log-probabilities by a frozen model.

    DIR/CHANNEL/ROWS-HASH/     the rows of DIR/rows/ROWS with the channel

The rows are written again as a whole, so a row can't get out of step with its values, and everything that reads rows
(mixtures, shuffles, saved positions, processes) works unchanged. The price is disk: all channels of rows with floats
take 32 bits. The folder is a stage (data/stage.py): a finished one is found again, and a killed one is redone.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data import stage
from data.batch import Batch, Channel, DataError, from_rows
from data.batches import Rows
from data.clean.splits import SPLITS
from data.prepared import Prepared, PreparedSource
from data.rows.pack import write_rows


@dataclasses.dataclass(frozen=True)
class Added:
    """A channel of the rows of all sources.

    Args:
      prepared: the rows.
      channel: float32, with an array of its own.
      identity: JSON of everything beside the rows that the values depend on.
    """

    prepared: Prepared
    channel: Channel
    identity: Any

    @property
    def folder(self) -> Path:
        return stage.place(self._parent, self.prepared.directory.name, self._inputs)

    @property
    def done(self) -> bool:
        return stage.manifest(self.folder) is not None

    @contextlib.contextmanager
    def lock(self, log: Callable[[str], None] = print) -> Iterator[None]:
        """Waits until no other process computes this channel, and keeps others out."""
        self._parent.mkdir(parents=True, exist_ok=True)
        with stage.lock(self._parent, log):
            yield

    def compute(self, size: int, values: Callable[[Batch], np.ndarray], log: Callable[[str], None] = print) -> None:
        """Computes the values of all rows and writes them.

        Args:
          size: rows of a batch.
          values: a batch with the channels of its source -> float32 [size, T].
          log: gets a line when this begins.

        Raises:
          DataError: a row can't be read, or the disk is full or not writable.
        """

        def make(folder: Path) -> dict:
            for number, source in enumerate(self.prepared.sources):
                for split in SPLITS:
                    write_rows(folder / self._path(number, source, split), self._blocks(source, split, size, values))
            return {"channel": self.channel}

        try:
            stage.run(self._parent, self.prepared.directory.name, self._inputs, make, log)
        except (OSError, RuntimeError) as error:
            if (problem := stage.storage_problem(error)) is None:
                raise
            raise DataError(
                f"{problem} while {self.channel.name} were written to {self._parent}: {error}. Fix that and run again."
            ) from error

    def take_part(self, size: int, values: Callable[[Batch], np.ndarray]) -> None:
        """Calls `values` as `compute` does and writes nothing, for the other processes of a collective computation."""
        for source in self.prepared.sources:
            for split in SPLITS:
                for _ in self._blocks(source, split, size, values):
                    pass

    def rows(self) -> Prepared:
        """Returns the prepared data with the channel, once it was computed."""

        def extended(number: int, source: PreparedSource) -> PreparedSource:
            train, validation = (self.folder / self._path(number, source, split) for split in ("train", "validation"))
            channels = (*source.channels, self.channel)
            return dataclasses.replace(source, train=train, validation=validation, channels=channels)

        sources = tuple(extended(*one) for one in enumerate(self.prepared.sources))
        return dataclasses.replace(self.prepared, sources=sources)

    @property
    def _parent(self) -> Path:
        return self.prepared.directory.parents[1] / self.channel.name

    @property
    def _inputs(self) -> Any:
        return {"rows": self.prepared.directory.name, "channel": self.channel, "values": self.identity}

    def _path(self, number: int, source: PreparedSource, split: str) -> str:
        return f"{number}-{source.name}/{split}"

    def _blocks(self, source: PreparedSource, split: str, size: int, values: Callable) -> Iterator[np.ndarray]:
        """Yields the rows of a split with the channel, uint32 [N, C + 1, T]; the last batch is padded to `size`."""
        reader = Rows([source], split, self.prepared.seq_len, source.channels)
        for first in range(0, reader.counts[0], size):
            places = np.arange(first, first + size)
            found = places < reader.counts[0]
            rows = reader.read(np.where(found, 0, -1), places, places).rows
            added = values(from_rows(rows, source.channels)).astype("<f4").view("<u4")
            yield np.concatenate([rows.astype("<u4"), added[:, None]], axis=1)[found]
