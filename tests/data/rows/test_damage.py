"""Prepared files that change later: unreadable rows are named and counted, and all other rows stay in place."""

import shutil

import numpy as np
import pytest

from data.batch import DataError, check
from data.pipeline import train_pipeline, validation_batches
from data.prepare import load, prepare
from data.read import sources
from data.rows.pack import ROWS_FILE, Damage, RowReader

LINES = lambda line: None


@pytest.fixture
def own(prepared, tmp_path):
    """Returns a copy of the prepared data, which a test may damage."""
    folder = prepared.directory
    return load(shutil.copytree(folder.parents[1], tmp_path / "data") / "rows" / folder.name)


def flip(path) -> None:
    """Flips one bit of a record. Records are in the first blocks of 64 KiB of a file, which are padded with zeros."""
    content = bytearray(path.read_bytes())
    content[len(content[:65536].rstrip(b"\0")) // 2] ^= 16
    path.write_bytes(content)


def damaged_row(source) -> int:
    """Flips a bit of a row and returns the number of the row."""
    flip(source.train / ROWS_FILE)
    damage = Damage(limit=source.train_rows)
    RowReader(source.train, 32, rows=source.train_rows, damage=damage).read(range(source.train_rows))
    (line,) = damage.lines()
    return int(line.split("row ")[1].split(":")[0])


@pytest.mark.parametrize("hold", [True, False])
def test_a_damaged_row_is_padding(own, prepared, hold, caplog):
    source = own.sources[0]
    bad = damaged_row(source)
    caplog.clear()
    damage = Damage(limit=1)
    rows = np.arange(source.train_rows)
    reader = RowReader(source.train, own.seq_len, hold, rows=source.train_rows, damage=damage)
    read, whole = reader.read(rows), RowReader(prepared.sources[0].train, own.seq_len).read(rows)
    np.testing.assert_array_equal(np.delete(read, bad, 0), np.delete(whole, bad, 0))
    assert not read[bad].any() and whole[bad].any()
    reader.read([bad])
    assert len(damage.lines()) == len(caplog.records) == 1
    assert f"row {bad} of {source.train / ROWS_FILE}" in caplog.text and "hash mismatch" in caplog.text


def test_a_damaged_row_moves_no_other(own, prepared):
    bad = damaged_row(own.sources[0])
    streams = [train_pipeline(p, 4, seed=0, max_damaged=3) for p in (own, prepared)]
    different = 0
    for _ in range(own.sources[0].train_rows // 4):
        batch, whole = (stream.next() for stream in streams)
        check(batch, own.vocab_size)
        for i in range(4):
            if not np.array_equal(batch["tokens"][i], whole["tokens"][i]):
                different += 1
                assert not batch["weights"][i].any()
    assert different == 1
    (event,) = streams[0].events()
    assert f"row {bad}:" in event["damaged_row"] and streams[0].events() == [] == streams[1].events()
    for stream in streams:
        stream.close()


def test_a_batch_of_damaged_rows_trains_on_nothing(own):
    """It does not end the run, as a batch without answers does."""
    damaged_row(own.sources[0])
    stream = train_pipeline(own, 1, seed=0, max_damaged=3)
    empty = [not stream.next()["segment_ids"].any() for _ in range(own.sources[0].train_rows)]
    assert sum(empty) == 1 and len(stream.events()) == 1
    stream.close()


def test_too_many_damaged_rows_are_an_error(own):
    damaged_row(own.sources[0])
    with pytest.raises(DataError, match=r"row \d+ of .*0 may be missing .* Move .*/rows/t32-\w+ away"):
        train_pipeline(own, 4, seed=0)


def test_held_out_rows_must_all_be_there(own):
    source = own.sources[0]
    flip(source.validation / ROWS_FILE)
    with pytest.raises(DataError, match=r"row \d+ of .*/validation/"):
        list(validation_batches(own, 4))


@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
def test_a_file_that_was_cut_off(own, left):
    """ArrayRecord silently finds no rows in such a file."""
    path = own.sources[0].train / ROWS_FILE
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    with pytest.raises(DataError, match=rf"{path} (is damaged: {own.sources[0].train_rows} rows|can't be read)"):
        train_pipeline(own, 4, seed=0)


def test_a_file_that_is_gone(own):
    (own.sources[0].train / ROWS_FILE).unlink()
    with pytest.raises(DataError, match=r"no packed rows at .* Move .*/rows/t32-\w+ away and start again"):
        train_pipeline(own, 4, seed=0)


def test_a_file_that_is_deleted_while_it_is_read(own):
    """An open file stays readable, and the next start reports that it is missing."""
    reader = RowReader(own.sources[0].train, own.seq_len)
    before = reader.read([3, 5])
    (own.sources[0].train / ROWS_FILE).unlink()
    np.testing.assert_array_equal(reader.read([3, 5]), before)


def test_a_file_that_is_cut_off_while_it_is_read(own):
    reader = RowReader(own.sources[0].train, own.seq_len)
    (own.sources[0].train / ROWS_FILE).write_bytes(b"")
    with pytest.raises(DataError, match=r"row 3 of .* can't be read .0 of 192 bytes"):
        reader.read([3])


def test_rows_are_made_again_as_they_were(corpus, settings, tmp_path):
    """The error messages advise to move the rows away and to prepare them again."""
    first = prepare(settings(corpus[0]), tmp_path, LINES)
    content = (first.sources[0].train / ROWS_FILE).read_bytes()
    shutil.move(first.directory, tmp_path / "away")
    again = prepare(settings(corpus[0]), tmp_path, LINES)
    assert again == first and (again.sources[0].train / ROWS_FILE).read_bytes() == content


@pytest.mark.parametrize("left", [None, 0, 60, "{}"])
@pytest.mark.parametrize("stage", ["corpora", "tokenizers", "rows"])
def test_a_stage_whose_manifest_is_damaged(corpus, settings, tmp_path, stage, left):
    """The stage is set aside and made again; the other stages stay."""
    first = prepare(settings(corpus[0]), tmp_path, LINES)
    (path,) = (tmp_path / stage).glob("*/manifest.json")
    if left is None:
        path.unlink()
    else:
        path.write_text(path.read_text()[:left] if isinstance(left, int) else left)
    said = []
    assert prepare(settings(corpus[0]), tmp_path, said.append) == first
    assert f"{path.parent} is damaged" in said[0] and f"set aside as {path.parent.name}.damaged.1" in said[0]
    assert len(said) == 2 and path.exists() and path.parent.with_name(f"{path.parent.name}.damaged.1").exists()


@pytest.mark.parametrize("change", ["grows", "vanishes"])
def test_a_source_that_changes_while_it_is_read(settings, tmp_path, monkeypatch, change):
    text = tmp_path / "text.txt"
    text.write_text("some text " * 300)
    read = sources.FileSource.documents

    def changing(self, bad):
        yield from read(self, bad)
        if change == "grows":
            text.write_text("some text " * 301)
        else:
            text.rename(tmp_path / "gone.txt")

    monkeypatch.setattr(sources.FileSource, "documents", changing)
    with pytest.raises(DataError, match=rf"while it was read: {text}|{text} can't be read: .*No such file"):
        prepare(settings(text, split="tail", tokenizer={"kind": "byte"}), tmp_path / "out", LINES)
    monkeypatch.undo()
    if change == "grows":
        prepare(settings(text, split="tail", tokenizer={"kind": "byte"}), tmp_path / "out", LINES)


def test_a_damaged_corpus(corpus, settings, tmp_path):
    config = settings(corpus[0])
    first = prepare(config, tmp_path, LINES)
    (path,) = first.sources[0].corpus.glob("*train*array_record*")
    path.write_bytes(path.read_bytes()[:-70000] or b"")
    with pytest.raises(DataError, match=r"train split in .* is damaged: .* Move .*/corpora/[\w-]+ away"):
        prepare(config | {"seq_len": 48}, tmp_path, LINES)
