"""Scores answers with a reward model."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import jax
import numpy as np

from data.examples import kinds
from data.examples.chat import own_templates
from data.examples.example import Context
from data.examples.judged.answers import Answering
from launch.program.checking import ConfigError
from launch.run import models, restore
from launch.run.workdirs import Workdir
from model import axes

BATCH = 16  # conversations per batch, one in each row
_ROUND = 64  # rows are as long as their longest conversation, rounded up to a multiple of this


def check(run: Workdir, named: str = "") -> None:
    """Checks that a workdir holds a reward model.

    Args:
      run: the workdir.
      named: the field of a config that names it, for the error.

    Raises:
      ConfigError: it does not.
    """
    if not is_reward_model(run):
        raise ConfigError(
            f"{named} {run.path} holds no reward model; train one with --config=configs/reward.py".strip()
        )


def is_reward_model(run: Workdir) -> bool:
    """Returns whether a workdir holds a reward model: a trained one, or an imported one with a chat template."""
    if models.objective(run.config).scores_end:
        return True
    config = run.architecture
    one_score = (config.architecture, config.head, config.num_labels) == ("decoder", "sequence", 1)
    return one_score and "imported_from" in run.record and bool(own_templates(run.tokenizer))


class Scorer:
    """A reward model. It reads a conversation as in training: with its chat template, cut to the rows of the data.

    Args:
      run: the workdir of the model.
      step: which checkpoint (Checkpoints.find).
      dtype: the precision (restore.in_precision); None: the run's.

    Raises:
      ConfigError: the workdir holds no reward model.
    """

    def __init__(self, run: Workdir, step: str = "", dtype: str | None = None):
        check(run)
        self.settings = kinds.checked(run.config.data)["rankings"]
        self._mesh, self._model, tokenizer = restore.for_inference(run, step=step, dtype=dtype)
        # The rows of an imported model are as long as its context.
        trained = "imported_from" not in run.record
        length = run.config.data.seq_len if trained else self._model.config.max_length
        self._prefix = np.asarray(models.prefix(run.config), np.int32)
        context = Context(tokenizer, length, False, lambda: iter(()), tuple(self._prefix))
        self._answering = Answering("rankings", self.settings, context, scored=True)
        self._scores = jax.jit(lambda model, *rows: model.classes(model(*rows).x_BTD)[..., 0])

    def __call__(self, records: Iterable[Mapping[str, Any]]) -> Iterator[float]:
        """Yields the score of each conversation.

        Args:
          records: {"messages": the prompt, "answer": a message}, and maybe "tools".

        Raises:
          ValueError: the template refuses a conversation.
        """
        records = iter(records)
        while chunk := list(islice(records, BATCH)):
            ids_of = [np.concatenate([self._prefix, self._ids(record)]) for record in chunk]
            width = -(-max(map(len, ids_of)) // _ROUND) * _ROUND
            tokens, segments, positions = np.zeros((3, BATCH, min(width, self._model.config.max_length)), np.int32)
            for row, ids in enumerate(ids_of):
                tokens[row, : len(ids)], segments[row, : len(ids)], positions[row, : len(ids)] = ids, 1, range(len(ids))
            with axes.use_mesh(self._mesh):
                scores = np.asarray(self._scores(self._model, tokens, segments, positions), np.float32)
            yield from (float(scores[row, len(ids) - 1]) for row, ids in enumerate(ids_of))

    def _ids(self, record: Mapping[str, Any]) -> np.ndarray:
        messages, tools = record["messages"], record.get("tools")
        prompt = self._answering.prompt(messages, tools)
        answer = self._answering.answer(messages, record["answer"], tools, prompt)
        return self._answering.segments(prompt, [(answer, 0)])[0].tokens
