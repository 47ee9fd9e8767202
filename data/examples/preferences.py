"""The kinds `preferences` and `rankings`: a conversation and several answers to its last question, some of them better.

An example has a segment for each answer: the conversation with that answer, in the order of the ranks. All are written
with a chat template, as the kind `chat` writes conversations, so that a model that was tuned on conversations can
continue with them. data/examples/comparisons.py reads the records.

`preferences` are for objectives that need the probabilities of answers: every token of an answer has a target.
`rankings` are for reward models, which read the whole conversation and give a score at its last token: only that token
is trained, and it has no target. What the template writes after an answer (a line break, in ChatML) belongs to it,
because transformers, too, scores a conversation at the last token of its text.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from data.batch import GROUPS, TRAINED, DataError
from data.examples import chat_examples
from data.examples.chat import Chat
from data.examples.comparisons import comparison_of
from data.examples.example import CUT, Context, Encoding, Example, Kind, LeftOut, cut_prompt
from data.tokens.tokenizer import Tokenizer

_COLUMNS = ("prompt", "chosen", "rejected", "answers")
FIELDS = {name: name for name in _COLUMNS} | chat_examples.FIELDS


def _check(kind: str, settings: Mapping[str, Any]) -> None:
    for name in _COLUMNS:
        if not isinstance(settings[name], str):
            raise DataError(f"data.{kind}.{name} must be a string, not {settings[name]!r}.")
    _as_chat(kind, chat_examples.KIND.check, settings)


def _text(record: dict) -> str:
    return chat_examples.KIND.text({"messages": [*record["messages"], *record["answers"]]})


def _identity(kind: str, settings: Mapping[str, Any], tokenizer: Tokenizer, encoder: bool) -> Any:
    return _as_chat(kind, Chat, tokenizer, settings).identity


def _encoding(kind: str, settings: Mapping[str, Any], context: Context) -> Encoding:
    chat, begin = _as_chat(kind, Chat, context.tokenizer, settings), context.tokenizer.special.begin
    scored = kind == "rankings"

    def encode(record: dict) -> list[Example]:
        messages, ranks, tools = record["messages"], record["ranks"], record.get("tools")
        prompt, answers = np.asarray(chat.prompt(messages, tools), np.int32), []
        for answer, rank in zip(record["answers"], ranks, strict=True):
            ids, trained, _ = chat.encode([*messages, answer], tools)
            end = len(ids) if scored else int(np.flatnonzero(trained)[-1]) + 1
            answers.append((ids[len(prompt) : end], rank))
        answers = _different(answers, kind)
        # The last token of an answer is only a target, except that a reward model reads it.
        room = context.seq_len - len(answers) * (len(context.prefix) - (not scored))
        read, said = _lengths(len(prompt), [len(ids) for ids, _ in answers], room)
        if read < 1 or said < 1:
            raise LeftOut(f"{kind} have too many answers for a row; raise data.seq_len")
        cut = read < len(prompt) or said < max(len(ids) for ids, _ in answers)
        prompt = cut_prompt(prompt, read, begin)
        answers = _different([(ids[:said], rank) for ids, rank in answers], kind)
        made = _scored if scored else _said
        segments = [made(prompt, ids)._replace(rank=rank) for ids, rank in answers]
        notes = (CUT.format(context.seq_len),) if cut else ()
        return [segments[0]._replace(notes=notes), *segments[1:]]

    return Encoding(functools.partial(_as_chat, kind, encode))


def _different(answers: list[tuple[np.ndarray, int]], kind: str) -> list[tuple[np.ndarray, int]]:
    """Returns the answers (ids, rank) without those that equal a better one as ids, from which nothing can be learned.

    Raises:
      LeftOut: all that stay are of one rank.
    """
    kept: dict[bytes, tuple[np.ndarray, int]] = {}
    for ids, rank in answers:
        kept.setdefault(ids.tobytes(), (ids, rank))
    if len({rank for _, rank in kept.values()}) < 2:
        raise LeftOut(f"{kind} have no two different answers of different rank")
    return list(kept.values())


def _said(prompt: np.ndarray, answer: np.ndarray) -> Example:
    """Returns the example whose targets are the tokens of the answer."""
    return Example.of_ids(np.concatenate([prompt, answer]), [False] * len(prompt) + [True] * len(answer))


def _scored(prompt: np.ndarray, answer: np.ndarray) -> Example:
    """Returns the example that is trained at the answer's last token alone."""
    tokens = np.concatenate([prompt, answer]).astype(np.int32)
    marks = np.zeros(len(tokens), np.uint8)
    marks[-1] = TRAINED
    return Example(tokens, np.zeros_like(tokens), marks)


def _lengths(prompt: int, answers: list[int], room: int) -> tuple[int, int]:
    """Returns how many ids of the prompt and at most of each answer fit into `room`.

    All answers follow the same prompt, because otherwise their probabilities would not be comparable. The prompt keeps
    at least a quarter of its share of the row, as in data/examples/example.py, `cut`.
    """
    n = len(answers)
    over = n * prompt + sum(answers) - room
    if over <= 0:
        return prompt, max(answers)
    read = max(prompt - -(-over // n), min(prompt, max(room // (4 * n), 1)))
    said, left, more = 0, room - n * read, sorted(answers)
    while more and left >= len(more) * (more[0] - said):  # short answers leave room for longer ones
        left -= len(more) * (more[0] - said)
        said = more.pop(0)
    return read, said + (left // len(more) if more else 0)


def _as_chat(kind: str, function: Callable, *given: Any) -> Any:
    """Calls a function of conversations, whose errors then name the fields of this kind."""
    try:
        return function(*given)
    except LeftOut:
        raise
    except (DataError, ValueError) as error:
        made = DataError if isinstance(error, DataError) else ValueError
        raise made(str(error).replace("data.chat.", f"data.{kind}.")) from error


def _check_trained(kind: str, settings: Mapping[str, Any], specials: Collection[str]) -> None:
    _as_chat(kind, chat_examples.KIND.check_trained, settings, specials)


assert chat_examples.KIND.asking is not None
_CHAT = chat_examples.KIND.asking


def _kind(name: str, **own: Any) -> Kind:
    return Kind(
        fields=FIELDS,
        columns=_COLUMNS,
        check=functools.partial(_check, name),
        parse=functools.partial(comparison_of, kind=name),
        text=_text,
        identity=functools.partial(_identity, name),
        encoding=functools.partial(_encoding, name),
        channels=lambda settings: GROUPS,
        encoder=False,
        augmentable=lambda settings: False,  # all answers must follow the same prompt
        check_trained=functools.partial(_check_trained, name),
        hand_on=chat_examples.KIND.hand_on,
        **own,
    )


PREFERENCES = _kind(
    "preferences",
    asking=_CHAT._replace(
        question=lambda record: chat_examples.Question(record["messages"], record.get("tools")),
        reference=lambda settings, tokenizer, record: _CHAT.reference(
            settings, tokenizer, record | {"messages": [*record["messages"], record["answers"][0]]}
        ),
    ),
)
RANKINGS = _kind("rankings")
