"""Lines that a full disk refuses are kept in memory and written later."""

import json
import resource

import pytest

from train.record import metrics
from train.record.appending import AppendedFile


@pytest.fixture
def room():
    """Returns `room(bytes)`, which limits the file size like a quota; without an argument it lifts the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def room(size: int = soft) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield room
    room()


def test_what_is_refused_waits(tmp_path, room, caplog):
    file = AppendedFile(tmp_path / "lines")
    room(10)
    for line in (b"one\n", b"two\n", b"three\n", b"four\n"):  # the third line is cut in two
        file.write(line)
    assert (tmp_path / "lines").read_bytes() == b"one\ntwo\nth"
    assert len(caplog.records) == 1 and "lines: File too large; its lines wait in memory" in caplog.text
    with pytest.raises(OSError, match=r"File too large; 9 bytes are not written.*lines"):
        file.sync()
    room()
    file.write(b"five\n")
    file.sync()
    assert (tmp_path / "lines").read_bytes() == b"one\ntwo\nthree\nfour\nfive\n"
    assert "can be written again; no data are missing" in caplog.text
    room(30)
    for _ in range(3):
        file.write(b"another\n")
    assert len(caplog.records) == 3, "each failure is reported only once"


def test_metrics_outlive_a_full_disk(tmp_path, room):
    """Both metrics.jsonl and the TensorBoard files are complete afterwards."""
    writers = [metrics.Writer(tmp_path / name) for name in ("full", "room")]
    for step in range(1, 9):
        room(*[100] * (step in (2, 3, 4, 5)))
        writers[0].write(step, {"loss": 1 / step})
        room()
        writers[1].write(step, {"loss": 1 / step})
    writers[0].event(8, {"left_out": "loss spike", "loss": float("nan")})
    for writer in writers:
        writer.close()
    rows = [metrics.read(tmp_path / name / "metrics.jsonl") for name in ("full", "room")]
    assert [row.get("loss") for row in rows[0]] == [1 / step for step in range(1, 9)] + [None]
    assert json.loads((tmp_path / "full" / "metrics.jsonl").read_text().splitlines()[-1])["event"]["loss"] is None
    sizes = [sum(file.stat().st_size for file in (tmp_path / n / "tensorboard").iterdir()) for n in ("full", "room")]
    assert sizes[0] == sizes[1]


def test_metrics_that_are_lost_are_an_error(tmp_path, room, caplog):
    writer = metrics.Writer(tmp_path)
    room(10)
    writer.write(1, {"loss": 1.0})
    with pytest.raises(OSError, match="bytes are not written"):
        writer.flush()
    caplog.clear()
    writer.close()
    assert "bytes are not written" in caplog.text
