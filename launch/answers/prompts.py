"""Reads prompts from a file of records.

    {"prompt": "a text", ...}       a text, a transcript as in hh-rlhf, or messages
    {"messages": [messages], ...}   messages; an answer at the end is left out, so files for fine-tuning work too

Further columns are kept, because the programs that read the answers may need them. What belongs to a conversation
("system", "tools" and others) is read as data/examples/conversations.py does. So a model is asked exactly what
data/examples/judged/comparisons.py later reads as the prompt of its answers.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data.batch import DataError
from data.examples import kinds
from data.examples.judged.comparisons import answers_of
from data.read import records
from data.read.documents import BadLines
from launch.program.checking import ConfigError

FIELDS = kinds.checked({})["rankings"]  # the default names of the fields of records with answers
_SPOKEN = ("messages", "conversations")
# Fields by which a record would have answers already.
_ANSWERED = ("chosen", "rejected", "answers", "completion", "response", "answer")


class Prompt(NamedTuple):
    """A record that asks for an answer."""

    number: int  # of the record in its file, from 0
    where: str  # 'line 3'
    record: dict[str, Any]  # with the field prompt, and with the system text that it was asked with


class _Refused(BadLines):
    """Raises an error for a record that can't be read, because a prompt that is lost in silence is hard to find."""

    def add(self, where: str, why: str) -> None:
        raise DataError(f"{where}: {why}.")


def read(path: Path, flag: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ('line 3', record) of a file.

    Args:
      path: .jsonl, .json, .csv or .tsv, maybe compressed.
      flag: the flag that names it, for messages.

    Raises:
      ConfigError: there is no such file, or it is of another kind.
      DataError: a record can't be read.
    """
    if not path.is_file():
        raise ConfigError(f"{flag}: there is no file {path}")
    if not path.name.lower().endswith(records.SUFFIXES):
        raise ConfigError(f"{path}: unknown kind of file; these can be read: {', '.join(records.SUFFIXES)}")
    yield from records.read_file(path, _Refused(0))


def prompts(path: Path, system: str, plain: bool) -> Iterator[Prompt]:
    """Yields the prompts of a file.

    Args:
      path: the file.
      system: the system text of records without one; '' for none.
      plain: texts are to be continued as they are, so they are not read as conversations.

    Raises:
      ConfigError, DataError: as `read`; a record has no prompt, or none that can be read; the file has no records.
    """
    number = -1
    for number, (where, record) in enumerate(read(path, "--prompts")):
        record = {"system": system} | {k: v for k, v in record.items() if k != "system" or v} if system else record
        try:
            yield Prompt(number, where, _with_prompt(record, plain))
        except ValueError as error:
            raise DataError(f"{path}, {where}: {error}.") from error
    if number < 0:
        raise DataError(f"{path} holds no records, so there is no prompt.")


def _with_prompt(record: dict[str, Any], plain: bool) -> dict[str, Any]:
    given = record.get("prompt")
    if given in (None, "", []):
        spoken = next((name for name in _SPOKEN if record.get(name)), None)
        if spoken is None:
            there = ", ".join(map(str, record)) or "(no fields)"
            raise ValueError(f"there is no prompt, only {there}; name the field prompt, or give messages")
        turns = record[spoken]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise ValueError(f"field {spoken!r} is not a list of messages")
        if turns[-1].get("role", turns[-1].get("from")) in ("user", "human", "tool"):
            turns = [*turns, {"role": "assistant", "content": "."}]
        given = answers_of({spoken: turns}, FIELDS)["messages"]
        record = record | {"prompt": given}
    if plain and isinstance(given, str):
        if not given.strip():
            raise ValueError("the prompt is empty; fix the record or remove it")
        return record
    asked(record)
    return record


def asked(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"messages": the prompt as a conversation}, and "tools", of a record with the field prompt.

    Raises:
      ValueError: it can't be read.
    """
    without = {name: value for name, value in record.items() if name not in (*_ANSWERED, *_SPOKEN)}
    found = answers_of(without | {"completion": "."}, FIELDS)
    del found["answers"]
    # The end of a question that was Alpaca's "input" is a part of its content too.
    return found | {"messages": [{k: v for k, v in turn.items() if k != "input"} for turn in found["messages"]]}
