"""The Batch contract: the only thing that passes from `data` to `train`.

A batch is a dict of five arrays of shape [B, T] (B rows of this process, T = seq_len):

    tokens       int32    inputs
    targets      int32    the token that follows each input in its document; of labels the class; of numbers (a
                          regression) float32
    segment_ids  int32    1, 2, ... for each document piece in the row; 0 = padding
    positions    int32    offset of the token in its piece, from 0
    weights      float32  weight of the target in the loss; 0 on padding

Attention must not cross from one segment to another. Where examples are of two texts (data/examples/labels.py) there is
one
more:

    token_types  int32    1 from the second text of an example on, else 0

The first five are the decoder's side where a model has two; then three more of shape [B, S] are the encoder's, all
int32:

    encoder_tokens, encoder_segment_ids, encoder_positions

A document has the same segment id on both sides, and cross-attention must not leave it either.

A row of text on disk holds tokens, targets and segment ids (`data/rows/pack.py`). The other two follow from them and
are derived here, when rows are read, or the row is corrupted (`data/rows/corrupt.py`). Rows of examples
(`data/examples/example.py`) hold marks of each token too, and where there is an encoder, what it reads.

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

# Bits of the channel of marks.
TRAINED = 1  # the loss counts what is said at the token
CONTENT = 2  # what a user or a source says, or words to be labelled: not the text of a template, no special token
ENCODER_CONTENT = 4  # the same of the encoder's token at this place
SECOND = 8  # the token is of the second text of an example, or behind it

TYPES_DTYPES = {"token_types": np.int32}
ENCODER_DTYPES = {"encoder_tokens": np.int32, "encoder_segment_ids": np.int32, "encoder_positions": np.int32}


class DataError(Exception):
    """A mistake of the user about data. The message stands alone: programs print it without a traceback."""


def from_rows(rows: np.ndarray, numbers: bool = False, token_types: bool = False) -> Batch:
    """Builds a batch from packed rows [B, C, T].

    The C channels are tokens, targets, segment ids; with C = 4 also marks; with C = 6 also encoder tokens and encoder
    segment ids. `numbers`: the targets are the bits of float32. `token_types`: examples are of two texts.
    """
    rows = rows.astype(np.int32)
    segment_ids = rows[:, 2]
    # Copies, so that each array is contiguous and may be handed to a device without another copy.
    batch = {
        "tokens": rows[:, 0].copy(),
        "targets": rows[:, 1].copy(),
        "segment_ids": segment_ids.copy(),
        "positions": positions(segment_ids),
        "weights": (segment_ids > 0 if rows.shape[1] == 3 else marked(rows, TRAINED)).astype(np.float32),
    }
    if rows.shape[1] == 6:
        batch |= {"encoder_tokens": rows[:, 4].copy(), "encoder_segment_ids": rows[:, 5].copy()}
        batch["encoder_positions"] = positions(rows[:, 5])
    if token_types:
        batch["token_types"] = marked(rows, SECOND).astype(np.int32)
    if numbers:
        batch["targets"] = batch["targets"].view(np.float32)
    return batch


def marked(rows: np.ndarray, mark: int) -> np.ndarray:
    """Which tokens of packed rows of examples [B, C, T] have this mark, bool [B, T]."""
    return rows[:, 3] & mark > 0


def positions(segment_ids: np.ndarray) -> np.ndarray:
    """Offset of each token in its segment, from 0; 0 on padding: int32 [B, T], like `segment_ids`."""
    column = np.arange(segment_ids.shape[1], dtype=np.int32)
    starts = np.zeros_like(segment_ids)
    starts[:, 1:] = np.where(segment_ids[:, 1:] != segment_ids[:, :-1], column[1:], 0)
    return np.where(segment_ids > 0, column - np.maximum.accumulate(starts, axis=1), 0)


def check(batch: Mapping[str, np.ndarray], vocab_size: int) -> None:
    """Raises DataError where `batch` breaks the contract: keys, shapes, dtypes, or ids outside the vocabulary."""
    both_sides = DTYPES | TYPES_DTYPES | ENCODER_DTYPES
    if set(batch) not in [{*DTYPES, *others} for others in ((), TYPES_DTYPES, ENCODER_DTYPES)]:
        raise DataError(
            f"A batch has the keys {sorted(DTYPES)}, and maybe {sorted(TYPES_DTYPES)} or {sorted(ENCODER_DTYPES)}, but "
            f"this one has {sorted(batch)}."
        )
    for key in batch:
        array, dtype, first = batch[key], both_sides[key], "encoder_tokens" if key in ENCODER_DTYPES else "tokens"
        shape = batch[first].shape
        if array.ndim != 2 or array.shape != shape:
            raise DataError(f"Batch arrays are [B, T] and alike, but {key} is {array.shape} and {first} is {shape}.")
        if array.dtype != dtype:
            raise DataError(f"Batch array {key} must be {np.dtype(dtype)}, but it is {array.dtype}.")
        if len(array) != len(batch["tokens"]):
            raise DataError(
                f"Both sides have the same rows, but {key} has {len(array)} and tokens {len(batch['tokens'])}."
            )
    for key in ("tokens", "targets", "encoder_tokens"):
        if key not in batch:
            continue
        low, high = (int(batch[key].min()), int(batch[key].max())) if batch[key].size else (0, 0)
        if low < 0 or high >= vocab_size:
            raise DataError(
                f"Batch array {key} has ids from {low} to {high}, but the vocabulary has {vocab_size}: the rows were "
                "prepared with another tokenizer. Set the model's vocab_size to that of the prepared data."
            )
