"""A completion: what a model is asked, as ids, and the text of what it says.

Request -> Completer (completer.py) -> Completion -> completed -> new ids -> Completion.text
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from data.examples.asking import Prompts
from data.tokens.templates import Message
from data.tokens.tokenizer import Tokenizer
from model.decode.generate import generate
from model.decode.sampling import Settings

GREEDY = Settings()


@dataclasses.dataclass(frozen=True)
class Request:
    """
    Args:
      prompt: a text; or the messages of a conversation, {"role": ..., "content": ...}, the last of which is no answer.
      system: of a text, what stands before it as the system's.
      raw: go on with the text as it is, whatever the model was tuned on.
      tools: functions that an answer to messages may call, as JSON schemas.
      settings: how tokens are drawn.
      stop: ids that end it, beside those that end any answer of the model.
      adapter: of a model with several adapters, the number of the one that answers; None: the model as it is.
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
    """A request as ids.

    `prompt` is what the model continues, `source` what its encoder reads, where it has one; `ends` the ids that end an
    answer. `answers`: the new text stands alone; else it goes on with the prompt. `cut`: less is read than was asked.
    """

    request: Request
    prompt: list[int]
    source: list[int] | None
    ends: tuple[int, ...]
    answers: bool
    form: Prompts  # how an answer is read; without questions
    prefix: int  # how many ids before the text are those of prompt tuning, which stand for none
    tokenizer: Tokenizer
    cut: bool = False

    def text(self, ids: Sequence[int]) -> str:
        """What new ids say, without a token that ends them; of an answer its own text alone."""
        if self.source is None or self.answers:
            return self.form.answer(self.tokenizer, ids)
        return self.tokenizer.decode_spans(ids[:-1] if len(ids) and ids[-1] in self.ends else ids)

    def whole(self, ids: Sequence[int]) -> str:
        """The same behind the prompt that it goes on with, where it does."""
        if self.answers or self.source is not None:
            return self.text(ids)
        kept = ids[:-1] if len(ids) and ids[-1] in self.request.stop else ids
        return self.tokenizer.decode([*self.prompt[self.prefix :], *kept])


def completed(model, batch: Sequence[Completion], key: jax.Array) -> list[np.ndarray]:
    """New ids of each completion, up to the one that ends it; all in one batch, on the mesh that is set.

    Raises:
      ValueError: they are not drawn alike, not as long or not stopped alike, or some have an adapter and some none.
    """
    requests = [completion.request for completion in batch]
    if len({(one.settings, one.max_new_tokens, one.stop, one.adapter is None) for one in requests}) != 1:
        raise ValueError(
            "one batch is drawn in one way, up to one length, with the same stop ids, and all with adapters or none"
        )
    first = requests[0]
    out = generate(
        model,
        [completion.prompt for completion in batch],
        key,
        max_new_tokens=first.max_new_tokens,
        settings=first.settings,
        eos_id=sorted({end for completion in batch for end in completion.ends}),
        vocab_size=batch[0].tokenizer.vocab_size,
        sources=None if batch[0].source is None else [completion.source for completion in batch],
        adapters=None if first.adapter is None else [request.adapter for request in requests],
    )
    return [ids[:length] for ids, length in zip(out.tokens, out.lengths, strict=True)]
