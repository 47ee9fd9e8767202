"""Converts records that compare answers, in the published formats, to a conversation and its answers, best first.

    {"prompt": "...", "chosen": "...", "rejected": "..."}            texts (TRL)
    {"prompt": ..., "chosen": [messages], "rejected": [messages]}    messages; with or without the prompt in them
    {"chosen": [messages], "rejected": [messages]}                   messages; the prompt is what both begin with
    {"chosen": "\n\nHuman: ...", "rejected": "\n\nHuman: ..."}       dialogues of Anthropic's hh-rlhf
    {"prompt": "...", "answers": [{"answer": "...", "rank": 1}, ...]}      a list; a lower rank is better (Nectar)
    {"prompt": "...", "answers": [{"response": "...", "score": 7.5}, ...]}  a list; a higher score is better

The names of the four fields are settings, and the format is detected for each record. Answers of equal rank or score
are not compared with each other.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.examples.conversations import asking_conversation, conversation_of
from data.read.records import field

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_TEXTS = ("answer", "response", "completion", "content", "text")  # names of an answer's text in a list
_SCORES = ("score", "overall_score")


def comparison_of(record: Mapping[str, Any], settings: Mapping[str, Any], kind: str = "preferences") -> dict[str, Any]:
    """Returns {"messages": the prompt, "answers": [answer as a message], "ranks": [its place, from 0]}, and "tools".

    Args:
      record: one record.
      settings: `prompt`, `chosen`, `rejected` and `answers` are names of its fields.
      kind: the block of config.data that these settings are from.

    Raises:
      ValueError: the record is not a comparison; the message says what is wrong.
    """
    if record.get(settings["answers"]) is not None:
        answers, ranks = _listed(record[settings["answers"]], settings["answers"])
        messages = _prompt(field(record, settings["prompt"], f"data.{kind}.prompt"), settings["prompt"])
    else:
        both = [field(record, settings[side], f"data.{kind}.{side}") for side in ("chosen", "rejected")]
        given = record.get(settings["prompt"])
        messages, answers = _pair(both, given, record, settings, kind)
        ranks = [0, 1]
    tools = record.get("tools") or []
    found = [
        conversation_of({"messages": [*messages, answer]} | ({"tools": tools} if tools else {})) for answer in answers
    ]
    asked = asking_conversation(messages, tools)
    return asked | {"answers": [one["messages"][-1] for one in found], "ranks": ranks}


def _pair(
    both: list, given: Any, record: Mapping[str, Any], settings: Mapping[str, Any], kind: str
) -> tuple[list, list]:
    """Returns the prompt's messages and the two answers."""
    names = [settings["chosen"], settings["rejected"]]
    if isinstance(both[0], str) and isinstance(both[1], str):
        if given is None and all(map(_TURN.match, both)):
            return _shared([_dialogue(text, name) for text, name in zip(both, names, strict=True)], names)
        given = field(record, settings["prompt"], f"data.{kind}.prompt")
        return _prompt(given, settings["prompt"]), [_answer(text, name) for text, name in zip(both, names, strict=True)]
    if not all(isinstance(side, list) and side for side in both):
        kinds = " and ".join(type(side).__name__ for side in both)
        raise ValueError(f"fields {names[0]!r} and {names[1]!r} are {kinds}; both must be texts, or lists of messages")
    if given is None or any(len(side) > 1 for side in both):
        return _shared(both, names)
    return _prompt(given, settings["prompt"]), [side[0] for side in both]


def _shared(both: Sequence[list], names: Sequence[str]) -> tuple[list, list]:
    """Splits two conversations into the messages that both begin with, and their last ones."""
    for side, name in zip(both, names, strict=True):
        if len(side) < 2:
            raise ValueError(f"field {name!r} has no message before its answer, and the record has no prompt")
    if both[0][:-1] != both[1][:-1]:
        raise ValueError(f"{names[0]!r} and {names[1]!r} differ before their last messages; only answers may differ")
    return list(both[0][:-1]), [side[-1] for side in both]


def _dialogue(text: str, name: str) -> list[dict[str, str]]:
    """Returns the messages of a transcript of turns that begin with '\n\nHuman:' or '\n\nAssistant:'."""
    _, *parts = _TURN.split(text)
    turns = [{"role": _ROLES[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]
    if turns[-1]["role"] != "assistant" or not turns[-1]["content"]:
        raise ValueError(f"field {name!r} does not end with an answer of the assistant; fix the record or remove it")
    return turns


def _prompt(given: Any, name: str) -> list:
    if isinstance(given, list):
        return given
    return [{"role": "user", "content": _text(given, name)}]


def _answer(text: Any, name: str) -> dict[str, str]:
    return {"role": "assistant", "content": _text(text, name)}


def _text(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"field {name!r} is not a string but {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"field {name!r} is empty; fix the record or remove it")
    return text


def _listed(items: Any, name: str) -> tuple[list[dict[str, str]], list[int]]:
    """Returns the answers of a list, best first, and their ranks from 0; equal ones share a rank."""
    if not isinstance(items, list) or len(items) < 2 or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"field {name!r} must be a list of at least two objects, each with an answer and its rank")
    order = [_order(item, f"{name!r}, item {number}") for number, item in enumerate(items, 1)]
    if len({by for by, _ in order}) > 1:
        raise ValueError(f"field {name!r} has ranks in some items and scores in others; keep one of them")
    places = sorted(range(len(items)), key=lambda i: order[i][1])
    values = sorted({value for _, value in order})
    texts = [_text(_only(items[i], _TEXTS, f"{name!r}, item {i + 1}"), f"{name}, item {i + 1}") for i in places]
    return [_answer(text, name) for text in texts], [values.index(order[i][1]) for i in places]


def _order(item: Mapping[str, Any], where: str) -> tuple[str, float]:
    """Returns ('rank' or 'score', a number that is smaller for better answers)."""
    value = _only(item, ("rank", *_SCORES), where)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"{where}: the rank or score is {value!r}; it must be a number")
    return ("rank", value) if "rank" in item else ("score", -value)


def _only(item: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    there = [name for name in names if item.get(name) is not None]
    if len(there) != 1:
        raise ValueError(f"{where} must have exactly one of {', '.join(names)}; it has {', '.join(there) or 'none'}")
    return item[there[0]]
