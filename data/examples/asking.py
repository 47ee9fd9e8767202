"""How a kind of examples asks a model: the prompt equals what came before an answer in training.

A question is any object that a kind makes from a record or from a user's text; only the kind looks inside it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data.tokens.templates import Message
from data.tokens.tokenizer import Tokenizer


class Prompts(NamedTuple):
    """Questions as ids, uncut and without the ids of prompt tuning."""

    prompts: list[list[int]]  # the ids that the decoder continues
    sources: list[list[int]] | None  # the ids that the encoder reads; None: there is no encoder
    ends: tuple[int, ...]  # ids that end an answer
    lead: str = ""  # text that the template puts at the start of an answer, before its own text
    keeps_start: bool = False  # a question that is too long is cut before its last id, instead of at its start

    def answer(self, tokenizer: Tokenizer, ids: Sequence[int]) -> str:
        """Returns the text of a generated answer, without its end token and its lead."""
        if len(ids) and ids[-1] in self.ends:  # `decode` skips special tokens, but an end token may be an ordinary one
            ids = ids[:-1]
        return tokenizer.decode(ids).removeprefix(self.lead)


class Asking(NamedTuple):
    """The functions of a kind whose answers are text; its answers to held-out records can be graded."""

    question: Callable[[dict], Any]  # parsed record -> its last question; None if it asks for no answer
    # (user's text, system text) -> question; ValueError if they can't be one
    of_text: Callable[[str, str], Any]
    # (messages, tools) -> question; ValueError if they are no conversation that asks for an answer
    of_messages: Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], Any]
    # (settings, tokenizer, questions, encoder) -> prompts; ValueError if a question can't be encoded
    prompts: Callable[[Mapping[str, Any], Tokenizer, Sequence[Any], bool], Prompts]
    shown: Callable[[Any], str]  # question -> text for a person to read
    # (settings, tokenizer, parsed record) -> the record's own answer, which the model's answer is compared with
    reference: Callable[[Mapping[str, Any], Tokenizer, dict], str]
