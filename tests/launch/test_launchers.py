"""The launchers of pods, with programs in place of gcloud, sbatch, srun, kubectl and curl that record what they get.

Where the real ones would hand a command on, these do so too: to four made-up hosts of two slices, to a job's step.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TPU_VM, SLURM, JOBSET, WORKER = "tpu_vm.sh", "slurm.sh", "gke/jobset.sh", "worker.sh"
PLACE = ["--name=pod", "--zone=us-central1-a"]
IMAGE = ["--name=run", "--image=registry/meshlm:1", "--claim=disk"]
V5E = ["--accelerator=tpu-v5-lite-podslice", "--topology=4x4"]
H100 = ["--accelerator=nvidia-h100-80gb", "--nodes=2", "--gpus=8"]
# What shells, YAML, Kubernetes and sed could take for something of their own.
ARGUMENTS = ["a b", "", "it's", 'say "x"', "$HOME $(id) `id`", "(('stdlib', 1.0),)", "back\\slash\\n", "two\nlines"]
ARGUMENTS += ["--config.data.sources=a&b|c;d>e", "*", "~", "#", "@name@", "%s{}[]", "- x: y", "Übung", "--", "\ttab"]

RECORDER = """#!/bin/bash
{
  printf '%s\\0' "${0##*/}" "$@"
  [ "${0##*/}" != kubectl ] || cat
  printf '\\0\\x1e\\0'
} >>"$RECORD"
"""


class Tools:
    """A directory of programs that record their arguments, first on the PATH."""

    def __init__(self, directory: Path):
        self.bin, self.record, self.home = directory / "bin", directory / "record", directory / "home"
        self.bin.mkdir()
        self.home.mkdir()
        for name in ("gcloud", "sbatch", "srun", "scancel", "scontrol", "kubectl", "curl", "sudo", "tar", "rm"):
            self.program(name)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "TPU", "MESHLM"))}
        self.environment = kept | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "RECORD": str(self.record),
            "HOME": str(self.home),
            "HOSTNAME": "here",
        }

    def program(self, name: str, then: str = "") -> None:
        """Its recorder, and what it does then."""
        (self.bin / name).write_text(RECORDER + then)
        (self.bin / name).chmod(0o755)

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        command = ["bash", str(ROOT / "launch" / script), *arguments]
        environment = self.environment | variables
        return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def calls(self) -> list[list[str]]:
        """Arguments of every call until now, the program's name first, what it was given to read last."""
        calls = self.record.read_text().split("\0\x1e\0")[:-1] if self.record.exists() else []
        return [call.removesuffix("\0").split("\0") for call in calls]


@pytest.fixture
def tools(tmp_path):
    return Tools(tmp_path)


def given(call: list[str]) -> dict[str, str]:
    """Options of a call by name."""
    return dict(re.match(r"--([\w-]+)=?(.*)", word, re.DOTALL).groups() for word in call if word.startswith("--"))


COMMANDS = [
    (TPU_VM, ["create", *PLACE, "--type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--project=mine"]),
    (TPU_VM, ["create", *PLACE, "--type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--slices=2", "--spot"]),
    *(
        (TPU_VM, [verb, *PLACE, *more])
        for verb in ("status", "copy", "tail", "stop", "delete")
        for more in ([], ["--queued"])
    ),
    (TPU_VM, ["start", *PLACE, "--slices=2", "--", "python", *ARGUMENTS]),
    (SLURM, ["--nodes=4", "--gpus=8", "--time=1:00:00", "--partition=p", "--container=c", "--", "python", *ARGUMENTS]),
    (JOBSET, ["start", *IMAGE, *V5E, "--slices=2", "--", "python", *ARGUMENTS]),
    (JOBSET, ["start", *IMAGE, *H100, "--namespace=mine", "--", "python", *ARGUMENTS]),
    *((JOBSET, [verb, "--name=run"]) for verb in ("tail", "status", "stop")),
]


@pytest.mark.parametrize(("script", "arguments"), COMMANDS, ids=lambda x: x if isinstance(x, str) else " ".join(x[:4]))
def test_a_dry_run_does_nothing_and_prints_what_would_be_done(script, arguments, tools):
    done = tools.run(script, *arguments)
    assert done.returncode == 0, done.stderr
    real = tools.calls()
    assert real
    tools.record.unlink()
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    dry = tools.run(script, *arguments[:cut], "--dry_run", *arguments[cut:])
    assert dry.returncode == 0, dry.stderr
    assert not tools.calls()
    subprocess.run(["bash", "-euc", dry.stdout], env=tools.environment, stdin=subprocess.DEVNULL, check=True)
    assert tools.calls() == real


def test_tpus_are_asked_for(tools):
    wanted = ["--type=v5litepod-16", "--version=image"]
    for more in ([], ["--queued"], ["--slices=3", "--spot"]):
        assert tools.run(TPU_VM, "create", *PLACE, *wanted, *more).returncode == 0
    plain, queued, slices = tools.calls()
    same = {"zone": "us-central1-a", "accelerator-type": "v5litepod-16"}
    assert plain[1:6] == ["compute", "tpus", "tpu-vm", "create", "pod"]
    assert given(plain) == same | {"version": "image"}
    assert queued[1:6] == slices[1:6] == ["compute", "tpus", "queued-resources", "create", "pod"]
    assert given(queued) == same | {"runtime-version": "image", "node-id": "pod"}
    many = {"runtime-version": "image", "node-count": "3", "node-prefix": "pod", "spot": ""}
    assert given(slices) == same | many


# Two slices of two hosts: ssh and scp as gcloud has them, each host with a home of its own.
GCLOUD = """
verb=$4 archive=$5 workers='' slices='' command=''
for word; do
  case $word in
    --worker=all) workers='0 1' ;;
    --worker=*) workers=${word#*=} ;;
    --node=all) slices='0 1' ;;
    --node=*) slices=${word#*=} ;;
    --command=*) command=${word#*=} ;;
  esac
done
for SLICE in $slices; do
  for WORKER in $workers; do
    export SLICE WORKER HOME=$HOSTS/$SLICE-$WORKER HOSTNAME=host-$SLICE-$WORKER
    cd "$HOME"
    if [ "$verb" = scp ]; then cp "$archive" meshlm.tar.gz; else bash -c "$command" || exit; fi
  done
done
"""
CURL = """
case ${!#} in
  */agent-worker-number) echo "$WORKER" ;;
  */worker-network-endpoints) echo host-a,host-b ;;
  */tpu-env) printf "ZONE: 'z'\\nMEGASCALE_NUM_SLICES: '2'\\nMEGASCALE_SLICE_ID: '%s'\\n" "$SLICE" ;;
esac
"""
TRAINING = """
import os, signal, sys, time
print(os.getcwd().split('/')[-2:], sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print("saved"), sys.exit()))
time.sleep(60)
"""


def test_a_run_on_two_slices(tools, tmp_path):
    tools.program("gcloud", GCLOUD)
    tools.program("curl", CURL)
    for name in ("tar", "rm"):
        (tools.bin / name).unlink()
    hosts = [tmp_path / "hosts" / f"{slice}-{worker}" for slice in (0, 1) for worker in (0, 1)]
    for host in hosts:
        python = host / "meshlm" / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'{RECORDER}[ "$2" = pip ] || exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        (host / "meshlm" / "of_an_older_checkout.py").touch()
        (host / "meshlm" / "runs").mkdir()
    launcher = lambda verb, *more: tools.run(
        TPU_VM, verb, *PLACE, "--slices=2", *more, HOSTS=str(tmp_path / "hosts"), TMPDIR=str(tmp_path)
    )
    assert (copied := launcher("copy")).returncode == 0, copied.stderr
    assert not list(tmp_path.glob("*.tar.gz"))
    for host in hosts:
        there = {path.name for path in (host / "meshlm").iterdir()}
        assert {"model", "launch", "README.md", "requirements.txt", ".venv", "runs"} <= there
        assert not there & {".git", "of_an_older_checkout.py"}
    installed = [call for call in tools.calls() if call[:3] == ["python", "-m", "pip"] and "jax[tpu]" in call]
    assert len(installed) == 4

    assert (started := launcher("start", "--", "python", "-c", TRAINING, *ARGUMENTS)).returncode == 0, started.stderr
    logs = [host / "meshlm_run" / "log" for host in hosts]
    try:
        again = launcher("start", "--", "true")
        assert again.returncode == 2 and "error: host-0-0: a run is going on" in again.stderr
        until = time.time() + 20
        while time.time() < until and not all(str(ARGUMENTS) in log.read_text() for log in logs):
            time.sleep(0.05)
        assert launcher("status").stdout.count("runs as process") == 4
    finally:
        stopped = launcher("stop")
    assert stopped.returncode == 0, stopped.stderr
    for i, (host, log) in enumerate(zip(hosts, logs, strict=True)):
        prefix = f"[{i}/4 host-{host.name}] "
        assert log.read_text().splitlines()[-2:] == [f"{prefix}['{host.name}', 'meshlm'] {ARGUMENTS}", f"{prefix}saved"]
    assert launcher("status").stdout.count("nothing runs") == 4


JOB = {"SLURM_JOB_ID": "77"}
SRUN = """
while [ "$1" != bash ]; do shift; done
export SLURM_PROCID=5 SLURM_NTASKS=16
"$@" &
echo $! >"$HOME/step"
wait $! || exit
"""


def job(tools, *command):
    """What sbatch would start: the file that it is given, under another name, with the arguments behind it."""
    done = tools.run(SLURM, "--nodes=2", "--gpus=8", "--time=1:00:00", "--", *command)
    assert done.returncode == 0, done.stderr
    [[_, *words]] = tools.calls()
    at = next(i for i, word in enumerate(words) if not word.startswith("--"))
    assert given(words[:at]) == given(words[:at]) | {
        "nodes": "2",
        "ntasks-per-node": "8",  # jax's detection: a process a GPU, each of which sees all
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
    assert [call[0] for call in tools.calls()] == ["srun"]  # and nothing back in the queue


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
    assert rest.splitlines() == ["[5/16 here] saved", "saved before the time limit: back into the queue"]
    assert tools.calls()[1:] == [["scancel", "--signal=TERM", "77"], ["scontrol", "requeue", "77"]]


def manifest(tools, *arguments):
    """(the objects that kubectl gets by kind, words of its call)"""
    done = tools.run(JOBSET, "start", *IMAGE, *arguments)
    assert done.returncode == 0, done.stderr
    *call, text = tools.calls()[-1]
    assert not re.search(r"@\w+@", text.replace('@name@"', "")), "a field that nothing filled in"
    return {found["kind"]: found for found in yaml.safe_load_all(text)}, call


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"), [("4x4", 4, 4), ("2x4", 8, 1), ("16x16", 4, 64), ("4x4x8", 4, 32)]
)
def test_a_job_set_of_tpus(topology, chips, hosts, tools):
    wanted = ["--accelerator=tpu-v5p-slice", f"--topology={topology}", f"--chips={chips}", "--slices=3"]
    objects, _ = manifest(tools, *wanted, "--", "true")
    [slices] = objects["JobSet"]["spec"]["replicatedJobs"]
    assert slices["replicas"] == 3
    spec = slices["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == hosts
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert {volume["name"] for volume in pod["volumes"]} == {v["name"] for v in pod["containers"][0]["volumeMounts"]}


def test_a_job_set_of_gpus_may_ask_who_the_others_are(tools):
    objects, call = manifest(tools, *H100, "--namespace=mine", "--", "true")
    assert call == ["kubectl", "--namespace=mine", "apply", "--filename=-"]
    [nodes] = objects["JobSet"]["spec"]["replicatedJobs"]
    spec = nodes["template"]["spec"]
    assert (nodes["replicas"], spec["parallelism"], spec["completions"]) == (1, 2, 2)
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    account = pod["serviceAccountName"]
    assert account == objects["ServiceAccount"]["metadata"]["name"] == objects["RoleBinding"]["subjects"][0]["name"]
    assert objects["RoleBinding"]["roleRef"]["name"] == objects["Role"]["metadata"]["name"]
    readable = {(rule["apiGroups"][0], what) for rule in objects["Role"]["rules"] for what in rule["resources"]}
    assert readable == {("", "pods"), ("batch", "jobs")}


@pytest.mark.parametrize("kind", [V5E, H100], ids=["tpu", "gpu"])
def test_a_pod_runs_the_command(kind, tools):
    objects, _ = manifest(tools, *kind, "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", *ARGUMENTS)
    [container] = objects["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]} | {"JOB_COMPLETION_INDEX": "1"}
    # Kubernetes puts variables in place of $(NAME), and a dollar in place of two.
    command = [word.replace("$$", "$") for word in container["command"]]
    assert not any(re.search(r"(?<!\$)\$\(", word) for word in container["command"])
    done = subprocess.run(command, env=tools.environment | variables, capture_output=True, text=True, cwd=ROOT)
    who = "1/2" if kind is H100 else "0/1"
    assert (done.returncode, done.stdout) == (0, f"[{who} here] {ARGUMENTS}\n")


@pytest.mark.parametrize(
    ("variables", "who"),
    [
        ({}, "0/1"),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "16"}, "3/16"),
        ({"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}, "2/4"),
        (
            {"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "a,b,c,d", "MEGASCALE_SLICE_ID": "1"}
            | {"MEGASCALE_NUM_SLICES": "2"},
            "6/8",
        ),
    ],
)
def test_every_line_says_which_process_speaks(variables, who, tools):
    code = "import sys; print('one\\ntwo'); print('three', file=sys.stderr); sys.stdout.write('four')"
    done = tools.run(WORKER, "run", "--", sys.executable, "-c", code, **variables)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [f"[{who} here] {word}" for word in ("four", "one", "three", "two")]


@pytest.mark.parametrize(("variables", "status"), [({}, 0), ({"MESHLM_STOPPED_STATUS": "143"}, 143)])
def test_a_signal_to_the_whole_group_costs_no_line(variables, status, tools):
    command = ["bash", str(ROOT / "launch" / WORKER), "run", "--", sys.executable, "-c", TRAINING]
    environment = tools.environment | variables
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    run.stdout.readline()
    os.killpg(run.pid, signal.SIGTERM)
    assert run.communicate(timeout=20)[0] == "[0/1 here] saved\n"
    assert run.returncode == status


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        (TPU_VM, ["launch"], "unknown subcommand 'launch'"),
        (TPU_VM, ["stop", "--zone=z"], "stop needs --name"),
        (TPU_VM, ["create", *PLACE, "--version=image"], "create needs --type"),
        (TPU_VM, ["create", *PLACE, "--typ=v5litepod-16"], "unknown option '--typ'"),
        (TPU_VM, ["create", *PLACE, "--type"], "--type needs a value"),
        (TPU_VM, ["create", *PLACE, "--slices=two"], "--slices must be a whole number above 0, not 'two'"),
        (TPU_VM, ["start", *PLACE], "start needs a command after --"),
        (TPU_VM, ["start", *PLACE, "python"], "unexpected argument 'python'"),
        (TPU_VM, ["stop", *PLACE, "--", "now"], "stop takes no command"),
        (SLURM, ["--nodes=2", "--gpus=8", "--", "true"], "needs --time"),
        (SLURM, ["--nodes=0", "--gpus=8", "--time=1", "--", "true"], "--nodes must be a whole number"),
        (SLURM, ["--nodes=2", "--gpus=8", "--time=1"], "needs a command after --"),
        (JOBSET, ["start", "--name=run", "--", "true"], "start needs --image"),
        (
            JOBSET,
            ["start", *IMAGE, "--accelerator=x", "--", "true"],
            "start needs --topology (TPU), or --nodes and --gpus",
        ),
        (JOBSET, ["start", *IMAGE, *V5E, "--nodes=2", "--", "true"], "not both"),
        (JOBSET, ["start", *IMAGE, *V5E, "--chips=3", "--", "true"], "cannot be split into hosts of 3 chips"),
        (JOBSET, ["start", *IMAGE, *V5E, "--topology=16", "--", "true"], "--topology must be like 4x4"),
        (WORKER, ["run", "--"], "run needs a command"),
        (WORKER, ["tail"], "nothing was started here"),
    ],
)
def test_mistakes_are_one_line(script, arguments, words, tools):
    done = tools.run(script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and words in done.stderr and done.stderr.count("\n") == 1
    assert not tools.calls()


@pytest.mark.parametrize("script", [TPU_VM, SLURM, JOBSET, WORKER])
def test_help_names_what_there_is(script, tools):
    asked, bare = tools.run(script, "--help"), tools.run(script)
    assert (asked.returncode, bare.returncode) == (0, 2)
    assert asked.stdout == bare.stderr
    source = (ROOT / "launch" / script).read_text()
    names = re.findall(r"\w+", " ".join(re.findall(r"^(?:options|switches)=\((.*)\)", source, re.MULTILINE)))
    names += (
        []
        if script in (SLURM, WORKER)
        else re.search(r"^  ([a-z |]+)\) shift ;;", source, re.MULTILINE)[1].split(" | ")
    )
    assert all(re.search(rf"\b{name}\b", asked.stdout) for name in {*names} - {"help"}), names


def test_commands_of_readme(tools):
    text = (ROOT / "README.md").read_text().replace("\\\n", "")
    commands = [shlex.split(line) for line in re.findall(r"^    bash launch/(.*--.*)", text, re.MULTILINE)]
    for script, *arguments in commands:
        cut = arguments.index("--") if "--" in arguments else len(arguments)
        done = tools.run(script, *arguments[:cut], "--dry_run", *arguments[cut:])
        assert done.returncode == 0, done.stderr
    assert {script for script, *_ in commands} == {TPU_VM, SLURM, JOBSET}


def test_the_image_holds_every_package():
    source = (ROOT / "launch" / "gke" / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY (\w+) \1$", source, re.MULTILINE))
    assert copied == {"model", "data", "train", "configs", "launch"}


def test_scripts_pass_shellcheck():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    scripts = [
        name
        for name in tracked
        if name.endswith(".sh") or (ROOT / name).read_bytes().startswith(b"#!/usr/bin/env bash")
    ]
    assert {"launch/tpu_vm.sh", "launch/setup.sh", "tests/run.sh", ".ci/run"} <= {*scripts}
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"  # of tests/requirements.txt
    done = subprocess.run(
        [shellcheck if shellcheck.exists() else "shellcheck", "--external-sources", *scripts],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
