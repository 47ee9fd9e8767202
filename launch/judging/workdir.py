"""A judge that is a model in a workdir: it reads the probabilities of the verdicts instead of sampling one.

A model that was tuned on conversations, or imported with a chat template, is asked in that form, and a verdict is its
whole answer. Any other model continues the question.
"""

import functools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.batch import DataError
from data.examples import kinds
from data.examples.chat import Chat, own_templates
from launch.judging.replies import TOO_LONG, Key, Reply
from launch.program.checking import ConfigError
from launch.run import models, restore
from launch.run.workdirs import Workdir
from model import axes
from model.decode.generate import without_drops

BATCH = 16  # rows per batch
_WINDOW = 16 * BATCH  # questions that are read together; a kill loses at most these
_ROUND = 64  # a row is as long as its text, rounded up to a multiple of this

_Step = tuple[tuple[int, ...], int]  # ids, and an id that may follow them


class WorkdirJudge:
    """A decoder that judges.

    Args:
      run: its workdir.
      step: which checkpoint (Checkpoints.find).
      dtype: the precision (restore.in_precision); None: the run's.

    Raises:
      ConfigError: the workdir holds no model that continues text.
    """

    def __init__(self, run: Workdir, step: str = "", dtype: str | None = None):
        config = run.architecture
        if config.architecture != "decoder" or config.head != "language_model":
            raise ConfigError(
                f"--judge {run.path} holds a model with the architecture {config.architecture} and the head "
                f"{config.head}; a judge is a decoder with the head language_model (reward models: launch.generate "
                "--best_of)"
            )
        self._run, self._step, self._dtype = run, step, dtype
        self._prefix, self._tokenizer, self._longest = [*models.prefix(run.config)], run.tokenizer, config.max_length
        written = kinds.chat_settings(run.config.data)
        if not written and own_templates(self._tokenizer):
            written = {"template": "tokenizer", "system": ""}
        try:
            self._chat = Chat(self._tokenizer, written) if written else None
        except DataError as error:
            raise ConfigError(f"--judge {run.path}: {error}") from error
        self._after = jax.jit(self._of_last)

    @functools.cached_property
    def _loaded(self):
        """The mesh and the model; they are loaded once there is something to ask."""
        mesh, model, _ = restore.for_inference(self._run, step=self._step, dtype=self._dtype)
        return mesh, model

    def __call__(self, asked: Iterable[tuple[Key, str]], options: Sequence[str]) -> Iterator[list[tuple[Key, Reply]]]:
        """Yields replies (replies.Judge), in the order of the questions."""
        asked = iter(asked)
        while window := list(islice(asked, _WINDOW)):
            read = [_Options.of(self._sequences(text, options)) for _, text in window]
            fit = [max(map(len, one.ids)) - 1 <= self._longest for one in read]
            known = self._log_probs_of(
                {step for one, fits in zip(read, fit, strict=True) if fits for step in one.steps()}
            )
            replies = [one.reply(known) if fits else Reply(None, TOO_LONG) for one, fits in zip(read, fit, strict=True)]
            yield [(key, reply) for (key, _), reply in zip(window, replies, strict=True)]

    def _sequences(self, text: str, options: Sequence[str]) -> list[list[int]]:
        """Returns the ids of a question with each option as its answer."""
        if self._chat is None:
            texts = [f"{text}\n\nVerdict: {option}" for option in options]
            return [[*self._prefix, *ids] for ids in self._tokenizer.prompts(texts)]
        found = []
        for option in options:
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": option}]
            ids, trained, _ = self._chat.encode(messages)
            end = int(np.flatnonzero(trained)[-1])  # the token that ends the answer
            found.append([*self._prefix, *ids[:end].tolist()])
        return found

    def _log_probs_of(self, steps: Collection[_Step]) -> dict[_Step, float]:
        """Returns the log-probability of each token after its context.

        A batch has rows of one width, and always as many, so a figure does not depend on what else is asked: rounding
        differs between shapes, but not between the rows of one.
        """
        wanted: dict[int, dict[tuple[int, ...], list[int]]] = {}
        for context, token in sorted(steps):
            width = min(-(-len(context) // _ROUND) * _ROUND, self._longest)
            wanted.setdefault(width, {}).setdefault(context, []).append(token)
        found: dict[_Step, float] = {}
        mesh, model = self._loaded
        for width, contexts in wanted.items():
            for rows in _batches(list(contexts), BATCH):
                tokens, segments, positions = np.zeros((3, BATCH, width), np.int32)
                last = np.zeros(BATCH, np.int32)
                for row, ids in enumerate(rows):
                    n = len(ids)
                    tokens[row, :n], segments[row, :n], positions[row, :n], last[row] = ids, 1, range(n), n - 1
                with axes.use_mesh(mesh):
                    log_probs_BV = np.asarray(self._after(model, tokens, segments, positions, last))
                found |= {
                    (ids, token): float(log_probs_BV[row, token])
                    for row, ids in enumerate(rows)
                    for token in contexts[ids]
                }
        return found

    def _of_last(self, model, tokens_BT, segments_BT, positions_BT, last_B):
        """Returns the log-probabilities [B, V] of the token after the last one of each row."""
        x_BTD = without_drops(model)(tokens_BT, segments_BT, positions_BT).x_BTD
        x_B1D = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)
        logits_BV = model.output(x_B1D).logits()[:, 0, : self._tokenizer.vocab_size]
        return jax.nn.log_softmax(logits_BV)


def _batches(rows: list, size: int) -> Iterator[list]:
    return (rows[begin : begin + size] for begin in range(0, len(rows), size))


class _Options(NamedTuple):
    """A question with each of its options as the answer, as ids."""

    ids: list[tuple[int, ...]]
    shared: int  # how many ids all of them begin with

    @classmethod
    def of(cls, ids: Sequence[list[int]]) -> "_Options":
        first, last = min(ids), max(ids)  # what these two begin with, all do
        shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        return cls(list(map(tuple, ids)), shared)

    def steps(self) -> Iterator[_Step]:
        """Yields what the probabilities of the options are computed from: contexts, and the tokens after them."""
        return ((ids[:i], ids[i]) for ids in self.ids for i in range(self.shared, len(ids)))

    def reply(self, known: Mapping[_Step, float]) -> Reply:
        """Returns the reply: the probability of an option is the product of those of its tokens.

        If another option goes on from it (10 from 1), that one's is taken away.
        """
        probability = [math.exp(sum(known[ids[:i], ids[i]] for i in range(self.shared, len(ids)))) for ids in self.ids]
        own = [
            max(p - sum(q for other, q in zip(self.ids, probability, strict=True) if _goes_on(other, ids)), 0.0)
            for ids, p in zip(self.ids, probability, strict=True)
        ]
        mass = sum(own)
        if not 0 < mass < math.inf:
            raise ConfigError("the judge gives no verdict any probability; are its parameters finite?")
        return Reply(tuple(p / mass for p in own), mass=mass)


def _goes_on(ids: tuple[int, ...], begin: tuple[int, ...]) -> bool:
    return len(ids) > len(begin) and ids[: len(begin)] == begin
