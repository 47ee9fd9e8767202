"""Which stage of a pipeline works on what at which turn: the index algebra of pipeline.py, by itself.

S stages have R groups of layers each; group r of stage s is the (r S + s)-th of all. Micro-batch m lies at stage m % S
as the (m // S)-th of n, and comes back there. With S = 2, R = 2 and n = 2, as micro-batch:group,

    turn       0     1     2     3     4     5     6     7     8
    stage 0   0:0   1:0   0:1   1:1   2:0   3:0   2:1   3:1    -
    stage 1    -    0:0   1:0   0:1   1:1   2:0   3:0   2:1   3:1

Every stage does what the one before it did a turn earlier, and S micro-batches share a round trip of R S turns. An idle
stage (-) works on padding.
"""

from typing import NamedTuple

import jax.numpy as jnp


class Clock(NamedTuple):
    stages: int
    groups: int
    slots: int

    @property
    def round_trip(self) -> int:
        return self.groups * self.stages

    @property
    def turns(self) -> int:
        return self.slots * self.round_trip + self.stages - 1

    def since(self, turn, stage):
        """Turns since the first micro-batch came to a stage; below 0 it has not."""
        return turn - stage

    def group(self, turn, stage):
        """The group of layers that a stage runs: each for S micro-batches on end."""
        return self.since(turn, stage) // self.stages % self.groups

    def arrived(self, turn):
        """(a slot, whether its micro-batches are all done and where they lie). The first of them is done first, and has
        the longest way back, S - 1 turns to stage 0; the last one is just then done, at the last stage, where it lies.
        """
        since = turn - (self.stages - 2)
        slot = since // self.round_trip - 1
        return jnp.maximum(slot, 0), (since % self.round_trip == 0) & (slot >= 0)
