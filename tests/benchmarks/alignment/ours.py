"""The steps of launch.train, as a worker of tests.benchmarks.alignment.

python -m tests.benchmarks.alignment.ours dpo
"""

from launch.program import runtime

runtime.configure("training")  # before jax is imported

import contextlib
import functools
import importlib
import json
import sys
import tempfile
from pathlib import Path

import jax
from flax import nnx

from configs import sort
from data.tokens import tokenizer
from launch.run import models, workdirs
from launch.train import train
from launch.training import prompting, runs
from model import architectures
from tests.benchmarks.alignment import problem
from tests.benchmarks.alignment.turns import Turns

METHODS = {  # config, its settings
    "dpo": ("dpo", {"objective.beta": problem.BETA}),
    "reward": ("reward", {}),
    "grpo": ("grpo", {}),
    "grpo-kl": ("grpo", {"objective.kl": 0.04}),
    "rloo": ("rloo", {}),
}


def _base(folder: Path) -> None:
    """Writes a workdir with a random model."""
    config = sort.get_config("sft")
    words = tokenizer.train([row["prompt"] for row in problem.prompts()], "char")
    config.model.update(num_layers=problem.LAYERS, embed_dim=problem.WIDTH, mlp_dim=problem.HIDDEN)
    config.model.update(num_heads=problem.HEADS, num_kv_heads=problem.HEADS, head_dim=problem.WIDTH // problem.HEADS)
    model = architectures.make(models.model_config(config, words.vocab_size), nnx.Rngs(0))
    workdirs.create(folder, config.to_dict(), model, words)


def _configured(method: str, folder: Path):
    name, changes = METHODS[method]
    config = importlib.import_module(f"configs.{name}").get_config()
    rows = problem.preferences() if name in ("dpo", "reward") else problem.prompts()
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.init_from, config.data.path, config.data.dir = str(folder / "base"), str(folder / "data.jsonl"), str(folder)
    config.model.dtype, config.data.validation = "float32", 0.02
    config.steps, config.eval_every, config.checkpoint_every, config.log_every = 100_000, 0, 0, 10
    config.optimizer.learning_rate, config.optimizer.warmup_steps = problem.LEARNING_RATE, 0
    if name in ("dpo", "reward"):
        kind = "preferences" if name == "dpo" else "rankings"
        config.data[kind].template = "plain"
        config.batch_size, config.data.seq_len = problem.PAIRS, 128  # a row has both answers
    else:
        config.data.prompts.template = "plain"
        config.batch_size, config.data.seq_len = problem.GROUPS * problem.GROUP, 64
        config.rollouts.group, config.rollouts.max_new_tokens = problem.GROUP, problem.NEW
        config.reward.functions = ((f"{Path(__file__).resolve()}:vowels", 1.0),)
    config.update_from_flattened_dict(changes)
    return config


def vowels(prompt, completion, columns):
    return problem.reward(completion)


def main(method: str) -> None:
    turns = Turns(lambda state: jax.block_until_ready(state.step))
    source_of, make_sampler = runs.Run.source, prompting.make_sampler

    def source(run, *args, **kwargs):
        found = source_of(run, *args, **kwargs)
        get = found.next
        found.next = lambda state: (turns(state), get(state))[1]
        return found

    def sampler(*args, **kwargs):
        sample = make_sampler(*args, **kwargs | {"ends": ()})  # no end, so that all answers are as long

        @functools.wraps(sample)
        def timed(*given):
            jax.block_until_ready(nnx.state(given[0]))  # the update before it is still being computed
            with turns.sampling():
                return sample(*given)

        return timed

    runs.Run.source, prompting.make_sampler = source, sampler
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        _base(Path(folder) / "base")
        train(_configured(method, Path(folder)), Path(folder) / "run")


if __name__ == "__main__":
    main(sys.argv[1])
