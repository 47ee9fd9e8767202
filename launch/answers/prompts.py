"""What a model is given to continue: a text, or where it was tuned on examples, a question as they had it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from data.examples import kinds, pairs
from data.examples.chat import Chat
from data.examples.conversations import trained_answers
from data.examples.example import cut_end, cut_prompt
from data.tokens.tokenizer import Tokenizer
from launch.program.checking import ConfigError
from launch.run import models


class Inputs(NamedTuple):
    prompts: list[list[int]]
    sources: list[list[int]] | None  # what an encoder reads
    ends: tuple[int, ...]  # tokens that end an answer
    answers: bool  # what follows stands alone; else it goes on with the prompt
    lead: str = ""  # what the template of a conversation writes before an answer's own text
    keeps_start: bool = False  # what is too long loses its end, before the last id
    prefix: int = 0  # how many ids of each prompt, or source, are no text but those of prompt tuning

    def continuation(self, tokenizer: Tokenizer, ids: Sequence[int]) -> str:
        """The text of new ids; of an answer its own text alone."""
        if len(ids) and ids[-1] in self.ends:  # not all tokens that end an answer are left out in decoding
            ids = ids[:-1]
        gaps = self.sources is not None and not self.answers
        return tokenizer.decode_spans(ids) if gaps else tokenizer.decode(ids).removeprefix(self.lead)

    def whole(self, tokenizer: Tokenizer, number: int, ids: Sequence[int]) -> str:
        """New ids with the prompt that they go on with, where they do."""
        if self.answers or self.sources is not None:
            return self.continuation(tokenizer, ids)
        return tokenizer.decode([*self.prompts[number][self.prefix :], *ids])

    def cut(self, length: int, source_length: int, begin: int | None) -> "Inputs":
        """The same with at most so many ids of each prompt and source, cut as in training."""
        part = lambda ids, length: cut_end(ids, length) if self.keeps_start else cut_prompt(ids, length, begin)
        short = lambda rows, length: [part(np.asarray(row), length).tolist() for row in rows]
        sources = None if self.sources is None else short(self.sources, source_length)
        return self._replace(prompts=short(self.prompts, length), sources=sources)

    def behind(self, prefix: Sequence[int]) -> "Inputs":
        """The same behind these ids."""
        before = lambda rows: [[*prefix, *row] for row in rows]
        if self.sources is not None:
            return self._replace(sources=before(self.sources))
        return self._replace(prompts=before(self.prompts), prefix=len(prefix))


def inputs(
    config: ConfigDict, tokenizer: Tokenizer, texts: Sequence[str], encoder: bool, system: str = "", raw: bool = False
) -> Inputs:
    """The prompts of a run with the recorded `config`: wrapped as a question where it was tuned on conversations, with
    the prefix where on pairs of texts, and as they are with `raw` or after training on text alone."""
    return _inputs(config, tokenizer, texts, encoder, system, raw).behind(models.prefix(config))


def _inputs(config, tokenizer: Tokenizer, texts: Sequence[str], encoder: bool, system: str, raw: bool) -> Inputs:
    kind = kinds.TEXT if raw else trained_on(config)
    if system and kind != "chat":
        raise ConfigError(
            "--system is for models tuned on conversations" + (", and not for --raw" if raw else "; leave it out")
        )
    ends = tokenizer.special.end
    if kind == kinds.TEXT:
        return Inputs(**tokenizer.inputs(texts, encoder), ends=ends, answers=False)
    if kind == "pairs":
        return _asked(config, tokenizer, kind, texts, encoder)
    start = [{"role": "system", "content": system}] if system else []
    questions = [[*start, {"role": "user", "content": text}] for text in texts]
    try:
        return _asked(config, tokenizer, kind, questions, encoder)
    except ValueError as error:
        raise ConfigError(f"the prompt can't be written as a question: {error}") from error


def of_examples(
    config: ConfigDict, tokenizer: Tokenizer, kind: str, records: Sequence[Mapping[str, Any]], encoder: bool
) -> Inputs:
    """What stood in training before the last answer of each record of 'chat' or 'pairs', whole and without a prefix."""
    asked = lambda messages: messages[: trained_answers(messages)[-1]]
    questions = [record["source"] if kind == "pairs" else asked(record["messages"]) for record in records]
    return _asked(config, tokenizer, kind, questions, encoder, [record.get("tools") for record in records])


def reference(config: ConfigDict, tokenizer: Tokenizer, record: Mapping[str, Any]) -> str:
    """The last answer of a conversation's record that is trained on: its text; where thoughts or calls of tools stand
    beside that, all that a model would say."""
    messages, tools = record["messages"], record.get("tools")
    last = trained_answers(messages)[-1]
    answer = messages[last]
    if not answer.get("reasoning_content") and not answer.get("tool_calls"):
        return answer["content"]
    chat = Chat(tokenizer, kinds.checked(config.data)["chat"])
    ids, trained, _ = chat.encode(messages[: last + 1], tools)
    begin = len(chat.prompt(messages[:last], tools))
    given = Inputs([], None, chat.ends, answers=True, lead=chat.lead)
    return given.continuation(tokenizer, ids[begin:][trained[begin:]].tolist())


def _asked(
    config, tokenizer: Tokenizer, kind: str, questions: Sequence, encoder: bool, tools: Sequence | None = None
) -> Inputs:
    settings = kinds.checked(config.data)[kind]
    if kind == "pairs":
        given = pairs.inputs(tokenizer, settings, questions, encoder)
        return Inputs(**given, ends=tokenizer.special.end, answers=True, keeps_start=True)
    chat = Chat(tokenizer, settings)
    return Inputs(**chat.inputs(questions, encoder, tools), ends=chat.ends, answers=True, lead=chat.lead)


def trained_on(config: ConfigDict) -> str:
    """'chat' or 'pairs' where a run has such a source (the first of the two), else text."""
    found = {kinds.kind_of(spec) for spec, weight in kinds.sources(config.data) if weight}
    return next((kind for kind in ("chat", "pairs") if kind in found), kinds.TEXT)
