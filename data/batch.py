"""The Batch contract: the only thing that passes from `data` to `train`.

A batch is a dict of arrays of shape [B, T] (B rows of this process, T = seq_len). Five are in every one:

    tokens       int32    inputs
    targets      int32    the token that follows each input in its document; of labels the class; of numbers (a
                          regression) float32
    segment_ids  int32    1, 2, ... for each document piece in the row; 0 = padding
    positions    int32    offset of the token in its piece, from 0
    weights      float32  weight of the target in the loss; 0 on padding

Attention must not cross from one segment to another. These five are the decoder's side where a model has two; then
three more of shape [B, S] are the encoder's, all int32:

    encoder_tokens, encoder_segment_ids, encoder_positions

A document has the same segment id on both sides, and cross-attention must not leave it either.

All others are declared by the kind of examples that brings them, as `Channel`s; two sorts of them are known here:

    token_types  int32    1 from the second text of an example on, else 0
    group_ids    int32    1, 2, ... for each example of several segments in the row; 0 = none
    ranks        int32    the segment's place in its example, from 0: a chosen answer before the rejected one, the best
                          of a list first

Every array is 0 on padding, and a declared one on rows of sources that do not bring it.

On disk a row is an array [C, T]. Of text it holds tokens, targets and segment ids (`data/rows/pack.py`); positions and
weights follow from them and are derived here, when rows are read, or the row is corrupted (`data/rows/corrupt.py`).
Rows of examples (`data/examples/example.py`) hold marks of each token too, then where there is an encoder what it
reads, then what their kind declares. A channel of float32 travels as its bits, in 32-bit rows: a file of its own would
keep the other channels at 16 bits, for a second read of each row and two files that can get out of step.

`DataError` lives here too, on the lowest floor of the package: every mistake of a user (a missing file, a broken line,
a wrong setting) is raised as one, with a message that says what is wrong, where, and what to do.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]

DTYPES = {
    "tokens": np.int32,
    "targets": np.int32,
    "segment_ids": np.int32,
    "positions": np.int32,
    "weights": np.float32,
}
ENCODER_DTYPES = {"encoder_tokens": np.int32, "encoder_segment_ids": np.int32, "encoder_positions": np.int32}

# Bits of the channel of marks; 16, 32, 64 and 128 are free for what kinds of examples declare.
TRAINED = 1  # the loss counts what is said at the token
CONTENT = 2  # what a user or a source says, or words to be labelled: not the text of a template, no special token
ENCODER_CONTENT = 4  # the same of the encoder's token at this place
SECOND = 8  # the token is of the second text of an example, or behind it


class Channel(NamedTuple):
    """One array of rows and batches. A name that begins with 'encoder_' is of the encoder's side: the array is as long
    as what the encoder reads, and packed, cut and augmented along with it, else with the tokens."""

    name: str  # the key in a batch
    dtype: str = "int32"  # or "float32"
    mark: int = 0  # this bit of the marks is the channel (0 or 1), which has no array of its own on disk; 0: it has one


TEXT = (Channel("tokens"), Channel("targets"), Channel("segment_ids"))
MARKS = Channel("marks")  # on disk alone
ENCODER = (Channel("encoder_tokens"), Channel("encoder_segment_ids"))
TOKEN_TYPES = Channel("token_types", mark=SECOND)
GROUPS = (Channel("group_ids"), Channel("ranks"))
BASE = (*TEXT, MARKS, *ENCODER)
_DERIVED = {"positions", "weights", "encoder_positions", MARKS.name}
_MARKS = len(TEXT)  # where the marks stand in rows


class DataError(Exception):
    """A mistake of the user about data. The message stands alone: programs print it without a traceback."""


def example_channels(own: Iterable[Channel], encoder: bool) -> tuple[Channel, ...]:
    """All channels of rows of examples; one of its `own` that is called like a channel of text stands in its place.

    Raises:
      ValueError: one is called like what follows from the others.
    """
    own = tuple(own)
    if derived := _DERIVED & {channel.name for channel in own}:
        raise ValueError(
            f"{', '.join(sorted(derived))} follow from other channels, and can't be declared: rename them."
        )
    base = (*TEXT, MARKS, *(ENCODER if encoder else ()))
    return tuple({channel.name: channel for channel in (*base, *own)}.values())


def united(sources: Mapping[str, tuple[Channel, ...]]) -> tuple[Channel, ...]:
    """The channels of batches of rows of several sources, by name; text's stand first, marks behind them.

    Raises:
      DataError: a channel is not the same in two of them.
    """
    found, owner = {}, {}
    for channel, source in ((channel, source) for source, channels in sources.items() for channel in channels):
        if found.setdefault(channel.name, channel) != channel:
            raise DataError(
                f"The data sources {owner[channel.name]} and {source} can't be in one batch: their {channel.name} are "
                f"{_described(found[channel.name])} and {_described(channel)}. Train on them one after the other."
            )
        owner.setdefault(channel.name, source)
    first = [channel.name for channel in BASE if channel.name in found]
    return tuple(found[name] for name in dict.fromkeys([*first, *found]))


def _described(channel: Channel) -> str:
    return f"bit {channel.mark} of the marks" if channel.mark else channel.dtype


def stored(channels: Iterable[Channel]) -> tuple[Channel, ...]:
    """Those that have an array of their own on disk, in its order."""
    return tuple(channel for channel in channels if not channel.mark)


def wide(channels: Iterable[Channel]) -> bool:
    """Whether rows need 32 bits a value, whatever the vocabulary: for floats, and for integers that a kind brings,
    which may be negative. The others are ids, numbers of segments and bits."""
    small = {channel.name for channel in (*BASE, *GROUPS)}
    return any(channel.dtype == "float32" or channel.name not in small for channel in stored(channels))


def dtypes(channels: Iterable[Channel]) -> dict[str, np.dtype]:
    """Keys and dtypes of a batch of rows of these channels."""
    channels = [channel for channel in channels if channel != MARKS]
    encoder = ENCODER_DTYPES if ENCODER[0] in channels else {}
    return DTYPES | encoder | {channel.name: np.dtype(channel.dtype).type for channel in channels}


def from_rows(rows: np.ndarray, channels: Sequence[Channel] = TEXT) -> Batch:
    """Builds a batch from packed rows [B, C, T] of these channels; C of them are `stored`."""
    rows = rows.astype(np.int32)
    place = {channel.name: i for i, channel in enumerate(stored(channels))}
    examples = MARKS.name in place
    segment_ids = rows[:, place["segment_ids"]]
    batch = {
        "positions": positions(segment_ids),
        "weights": (marked(rows, TRAINED) if examples else segment_ids > 0).astype(np.float32),
    }
    for name, dtype in dtypes(channels).items():
        if name in place:
            # Copies, so that each array is contiguous and may be handed to a device without another copy.
            batch[name] = rows[:, place[name]].copy().view(dtype)
    if "encoder_tokens" in batch:
        batch["encoder_positions"] = positions(batch["encoder_segment_ids"])
    for channel in channels:
        if channel.mark:
            batch[channel.name] = marked(rows, channel.mark).astype(channel.dtype)
    return batch


def marked(rows: np.ndarray, mark: int) -> np.ndarray:
    """Which tokens of packed rows of examples [B, C, T] have this mark, bool [B, T]."""
    return rows[:, _MARKS] & mark > 0


def positions(segment_ids: np.ndarray) -> np.ndarray:
    """Offset of each token in its segment, from 0; 0 on padding: int32 [B, T], like `segment_ids`."""
    column = np.arange(segment_ids.shape[1], dtype=np.int32)
    starts = np.zeros_like(segment_ids)
    starts[:, 1:] = np.where(segment_ids[:, 1:] != segment_ids[:, :-1], column[1:], 0)
    return np.where(segment_ids > 0, column - np.maximum.accumulate(starts, axis=1), 0)


def check(batch: Mapping[str, np.ndarray], vocab_size: int, channels: Iterable[Channel] = TEXT) -> None:
    """Raises DataError where `batch` is none of rows of these `channels`: keys, shapes, dtypes, or ids outside the
    vocabulary. Text that is corrupted may have an encoder's side that its rows have not."""
    wanted = dtypes(channels)
    if set(batch) not in ({*wanted}, {*wanted, *ENCODER_DTYPES}):
        raise DataError(
            f"This batch has the keys {sorted(wanted)}, and maybe {sorted(ENCODER_DTYPES)}, by what its rows hold, but "
            f"it has {sorted(batch)}."
        )
    for key, array in batch.items():
        dtype, first = (wanted | ENCODER_DTYPES)[key], "encoder_tokens" if key.startswith("encoder_") else "tokens"
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
        if key not in batch or batch[key].dtype != np.int32:
            continue
        low, high = (int(batch[key].min()), int(batch[key].max())) if batch[key].size else (0, 0)
        if low < 0 or high >= vocab_size:
            raise DataError(
                f"Batch array {key} has ids from {low} to {high}, but the vocabulary has {vocab_size}: the rows were "
                "prepared with another tokenizer. Set the model's vocab_size to that of the prepared data."
            )
