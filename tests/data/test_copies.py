"""Training documents that are copies of held-out ones are counted over all sources, and left out on request."""

import json

import numpy as np
import pytest

from data.batch import DataError
from data.builders import text as corpora
from data.copies import Count, HeldOut
from data.prepare import load, prepare
from data.rows.pack import RowReader
from data.tokens import tokenizer as tokenizers


def quiet(line: str) -> None:
    """Ignores a line of the log."""


def test_what_a_copy_is():
    held_out = HeldOut(lambda: ["one  text\r\n", "two", "", "naïve 東京"])
    for text in ("one text", "\ttwo\n", "two", " ", "naïve\n東京"):
        assert held_out.has(text)
    for text in ("onetext", "Two", "one", "one text two", "naive 東京"):
        assert not held_out.has(text)
    assert held_out.count(["two", "three", "two ", "naïve 東京"]) == Count(3, 3 + 4 + 13)
    assert HeldOut(list).count(["x"]) == Count() and not HeldOut(list).has("x")


def test_against_a_set_of_the_texts():
    numbers = np.random.default_rng(0).integers(0, 3000, (2, 2000))
    held_out, train = ([f"text {n}" for n in row] for row in numbers)
    expected = [text for text in train if text in set(held_out)]
    assert HeldOut(lambda: held_out).count(train).documents == len(expected) > 500


@pytest.fixture
def folder(tmp_path):
    """Makes a folder of 100 documents and copies of 30 of them; some copies are in the other split."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(100):
        text = f"document {i} says {i * i} things\n"
        (folder / f"{i}.txt").write_text(text)
        if i < 30:
            (folder / f"copy of {i}.txt").write_text(text.replace("\n", "\r\n"))
    return folder


def unpacked(prepared, which: str) -> list[str]:
    """Returns the documents in the rows of the first source, with normalized white space."""
    source, tokenizer = prepared.sources[0], tokenizers.load(prepared.tokenizer_path)
    reader = RowReader(getattr(source, which), prepared.seq_len)
    rows = reader.read(range(len(reader)))
    targets = rows[:, 1][rows[:, 2] > 0]
    ends = np.flatnonzero(targets == tokenizer.eot_id)
    parts = np.split(targets, ends + 1)
    return [" ".join(tokenizer.decode(part[:-1]).split()) for part in parts[: len(ends)]]


def test_they_are_counted_and_left_out_on_request(settings, folder, tmp_path):
    config, said = settings(folder, tokenizer={"kind": "byte"}), []
    kept = prepare(config, tmp_path / "out", said.append)
    held_out, train = set(unpacked(kept, "validation")), unpacked(kept, "train")
    copies = [text for text in train if text in held_out]
    (source,) = kept.sources
    assert 2 < len(copies) == source.train_copies < 20 and source.train_documents == len(train)
    warned = [line for line in said if "copies" in line]
    assert len(warned) == 1 and warned[0].startswith(
        f"warning: {folder}: {len(copies)} of {len(train)} training documents are copies of held-out ones"
    )
    said.clear()
    dropped = prepare(config | {"copies": "drop"}, tmp_path / "out", said.append)
    assert sorted(unpacked(dropped, "train")) == sorted(text for text in train if text not in held_out)
    assert unpacked(dropped, "validation") == unpacked(kept, "validation")
    assert any(f"{len(copies)} of {len(train)} training" in line and "left out" in line for line in said)
    (left,) = dropped.sources
    assert (left.train_documents, left.train_copies) == (len(train) - len(copies), len(copies))
    # A byte tokenizer adds one end token per document.
    assert left.train_tokens == left.train_bytes + left.train_documents
    assert dropped.directory != kept.directory and load(dropped.directory) == dropped
    assert prepare(config, tmp_path / "out", quiet) == kept


def test_a_tokenizer_learns_nothing_from_what_is_dropped(settings, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text("é" if i % 2 else f"text {i}")
    config = settings(folder, tokenizer={"kind": "char"})
    kept, dropped = (prepare(config | {"copies": c}, tmp_path / "out", quiet) for c in ("keep", "drop"))
    assert kept.vocab_size == dropped.vocab_size + 1


def test_over_sources(settings, tmp_path):
    """One source trains on documents that another holds out; a source of weight 0 trains on nothing."""
    texts = [f"document {i} of many" for i in range(60)]
    for name, count in (("a", 60), ("b", 30), ("c", 60)):
        lines = [json.dumps({"text": text, "n": name}) for text in texts[:count]]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(["", *lines] if name == "b" else lines))
    sources = ((f"{tmp_path}/a.jsonl", 1.0), (f"{tmp_path}/b.jsonl", 1.0), (f"{tmp_path}/c.jsonl", 0.0))
    config = settings(tokenizer={"kind": "byte"}) | {"sources": sources}
    prepared = prepare(config, tmp_path / "out", quiet)
    held_out = {text for source in prepared.sources for text in corpus(source, "validation")}
    for source in prepared.sources[:2]:
        expected = [text for text in corpus(source, "train") if text in held_out]
        assert source.train_copies == len(expected) > 0
    assert prepared.sources[2].train_copies is None


def corpus(source, split: str) -> list[str]:
    return list(corpora.read(source.corpus, split))


def test_records(settings, tmp_path):
    records = [{"source": f"question {i % 40}", "target": "answer"} for i in range(80)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
    config = settings(f"pairs:{tmp_path}/x.jsonl", tokenizer={"kind": "byte"}, seq_len=64)
    kept, dropped = (prepare(config | {"copies": c}, tmp_path / "out", quiet) for c in ("keep", "drop"))
    copies = kept.sources[0].train_copies
    assert copies > 3 and dropped.sources[0].train_documents == kept.sources[0].train_documents - copies
    assert dropped.sources[0].train_tokens < kept.sources[0].train_tokens
    # The corpus on disk stays complete.
    assert len(corpus(dropped.sources[0], "train")) == kept.sources[0].train_documents


def test_errors(settings, tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text("the same")
    config = settings(tmp_path, tokenizer={"kind": "byte"})
    with pytest.raises(DataError, match=r"16 of 16 training documents are copies .* Set config.data.copies to keep"):
        prepare(config | {"copies": "drop"}, tmp_path / "out", quiet)
    with pytest.raises(DataError, match=r"data\.copies must be one of keep, drop, not 'count'"):
        prepare(config | {"copies": "count"}, tmp_path / "out", quiet)
