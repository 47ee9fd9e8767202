"""The kind `pairs`: translation, summarization, question answering and other tasks from one text to another.

An encoder reads [prefix + source, end], and its decoder predicts [target, end], as in T5 (arXiv:1910.10683, section
2.4). A decoder-only model reads [begin, prefix + source, newline] before the target, and the loss counts only target
and end.

A source that is too long keeps its prefix and start, and loses its end, as in transformers' scripts for translation and
summarization.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.batch import DataError
from data.examples.asking import Asking, Prompts
from data.examples.example import Context, Encoding, Example, Kind, cut_end
from data.read.records import field
from data.tokens.templates import Message
from data.tokens.tokenizer import Inputs, Tokenizer

FIELDS = {"source": "source", "target": "target", "prefix": ""}


def inputs(tokenizer: Tokenizer, settings: Mapping[str, Any], texts: Sequence[str], encoder: bool) -> Inputs:
    """Returns `prompts` and `sources` of model.decode.generate, up to the target of each source in `texts`."""
    read = [_read(tokenizer, settings, text, encoder)[0] for text in texts]
    if not encoder:
        return {"prompts": read, "sources": None}
    return {"prompts": [[tokenizer.start_id]] * len(texts), "sources": read}


def _read(tokenizer: Tokenizer, settings: Mapping[str, Any], text: str, encoder: bool) -> tuple[list, list[bool]]:
    """Returns the ids before a target, and which of them are the source's own text."""
    parts = [(settings["prefix"], False), (text, True), ("" if encoder else "\n", False)]
    ids, content = tokenizer.encode_parts(parts)
    if encoder:
        return [*ids, tokenizer.eot_id], [*content, False]
    begin = [] if tokenizer.special.begin is None else [tokenizer.special.begin]
    return begin + ids, [False] * len(begin) + content


def _parse(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict:
    pair = {side: field(record, settings[side], f"data.pairs.{side}") for side in ("source", "target")}
    for side, text in pair.items():
        if not isinstance(text, str):
            raise ValueError(f"field {settings[side]!r} is not a string but {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"field {settings[side]!r} is empty; fix the record or remove it")
    return pair


def _check(settings: Mapping[str, Any]) -> None:
    for name in FIELDS:
        if not isinstance(settings[name], str):
            raise DataError(f"data.pairs.{name} must be a string, not {settings[name]!r}.")


def _text(record: dict) -> str:
    return f"{record['source']}\n{record['target']}"


def _identity(settings: Mapping[str, Any], tokenizer: Tokenizer, encoder: bool) -> Any:
    return settings["prefix"]


def _encoding(settings: Mapping[str, Any], context: Context) -> Encoding:
    tokenizer = context.tokenizer

    def encode(record: dict) -> Example:
        ids, content = _read(tokenizer, settings, record["source"], context.encoder)
        target = [*tokenizer.encode(record["target"]), tokenizer.eot_id]
        if context.encoder:
            said = [False] + [True] * len(target)
            return Example.of_ids([tokenizer.start_id, *target], said, source=ids, source_content=content)
        said = [False] * len(ids) + [True] * len(target)
        return Example.of_ids([*ids, *target], said, content + [False] * len(target))

    return Encoding(encode, cut=_cut)


def _cut(example: Example, seq_len: int, begin: int | None) -> Example:
    """Returns the part that fits into a row: the source's end is cut, then the target's end.

    Without an encoder, the source keeps at least a quarter of the row.
    """
    if example.source is not None:
        example = example.source_at(cut_end(np.arange(len(example.source)), seq_len))
    target = int(example.trained.sum())
    read = len(example.tokens) - target + 1  # up to the token that predicts the target's first one
    said = min(target, seq_len + 1 - min(read, max(seq_len // 4, 1)))
    kept = min(read, seq_len + 1 - said)
    return example.at(np.r_[: kept - 1, read - 1 : read - 1 + said])


def _question_of_text(text: str, system: str) -> str:
    if system:
        raise ValueError("pairs of texts have no system text")
    return text


def _question_of_messages(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
    raise ValueError("the model was tuned on pairs of texts, and messages are for conversations; give a text")


def _prompts(settings: Mapping[str, Any], tokenizer: Tokenizer, questions: Sequence[str], encoder: bool) -> Prompts:
    """Returns the prompts of questions, each of which is the source of a pair."""
    return Prompts(**inputs(tokenizer, settings, questions, encoder), ends=tokenizer.special.end, keeps_start=True)


KIND = Kind(
    fields=FIELDS,
    columns=("source", "target"),
    check=_check,
    parse=_parse,
    text=_text,
    identity=_identity,
    encoding=_encoding,
    asking=Asking(
        question=lambda record: record["source"],
        of_text=_question_of_text,
        of_messages=_question_of_messages,
        prompts=_prompts,
        shown=lambda question: question,
        reference=lambda settings, tokenizer, record: record["target"],
    ),
)
