"""The kind `chat`: conversations as examples, encoded with the chat template of data.chat (data/examples/chat.py).

In an encoder-decoder, the encoder reads everything before the last trained answer, and the decoder predicts that
answer.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.batch import DataError
from data.examples import chat_export
from data.examples.asking import Asking, Prompts
from data.examples.chat import Chat, Tools
from data.examples.conversations import asking_conversation, conversation_of, trained_answers
from data.examples.example import Context, Encoding, Example, Kind, LeftOut
from data.tokens.templates import TEMPLATES, Message
from data.tokens.tokenizer import Tokenizer

FIELDS = {"template": "auto", "system": ""}


def _check(settings: Mapping[str, Any]) -> None:
    names = ("auto", "tokenizer", *TEMPLATES)
    if settings["template"] not in names:
        raise DataError(f"data.chat.template must be one of {', '.join(names)}, not {settings['template']!r}.")
    if not isinstance(settings["system"], str):
        raise DataError(f"data.chat.system must be a string, not {settings['system']!r}.")


def _parse(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict:
    return conversation_of(record)


def _text(record: dict) -> str:
    said = [message.get(name) for message in record["messages"] for name in ("reasoning_content", "content")]
    return "\n".join(filter(None, said))


def _identity(settings: Mapping[str, Any], tokenizer: Tokenizer, encoder: bool) -> Any:
    return Chat(tokenizer, settings).identity


def _encoding(settings: Mapping[str, Any], context: Context) -> Encoding:
    chat, tokenizer = Chat(context.tokenizer, settings), context.tokenizer

    def encode(record: dict) -> Example:
        messages, tools = record["messages"], record.get("tools")
        answers = trained_answers(messages)
        if not answers:
            raise LeftOut("conversations have no answer that is to be trained on")
        if not context.encoder:
            return Example.of_ids(*chat.encode(messages, tools))
        # Cut after the last trained answer: some templates render a question differently once another one follows it.
        ids, trained, content = chat.encode(messages[: answers[-1] + 1], tools)
        begin = len(chat.prompt(messages[: answers[-1]], tools))
        end = int(np.flatnonzero(trained)[-1]) + 1
        answer, source = [tokenizer.start_id, *ids[begin:end]], [*ids[:begin], tokenizer.eot_id]
        said = [False] + [True] * (end - begin)
        return Example.of_ids(answer, said, source=source, source_content=[*content[:begin], False])

    return Encoding(encode)


def _check_trained(settings: Mapping[str, Any], specials: Collection[str]) -> None:
    """Raises a DataError if a tokenizer that is trained here lacks the template or the markers."""
    name = settings["template"]
    if name == "tokenizer":
        raise DataError(
            "data.chat.template is 'tokenizer', but a tokenizer that is trained here has no chat template: set it to "
            f"one of {', '.join(TEMPLATES)}, and for all but alpaca and plain set data.tokenizer.chat to it too."
        )
    markers = TEMPLATES[name].markers if name in TEMPLATES else ()
    missing = [marker for marker in markers if marker not in specials]
    if missing:
        raise DataError(
            f"data.chat.template is {name!r}, but a tokenizer that is trained here has no token {missing[0]!r}; set "
            f"data.tokenizer.chat to {name!r}, or data.chat.template to 'alpaca', which needs none."
        )


class Question(NamedTuple):
    """The messages before an answer."""

    messages: Sequence[Message]
    tools: Tools = None


def _question(record: dict) -> Question | None:
    answers = trained_answers(record["messages"])
    return Question(record["messages"][: answers[-1]], record.get("tools")) if answers else None


def _question_of_text(text: str, system: str) -> Question:
    start = [{"role": "system", "content": system}] if system else []
    return Question([*start, {"role": "user", "content": text}])


def _question_of_messages(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Question:
    found = asking_conversation(messages, tools)
    return Question(found["messages"], found.get("tools"))


def _prompts(
    settings: Mapping[str, Any], tokenizer: Tokenizer, questions: Sequence[Question], encoder: bool
) -> Prompts:
    chat = Chat(tokenizer, settings)
    messages, tools = [question.messages for question in questions], [question.tools for question in questions]
    return Prompts(**chat.inputs(messages, encoder, tools), ends=chat.ends, lead=chat.lead)


def _shown(question: Question) -> str:
    """Returns a single message as it is, and several ones each after its role."""
    messages = question.messages
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _reference(settings: Mapping[str, Any], tokenizer: Tokenizer, record: dict) -> str:
    """Returns the text of the last trained answer, with its thoughts and tool calls as the template writes them."""
    messages, tools = record["messages"], record.get("tools")
    last = trained_answers(messages)[-1]
    answer = messages[last]
    if not answer.get("reasoning_content") and not answer.get("tool_calls"):
        return answer["content"]
    chat = Chat(tokenizer, settings)
    ids, trained, _ = chat.encode(messages[: last + 1], tools)
    begin = len(chat.prompt(messages[:last], tools))
    said = ids[begin:][trained[begin:]].tolist()
    return Prompts([], None, chat.ends, chat.lead).answer(tokenizer, said)


KIND = Kind(
    fields=FIELDS,
    columns=(),
    check=_check,
    parse=_parse,
    text=_text,
    identity=_identity,
    encoding=_encoding,
    asking=Asking(
        question=_question,
        of_text=_question_of_text,
        of_messages=_question_of_messages,
        prompts=_prompts,
        shown=_shown,
        reference=_reference,
    ),
    hand_on=lambda settings, tokenizer, encoder: chat_export.hand_on(tokenizer, settings, encoder),
    check_trained=_check_trained,
)
