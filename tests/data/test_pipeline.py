"""The training stream restores exactly, on any number of processes and with any batch size."""

import dataclasses
import json
from itertools import islice

import numpy as np
import pytest

from data import stream as stream_module
from data.batch import DataError, check
from data.pipeline import train_pipeline, validation_batches
from data.prepare import prepare
from data.rows import corrupt
from data.rows.pack import RowReader
from data.tokens import tokenizer as tokenizers


def take(pipeline, count):
    batches = [pipeline.next() for _ in range(count)]
    pipeline.close()
    return batches


def equal(first, second) -> bool:
    return all(np.array_equal(first[key], second[key]) for key in first)


def join(shares):
    return {key: np.concatenate([share[key] for share in shares]) for key in shares[0]}


def row_key(batch, i) -> bytes:
    return b"".join(batch[key][i].tobytes() for key in ("tokens", "targets", "segment_ids"))


@pytest.fixture(scope="module")
def two(corpus, settings, tmp_path_factory):
    """Prepares two sources; the second has three times the weight."""
    files = corpus[0]
    sources = ((f"files:{files}/*.txt", 1.0), (f"files:{files}/*.jsonl", 3.0))
    return prepare(settings(sources=()) | {"sources": sources}, tmp_path_factory.mktemp("two"), log=lambda line: None)


@pytest.fixture(scope="module")
def corruptible(corpus, settings, tmp_path_factory):
    """Prepares data with a tokenizer that has a mask token and sentinels."""
    tokenizer = {"kind": "bpe", "vocab_size": 330, "mask": True, "sentinels": 4}
    config = settings(corpus[0], tokenizer=tokenizer, corruption={"kind": "spans"})
    return prepare(config, tmp_path_factory.mktemp("corruptible"), log=lambda line: None)


@pytest.fixture(params=["masked", "spans"])
def corruption(request, corruptible):
    return corrupt.make({"kind": request.param}, tokenizers.load(corruptible.tokenizer_path), corruptible.seq_len)


def test_each_epoch_has_every_row_once_in_another_order(prepared):
    rows = prepared.sources[0].train_rows
    stream = [row_key(batch, 0) for batch in take(train_pipeline(prepared, 1, seed=0), 2 * rows)]
    reader = RowReader(prepared.sources[0].train, prepared.seq_len)
    expected = sorted(row.astype(np.int32).tobytes() for row in reader.read(range(rows)))
    assert rows > 100
    assert len(set(expected)) == rows
    assert sorted(stream[:rows]) == sorted(stream[rows:]) == expected
    assert stream[:rows] != stream[rows:]
    assert stream[:rows] != expected


def test_a_seed_gives_one_stream(prepared):
    first, second, other = (take(train_pipeline(prepared, 4, seed=seed), 5) for seed in (3, 3, 4))
    assert all(map(equal, first, second))
    assert not any(map(equal, first, other))
    for batch in first:
        check(batch, prepared.vocab_size)
        assert batch["tokens"].shape == (4, prepared.seq_len)


def test_restoring_is_exact_from_every_position(two):
    pipeline = train_pipeline(two, 6, seed=1)
    positions, batches = [], []
    for _ in range(40):
        positions.append(json.loads(json.dumps(pipeline.position())))
        batches.append(pipeline.next())
    pipeline.close()
    for start in (0, 1, 17, 39):
        restored = train_pipeline(two, 6, seed=1, position=positions[start])
        assert restored.position() == positions[start]
        assert all(map(equal, take(restored, 40 - start), batches[start:]))


def test_restoring_is_exact_with_weights_that_no_short_order_has(two):
    """This includes the boundary between two blocks of the order."""
    first, second = two.sources
    odd = dataclasses.replace(two, sources=(first, dataclasses.replace(second, weight=0.12345)))
    start = {"next_row": (1 << 16) - 60, "stream": train_pipeline(odd, 6, seed=1).position()["stream"]}
    batches = take(train_pipeline(odd, 6, seed=1, position=start), 20)
    later = start | {"next_row": (1 << 16) - 60 + 6 * 9}
    assert all(map(equal, take(train_pipeline(odd, 6, seed=1, position=later), 11), batches[9:]))


def shares(count):
    """Returns, for each of `count` processes, the rows that it reads of a batch of 8."""
    return np.split(np.arange(8), count)


def test_processes_share_the_same_global_batches(two):
    whole = take(train_pipeline(two, 8, seed=0), 12)
    for count in (2, 4, 8):
        pipelines = [train_pipeline(two, 8, 0, rows) for rows in shares(count)]
        for batch in whole:
            assert equal(batch, join([pipeline.next() for pipeline in pipelines]))
        assert len({json.dumps(pipeline.position()) for pipeline in pipelines}) == 1
        for pipeline in pipelines:
            pipeline.close()


def test_another_number_of_processes_goes_on_without_skip_or_repeat(two):
    whole = iter(take(train_pipeline(two, 8, seed=0), 12))
    position = None
    for count in (1, 2, 4, 2):
        pipelines = [train_pipeline(two, 8, 0, rows, position) for rows in shares(count)]
        for _ in range(3):
            assert equal(next(whole), join([pipeline.next() for pipeline in pipelines]))
        position = pipelines[-1].position()
        for pipeline in pipelines:
            pipeline.close()


def test_any_rows_of_a_batch(two):
    """Where a mesh follows a torus, the rows of a process are not adjacent.

    Along an axis that does not split the batch, several processes read the same rows.
    """
    rows = np.array([0, 1, 4, 5])
    batches = zip(take(train_pipeline(two, 8, 0), 3), take(train_pipeline(two, 8, 0, rows), 3), strict=True)
    assert all(equal({key: array[rows] for key, array in whole.items()}, some) for whole, some in batches)
    held_out = zip(validation_batches(two, 8), validation_batches(two, 8, rows), strict=True)
    assert all(equal({key: array[rows] for key, array in whole.items()}, some) for whole, some in held_out)


def test_another_batch_size_goes_on_without_skip_or_repeat(two):
    whole = join(take(train_pipeline(two, 4, seed=0), 15))
    first = train_pipeline(two, 4, seed=0)
    head = [first.next() for _ in range(3)]
    tail = take(train_pipeline(two, 6, seed=0, position=first.position()), 8)
    first.close()
    assert equal(whole, join(head + tail))


def test_weights_are_shares_of_rows(two):
    owners = {}
    for i, source in enumerate(two.sources):
        reader = RowReader(source.train, two.seq_len)
        owners |= {row.astype(np.int32).tobytes(): i for row in reader.read(range(source.train_rows))}
    batches = take(train_pipeline(two, 4, seed=0), 50)
    counts = np.array([np.bincount([owners[row_key(batch, i)] for i in range(4)], minlength=2) for batch in batches])
    assert (counts == [1, 3]).all()


def test_more_rows_than_can_be_listed_are_shuffled_too(prepared, monkeypatch):
    monkeypatch.setattr(stream_module, "_LISTED_ROWS", 0)
    rows = prepared.sources[0].train_rows
    stream = [row_key(batch, 0) for batch in take(train_pipeline(prepared, 1, seed=0), 2 * rows)]
    assert sorted(stream[:rows]) == sorted(stream[rows:])
    assert len(set(stream)) == rows
    assert stream[:rows] != stream[rows:] != sorted(stream[:rows])


def test_a_batch_larger_than_the_data_repeats_it(prepared):
    rows = prepared.sources[0].train_rows
    (batch,) = take(train_pipeline(prepared, 3 * rows, seed=0), 1)
    keys = [row_key(batch, i) for i in range(3 * rows)]
    assert all(keys.count(key) == 3 for key in set(keys))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_validation_has_every_row_once_in_order(two, processes):
    parts = [list(validation_batches(two, 8, rows)) for rows in shares(processes)]
    batches = [join(list(parts)) for parts in zip(*parts, strict=True)]
    assert all(batch["tokens"].shape == (8, two.seq_len) for batch in batches)
    whole = join(batches)
    expected = []
    for source in two.sources:
        expected += list(RowReader(source.validation, two.seq_len).read(range(source.validation_rows)))
    total = len(expected)
    assert total % 8  # otherwise no batch would need padding
    np.testing.assert_array_equal(whole["tokens"][:total], [row[0] for row in expected])
    np.testing.assert_array_equal(whole["targets"][:total], [row[1] for row in expected])
    assert not whole["weights"][total:].any()
    assert whole["weights"].sum() == sum(source.validation_tokens for source in two.sources)


def test_limited_validation_is_spread_over_all(two):
    everything = join(list(validation_batches(two, 1)))
    total = len(everything["tokens"])
    limited = list(validation_batches(two, 4, limit_rows=6))
    assert [int((batch["weights"].sum(1) > 0).sum()) for batch in limited] == [4, 2]
    np.testing.assert_array_equal(join(limited)["tokens"][:6], everything["tokens"][[i * total // 6 for i in range(6)]])
    assert len(list(validation_batches(two, 4, limit_rows=10**6))) == len(list(validation_batches(two, 4)))


def test_corrupted_streams_are_shared_and_restored(corruptible, corruption):
    whole = train_pipeline(corruptible, 8, 1, corruption=corruption)
    positions, batches = [], []
    for _ in range(30):
        positions.append(whole.position())
        batches.append(whole.next())
    whole.close()
    for batch in batches:
        check(batch, corruptible.vocab_size)
    for start, count in ((0, 2), (7, 1), (13, 4)):
        parts = [train_pipeline(corruptible, 8, 1, rows, positions[start], corruption) for rows in shares(count)]
        for batch in batches[start:]:
            assert equal(batch, join([part.next() for part in parts]))
        for part in parts:
            part.close()


def test_each_epoch_is_corrupted_anew(corruptible, corruption):
    rows = corruptible.sources[0].train_rows
    plain = join(take(train_pipeline(corruptible, 1, 0), 2 * rows))
    batch = join(take(train_pipeline(corruptible, 1, 0, corruption=corruption), 2 * rows))
    keys = [row_key(plain, i) for i in range(2 * rows)]
    same = 0
    for i in range(rows):
        again = keys.index(keys[i], rows)
        same += all(np.array_equal(array[i], array[again]) for array in batch.values())
    assert same < rows / 20


def test_held_out_rows_are_corrupted_alike_each_time(corruptible, corruption):
    total = sum(source.validation_rows for source in corruptible.sources)
    whole = join(list(validation_batches(corruptible, 1, corruption=corruption)))
    assert len({row.tobytes() for row in whole["targets"]}) > 1
    for processes in (1, 4):
        parts = [list(validation_batches(corruptible, 8, rows, corruption=corruption)) for rows in shares(processes)]
        again = join([join(list(parts)) for parts in zip(*parts, strict=True)])
        assert equal(whole, {key: array[:total] for key, array in again.items()})
        assert not again["weights"][total:].any()
    limited = join(list(validation_batches(corruptible, 4, limit_rows=6, corruption=corruption)))
    chosen = [i * total // 6 for i in range(6)]
    assert equal({key: array[:6] for key, array in limited.items()}, {k: array[chosen] for k, array in whole.items()})


def test_a_position_belongs_to_its_corruption(corruptible):
    make = lambda **changes: corrupt.make(changes, tokenizers.load(corruptible.tokenizer_path), 32)
    corruptions = [None, make(kind="masked"), make(kind="masked", rate=0.2), make(kind="spans")]
    streams = set()
    for corruption in corruptions:
        pipeline = train_pipeline(corruptible, 4, 0, corruption=corruption)
        streams.add(pipeline.position()["stream"])
        pipeline.close()
    assert len(streams) == 4
    with pytest.raises(DataError, match="augmentation and seed 0 is stream"):
        train_pipeline(
            corruptible, 4, 0, position={"next_row": 0, "stream": min(streams)}, corruption=make(kind="spans", rate=0.3)
        )


def test_errors(prepared, two, corpus, settings, tmp_path):
    with pytest.raises(DataError, match="batch of 0 rows"):
        train_pipeline(prepared, 0, seed=0)
    position = train_pipeline(prepared, 4, seed=0).position()
    for data, seed in ((prepared, 1), (two, 0)):
        with pytest.raises(DataError, match=r"saved data position belongs to stream .* seed"):
            train_pipeline(data, 4, seed=seed, position=position)
    nothing_held_out = prepare(settings(corpus[0], validation=0), tmp_path, log=lambda line: None)
    with pytest.raises(DataError, match="No text is held out"):
        validation_batches(nothing_held_out, 4)
    assert list(islice(nothing_held_out.validation_texts(), 1)) == []
