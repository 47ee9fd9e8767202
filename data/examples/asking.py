"""How a kind of examples asks a model: what it is given is what stood before an answer in training.

A question is what a kind makes of a record or of a user's text; only the kind looks into it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data.tokens.templates import Message
from data.tokens.tokenizer import Tokenizer


class Prompts(NamedTuple):
    """Questions as ids, whole and without those of prompt tuning."""

    prompts: list[list[int]]  # what the model continues
    sources: list[list[int]] | None  # what an encoder reads
    ends: tuple[int, ...]  # ids that end an answer
    lead: str = ""  # what a template writes before an answer's own text, as part of it
    keeps_start: bool = False  # a question that is too long loses its end, before the last id, and not its beginning

    def answer(self, tokenizer: Tokenizer, ids: Sequence[int]) -> str:
        """The text that a model said by these ids."""
        if len(ids) and ids[-1] in self.ends:  # not all tokens that end an answer are left out in decoding
            ids = ids[:-1]
        return tokenizer.decode(ids).removeprefix(self.lead)


class Asking(NamedTuple):
    """What a kind whose examples are answered in words has; its answers to held-out records can be graded."""

    question: Callable[[dict], Any]  # of a parsed record: what it asks last; None where it asks for no answer
    # (what a user says, system text) -> question; ValueError where it can't be one
    of_text: Callable[[str, str], Any]
    # (messages, tools) -> question; ValueError where they are no conversation that asks for an answer
    of_messages: Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], Any]
    # (settings, tokenizer, questions, encoder); ValueError where one can't be written out
    prompts: Callable[[Mapping[str, Any], Tokenizer, Sequence[Any], bool], Prompts]
    shown: Callable[[Any], str]  # a question, as a person reads it
    # (settings, tokenizer, parsed record) -> the answer in the record, which a model's is compared with
    reference: Callable[[Mapping[str, Any], Tokenizer, dict], str]
    # (settings, tokenizer, encoder) -> the tokenizer with how questions are written, for other libraries to do so too;
    # DataError where they would make other tokens of them
    hand_on: Callable[[Mapping[str, Any], Tokenizer, bool], Tokenizer] = lambda settings, tokenizer, encoder: tokenizer
