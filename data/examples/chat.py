"""Encodes conversations as tokens with a chat template."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.batch import DataError
from data.tokens.jinja_template import JinjaTemplate
from data.tokens.templates import TEMPLATES, Ends, Message, NamedTemplate, Piece, PieceEncoder
from data.tokens.tokenizer import Inputs, Tokenizer

_SAID = "Yes."  # a probe answer, which shows what a template writes around answers
# Fields of messages that every template reads, or that don't change the text of a conversation.
_KNOWN = {"role", "content", "input", "train", "id", "tool_call_id", "timestamp", "created_at", "metadata", "model"}

Tools = Sequence[Mapping[str, Any]] | None  # the functions that an answer may call, as JSON schemas


class Chat:
    """Encodes conversations as the config's data.chat says.

    Args:
      tokenizer: encodes the text, and may have a chat template of its own.
      settings: `template`, a name of TEMPLATES, 'tokenizer' for the tokenizer's own template, or 'auto' for the
        tokenizer's own template if it has one and alpaca otherwise; and `system`, the system text of conversations
        without one.

    Attributes:
      template: a name of TEMPLATES, or 'tokenizer'.
      ends: ids that end an answer.
      lead: text that the template writes at the start of an answer to the last question (Qwen3: an empty thought).
      markers: names of the special tokens that the template writes.
      text_ends: begin and end token of a plain text.
      identity: JSON that changes when the template encodes conversations differently.

    Raises:
      DataError: the tokenizer lacks tokens or a template that the settings need.
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
                    "data.chat.template is 'tokenizer', but the tokenizer has no chat template; these would work: "
                    f"{', '.join(self._working())}."
                )
            tokens = {
                role: token for role, token in tokenizer.special.tokenizer_config.items() if role.endswith("_token")
            }
            made = functools.partial(
                JinjaTemplate, specials=self._encoder.specials(), variables={"bos_token": "", "eos_token": ""} | tokens
            )
            self._template: JinjaTemplate | NamedTemplate = made(own["default"])
            self._with_tools: JinjaTemplate | NamedTemplate = self._template
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
            raise DataError(f"A question and its answer can't be encoded: {error}.") from error
        self.template = name
        self.markers = tuple(dict.fromkeys(piece.text for piece in pieces if piece.special))
        self.identity = [name, own if name == "tokenizer" else {}, self._system, ids.tolist()]
        # If a template ends its turns with plain text, only the tokenizer's end tokens end an answer.
        marked = [piece.special for piece in pieces if piece.answer][-1]
        said = tokenizer.decode(ids[trained])
        self.lead = said.partition(_SAID)[0] if _SAID in said else ""
        self.ends = tuple(dict.fromkeys([int(ids[trained][-1])] * marked + [*tokenizer.special.end]))

    def encode(self, messages: Sequence[Message], tools: Tools = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ids int32 [n], which of them are trained on, and which are users' text, both bool [n].

        Args:
          messages: the conversation, whose last message is an answer.
          tools: the tools that answers may call.

        Raises:
          ValueError: the template refuses the conversation, or doesn't read a part of it.
        """
        return self._encoder.encode(self._pieces(messages, False, tools))

    def prompt(self, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """Returns the ids up to where the next answer begins, the same as before this answer in training."""
        return self._encoder.encode(self._pieces(messages, True, tools))[0].tolist()

    def inputs(
        self, conversations: Sequence[Sequence[Message]], encoder: bool, tools: Sequence[Tools] | None = None
    ) -> Inputs:
        """Returns `prompts` and `sources` of model.decode.generate, up to the next answer of each conversation.

        Args:
          conversations: the messages of each.
          encoder: the model has an encoder, which reads the conversation.
          tools: those of each conversation; None: there are none.
        """
        asked = list(map(self.prompt, conversations, tools or [None] * len(conversations)))
        if not encoder:
            return {"prompts": asked, "sources": None}
        return {"prompts": [[self._start_id]] * len(asked), "sources": [[*ids, self._eot_id] for ids in asked]}

    def _pieces(self, messages: Sequence[Message], prompt: bool, tools: Tools) -> list[Piece]:
        """Returns the rendered pieces; raises a ValueError if the template would drop a part of the conversation."""
        template = self._with_tools if tools else self._template
        found = [("tools", '"tools"')] if tools else []
        for number, message in enumerate(messages, 1):
            if message["role"] == "tool":
                found.append(("tool", f"the role 'tool' of message {number}"))
            fields = [name for name, value in message.items() if value not in ("", [], {}) and name not in _KNOWN]
            found += [(name, f'"{name}" of message {number}') for name in fields]
        if lost := next((what for name, what in found if name not in template.names), None):
            raise ValueError(
                f"{lost} is not read by the chat template; remove it from the data, or set config.data.chat.template "
                "to a template that reads it ('tokenizer', if the tokenizer's own template does)"
            )
        return template.render(self._with_system(messages), prompt, tools)

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self._system and messages[0]["role"] != "system":
            return [{"role": "system", "content": self._system}, *messages]
        return messages

    def _working(self) -> list[str]:
        return [name for name, template in TEMPLATES.items() if all(map(self._encoder.has, template.markers))]


def own_templates(tokenizer: Tokenizer) -> dict[str, str]:
    """Returns a tokenizer's own Jinja templates by name.

    The names are 'default', and 'tool_use' if there is a template for conversations with tools. The result is empty if
    there is no default.
    """
    given = tokenizer.special.tokenizer_config.get("chat_template") or {}
    if isinstance(given, list):
        given = {item["name"]: item["template"] for item in given}
    given = {"default": given} if isinstance(given, str) else given
    return {name: given[name] for name in ("default", "tool_use") if name in given} if given.get("default") else {}
