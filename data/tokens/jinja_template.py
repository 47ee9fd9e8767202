"""The chat template that a tokenizer brings along (tokenizer_config.json's chat_template): a conversation as pieces.

Characters of Unicode's private use mark, while a template is rendered, where answers end and where what users say
begins and ends.

Of the special tokens in the text that a template writes, those that it writes itself are tokens, and those that someone
wrote in a message are text. A mark inside a name (_APART) keeps the latter apart. But a template may have rules for
a name in an answer: Qwen3's takes <think> ... </think> out of it and writes a thought of its own in its place. Such a
name is left to the template. It is found by experiment: with the mark in it, the template writes something else.

Where a template has no {% generation %} blocks, an answer is what follows the prompt that asks for it, up to the token
that ends the turn.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np

from data.tokens.jinja_environment import BEGIN, END, Program
from data.tokens.templates import Message, Piece

_EDGE, _APART, _STOP = "\ue0f2", "\ue0f3", "\ue0f4"
_KEPT = re.compile(f"[{BEGIN}-{_STOP}]")
_BLOCK = re.compile(f"[{BEGIN}{END}]")
_FEW = 16  # names that are tried one by one: of a thought none is copied, so halves would be tried for nothing
_OWN = ("input", "train")  # fields of messages that no template is given
_UNCLEAR = (
    "the tokenizer's chat template writes an answer otherwise than its prompt and the rest of the conversation lead to "
    "expect, so what is to be trained on can't be told; put the answers of the template into {% generation %} blocks, "
    "or set config.data.chat.template to a template by name"
)
_UNASKED = (
    "the tokenizer's chat template asks for answer {} of the conversation (add_generation_prompt) in another way than "
    "it writes what stands before that answer, so what a model is to be trained on for it can't be told; leave the "
    'answer out of the training ("train": false in its message), or set config.data.chat.template to a template by name'
)

Show = Callable[[Sequence[Message], bool], str]  # (messages, whether the next answer is to follow) -> text


class JinjaTemplate:
    """Conversations as pieces, by the text of a template.

    Args:
      specials: names of the tokenizer's special tokens, which are tokens where the template writes them.
      variables: further names that the template may use (bos_token, eos_token, ...).

    Attributes:
      names: what the template looks at by name.
    """

    def __init__(self, text: str, specials: Sequence[str], variables: Mapping[str, str]):
        self._program = Program(text, variables)
        self.names = self._program.names
        self._marks_answers = re.search(r"\{%[-+]?\s*generation\b", text) is not None
        # A name of one character could not be kept apart from text.
        names = sorted((name for name in specials if len(name) > 1), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def render(self, messages: Sequence[Message], prompt: bool, tools: Sequence[Mapping] | None = None) -> list[Piece]:
        """The pieces of a conversation; with `prompt` the next answer is to follow.

        Raises:
          ValueError: the template refuses the conversation, or doesn't show where its answers are.
        """
        tools = _changed(tools, self._apart)
        show = lambda messages, prompt: self._program(
            messages=[{name: value for name, value in message.items() if name not in _OWN} for message in messages],
            add_generation_prompt=prompt,
            tools=tools,
        )
        messages = self._written(messages, partial(show, prompt=prompt))
        marked = show(messages, prompt)
        text = _BLOCK.sub("", marked)
        ended, stops = _stops(text, messages, prompt, show)
        begins = list(_begins(text, messages, stops, prompt, show))
        if prompt:
            spans = []
        elif self._marks_answers:
            spans = _blocks(marked, [message for message in messages if message["role"] == "assistant"])
        else:
            spans = self._spans(text, ended, begins, stops, show)
        return self._pieces(text, spans, self._content(text, messages, prompt, show), {*begins} - {None})

    def _pieces(self, text: str, spans, content: list[bool], begins: set[int]) -> list[Piece]:
        answer = np.zeros(len(text), bool)
        for begin, end in spans:
            answer[begin:end] = True
        names = {found.span() for found in self._names.finditer(text)}
        edges = np.flatnonzero(np.diff([answer, content]).any(0)) + 1
        places = sorted({0, len(text), *edges.tolist(), *begins, *chain.from_iterable(names)})
        return [
            Piece(
                text[begin:end].replace(_APART, ""),
                (begin, end) in names,
                bool(answer[begin]),
                content[begin],
                begin in begins,
            )
            for begin, end in pairwise(places)
        ]

    def _content(self, text: str, messages: Sequence[Message], prompt: bool, show: Show) -> list[bool]:
        """Which characters users said; none where a template makes something else of a message with marks in it."""
        edged = lambda text: re.sub(r"\S(.*\S)?", lambda found: f"{_EDGE}{found[0]}{_EDGE}", text, flags=re.DOTALL)
        asked = [m | {"content": edged(m["content"])} if m["role"] == "user" else m for m in messages]
        try:
            parts = _BLOCK.sub("", show(asked, prompt)).split(_EDGE)  # text, question, text, ..., question, text
        except ValueError:
            parts = []
        if "".join(parts) != text:
            return [False] * len(text)
        return [i % 2 == 1 for i, part in enumerate(parts) for _ in part]

    def _spans(
        self, text: str, ended: Sequence[Message], begins: Sequence[int | None], stops: Sequence[int], show: Show
    ):
        """Where the answers that are trained on begin and end, of a template that doesn't say so.

        What stands in an answer may be written otherwise than when it was the last one (Qwen3 then drops the thought),
        but not what follows it: as the last one it shows how its turn ends.
        """
        places = [i for i, message in enumerate(ended) if message["role"] == "assistant"]
        if len(stops) != len(places):
            raise ValueError(_UNCLEAR)
        spans = []
        for i, begin, stop in zip(places, begins, stops, strict=True):
            if not ended[i].get("train", True):
                continue
            tail = _BLOCK.sub("", show(ended[: i + 1], False)).rpartition(_STOP)[2]
            names = list(self._names.finditer(tail))
            if names:  # behind calls of tools, whose own tokens come before it, the last one ends the turn
                tail = tail[: names[-1 if ended[i].get("tool_calls") else 0].end()]
            if begin > stop or not text.startswith(tail, stop):
                raise ValueError(_UNCLEAR)
            spans.append((begin, stop + len(tail)))
        return spans

    def _written(self, messages: Sequence[Message], show: Callable[[Sequence[Message]], str]) -> list[Message]:
        """The messages with all names of special tokens kept apart, but for those in answers for which the template
        has a rule."""
        answer = lambda message: message["role"] == "assistant"
        texts: list[str] = []
        for message in filter(answer, messages):
            _changed(message, lambda text: texts.append(text) or text)
        all_of_them = frozenset(range(sum(len(self._names.findall(text)) for text in texts)))

        def written(left: frozenset[int]) -> list[Message]:
            numbers = itertools.count()
            own = partial(self._apart_but, left=left, numbers=numbers)
            return [_changed(m, own if answer(m) else self._apart) for m in messages]

        if not all_of_them:
            return written(all_of_them)
        shown = lambda left: show(written(left)).replace(_APART, "")
        whole = shown(all_of_them)

        def copied(group: frozenset[int]) -> frozenset[int]:
            """Those that the template only copies."""
            try:
                if shown(all_of_them - group) == whole:
                    return group
            except ValueError:  # it refuses what it would not write otherwise
                pass
            if len(group) == 1:
                return frozenset()
            order, size = sorted(group), 1 if len(group) <= _FEW else len(group) // 2
            parts = (frozenset(order[i : i + size]) for i in range(0, len(order), size))
            return frozenset().union(*map(copied, parts))

        left = all_of_them - copied(all_of_them)
        if shown(left) != whole:
            raise ValueError(
                "the tokenizer's chat template has rules for special tokens in an answer that depend on each other, so "
                "which of them it writes can't be told; take those that are meant as text out"
            )
        return written(left)

    def _apart(self, text: str) -> str:
        if _KEPT.search(text):
            raise ValueError(f"a message has a character from {BEGIN!r} to {_STOP!r}, which are kept for marks here")
        while self._names.search(text):  # again, where one name begins inside another
            text = self._names.sub(lambda found: found[0][0] + _APART + found[0][1:], text)
        return text

    def _apart_but(self, text: str, left: frozenset[int], numbers: Iterator[int]) -> str:
        """Kept apart are all names but those of these numbers."""
        parts, place = [], 0
        for found in self._names.finditer(text):
            if next(numbers) in left:
                parts += [self._apart(text[place : found.start()]), found[0]]
                place = found.end()
        return "".join([*parts, self._apart(text[place:])])


def _stops(text: str, messages: Sequence[Message], prompt: bool, show: Show) -> tuple[list[Message], list[int]]:
    """(the messages with marks at the ends of answers, where these ends are in a text); the latter empty where the
    template makes something else of such messages."""
    answer = lambda message: message["role"] == "assistant"
    for core in (str.rstrip, str):  # some templates strip answers, and some strip what stands behind a thought
        ended = [_ended(m, core) if answer(m) else m for m in messages]
        try:
            *parts, rest = _BLOCK.sub("", show(ended, prompt)).split(_STOP)
        except ValueError:
            continue
        if "".join(parts) + rest == text and len(parts) == sum(map(answer, messages)):
            return ended, list(itertools.accumulate(map(len, parts)))
    return ended, []


def _begins(text: str, messages: Sequence[Message], stops: Sequence[int], prompt: bool, show: Show):
    """Where a model that is asked for them begins each of the answers in a text. None: it is never asked so, for one
    that is not trained on.

    That is where the prompt ends that asks for the answer. What stands before the answer may be written otherwise once
    others follow it (Qwen3 then drops thoughts): there the prompt's own last words are looked for, behind the answer
    before.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    begin = 0
    for number, i in enumerate(answers):
        asked = _BLOCK.sub("", show(messages[:i], True))
        if text.startswith(asked) and len(asked) >= begin:
            begin = len(asked)
        else:
            last_words = asked.removeprefix(_BLOCK.sub("", show(messages[:i], False)))
            before, stop = ([0, *stops][number], stops[number]) if stops else (0, 0)
            place = text.rfind(last_words, before, stop)
            if not 0 < len(last_words) < len(asked) or place < 0:
                if prompt or not messages[i].get("train", True):
                    yield None
                    continue
                raise ValueError(_UNASKED.format(number + 1))
            begin = place + len(last_words)
        yield begin


def _blocks(marked: str, answers: Sequence[Message]) -> list[tuple[int, int]]:
    """Where {% generation %} blocks begin and end, those of answers that are trained on."""
    edges = [0, *itertools.accumulate(map(len, _BLOCK.split(marked)))]  # of text, block, text, ..., block, text
    spans = list(zip(edges[1::2], edges[2::2], strict=False))
    wanted = [answer.get("train", True) for answer in answers]
    if all(wanted):
        return spans
    if len(spans) != len(answers):
        raise ValueError(
            f"the tokenizer's chat template writes {len(spans)} {{% generation %}} blocks for {len(answers)} answers, "
            "so those that are not to be trained on can't be told from the others"
        )
    return [span for span, own in zip(spans, wanted, strict=True) if own]


def _ended(message: Message, core: Callable[[str], str]) -> Message:
    """An answer with a mark at its end: of the `core` of what it says, or of its last call's name."""
    if not message.get("tool_calls"):
        content = message["content"]
        end = len(core(content))
        return message | {"content": content[:end] + _STOP + content[end:]}
    *others, last = message["tool_calls"]
    function = last.get("function", last)
    function = function | {"name": function["name"] + _STOP}
    return message | {"tool_calls": [*others, last | {"function": function} if "function" in last else function]}


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """The value with all texts in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): _changed(own, change) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(own, change) for own in value]
    return value
