"""Data that earlier code prepared is found again and gives the same rows, streams and batches.

Their digests were recorded when manifests gave only the number of arrays in a row.
"""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest

from data.pipeline import train_pipeline, validation_batches
from data.prepare import prepare
from data.rows import augment, corrupt
from data.rows.pack import RowReader
from data.tokens import tokenizer as tokenizers

BYTES = {"kind": "byte", "mask": True, "sentinels": 16}
WORDS = ["green", "7", "été", "ship", "of", "東京", "x_y", "the"]

# name: (config, encoder, corruption, augmentation)
CASES = {
    "text": ({"sources": (("files:texts", 1.0),)}, False, {}, {}),
    "masked text": ({"sources": (("files:texts", 1.0),)}, False, {"kind": "masked"}, {}),
    "spans": ({"sources": (("files:texts", 1.0),)}, True, {"kind": "spans"}, {}),
    "tails": ({"sources": (("files:texts", 1.0),), "split": "tail", "copies": "drop"}, False, {}, {}),
    "chat": ({"sources": (("chat:chats.jsonl", 1.0),), "chat": {"template": "alpaca"}}, False, {}, {}),
    "pairs": ({"sources": (("pairs:pairs.jsonl", 1.0),), "pairs": {"prefix": "Q: "}}, False, {}, {}),
    "pairs, encoder": ({"sources": (("pairs:pairs.jsonl", 1.0),)}, True, {}, {}),
    "augmented pairs": (
        {"sources": (("pairs:pairs.jsonl", 1.0),)},
        True,
        {},
        {"delete": 0.2, "swap": 0.2, "mask": 0.1},
    ),
    "mixture": ({"sources": (("pairs:pairs.jsonl", 1.0), ("files:texts", 2.0))}, False, {}, {}),
    "mixture, encoder": ({"sources": (("pairs:pairs.jsonl", 1.0), ("files:texts", 2.0))}, True, {"kind": "spans"}, {}),
    "classes": ({"sources": (("labels:classes.jsonl", 1.0),), "labels": {"read": "first"}}, False, {}, {}),
    "two texts": (
        {"sources": (("labels:classes.jsonl", 1.0),), "labels": {"read": "first", "pair": "other"}},
        False,
        {},
        {"delete": 0.2, "mask": 0.1},
    ),
    "numbers": (
        {"sources": (("labels:numbers.jsonl", 1.0),), "labels": {"kind": "number", "read": "last"}},
        False,
        {},
        {},
    ),
    "words": ({"sources": (("labels:words.jsonl", 1.0),), "labels": {"kind": "token", "read": "first"}}, False, {}, {}),
}

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())


def write(folder):
    random_ = random.Random(0)
    words = lambda most: " ".join(random_.choice(WORDS) for _ in range(random_.randint(1, most)))
    lines = lambda make: "".join(json.dumps(make(i)) + "\n" for i in range(60))
    (folder / "texts").mkdir()
    for i in range(12):
        (folder / "texts" / f"{i}.txt").write_text(words(60))
    (folder / "texts" / "copy.txt").write_text((folder / "texts" / "0.txt").read_text())
    (folder / "texts" / "empty.txt").write_text("")
    (folder / "texts" / "more.jsonl").write_text(lines(lambda i: {"text": words(30)}) + 'broken\n{"text": ""}\n')
    said = lambda: [{"role": "user", "content": words(9)}, {"role": "assistant", "content": words(9)}]
    (folder / "chats.jsonl").write_text(lines(lambda i: {"messages": said() + said() * (i % 3 == 0)}))
    (folder / "pairs.jsonl").write_text(lines(lambda i: {"source": words(12), "target": words(6)}))
    texts = lambda i: {"text": words(12), "other": words(12)}
    (folder / "classes.jsonl").write_text(lines(lambda i: texts(i) | {"label": "abc"[i % 3]}))
    (folder / "numbers.jsonl").write_text(lines(lambda i: texts(i) | {"label": i / 7 - 3}))
    tagged = lambda tokens: {"tokens": tokens, "labels": [None if t == "of" else t[:1] for t in [*tokens[:-1], "7"]]}
    (folder / "words.jsonl").write_text(lines(lambda i: tagged(words(12).split())))


def of_content(files):
    """Replaces the fingerprint of files, which depends on where and when they were written."""
    return [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]


def digest(arrays) -> str:
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]


def ordered(batches):
    return (np.array(value) for batch in batches for key in sorted(batch) for value in (key, batch[key]))


def batches_of(prepared, corruption, augmentation) -> dict:
    tokenizer = tokenizers.load(prepared.tokenizer_path)
    made = corrupt.make(corruption, tokenizer, prepared.seq_len)
    changed = augment.make(augmentation, tokenizer)
    pipeline = train_pipeline(prepared, 4, 3, corruption=made, augmentation=changed)
    stream = pipeline.position()["stream"]
    train = digest(ordered(pipeline.next() for _ in range(12)))
    pipeline.close()
    return {
        "stream": stream,
        "train": train,
        "validation": digest(ordered(validation_batches(prepared, 4, corruption=made))),
    }


def facts(prepared) -> dict:
    readers = [
        RowReader(getattr(source, split), prepared.seq_len, channels=source.channels)
        for source in prepared.sources
        for split in ("train", "validation")
    ]
    return {
        "corpora": [source.corpus.parents[2].name for source in prepared.sources],
        "rows": prepared.directory.name,
        "content": prepared.content_hash[:16],
        "arrays": digest(reader.read(range(len(reader))) for reader in readers),
        "documents": digest(np.array([*map(repr, prepared.validation_texts())]) for _ in range(1)),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    write(folder)
    return folder


@pytest.fixture
def made(folder, monkeypatch):
    """Returns `made(name)`, which prepares a case and returns (prepared data, corruption, augmentation)."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("data.read.fingerprints.of_files", of_content)

    def made(name):
        changes, encoder, *both = CASES[name]
        config = {"validation": 0.2, "seq_len": 96, "tokenizer": BYTES} | changes
        return prepare(config, folder / "prepared", lambda line: None, encoder=encoder), *both

    return made


@pytest.mark.parametrize("name", CASES)
def test_rows_and_streams_are_those_recorded(made, name):
    prepared, *both = made(name)
    assert facts(prepared) | batches_of(prepared, *both) == RECORDED[name]


@pytest.mark.parametrize("name", CASES)
def test_rows_that_say_only_how_many_arrays_they_have_are_read_alike(made, name):
    """Manifests had only the number of arrays before channels were declared."""
    prepared, *both = made(name)
    path = prepared.directory / "manifest.json"
    written = path.read_text()
    manifest = json.loads(written)
    for source in manifest["sources"]:
        if "kind" in source:
            source |= {"channels": 6 if CASES[name][1] else 4, "numbers": name == "numbers"}
    path.write_text(json.dumps(manifest))
    try:
        again, *_ = made(name)
        assert again == prepared
        assert facts(again) | batches_of(again, *both) == RECORDED[name]
    finally:
        path.write_text(written)
