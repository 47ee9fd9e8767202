"""The kinds `preferences` and `rankings`: a conversation and several answers to its last question, some of them better.

An example has a segment for each answer: the conversation with that answer, in the order of the ranks. All are written
with a chat template, as the kind `chat` writes conversations, so that a model that was tuned on conversations can
continue with them. data/examples/judged/comparisons.py reads the records.

`preferences` are for objectives that need the probabilities of answers: every token of an answer has a target.
`rankings` are for reward models, which read the whole conversation and give a score at its last token: only that token
is trained, and it has no target. What the template writes after an answer (a line break, in ChatML) belongs to it,
because transformers, too, scores a conversation at the last token of its text.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from data.batch import GROUPS, Channel, DataError
from data.examples import chat_examples
from data.examples.example import Context, Encoding, Example, Kind, LeftOut
from data.examples.judged.answers import Answering, chat_of, renamed
from data.examples.judged.comparisons import comparison_of
from data.tokens.tokenizer import Tokenizer

_COLUMNS = ("prompt", "chosen", "rejected", "answers")
FIELDS = {name: name for name in _COLUMNS} | chat_examples.FIELDS
SCORES = Channel("scores", "float32")  # of an answer as a person or a model scored it, at each of its tokens
_T = TypeVar("_T")


def check(kind: str, columns: Collection[str], settings: Mapping[str, Any]) -> None:
    """Raises a DataError unless the names of a record's fields are strings and the chat settings are possible."""
    for name in columns:
        if not isinstance(settings[name], str):
            raise DataError(f"data.{kind}.{name} must be a string, not {settings[name]!r}.")
    renamed(kind, chat_examples.KIND.check, settings)


def _text(record: dict) -> str:
    return chat_examples.KIND.text({"messages": [*record["messages"], *record["answers"]]})


def identity(kind: str, settings: Mapping[str, Any], tokenizer: Tokenizer, encoder: bool) -> Any:
    return chat_of(kind, settings, tokenizer).identity


def _encoding(kind: str, scored: bool, settings: Mapping[str, Any], context: Context) -> Encoding:
    answering = Answering(kind, settings, context, scored)

    def encode(record: dict) -> list[Example]:
        messages, tools = record["messages"], record.get("tools")
        prompt = answering.prompt(messages, tools)
        said = [answering.answer(messages, answer, tools, prompt) for answer in record["answers"]]
        scores = record.get("scores") or [None] * len(said)
        answers = list(zip(said, record["ranks"], scores, strict=True))
        answers = _different(answers, kind, lambda a: a[0].tobytes(), lambda a: a[1])
        segments = answering.segments(prompt, [(ids, rank) for ids, rank, _ in answers])
        if "scores" in record:
            own = lambda segment, score: {SCORES.name: np.full(len(segment.tokens), score, np.float32)}
            pairs = zip(segments, answers, strict=True)
            segments = [segment._replace(own=own(segment, score)) for segment, (_, _, score) in pairs]
        read = lambda segment: segment.tokens.tobytes() + segment.targets.tobytes()
        return _different(segments, kind, read, lambda segment: segment.rank)

    return Encoding(encode)


def _different(answers: Sequence[_T], kind: str, read: Callable[[_T], bytes], rank: Callable[[_T], Any]) -> list[_T]:
    """Returns the answers without those that equal a better one as tokens, from which nothing can be learned.

    Raises:
      LeftOut: all that stay are of one rank.
    """
    kept: dict[bytes, _T] = {}
    for answer in answers:
        kept.setdefault(read(answer), answer)
    if len({rank(answer) for answer in kept.values()}) < 2:
        raise LeftOut(f"{kind} have no two different answers of different rank")
    return list(kept.values())


def check_trained(kind: str, settings: Mapping[str, Any], specials: Collection[str]) -> None:
    """As chat_examples does, with the fields of this kind in messages."""
    renamed(kind, chat_examples.KIND.check_trained, settings, specials)


assert chat_examples.KIND.asking is not None
_CHAT = chat_examples.KIND.asking


def _kind(name: str, scored: bool, **own: Any) -> Kind:
    return Kind(
        fields=FIELDS,
        columns=_COLUMNS,
        check=functools.partial(check, name, _COLUMNS),
        parse=functools.partial(comparison_of, kind=name),
        text=_text,
        identity=functools.partial(identity, name),
        encoding=functools.partial(_encoding, name, scored),
        channels=lambda settings: GROUPS,
        encoder=False,
        augmentable=lambda settings: False,  # all answers must follow the same prompt
        check_trained=functools.partial(check_trained, name),
        hand_on=chat_examples.KIND.hand_on,
        **own,
    )


PREFERENCES = _kind(
    "preferences",
    scored=False,
    asking=_CHAT._replace(
        question=lambda record: chat_examples.Question(record["messages"], record.get("tools")),
        reference=lambda settings, tokenizer, record: _CHAT.reference(
            settings, tokenizer, record | {"messages": [*record["messages"], record["answers"][0]]}
        ),
    ),
)
_MARGIN = {"margin": ""}  # the field of a pair with how much better its first answer is; '': margins are not read
RANKINGS = _kind("rankings", scored=True)._replace(
    fields=FIELDS | _MARGIN,
    columns=(*_COLUMNS, *_MARGIN),
    check=functools.partial(check, "rankings", (*_COLUMNS, *_MARGIN)),
    channels=lambda settings: (*GROUPS, SCORES) if settings["margin"] else GROUPS,
)
