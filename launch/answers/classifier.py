"""A trained classifier that labels texts."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from data.examples.labels import FIELDS, Reader, Reading
from launch.program.checking import ConfigError
from launch.run import restore, workdirs
from model import axes

BATCH = 32  # texts at a time, each a row of its own
_ROUND = 32  # rows are as long as their longest text, rounded up to a multiple of this


class Classifier:
    """A trained model with what its labels mean."""

    def __init__(self, workdir: Path, step: str = "", dtype: str | None = None):
        labels, config = workdirs.labels(workdir), workdirs.recorded_config(workdir)
        if labels is None:
            raise ConfigError(f"{workdir} gives no labels; train with --config=configs/classify.py")
        self.settings = FIELDS | config.get("data", ConfigDict()).get("labels", ConfigDict()).to_dict()
        self.labels: dict = labels
        self.settings["kind"] = self.labels["kind"]
        self._mesh, self._model, tokenizer = restore.restore_for_inference(workdir, step=step, dtype=dtype)
        self._prefix = workdirs.prefix(config)
        self.length = config.get("data", ConfigDict()).get("seq_len", self._model.config.max_length)
        self._reader = Reader(tokenizer, self.labels["read"], self.length - len(self._prefix))
        self._scores = jax.jit(lambda model, types, *rows: model.classes(model(*rows, types_BT=types).x_BTD))

    def __call__(self, texts: Iterable[tuple[str | list[str], str | None]]) -> Iterator[np.ndarray]:
        """For each (text or words, second text): probabilities of the classes [1, C], or the number [1, 1]; of words
        [words, C], with nan where a word has no token of its own, or none that a row has room for.

        Raises:
          ValueError: a text without tokens.
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
