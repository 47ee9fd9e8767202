"""Two or four real processes, with two devices each, train one model.

A hash of every row that a process reads is recorded, so that the tests compare the rows themselves with those of one
process, and not only the losses.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from configs import lora
from data import pipeline
from launch.hosts import distributed
from launch.program.checking import ConfigError
from launch.run.workdirs import Workdir
from launch.train import train
from tests.launch.conftest import shrink
from train.checkpoints.checkpoint import Checkpoints
from train.record import metrics

ROOT = Path(__file__).resolve().parents[3]
STEPS, HEARTBEAT = 24, 6

# launch.train, which also records the rows that it reads, and sends itself a signal at a step. Steps are slowed down
# after the signal, because jax notices SIGTERM only within a second.
PROGRAM = """
import os, sys, time, zlib
records, when, number = sys.argv.pop(1), int(sys.argv.pop(1)), int(sys.argv.pop(1))
from launch.program import runtime
from launch import train
from absl import flags
from train import loop

class Source:
    def __init__(self, source):
        self.source, self.steps = source, 0

    def __getattr__(self, name):
        return getattr(self.source, name)

    def next(self, state):
        place, batch = self.position().get("next_row"), self.source.next(state)
        if records:
            with open(f"{records}.{flags.FLAGS.process}", "a") as file:
                print(place, *(zlib.crc32(row.tobytes()) for row in batch["tokens"]), file=file)
        self.steps += 1
        if when and self.steps == when:
            os.kill(os.getpid(), number)
        if when and self.steps >= when:
            time.sleep(0.2)
        return batch

def recorded(state, step, saved, schedule, parts, run=loop.train):
    parts.source = Source(parts.source)
    return run(state, step, saved, schedule, parts)

loop.train = recorded
flags.mark_flags_as_required(["config", "workdir"])
runtime.run(train.main)
"""


def start(config, workdir, count, more=lambda process: (), records="", signals=None):
    """Runs launch.train in `count` processes and returns (exit status, stdout, stderr) of each.

    Args:
      more: process -> its additional flags.
      records: path of the records of rows, without the process number; "": none.
      signals: {process: (batch, signal that it sends itself there)}.
    """
    file = workdir.parent / f"{workdir.name}.py"
    file.write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({config.to_dict()!r})\n"
    )
    commands = []
    for i in range(count):
        when, number = (signals or {}).get(i, (0, 0))
        own = [f"--config={file}", f"--workdir={workdir}", *more(i)]
        commands.append([PROGRAM, str(records), str(when), str(int(number)), *own])
    return together(commands, workdir)


def together(commands, workdir):
    """Runs one process for each [program, argument, ...]; returns (exit status, stdout, stderr) of each."""
    count = len(commands)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"}
    running = []
    for i, (program, *arguments) in enumerate(commands):
        command = [sys.executable, "-c", program, *arguments[:3], f"--coordinator=localhost:{port}"]
        command += [f"--processes={count}", f"--process={i}", f"--heartbeat_timeout={HEARTBEAT}", *arguments[3:]]
        files = [workdir.parent / f"{workdir.name}.{count}.{i}.{name}" for name in ("out", "err")]
        with files[0].open("w") as out, files[1].open("w") as err:
            running.append((subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err), files))
    return [(process.wait(timeout=300), *(file.read_text() for file in files)) for process, files in running]


def losses(workdir):
    rows = metrics.read(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == sorted({row["step"] for row in rows if "loss" in row})
    found = {row["step"]: row["loss"] for row in rows if "loss" in row}
    return found, {row["step"]: row["validation/loss"] for row in rows if "validation/loss" in row}


def configured(tiny, **mesh):
    tiny.steps, tiny.eval_every, tiny.checkpoint_every, tiny.eval_rows = STEPS, STEPS // 2, STEPS, 0
    tiny.model.num_kv_heads = 4
    tiny.mesh.update({"data": 1, "fsdp": 1, "tensor": 1} | mesh)
    return tiny


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Gives this process four devices, as many as two of the others have together."""
    monkeypatch.setattr(jax, "devices", lambda *args, all=jax.devices: all(*args)[:4])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture
def alone(tiny, place):
    """The run of one process on four devices."""
    if not (place / "alone").exists():
        train(configured(tiny, fsdp=2, tensor=2), place / "alone")
    return place / "alone"


@pytest.fixture
def two(tiny, place, ended={}):  # noqa: B006 (it is shared by all tests of the module)
    """A run of two processes, stopped by a SIGTERM to the second one."""
    if "two" not in ended:
        config = configured(tiny, fsdp=2, tensor=2)
        config.check_every = 3  # must not change the losses
        signals = {1: (5, signal.SIGTERM)}
        ended["two"] = start(config, place / "several", 2, records=place / "two", signals=signals)
        ended["step"] = Checkpoints(place / "several", reading=True).latest_step
        ended["losses"] = losses(place / "several")
    return ended


@pytest.fixture
def four(tiny, place, two, ended={}):  # noqa: B006 (it is shared by all tests of the module)
    """The same run, continued by four processes on another mesh, whose axis `tensor` spans two of them."""
    if "four" not in ended:
        ended["four"] = start(configured(tiny, fsdp=2, tensor=4), place / "several", 4, records=place / "four")
        ended["losses"] = losses(place / "several")
    return ended


def test_two_processes_give_the_losses_of_one(alone, two):
    found, validation = losses(alone)
    some, validation_of_two = two["losses"]
    assert len(some) == two["step"] > 4
    assert some == {step: found[step] for step in some}
    assert validation_of_two == {step: validation[step] for step in validation_of_two}


def test_sigterm_to_one_saves_on_all(two):
    (status, out, _), (status_of_1, _, _) = two["two"]
    assert (status, status_of_1) == (0, 0)
    assert f"stopped after step {two['step']}, saved" in out and two["step"] < STEPS


def test_only_process_0_writes_to_stdout(two, place):
    (_, out, _), (_, out_of_1, errors_of_1) = two["two"]
    assert "2 processes" in out and "step  1/24" in out and out_of_1 == ""
    prefix = f"[process 1 of 2 on {socket.gethostname()}]"
    ours = [line for line in errors_of_1.splitlines() if not line.startswith("W") or ".cc:" not in line]  # not XLA's
    assert ours and all(line.startswith(prefix) for line in ours)


def read_by(place, name, count):
    """Returns {next_row: hashes of the rows that each process read}."""
    found = {}
    for process in range(count):
        for line in (place / f"{name}.{process}").read_text().splitlines():
            row, *rows = map(int, line.split())
            found.setdefault(row, []).append(rows)
    return found


def test_four_continue_where_two_stopped(tiny, alone, two, four, place):
    """No row is skipped or repeated, and each process reads the rows that its devices need. The losses equal those of
    one process except for rounding, because another mesh sums in another order."""
    assert [status for status, *_ in four["four"]] == [0] * 4
    found, validation = losses(alone)
    some, validation_of_four = four["losses"]
    assert some.keys() == found.keys() and validation.keys() == validation_of_four.keys()
    for expected, got in ((found, some), (validation, validation_of_four)):
        np.testing.assert_allclose([got[step] for step in expected], list(expected.values()), rtol=2e-4)
    stream = pipeline.train_pipeline(Workdir(alone).prepared, tiny.batch_size, tiny.seed)
    first, second = read_by(place, "two", 2), read_by(place, "four", 4)
    stopped = two["step"] * tiny.batch_size
    for step in range(STEPS):
        row = step * tiny.batch_size
        rows = [zlib.crc32(tokens.tobytes()) for tokens in stream.next()["tokens"]]
        halves = [rows[: tiny.batch_size // 2], rows[tiny.batch_size // 2 :]]
        expected = halves if row < stopped else [halves[0], halves[0], halves[1], halves[1]]
        assert (first if row < stopped else second)[row] == expected
    stream.close()
    assert min(second) == stopped and max(first) == stopped - tiny.batch_size


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others(tiny, tmp_path, lost):
    config = configured(tiny, fsdp=2, tensor=2)
    ended = start(config, tmp_path / "run", 2, records=tmp_path / "read", signals={lost: (2, signal.SIGKILL)})
    killed = (tmp_path / f"read.{lost}").stat().st_mtime
    assert time.time() - killed < 2 * HEARTBEAT + 6
    assert ended[lost][0] == -signal.SIGKILL
    # Without its coordinator jax aborts while threads still compute; on a busy machine one of them may crash first.
    assert ended[1 - lost][0] in ([1] if lost else [-signal.SIGABRT, -signal.SIGSEGV])
    time.sleep(2)  # until the lifeline has printed its message
    last = next(tmp_path.glob(f"run.2.{1 - lost}.err")).read_text()
    prefix = f"[process {1 - lost} of 2 on {socket.gethostname()}] error: "
    assert f"{prefix}lost process {lost} on {socket.gethostname()}" in last


def test_adapters_over_two_processes(tiny, alone, corpus, data_dir, tmp_path):
    """Both processes read and hash the base and do not write it; the losses equal those of one process."""
    config = shrink(lora.get_config(), data_dir, corpus)
    config.update(steps=3, eval_every=3, checkpoint_every=3, init_from=str(alone))
    config.mesh.update(fsdp=2, tensor=2)
    train(config, tmp_path / "one")
    ended = start(config, tmp_path / "two", 2)
    assert [status for status, *_ in ended] == [0, 0], ended
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    base = [Checkpoints(tmp_path / name, reading=True).loop()["base"] for name in ("one", "two")]
    assert base[0] == base[1]


def test_processes_that_differ_are_refused(tiny, tmp_path):
    """An error in one process ends both, and both print it."""
    ended = start(configured(tiny, data=4), tmp_path / "run", 2, lambda process: [f"--config.seed={process}"])
    assert [status for status, *_ in ended] == [1, 1]
    assert "error: config: process 0 on" in ended[1][2] and "all need the same command" in ended[1][2]
    assert "process 1 of 2" in ended[0][2] and "failed: config: process 0 on" in ended[0][2]
    assert not any("Traceback" in errors for *_, errors in ended)


def test_a_process_that_is_missing_at_the_start(tiny, tmp_path):
    ended = start(configured(tiny), tmp_path / "run", 1, lambda process: ["--processes=2", "--connect_timeout=3"])
    ((status, _, errors),) = ended
    assert status == 1 and "could not connect to the others at --coordinator localhost:" in errors


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"processes": 2}, "--processes without --coordinator, --process"),
        ({"coordinator": "host", "processes": 2, "process": 0}, "'host' is not HOST:PORT"),
        ({"coordinator": "host:1", "processes": 2, "process": 2}, "--process 2 of --processes 2"),
    ],
)
def test_incomplete_flags_are_refused(given, words):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**given), pytest.raises(ConfigError, match=words), distributed.joined():
        pass


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, False),  # in a batch script, before srun
        (
            dict(SLURM_JOB_ID="1", SLURM_NTASKS="8", SLURM_STEP_NODELIST="n[1-8]", SLURM_PROCID="1", SLURM_LOCALID="0"),
            True,
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_clusters_are_recognized_by_their_variables(variables, several, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed._clusters() == several
