"""Features that all launchers share: dry runs, errors, help, prefixed lines, README's commands, shellcheck."""

import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.launch.pods.standins import (
    ARGUMENTS,
    H100,
    IMAGE,
    JOBSET,
    PLACE,
    ROOT,
    SLURM,
    TPU_VM,
    TRAINING,
    V5E,
    WORKER,
)

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
def test_a_dry_run_prints_commands_that_do_the_same(script, arguments, tools):
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
def test_every_line_names_its_process(variables, who, tools):
    code = "import sys; print('one\\ntwo'); print('three', file=sys.stderr); sys.stdout.write('four')"
    done = tools.run(WORKER, "run", "--", sys.executable, "-c", code, **variables)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [f"[{who} here] {word}" for word in ("four", "one", "three", "two")]


@pytest.mark.parametrize(("variables", "status"), [({}, 0), ({"MESHLM_STOPPED_STATUS": "143"}, 143)])
def test_no_line_is_lost_after_a_signal_to_the_whole_group(variables, status, tools):
    command = ["bash", str(ROOT / "launch" / "pods" / WORKER), "run", "--", sys.executable, "-c", TRAINING]
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
        (WORKER, ["tail"], "nothing was started on this host"),
    ],
)
def test_mistakes_are_one_line(script, arguments, words, tools):
    done = tools.run(script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and words in done.stderr and done.stderr.count("\n") == 1
    assert not tools.calls()


@pytest.mark.parametrize("script", [TPU_VM, SLURM, JOBSET, WORKER])
def test_help_names_all_options_and_subcommands(script, tools):
    asked, bare = tools.run(script, "--help"), tools.run(script)
    assert (asked.returncode, bare.returncode) == (0, 2)
    assert asked.stdout == bare.stderr
    source = (ROOT / "launch" / "pods" / script).read_text()
    names = re.findall(r"\w+", " ".join(re.findall(r"^(?:options|switches)=\((.*)\)", source, re.MULTILINE)))
    names += [] if script in (SLURM, WORKER) else re.search(r"^start_with '([a-z ]+)'", source, re.MULTILINE)[1].split()
    assert all(re.search(rf"\b{name}\b", asked.stdout) for name in {*names} - {"help"}), names


def test_commands_of_readme(tools):
    text = (ROOT / "launch" / "README.md").read_text().replace("\\\n", "")
    commands = [shlex.split(line) for line in re.findall(r"^    bash launch/pods/(.*--.*)", text, re.MULTILINE)]
    for script, *arguments in commands:
        cut = arguments.index("--") if "--" in arguments else len(arguments)
        done = tools.run(script, *arguments[:cut], "--dry_run", *arguments[cut:])
        assert done.returncode == 0, done.stderr
    assert {script for script, *_ in commands} == {TPU_VM, SLURM, JOBSET}


def test_the_image_holds_every_package():
    source = (ROOT / "launch" / "pods" / "gke" / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY (\w+) \1$", source, re.MULTILINE))
    assert copied == {"model", "data", "train", "configs", "launch"}


def test_scripts_pass_shellcheck():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    scripts = [
        name
        for name in tracked
        if name.endswith(".sh") or (ROOT / name).read_bytes().startswith(b"#!/usr/bin/env bash")
    ]
    assert {"launch/pods/tpu_vm.sh", "launch/setup.sh", "tests/run.sh", ".ci/run"} <= {*scripts}
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"  # from tests/requirements.txt
    done = subprocess.run(
        [shellcheck if shellcheck.exists() else "shellcheck", "--external-sources", *scripts],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
