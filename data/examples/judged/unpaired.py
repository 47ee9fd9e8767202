"""The kind `unpaired`: a conversation and one answer to its last question, with a verdict, good or bad.

An example has a second segment, of rank 1: the same prompt with an answer to another prompt, that of the record before.
It shows how far the model has moved from its reference on answers that don't belong to the prompt (KTO,
arXiv:2402.01306, section 4.1). It gets the room that the example leaves in a row, and is left out where there is none.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.batch import GROUPS, Channel
from data.examples import chat_examples
from data.examples.example import Context, Encoding, Example
from data.examples.judged.answers import Answering
from data.examples.judged.comparisons import verdict_of
from data.examples.judged.preferences import PREFERENCES, check, check_trained, identity

_NAME = "unpaired"
_COLUMNS = ("prompt", "completion", "label")
FIELDS = {name: name for name in _COLUMNS} | chat_examples.FIELDS
GOOD = Channel("good", mark=16)  # 1 at all tokens of a good answer and of its prompt


def _encoding(settings: Mapping[str, Any], context: Context) -> Encoding:
    answering = Answering(_NAME, settings, context)
    # The last record, and the last one before it with another prompt: (prompt, ids of the answer).
    last, earlier = (b"", np.zeros(0, np.int32)), (b"", np.zeros(0, np.int32))

    def encode(record: dict) -> list[Example]:
        nonlocal last, earlier
        messages, tools, (answer,) = record["messages"], record.get("tools"), record["answers"]
        prompt = answering.prompt(messages, tools)
        own = answering.answer(messages, answer, tools, prompt)
        asked = prompt.tobytes()
        earlier = earlier if last[0] == asked else last
        last, other = (asked, own), earlier[1]
        (first,) = answering.segments(prompt, [(own, 0)])
        first = first._replace(marks=first.marks | GOOD.mark * record["good"])
        room = context.seq_len - 2 * len(context.prefix) - len(first.tokens) - (len(prompt) - 1)
        if not len(other) or first.notes or room < 1:
            return [first]
        return [first, *answering.segments(prompt, [(other[:room], 1)])]

    labels = {record["good"] for record in context.train()}
    missing = [word for word, label in (("good", True), ("bad", False)) if label not in labels]
    return Encoding(encode, warnings=tuple(f"no training record has a {word} answer" for word in missing))


assert PREFERENCES.asking is not None
_asked = PREFERENCES.asking.question

UNPAIRED = PREFERENCES._replace(
    fields=FIELDS,
    columns=_COLUMNS,
    check=functools.partial(check, _NAME, _COLUMNS),
    parse=functools.partial(verdict_of, kind=_NAME),
    identity=functools.partial(identity, _NAME),
    encoding=_encoding,
    channels=lambda settings: (*GROUPS, GOOD),
    # A bad answer is no example of what the model should say.
    asking=PREFERENCES.asking._replace(question=lambda record: _asked(record) if record["good"] else None),
    check_trained=functools.partial(check_trained, _NAME),
)
