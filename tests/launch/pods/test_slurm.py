"""A Slurm job: what is submitted, and what the job does on its first node."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.pods.standins import ARGUMENTS, ROOT, SLURM, TRAINING, given

JOB = {"SLURM_JOB_ID": "77"}
SRUN = """
while [ "$1" != bash ]; do shift; done
export SLURM_PROCID=5 SLURM_NTASKS=16
"$@" &
echo $! >"$HOME/step"
wait $! || exit
"""


def job(tools, *command):
    """Submits a job and returns the command that sbatch would run: a copy of the given file, with its arguments."""
    done = tools.run(SLURM, "--nodes=2", "--gpus=8", "--time=1:00:00", "--", *command)
    assert done.returncode == 0, done.stderr
    [[_, *words]] = tools.calls()
    at = next(i for i, word in enumerate(words) if not word.startswith("--"))
    assert given(words[:at]) == given(words[:at]) | {
        "nodes": "2",
        "ntasks-per-node": "8",  # jax's cluster detection expects one process per GPU, each of which sees all GPUs
        "gpus-per-node": "8",
        "exclusive": "",
        "requeue": "",
        "signal": "B:USR1@300",
    }
    copy = tools.home / "slurm_script"
    copy.write_text(Path(words[at]).read_text())
    tools.record.unlink()
    return ["bash", str(copy), *words[at + 1 :]]


def test_a_job_runs_the_command_in_its_step(tools):
    tools.program("srun", SRUN)
    words = job(tools, sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(3)", *ARGUMENTS)
    done = subprocess.run(words, env=tools.environment | JOB, capture_output=True, text=True, cwd=tools.home)
    assert (done.returncode, done.stdout) == (3, f"[5/16 here] {ARGUMENTS}\n")
    assert [call[0] for call in tools.calls()] == ["srun"]  # the job is not queued again


@pytest.mark.parametrize(
    ("container", "variables", "expected"),
    [
        ("", {}, ["--cpu-bind=none"]),
        ("image", {"SLURM_CPUS_PER_TASK": "12"}, ["--cpus-per-task=12", "--container-image=image"]),
    ],
)
def test_a_step_has_all_gpus_and_its_cpus(container, variables, expected, tools):
    done = tools.run(SLURM, "job", str(ROOT), container, "true", **JOB, **variables)
    assert done.returncode == 0, done.stderr
    [call] = tools.calls()
    mine = call[1 : call.index("bash")]
    assert mine[:2] == ["--kill-on-bad-exit=1", "--gpu-bind=none"]
    assert mine[2 : 2 + len(expected)] == expected
    assert not container or {f"--container-mounts={ROOT}:{ROOT}", f"--container-workdir={ROOT}"} == {*mine[-2:]}


def test_a_job_near_its_time_limit_saves_and_queues_again(tools):
    tools.program("srun", SRUN)
    tools.program("scancel", 'kill "${1/--signal=/-}" $(<"$HOME/step")\n')
    words = job(tools, sys.executable, "-c", TRAINING.replace("os.getcwd()", "'/a'"))
    started = subprocess.Popen(words, env=tools.environment | JOB, stdout=subprocess.PIPE, text=True, cwd=tools.home)
    assert started.stdout.readline().startswith("[5/16 here]")
    started.send_signal(signal.SIGUSR1)
    rest = started.communicate(timeout=20)[0]
    assert started.returncode == 0
    assert rest.splitlines() == ["[5/16 here] saved", "saved before the time limit; the job is queued again"]
    assert tools.calls()[1:] == [["scancel", "--signal=TERM", "77"], ["scontrol", "requeue", "77"]]
