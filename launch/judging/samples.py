"""Reads records with several answers to a prompt, and makes the questions to a judge from them.

A record is what launch.generate writes, {"prompt": ..., "answers": [{"answer": ...}]}, or any other form that
data/examples/judged/comparisons.py reads, so published preferences can be judged anew. Answers of equal text are judged
once and share the result. Empty answers are left out, because no method learns from them.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.batch import DataError
from data.examples import kinds
from data.examples.chat_examples import Question
from data.examples.judged.comparisons import answers_of
from data.read.records import MissingField
from launch.answers.prompts import FIELDS, read
from launch.judging.questions import written
from launch.judging.replies import Key

ONE_ANSWER = "with fewer than two different answers that are not empty"
_JUDGED = ("answers", "chosen", "rejected")  # fields that the judged answers replace


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt and its answers.

    Attributes:
      number: of the record in its file, from 0.
      record: its columns, with the prompt and without the answers.
      question: the prompt as a text.
      answers: the texts of all answers that are not empty, in their order.
      texts: the different ones among them, sorted, so that their order in the record changes nothing.
    """

    number: int
    record: dict[str, Any]
    question: str
    answers: list[str]
    texts: list[str]

    def compared(self, seed: int) -> list[tuple[int, int]]:
        """Returns the pairs of `texts` to compare.

        They are all pairs of up to five texts. Of more texts, they are twice as many as there are texts: a random
        circle, so that every text is compared, and further random pairs.
        """
        n = len(self.texts)
        pairs = list(itertools.combinations(range(n), 2))
        if len(pairs) <= 2 * n:
            return pairs
        random = np.random.default_rng([seed, self.number])
        circle = random.permutation(n).tolist()
        kept = {(min(pair), max(pair)) for pair in zip(circle, circle[1:] + circle[:1], strict=True)}
        others = [pair for pair in pairs if pair not in kept]
        return sorted([*kept, *(others[i] for i in random.permutation(len(others))[:n])])

    def keys(self, mode: str, seed: int) -> list[Key]:
        """Returns a key for each question: the record and the texts that are shown, in their order."""
        if mode == "score":
            return [(self.number, i) for i in range(len(self.texts))]
        return [(self.number, *order) for i, j in self.compared(seed) for order in ((i, j), (j, i))]

    def asked(self, key: Key, principles: str) -> str:
        """Returns what the judge is asked."""
        return written(principles, self.question, [self.texts[i] for i in key[1:]])


def samples(path: Path, counts: Counter[str]) -> Iterator[Sample]:
    """Yields the records of a file that have at least two different answers, and counts the others.

    Args:
      path: the file.
      counts: gets how many records, answers, empty answers and repeated answers there are, and ONE_ANSWER.

    Raises:
      ConfigError, DataError: the file or a record can't be read.
    """
    counts.update({"records": 0, "answers": 0, "empty answers": 0, "repeated answers": 0})
    for number, (where, record) in enumerate(read(path, "--samples")):
        try:
            sample = _sample(number, record, counts)
        except MissingField as error:
            raise DataError(f"{path}, {where}: {error.what}; name the field with the question prompt.") from error
        except ValueError as error:
            raise DataError(f"{path}, {where}: {error}.") from error
        counts["records"] += 1
        if sample is None:
            counts[ONE_ANSWER] += 1
        else:
            yield sample


def _sample(number: int, record: Mapping[str, Any], counts: Counter[str]) -> Sample | None:
    given = record.get("answers")
    if isinstance(given, list):
        there = [item for item in given if not (isinstance(item, dict) and _empty(item))]
        counts["answers"] += len(given) - len(there)
        counts["empty answers"] += len(given) - len(there)
        if not there:
            return None
        record = {**record, "answers": there}
    found = answers_of(record, FIELDS)
    messages, answers = found["messages"], [message["content"] for message in found["answers"]]
    if any(message.get("tool_calls") for message in found["answers"]):
        raise ValueError("an answer calls tools, which a judge can't compare; remove the record")
    texts = sorted({*answers})
    counts["answers"] += len(answers)
    counts["repeated answers"] += len(answers) - len(texts)
    if len(texts) < 2:
        return None
    kept = {name: value for name, value in record.items() if name not in _JUDGED}
    if not kept.get("prompt"):  # whole conversations
        kept["prompt"] = messages
    asking = kinds.KINDS["chat"].asking
    assert asking is not None
    return Sample(number, kept, asking.shown(Question(messages, found.get("tools"))), answers, texts)


def _empty(item: Mapping[str, Any]) -> bool:
    texts = [item[name] for name in ("answer", "response", "completion", "content", "text") if name in item]
    return len(texts) == 1 and isinstance(texts[0], str) and not texts[0].strip()
