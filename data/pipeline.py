"""Turns packed rows into batches: endless and shuffled for training, once and in order for validation.

Training reads one global stream of rows (data/stream.py), in which a position is a single number. grain reads ahead in
threads, which also turn rows into batches: unchanged, corrupted (data/rows/corrupt.py) or augmented
(data/rows/augment.py). The random numbers for that depend on seed and place alone.

Importing this file imports grain, which imports jax. So a program that sets jax's environment must do so before.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np

from data.batch import Batch, DataError
from data.batches import Block, Rows, to_batch
from data.prepared import Prepared, PreparedSource
from data.rows.augment import Augmentation
from data.rows.corrupt import VALIDATION_SEED, Corruption
from data.rows.mixture import Mixture
from data.stream import TrainBlocks, trained_sources
from data.tokens.tokenizer import load as load_tokenizer

_READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)  # blocks


class Pipeline:
    """An endless iterator over this process's share of training batches, with a position that can be saved."""

    phase = "data"  # what the time of `next` counts as (train/watch/phases.py)

    def __init__(self, blocks: TrainBlocks, to_batch: Callable[[Block], Batch], stream: str, tokenizer_path: Path):
        self._blocks = blocks
        self._tokenizer_path = tokenizer_path
        self._stream = stream
        self._steps = self._told = 0
        self._iterator = iter(grain.MapDataset.source(blocks).map(to_batch).to_iter_dataset(_READ_AHEAD))

    def next(self, state: Any = None) -> Batch:
        """Returns the next batch.

        Args:
          state: that of training, for other sources of batches, which sample from its model.

        Raises:
          DataError: no token of the batch has a weight, and that is not because all of its rows are damaged. This is
            only checked if the batch is not shared with other processes.
        """
        place = self._steps % self._blocks.steps
        if place == 0:
            self._block = next(self._iterator)
        self._steps += 1
        share = self._blocks.share
        batch = {key: array[place * share : (place + 1) * share] for key, array in self._block.items()}
        alone = share == self._blocks.batch_size  # else other processes may have rows with weights
        if alone and batch["segment_ids"].any() and not batch["weights"].any():
            raise DataError(self._nothing_trains(batch))
        return batch

    def _nothing_trains(self, batch: Batch) -> str:
        row = int(batch["segment_ids"].any(1).argmax())  # damaged rows are padding
        ids = batch["tokens"][row][batch["segment_ids"][row] == 1]
        shown = load_tokenizer(self._tokenizer_path).decode(ids)
        return (
            f"All weights of the batch at row {self.position()['next_row'] - self._blocks.batch_size} are 0: there is "
            f"nothing to train on. Its first example is:\n  {shown[:500]!r}\nAdd an answer to it or remove it."
        )

    def position(self) -> dict[str, Any]:
        """Returns where the next batch begins, as JSON: the same in every process, whatever was read ahead."""
        next_row = self._blocks.first_row + self._steps * self._blocks.batch_size
        return {"next_row": next_row, "stream": self._stream}

    def to_json(self) -> dict[str, Any]:
        """Returns the position; nothing else is needed to continue from it."""
        return self.position()

    def figures(self) -> dict[str, float]:
        """Returns numbers about the last batch: none."""
        return {}

    def origins(self) -> list[str]:
        """Returns where each row of the last global batch comes from, like 'row 17 of stdlib'."""
        first = self.position()["next_row"] - self._blocks.batch_size
        sources, indices = self._blocks.locate(np.arange(first, first + self._blocks.batch_size))
        return [f"row {row} of {self._blocks.names[source]}" for source, row in zip(sources, indices, strict=True)]

    def events(self) -> list[dict[str, str]]:
        """Returns {"damaged_row": line} for each row that could not be read since the last call, and was padding."""
        lines = self._blocks.damage.lines()
        new, self._told = lines[self._told :], len(lines)
        return [{"damaged_row": line} for line in new]

    def close(self) -> None:
        """Stops reading ahead."""
        self._iterator.close()


def train_pipeline(
    prepared: Prepared,
    batch_size: int,
    seed: int,
    rows: np.ndarray | None = None,
    position: Mapping[str, Any] | None = None,
    corruption: Corruption | None = None,
    augmentation: Augmentation | None = None,
    max_damaged: int = 0,
) -> Pipeline:
    """Returns the training stream of `prepared`.

    Args:
      prepared: the data.
      batch_size: rows of the global batch.
      seed: the same seed gives the same stream.
      rows: indices of the global batch's rows that this process reads, ascending; None: all.
      position: where to start, as `Pipeline.position` returned it; None: at the start.
      corruption: applied to rows of text.
      augmentation: applied to rows of examples.
      max_damaged: up to this many rows that can't be read are replaced by padding.

    Raises:
      DataError: a source has no rows. Or the position belongs to another stream (other data, weights, corruption,
        augmentation or seed), in which it would repeat some rows and skip others.
    """
    sources = trained_sources(prepared)
    names = [source.name for source in sources if not source.train_rows]
    if names:
        raise DataError(f"No rows to train on in {', '.join(names)} ({prepared.directory}).")
    contents = [
        (source.content_hash, source.weight, source.train_tokens, *filter(None, [source.encoding]))
        for source in sources
    ]
    described = repr((contents, prepared.vocab_size, prepared.seq_len, seed))
    if Mixture([source.weight for source in sources]).period is None:
        described += "mixed by due times"  # earlier versions rounded the shares, which gave another stream
    described += "".join(change.description for change in (corruption, augmentation) if change is not None)
    stream = hashlib.sha256(described.encode()).hexdigest()[:16]
    if position is not None and position["stream"] != stream:
        raise DataError(
            f"The saved data position belongs to stream {position['stream']}, but this data with its weights, "
            f"corruption, augmentation and seed {seed} is stream {stream}. Restore the run's settings, or start a new "
            "run."
        )
    first_row = position["next_row"] if position is not None else 0
    blocks = TrainBlocks(prepared, batch_size, seed, _rows(rows, batch_size), first_row, max_damaged)
    make = functools.partial(
        to_batch, seed=seed, channels=prepared.channels, corruption=corruption, augmentation=augmentation
    )
    return Pipeline(blocks, make, stream, prepared.tokenizer_path)


def validation_batches(
    prepared: Prepared,
    batch_size: int,
    rows: np.ndarray | None = None,
    limit_rows: int | None = None,
    corruption: Corruption | None = None,
    only: PreparedSource | None = None,
) -> Iterator[Batch]:
    """Returns an iterator over batches of the held-out rows, once and in order.

    Every batch has the same shape, and every process gets the same number of batches; the last one is padded with rows
    of weight 0. A row is corrupted the same way each time, whatever the batch size and limit.

    Args:
      prepared: the data.
      batch_size: rows of the global batch.
      rows: indices of the global batch's rows that this process reads, ascending; None: all.
      limit_rows: read only this many rows, spread evenly over all and the same each time; None: all.
      corruption: applied to rows of text.
      only: read only this source; None: all sources.

    Raises:
      DataError: nothing is held out.
    """
    sources = [source for source in prepared.sources if source.validation_rows]
    if not sources:
        raise DataError(f"No text is held out in {prepared.directory}: set config.data.validation above 0.")
    ends = np.cumsum([source.validation_rows for source in sources])
    places = np.arange(ends[-1])
    if only is not None:
        end = ends[sources.index(only)]
        places = places[end - only.validation_rows : end]
    if limit_rows is not None and limit_rows < len(places):
        places = places[np.arange(limit_rows) * len(places) // limit_rows]
    reader = Rows(sources, "validation", prepared.seq_len, prepared.channels)
    blocks = _read_in_order(reader, ends, places, batch_size, _rows(rows, batch_size))
    return (to_batch(block, VALIDATION_SEED, prepared.channels, corruption) for block in blocks)


def _read_in_order(reader: Rows, ends, places, batch_size: int, rows: np.ndarray) -> Iterator[Block]:
    for first in range(0, len(places), batch_size):
        mine = places[(first + rows)[first + rows < len(places)]]  # `rows` ascend, so only the last ones are missing
        owner = np.searchsorted(ends, mine, side="right")
        indices = mine - np.concatenate([[0], ends])[owner]
        padding = (0, len(rows) - len(mine))
        yield reader.read(np.pad(owner, padding, constant_values=-1), np.pad(indices, padding), np.pad(mine, padding))


def _rows(rows: np.ndarray | None, batch_size: int) -> np.ndarray:
    if batch_size < 1:
        raise DataError(f"A batch of {batch_size} rows can't be read: it must have at least one.")
    return np.arange(batch_size) if rows is None else rows
