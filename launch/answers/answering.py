"""Answers the prompts of a file and writes the answers, or the best one of each, to another file.

A command that was killed continues with the same result. Its prompts are then those of the same file, because the
settings beside the output hold a hash of it.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.batch import DataError
from launch.answers import best, samples
from launch.answers.completer import Completer
from launch.answers.completion import Completion, Request
from launch.answers.growing import Growing, replace
from launch.answers.prompts import Prompt, asked, prompts
from launch.program.checking import checking
from launch.program.progress import Progress

TOO_LONG = "too long for the model's context"
NO_SCORE = "without an answer that has a score, or one of at least --min_score"


class Asked(NamedTuple):
    """The prompts of a file that the model can answer."""

    prompts: list[Prompt]
    completions: list[Completion]
    left_out: Counter[str]  # how many others there are, by reason


def read(path: Path, completer: Completer, request: Callable[..., Request], system: str, plain: bool) -> Asked:
    """Reads the prompts of a file, and leaves out those that are too long.

    Args:
      path: the file.
      completer: writes them for the model.
      request: Request with all that the prompts share.
      system: the system text of prompts without one.
      plain: texts are continued as they are.

    Raises:
      ConfigError, DataError: a record has no prompt, or none that the model can be asked.
    """
    there = list(prompts(path, system, plain))
    requests = [_request(prompt, request, plain) for prompt in there]
    made = _written(path, completer, there, requests)
    fit = [completer.fits(one) for one in made]
    left_out = Counter({TOO_LONG: fit.count(False)} if not all(fit) else {})
    if left_out:
        prompt, one = next(both for both, fits in zip(zip(there, made, strict=True), fit, strict=True) if not fits)
        length = len(one.prompt if one.source is None else one.source)
        print(
            f"{path}: {left_out[TOO_LONG]:,} of {len(there):,} prompts are {TOO_LONG} and are left out; the first is "
            f"that of {prompt.where}, of {length:,} tokens",
            file=sys.stderr,
        )
    if not any(fit):
        raise DataError(f"{path}: no prompt is left; lower --max_new_tokens, or give shorter prompts.")
    kept = [completion for completion, fits in zip(made, fit, strict=True) if fits]
    with checking(str(path)):
        completer.check(kept)
    return Asked([prompt for prompt, fits in zip(there, fit, strict=True) if fits], kept, left_out)


def _request(prompt: Prompt, request: Callable[..., Request], plain: bool) -> Request:
    given = prompt.record["prompt"]
    if plain and isinstance(given, str):
        return request(given, system=prompt.record.get("system") or "")
    conversation = asked(prompt.record)
    return request(conversation["messages"], tools=conversation.get("tools", ()))


def _written(
    path: Path, completer: Completer, there: Sequence[Prompt], requests: Sequence[Request]
) -> list[Completion]:
    try:
        return completer.written(requests)
    except ValueError:
        for prompt, one in zip(there, requests, strict=True):  # to name the record
            try:
                completer.written([one])
            except ValueError as error:
                raise DataError(f"{path}, {prompt.where}: {error}.") from error
        raise


def write(
    model, given: Asked, output: Growing, *, count: int, seed: int, batch_size: int, scores: best.Scores | None = None
) -> None:
    """Appends the answers to all prompts that the output does not have yet.

    A line is the prompt's record with "answers": [{"answer", "finished", "tokens"}], and with `scores` also "score".

    Args:
      model: generates on the current mesh.
      given: the prompts.
      output: the file.
      count: how many answers each prompt gets.
      seed: the same seed gives the same answers.
      batch_size: rows that are generated together.
      scores: scores the answers.
    """
    done = output.count
    progress = Progress("prompts", len(given.prompts), done)
    for window in samples.windows(len(given.prompts), count, batch_size):
        if window.stop <= done:
            continue
        own = [given.prompts[i] for i in window]
        batch = [given.completions[i] for i in window]
        found = samples.sampled(model, batch, [prompt.number for prompt in own], count, seed, batch_size)
        answers = [[{"answer": a.text, "finished": a.finished, "tokens": a.tokens} for a in those] for those in found]
        if scores is not None:
            texts = [[answer.text for answer in those] for those in found]
            values = best.scored([asked(one.record) | {"columns": one.record} for one in own], texts, scores)
            answers = [
                [answer | {"score": score} for answer, score in zip(*both, strict=True)]
                for both in zip(answers, values, strict=True)
            ]
        rows = [prompt.record | {"answers": those} for prompt, those in zip(own, answers, strict=True)]
        fresh = max(done - window.start, 0)  # a kill may have cut a window; its first lines are there already
        output.append(rows[fresh:])
        progress.add(len(rows) - fresh)


def best_of(output: Growing, path: Path, least: float, left_out: Counter[str]) -> None:
    """Writes the best answer of each line of `output` to `path`.

    Args:
      output: the lines.
      path: of the file.
      least: the lowest score of an answer that is written.
      left_out: counts the lines that have no such answer.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for line in output.lines():
            row = best.record(line, least)
            if row is None:
                left_out[NO_SCORE] += 1
            else:
                yield row

    replace(path, rows())


def summary(output: Growing, left_out: Counter[str]) -> dict[str, Any]:
    """Returns what was counted over all lines of the output."""
    answers = [answer for line in output.lines() for answer in line["answers"]]
    found: dict[str, Any] = {
        "prompts": output.count,
        "answers": len(answers),
        "tokens": sum(answer["tokens"] for answer in answers),
        "truncated": sum(not answer["finished"] for answer in answers),
        "empty": sum(not answer["answer"].strip() for answer in answers),
        "prompts_left_out": dict(left_out),
    }
    if answers and "score" in answers[0]:
        found["answers_without_score"] = sum(answer["score"] is None for answer in answers)
    return found


def shown(found: Mapping[str, Any], output: Path) -> str:
    """Returns a summary as lines for the user."""
    texts = [f"{found['answers']:,} answers to {found['prompts']:,} prompts, {found['tokens']:,} tokens -> {output}"]
    cut, empty = found["truncated"], found["empty"]
    texts += [f"{cut:,} answers were truncated at --max_new_tokens"] if cut else []
    texts += [f"{empty:,} answers are empty"] if empty else []
    texts += [f"{count:,} prompts are left out: {why}" for why, count in found["prompts_left_out"].items()]
    unscored = found.get("answers_without_score", empty) - empty
    texts += [f"{unscored:,} answers have a score that is not a finite number"] if unscored else []
    return "\n".join(texts)
