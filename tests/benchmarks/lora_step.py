"""Compares a training step of low-rank adapters with our step that trains all weights, and with peft's in PyTorch.

    python -m tests.benchmarks.lora_step --dtype=float32 --rounds=3

The adapters have rank 8 on all linear layers of a LLaMA of 6 layers x 384, with batch 16 x 256. Both sides run over
float weights; ours also runs over 4-bit weights (QLoRA). Both sides must train the same number of parameters. Needs
tests/requirements.txt. `--python` runs our side in another interpreter.
"""

import argparse
import sys

from tests.benchmarks.training_step import TOKENS, compare, ours, pytorch

SIZE = "llama"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", default=sys.executable, help="Python interpreter that runs our side")
    args = parser.parse_args()

    workers = {"meshlm full": ours(SIZE, args.dtype, args.python)}
    for method in ("lora", "qlora"):
        workers[f"meshlm {method}"] = ours(f"{SIZE}-{method}", args.dtype, args.python)
    for mode in ("eager", "compile"):
        workers[f"peft {mode}"] = pytorch(SIZE, args.dtype, mode, "lora")
    counts = {name: worker.facts["trained_parameters"] for name, worker in workers.items()}
    if len({count for name, count in counts.items() if name != "meshlm full"}) != 1:
        sys.exit(f"both sides must train equally many parameters, but they train {counts}")
    print(f"{SIZE}, {args.dtype}, {counts['meshlm full']:,} parameters, {counts['meshlm lora']:,} of adapters")
    compare(workers, ["meshlm full", "peft compile"], args.rounds, TOKENS[SIZE])


if __name__ == "__main__":
    main()
