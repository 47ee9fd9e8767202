"""Labelled texts: a class or a number for a text (or for two), or a class for each word of a sentence.

    class    {"text": ..., "label": ...}, of any kind of file; `pair` names the field of a second text
    number   the same, with a number as the label
    token    {"tokens": [word, ...], "labels": [class or null, ...]}, of .jsonl or .json; null, NaN, -100 (as torch
             ignores it) or an empty text: no label

A model reads [begin, text] and is asked at the last token, as transformers' own decoders that classify; a model that
sees both ways reads the end token too and is asked at the first one ([CLS]). Of words it is asked at the first token of
each. Two texts are read one behind the other, with what the tokenizer puts between them, or else its end; from the
second on they have token type 1 (BERT).

The classes are those of the records to train on, sorted by name, or by value where all are integers. A text that is
longer than a row loses its end, of two the longer one first. A word that has no token of its own (BERT's tokenizers
leave nothing of a zero-width space) has no label, and a record without a labelled word is left out; both are counted.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from data.batch import CONTENT, SECOND, TOKEN_TYPES, TRAINED, Channel, DataError
from data.examples.example import CUT, Context, Encoding, Example, Kind, LeftOut
from data.read.records import field
from data.tokens.tokenizer import Tokenizer

KINDS = ("class", "token", "number")
READ = ("last", "first")
FIELDS = {
    "kind": "class",
    "text": "",  # names of fields; '' is 'text' and 'label', for words 'tokens' and 'labels'
    "label": "",
    "pair": "",  # '': there is one text
    "split": "",  # of the field that says 'train', 'validation' or 'test' (left out); '': data.validation decides
    "read": "",  # where the label of a text is asked for, 'last' or 'first'; '': by the model's architecture
}
_SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_LARGEST = float(np.finfo(np.float32).max)
_IGNORED = "-100"  # what torch's losses, and so published data, take for no label
_MOST_CLASSES = 4096  # a confusion matrix has as many rows and columns


def _check(settings: Mapping[str, Any]) -> None:
    for name in FIELDS:
        if not isinstance(settings[name], str):
            raise DataError(f"data.labels.{name} must be a string, not {settings[name]!r}.")
    for name, choices in (("kind", KINDS), ("read", ("", *READ))):
        if settings[name] not in choices:
            raise DataError(
                f"data.labels.{name} must be one of {', '.join(filter(None, choices))}, not {settings[name]!r}."
            )
    if settings["pair"] and settings["kind"] == "token":
        raise DataError("data.labels.pair is for texts: words of data.labels.kind 'token' have no second text.")


def _parse(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict:
    parsed = text_fields(record, settings)
    if settings["split"]:
        given = str(field(record, settings["split"], "data.labels.split"))
        if given not in _SPLITS:
            raise ValueError(f"field {settings['split']!r} is {given!r}, and must be one of {', '.join(_SPLITS)}")
        parsed["split"] = _SPLITS[given]
    name = settings["label"] or ("labels" if settings["kind"] == "token" else "label")
    label = field(record, name, "data.labels.label")
    if settings["kind"] == "token":
        return parsed | {"labels": _classes(label, name, len(parsed["tokens"]))}
    return parsed | {"label": (_number if settings["kind"] == "number" else _class)(label, name)}


def text_fields(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict:
    """{'text': ..., 'pair': ...} or {'tokens': [...]} of a record; ValueError says what is wrong with it."""
    if settings["kind"] == "token":
        name = settings["text"] or "tokens"
        return {"tokens": [_string(word, name) for word in _array(field(record, name, "data.labels.text"), name)]}
    names = {"text": settings["text"] or "text"} | ({"pair": settings["pair"]} if settings["pair"] else {})
    return {what: _string(field(record, name, f"data.labels.{what}"), name) for what, name in names.items()}


def _string(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"field {name!r} is not a string but {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"field {name!r} is empty; mend the record or take it out")
    return text


def _class(label: Any, name: str) -> str:
    if _is_none(label):
        raise ValueError(f"field {name!r} is {label!r}, which is no label; fill it in or take the record out")
    if not isinstance(label, str | int):  # True and False are integers
        raise ValueError(f"field {name!r} is {label!r}; a class is a string, an integer, true or false")
    return str(label)


def _is_none(label: Any) -> bool:
    """Whether a label says that there is none."""
    if isinstance(label, str):
        return label.strip() in ("", _IGNORED) or label.strip().lower() == "nan"  # as tables write it
    return label is None or label != label or label == int(_IGNORED)  # NaN differs from itself


def _number(label: Any, name: str) -> float:
    try:
        number = float(label)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(label, bool) or not abs(number) <= _LARGEST:
        raise ValueError(f"field {name!r} is {label!r}; data.labels.kind 'number' needs a finite number")
    return number


def _classes(labels: Any, name: str, count: int) -> list[str | None]:
    if len(_array(labels, name)) != count:
        raise ValueError(f"{count} words, but {len(labels)} {name}")
    if all(map(_is_none, labels)):
        raise ValueError(f"field {name!r} has no label; mend the record or take it out")
    return [None if _is_none(label) else _class(label, name) for label in labels]


def _array(values: Any, name: str) -> list:
    if not isinstance(values, list):
        raise ValueError(f"field {name!r} is not an array but {type(values).__name__}; data.labels.kind is 'token'")
    return values


def _text(record: dict) -> str:
    return " ".join(record.get("tokens", [])) or "\n".join(record[name] for name in ("text", "pair") if name in record)


def _identity(settings: Mapping[str, Any], tokenizer: Tokenizer, encoder: bool) -> Any:
    return [settings["kind"], settings["read"]]


class Reading(NamedTuple):
    """What a model reads of a text or of words, and where it is asked for their labels."""

    ids: list[int]
    places: list[int | None]  # the one of a text; that of each word, None: it is not asked
    second: int | None = None  # where the second text begins
    lost: int = 0  # words without a token of their own
    whole: bool = True  # nothing was cut off


class Reader:
    """Texts, or words, as a model reads them; at most `length` ids, so that a long one loses its end."""

    def __init__(self, tokenizer: Tokenizer, read: str, length: int):
        special = tokenizer.special
        self._tokenizer, self._first, self._length = tokenizer, read == "first", length
        self._begin = [] if special.begin is None else [special.begin]
        self._between = tokenizer.between()
        self._end = [tokenizer.eot_id] if self._first else []
        if self._room() < 1:
            raise DataError(f"Rows of {length} tokens have no room for a text beside the special tokens.")

    def text(self, text: str, pair: str | None = None) -> Reading:
        """ValueError where there is nothing to ask at."""
        first, other = self._tokenizer.encode(text), [] if pair is None else self._tokenizer.encode(pair)
        between = [] if pair is None else self._between
        room = self._room() - len(between)
        if room < 1:
            raise ValueError(f"rows of {self._length} tokens have no room for two texts beside the special tokens")
        of_first, of_other = longest_first(len(first), len(other), room)
        before = [*self._begin, *first[:of_first], *between]
        ids = [*before, *other[:of_other], *self._end]
        if not ids:
            raise ValueError("the text has no tokens")
        place, whole = 0 if self._first else len(ids) - 1, of_first + of_other == len(first) + len(other)
        return Reading(ids, [place], None if pair is None else len(before), whole=whole)

    def words(self, words: list[str]) -> Reading:
        """A word is asked at its first token, and not at all where it shares it with another one or has none."""
        ids, places = self._tokenizer.encode_words(words)
        alone = [place is not None and places.count(place) == 1 for place in places]
        room, first = self._room(), len(self._begin)
        asked = [first + place if own and place < room else None for place, own in zip(places, alone, strict=True)]
        return Reading([*self._begin, *ids[:room], *self._end], asked, None, alone.count(False), len(ids) <= room)

    def _room(self) -> int:
        """Ids beside the special ones."""
        return self._length - len(self._begin) - len(self._end)


def longest_first(first: int, other: int, room: int) -> tuple[int, int]:
    """What is kept of two texts, in tokens: the longer one is cut first, both where neither leaves room for the other
    (the tokenizers library's 'longest_first')."""
    shorter = min(first, other, room // 2)
    longer = min(max(first, other), room - shorter)
    return (shorter, longer) if first <= other else (longer, shorter)


def _encoding(settings: Mapping[str, Any], context: Context) -> Encoding:
    kind, seq_len = settings["kind"], context.seq_len
    reader = Reader(context.tokenizer, settings["read"], seq_len - len(context.prefix))
    facts = _facts(kind, context.train()) | {"read": settings["read"], "pair": bool(settings["pair"])}
    ids_of = {name: i for i, name in enumerate(facts.get("names", ()))}

    def target(label) -> int:
        if kind == "number":
            return int(np.float32(label).view(np.int32))
        if label not in ids_of:
            raise ValueError(
                f"the label {label!r} does not occur in training, where there are {_some(ids_of)}; mend it, or see "
                "that training has it too"
            )
        return ids_of[label]

    def encode(record: dict) -> Example:
        words = kind == "token"
        found = reader.words(record["tokens"]) if words else reader.text(record["text"], record.get("pair"))
        labels = record["labels"] if words else [record["label"]]
        labelled = [pair for pair in zip(found.places, labels, strict=True) if None not in pair]
        if not labelled:
            raise LeftOut(f"examples have no labelled word with a token of its own in their first {seq_len} tokens")
        targets = np.zeros(len(found.ids), np.int32)
        marks = np.where(np.isin(found.ids, context.tokenizer.special_ids), 0, CONTENT).astype(np.uint8)
        marks[len(marks) if found.second is None else found.second :] |= SECOND
        for place, label in labelled:
            targets[place], marks[place] = target(label), marks[place] | TRAINED
        notes = ("words have no token of their own, so no label is learnt of them",) * found.lost
        notes += () if found.whole else (CUT.format(seq_len),)
        return Example(np.array(found.ids, np.int32), targets, marks, notes=notes)

    counts = dict(zip(facts.get("names", ()), facts.get("counts", ()), strict=True))
    return Encoding(encode, facts=facts, warnings=tuple(_alike(counts)))


def _channels(settings: Mapping[str, Any]) -> tuple[Channel, ...]:
    numbers = (Channel("targets", "float32"),) if settings["kind"] == "number" else ()
    return numbers + ((TOKEN_TYPES,) if settings["pair"] else ())


def _facts(kind: str, records: Iterable[dict]) -> dict:
    """What is kept of the labels to train on: names and counts of the classes, or the mean of the numbers."""
    if kind == "number":
        labels = [record["label"] for record in records]
        return {"kind": kind, "mean": float(np.mean(labels)) if labels else 0.0}
    counts = Counter(
        label for record in records for label in record.get("labels", [record.get("label")]) if label is not None
    )
    integers = all(re.fullmatch(r"-?(0|[1-9]\d*)", name) for name in counts)
    names = sorted(counts, key=_numerically if integers else str)
    if not 2 <= len(names) <= _MOST_CLASSES:
        raise DataError(
            f"The labels to train on have {len(names)} different values ({_some(names)}), and classes are 2 to "
            f"{_MOST_CLASSES}. Is config.data.labels.label the right field?"
            + (" For numbers set config.data.labels.kind to 'number'." if kind == "class" else "")
        )
    return {"kind": kind, "names": names, "counts": [counts[name] for name in names]}


def _numerically(name: str) -> tuple:
    """A sort key for integers of any length: Python's int refuses text of more than 4,300 digits."""
    digits = name.lstrip("-")
    order = (len(digits), digits)
    return (1, *order) if digits == name else (0, -len(digits), [-int(digit) for digit in digits])


def _alike(counts: Mapping[str, int]) -> Iterator[str]:
    """What to say of classes whose names differ by case, spaces, forms of characters or spellings of a number alone."""
    groups: dict[str, list[str]] = {}
    for name in counts:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if re.fullmatch(r"-?\d{1,300}(\.\d{1,300})?", plain):  # 1, 01 and 1.0
            plain = repr(float(plain))
        groups.setdefault(plain, []).append(name)
    for names in groups.values():
        if len(names) > 1:
            listed = ", ".join(f"{name!r} ({counts[name]:,} times)" for name in names)
            yield f"these labels count as different classes; write them alike if they are meant to be one: {listed}"


def num_scores(facts: Mapping[str, Any]) -> int:
    """How many scores a model gives for labels of which these `facts` (PreparedSource.facts) were kept."""
    return len(facts["names"]) if "names" in facts else 1


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


KIND = Kind(
    fields=FIELDS,
    columns=("kind", "text", "label", "pair", "split"),
    check=_check,
    parse=_parse,
    text=_text,
    identity=_identity,
    encoding=_encoding,
    channels=_channels,
    encoder=False,
    augmentable=lambda settings: settings["kind"] != "token",  # of those every word is asked for its label
)
