"""A channel that is computed after rows are packed: each row of a batch has its own values, however rows are read."""

import json

import numpy as np
import pytest

from data.added import Added
from data.batch import Channel, DataError, check
from data.pipeline import train_pipeline, validation_batches
from data.prepare import prepare

CHANNEL = Channel("scores", "float32")


def scores(batch):
    """Returns values that no other row has; their mantissas are not short."""
    mixed = batch["tokens"] * np.int64(7919) + batch["positions"] * 104729 + batch["ranks"] * 31
    return np.where(batch["weights"] > 0, -np.log1p(mixed.cumsum(1)), 0).astype(np.float32)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, settings):
    folder = tmp_path_factory.mktemp("added")
    for name in ("one", "two", "watched"):
        rows = ({"prompt": f"{name} {i}", "chosen": f"{i * i} yes", "rejected": f"{i + 7} no"} for i in range(60))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = tuple(
        (f"preferences:{folder / name}.jsonl", weight) for name, weight in dict(one=0.7, two=0.3, watched=0).items()
    )
    own = {"sources": sources, "tokenizer": {"kind": "byte"}, "seq_len": 640, "preferences": {"template": "alpaca"}}
    return prepare(settings() | own, folder / "data", log=lambda line: None)


@pytest.fixture(scope="module")
def added(prepared):
    found = Added(prepared, CHANNEL, ["model", 1])
    assert not found.done
    found.compute(4, scores, log=lambda line: None)
    assert found.done
    return found.rows()


def test_every_row_has_its_values_in_shuffles_epochs_and_shares(prepared, added):
    """Also from a saved position. Everything else is as without the channel."""
    total = sum(source.train_rows for source in prepared.sources)
    assert total % 4 and [source.weight > 0 for source in added.sources] == [True, True, False]
    for mine in (None, np.array([0, 1]), np.array([2, 3])):
        streams = [train_pipeline(data, 4, 5, mine) for data in (prepared, added)]
        for step in range(total):
            if step == 3:  # another process continues
                place = streams[1].position()
                streams[1].close()
                streams[1] = train_pipeline(added, 4, 5, mine, place)
            plain, batch = (stream.next() for stream in streams)
            check(batch, prepared.vocab_size, added.channels)
            np.testing.assert_array_equal(batch.pop("scores"), scores(plain), strict=True)
            assert plain.keys() == batch.keys() and all(np.array_equal(plain[name], batch[name]) for name in plain)
        for stream in streams:
            stream.close()


def test_held_out_rows_have_their_values(prepared, added):
    for only in (None, 0, 2):
        one, other = (
            list(validation_batches(data, 3, only=None if only is None else data.sources[only]))
            for data in (prepared, added)
        )
        assert len(one) == len(other) > 1
        for plain, batch in zip(one, other, strict=True):
            np.testing.assert_array_equal(batch["scores"], scores(plain), strict=True)


def test_other_values_have_another_folder(prepared, added, tmp_path):
    folders = {
        Added(prepared, channel, identity).folder
        for channel, identity in ((CHANNEL, ["model", 1]), (CHANNEL, ["model", 2]), (Channel("x", "float32"), 1))
    }
    assert len(folders) == 3 and added.sources[0].train.is_relative_to(Added(prepared, CHANNEL, ["model", 1]).folder)


def test_a_full_disk_is_named(prepared, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.added.write_rows", full)
    with pytest.raises(DataError, match="No space left on device while scores were written to"):
        Added(prepared, CHANNEL, ["model", 3]).compute(4, scores, log=lambda line: None)
    assert not Added(prepared, CHANNEL, ["model", 3]).done


def test_processes_that_take_part_make_the_same_calls(prepared):
    calls = [[], []]
    recorded = lambda at: lambda batch: calls[at].append(batch["tokens"].sum()) or scores(batch)
    Added(prepared, CHANNEL, ["model", 4]).compute(4, recorded(0), log=lambda line: None)
    Added(prepared, CHANNEL, ["model", 4]).take_part(4, recorded(1))
    assert calls[0] == calls[1] and len(calls[0]) > 6
