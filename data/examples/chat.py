"""Conversations as tokens, by a chat template."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.batch import DataError
from data.tokens.jinja_template import JinjaTemplate
from data.tokens.templates import TEMPLATES, Ends, Message, NamedTemplate, Piece, PieceEncoder
from data.tokens.tokenizer import Tokenizer

_SAID = "Yes."  # an answer to see what a template makes of it
# Fields of messages that every template reads, or that change nothing of what is said.
_KNOWN = {"role", "content", "input", "train", "id", "tool_call_id", "timestamp", "created_at", "metadata", "model"}

Tools = Sequence[Mapping[str, Any]] | None  # the functions that an answer may call, as JSON schemas


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
        own, name = own_templates(tokenizer), settings["template"]
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
            made = functools.partial(
                JinjaTemplate, specials=self._encoder.specials(), variables={"bos_token": "", "eos_token": ""} | tokens
            )
            self._template = self._with_tools = made(own["default"])
            if "tool_use" in own:
                self._with_tools = made(own["tool_use"])
        else:
            missing = [marker for marker in TEMPLATES[name].markers if not self._encoder.has(marker)]
            if missing:
                raise DataError(
                    f"data.chat.template is {name!r}, but the tokenizer has no token {missing[0]!r}; these templates "
                    f"would work: {', '.join(self._working())}."
                )
            self._template = self._with_tools = NamedTemplate(TEMPLATES[name], ends)
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SAID}]
        try:
            pieces = self._template.render(self._with_system(probe), False)
            ids, trained, _ = self._encoder.encode(pieces)
            if not trained.any():
                raise ValueError("the chat template writes no answer")
        except ValueError as error:
            raise DataError(f"A question and its answer can't be written out: {error}.") from error
        self.template = name
        self.markers = tuple(dict.fromkeys(piece.text for piece in pieces if piece.special))
        self.identity = [name, own if name == "tokenizer" else {}, self._system, ids.tolist()]
        # Where a template ends its turns with text, only the end of a document stops an answer.
        marked = [piece.special for piece in pieces if piece.answer][-1]
        said = tokenizer.decode(ids[trained])
        self.lead = said.partition(_SAID)[0] if _SAID in said else ""
        self.ends = tuple(dict.fromkeys([int(ids[trained][-1])] * marked + [*tokenizer.special.end]))

    def encode(self, messages: Sequence[Message], tools: Tools = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids int32 [n], which of them are trained on, and which are what users say, both bool [n].

        Raises:
          ValueError: the template refuses the conversation, or doesn't read a part of it.
        """
        return self._encoder.encode(self._pieces(messages, False, tools))

    def prompt(self, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """Ids up to where the next answer begins: those that stand before this answer in training."""
        return self._encoder.encode(self._pieces(messages, True, tools))[0].tolist()

    def inputs(
        self, conversations: Sequence[Sequence[Message]], encoder: bool, tools: Sequence[Tools] | None = None
    ) -> dict[str, list[list[int]] | None]:
        """As `Tokenizer.inputs`: what stands before the next answer of each conversation; `tools` of each."""
        asked = list(map(self.prompt, conversations, tools or [None] * len(conversations)))
        if not encoder:
            return {"prompts": asked, "sources": None}
        return {"prompts": [[self._start_id]] * len(asked), "sources": [[*ids, self._eot_id] for ids in asked]}

    def _pieces(self, messages: Sequence[Message], prompt: bool, tools: Tools) -> list[Piece]:
        """By the template; ValueError where it doesn't read a part of the conversation, which would be lost."""
        template = self._with_tools if tools else self._template
        found = [("tools", '"tools"')] if tools else []
        for number, message in enumerate(messages, 1):
            if message["role"] == "tool":
                found.append(("tool", f"the role 'tool' of message {number}"))
            fields = [name for name, value in message.items() if value not in ("", [], {}) and name not in _KNOWN]
            found += [(name, f'"{name}" of message {number}') for name in fields]
        if lost := next((what for name, what in found if name not in template.names), None):
            raise ValueError(
                f"{lost} is not read by the chat template; take it out of the data, or have config.data.chat.template "
                "name a template that reads it ('tokenizer', if the tokenizer brings one along that does)"
            )
        return template.render(self._with_system(messages), prompt, tools)

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self._system and messages[0]["role"] != "system":
            return [{"role": "system", "content": self._system}, *messages]
        return messages

    def _working(self) -> list[str]:
        return [name for name, template in TEMPLATES.items() if all(map(self._encoder.has, template.markers))]


def own_templates(tokenizer: Tokenizer) -> dict[str, str]:
    """The Jinja templates that a tokenizer brings along, by name: 'default', and maybe 'tool_use' for conversations
    with tools. Empty where there is no default."""
    given = tokenizer.special.tokenizer_config.get("chat_template") or {}
    if isinstance(given, list):
        given = {item["name"]: item["template"] for item in given}
    given = {"default": given} if isinstance(given, str) else given
    return {name: given[name] for name in ("default", "tool_use") if name in given} if given.get("default") else {}
