"""The Batch contract: the only thing that passes from `data` to `train`.

A batch is a dict of arrays of shape [B, T] (B rows of this process, T = seq_len). Every batch has these five:

    tokens       int32    inputs
    targets      int32    the next token of the document; for labels the class; for regression a float32 number
    segment_ids  int32    1, 2, ... for each document piece in the row; 0 = padding
    positions    int32    offset of the token in its piece, from 0
    weights      float32  weight of the target in the loss; 0 on padding

Attention must not cross from one segment to another. In an encoder-decoder these five belong to the decoder, and three
more arrays of shape [B, S], all int32, belong to the encoder:

    encoder_tokens, encoder_segment_ids, encoder_positions

A document has the same segment id on both sides, and cross-attention must stay within it too.

A kind of examples declares any further arrays as `Channel`s. Two sorts of them are defined here:

    token_types  int32    1 from the second text of an example on, else 0
    group_ids    int32    1, 2, ... for each example of several segments in the row; 0 = none
    ranks        int32    how good the segment is in its example, from 0: a chosen answer before the rejected one, the
                          best of a list first; answers of equal rank are not compared

What a model says of the rows can be one more channel, which is computed once after they are packed (data/added.py).

Every array is 0 on padding. A declared array is also 0 on rows of sources that do not provide it.

On disk a row is an array [C, T]. A row of text holds tokens, targets and segment ids (`data/rows/pack.py`). Positions
and weights are derived from them when rows are read here or corrupted (`data/rows/corrupt.py`). A row of examples
(`data/examples/example.py`) also holds marks for each token, the encoder's tokens if the model has an encoder, and the
channels that its kind declares. A float32 channel is stored by its bits, which makes the whole row 32 bits wide. A
separate file for it would keep the other channels at 16 bits, but would cost a second read per row and could get out of
step with the first.

`DataError` is defined here because this is the lowest layer of the package. Every user mistake (a missing file, a
broken line, a wrong setting) raises one, with a message that says what is wrong, where, and what to do.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]

DTYPES: dict[str, type[np.generic]] = {
    "tokens": np.int32,
    "targets": np.int32,
    "segment_ids": np.int32,
    "positions": np.int32,
    "weights": np.float32,
}
ENCODER_DTYPES: dict[str, type[np.generic]] = {
    "encoder_tokens": np.int32,
    "encoder_segment_ids": np.int32,
    "encoder_positions": np.int32,
}

# Bits of the marks channel. Kinds of examples declare others: 16 marks good answers
# (data/examples/judged/unpaired.py), and 32, 64 and 128 are free.
TRAINED = 1  # the loss counts the prediction at this token
CONTENT = 2  # text of a user or a source, or a word to label; not template text and not a special token
ENCODER_CONTENT = 4  # the same for the encoder's token at this place
SECOND = 8  # the token belongs to the second text of an example, or follows it


class Channel(NamedTuple):
    """One array of rows and batches.

    A channel whose name begins with 'encoder_' is as long as the encoder's tokens, and is packed, cut and augmented
    with them. Any other channel goes with the decoder's tokens.
    """

    name: str  # the key in a batch
    dtype: str = "int32"  # or "float32"
    mark: int = 0  # stored as this bit of the marks, with values 0 and 1; 0: it has an array of its own on disk


TEXT = (Channel("tokens"), Channel("targets"), Channel("segment_ids"))
MARKS = Channel("marks")  # only on disk, never in a batch
ENCODER = (Channel("encoder_tokens"), Channel("encoder_segment_ids"))
TOKEN_TYPES = Channel("token_types", mark=SECOND)
GROUPS = (Channel("group_ids"), Channel("ranks"))
BASE = (*TEXT, MARKS, *ENCODER)
_DERIVED = {"positions", "weights", "encoder_positions", MARKS.name}
_MARKS = len(TEXT)  # index of the marks in rows


class DataError(Exception):
    """A user's mistake about data. Programs print the message without a stack trace, so it must explain itself."""


def example_channels(own: Iterable[Channel], encoder: bool) -> tuple[Channel, ...]:
    """Returns all channels of a kind's rows; one of `own` replaces the base channel of the same name.

    Args:
      own: the channels that the kind declares.
      encoder: the model has an encoder beside its decoder.

    Raises:
      ValueError: a name in `own` is that of an array that is derived from the others.
    """
    own = tuple(own)
    if derived := _DERIVED & {channel.name for channel in own}:
        raise ValueError(
            f"{', '.join(sorted(derived))} are derived from other channels and can't be declared: rename them."
        )
    base = (*TEXT, MARKS, *(ENCODER if encoder else ()))
    return tuple({channel.name: channel for channel in (*base, *own)}.values())


def united(sources: Mapping[str, tuple[Channel, ...]]) -> tuple[Channel, ...]:
    """Returns the channels of batches that mix several sources: those of text first, then the marks, then the others.

    Args:
      sources: the channels of each source, by its name.

    Raises:
      DataError: two sources declare a channel differently.
    """
    found: dict[str, Channel] = {}
    owner: dict[str, str] = {}
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
    """Returns the channels that have an array of their own on disk, in the order of a row."""
    return tuple(channel for channel in channels if not channel.mark)


def wide(channels: Iterable[Channel]) -> bool:
    """Returns whether rows need 32 bits per value, whatever the vocabulary size.

    Floats do, and so do a kind's own integers, which may be negative. The other channels are token ids, segment numbers
    and bits.
    """
    small = {channel.name for channel in (*BASE, *GROUPS)}
    return any(channel.dtype == "float32" or channel.name not in small for channel in stored(channels))


def dtypes(channels: Iterable[Channel]) -> dict[str, type[np.generic]]:
    """Returns the keys and dtypes of a batch with these channels."""
    channels = [channel for channel in channels if channel != MARKS]
    encoder: dict[str, type[np.generic]] = ENCODER_DTYPES if ENCODER[0] in channels else {}
    return DTYPES | encoder | {channel.name: np.dtype(channel.dtype).type for channel in channels}


def from_rows(rows: np.ndarray, channels: Sequence[Channel] = TEXT) -> Batch:
    """Returns the batch of some packed rows.

    Args:
      rows: [B, C, T].
      channels: those of the rows; C of them are `stored`.
    """
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
            # A copy makes each array contiguous, which saves another copy on the way to a device.
            batch[name] = rows[:, place[name]].copy().view(dtype)
    if "encoder_tokens" in batch:
        batch["encoder_positions"] = positions(batch["encoder_segment_ids"])
    for channel in channels:
        if channel.mark:
            batch[channel.name] = marked(rows, channel.mark).astype(channel.dtype)
    return batch


def marked(rows: np.ndarray, mark: int) -> np.ndarray:
    """Returns which tokens of packed example rows [B, C, T] have this mark, bool [B, T]."""
    return rows[:, _MARKS] & mark > 0


def positions(segment_ids: np.ndarray) -> np.ndarray:
    """Returns the offset of each token in its segment, from 0, and 0 on padding: int32 [B, T], like `segment_ids`."""
    column = np.arange(segment_ids.shape[1], dtype=np.int32)
    starts = np.zeros_like(segment_ids)
    starts[:, 1:] = np.where(segment_ids[:, 1:] != segment_ids[:, :-1], column[1:], 0)
    return np.where(segment_ids > 0, column - np.maximum.accumulate(starts, axis=1), 0)


def check(batch: Mapping[str, np.ndarray], vocab_size: int, channels: Iterable[Channel] = TEXT) -> None:
    """Checks that `batch` fits these `channels`. Corrupted text may have encoder arrays that its rows do not have.

    Raises:
      DataError: keys, shapes or dtypes are wrong, or ids lie outside the vocabulary.
    """
    wanted = dtypes(channels)
    if set(batch) not in ({*wanted}, {*wanted, *ENCODER_DTYPES}):
        raise DataError(
            f"A batch of these rows must have the keys {sorted(wanted)}, and may have {sorted(ENCODER_DTYPES)}, but it "
            f"has {sorted(batch)}."
        )
    for key, array in batch.items():
        dtype, first = (wanted | ENCODER_DTYPES)[key], "encoder_tokens" if key.startswith("encoder_") else "tokens"
        shape = batch[first].shape
        if array.ndim != 2 or array.shape != shape:
            raise DataError(
                f"Batch arrays must be [B, T] and of one shape, but {key} is {array.shape} and {first} is {shape}."
            )
        if array.dtype != dtype:
            raise DataError(f"Batch array {key} must be {np.dtype(dtype)}, but it is {array.dtype}.")
        if len(array) != len(batch["tokens"]):
            raise DataError(
                f"Encoder and decoder must have the same rows, but {key} has {len(array)} and tokens has "
                f"{len(batch['tokens'])}."
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
