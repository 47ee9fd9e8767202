"""Compares our training step with transformers' GPT-2 in PyTorch.

    python -m tests.benchmarks.training_step --size=small --dtype=float32 --rounds=8

Each side is a worker process that stays alive. The workers take turns with two steps each, and ratios are paired by
round, so that a busy machine slows both sides. Needs tests/requirements.txt. `--ours` adds a variant of our side: more
flags of launch.benchmark, after environment variables as NAME=VALUE words, e.g. --ours="--config.model.remat=full".
`--python` runs our side in another interpreter.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOKENS = {"small": 16 * 256, "llama": 16 * 256, "gpt2": 4 * 256}  # tokens per step


class Worker:
    """A process that compiles its step, prints facts about it, and then takes steps on request."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.facts = self.read()

    def seconds(self, steps: int) -> float:
        """Returns the mean seconds per step over `steps` steps."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return statistics.mean(self.read())

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = "".join(self.errors.readlines()[-20:])
            sys.exit(f"a worker ended early: {' '.join(self.process.args)}\n{said}")
        return json.loads(line)


def pytorch(size: str, dtype: str, *rest: str) -> Worker:
    """Starts a PyTorch worker. `rest` is the mode, and the method if there is one."""
    return Worker([sys.executable, str(HERE / "torch_step.py"), size, dtype, *rest])


def ours(size: str, dtype: str, python: str, variant: str = "") -> Worker:
    words = variant.split()
    environment = dict(word.split("=", 1) for word in words if not word.startswith("--"))
    flags = [f"--config=configs/benchmark.py:{size}", f"--config.model.dtype={dtype}", "--serve"]
    flags += [word for word in words if word.startswith("--")]
    return Worker([python, "-m", "launch.benchmark", *flags], environment)


def compare(workers: dict[str, Worker], references: list[str], rounds: int, tokens: int) -> None:
    """Runs rounds of two steps per worker, prints tokens/s and speed over each reference, and ends the workers.

    Speeds are compared within a round.
    """
    seconds = {name: [] for name in workers}
    for worker in workers.values():
        worker.seconds(1)
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.seconds(2))
    for worker in workers.values():
        worker.process.kill()
    print(f"{rounds} rounds of 2 steps; speed ratios: median (smallest to largest) over the rounds")
    print(f"{'':44}  tokens/s      best" + "".join(f"  {'over ' + name:>24}" for name in references))
    for name, values in seconds.items():
        row = f"{name:44}  {tokens / statistics.median(values):8,.0f}  {tokens / min(values):8,.0f}"
        for reference in references:
            ratios = [other / own for other, own in zip(seconds[reference], values, strict=True)]
            shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            row += f"  {shown:>24}"
        print(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("small", "gpt2"), default="small")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--ours", action="append", default=[], help="flags of launch.benchmark for a variant of our side"
    )
    parser.add_argument("--python", default=sys.executable, help="Python interpreter that runs our side")
    parser.add_argument("--torch", default="eager,compile", help="PyTorch modes to run, comma-separated")
    args = parser.parse_args()

    workers = {}
    for mode in filter(None, args.torch.split(",")):
        workers[f"PyTorch {mode}"] = pytorch(args.size, args.dtype, mode)
    for variant in ["", *args.ours]:
        workers[f"meshlm {variant}".strip()] = ours(args.size, args.dtype, args.python, variant)
    reference = "PyTorch compile" if "PyTorch compile" in workers else next(iter(workers))
    print(f"{args.size}, {args.dtype}")
    compare(workers, [reference], args.rounds, TOKENS[args.size])


if __name__ == "__main__":
    main()
