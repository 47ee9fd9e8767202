"""Named chat templates: convert a conversation to text and special tokens, and mark its answers.

    chatml   <|im_start|>user\\n ... <|im_end|>\\n (OpenAI; many open models)
    qwen     the same, with Qwen2.5's system text for conversations without one
    llama2   <s>[INST] <<SYS>> ... [/INST] ... </s> (arXiv:2307.09288, and the repository of the model)
    llama3   <|start_header_id|>user<|end_header_id|> ... <|eot_id|>
    gemma    <start_of_turn>user\\n ... <end_of_turn>\\n; a system text goes before the first question, as in Gemma 3
    alpaca   ### Instruction: ... ### Input: ... ### Response: (the two prompts of Stanford Alpaca's train.py, with and
             without an input; a conversation without a system text gets the first sentences of one of them, and its
             first question decides which); needs no special tokens
    plain    the texts alone, one after another, with the tokenizer's end token after each answer, for models of plain
             text; needs no special tokens

The content of a message is always text, never a special token, nor an added token of the form <...> or [...], because
some markers of published tokenizers are not flagged as special (<think>, <tool_call>). Every answer is trained on
together with the token that ends it, and nothing else is. data/tokens/jinja_template.py runs a tokenizer's own
template, which may write tools and reasoning; the templates here can't. Left out: images.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer as Backend

from data.tokens.tokenizer import Tokenizer
from data.tokens.words import stands_for

Message = Mapping[str, Any]  # see data/examples/conversations.py

_MARKER = re.compile(r"<.+>|\[.+\]", re.DOTALL)

QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
)
ALPACA_INPUT = ", paired with an input that provides further context"


class Piece(NamedTuple):
    """A part of a rendered conversation."""

    text: str
    special: bool = False  # the text is the name of one token
    answer: bool = False  # trained on
    content: bool = False  # a user's text
    begins: bool = False  # generation of an answer begins here


class Ends(NamedTuple):
    """Names of the tokens that begin a text (None: there is none) and end it."""

    begin: str | None
    end: str


Render = Callable[[Sequence[Message], bool, Ends], list[Piece]]


class Template(NamedTuple):
    """A named chat template."""

    render: Render  # (messages, whether to prompt for the next answer, ends) -> pieces
    markers: tuple[str, ...] = ()  # special tokens that the vocabulary must have


def _marker(text: str, answer: bool = False) -> Piece:
    return Piece(text, special=True, answer=answer)


def _trained(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("train", True)


def _said(message: Message, text: str) -> Piece:
    role = message["role"]
    return Piece(text, answer=_trained(message), content=role == "user", begins=role == "assistant")


def _chatml(messages, prompt: bool, ends: Ends) -> list[Piece]:
    pieces = []
    for message in messages:
        pieces += [_marker("<|im_start|>"), Piece(f"{message['role']}\n"), _said(message, message["content"])]
        pieces += [_marker("<|im_end|>", _trained(message)), Piece("\n")]
    return pieces + [_marker("<|im_start|>"), Piece("assistant\n")] * prompt


def _qwen(messages, prompt: bool, ends: Ends) -> list[Piece]:
    system, turns = _split(messages, QWEN_SYSTEM)
    return _chatml([{"role": "system", "content": system}, *turns], prompt, ends)


def _llama2(messages, prompt: bool, ends: Ends) -> list[Piece]:
    system, turns = _split(messages)
    pieces = []
    for i, message in enumerate(turns):
        text = message["content"]
        if message["role"] == "assistant":
            pieces += [_said(message, f" {text.strip()} "), _marker("</s>", _trained(message))]
        else:
            head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system and not i else ""
            said = _said(message, text.rstrip() if head else text.strip())
            pieces += [_marker("<s>"), Piece(f"[INST] {head}"), said, Piece(" [/INST]")]
    return pieces


def _llama3(messages, prompt: bool, ends: Ends) -> list[Piece]:
    header = lambda role: [_marker("<|start_header_id|>"), Piece(role), _marker("<|end_header_id|>"), Piece("\n\n")]
    pieces = [_marker("<|begin_of_text|>")]
    for message in messages:
        pieces += header(message["role"]) + [_said(message, message["content"].strip())]
        pieces.append(_marker("<|eot_id|>", _trained(message)))
    return pieces + header("assistant") * prompt


def _gemma(messages, prompt: bool, ends: Ends) -> list[Piece]:
    system, turns = _split(messages)
    pieces = [_marker("<bos>")]
    for i, message in enumerate(turns):
        name = "model" if message["role"] == "assistant" else "user"
        head = f"{name}\n" + (f"{system}\n\n" if system and not i else "")
        pieces += [_marker("<start_of_turn>"), Piece(head), _said(message, message["content"].strip())]
        pieces += [_marker("<end_of_turn>", _trained(message)), Piece("\n")]
    return pieces + [_marker("<start_of_turn>"), Piece("model\n")] * prompt


def _alpaca(messages, prompt: bool, ends: Ends) -> list[Piece]:
    asked = next(message for message in messages if message["role"] == "user")
    system, turns = _split(messages, ALPACA_SYSTEM.format(ALPACA_INPUT if asked.get("input") else ""))
    pieces = [] if ends.begin is None else [_marker(ends.begin)]
    pieces += [Piece(f"{system}\n\n")] if system else []
    for message in turns:
        text, given = message["content"], message.get("input")
        if message["role"] == "assistant":
            pieces += [_said(message, text), _marker(ends.end, _trained(message)), Piece("\n\n")]
            continue
        pieces.append(Piece("### Instruction:\n"))
        if given:
            instruction = _said(message, text.removesuffix(f"\n\n{given}"))
            pieces += [instruction, Piece("\n\n### Input:\n"), _said(message, given)]
        else:
            pieces.append(_said(message, text))
        pieces.append(Piece("\n\n### Response:"))
    return pieces


def _plain(messages, prompt: bool, ends: Ends) -> list[Piece]:
    system, turns = _split(messages)
    pieces = [] if ends.begin is None else [_marker(ends.begin)]
    pieces += [Piece(f"{system}\n\n")] if system else []
    for message in turns:
        pieces.append(_said(message, message["content"]))
        if message["role"] == "assistant":
            pieces.append(_marker(ends.end, _trained(message)))
    return pieces


def _split(messages: Sequence[Message], default: str = "") -> tuple[str, Sequence[Message]]:
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return default, messages


TEMPLATES = {
    "chatml": Template(_chatml, ("<|im_start|>", "<|im_end|>")),
    "qwen": Template(_qwen, ("<|im_start|>", "<|im_end|>")),
    "llama2": Template(_llama2, ("<s>", "</s>")),
    "llama3": Template(_llama3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "gemma": Template(_gemma, ("<bos>", "<start_of_turn>", "<end_of_turn>")),
    "alpaca": Template(_alpaca),
    "plain": Template(_plain),
}


class NamedTemplate:
    """One of TEMPLATES with the interface of a JinjaTemplate.

    `names` is empty, because these templates read no tools and no further fields.

    Args:
      template: one of TEMPLATES.
      ends: the tokenizer's begin and end tokens.
    """

    names: frozenset[str] = frozenset()

    def __init__(self, template: Template, ends: Ends):
        self._template, self._ends = template, ends

    def render(self, messages: Sequence[Message], prompt: bool, tools: Sequence[Mapping] | None = None) -> list[Piece]:
        """Returns the pieces of a conversation, as `JinjaTemplate.render`; callers never pass tools."""
        return self._template.render(messages, prompt, self._ends)


class PieceEncoder:
    """Converts pieces to token ids, and finds which of them are trained on and which are content.

    Neighbouring texts are encoded as one, as if the whole conversation were written out and then split at its special
    tokens. The exception is the start of an answer: in generation the tokens before it can't depend on the answer, so
    no token crosses that place in training either. A token that crosses the end of an answer belongs to the answer.
    """

    def __init__(self, tokenizer: Tokenizer):
        content = json.loads(tokenizer.to_json())
        for token in content["added_tokens"]:
            token["special"] |= _MARKER.fullmatch(token["content"]) is not None
        text = json.dumps(content)
        self._first = self._behind = _backend(text)
        # Sentencepiece puts a space only before the text that begins the conversation.
        behind = text.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
        if behind != text:
            self._behind = _backend(behind)
        # A text that continues the one before it gets no prefix.
        further = json.dumps(
            content | {part: _without_prefix(content[part]) for part in ("normalizer", "pre_tokenizer")}
        )
        self._further = self._behind if further == behind else _backend(further)

    def has(self, marker: str) -> bool:
        """Returns whether the vocabulary has a token of this name."""
        return self._first.token_to_id(marker) is not None

    def name(self, i: int) -> str:
        """Returns the name of a token in the vocabulary."""
        name = self._first.id_to_token(i)
        assert name is not None
        return name

    def specials(self) -> list[str]:
        """Returns the names of all special tokens and markers."""
        return [token.content for token in self._first.get_added_tokens_decoder().values() if token.special]

    def encode(self, pieces: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ids int32 [n], which of them are trained on bool [n], and which are content bool [n].

        Raises:
          ValueError: a text has no UTF-8 form.
        """
        ids, trained, content = [], [], []
        backend = self._first
        for group in _groups(pieces):
            if group[0].special:
                ids += [self._first.token_to_id(piece.text) for piece in group]
                trained += [piece.answer for piece in group]
                content += [False] * len(group)
                backend = self._behind
                continue
            text = "".join(piece.text for piece in group)
            text.encode()
            answer, said = np.repeat(
                [(piece.answer, piece.content) for piece in group], [len(piece.text) for piece in group], axis=0
            ).T
            encoding = backend.encode(text, add_special_tokens=False)
            ids += encoding.ids
            trained += [bool(answer[start : max(end, start + 1)].any()) for start, end in encoding.offsets]
            content += stands_for(text, encoding.offsets, said)
            backend = self._further
        return np.array(ids, np.int32), np.array(trained, bool), np.array(content, bool)


def _groups(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Yields groups of neighbouring pieces, all special or all text; a new group begins at each answer."""
    group: list[Piece] = []
    for piece in pieces:
        if group and (piece.begins or piece.special != group[-1].special):
            yield group
            group = []
        if piece.text:
            group.append(piece)
    if group:
        yield group


def _without_prefix(part: dict | None) -> dict | None:
    """Returns a normalizer or pre-tokenizer of a tokenizer.json that puts no space before a text as a whole."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence" and "normalizers" in part:
        return part | {"normalizers": [own for own in map(_without_prefix, part["normalizers"]) if own is not None]}
    if part["type"] == "Sequence":  # those after the first one see words, and may put a space before each
        own = part["pretokenizers"]
        return part | {"pretokenizers": [*map(_without_prefix, own[:1]), *own[1:]]}
    never = {"prepend_scheme": "never", "add_prefix_space": False}
    return {name: never.get(name, value) for name, value in part.items()}


def _backend(content: str) -> Backend:
    """Returns the tokenizer of a tokenizer.json's text, without its rules for special tokens in text."""
    backend = Backend.from_str(content)
    backend.encode_special_tokens = True
    backend.post_processor = None  # some trim spaces from the offsets
    backend.no_padding()
    backend.no_truncation()
    return backend
