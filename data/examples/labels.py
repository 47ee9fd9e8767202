"""The kind `labels`: a class or a number for a text (or for two), or a class for each word of a sentence.

    class    {"text": ..., "label": ...}, in any kind of file; `pair` names the field of a second text
    number   the same, with a number as the label
    token    {"tokens": [word, ...], "labels": [class or null, ...]}, in .jsonl or .json; null, NaN, -100 (which
             PyTorch ignores) and an empty text mean "no label"

A decoder reads [begin, text] and predicts the label at the last token, like transformers' decoders for classification.
A bidirectional model also reads the end token, and predicts the label at the first token ([CLS]). Labels of words are
predicted at the first token of each word. Two texts are concatenated, with the tokenizer's own separator between them,
or else its end token; from the second text on, the token type is 1 (BERT).

The classes are those of the training records, sorted by name, or by value if all of them are integers. The end of a
text that is longer than a row is cut; of two texts, the longer one is cut first. A word without a token of its own
(BERT's tokenizers drop a zero-width space) gets no label, and a record without a labelled word is skipped. Both are
counted.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from data.batch import CONTENT, SECOND, TOKEN_TYPES, TRAINED, Channel, DataError
from data.examples.example import CUT, Context, Encoding, Example, Kind, LeftOut
from data.examples.label_reader import Reader
from data.examples.label_values import class_of, classes_of, number_of, text_fields
from data.read.records import field
from data.tokens.tokenizer import Tokenizer

KINDS = ("class", "token", "number")
READ = ("last", "first")
FIELDS = {
    "kind": "class",
    "text": "",  # name of the field; '': 'text', for words 'tokens'
    "label": "",  # name of the field; '': 'label', for words 'labels'
    "pair": "",  # name of the field; '': there is one text
    "split": "",  # name of the field with 'train', 'validation' or 'test' (skipped); '': data.validation decides
    "read": "",  # the token at which a text's label is predicted, 'last' or 'first'; '': by the model's architecture
}
_SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
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
            raise ValueError(f"field {settings['split']!r} is {given!r}, but must be one of {', '.join(_SPLITS)}")
        parsed["split"] = _SPLITS[given]
    name = settings["label"] or ("labels" if settings["kind"] == "token" else "label")
    label = field(record, name, "data.labels.label")
    if settings["kind"] == "token":
        return parsed | {"labels": classes_of(label, name, len(parsed["tokens"]))}
    return parsed | {"label": (number_of if settings["kind"] == "number" else class_of)(label, name)}


def _text(record: dict) -> str:
    return " ".join(record.get("tokens", [])) or "\n".join(record[name] for name in ("text", "pair") if name in record)


def _identity(settings: Mapping[str, Any], tokenizer: Tokenizer, encoder: bool) -> Any:
    return [settings["kind"], settings["read"]]


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
                f"the label {label!r} does not occur in training, where there are {_some(ids_of)}; fix it, or add "
                "training records with it"
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
        notes = ("words have no token of their own and get no label",) * found.lost
        notes += () if found.whole else (CUT.format(seq_len),)
        return Example(np.array(found.ids, np.int32), targets, marks, notes=notes)

    counts = dict(zip(facts.get("names", ()), facts.get("counts", ()), strict=True))
    return Encoding(encode, facts=facts, warnings=tuple(_alike(counts)))


def _channels(settings: Mapping[str, Any]) -> tuple[Channel, ...]:
    numbers = (Channel("targets", "float32"),) if settings["kind"] == "number" else ()
    return numbers + ((TOKEN_TYPES,) if settings["pair"] else ())


def _facts(kind: str, records: Iterable[dict]) -> dict:
    """Returns what is stored about the training labels: names and counts of the classes, or the mean of the numbers."""
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
            f"The training labels have {len(names)} different values ({_some(names)}), but there must be 2 to "
            f"{_MOST_CLASSES} classes. Is config.data.labels.label the right field?"
            + (" For numbers set config.data.labels.kind to 'number'." if kind == "class" else "")
        )
    return {"kind": kind, "names": names, "counts": [counts[name] for name in names]}


def _numerically(name: str) -> tuple:
    """Returns a sort key for integers of any length, because int() refuses text of more than 4,300 digits."""
    digits = name.lstrip("-")
    order = (len(digits), digits)
    return (1, *order) if digits == name else (0, -len(digits), [-int(digit) for digit in digits])


def _alike(counts: Mapping[str, int]) -> Iterator[str]:
    """Yields a warning for classes whose names differ only in case, spaces, Unicode forms or spelling of a number."""
    groups: dict[str, list[str]] = {}
    for name in counts:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if re.fullmatch(r"-?\d{1,300}(\.\d{1,300})?", plain):  # 1, 01 and 1.0
            plain = repr(float(plain))
        groups.setdefault(plain, []).append(name)
    for names in groups.values():
        if len(names) > 1:
            listed = ", ".join(f"{name!r} ({counts[name]:,} times)" for name in names)
            yield f"these labels count as different classes; spell them alike if they should be one class: {listed}"


def num_scores(facts: Mapping[str, Any]) -> int:
    """Returns how many scores a model predicts for labels with these `facts` (PreparedSource.facts)."""
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
    augmentable=lambda settings: settings["kind"] != "token",  # where every word has a label to predict
)
