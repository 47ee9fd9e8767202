"""Turns requests into completions, and checks them against the model's limits before anything compiles or runs.

A server can therefore refuse a single request. Errors are ValueErrors that use the names of Request's fields; programs
add the names of their flags.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from data.examples import kinds
from data.examples.asking import Asking, Prompts
from data.examples.example import cut_end, cut_prompt
from data.tokens.tokenizer import Tokenizer
from launch.answers.completion import Completion, Request
from launch.run import models
from model.config import ModelConfig
from model.decode.generate import check


class Completer:
    """Writes requests in the form that a model was tuned on.

    Args:
      config: the recorded config of the model's run, which says what it was tuned on, and with which template.
      tokenizer: of the model.
      model: its architecture.
      known: number of ids that have a vector (model.inputs.tokens.rows); 0: the vocabulary size.
      adapters: the recorded configs of its adapters' runs; each may have been tuned on other data.
    """

    def __init__(
        self,
        config: ConfigDict,
        tokenizer: Tokenizer,
        model: ModelConfig,
        known: int = 0,
        adapters: Sequence[ConfigDict] = (),
    ):
        self._config, self._adapters, self.tokenizer = config, adapters, tokenizer
        self._model, self._known = model, known
        self._encoder = model.architecture == "encoder_decoder"

    def completions(self, requests: Sequence[Request]) -> list[Completion]:
        """Returns the requests as completions, in their order. Nothing is cut.

        Raises:
          ValueError: the model's run has no form for a request, the template refuses it, the messages are not a
            conversation, there are more tokens than the model has room for, or the adapter does not exist.
          DataError: the tokenizer lacks tokens that the template or the text needs.
        """
        made = self.written(requests)
        self.check(made)
        return made

    def written(self, requests: Sequence[Request]) -> list[Completion]:
        """As `completions`, but without a look at the model's limits (see `check` and `fits`)."""
        alike: dict[tuple, list[int]] = {}  # requests of one form together, so that each template is compiled once
        for number, request in enumerate(requests):
            alike.setdefault((request.adapter, request.raw), []).append(number)
        found: dict[int, Completion] = {}
        for (adapter, raw), numbers in alike.items():
            config = self._config_of(adapter)
            kind = kinds.TEXT if raw else kinds.asked(config.data)
            own = [requests[number] for number in numbers]
            if kind == kinds.TEXT:
                written = self._texts(own)
            else:
                written = self._questions(config, kind, [_question(request, kind) for request in own])
            found |= zip(numbers, self._behind(written, own, config, kind != kinds.TEXT), strict=True)
        return [found[number] for number in range(len(requests))]

    def check(self, made: Sequence[Completion]) -> None:
        """Raises a ValueError if the model can't generate a completion (model/decode/generate.py)."""
        sources = [completion.source for completion in made] if self._encoder else None
        limits = [completion.request.max_new_tokens for completion in made]
        prompts = [completion.prompt for completion in made]
        check(prompts, limits, self.tokenizer.vocab_size, self._model, sources, self._known)

    def fits(self, one: Completion) -> bool:
        """Returns whether the model's context has room for a completion."""
        longest = max(len(one.prompt) + one.request.max_new_tokens, len(one.source or ()))
        return longest <= self._model.max_length

    def of_records(self, kind: str, records: Sequence[dict], seq_len: int, max_new_tokens: int) -> list[Completion]:
        """Returns the last questions of records as completions, cut to rows of `seq_len` tokens as in training.

        Args:
          kind: the kind of the examples (kinds.KINDS).
          records: the examples; each must ask (Asking.question).
          seq_len: length of a row, in tokens.
          max_new_tokens: upper limit of an answer's length; `room` must be at least 1 for it.
        """
        prefix, room = models.prefix(self._config), self.room(seq_len, max_new_tokens)
        asking = asking_of(kind)
        whole = self._questions(self._config, kind, [asking.question(record) for record in records])
        begin = self.tokenizer.special.begin
        part = lambda ids, n: cut_end(ids, n) if whole.keeps_start else cut_prompt(ids, n, begin)
        short = lambda rows, n: [part(np.asarray(row), n).tolist() for row in rows]
        sources = None if whole.sources is None else short(whole.sources, seq_len - len(prefix))
        written = whole._replace(prompts=short(whole.prompts, room), sources=sources)
        read = lambda given: given.prompts if given.sources is None else given.sources
        requests = [Request("", max_new_tokens=max_new_tokens)] * len(records)
        made = self._behind(written, requests, self._config, True)
        pairs = zip(made, read(whole), read(written), strict=True)
        return [dataclasses.replace(one, cut=before != after) for one, before, after in pairs]

    def room(self, seq_len: int, max_new_tokens: int) -> int:
        """Returns how many tokens a prompt of `of_records` may have; below 1 if there is no room for a prompt."""
        return min(seq_len, self._model.max_length - max_new_tokens) - len(models.prefix(self._config))

    def _config_of(self, adapter: int | None) -> ConfigDict:
        if adapter is None:
            return self._config
        if not 0 <= adapter < len(self._adapters):
            raise ValueError(f"there is no adapter {adapter}; the model has {len(self._adapters)}, counted from 0")
        return self._adapters[adapter]

    def _texts(self, requests: Sequence[Request]) -> Prompts:
        texts: list[str] = []
        for request in requests:
            given = "a system text is" if request.system else "messages are"
            if request.system or not isinstance(request.prompt, str):
                if request.raw:
                    raise ValueError(
                        f"{given} for questions, but the prompt is to be continued as it is; give a text alone"
                    )
                raise ValueError(f"{given} for models that were tuned on conversations; give a text alone")
            texts.append(request.prompt)
        return Prompts(**self.tokenizer.inputs(texts, self._encoder), ends=self.tokenizer.special.end)

    def _questions(self, config: ConfigDict, kind: str, questions: Sequence) -> Prompts:
        settings, asking = kinds.checked(config.data)[kind], asking_of(kind)
        try:
            return asking.prompts(settings, self.tokenizer, questions, self._encoder)
        except ValueError as error:
            raise ValueError(f"the prompt can't be written as a question: {error}") from error

    def _behind(self, written: Prompts, requests: Sequence[Request], config: ConfigDict, answers: bool):
        """Yields completions, with the ids of prompt tuning before their prompts or sources."""
        prefix = models.prefix(config)
        for number, request in enumerate(requests):
            prompt, source = written.prompts[number], None
            if written.sources is None:
                prompt = [*prefix, *prompt]
            else:
                source = [*prefix, *written.sources[number]]
            ends = (*written.ends, *request.stop)
            form = written._replace(prompts=[], sources=None, ends=ends)
            yield Completion(request, prompt, source, ends, answers, form, len(prefix), self.tokenizer)


def asking_of(kind: str) -> Asking:
    """Returns how examples of a kind are turned into questions.

    Raises:
      ValueError: the kind has no questions.
    """
    asking = kinds.KINDS[kind].asking
    if asking is None:
        raise ValueError(f"examples of the kind {kind} have no questions with a text as answer")
    return asking


def _question(request: Request, kind: str):
    asking = asking_of(kind)
    if isinstance(request.prompt, str):
        return asking.of_text(request.prompt, request.system)
    if request.system:
        raise ValueError("a system text can't be given along with messages; make it the first message")
    return asking.of_messages(request.prompt, request.tools)
