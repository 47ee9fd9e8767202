"""A whole line of RLHF on real text: samples, rankings, reward models, best of n, DPO and PPO, against a gold reward.

    python -m tests.benchmarks.over_optimization --init_from=runs/full --out=runs/line --ranked=300 --kl=0.02
    python -m tests.benchmarks.over_optimization --init_from=runs/full --out=runs/line --ranked=60 --kl=0.001

`--init_from` is the quickstart's model, tuned on the standard library's docstrings (launch/README.md, Fine-tuning). As
in Gao et al. (arXiv:2210.10760), a gold reward model takes the place of people. It learned from all docstrings to
prefer the real one to a sample of the model, and says which of two samples is better. A proxy learns from few such
rankings, and the policies are trained for the proxy. The report of the run ppo shows both rewards against the KL. Fewer
rankings make a worse proxy, and a smaller coefficient lets the policy go further from the model that it began with.

Each step is a command of launch/, which is printed. A step that is done is not repeated.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.benchmarks.stdlib_docstrings import questions
from train.record import metrics

_MODEL = "--config.model.dtype=float32"


def _launch(program: str, *flags: str, done: Path) -> None:
    command = [sys.executable, "-m", f"launch.{program}", *flags]
    if not done.exists():
        print(" ".join(["python", *command[1:]]), flush=True)
        subprocess.run(command, check=True)


def _train(config: str, out: Path, *flags: str) -> None:
    _launch("train", f"--config=configs/{config}", f"--workdir={out}", _MODEL, *flags, done=out / "report.html")


def _write(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _samples(model: Path, reward: Path, prompts: Path, out: Path, count: int) -> np.ndarray:
    """Returns the scores of `count` answers of a model to each prompt, [prompts, count]; NaN for empty answers."""
    flags = [f"--workdir={model}", f"--prompts={prompts}", f"--best_of={count}", f"--reward_model={reward}"]
    _launch("generate", *flags, "--temperature=1", "--max_new_tokens=32", f"--output={out}", done=out)
    rows = _read(out.with_name(f"{out.stem}.samples.jsonl"))
    return np.array([[answer["score"] for answer in row["answers"]] for row in rows], float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--init_from", type=Path, default=Path("runs/full"), help="workdir of the tuned model")
    parser.add_argument("--out", type=Path, default=Path("runs/line"), help="folder for everything that is made")
    parser.add_argument("--ranked", type=int, default=300, help="prompts with 4 ranked answers each, for the proxy")
    parser.add_argument("--kl", type=float, default=0.02, help="coefficient of the KL in PPO's reward")
    args = parser.parse_args()
    gold, out = args.out / "gold", args.out / f"ranked{args.ranked}-kl{args.kl}"
    start = f"--config.init_from={args.init_from}"
    out.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"{row['instruction']}\n\n{row['input']}", "real": row["output"]} for row in questions()]
    random.Random(0).shuffle(rows)
    prompts, samples = args.out / "prompts.jsonl", args.out / "samples.jsonl"
    _write(prompts, rows)
    _write(out / "ranked.jsonl", rows[: args.ranked])
    _write(out / "others.jsonl", rows[-300:])

    flags = [f"--workdir={args.init_from}", f"--prompts={prompts}", f"--output={samples}"]
    _launch("generate", *flags, "--temperature=1", "--max_new_tokens=32", done=samples)
    pairs = [
        {"prompt": row["prompt"], "chosen": row["real"], "rejected": row["answers"][0]["answer"]}
        for row in _read(samples)
    ]
    _write(args.out / "gold.jsonl", pairs)
    small = ["--config.optimizer.learning_rate=1e-4", "--config.data.seq_len=256", f"--config.data.dir={args.out}/data"]
    _train("reward.py", gold, start, f"--config.data.path={args.out}/gold.jsonl", *small)
    _samples(args.init_from, gold, out / "ranked.jsonl", out / "best.jsonl", 4)
    ranked = f"--config.data.path={out}/best.samples.jsonl"
    few = ["--config.data.seq_len=512"]  # four answers share a row, each with its prompt
    few += [
        "--config.data.validation=0.2",
        "--config.steps=100",
        "--config.eval_every=50",
        "--config.checkpoint_every=50",
    ]
    _train("reward.py", out / "proxy", start, ranked, *small, *few)
    _train("dpo.py", out / "dpo", start, ranked, *small, *few, "--config.optimizer.learning_rate=3e-5")
    rewards = [f"--config.reward.model={out}/proxy", f"--config.reward.gold={gold}"]
    steps = ["--config.steps=120", "--config.eval_every=5", "--config.eval_rows=128", "--config.checkpoint_every=20"]
    size = ["--config.rollouts.max_new_tokens=32", "--config.rollouts.epochs=2", f"--config.objective.kl={args.kl}"]
    _train("ppo.py", out / "ppo", start, f"--config.data.path={prompts}", *small, *rewards, *steps, *size)

    print("\nmean scores of answers to prompts that were not ranked, sampled at temperature 1")
    print(f"{'':12} {'gold':>8} {'proxy':>8}")
    models = {"start": args.init_from, "DPO": out / "dpo", "PPO": out / "ppo"}
    for name, model in models.items():
        by_gold, by_proxy = (
            _samples(model, reward, out / "others.jsonl", out / f"{name}-{reward.name}.jsonl", 4)
            for reward in (gold, out / "proxy")
        )  # of the same answers
        print(f"{name:12} {np.nanmean(by_gold):8.3f} {np.nanmean(by_proxy):8.3f}")
        if name == "start":
            best = np.nan_to_num(by_proxy, nan=-np.inf).argmax(1)[:, None]
            taken = [np.nanmean(np.take_along_axis(scores, best, 1)) for scores in (by_gold, by_proxy)]
            print(f"{'best of 4':12} {taken[0]:8.3f} {taken[1]:8.3f}")
    print("\nPPO, answers to held-out prompts, by its distance to the start in nats per answer")
    print(f"{'step':>6} {'KL':>8} {'gold':>8} {'proxy':>8}")
    for row in metrics.read(out / "ppo" / "metrics.jsonl"):
        if "validation/gold" in row:
            values = [row[f"validation/{name}"] for name in ("kl", "gold", "reward")]
            print(f"{row['step']:6} " + " ".join(f"{value:8.3f}" for value in values))


if __name__ == "__main__":
    main()
