"""The kind `preferences`: a prompt, a chosen answer, and a rejected one.

An example has two segments: the prompt with the chosen answer (rank 0), and the prompt with the rejected one (rank 1).
Both are written with a chat template, as a conversation of the prompt and the answer, so that what was tuned on
conversations (data/examples/chat_examples.py) can go on with preferences.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from data.batch import GROUPS, DataError
from data.examples import chat_examples
from data.examples.chat import Chat
from data.examples.example import CUT, Context, Encoding, Example, Kind, LeftOut, cut_prompt
from data.read.records import field
from data.tokens.tokenizer import Tokenizer

_TEXTS = ("prompt", "chosen", "rejected")
FIELDS = {name: name for name in _TEXTS} | chat_examples.FIELDS


def _check(settings: Mapping[str, Any]) -> None:
    for name in _TEXTS:
        if not isinstance(settings[name], str):
            raise DataError(f"data.preferences.{name} must be a string, not {settings[name]!r}.")
    _as_chat(chat_examples.KIND.check, settings)


def _parse(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict:
    found = {name: field(record, settings[name], f"data.preferences.{name}") for name in _TEXTS}
    for name, text in found.items():
        if not isinstance(text, str):
            raise ValueError(f"field {settings[name]!r} is not a string but {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"field {settings[name]!r} is empty; fix the record or remove it")
    return found


def _identity(settings: Mapping[str, Any], tokenizer: Tokenizer, encoder: bool) -> Any:
    return _as_chat(Chat, tokenizer, settings).identity


def _encoding(settings: Mapping[str, Any], context: Context) -> Encoding:
    chat, begin = _as_chat(Chat, context.tokenizer, settings), context.tokenizer.special.begin
    room = context.seq_len - 2 * len(context.prefix)

    def encode(record: dict) -> list[Example]:
        if record["chosen"] == record["rejected"]:
            raise LeftOut("preferences have the same answer twice")
        asked = {"role": "user", "content": record["prompt"]}
        prompt, answers = np.asarray(chat.prompt([asked]), np.int32), []
        for name in ("chosen", "rejected"):
            ids, trained, _ = chat.encode([asked, {"role": "assistant", "content": record[name]}])
            answers.append(ids[len(prompt) : int(np.flatnonzero(trained)[-1]) + 1])
        read, said = _lengths(len(prompt), [len(ids) for ids in answers], room)
        cut = read < len(prompt) or said < max(map(len, answers))
        prompt = cut_prompt(prompt, read, begin)
        pair = [_segment(prompt, ids[:said]) for ids in answers]
        return [pair[0]._replace(notes=(CUT.format(context.seq_len),)), pair[1]] if cut else pair

    return Encoding(encode)


def _segment(prompt: np.ndarray, answer: np.ndarray) -> Example:
    return Example.of_ids(np.concatenate([prompt, answer]), [False] * len(prompt) + [True] * len(answer))


def _lengths(prompt: int, answers: list[int], room: int) -> tuple[int, int]:
    """Returns how many ids of the prompt and at most of each answer fit into `room`.

    Both answers follow the same prompt, for otherwise their probabilities would not be comparable. The prompt keeps at
    least a quarter of its half of the row, as in data/examples/example.py, `cut`.
    """
    over = 2 * prompt + sum(answers) - 2 - room  # a segment has one token less than ids
    if over <= 0:
        return prompt, max(answers)
    read = max(prompt - -(-over // 2), min(prompt, max(room // 8, 1)))
    left = room + 2 - 2 * read
    return read, max(left // 2, left - min(answers))


def _as_chat(function: Callable, *given: Any) -> Any:
    """Calls a function of conversations, whose errors then name the fields of this kind."""
    try:
        return function(*given)
    except DataError as error:
        raise DataError(str(error).replace("data.chat.", "data.preferences.")) from error


def _check_trained(settings: Mapping[str, Any], specials: Collection[str]) -> None:
    _as_chat(chat_examples.KIND.check_trained, settings, specials)


assert chat_examples.KIND.asking is not None
_CHAT = chat_examples.KIND.asking

KIND = Kind(
    fields=FIELDS,
    columns=_TEXTS,
    check=_check,
    parse=_parse,
    text=lambda record: "\n".join(record[name] for name in _TEXTS),
    identity=_identity,
    encoding=_encoding,
    channels=lambda settings: GROUPS,
    asking=_CHAT._replace(
        question=lambda record: _CHAT.of_text(record["prompt"], ""),
        reference=lambda settings, tokenizer, record: record["chosen"],
    ),
    encoder=False,
    augmentable=lambda settings: False,  # both answers must follow the same prompt
    check_trained=_check_trained,
)
