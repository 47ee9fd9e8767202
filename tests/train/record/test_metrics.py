"""Metrics files stay correct over stops, and the progress line shows the right times and MFU."""

import io
import json
import math
import struct
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from train.record import events, lines, metrics, mfu


def steps(workdir):
    return [row["step"] for row in metrics.read(workdir / "metrics.jsonl")]


def run(workdir, numbers, **kwargs):
    writer = metrics.Writer(workdir, **kwargs)
    for step in numbers:
        writer.write(step, {"loss": 1.0 / (step + 1)})
    writer.close()


def test_resume_leaves_each_step_once(tmp_path):
    run(tmp_path, range(1, 11))
    run(tmp_path, range(7, 13), resume_step=6)
    assert steps(tmp_path) == list(range(1, 13))
    run(tmp_path, range(3), resume_step=-1)  # starts over: nothing stays
    assert steps(tmp_path) == [0, 1, 2]
    run(tmp_path, [3])  # without resume_step, everything stays
    assert steps(tmp_path) == [0, 1, 2, 3]
    assert not list(tmp_path.glob("*.tmp"))


def test_every_cut_of_the_last_line_is_repaired(tmp_path):
    run(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        # A reader of a running job sees no broken line. At the last cut only the newline is missing, and nothing is
        # lost.
        kept = [1, 2] if cut == len(whole) - 1 else [1]
        assert steps(tmp_path) == kept
        metrics._trim(path, None)
        assert path.read_bytes().endswith(b"}\n") and steps(tmp_path) == kept
    run(tmp_path, [3])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_values_that_json_has_not(tmp_path):
    writer = metrics.Writer(tmp_path)
    values = {"nan": math.nan, "inf": -math.inf, "array": jnp.float32(0.1), "numpy": np.float64(2), "count": 3}
    values["arrays"] = np.array([[1.5, math.nan], [math.inf, 2]])
    writer.write(np.int64(5), values)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()  # written before any flush
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row["nan"] is None and row["inf"] is None and row["step"] == 5 and row["time"] > 1e9
    (row,) = metrics.read(tmp_path / "metrics.jsonl")
    assert math.isnan(row["nan"]) and math.isnan(row["inf"])
    assert (row["array"], row["numpy"], row["count"]) == (float(np.float32(0.1)), 2.0, 3)
    assert row["arrays"] == [[1.5, None], [None, 2]]
    writer.close()
    writer.close()


def test_the_line_of_an_evaluation_has_its_numbers():
    figures = {"validation/loss": 1.5, "validation/chosen_reward": np.float32(2), "validation/bins": [[1, 2]]}
    assert lines.evaluation(4, figures) == "step 4  validation: loss 1.5  chosen reward 2"


def test_only_an_enabled_writer_touches_files(tmp_path):
    writer = metrics.Writer(tmp_path / "run", enabled=False)
    writer.write(1, {"loss": 1.0})
    writer.flush()
    writer.close()
    assert not list(tmp_path.iterdir()) and metrics.read(tmp_path / "none.jsonl") == []


def records(path):
    """Yields the messages of an event file, and checks their checksums."""
    data = path.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == events._checksum(data[:8])
        assert data[12 + size : 16 + size] == events._checksum(data[12 : 12 + size])
        yield data[12 : 12 + size]
        data = data[16 + size :]


def test_event_files(tmp_path):
    # The standard gives CRC-32C of "123456789" as a check value; TFRecord then masks it.
    masked = ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert events._checksum(b"123456789") == struct.pack("<I", masked)
    run(tmp_path, [1, 300])
    run(tmp_path, [2], resume_step=1)
    first, second = (list(records(path)) for path in sorted((tmp_path / "tensorboard").iterdir()))
    assert len(first) == 3 and len(second) == 3
    # The bytes are protobuf's: step 300, one summary value with tag "loss" and a float32; purge from step 2 on.
    assert first[2][9:] == b"\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15" + struct.pack("<f", 1 / 301)
    assert second[1][9:] == b"\x10\x02\x3a\x02\x08\x01"
    assert events._float(2, -1e300) == b"\x15" + struct.pack("<f", -math.inf)  # beyond the range of float32


def progress_output(width=200, terminal=False, peak=1e12):
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, force_interactive=terminal)
    with metrics.Progress(400, 4096, 1e8, peak, 0, console) as progress:
        progress.update(120, 3.412, 8.1e-4, 0.5)
        progress.message("[bold]kept as it is[/]")
        progress.update(400, math.nan, 0.0, 0.5)
    return console.file.getvalue()


def test_plain_progress():
    first, message, last = progress_output(width=40).splitlines()  # not wrapped, however narrow the terminal is
    # 280 steps of half a second are left; 4096 tokens take half a second; a token needs 1e8 of 1e12 FLOPs per second.
    assert first == "step 120/400  loss 3.412  ppl 30.3  8.19k tok/s  MFU 82 %  left 2:20  lr 8.1e-4"
    assert message == "[bold]kept as it is[/]"
    assert "loss   nan" in last and "left 0:00" in last and len(last) == len(first)
    assert "MFU" not in progress_output(peak=None)


@pytest.mark.parametrize("width", [36, 60, 79, 80])
def test_live_progress_fits_the_terminal(width):
    out = progress_output(width, terminal=True)
    assert "\x1b[2K" in out and "[bold]kept as it is[/]" in out  # redrawn in place
    plain = Console(file=io.StringIO(), width=width)
    assert "left" in out and ("lr" in out) == (width >= 79)
    lines = out.replace("\r", "\n").splitlines()
    assert all(plain.render_str(_without_escapes(line)).cell_len <= width for line in lines)


def _without_escapes(text):
    while "\x1b[" in text:
        head, _, tail = text.partition("\x1b[")
        end = next(i for i, char in enumerate(tail) if char.isalpha())
        text = head + tail[end + 1 :]
    return text


def test_short_numbers_and_durations():
    numbers = {0: "0.00", 8.214: "8.21", 30.31: "30.3", 99.96: "100", 512.4: "512", 999.6: "1.00k", 12345: "12.3k"}
    numbers |= {1.5e6: "1.50M", 7e9: "7.00B", 2.4e16: "2.4e+16", math.inf: "inf", math.nan: "nan"}
    assert {value: metrics.short(value) for value in numbers} == numbers
    times = {0: "0:00", 59.6: "1:00", 151: "2:31", 3751: "1:02:31", 172800: "2d 00h", math.nan: "-"}
    assert {value: metrics.duration(value) for value in times} == times


def test_mfu():
    # 1e9 FLOPs per token at 100k tokens/s are 1e14 FLOP/s; two devices have 1e14 each.
    assert mfu.model_flops_utilization(1e9, 1e5, 2e14) == 0.5


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v4", 275),
        ("TPU v4 lite", None),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250),
        ("cpu", None),
    ],
)
def test_published_rates(kind, teraflops):
    rate = mfu.flops_rate(SimpleNamespace(device_kind=kind))
    assert rate == (teraflops and pytest.approx(teraflops * 1e12))


def test_peak_of_many_devices(monkeypatch):
    monkeypatch.setattr(mfu, "measure_matmul_rate", lambda dtype: 5e11)
    tpus = [SimpleNamespace(device_kind="TPU v4", platform="tpu", process_index=i // 4) for i in range(8)]
    peak, source = mfu.peak_flops(tpus, jnp.bfloat16)
    assert peak == 8 * 275e12 and "published" in source
    cpus = [SimpleNamespace(device_kind="cpu", platform="cpu", process_index=i // 4) for i in range(8)]
    peak, source = mfu.peak_flops(cpus, jnp.float32)
    assert peak == 2 * 5e11 and "measured float32" in source  # devices of one process share its cores


def test_matmul_rate_is_plausible():
    assert 1e9 < mfu.measure_matmul_rate(jnp.float32, seconds=0.01) < 1e16


def test_clock_counts_steps_only():
    now = 0.0
    clock = metrics.Clock(step=10, now=lambda: now)
    now = 30.0  # compilation and the first step
    clock.skip(11)
    for step in (21, 31, 41):
        now += 5.0
        assert clock.lap(step) == 0.5
    now += 20.0  # evaluation
    clock.skip(41)
    now += 500.0  # one slow lap doesn't change the median
    assert clock.lap(51) == 0.5
