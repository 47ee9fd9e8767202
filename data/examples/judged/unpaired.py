"""The kind `unpaired`: a conversation and one answer to its last question, with a verdict, good or bad.

An example has a second segment, of rank 1: the same prompt with the answer of the record before. It shows how far the
model has moved from its reference on answers that don't belong to the prompt (KTO, arXiv:2402.01306, section 4.1). The
first record of a source has none.
"""

import functools
from collections.abc import Mapping
from typing import Any

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
    answering, before = Answering(_NAME, settings, context), None

    def encode(record: dict) -> list[Example]:
        nonlocal before
        messages, tools, (answer,) = record["messages"], record.get("tools"), record["answers"]
        prompt = answering.prompt(messages, tools)
        own = answering.answer(messages, answer, tools, prompt)
        other, before = before, own
        answers = [(own, 0)] if other is None else [(own, 0), (other, 1)]
        first, *rest = answering.segments(prompt, answers)
        return [first._replace(marks=first.marks | GOOD.mark * record["good"]), *rest]

    return Encoding(encode)


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
