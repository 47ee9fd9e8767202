"""Labels texts with a trained classifier."""

from collections.abc import Iterable, Iterator
from itertools import islice

import jax
import numpy as np

from data.examples.label_reader import Reader, Reading
from launch.program.checking import ConfigError
from launch.run import models, restore
from launch.run.workdirs import Workdir
from model import axes

BATCH = 32  # texts per batch, one in each row
_ROUND = 32  # rows are as long as their longest text, rounded up to a multiple of this


class Classifier:
    """A trained model and its labels.

    Args:
      run: the workdir of the model.
      step: which checkpoint (Checkpoints.find).
      dtype: the precision (restore.in_precision); None: the run's.

    Raises:
      ConfigError: the model gives no labels.
    """

    def __init__(self, run: Workdir, step: str = "", dtype: str | None = None):
        config, labels = run.config, run.labels
        if labels is None:
            raise ConfigError(f"{run.path} gives no labels; train with --config=configs/classify.py")
        self.labels = labels
        self.settings = config.data.labels.to_dict() | {"kind": self.labels["kind"]}
        self._mesh, self._model, tokenizer = restore.for_inference(run, step=step, dtype=dtype)
        self._prefix = models.prefix(config)
        self.length = config.data.seq_len
        self._reader = Reader(tokenizer, self.labels["read"], self.length - len(self._prefix))
        self._scores = jax.jit(lambda model, types, *rows: model.classes(model(*rows, types_BT=types).x_BTD))

    def __call__(self, texts: Iterable[tuple[str | list[str], str | None]]) -> Iterator[np.ndarray]:
        """Yields the scores of each text.

        Args:
          texts: pairs (text, second text or None); for a model that labels words, (words, None).

        Yields:
          For each text an array of floats: the probabilities of the classes [1, C]; for a model that labels words
          [words, C], with nan for words without a token of their own or beyond the end of the row; for a model that
          predicts numbers, the number [1, 1].

        Raises:
          ValueError: a text has no tokens.
        """
        texts = iter(texts)
        while chunk := list(islice(texts, BATCH)):
            read = [self._read(text, pair) for text, pair in chunk]
            ids_of = [[*self._prefix, *found.ids] for found in read]
            width = -(-max(1, *map(len, ids_of)) // _ROUND) * _ROUND
            tokens, segments, positions, types = np.zeros((4, BATCH, min(width, self.length)), np.int32)
            for row, (ids, found) in enumerate(zip(ids_of, read, strict=True)):
                second = len(ids) if found.second is None else len(self._prefix) + found.second
                types[row, second : len(ids)] = 1
                tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
                positions[row, : len(ids)] = np.arange(len(ids))
            with axes.use_mesh(self._mesh):
                scores = np.asarray(self._scores(self._model, types, tokens, segments, positions))
            for row, found in enumerate(read):
                places = [0 if place is None else len(self._prefix) + place for place in found.places]
                given = scores[row, places]
                given = given if self.labels["kind"] == "number" else np.array(jax.nn.softmax(given))
                given[[place is None for place in found.places]] = np.nan
                yield given

    def _read(self, text, pair) -> Reading:
        return self._reader.words(text) if self.labels["kind"] == "token" else self._reader.text(text, pair)
