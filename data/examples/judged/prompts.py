"""The kind `prompts`: conversations that end with a question, for objectives that let the model answer it.

    {"prompt": "...", ...}                  a text, or a transcript of turns that begin with "\n\nHuman:"
    {"prompt": [messages], ...}             a conversation that ends with a question
    {"messages": [messages], ...}           the same

"system" and "tools" belong to the conversation. All fields of a record are kept as its columns, and reward functions
get them (train/align/rewards/). Prompts are not packed into rows: a source of rollouts asks them one by one
(train/align/rollouts.py). Left out: cutting a prompt that is too long, because a cut question has another answer.
"""

import functools
from collections.abc import Mapping
from typing import Any

from data.examples.asking import Asking
from data.examples.chat_examples import Question
from data.examples.conversations import asking_conversation
from data.examples.example import Kind
from data.examples.judged.comparisons import messages_of
from data.examples.judged.preferences import PREFERENCES, check, check_trained, identity
from data.read.records import field

_NAME = "prompts"
_COLUMNS = ("prompt",)


def _parse(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict:
    """Returns {"messages": the conversation, "columns": the record}, and "tools".

    Raises:
      ValueError: the record has no question; the message says what is wrong.
    """
    name = settings["prompt"]
    if name not in record and (other := next((n for n in ("messages", "conversations") if record.get(n)), None)):
        name = other
    messages = messages_of(field(record, name, "data.prompts.prompt"), name)
    system = record.get("system") or ""
    if not isinstance(system, str):
        raise ValueError(f"field 'system' is {type(system).__name__}; it must be a text")
    if system and messages[0].get("role") == "system":
        raise ValueError(f"there is a system text in 'system' and in {name!r}; keep one of them")
    start = [{"role": "system", "content": system}] if system else []
    return asking_conversation([*start, *messages], record.get("tools") or ()) | {"columns": dict(record)}


def _text(record: dict) -> str:
    return "\n".join(message["content"] for message in record["messages"] if message["content"])


assert PREFERENCES.asking is not None
_ASKING: Asking = PREFERENCES.asking

PROMPTS = Kind(
    fields={name: name for name in _COLUMNS} | {"template": "auto", "system": ""},
    columns=_COLUMNS,
    check=functools.partial(check, _NAME, _COLUMNS),
    parse=_parse,
    text=_text,
    identity=functools.partial(identity, _NAME),
    encoding=None,
    hand_on=PREFERENCES.hand_on,
    asking=_ASKING._replace(question=lambda record: Question(record["messages"], record.get("tools"))),
    encoder=False,
    augmentable=lambda settings: False,
    check_trained=functools.partial(check_trained, _NAME),
)
