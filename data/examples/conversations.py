"""Converts records of conversations, in three published formats, to messages.

    {"instruction": "...", "input": "...", "output": "..."}        Alpaca; optional "history": [[asked, said], ...]
    {"messages": [{"role": "user", "content": "..."}, ...]}        OpenAI; optional "tools"
    {"conversations": [{"from": "human", "value": "..."}, ...]}    ShareGPT; optional "tools"

The format is detected for each record, and any record may have a "system" text. The result is a list of messages: an
optional system text, then alternating questions and answers. An answer may call tools, whose results follow it as
messages with the role tool.

A null field counts as absent, and so does an empty text. Every other value must have the right type. The fields by
which formats exclude an answer from training are obeyed (_TRAIN, _SKIP). All other fields of a message are kept, and
data/examples/chat.py refuses those that the chat template doesn't read.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

_ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "tool": "tool"}
_ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant")

# Fields that say whether an answer is trained on. In _TRAIN, 0 or false excludes it (OpenAI and Mistral: weight;
# axolotl: train, training; ms-swift and XTuner: loss). In _SKIP, 1 or true excludes it (torchtune: masked).
_TRAIN = ("weight", "train", "training", "trainable", "loss", "loss_mask", "loss_weight")
_SKIP = ("masked", "ignore", "ignore_loss")
_LIKE_THESE = re.compile("train|loss|mask|weight|ignore|learn|supervis", re.IGNORECASE)
# Media in a record: the model reads only text, so it would train on an incomplete conversation.
_NOT_TEXT = ("image", "images", "video", "videos", "audio", "audios")
# Fields of a message, or of an API request, that would be lost if they are beside the messages instead of in one.
_MISPLACED = ("reasoning_content", "reasoning", "thinking", "tool_calls")
_UNKNOWN = ("functions", "function_call", "chat_template_kwargs")


def conversation_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"messages": [...]}, and "tools" if the record has some.

    A message has `role` and `content`. It may also have `train` (False: this answer is not trained on), `input` (the
    end of the content that is not the instruction), and any other fields that the record gives it.

    Raises:
      ValueError: the record is not a conversation; the message says what is wrong.
    """
    # In a table, a field that a record doesn't have is an empty text.
    record = {n: value for n, value in _present(given).items() if value != "" or n in ("instruction", "output")}
    train = _whether_to_train(record)
    if "messages" in record or "conversations" in record:
        name, *more = [name for name in ("messages", "conversations") if name in record]
        if more:
            raise ValueError('the record has both "messages" and "conversations"; keep one of them')
        turns = record[name]
        if not isinstance(turns, list):
            raise ValueError(f'"{name}" is not a list of messages but {type(turns).__name__}')
        if not turns:
            raise ValueError(f'"{name}" has no messages; take the record out')
        if other := next((field for field in ("instruction", "output", "history", "input") if record.get(field)), None):
            raise ValueError(f'the record has both "{name}" and "{other}"; keep one form of the conversation')
        messages = [_message(turn, number) for number, turn in enumerate(turns, 1)]
        system = _field(record, "system")
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"content": system, "role": "system"})
        elif system and messages[0]["content"] != system:
            raise ValueError('"system" and the first message are two different system texts; keep one of them')
    elif "instruction" in record or ("instruction" in given and "input" in record):
        messages = _alpaca(record)
    else:
        raise ValueError(
            f"no conversation, only {', '.join(map(str, record)) or '(no fields)'}; a record has instruction and "
            "output, or messages, or conversations"
        )
    tools = record.get("tools", [])
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError(f'"tools" is not a list of objects but {type(tools).__name__}')
    messages = _checked(messages)
    if not train:
        messages = [m | {"train": False} if m["role"] == "assistant" else m for m in messages]
    return {"messages": messages} | ({"tools": tools} if tools else {})


def asking_conversation(messages: Sequence[Any], tools: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """As `conversation_of`, of messages whose last one is still to be answered; ValueError says what is wrong."""
    if not messages:
        raise ValueError("there are no messages")
    last = _message(messages[-1], len(messages))
    if last["role"] not in ("user", "tool"):
        raise ValueError(
            f"the last message is of the role {last['role']}; a model answers a question or the result of a tool"
        )
    record = {"messages": [*messages, {"role": "assistant", "content": "..."}]} | ({"tools": [*tools]} if tools else {})
    found = conversation_of(record)  # which requires an answer, so a placeholder is added
    return found | {"messages": found["messages"][:-1]}


def trained_answers(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns the indices of answers that are trained on."""
    return [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("train", True)]


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _whether_to_train(record: Mapping[str, Any]) -> bool:
    """Returns whether a record's answers are trained on.

    Raises:
      ValueError: a field beside the messages would be lost, or two fields contradict each other.
    """
    for name in (name for name in _MISPLACED if record.get(name)):
        raise ValueError(f'"{name}" is outside the messages; move it into the message it belongs to, or remove it')
    for name in (name for name in _UNKNOWN if record.get(name)):
        raise ValueError(
            f'"{name}" is not read; for functions use "tools" and, in messages, "tool_calls", and remove other options '
            "of templates"
        )
    if media := next((name for name in _NOT_TEXT if record.get(name)), None):
        raise ValueError(f'"{media}" is not read: only text can be trained on; remove the record')
    if masks := next((name for name in record if "mask" in name and name not in (*_TRAIN, *_SKIP)), None):
        raise ValueError(f'"{masks}" is not read; to exclude an answer from training, put "train": false into it')
    return _agreed(record)


def _agreed(fields: Mapping[str, Any]) -> bool:
    """Returns what the fields _TRAIN and _SKIP say together; True if there are none of them."""
    said = {name: _trained(fields, name) for name in (*_TRAIN, *_SKIP) if name in fields}
    if len({*said.values()}) > 1:
        raise ValueError(f"{' and '.join(said)} contradict each other about whether it is trained on")
    return all(said.values())


def _trained(fields: Mapping[str, Any], name: str) -> bool:
    """Returns whether one of the fields _TRAIN and _SKIP says to train on the answer."""
    value = fields[name]
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise ValueError(f'"{name}" is {value!r}; it must be 0, 1, true or false')
    return bool(value) == (name in _TRAIN)


def _message(turn: Any, number: int) -> dict[str, Any]:
    where = f"message {number}"
    if not isinstance(turn, dict):
        raise ValueError(f"{where} is not an object but {type(turn).__name__}")
    fields = _present(turn)
    role = fields.pop("role" if "role" in fields else "from", None)
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"{where} has the unknown role {role!r}; there are {', '.join(_ROLES)}")
    role = _ROLES[role]
    try:
        train = _wanted(fields, role)
        _check_answer(fields, role)
        content: Any = fields.pop("content" if "content" in fields else "value", None)
        if "input" in fields:
            raise ValueError('"input" is read only beside "instruction"; in a message, put it into the content')
        if content is None and not fields.get("tool_calls"):
            raise ValueError('it has neither "content" nor "tool_calls"')
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if isinstance(content, list):  # OpenAI's parts
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise ValueError(f"{where} has parts that are not text; only text can be trained on")
        content = "".join(_string(part.get("text"), f"the text of a part of {where}") for part in content)
    message = fields | {"role": role, "content": "" if content is None else _string(content, where)}
    if not train:
        message["train"] = False
    return dict(sorted(message.items()))


def _wanted(fields: dict[str, Any], role: str) -> bool:
    """Returns whether a message is trained on if it is an answer, and removes the fields that say so."""
    wanted, names = _agreed(fields), [name for name in (*_TRAIN, *_SKIP) if fields.pop(name, None) is not None]
    if role != "assistant" and wanted and names:
        raise ValueError(f'"{names[0]}" asks to train on it, but only answers can be trained on')
    if doubtful := next((name for name in fields if _LIKE_THESE.search(name)), None):
        raise ValueError(f'"{doubtful}" is not read; to exclude an answer from training, use "train": false')
    return role != "assistant" or wanted


def _check_answer(fields: Mapping[str, Any], role: str) -> None:
    for name in ("tool_calls", "reasoning_content"):
        if fields.get(name) and role != "assistant":
            raise ValueError(f'only an answer can have "{name}", but the role is {role}')
    _string(fields.get("reasoning_content", ""), '"reasoning_content"')
    calls = fields.get("tool_calls", [])
    if not (isinstance(calls, list) and all(_is_call(call) for call in calls)):
        raise ValueError('"tool_calls" is not a list of {"function": {"name": ..., "arguments": ...}}')


def _is_call(call: Any) -> bool:
    function = call.get("function", call) if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _alpaca(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "output" not in record:
        raise ValueError(f'"instruction" without "output", only {", ".join(map(str, record))}')
    system, given = _field(record, "system"), _field(record, "input")
    messages = [{"content": system, "role": "system"}] if system else []
    history = record.get("history", [])
    if not (isinstance(history, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in history)):
        raise ValueError('"history" is not a list of pairs [asked, said]')
    question = "\n\n".join(filter(None, [_field(record, "instruction"), given]))
    for asked, said in [*history, [question, _field(record, "output")]]:
        messages.append({"content": _string(asked, 'an entry of "history"'), "role": "user"})
        messages.append({"content": _string(said, 'an entry of "history"'), "role": "assistant"})
    if _field(record, "instruction") and given:
        messages[-2] = {"content": question, "input": given, "role": "user"}
    return messages


def _field(record: Mapping[str, Any], name: str) -> str:
    return _string(record.get(name, ""), f'"{name}"')


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} is not a string but {type(value).__name__}")
    return value


def _checked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    while turns and turns[-1]["role"] in ("user", "tool"):  # an unanswered turn has nothing to train on
        messages, turns = messages[:-1], turns[:-1]
    roles = [turn["role"] for turn in turns]
    if "system" in roles:
        raise ValueError("a system message follows others; it must be the first")
    if not roles:
        raise ValueError("no message is an answer; remove the record")
    if roles[0] != "user":
        first = "an answer" if roles[0] == "assistant" else "the result of a tool"
        raise ValueError(f"the first message is {first}; put the question before it, or remove the record")
    for turn, (role, following) in zip(turns, pairwise(roles), strict=False):
        if role == following != "tool":
            raise ValueError("questions and answers don't alternate; join consecutive messages of the same role")
        if following == "tool" and role != "tool" and not turn.get("tool_calls"):
            raise ValueError('a message of the role tool does not follow an answer with "tool_calls"')
    for turn in turns:
        if not turn["content"].strip() and turn["role"] != "tool" and not turn.get("tool_calls"):
            what = "an answer" if turn["role"] == "assistant" else "a question"
            raise ValueError(f"{what} is empty; fix the record or remove it")
    return messages
