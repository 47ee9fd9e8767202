"""Converts a conversation to pieces with the tokenizer's own chat template (chat_template in tokenizer_config.json).

During rendering, characters of Unicode's private use area mark the ends of answers, and both ends of users' texts.

A special token's name in the rendered text is a token if the template wrote it, and text if it comes from a message. To
tell them apart, names in messages get a mark inside (_APART) before rendering. But a template may have its own rules
for a name in an answer: Qwen3's template removes <think> ... </think> and writes its own thought instead. Such a name
stays unmarked, so the template can handle it. It is found by experiment: if it is marked, the template renders
something else.

If a template has no {% generation %} blocks, an answer is the text after the prompt that asks for it, up to the token
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
_FEW = 16  # up to this many names are tested one by one; a thought has few, and bisecting would only cost extra renders
_OWN = ("input", "train")  # fields of messages that templates don't see
_UNCLEAR = (
    "the tokenizer's chat template renders an answer differently from what its prompt and the rest of the conversation "
    "show, so it is unclear which text to train on; put the template's answers into {% generation %} blocks, or set "
    "config.data.chat.template to a template by name"
)
_UNASKED = (
    "the tokenizer's chat template renders the prompt for answer {} of the conversation (add_generation_prompt) "
    "differently from the text before that answer, so it is unclear which text to train on; exclude the answer from "
    'training ("train": false in its message), or set config.data.chat.template to a template by name'
)

Show = Callable[[Sequence[Message], bool], str]  # (messages, whether to prompt for the next answer) -> text


class JinjaTemplate:
    """Renders conversations as pieces with a Jinja template.

    Args:
      text: the template.
      specials: names of the tokenizer's special tokens; a name that the template itself writes becomes that token.
      variables: names that the template may use (bos_token, eos_token, ...).

    Attributes:
      names: as in `Program`.

    Raises:
      DataError: the template has a syntax error.
    """

    def __init__(self, text: str, specials: Sequence[str], variables: Mapping[str, str]):
        self._program = Program(text, variables)
        self.names = self._program.names
        self._marks_answers = re.search(r"\{%[-+]?\s*generation\b", text) is not None
        # A mark needs room inside a name, so names of one character are never tokens.
        names = sorted((name for name in specials if len(name) > 1), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def render(self, messages: Sequence[Message], prompt: bool, tools: Sequence[Mapping] | None = None) -> list[Piece]:
        """Returns the pieces of a conversation.

        Args:
          messages: the conversation.
          prompt: end with the prompt for the next answer.
          tools: JSON schemas of tools that answers may call.

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
        """Returns which characters are users' text; none are if marks in a message change the rendered text."""
        edged = lambda text: re.sub(r"\S(.*\S)?", lambda found: f"{_EDGE}{found[0]}{_EDGE}", text, flags=re.DOTALL)
        asked = [{**m, "content": edged(m["content"])} if m["role"] == "user" else m for m in messages]
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
        """Returns where the trained answers begin and end, for a template without {% generation %} blocks.

        A template may render the text of an earlier answer differently from that of the last one (Qwen3 drops its
        thought), but not the text after it. So rendering it as the last answer shows how its turn ends.
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
            if names:  # the first one ends the turn; after tool calls, which write tokens of their own, the last one
                tail = tail[: names[-1 if ended[i].get("tool_calls") else 0].end()]
            if begin is None or begin > stop or not text.startswith(tail, stop):
                raise ValueError(_UNCLEAR)
            spans.append((begin, stop + len(tail)))
        return spans

    def _written(self, messages: Sequence[Message], show: Callable[[Sequence[Message]], str]) -> list[Message]:
        """Returns the messages with marks in all names of special tokens, except those the template has rules for."""
        answer = lambda message: message["role"] == "assistant"
        texts: list[str] = []

        def collected(text: str) -> str:
            texts.append(text)
            return text

        for message in filter(answer, messages):
            _changed(message, collected)
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
            """Returns the names of the group that the template only copies."""
            try:
                if shown(all_of_them - group) == whole:
                    return group
            except ValueError:  # the template refuses the marked name, so it has a rule for it
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
                "it is unclear which of them are text; remove those that are meant as text"
            )
        return written(left)

    def _apart(self, text: str) -> str:
        if _KEPT.search(text):
            raise ValueError(f"a message has a character from {BEGIN!r} to {_STOP!r}, which are reserved for marks")
        while self._names.search(text):  # repeated, because a name may begin inside another one
            text = self._names.sub(lambda found: found[0][0] + _APART + found[0][1:], text)
        return text

    def _apart_but(self, text: str, left: frozenset[int], numbers: Iterator[int]) -> str:
        """Returns the text with marks in all names except those whose numbers are in `left`."""
        parts: list[str] = []
        place = 0
        for found in self._names.finditer(text):
            if next(numbers) in left:
                parts += [self._apart(text[place : found.start()]), found[0]]
                place = found.end()
        return "".join([*parts, self._apart(text[place:])])


def _stops(text: str, messages: Sequence[Message], prompt: bool, show: Show) -> tuple[list[Message], list[int]]:
    """Returns the messages with marks at the ends of answers, and the places of these ends in the rendered text.

    There are no places if the marks change the rendered text.
    """
    answer = lambda message: message["role"] == "assistant"
    for core in (str.rstrip, str):  # some templates strip answers, and some strip the text after a thought
        ended = [_ended(m, core) if answer(m) else m for m in messages]
        try:
            *parts, rest = _BLOCK.sub("", show(ended, prompt)).split(_STOP)
        except ValueError:
            continue
        if "".join(parts) + rest == text and len(parts) == sum(map(answer, messages)):
            return ended, list(itertools.accumulate(map(len, parts)))
    return ended, []


def _begins(text: str, messages: Sequence[Message], stops: Sequence[int], prompt: bool, show: Show):
    """Yields where generation of each answer would begin in the rendered text.

    That is where the prompt for the answer ends. If the template renders the text before it differently once other
    messages follow (Qwen3 drops thoughts), the end of the prompt is searched after the previous answer. None: no prompt
    matches, and the answer is not trained on.
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
    """Returns where the {% generation %} blocks of trained answers begin and end."""
    edges = [0, *itertools.accumulate(map(len, _BLOCK.split(marked)))]  # of text, block, text, ..., block, text
    spans = list(zip(edges[1::2], edges[2::2], strict=False))
    wanted = [answer.get("train", True) for answer in answers]
    if all(wanted):
        return spans
    if len(spans) != len(answers):
        raise ValueError(
            f"the tokenizer's chat template writes {len(spans)} {{% generation %}} blocks for {len(answers)} answers, "
            "so it is unclear which of them not to train on"
        )
    return [span for span, own in zip(spans, wanted, strict=True) if own]


def _ended(message: Message, core: Callable[[str], str]) -> Message:
    """Returns an answer with a mark at the end of its text's `core`, or of the name in its last tool call."""
    if not message.get("tool_calls"):
        content = message["content"]
        end = len(core(content))
        return {**message, "content": content[:end] + _STOP + content[end:]}
    *others, last = message["tool_calls"]
    function = last.get("function", last)
    function = function | {"name": function["name"] + _STOP}
    return {**message, "tool_calls": [*others, last | {"function": function} if "function" in last else function]}


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Returns the value with all strings in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): _changed(own, change) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(own, change) for own in value]
    return value
