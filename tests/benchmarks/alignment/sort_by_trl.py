"""GRPO of TRL on the problem of configs/sort.py, from the same model, to compare accuracy and time.

    python -m launch.convert --workdir=runs/sort/sft --to_hf=runs/sort/sft_hf
    python -m tests.benchmarks.alignment.sort_by_trl --model=runs/sort/sft_hf

Prompts, answers to each, learning rate, schedule and rounds are those of configs/sort.py:grpo; beta is 0. Every 20
rounds, answers to 291 prompts that are not trained on are sampled at temperature 1.
"""

import argparse
import gzip
import importlib
import json
import logging
import time
from pathlib import Path

import torch
import transformers
import trl

_HELD_OUT, _ROUNDS, _EVERY, _NEW = 291, 60, 20, 8


class _Evaluations(transformers.TrainerCallback):
    def __init__(self, rows: list[dict], words):
        self._rows, self._words = rows, words
        self._wall = self._cpu = self._spent_wall = self._spent_cpu = 0.0

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step == 0:
            self._evaluate(model, 0)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, args, state, control, model=None, **_):
        self._spent_wall += time.perf_counter() - self._wall
        self._spent_cpu += time.process_time() - self._cpu
        if state.global_step % _EVERY == 0:
            self._evaluate(model, state.global_step)

    def _evaluate(self, model, step: int) -> None:
        model.eval()
        asked = self._words(
            [row["prompt"] for row in self._rows], return_tensors="pt", padding_side="left", padding=True
        )
        with torch.no_grad():
            found = model.generate(**asked, max_new_tokens=_NEW, do_sample=True, temperature=1.0, top_k=0)
        texts = self._words.batch_decode(found[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        right = sum(text == row["answer"] for text, row in zip(texts, self._rows, strict=True)) / len(texts)
        spent = f"{self._spent_wall:.1f} s of wall time, {self._spent_cpu:.1f} s of CPU time"
        print(f"round {step:3}  right {right:.3f}  {spent}", flush=True)
        model.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="the folder that launch.convert wrote")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    with gzip.open(Path("data/suites/sort/prompts.jsonl.gz"), "rt") as lines:
        rows = [json.loads(line) for line in lines]
    words = transformers.AutoTokenizer.from_pretrained(args.model)
    words.pad_token = words.pad_token or words.eos_token
    settings = trl.GRPOConfig(
        output_dir=f"{args.model}-trl",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        per_device_train_batch_size=128,
        num_generations=8,
        max_completion_length=_NEW,
        temperature=1.0,
        beta=0.0,
        loss_type="grpo",
        max_steps=_ROUNDS,
        learning_rate=3e-4,
        lr_scheduler_type="cosine",
        warmup_steps=3,
        adam_beta2=0.99,
    )
    trainer = trl.GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
        reward_funcs=lambda completions, answer, **_: [
            float(text == right) for text, right in zip(completions, answer, strict=True)
        ],
        args=settings,
        train_dataset=importlib.import_module("datasets").Dataset.from_list(rows[_HELD_OUT:]),
        processing_class=words,
        callbacks=[_Evaluations(rows[:_HELD_OUT], words)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
