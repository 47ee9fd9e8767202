"""A source of batches that samples: it asks prompts, lets the model answer, scores the answers and hands them over.

A round (rounds.py) is handed over `epochs` times, each time in a new order and split into `minibatches`. One batch is
one step of the loop (train/loop.py), like those of a data pipeline. A round needs the model of its first step, so the
loop passes its state to `next`. What is left of a round is saved with each checkpoint, so a continued run makes the
same steps and asks for no reward twice.

Order, samples and minibatches depend on the seed, the number of the round and the parameters alone.
"""

import base64
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from data.batch import Batch, DataError
from train.align import advantages, layout
from train.align.layout import Completion
from train.align.rounds import Rounds, Settings

_EMPTY_ROUNDS = 10  # so many rounds in a row without anything to learn from end the run


class Rollouts:
    """An endless iterator over batches of sampled completions.

    Args:
      rounds: makes the rounds.
      objective: what learns from the batches.
      settings: config.rollouts.
      prompts: their number.
      batch_size: completions per step.
      seq_len, unit: as in layout.rows_of.
      seed: of the order of prompts and of sampling.
      stream: identifies the prompts and what they are asked for; a position belongs to one stream.
      place: where to start, as `to_json` or `position` returned it; None: at the start.
      text: a pipeline of rows of text (data/pipeline.py), for an objective that learns from text too.
      share: a batch -> the rows of it that this process passes to its devices.

    Raises:
      DataError: `place` belongs to another stream.
    """

    phase = "rollouts"  # what the time of `next` counts as (train/watch/phases.py)

    def __init__(
        self,
        rounds: Rounds,
        objective: Any,
        settings: Settings,
        prompts: int,
        *,
        batch_size: int,
        seq_len: int,
        unit: int,
        seed: int,
        stream: str,
        place: Mapping[str, Any] | None = None,
        text: Any = None,
        share: Callable[[Batch], Batch] = lambda batch: batch,
    ):
        self._rounds, self._objective, self._settings, self._prompts = rounds, objective, settings, prompts
        self._size, self._seq_len, self._unit, self._seed = batch_size, seq_len, unit, seed
        self._stream, self._text, self._share = stream, text, share
        self._steps = settings.epochs * settings.minibatches  # per round
        place = place or {}
        if place and place["stream"] != stream:
            raise DataError(
                f"The saved position belongs to the prompts {place['stream']}, but these prompts with this seed are "
                f"{stream}. Restore the run's settings, or start a new run."
            )
        self._next, self._number = place.get("next_prompt", 0), place.get("round", 0)
        self._kl = place.get("kl", getattr(objective, "kl", 0.0))
        # A position without completions was that of a batch to skip, so the rest of its round is skipped too.
        self._round = _unpacked(place["completions"]) if "completions" in place else []
        self._made = place["made"] if self._round else self._steps
        self._figures: dict[str, float] = {}
        self._origins: list[str] = []

    def next(self, state) -> Batch:
        """Returns the next batch; `state` is that of the loop before this step.

        Raises:
          DataError: round after round gives nothing to learn from.
        """
        self._figures = {}
        for begun in range(_EMPTY_ROUNDS + 1):
            while self._made < self._steps:
                chosen = self._minibatch()
                self._made += 1
                if chosen:
                    return self._batch(chosen)
            if begun < _EMPTY_ROUNDS:
                self._begin_round(state)
        last = ", ".join(f"{name} {value:.4g}" for name, value in self._figures.items())
        raise DataError(
            f"{_EMPTY_ROUNDS} rounds of rollouts in a row gave nothing to learn from. Completions whose reward failed "
            "or that were truncated may be left out (config.reward.on_error, config.rollouts.truncated), and pairs "
            "need different rewards. " + "\n  ".join([f"The last round: {last}", *self._rounds.notes()])
        )

    def figures(self) -> dict[str, float]:
        """Returns numbers about the round that begins with the last batch; {} if none does."""
        return dict(self._figures)

    def position(self) -> dict[str, Any]:
        """Returns where the next batch begins, as JSON, without the completions that are under way."""
        place = {"next_prompt": self._next, "round": self._number, "made": self._made, "stream": self._stream}
        if self._kl:
            place["kl"] = self._kl
        return place if self._text is None else place | {"text": self._text.position()}

    def to_json(self) -> dict[str, Any]:
        """Returns the position with everything that a continued run needs."""
        under_way = self._made < self._steps
        return self.position() | ({"completions": _packed(self._round)} if under_way else {})

    def origins(self) -> list[str]:
        """Returns what each row of the last batch holds, like 'answers to the prompts 3, 17'."""
        return self._origins

    def events(self) -> list[dict[str, str]]:
        """Returns {"failed_reward": line} for each way in which rewards failed since the last call, and as Pipeline."""
        failed = [{"failed_reward": line} for line in self._rounds.notes()]
        return failed if self._text is None else failed + self._text.events()

    def close(self) -> None:
        if self._text is not None:
            self._text.close()

    def _begin_round(self, state) -> None:
        self._number += 1
        keys = lambda attempt: jax.random.key(_generator(self._seed, "samples", self._number, attempt).integers(2**32))
        size = self._size * self._settings.minibatches
        self._round, self._figures = self._rounds.make(state, self._draw, keys, size, self._kl)
        self._made = 0
        if self._kl:
            self._figures["kl_coefficient"] = self._kl
        if getattr(self._objective, "kl_target", 0.0):
            distance, wanted = self._figures["kl"], self._objective.kl_target
            self._kl = advantages.adapted(self._kl, distance, wanted, size, self._objective.kl_horizon)

    def _draw(self, count: int) -> list[int]:
        """Returns the numbers of the next prompts: each one once per epoch, in a new order in each epoch."""
        places = np.arange(self._next, self._next + count)
        self._next += count
        epochs, ranks = np.divmod(places, self._prompts)
        orders = {
            int(epoch): _generator(self._seed, "prompts", epoch).permutation(self._prompts) for epoch in {*epochs}
        }
        return [int(orders[int(epoch)][rank]) for epoch, rank in zip(epochs, ranks, strict=True)]

    def _minibatch(self) -> list[list[Completion]]:
        """Returns the completions of the next step, those that must share a row together."""
        epoch, part = divmod(self._made, self._settings.minibatches)
        if self._objective.rollouts == "pairs":
            found = _pairs(self._round, self._settings.group)
        else:
            found = [[one] for one in self._round if one.counted]
        order = _generator(self._seed, "steps", self._number, epoch).permutation(len(found))
        return [found[i] for i in np.array_split(order, self._settings.minibatches)[part]]

    def _batch(self, chosen: list[list[Completion]]) -> Batch:
        batch, places = layout.rows_of(chosen, self._seq_len, self._unit)
        of_row: dict[int, list[int]] = {}
        for group, where in zip(chosen, places, strict=True):
            of_row.setdefault(where[0][0], []).append(group[0].number)
        if self._objective.rollouts == "advantages":
            batch |= self._channels(chosen, places, batch["weights"].shape)
        count = len(batch["tokens"])
        self._origins = [_origin(of_row.get(row, [])) for row in range(count)]
        if self._text is not None:
            batch = _with_text(batch, self._text, self._settings.text_rows)
            self._origins += ["text"] * self._settings.text_rows
        return self._share(batch)

    def _channels(self, chosen, places, shape) -> Batch:
        ones, where = [one for (one,) in chosen], [place for (place,) in places]
        unread = () if self._objective.kl_in == "loss" else ("reference_logprobs",)
        names = [name for name in ones[0].values if name not in unread]
        found = {name: layout.spread(ones, where, shape, name) for name in names}
        # Not stored in the completions: all of a round must have the same values when it is saved.
        found |= {name: np.zeros(shape, np.float32) for name in ("shares", "counts")}
        for row, begin, n in where:
            found["shares"][row, begin : begin + n], found["counts"][row, begin : begin + n] = self._objective.shares(n)
        return found


def _origin(numbers: Sequence[int]) -> str:
    return f"answers to the prompts {', '.join(map(str, numbers))}" if numbers else "padding"


def _pairs(completions: Sequence[Completion], group: int) -> list[list[Completion]]:
    """Returns the best and the worst completion of each prompt, without those of equal reward or of equal tokens."""
    found = []
    for first in range(0, len(completions), group):
        some = sorted((one for one in completions[first : first + group] if one.counted), key=lambda one: -one.reward)
        if len(some) > 1 and some[0].reward > some[-1].reward and not np.array_equal(some[0].answer, some[-1].answer):
            found.append([some[0], some[-1]])
    return found


def _with_text(batch: Batch, text: Any, rows: int) -> Batch:
    """Returns the batch with rows of text behind its own.

    The weights of the tokens of text add up to the weight that the loss is divided by, so that its mean is their mean,
    whatever the number of micro-batches.
    """
    more = text.next()
    more = {name: array[:rows] for name, array in more.items()}
    weights = more.pop("weights")
    total = (batch["weights"] * batch["counts"]).sum()
    more["text_weights"] = (weights * total / max(weights.sum(), 1)).astype(np.float32)
    zeros = lambda array, count: np.zeros((count, *array.shape[1:]), array.dtype)
    batch["text_weights"] = np.zeros_like(batch["weights"])
    return {
        name: np.concatenate([array, more[name] if name in more else zeros(array, rows)])
        for name, array in batch.items()
    }


def _generator(*names: Any) -> np.random.Generator:
    digest = hashlib.blake2b(" ".join(map(str, names)).encode(), digest_size=8).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def _packed(completions: Sequence[Completion]) -> str:
    """Returns completions as a text: a compressed archive of arrays."""
    arrays: dict[str, Any] = {
        "number": np.array([one.number for one in completions], np.int64),
        "finished": np.array([one.finished for one in completions]),
        "counted": np.array([one.counted for one in completions]),
        "reward": np.array([one.reward for one in completions], np.float64),
    }
    for name in ("prompt", "answer"):
        parts = [getattr(one, name) for one in completions]
        arrays |= {f"{name}_sizes": np.array([len(part) for part in parts]), name: np.concatenate(parts)}
    for name in completions[0].values:
        arrays[f"value_{name}"] = np.concatenate([one.values[name] for one in completions])
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return base64.b64encode(stream.getvalue()).decode()


def _unpacked(text: str) -> list[Completion]:
    arrays = np.load(io.BytesIO(base64.b64decode(text)))
    cut = lambda name, sizes: np.split(arrays[name], np.cumsum(arrays[sizes])[:-1])
    prompts, answers = cut("prompt", "prompt_sizes"), cut("answer", "answer_sizes")
    values = {
        name.removeprefix("value_"): cut(name, "answer_sizes") for name in arrays.files if name.startswith("value_")
    }
    return [
        Completion(
            number=int(arrays["number"][i]),
            prompt=prompts[i],
            answer=answers[i],
            finished=bool(arrays["finished"][i]),
            reward=float(arrays["reward"][i]),
            counted=bool(arrays["counted"][i]),
            values={name: parts[i] for name, parts in values.items()},
        )
        for i in range(len(prompts))
    ]
