"""Lays completions out as a batch: packed rows of prompts with their completions, and what the loss needs per token.

A batch has the channels of every batch (data/batch.py), where only tokens of completions have a weight, and

    shares               float32  what the token counts in the loss (Policy.shares)
    counts               float32  what it counts in the weight that the loss is divided by
    advantages           float32
    sampled_logprobs     float32  log-probability that the sampler computed
    old_logprobs         float32  the same by the trainer, before the updates of this round
    reference_logprobs   float32  by the reference, if the KL is in the loss
    old_values, returns  float32  the critic's values before the updates of this round, and what they should be
    text_weights         float32  weight of a token of text, in rows of text

Rows are added until their number is one of a few, so that few programs are compiled.

Dims: R rows, T length, L tokens of a completion.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data.batch import GROUPS, Batch, positions
from data.examples.packing import best_fit


@dataclasses.dataclass
class Completion:
    """A prompt and what the model answered.

    `values` holds the channels of a batch that belong to its tokens, float32 [L] each. A completion that is not
    `counted` has no reward, and is left out of the loss.
    """

    number: int  # of the prompt
    prompt: np.ndarray  # int32
    answer: np.ndarray  # int32 [L], with the token that ended it, if one did
    finished: bool  # whether one did
    text: str = ""
    reward: float = 0.0
    counted: bool = True
    values: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """Tokens in a row; the last one is only a target."""
        return len(self.prompt) + len(self.answer) - 1


Place = tuple[int, int, int]  # row, first column and number of the columns that predict a completion's tokens


def rows_of(groups: Sequence[Sequence[Completion]], seq_len: int, unit: int) -> tuple[Batch, list[list[Place]]]:
    """Packs completions into rows.

    Args:
      groups: completions that must share a row: one each, or those of a pair.
      seq_len: T.
      unit: the number of rows becomes a multiple of this.

    Returns:
      (the arrays that every batch has, with group_ids and ranks if a group has several; the place of each completion of
      each group)
    """
    sizes = np.array([[sum(one.size for one in group)] for group in groups])
    row_of = best_fit(sizes, seq_len)
    count = bucket(int(row_of.max()) + 1, unit)
    tokens, targets, segments, group_ids, ranks = np.zeros((5, count, seq_len), np.int32)
    weights = np.zeros((count, seq_len), np.float32)
    used, segment, example = np.zeros((3, count), int)
    places: list[list[Place]] = []
    for row, group in zip(row_of, groups, strict=True):
        example[row] += 1
        places.append([])
        for rank, one in enumerate(group):
            segment[row] += 1
            first, n = used[row], one.size
            whole, part = np.concatenate([one.prompt, one.answer]), slice(first, first + n)
            tokens[row, part], targets[row, part], segments[row, part] = whole[:-1], whole[1:], segment[row]
            group_ids[row, part], ranks[row, part] = example[row], rank
            begin = first + len(one.prompt) - 1
            weights[row, begin : first + n] = 1
            places[-1].append((row, begin, len(one.answer)))
            used[row] += n
    batch = {"tokens": tokens, "targets": targets, "segment_ids": segments, "weights": weights}
    batch["positions"] = positions(segments)
    if any(len(group) > 1 for group in groups):
        batch |= dict(zip((channel.name for channel in GROUPS), (group_ids, ranks), strict=True))
    return batch, places


def spread(completions: Sequence[Completion], places: Sequence[Place], shape: tuple[int, int], name: str) -> np.ndarray:
    """Returns the values `name` of completions at their places, float32 [R, T]."""
    found = np.zeros(shape, np.float32)
    for one, (row, begin, n) in zip(completions, places, strict=True):
        found[row, begin : begin + n] = one.values[name]
    return found


def read(completions: Sequence[Completion], places: Sequence[Place], arrays: Mapping[str, np.ndarray]) -> None:
    """Stores values [R, T] of the tokens of a batch in its completions."""
    for one, (row, begin, n) in zip(completions, places, strict=True):
        one.values |= {name: np.asarray(array[row, begin : begin + n], np.float32) for name, array in arrays.items()}


def bucket(rows: int, unit: int) -> int:
    """Rounds a number of rows up to a multiple of `unit`, with four steps per doubling above four units."""
    units = -(-rows // unit)
    step = 1 << max(0, (units - 1).bit_length() - 3)
    return -(-units // step) * step * unit
