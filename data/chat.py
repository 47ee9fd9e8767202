"""Conversations: records of three published forms, and their tokens by a chat template.

    {"instruction": "...", "input": "...", "output": "..."}               Alpaca; maybe "history": [[asked, said], ...]
    {"messages": [{"role": "user", "content": "..."}, ...]}                OpenAI
    {"conversations": [{"from": "human", "value": "..."}, ...]}            ShareGPT; maybe "system": "..."

Which form a record has is found for each one. All become messages: maybe a system text, then questions and answers in
turn. Where the model has an encoder, it reads all before the last answer, which the decoder says.
"""

import functools
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from data.batch import DataError
from data.examples import Context, Encoding, Example, Kind
from data.jinja_template import JinjaTemplate
from data.templates import TEMPLATES, Ends, Message, PieceEncoder
from data.tokenizer import Tokenizer

FIELDS = {"template": "auto", "system": ""}
_ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user"}
_ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant")

_SAID = "Yes."  # an answer to see what a template makes of it


class Chat:
    """Conversations to tokens, by the config's block data.chat.

    `template`: a name of TEMPLATES; 'tokenizer', the one that the tokenizer brings along; 'auto', that one if there is
    one, else alpaca. `system`: the system text of conversations that have none.

    `ends`: ids that end an answer. `lead`: what the template writes before an answer to the last question, as part of
    it (Qwen3 an empty thought). `template`: a name of TEMPLATES, or 'tokenizer'. `markers`: names of the special tokens
    that it writes. `text_ends`: of a text that is no conversation.

    Raises:
      DataError: the tokenizer lacks what the template needs.
    """

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any]):
        self._encoder = PieceEncoder(tokenizer)
        self._system = settings["system"]
        self._start_id, self._eot_id = tokenizer.start_id, tokenizer.eot_id
        begin = tokenizer.special.begin
        self.text_ends = ends = Ends(
            None if begin is None else self._encoder.name(begin), self._encoder.name(tokenizer.eot_id)
        )
        own, name = own_template(tokenizer), settings["template"]
        if name == "auto":
            name = "tokenizer" if own else "alpaca"
        if name == "tokenizer":
            if not own:
                raise DataError(
                    "data.chat.template is 'tokenizer', but the tokenizer brings no chat template along; these would "
                    f"work: {', '.join(self._working())}."
                )
            tokens = {
                role: token for role, token in tokenizer.special.tokenizer_config.items() if role.endswith("_token")
            }
            self._render = JinjaTemplate(
                own, self._encoder.specials(), {"bos_token": "", "eos_token": ""} | tokens
            ).render
        else:
            missing = [marker for marker in TEMPLATES[name].markers if not self._encoder.has(marker)]
            if missing:
                raise DataError(
                    f"data.chat.template is {name!r}, but the tokenizer has no token {missing[0]!r}; these templates "
                    f"would work: {', '.join(self._working())}."
                )
            self._render = functools.partial(TEMPLATES[name].render, ends=ends)
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SAID}]
        try:
            pieces = self._render(self._with_system(probe), False)
            ids, trained, _ = self._encoder.encode(pieces)
            if not trained.any():
                raise ValueError("the chat template writes no answer")
        except ValueError as error:
            raise DataError(f"A question and its answer can't be written out: {error}.") from error
        self.template = name
        self.markers = tuple(dict.fromkeys(piece.text for piece in pieces if piece.special))
        self.identity = [name, own if name == "tokenizer" else "", self._system, ids.tolist()]
        # Where a template ends its turns with text, only the end of a document stops an answer.
        marked = [piece.special for piece in pieces if piece.answer][-1]
        said = tokenizer.decode(ids[trained])
        self.lead = said.partition(_SAID)[0] if _SAID in said else ""
        self.ends = tuple(dict.fromkeys([int(ids[trained][-1])] * marked + [*tokenizer.special.end]))

    def encode(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids int32 [n], which of them are trained on, and which are what users say, both bool [n]; ValueError where
        the template refuses."""
        return self._encoder.encode(self._render(self._with_system(messages), False))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to where the next answer begins."""
        return self._encoder.encode(self._render(self._with_system(messages), True))[0].tolist()

    def inputs(self, conversations: Sequence[Sequence[Message]], encoder: bool) -> dict[str, list[list[int]] | None]:
        """As `Tokenizer.inputs`: what stands before the next answer of each conversation."""
        asked = [self.prompt(messages) for messages in conversations]
        if not encoder:
            return {"prompts": asked, "sources": None}
        return {"prompts": [[self._start_id]] * len(asked), "sources": [[*ids, self._eot_id] for ids in asked]}

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self._system and messages[0]["role"] != "system":
            return [{"role": "system", "content": self._system}, *messages]
        return messages

    def _working(self) -> list[str]:
        return [name for name, template in TEMPLATES.items() if all(map(self._encoder.has, template.markers))]


def own_template(tokenizer: Tokenizer) -> str:
    """The Jinja template that a tokenizer brings along, '' for none. Of several, the one named default."""
    given = tokenizer.special.tokenizer_config.get("chat_template") or ""
    if isinstance(given, list):
        given = {item["name"]: item["template"] for item in given}
    return given.get("default", "") if isinstance(given, dict) else given


def messages_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages of a record; ValueError says what is wrong with it."""
    if "messages" in record or "conversations" in record:
        name = "messages" if "messages" in record else "conversations"
        turns = record[name]
        if not isinstance(turns, list) or not turns:
            raise ValueError(f'"{name}" has no messages; take the record out')
        messages = [_message(turn, number) for number, turn in enumerate(turns, 1)]
        if record.get("system") and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": _string(record["system"], '"system"')})
    elif "instruction" in record:
        messages = _alpaca(record)
    else:
        raise ValueError(
            f"no conversation, only {', '.join(map(str, record)) or '(no fields)'}; a record has instruction and "
            "output, or messages, or conversations"
        )
    return _checked(messages)


def _message(turn: Any, number: int) -> dict[str, str]:
    where = f"message {number}"
    if not isinstance(turn, dict):
        raise ValueError(f"{where} is not an object but {type(turn).__name__}")
    role, content = (turn.get(ours, turn.get(theirs)) for ours, theirs in (("role", "from"), ("content", "value")))
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"{where} has the unknown role {role!r}; there are {', '.join(_ROLES)}")
    if isinstance(content, list):  # OpenAI's parts
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise ValueError(f"{where} has parts that are no text; only text can be trained on")
        content = "".join(_string(part.get("text"), where) for part in content)
    return {"role": _ROLES[role], "content": _string(content, where)}


def _alpaca(record: Mapping[str, Any]) -> list[dict[str, str]]:
    if "output" not in record:
        raise ValueError(f'"instruction" without "output", only {", ".join(map(str, record))}')
    text = lambda name: _string(record.get(name) or "", f'"{name}"')
    messages = [{"role": "system", "content": text("system")}] if record.get("system") else []
    history = record.get("history") or []
    if not (isinstance(history, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in history)):
        raise ValueError('"history" is not a list of pairs [asked, said]')
    question = "\n\n".join(filter(None, [text("instruction"), text("input")]))
    for asked, said in [*history, [question, text("output")]]:
        messages.append({"role": "user", "content": _string(asked, '"history"')})
        messages.append({"role": "assistant", "content": _string(said, '"history"')})
    if text("instruction") and text("input"):
        messages[-2]["input"] = text("input")
    return messages


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} is not a string but {type(value).__name__}")
    return value


def _checked(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    while turns and turns[-1]["role"] == "user":  # a question without an answer teaches nothing
        messages, turns = messages[:-1], turns[:-1]
    roles = [turn["role"] for turn in turns]
    if "system" in roles:
        raise ValueError("a system message stands behind others; it must be the first")
    if not roles:
        raise ValueError("no message is an answer; take the record out")
    if roles[0] != "user":
        raise ValueError("the first message is an answer; put the question before it, or take the record out")
    if any(first == second for first, second in pairwise(roles)):
        raise ValueError("questions and answers don't take turns; join messages of one role that follow each other")
    for turn in turns:
        if not turn["content"].strip():
            what = "an answer" if turn["role"] == "assistant" else "a question"
            raise ValueError(f"{what} is empty; mend the record or take it out")
    return messages


def _check(settings: Mapping[str, Any]) -> None:
    names = ("auto", "tokenizer", *TEMPLATES)
    if settings["template"] not in names:
        raise DataError(f"data.chat.template must be one of {', '.join(names)}, not {settings['template']!r}.")
    if not isinstance(settings["system"], str):
        raise DataError(f"data.chat.system must be a string, not {settings['system']!r}.")


def _parse(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict:
    return {"messages": messages_of(record)}


def _text(record: dict) -> str:
    return "\n".join(message["content"] for message in record["messages"])


def _identity(settings: Mapping[str, Any], tokenizer: Tokenizer, encoder: bool) -> Any:
    return Chat(tokenizer, settings).identity


def _encoding(settings: Mapping[str, Any], context: Context) -> Encoding:
    chat, tokenizer = Chat(context.tokenizer, settings), context.tokenizer

    def encode(record: dict) -> Example:
        ids, trained, content = chat.encode(record["messages"])
        if not context.encoder:
            return Example.of_ids(ids, trained, content)
        end = int(np.flatnonzero(trained)[-1]) + 1
        begin = int(np.flatnonzero(~trained[:end])[-1]) + 1
        answer, source = [tokenizer.start_id, *ids[begin:end]], [*ids[:begin], tokenizer.eot_id]
        said = [False] + [True] * (end - begin)
        return Example.of_ids(answer, said, source=source, source_content=[*content[:begin], False])

    return Encoding(encode)


KIND = Kind(FIELDS, (), _check, _parse, _text, _identity, _encoding)
