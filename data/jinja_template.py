"""The chat template that a tokenizer brings along (tokenizer_config.json's chat_template), rendered by Jinja.

The environment is transformers': sandboxed, with `raise_exception`, {% break %} and {% continue %}, and blocks
{% generation %} ... {% endgeneration %} that say what is trained on. `strftime_now` is always of 26 July 2024 (the date
that Llama 3.1's template writes where there is none), so that the same conversation gives the same rows on every day.

Characters of Unicode's private use mark, while a template is rendered, where answers and what users say begin and end,
and keep a name of a special token that someone wrote in a message apart from the token itself.
"""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise

import jinja2
import numpy as np
from jinja2 import ext, nodes, sandbox

from data.batch import DataError
from data.templates import Message, Piece

_BEGIN, _END, _EDGE, _APART = "\ue0f0", "\ue0f1", "\ue0f2", "\ue0f3"
DATE = datetime.datetime(2024, 7, 26)


def environment() -> sandbox.ImmutableSandboxedEnvironment:
    """What templates run in."""
    found = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    found.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    found.globals |= {"raise_exception": _raise, "strftime_now": DATE.strftime}
    return found


class _Generation(ext.Extension):
    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller) -> str:
        return _BEGIN + caller() + _END


class JinjaTemplate:
    """Conversations as pieces, by the text of a template.

    Args:
      specials: names of the tokenizer's special tokens, which are tokens where the template writes them.
      variables: further names that the template may use (bos_token, eos_token, ...).
    """

    def __init__(self, text: str, specials: Sequence[str], variables: Mapping[str, str]):
        try:
            self._template = environment().from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"The tokenizer's chat template is broken: line {error.lineno}: {error.message}."
            ) from error
        self._marks_answers = re.search(r"\{%-?\s*generation\b", text) is not None
        # A name of one character could not be kept apart from text.
        names = sorted((name for name in specials if len(name) > 1), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._variables = {"tools": None, "documents": None, **variables}

    def render(self, messages: Sequence[Message], prompt: bool) -> list[Piece]:
        """The pieces of a conversation; with `prompt` the next answer is to follow.

        Raises:
          ValueError: the template refuses the conversation, or doesn't show where its answers are.
        """
        messages = [dict(message) | {"content": self._as_text(message["content"])} for message in messages]
        text = self._rendered(messages, prompt)
        if not self._marks_answers and not prompt:
            text = self._with_marks(text, messages)
        parts = re.split(f"[{_BEGIN}{_END}]", text)
        text, answer = "".join(parts), _every_other(parts)
        content = self._content(text, messages, prompt)
        names = {found.span() for found in self._names.finditer(text)}
        edges = np.flatnonzero(np.diff([answer, content]).any(0)) + 1
        places = sorted({0, len(text), *edges.tolist(), *chain.from_iterable(names)})
        pieces = [
            Piece(text[begin:end].replace(_APART, ""), (begin, end) in names, answer[begin], content[begin])
            for begin, end in pairwise(places)
        ]
        return [piece for piece in pieces if piece.text]

    def _content(self, text: str, messages: Sequence[Message], prompt: bool) -> list[bool]:
        """Which characters users said; none where a template makes something else of a message with marks in it."""
        try:
            shown = re.sub(f"[{_BEGIN}{_END}]", "", self._rendered(_edged(messages, "user"), prompt))
        except ValueError:
            shown = ""
        parts = shown.split(_EDGE)  # text, question, text, ..., question, text
        return _every_other(parts) if "".join(parts) == text else [False] * len(text)

    def _as_text(self, content: str) -> str:
        if re.search(f"[{_BEGIN}-{_APART}]", content):
            raise ValueError(f"a message has a character from {_BEGIN!r} to {_APART!r}, which are kept for marks here")
        apart = content
        while self._names.search(apart):  # again, where one name begins inside another
            apart = self._names.sub(lambda found: found[0][0] + _APART + found[0][1:], apart)
        return apart

    def _rendered(self, messages: Sequence[Message], prompt: bool) -> str:
        try:
            return self._template.render(messages=messages, add_generation_prompt=prompt, **self._variables)
        except Exception as error:  # a template is a program and may fail in any way
            raise ValueError(f"the tokenizer's chat template refuses it: {error}") from error

    def _with_marks(self, text: str, messages: Sequence[Message]) -> str:
        """Marks the answers of a template that doesn't do so: what follows the prompt of the turns before, up to the
        special token that ends the turn. Where an answer stands is seen with marks at its edges."""
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        shown = self._rendered(_edged(messages, "assistant"), False)
        parts = shown.split(_EDGE)  # text, answer, text, ..., answer, text
        clear = "".join(parts) == text and len(parts) == 2 * len(answers) + 1
        ending = self._names.search(parts[-1])
        marked, done, place = "", 0, 0
        for i, before, said, behind in zip(answers, parts[::2], parts[1::2], parts[2::2], strict=False):
            begin, place = self._rendered(messages[:i], True), place + len(before)
            clear &= text.startswith(begin) and done <= len(begin) <= place
            place += len(said)
            if ending:  # behind the spaces that the answer itself may end with
                name = parts[-1][: ending.end()].lstrip()
                end = text[:place] + behind[: len(behind) - len(behind.lstrip())] + name
            else:
                end = self._rendered(messages[: i + 1], False)
            clear &= text.startswith(end)
            marked += text[done : len(begin)] + _BEGIN + text[len(begin) : len(end)] + _END
            done = len(end)
        if not clear:
            raise ValueError(
                "the tokenizer's chat template writes an answer otherwise than its prompt and the rest of the "
                "conversation lead to expect, so what is to be trained on can't be told; put the answers of the "
                "template into {% generation %} blocks, or set config.data.chat.template to a template by name"
            )
        return marked + text[done:]


def _edged(messages: Sequence[Message], role: str) -> list[Message]:
    """The messages with marks at the edges of what this role says."""
    edged = lambda text: re.sub(r"\S(.*\S)?", lambda found: f"{_EDGE}{found[0]}{_EDGE}", text, flags=re.DOTALL)
    return [m | {"content": edged(m["content"])} if m["role"] == role else m for m in messages]


def without_marks(text: str) -> str:
    """What a template of `environment` has rendered, as other libraries render it."""
    return re.sub(f"[{_BEGIN}{_END}]", "", text)


def _every_other(parts: Sequence[str]) -> list[bool]:
    """Of each character of the joined parts whether it is of the second, fourth, ... one."""
    return [i % 2 == 1 for i, part in enumerate(parts) for _ in part]


def _raise(message: str):
    raise jinja2.TemplateError(message)
