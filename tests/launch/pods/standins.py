"""Stand-ins for gcloud, sbatch, srun, kubectl and curl that record their arguments, for tests of the launchers.

Where the real programs would run a command, tests make these run it too: on fake hosts of slices, or as a job's step.
"""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TPU_VM, SLURM, JOBSET, WORKER = "tpu_vm.sh", "slurm.sh", "gke/jobset.sh", "worker.sh"
PLACE = ["--name=pod", "--zone=us-central1-a"]
IMAGE = ["--name=run", "--image=registry/meshlm:1", "--claim=disk"]
V5E = ["--accelerator=tpu-v5-lite-podslice", "--topology=4x4"]
H100 = ["--accelerator=nvidia-h100-80gb", "--nodes=2", "--gpus=8"]
# Arguments with characters that are special to shells, YAML, Kubernetes or sed.
ARGUMENTS = ["a b", "", "it's", 'say "x"', "$HOME $(id) `id`", "(('stdlib', 1.0),)", "back\\slash\\n", "two\nlines"]
ARGUMENTS += ["--config.data.sources=a&b|c;d>e", "*", "~", "#", "@name@", "%s{}[]", "- x: y", "Übung", "--", "\ttab"]

RECORDER = """#!/bin/bash
{
  printf '%s\\0' "${0##*/}" "$@"
  [ "${0##*/}" != kubectl ] || cat
  printf '\\0\\x1e\\0'
} >>"$RECORD"
"""
# A program that prints how it was called, and "saves" on SIGTERM.
TRAINING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print("saved"), sys.exit()))
print(os.getcwd().split('/')[-2:], sys.argv[1:])  # the signal may be sent once this is printed
time.sleep(60)
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
        """Writes the stand-in of a program: it records its call and then runs the shell code `then`."""
        (self.bin / name).write_text(RECORDER + then)
        (self.bin / name).chmod(0o755)

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        command = ["bash", str(ROOT / "launch" / "pods" / script), *arguments]
        environment = self.environment | variables
        return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def calls(self) -> list[list[str]]:
        """Returns every call so far: the program's name, its arguments, and for kubectl its standard input."""
        calls = self.record.read_text().split("\0\x1e\0")[:-1] if self.record.exists() else []
        return [call.removesuffix("\0").split("\0") for call in calls]


def given(call: list[str]) -> dict[str, str]:
    """Returns the options of a call by name."""
    return dict(re.match(r"--([\w-]+)=?(.*)", word, re.DOTALL).groups() for word in call if word.startswith("--"))
