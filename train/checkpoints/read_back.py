"""Reads the first checkpoint of a run back at once, and compares it with the arrays in memory.

If Orbax writes files that it cannot read (because of an unusual path, a faulty disk or a broken driver), the run would
otherwise train to its end and only then be found lost. Arrays are read one after another, so that no second model must
fit into memory. Later saves take the same path and are not read back.
"""

from collections.abc import Iterator, Mapping

import jax
import numpy as np

from train.checkpoints.checkpoint import CheckpointError, Checkpoints
from train.state import TrainState


class UnreadableCheckpoint(CheckpointError):
    """A checkpoint cannot be read, or holds other values than were saved. Later saves would fail in the same way."""


def compare(checkpoints: Checkpoints, step: int, state: TrainState) -> None:
    """Reads the checkpoint of `step` and compares it with `state`, bit for bit.

    Raises:
      UnreadableCheckpoint: the checkpoint of `step` does not hold this state.
    """
    try:
        wrong = next(_of_state(checkpoints, step, state), "")
    except CheckpointError as error:
        wrong = str(error)
    if wrong:
        raise UnreadableCheckpoint(
            f"checkpoint {step}, the first of this run, was read back as a test, and it is damaged: {wrong}. "
            "The run ends, because it could not be continued; use another --workdir"
        )


def _of_state(checkpoints: Checkpoints, step: int, state: TrainState) -> Iterator[str]:
    """Yields a message for each array that differs on disk. It reads `loop` last, so that an unreadable one raises."""
    for part, written in checkpoints.parts(state).items():
        for name in differing(checkpoints, step, part, written):
            yield f"{part}/{name} has other numbers than were written"
    checkpoints.loop(step)


def differing(checkpoints: Checkpoints, step: int, part: str, written: Mapping[str, jax.Array]) -> Iterator[str]:
    """Yields the names of those arrays of a part ('model' or 'training') whose bits on disk are not those in memory.

    Raises:
      CheckpointError: the step cannot be read.
    """
    like = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in written.items()}
    for name, found in checkpoints.restore_arrays(like, step, part):
        pairs = zip(found.addressable_shards, written[name].addressable_shards, strict=True)
        if any(np.asarray(one.data).tobytes() != np.asarray(other.data).tobytes() for one, other in pairs):
            yield name
