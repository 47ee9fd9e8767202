"""The Batch contract: the only thing that passes from `data` to `train`.

A batch is a dict of five arrays of shape [B, T] (B rows of this process, T = seq_len):

    tokens       int32    inputs
    targets      int32    the token that follows each input in its document
    segment_ids  int32    1, 2, ... for each document piece in the row; 0 = padding
    positions    int32    offset of the token in its piece, from 0
    weights      float32  weight of the target in the loss; 0 on padding

Attention must not cross from one segment to another. A row on disk holds the first three (`data/pack.py`); the other
two follow from them and are derived here, when rows are read.

`DataError` lives here too, on the lowest floor of the package: every mistake of a user (a missing file, a broken line,
a wrong setting) is raised as one, with a message that says what is wrong, where, and what to do.
"""

from collections.abc import Mapping

import numpy as np

Batch = dict[str, np.ndarray]

DTYPES = {
    "tokens": np.int32,
    "targets": np.int32,
    "segment_ids": np.int32,
    "positions": np.int32,
    "weights": np.float32,
}


class DataError(Exception):
    """A mistake of the user about data. The message stands alone: programs print it without a traceback."""


def from_rows(rows: np.ndarray) -> Batch:
    """Builds a batch from packed rows [B, 3, T]: tokens, targets, segment ids."""
    rows = rows.astype(np.int32)
    segment_ids = rows[:, 2]
    real = segment_ids > 0
    column = np.arange(segment_ids.shape[1], dtype=np.int32)
    starts = np.zeros_like(segment_ids)
    starts[:, 1:] = np.where(segment_ids[:, 1:] != segment_ids[:, :-1], column[1:], 0)
    positions = np.where(real, column - np.maximum.accumulate(starts, axis=1), 0)
    return {
        # Copies, so that each array is contiguous and may be handed to a device without another copy.
        "tokens": rows[:, 0].copy(),
        "targets": rows[:, 1].copy(),
        "segment_ids": segment_ids.copy(),
        "positions": positions,
        "weights": real.astype(np.float32),
    }


def check(batch: Mapping[str, np.ndarray], vocab_size: int) -> None:
    """Raises DataError where `batch` breaks the contract: keys, shapes, dtypes, or ids outside the vocabulary."""
    if set(batch) != set(DTYPES):
        raise DataError(f"A batch has the keys {sorted(DTYPES)}, but this one has {sorted(batch)}.")
    shape = batch["tokens"].shape
    for key, dtype in DTYPES.items():
        array = batch[key]
        if array.ndim != 2 or array.shape != shape:
            raise DataError(f"Batch arrays are [B, T] and alike, but {key} is {array.shape} and tokens is {shape}.")
        if array.dtype != dtype:
            raise DataError(f"Batch array {key} must be {np.dtype(dtype)}, but it is {array.dtype}.")
    for key in ("tokens", "targets"):
        low, high = (int(batch[key].min()), int(batch[key].max())) if batch[key].size else (0, 0)
        if low < 0 or high >= vocab_size:
            raise DataError(
                f"Batch array {key} has ids from {low} to {high}, but the vocabulary has {vocab_size}: the rows were "
                "prepared with another tokenizer. Set the model's vocab_size to that of the prepared data."
            )
