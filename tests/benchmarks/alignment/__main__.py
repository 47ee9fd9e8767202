"""Compares a step of DPO, of a reward model, and of GRPO and RLOO with those of TRL and tunix.

    python -m tests.benchmarks.alignment --methods=dpo,grpo --rounds=5 --tunix=PYTHON

All sides train a LLaMA of 4 layers x 128 in float32, with 4,096 tokens a step, through their own training loops. Each
is a worker process that stays alive; they take turns with a few steps each, and ratios are paired by round, so that a
busy machine slows all sides. Needs tests/requirements.txt. `--tunix` names a Python interpreter with google-tunix and
psutil; without it, tunix is left out.
"""

import argparse
import statistics
import sys

from tests.benchmarks.alignment.of_trl import METHODS
from tests.benchmarks.training_step import ROOT, Worker

_TUNIX = ("dpo", "grpo", "grpo-kl")  # it has no reward model, and RLOO is not measured


def _workers(method: str, tunix: str) -> dict[str, Worker]:
    module = "tests.benchmarks.alignment"
    found = {
        "meshlm": Worker([sys.executable, "-m", f"{module}.ours", method]),
        "TRL": Worker([sys.executable, "-m", f"{module}.of_trl", method]),
    }
    if tunix and method in _TUNIX:
        found["tunix"] = Worker([tunix, "-m", f"{module}.of_tunix", method], {"PYTHONPATH": str(ROOT)})
    return found


def _measured(worker: Worker, steps: int) -> dict[str, float]:
    """Returns seconds per step, with those of the update apart from sampling."""
    worker.process.stdin.write(f"{steps}\n")
    worker.process.stdin.flush()
    found = {name: seconds / steps for name, seconds in worker.read().items()}
    update = {f"update_{kind}": found[kind] - found[f"sampling_{kind}"] for kind in ("wall", "cpu")}
    return found | update


def _row(what: str, seconds: dict[str, list[dict[str, float]]]) -> str:
    row = f"  {what:14}"
    own = [one[what] for one in seconds["meshlm"]]
    for name, rounds in seconds.items():
        values = [one[what] for one in rounds]
        row += f"  {name} {statistics.median(values):.3f}"
        if name != "meshlm":
            ratios = [other / mine for other, mine in zip(values, own, strict=True)]
            row += f" = {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="steps of each side in a round")
    parser.add_argument("--tunix", default="", help="Python interpreter with google-tunix and psutil")
    args = parser.parse_args()
    print("seconds per step, medians; x: how many times those of meshlm, median (smallest to largest) over the rounds")
    for method in args.methods.split(","):
        workers = _workers(method, args.tunix)
        seconds: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for worker in workers.values():
            _measured(worker, 3)
        for _ in range(args.rounds):
            for name, worker in workers.items():
                seconds[name].append(_measured(worker, args.steps))
        for worker in workers.values():
            worker.process.kill()
        print(method)
        samples = any(one["sampling_wall"] for one in seconds["meshlm"])
        for what in (
            "wall",
            "cpu",
            *(("sampling_wall", "sampling_cpu", "update_wall", "update_cpu") if samples else ()),
        ):
            print(_row(what, seconds))


if __name__ == "__main__":
    main()
