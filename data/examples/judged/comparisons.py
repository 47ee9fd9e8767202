"""Converts records that compare or judge answers, in published formats, into a conversation and its answers.

    {"prompt": "...", "chosen": "...", "rejected": "..."}            texts (TRL)
    {"prompt": ..., "chosen": [messages], "rejected": [messages]}    messages; with or without the prompt in them
    {"chosen": [messages], "rejected": [messages]}                   messages; the prompt is what both begin with
    {"chosen": "\n\nHuman: ...", "rejected": "\n\nHuman: ..."}       transcripts, as in Anthropic's hh-rlhf
    {"prompt": "...", "answers": [{"answer": "...", "rank": 1}, ...]}      a list; a lower rank is better (Nectar)
    {"prompt": "...", "answers": [{"response": "...", "score": 7.5}, ...]}  a list; a higher score is better

The names of the four fields are settings, and the format is detected for each record. A prompt may be a text, a
transcript or messages, and an answer may also be one message. What else belongs to a conversation ("system", "tools",
Alpaca's "input" and "history") is read as data/examples/conversations.py does. Answers of equal rank or score are not
compared with each other.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.examples.conversations import conversation_of
from data.read.records import field

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_TEXTS = ("answer", "response", "completion", "content", "text")  # names of an answer's text in a list
_SCORES = ("score", "overall_score")
_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_ABSENT: tuple = (None, "", [])  # what tables and other exports write where a record has no such field
_QUESTION = {"role": "user", "content": "?"}  # a placeholder
# Many data sets also hold the same conversation in the form that fine-tuning needs. These fields are not read.
_OTHER_FORMS = ("messages", "conversations", "instruction", "output")


def comparison_of(record: Mapping[str, Any], settings: Mapping[str, Any], kind: str = "preferences") -> dict[str, Any]:
    """Returns {"messages": the prompt, "answers": [answer as a message], "ranks": [its place, from 0]}, and "tools".

    If the settings ask for margins, it also has "scores", a number for each answer: those of a list, or in a pair the
    field `margin` for the better answer and 0 for the other.

    Args:
      record: one record.
      settings: `prompt`, `chosen`, `rejected`, `answers` and `margin` are names of its fields; `margin` may be ''.
      kind: the block of config.data that these settings are from.

    Raises:
      ValueError: the record is not a comparison; the message says what is wrong.
    """
    names = {column: settings[column] for column in ("prompt", "chosen", "rejected", "answers")}
    margin = settings.get("margin", "")
    if record.get(names["answers"]) not in _ABSENT:
        texts, ranks, scores = _listed(record[names["answers"]], names["answers"])
        sides = [(text, names["answers"]) for text in texts]
        if margin and scores is None:
            raise ValueError(f"field {names['answers']!r} has ranks, but margins (data.{kind}.margin) need scores")
    else:
        need = lambda column: (field(record, names[column], f"data.{kind}.{column}"), names[column])
        sides, ranks = [need("chosen"), need("rejected")], [0, 1]
        scores = [_margin(field(record, margin, f"data.{kind}.margin"), margin), 0.0] if margin else None
    found = _answered(record, sides, names, kind) | {"ranks": ranks}
    return found | {"scores": scores} if margin else found


def _margin(value: Any, name: str) -> float:
    try:
        found = float("nan") if isinstance(value, bool) else float(value)  # of a table, a number is a text
    except (TypeError, ValueError):
        found = float("nan")
    if not 0 <= found < float("inf"):
        raise ValueError(f"field {name!r} is {value!r}; it must be a number of at least 0")
    return found


def verdict_of(record: Mapping[str, Any], settings: Mapping[str, Any], kind: str = "unpaired") -> dict[str, Any]:
    """Returns {"messages": the prompt, "answers": [answer as a message], "good": bool}, and "tools".

        {"prompt": ..., "completion": ..., "label": true}        texts or messages, as in comparisons (TRL)
        {"completion": [messages], "label": false}               a whole conversation

    Args:
      record: one record.
      settings: `prompt`, `completion` and `label` are names of its fields. A label is true or false, 1 or 0.
      kind: the block of config.data that these settings are from.

    Raises:
      ValueError: the record is not a verdict; the message says what is wrong.
    """
    names = {column: settings[column] for column in ("prompt", "completion", "label")}
    label = field(record, names["label"], f"data.{kind}.label")
    word = str(label).strip().lower()  # of a table, the label is a text, and with gaps in a column a float
    if word not in _LABELS:
        raise ValueError(f"field {names['label']!r} is {label!r}; it must be true or false, or 1 or 0")
    side = field(record, names["completion"], f"data.{kind}.completion"), names["completion"]
    return _answered(record, [side], names, kind) | {"good": _LABELS[word]}


def answers_of(record: Mapping[str, Any], settings: Mapping[str, Any], kind: str = "rankings") -> dict[str, Any]:
    """Returns {"messages": the prompt, "answers": [answer as a message]}, and "tools", of a record to be scored.

    It may be a comparison, whose ranks are not read, or hold one answer: {"prompt": ..., "completion": ...} (also under
    the names response and answer), or the last message of {"messages": [...]}.

    Args:
      record: one record.
      settings: `prompt`, `chosen`, `rejected` and `answers` are names of its fields.
      kind: the block of config.data that these settings are from.

    Raises:
      ValueError: the record has no answers; the message says what is wrong.
    """
    names = {column: settings[column] for column in ("prompt", "chosen", "rejected", "answers")}
    has = lambda name: record.get(name) not in _ABSENT
    if has(names["answers"]):
        items, where = record[names["answers"]], names["answers"]
        if not (isinstance(items, list) and items and all(isinstance(item, dict) for item in items)):
            raise ValueError(f"field {where!r} must be a list of objects, each with an answer")
        given = [(_only(item, _TEXTS, f"{where!r}, item {number}"), where) for number, item in enumerate(items, 1)]
        return _answered(record, given, names, kind)
    if has(names["chosen"]):
        given = [(record[name], name) for name in (names["chosen"], names["rejected"]) if has(name)]
        return _answered(record, given, names, kind)
    found = next((name for name in ("completion", "response", "answer", "messages", "conversations") if has(name)), "")
    if not found:
        raise ValueError(
            f"there is no answer, only {', '.join(map(str, record)) or '(no fields)'}; name it completion, or give "
            "messages"
        )
    return _answered(record, [(record[found], found)], names | {"own": found}, kind)


def _answered(
    record: Mapping[str, Any], given: Sequence[tuple[Any, str]], names: Mapping[str, str], kind: str
) -> dict[str, Any]:
    """Returns {"messages": the prompt, "answers": [answer as a message]}, and "tools".

    Args:
      record: one record.
      given: each answer as the record has it, and the name of its field.
      names: the names of the fields that are read, by column.
      kind: the block of config.data that these names are from.
    """
    sides, where = [_side(text, name) for text, name in given], [name for _, name in given]
    has_prompt = record.get(names["prompt"]) not in _ABSENT
    if max(map(len, sides)) == 1:
        prompt: Any = field(record, names["prompt"], f"data.{kind}.prompt")
        prompt = [prompt] if isinstance(prompt, dict) else prompt  # one message
        if _is_transcript(prompt):
            sides = [[side[0] | {"content": side[0]["content"].strip()}] for side in sides]
            prompt = _open(prompt)
    else:
        prompt = _shared(sides, where)
        if has_prompt:
            prompt = _agreed(record[names["prompt"]], prompt, names["prompt"], where[0])
    if isinstance(prompt, list):
        form: dict[str, Any] = {"messages": [*prompt, {"role": "assistant", "content": "..."}]}
    else:
        form = {"instruction": _text(prompt, names["prompt"]), "output": "..."}
    beside = {n: value for n, value in record.items() if n not in (*names.values(), *_OTHER_FORMS)}
    asked = conversation_of(beside | form)
    answers = [conversation_of({"messages": [_QUESTION, side[-1]]})["messages"][-1] for side in sides]
    if not all(message.get("train", True) for message in (asked["messages"].pop(), *answers)):
        raise ValueError("an answer is excluded from training, so it can't be compared; remove the record or the mark")
    return asked | {"answers": answers}


def messages_of(given: Any, name: str) -> list[dict[str, Any]]:
    """Returns a prompt (a text, a transcript, a message, or messages) as messages; `name` is its field, for errors."""
    if isinstance(given, str):
        return _open(given) if _is_transcript(given) else [{"role": "user", "content": _text(given, name)}]
    turns = [given] if isinstance(given, dict) else given
    if not (isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns)):
        raise ValueError(f"field {name!r} is not a text, and not a list of messages")
    return turns


def _side(given: Any, name: str) -> list[dict[str, Any]]:
    """Returns an answer as a list of one message, or of all messages of the conversation that ends with it."""
    if isinstance(given, str):
        turns = _dialogue(given) if _is_transcript(given) else [{"role": "assistant", "content": _text(given, name)}]
    else:
        turns = [given] if isinstance(given, dict) else given
    if not (isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns)):
        raise ValueError(
            f"field {name!r} is {type(given).__name__}; it must be a text, a message, or a list of messages"
        )
    role = turns[-1].get("role", turns[-1].get("from"))
    if role in ("user", "human", "system", "tool"):
        raise ValueError(f"field {name!r} does not end with an answer of the assistant; fix the record or remove it")
    return turns


def _shared(sides: Sequence[list], names: Sequence[str]) -> list:
    """Returns the messages that whole conversations begin with, all but their last ones."""
    for side, name in zip(sides, names, strict=True):
        if len(side) < 2:
            raise ValueError(f"field {name!r} has no message before its answer, but another answer of the record has")
        if side[:-1] != sides[0][:-1]:
            raise ValueError(f"{names[0]!r} and {name!r} differ before their last messages; only answers may differ")
    return list(sides[0][:-1])


def _agreed(given: Any, messages: list, name: str, side: str) -> list:
    """Returns the prompt of conversations that contain it, after checking that they do."""
    said = lambda turns: [
        (turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))) for turn in turns
    ]
    if isinstance(given, str) and not _is_transcript(given):
        same = given.strip() in [content.strip() for _, content in said(messages) if isinstance(content, str)]
    else:
        given = messages_of(given, name)
        if said(given[-1:])[0][0] == "system":
            return [*given, *messages]
        same = said(given) == said(messages)
    if not same:
        raise ValueError(
            f"the conversation in {side!r} does not begin with {name!r}; remove one of them, or the record"
        )
    return messages


def _is_transcript(given: Any) -> bool:
    return isinstance(given, str) and _TURN.match(given) is not None


def _dialogue(text: str) -> list[dict[str, str]]:
    """Returns the messages of a transcript of turns that begin with '\n\nHuman:' or '\n\nAssistant:'."""
    _, *parts = _TURN.split(text)
    return [{"role": _ROLES[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _open(text: str) -> list[dict[str, str]]:
    """Returns the messages of a transcript that may end with the start of an answer, '\n\nAssistant:'."""
    turns = _dialogue(text)
    return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns


def _text(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"field {name!r} is not a string but {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"field {name!r} is empty; fix the record or remove it")
    return text


def _listed(items: Any, name: str) -> tuple[list[str], list[int], list[float] | None]:
    """Returns the answers of a list, best first, their ranks from 0, and their scores (None: it has only ranks).

    Equal answers share a rank.
    """
    if not isinstance(items, list) or len(items) < 2 or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"field {name!r} must be a list of at least two objects, each with an answer and its rank")
    order = [_order(item, f"{name!r}, item {number}") for number, item in enumerate(items, 1)]
    if len({by for by, _ in order}) > 1:
        raise ValueError(f"field {name!r} has ranks in some items and scores in others; keep one of them")
    places = sorted(range(len(items)), key=lambda i: order[i][1])
    values = sorted({value for _, value in order})
    texts = [_text(_only(items[i], _TEXTS, f"{name!r}, item {i + 1}"), f"{name}, item {i + 1}") for i in places]
    scores = [-order[i][1] for i in places] if order[0][0] == "score" else None
    return texts, [values.index(order[i][1]) for i in places], scores


def _order(item: Mapping[str, Any], where: str) -> tuple[str, float]:
    """Returns ('rank' or 'score', a number that is smaller for better answers)."""
    value = _only(item, ("rank", *_SCORES), where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where}: the rank or score is {value!r}; it must be a number")
    return ("rank", value) if "rank" in item else ("score", -value)


def _only(item: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    there = [name for name in names if item.get(name) is not None]
    if len(there) != 1:
        raise ValueError(f"{where} must have exactly one of {', '.join(names)}; it has {', '.join(there) or 'none'}")
    return item[there[0]]
