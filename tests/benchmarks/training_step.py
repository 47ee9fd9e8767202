"""Our training step against transformers' GPT-2 in PyTorch: workers kept alive, two steps in turn, paired ratios.

    python -m tests.benchmarks.training_step --size=small --dtype=float32 --rounds=8

Needs tests/requirements.txt. `--ours` adds a variant of our side: extra launch.benchmark flags, with NAME=VALUE words
before them as environment, e.g. --ours="--config.model.remat=full". `--python` runs our side in another interpreter.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOKENS = {"small": 16 * 256, "gpt2": 4 * 256}


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def ask(worker: subprocess.Popen, steps: int) -> list[float]:
    worker.stdin.write(f"{steps}\n")
    worker.stdin.flush()
    return json.loads(read(worker))


def read(worker: subprocess.Popen) -> str:
    line = worker.stdout.readline()
    if not line:
        sys.exit(f"a worker ended early: {' '.join(worker.args)}")
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=TOKENS, default="small")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--ours", action="append", default=[])
    parser.add_argument("--python", default=sys.executable, help="interpreter of our side")
    parser.add_argument("--torch", default="eager,compile", help="PyTorch modes to run, comma-separated")
    args = parser.parse_args()

    workers = {}
    for mode in filter(None, args.torch.split(",")):
        command = [sys.executable, str(HERE / "torch_gpt2.py"), args.size, args.dtype, mode]
        workers[f"PyTorch {mode}"] = start(command, {})
        read(workers[f"PyTorch {mode}"])
    for variant in ["", *args.ours]:
        words = variant.split()
        environment = dict(w.split("=", 1) for w in words if not w.startswith("--"))
        flags = [w for w in words if w.startswith("--")]
        command = [args.python, "-m", "launch.benchmark", f"--config=configs/benchmark.py:{args.size}", "--serve"]
        name = f"meshlm {variant}".strip()
        workers[name] = start([*command, f"--config.model.dtype={args.dtype}", *flags], environment)
        ask(workers[name], 1)

    seconds = {name: [] for name in workers}
    for _ in range(args.rounds):
        for name, worker in workers.items():
            seconds[name].append(statistics.mean(ask(worker, 2)))
    reference = "PyTorch compile" if "PyTorch compile" in workers else next(iter(workers))
    print(f"{args.size}, {args.dtype}, {args.rounds} rounds of 2 steps; ratio against {reference}, paired by round")
    print(f"{'':48}  tokens/s   ratio   min    max")
    for name, values in seconds.items():
        ratios = [r / v for r, v in zip(seconds[reference], values, strict=True)]
        row = (TOKENS[args.size] / statistics.median(values), statistics.median(ratios), min(ratios), max(ratios))
        print(f"{name:48}  {row[0]:8,.0f}  {row[1]:6.2f}  {row[2]:5.2f}  {row[3]:5.2f}")
    for worker in workers.values():
        worker.kill()


if __name__ == "__main__":
    main()
