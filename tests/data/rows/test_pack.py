"""Packing loses no token, and no target crosses documents."""

from itertools import pairwise

import numpy as np
import pytest

from data.batch import DataError, check, from_rows
from data.rows.pack import ROWS_FILE, Packer, RowReader, row_dtype, write_rows

EOT = 0


def documents(seed: int, count: int, longest: int = 40) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(1, 1000, random.integers(1, longest)) for _ in range(count)]


def packed(docs, seq_len: int, groups: int = 1, begin: int | None = None) -> np.ndarray:
    packer = Packer(seq_len, EOT, np.dtype("<u2"), begin)
    size = -(-len(docs) // groups)
    parts = [packer.add(docs[i : i + size]) for i in range(0, len(docs), size)]
    return np.concatenate([*parts, packer.flush()])


def reference(docs, seq_len: int, begin: int = EOT) -> list[list[tuple[int, int, int, int]]]:
    """Returns (token, target, segment, position) of each place, computed by a single loop."""
    rows, row, segment = [], [], 0
    for doc in docs:
        ids = [begin, *doc.tolist(), EOT]
        segment, position = segment + 1, 0
        for token, target in pairwise(ids):
            row.append((token, target, segment, position))
            position += 1
            if len(row) == seq_len:
                rows.append(row)
                row, segment, position = [], 1, 0
        if position == 0:
            segment = 0  # the document ended with the row
    if row:
        rows.append(row + [(0, 0, 0, 0)] * (seq_len - len(row)))
    return rows


@pytest.mark.parametrize("seq_len", [1, 2, 7, 16, 64, 5000])
@pytest.mark.parametrize("groups", [1, 5])
def test_equals_a_loop(seq_len, groups):
    docs = documents(seq_len, 60)
    batch = from_rows(packed(docs, seq_len, groups))
    check(batch, 1000)
    got = np.stack([batch[key] for key in ("tokens", "targets", "segment_ids", "positions")], axis=-1)
    np.testing.assert_array_equal(got, reference(docs, seq_len))
    np.testing.assert_array_equal(batch["weights"], batch["segment_ids"] > 0)


def test_documents_of_a_model_with_a_begin_token():
    docs = documents(5, 60)
    batch = from_rows(packed(docs, 16, 5, begin=1000))
    got = np.stack([batch[key] for key in ("tokens", "targets", "segment_ids", "positions")], axis=-1)
    np.testing.assert_array_equal(got, reference(docs, 16, begin=1000))


def test_nothing_is_lost_or_repeated():
    docs = documents(3, 200)
    batch = from_rows(packed(docs, 16))
    real = batch["weights"].reshape(-1) > 0
    inputs, targets = batch["tokens"].reshape(-1)[real], batch["targets"].reshape(-1)[real]
    expected = [EOT]
    for doc in docs:
        expected += [*doc, EOT]
    np.testing.assert_array_equal(targets, expected[1:])
    np.testing.assert_array_equal(inputs, expected[:-1])
    assert real[: real.sum()].all()


def test_no_target_of_another_document():
    # Each document repeats one id, so a pair (input, target) may have that id and EOT, but not the ids of two
    # documents.
    docs = [np.full(length, i) for i, length in enumerate([5, 1, 16, 40, 3, 15, 2], start=1)]
    for tokens, targets, segments in packed(docs, 16):
        for segment in range(1, segments.max() + 1):
            inside = np.concatenate([tokens[segments == segment], targets[segments == segment]])
            assert len(set(inside.tolist()) - {EOT}) <= 1


def test_only_the_last_row_is_padded():
    rows = packed(documents(1, 50), 32)
    assert (rows[:-1, 2] > 0).all()
    empty = Packer(8, EOT, np.dtype("<u2"))
    assert empty.add([]).shape == empty.flush().shape == (0, 3, 8)
    exact = Packer(4, EOT, np.dtype("<u2"))
    assert len(exact.add([np.array([1, 2, 3])])) == 1
    assert len(exact.flush()) == 0


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, "<u2"), (65537, "<u4")])
@pytest.mark.parametrize("hold", [True, False])
def test_rows_come_back_from_disk(tmp_path, vocab_size, dtype, hold):
    assert row_dtype(vocab_size, 16) == np.dtype(dtype)
    packer = Packer(16, vocab_size - 1, row_dtype(vocab_size, 16))
    rows = packer.add(documents(0, 30))
    assert write_rows(tmp_path / "a b", [rows, packer.flush()]) == len(rows) + 1
    reader = RowReader(tmp_path / "a b", 16, hold)
    assert len(reader) == len(rows) + 1
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(reader.read(order), rows[order])
    assert rows.max() == vocab_size - 1
    assert (tmp_path / "a b" / ROWS_FILE).stat().st_size > 0


def test_row_errors(tmp_path):
    with pytest.raises(DataError, match="no packed rows at"):
        RowReader(tmp_path, 16)
    write_rows(tmp_path, [packed(documents(0, 30), 16)])
    with pytest.raises(DataError, match="not of length 17"):
        RowReader(tmp_path, 17)


def test_check_names_what_is_wrong():
    good = from_rows(packed(documents(0, 30), 16))
    check(good, 1000)
    with pytest.raises(DataError, match=r"ids from .* vocabulary has 500"):
        check(good, 500)
    with pytest.raises(DataError, match="keys"):
        check({key: good[key] for key in ("tokens", "targets")}, 1000)
    with pytest.raises(DataError, match=r"positions is .*15"):
        check(good | {"positions": good["positions"][:, :15]}, 1000)
    both = good | {f"encoder_{key}": good[key][:, :9] for key in ("tokens", "segment_ids", "positions")}
    check(both, 1000)
    with pytest.raises(DataError, match=r"encoder_tokens has ids from 1000 to 1000"):
        check(both | {"encoder_tokens": np.full_like(both["encoder_tokens"], 1000)}, 1000)
    with pytest.raises(DataError, match=r"encoder_positions is .*8.* encoder_tokens is .*9"):
        check(both | {"encoder_positions": both["encoder_positions"][:, :8]}, 1000)
    with pytest.raises(DataError, match=r"must have the same rows, but encoder_tokens has"):
        check(both | {key: both[key][1:] for key in both if key.startswith("encoder_")}, 1000)
    with pytest.raises(DataError, match="keys"):
        check({key: both[key] for key in both if key != "encoder_positions"}, 1000)
    with pytest.raises(DataError, match="weights must be float32"):
        check(good | {"weights": good["weights"].astype(np.float64)}, 1000)
