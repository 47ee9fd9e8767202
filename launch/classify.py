"""Label texts with a trained classifier, or score answers with a reward model.

    python -m launch.classify --workdir=DIR --text="the match was lost" --text="shares fell"
    python -m launch.classify --workdir=DIR --file=new.csv > labels.tsv
    python -m launch.classify --workdir=REWARD --prompt="What is a list?" --text="A row of things." --text="No."

Writes one line per text: label, probability and text, separated by tabs. A model that predicts numbers gives the number
and the text. A model that labels words gives one line per word, and an empty line after each text. A file is .csv,
.tsv, .jsonl or .json with the fields of the run's data except the labels, or .txt with one text per line. Texts longer
than the rows of training are cut at the end.

A reward model writes a line per answer: score and answer. --text is an answer to --prompt. The records of a file have a
prompt and one or several answers, or are whole conversations (data/examples/judged/comparisons.py, answers_of).
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.classify")

from launch.program import runtime

runtime.configure()

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from data.batch import DataError
from data.examples import kinds
from data.examples.judged.comparisons import answers_of
from data.examples.label_values import text_fields
from data.read import records
from data.read.documents import BadLines
from launch.answers.classifier import Classifier
from launch.answers.scorer import Scorer, is_reward_model
from launch.program.checking import ConfigError
from launch.run import early_stopping
from launch.run.workdirs import Workdir
from model.config import CHOICES

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Workdir of a trained classifier, or of one that launch.convert imported. Required.", required=True
)
_TEXT = flags.DEFINE_multi_string(
    "text", [], "Text to label; may be given several times. A model that labels words splits it at spaces."
)
_PAIR = flags.DEFINE_multi_string("pair", [], "The second text of each --text, for a model of pairs of texts.")
_PROMPT = flags.DEFINE_string("prompt", None, "For a reward model: the question that each --text answers.")
_FILE = flags.DEFINE_string("file", None, "File of texts to label, instead of --text.")
_STEP = early_stopping.define_step()
_DTYPE = flags.DEFINE_enum("dtype", None, CHOICES["dtype"], "Dtype of parameters and computation. Default: the run's.")


class _Refused(BadLines):
    """Raises an error for a record that can't be read, because every text must get a line."""

    def add(self, where: str, why: str) -> None:
        raise DataError(f"{where}: {why}.")


def given(settings: dict) -> Iterator[tuple[str | list[str], str | None]]:
    """Yields (text or words, second text or None) from the flags.

    Args:
      settings: the run's data.labels, which name the fields of a record.
    """
    if bool(_TEXT.value) == bool(_FILE.value):
        raise ConfigError("give either --text or --file")
    if _FILE.value and _PAIR.value:
        raise ConfigError("--pair goes with --text; in a file, the second text is a field of each record")
    if _PAIR.value and settings["kind"] == "token":
        raise ConfigError("--pair is the second text of a pair, but this model labels the words of one text")
    if not _FILE.value:
        pairs: Sequence[str | None] = _PAIR.value or [None] * len(_TEXT.value)
        if len(pairs) != len(_TEXT.value):
            raise ConfigError(
                f"there are {len(_TEXT.value)} --text but {len(pairs)} --pair; give one for each text, or none"
            )
        yield from zip(_lines(_TEXT.value, settings), pairs, strict=True)
        return
    path = Path(_FILE.value)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    if path.suffix.lower() == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error.reason}). Save it as UTF-8.") from error
        yield from ((text, None) for text in _lines(filter(str.strip, lines), settings))
        return
    if not path.name.lower().endswith(records.SUFFIXES):
        raise ConfigError(f"{path}: unknown kind of file; these can be read: .txt, {', '.join(records.SUFFIXES)}")
    for where, record in records.read_file(path, _Refused(0)):
        try:
            fields = text_fields(record, settings)
        except records.MissingField as error:
            raise DataError(f"{path}, {where}: {error.what}; name the fields as in the data of the run.") from error
        except ValueError as error:
            raise DataError(f"{path}, {where}: {error}.") from error
        yield fields["text"] if "text" in fields else fields["tokens"], fields.get("pair")


def _lines(texts: Iterable[str], settings: dict) -> Iterable[str | list[str]]:
    return map(str.split, texts) if settings["kind"] == "token" else texts


def _best(row: np.ndarray, names: list[str] | None) -> str:
    """Returns the most likely class and its probability, or the number."""
    if not names:
        return f"{row[0]:.6g}"
    return "\t" if np.isnan(row).any() else f"{names[row.argmax()]}\t{row.max():.4f}"


def _records(settings: dict) -> Iterator[dict]:
    """Yields prompts with their answers from the flags, for a reward model."""
    if bool(_TEXT.value) == bool(_FILE.value) or bool(_TEXT.value) != (_PROMPT.value is not None) or _PAIR.value:
        raise ConfigError(f"{_WORKDIR.value} holds a reward model: give --prompt and --text (its answer), or --file")
    found: Iterable[tuple[str, dict]]
    if _FILE.value:
        if not Path(_FILE.value).is_file():
            raise ConfigError(f"there is no file {_FILE.value}")
        if not _FILE.value.lower().endswith(records.SUFFIXES):
            raise ConfigError(f"{_FILE.value}: unknown kind of file; these can be read: {', '.join(records.SUFFIXES)}")
        found = records.read_file(Path(_FILE.value), _Refused(0))
    else:
        found = (("--text", {"prompt": _PROMPT.value, "completion": text}) for text in _TEXT.value)
    for where, record in found:
        try:
            yield answers_of(record, settings)
        except ValueError as error:
            raise DataError(f"{_FILE.value or 'flags'}, {where}: {error}.") from error


def _score(run: Workdir) -> None:
    """Prints the score of every answer."""
    asked = list(_records(kinds.checked(run.config.data)["rankings"]))  # mistakes are found before the model is loaded
    answers = [record | {"answer": answer} for record in asked for answer in record["answers"]]
    scorer = Scorer(run, _STEP.value, _DTYPE.value)
    try:
        for record, score in zip(answers, scorer(answers), strict=True):
            print(f"{score:.6g}\t{' '.join(record['answer']['content'].split())}")
    except ValueError as error:
        raise ConfigError(f"an answer can't be scored: {error}") from error


def main() -> None:
    run = Workdir(Path(_WORKDIR.value).absolute())
    if is_reward_model(run):
        _score(run)
        return
    if _PROMPT.value is not None:
        raise ConfigError(f"--prompt is for reward models, but {run.path} holds a classifier")
    classifier = Classifier(run, _STEP.value, _DTYPE.value)
    texts = list(given(classifier.settings))
    if not texts:
        raise DataError(f"{_FILE.value} holds no texts.")
    kind, names = classifier.labels["kind"], classifier.labels.get("names")
    shown = lambda text: text if isinstance(text, str) else " ".join(text)
    try:
        for (text, _), found in zip(texts, classifier(texts), strict=True):
            missing = int(np.isnan(found).any(1).sum())
            if missing and kind == "token":
                print(
                    f"{missing} of {len(text)} words get no label: they have no token of their own, or come after "
                    f"the first {classifier.length} tokens",
                    file=sys.stderr,
                )
            best = [_best(row, names) for row in found]
            if kind == "token":
                print("".join(f"{label}\t{word}\n" for label, word in zip(best, text, strict=True)))
            else:
                print(f"{best[0]}\t{' '.join(shown(text).split())}")
    except ValueError as error:
        raise ConfigError(f"a text can't be labelled: {error}") from error


if __name__ == "__main__":
    runtime.run(main)
