"""The first checkpoint of a run is read again at once, and compared with what is in memory.

Where Orbax writes what it can't read (an odd path, a disk that lies, a driver that is broken), a run would train to its
end and only then be found lost. Arrays are read one after another, so that no second model has to fit. Later saves go
the same way, and are not read.
"""

from collections.abc import Iterator

import jax
import numpy as np

from train.checkpoints.checkpoint import CheckpointError, Checkpoints
from train.state import TrainState


class UnreadableCheckpoint(CheckpointError):
    """What was saved can't be read, or is not what was saved: no later save would be better."""


def compare(checkpoints: Checkpoints, step: int, state: TrainState) -> None:
    """Reads the checkpoint of `step` and compares it with `state`.

    Raises:
      UnreadableCheckpoint: the checkpoint of `step` does not hold this state.
    """
    try:
        wrong = next(_differing(checkpoints, step, state), "")
    except CheckpointError as error:
        wrong = str(error)
    if wrong:
        raise UnreadableCheckpoint(
            f"checkpoint {step}, the first of this run, was read back to see whether it is good; it is not: {wrong}. "
            "The run ends, as it could not be continued; use another --workdir"
        )


def _differing(checkpoints: Checkpoints, step: int, state: TrainState) -> Iterator[str]:
    """Yields what differs on disk, as words; reads the loop's part last, so that an unreadable one raises too."""
    for part, written in checkpoints.parts(state).items():
        like = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in written.items()}
        for name, found in checkpoints.restore_arrays(like, step, part):
            pairs = zip(found.addressable_shards, written[name].addressable_shards, strict=True)
            if any(np.asarray(one.data).tobytes() != np.asarray(other.data).tobytes() for one, other in pairs):
                yield f"{part}/{name} has other numbers than were written"
    checkpoints.loop(step)
