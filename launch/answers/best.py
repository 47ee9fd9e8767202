"""Best of n: keeps the one of several answers to a prompt that has the highest score.

A record of the result is a conversation that configs/sft.py trains on as it is, so that a model can be tuned on the
best of its own answers (rejection sampling, as in arXiv:2307.09288, section 3.2.3).
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data.batch import DataError
from data.examples import kinds
from data.examples.conversations import conversation_of
from launch.answers.prompts import Prompt, asked
from launch.answers.scorer import Scorer
from launch.program.checking import ConfigError
from launch.run.workdirs import Workdir
from train.align.rewards.scoring import Item, Scoring

assert kinds.KINDS["prompts"].asking is not None
_ASKING = kinds.KINDS["prompts"].asking
# From {"messages": the prompt, "answer": a message}, and maybe "tools" and "columns", to the score of each.
Scores = Callable[[Sequence[Mapping[str, Any]]], Sequence[float]]
# Fields of a record that are read into its messages; beside messages, a record for fine-tuning may not have them.
_READ = ("prompt", "conversations", "instruction", "input", "output", "history", "system")


def of_reward_model(run: Workdir) -> Scores:
    """Returns the scores of a reward model.

    Raises:
      ConfigError: the workdir holds none, or its template refuses a conversation.
    """
    scorer = Scorer(run)

    def scores(records: Sequence[Mapping[str, Any]]) -> list[float]:
        try:
            return list(scorer(records))
        except ValueError as error:
            raise ConfigError(f"{run.path}: an answer can't be scored: {error}") from error

    return scores


def of_functions(scoring: Scoring) -> Scores:
    """Returns the sums of reward functions; NaN where one fails, with a note on stderr.

    They read the "columns" of records: the fields that a file has beside the prompt.
    """

    def scores(records: Sequence[Mapping[str, Any]]) -> list[float]:
        questions = [_ASKING.of_messages(record["messages"], record.get("tools") or ()) for record in records]
        pairs = zip(questions, records, strict=True)
        found = scoring.score([Item(_ASKING.shown(q), one["answer"]["content"], one["columns"]) for q, one in pairs])
        for note in found.notes:
            print(f"warning: {note}", file=sys.stderr)
        return np.where(found.skipped_N, np.nan, found.rewards_N).tolist()

    return scores


def scored(
    conversations: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[str]], scores: Scores
) -> list[list[float | None]]:
    """Returns the score of each answer to each prompt.

    An empty answer has None, because nothing can be learnt from it, and so has one whose score is not finite.

    Args:
      conversations: {"messages": the prompt}, and maybe "tools" and "columns", of each prompt.
      answers: the texts of the answers to each.
      scores: gives the scores.
    """
    found: list[list[float | None]] = [[None] * len(texts) for texts in answers]
    there = [(i, j) for i, texts in enumerate(answers) for j, text in enumerate(texts) if text.strip()]
    message = lambda i, j: {"role": "assistant", "content": answers[i][j]}
    given = scores([{**conversations[i], "answer": message(i, j)} for i, j in there]) if there else []
    for (i, j), score in zip(there, given, strict=True):
        found[i][j] = float(score) if math.isfinite(score) else None
    return found


def highest(scores: Sequence[float | None]) -> int | None:
    """Returns the place of the highest score; on ties the first one; None if there is no score."""
    there = {place: score for place, score in enumerate(scores) if score is not None}
    return max(there, key=there.__getitem__, default=None)


def check(prompt: Prompt, path: object) -> None:
    """Checks that a prompt with an answer is a record that can be trained on.

    Raises:
      DataError: another column of the record forbids it.
    """
    try:
        conversation_of(_conversation(prompt.record, "."))
    except ValueError as error:
        raise DataError(f"{path}, {prompt.where}: the best answer could not be trained on: {error}.") from error


def record(sampled: Mapping[str, Any], least: float = -math.inf) -> dict[str, Any] | None:
    """Returns the record of the best answer, with its score and the mean over all; None if no answer is good enough.

    Args:
      sampled: a record with the prompt and "answers": [{"answer", "finished", "score"}].
      least: the lowest score that is good enough.
    """
    answers = sampled["answers"]
    best = highest([answer["score"] for answer in answers])
    if best is None or answers[best]["score"] < least:
        return None
    there = [answer["score"] for answer in answers if answer["score"] is not None]
    facts = {"score": answers[best]["score"], "mean_score": sum(there) / len(there)}
    return _conversation(sampled, answers[best]["answer"]) | facts | {"finished": answers[best]["finished"]}


def _conversation(given: Mapping[str, Any], answer: str) -> dict[str, Any]:
    kept = {name: value for name, value in given.items() if name not in (*_READ, "answers")}
    conversation = asked(given)
    return kept | conversation | {"messages": [*conversation["messages"], {"role": "assistant", "content": answer}]}
