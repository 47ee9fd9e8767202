"""Which pipeline stage works on what at which turn: the index arithmetic of pipeline.py, without the arrays.

There are S stages with R groups of layers each; group r of stage s is group r S + s of the model. Micro-batch m is
stored at stage m % S, as number m // S of n, and returns there. With S = 2, R = 2 and n = 2, as micro-batch:group:

    turn       0     1     2     3     4     5     6     7     8
    stage 0   0:0   1:0   0:1   1:1   2:0   3:0   2:1   3:1    -
    stage 1    -    0:0   1:0   0:1   1:1   2:0   3:0   2:1   3:1

Every stage does what the stage before it did one turn earlier, and S micro-batches share a round trip of R S turns. An
idle stage (-) works on padding.
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
        """Turns since the first micro-batch reached a stage; negative before that."""
        return turn - stage

    def group(self, turn, stage):
        """The group of layers that a stage runs; it runs each for S micro-batches in a row."""
        return self.since(turn, stage) // self.stages % self.groups

    def arrived(self, turn):
        """Returns (a slot, whether all of its micro-batches are done and back at the stages that store them).

        The first of the S micro-batches finishes first and has the longest way back, S - 1 turns to stage 0. The last
        one finishes only now, at the last stage, which stores it.
        """
        since = turn - (self.stages - 2)
        slot = since // self.round_trip - 1
        return jnp.maximum(slot, 0), (since % self.round_trip == 0) & (slot >= 0)
