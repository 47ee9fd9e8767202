"""The steps of TRL's trainers, as a worker of tests.benchmarks.alignment.

python -m tests.benchmarks.alignment.of_trl dpo
"""

import importlib
import logging
import sys
import tempfile
from pathlib import Path

import transformers
import trl

from data.tokens import hub
from data.tokens import tokenizer as tokenizers
from tests.benchmarks.alignment import problem
from tests.benchmarks.alignment.turns import Turns

METHODS = {  # trainer, its settings
    "dpo": ("DPO", dict(beta=problem.BETA)),
    "reward": ("Reward", {}),
    "grpo": ("GRPO", dict(beta=0.0)),
    "grpo-kl": ("GRPO", dict(beta=0.04)),
    "rloo": ("RLOO", dict(beta=0.0)),
}


def _model(kind: str, folder: Path):
    shape = dict(vocab_size=problem.VOCABULARY, hidden_size=problem.WIDTH, num_hidden_layers=problem.LAYERS)
    shape |= dict(num_attention_heads=problem.HEADS, intermediate_size=problem.HIDDEN, max_position_embeddings=192)
    config = transformers.LlamaConfig(**shape, bos_token_id=0, eos_token_id=0, pad_token_id=1, num_labels=1)
    model = getattr(transformers, kind)(config)
    model.save_pretrained(folder)
    model.config._name_or_path = str(folder)  # where TRL looks for further files of the model
    return model


def _tokenizer(folder: Path):
    words = tokenizers.train([row["prompt"] for row in problem.prompts()], "char", specials=["<pad>"])
    for name, text in hub.files(words).items():
        (folder / name).write_text(text)
    found = transformers.AutoTokenizer.from_pretrained(folder)
    found.pad_token = "<pad>"
    return found


class _Between(transformers.TrainerCallback):
    def __init__(self, turns: Turns):
        self._turns = turns

    def on_step_begin(self, *_, **__):
        self._turns()


def main(method: str) -> None:
    turns, (kind, settings) = Turns(), METHODS[method]
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings |= dict(output_dir=name, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False)
        settings |= dict(disable_tqdm=True, save_strategy="no", logging_steps=10, max_steps=100_000)
        settings |= dict(learning_rate=problem.LEARNING_RATE, max_grad_norm=1.0)
        answers = kind in ("GRPO", "RLOO")
        if answers:
            # No end, so that all answers are as long.
            more = dict(generation_kwargs=dict(min_new_tokens=problem.NEW), temperature=1.0)
            more |= dict(per_device_train_batch_size=problem.GROUPS * problem.GROUP, num_generations=problem.GROUP)
            settings |= more | dict(max_completion_length=problem.NEW)
        else:
            settings |= dict(
                per_device_train_batch_size=problem.PAIRS, max_length=2 * (problem.PROMPT + problem.ANSWER)
            )
        rows = importlib.import_module("datasets").Dataset.from_list(
            problem.prompts() if answers else problem.preferences()
        )
        score = lambda completions, **_: [problem.reward(text) for text in completions]
        trainer = getattr(trl, f"{kind}Trainer")(
            model=_model("LlamaForSequenceClassification" if kind == "Reward" else "LlamaForCausalLM", folder),
            args=getattr(trl, f"{kind}Config")(**settings),
            train_dataset=rows,
            processing_class=_tokenizer(folder),
            callbacks=[_Between(turns)],
            **({"reward_funcs": score} if answers else {}),
        )
        if answers:
            generate = trainer._generate

            def timed(*args, **kwargs):
                with turns.sampling():
                    return generate(*args, **kwargs)

            trainer._generate = timed
        trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
