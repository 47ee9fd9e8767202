"""Requests to a model as token ids, and its answers as text.

Request -> Completer (completer.py) -> Completion -> completed -> new ids -> Completion.text
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from data.examples.asking import Prompts
from data.tokens.templates import Message
from data.tokens.tokenizer import Tokenizer
from model.adapt.bank import holds_several
from model.decode.generate import generate
from model.decode.sampling import Settings

GREEDY = Settings()


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user asks of a model.

    Args:
      prompt: a text, or the messages of a conversation, {"role": ..., "content": ...}, without the answer.
      system: system text before a text prompt.
      raw: continue the text as it is, even if the model was tuned on questions.
      tools: functions that an answer to messages may call, as JSON schemas.
      max_new_tokens: upper limit of the answer's length.
      settings: sampling settings.
      stop: further ids that end the answer, besides the model's own.
      adapter: index of the adapter that answers, for a model with several; None: only the base.
    """

    prompt: str | Sequence[Message]
    system: str = ""
    raw: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    max_new_tokens: int = 100
    settings: Settings = GREEDY
    stop: tuple[int, ...] = ()
    adapter: int | None = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """A checked request as token ids.

    `prompt` is what the model continues, and `source` what its encoder reads, if it has one. `ends` are the ids that
    end the answer. If `answers`, the new text is an answer of its own; otherwise it continues the prompt. `cut` is
    true if the prompt was longer than the model can read.
    """

    request: Request
    prompt: list[int]
    source: list[int] | None
    ends: tuple[int, ...]
    answers: bool
    form: Prompts  # how to read an answer; its prompts are left out
    prefix: int  # number of ids before the text that belong to prompt tuning and have no text
    tokenizer: Tokenizer
    cut: bool = False

    def text(self, ids: Sequence[int]) -> str:
        """Returns the new ids as text, without their end id and without what a template puts before answers."""
        if self.source is None or self.answers:
            return self.form.answer(self.tokenizer, ids)
        return self.tokenizer.decode_spans(ids[:-1] if len(ids) and ids[-1] in self.ends else ids)

    def whole(self, ids: Sequence[int]) -> str:
        """Returns the prompt with its continuation, or an answer alone."""
        if self.answers or self.source is not None:
            return self.text(ids)
        kept = ids[:-1] if len(ids) and ids[-1] in self.request.stop else ids
        return self.tokenizer.decode([*self.prompt[self.prefix :], *kept])


def completed(model, batch: Sequence[Completion], key: jax.Array) -> list[list[int]]:
    """Generates all completions in one batch on the current mesh, and returns their new ids, each with its end id.

    Raises:
      ValueError: their sampling settings, limits or stop ids differ, or the model has no adapters to choose from.
    """
    requests = [completion.request for completion in batch]
    if len({(one.settings, one.max_new_tokens, one.stop) for one in requests}) != 1:
        raise ValueError("the requests of one batch must have the same sampling settings, max_new_tokens and stop ids")
    first = requests[0]
    several = holds_several(model)
    if any(request.adapter is not None for request in requests) and not several:
        raise ValueError("a request names an adapter, but the model has none to choose from")
    sources = [completion.source for completion in batch if completion.source is not None]
    adapters = [-1 if request.adapter is None else request.adapter for request in requests]
    out = generate(
        model,
        [completion.prompt for completion in batch],
        key,
        max_new_tokens=first.max_new_tokens,
        settings=first.settings,
        eos_id=sorted({end for completion in batch for end in completion.ends}),
        vocab_size=batch[0].tokenizer.vocab_size,
        sources=sources or None,
        adapters=adapters if several else None,
    )
    return [[int(i) for i in ids[:length]] for ids, length in zip(out.tokens, out.lengths, strict=True)]
