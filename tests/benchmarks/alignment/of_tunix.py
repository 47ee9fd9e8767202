"""The steps of tunix's trainers, as a worker of tests.benchmarks.alignment. It runs where google-tunix is installed.

python -m tests.benchmarks.alignment.of_tunix dpo
"""

import logging
import string
import sys
from collections.abc import Iterator

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout import base_rollout
from tunix.sft.dpo.dpo_trainer import DataInput, DPOTrainer, DPOTrainingConfig

from tests.benchmarks.alignment import problem
from tests.benchmarks.alignment.turns import Turns

_PAD, _END = 0, 1


class _Letters:
    """A tokenizer with an id for each letter."""

    def encode(self, text: str, **_) -> list[int]:
        return [2 + string.ascii_lowercase.index(letter) for letter in text]

    def decode(self, ids, **_) -> str:
        return "".join(string.ascii_lowercase[int(i) - 2] if 2 <= int(i) < 28 else "?" for i in ids)

    def bos_id(self) -> int:
        return _END

    def eos_id(self) -> int:
        return _END

    def pad_id(self) -> int:
        return _PAD


def _model(seed: int = 0):
    config = llama.ModelConfig(
        num_layers=problem.LAYERS,
        vocab_size=problem.VOCABULARY,
        embed_dim=problem.WIDTH,
        hidden_dim=problem.HIDDEN,
        num_heads=problem.HEADS,
        head_dim=problem.WIDTH // problem.HEADS,
        num_kv_heads=problem.HEADS,
        rope_theta=10_000,
        norm_eps=1e-5,
    )
    return llama.Llama3(config, rngs=nnx.Rngs(seed))


def _optimizer():
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(problem.LEARNING_RATE))


def _rows(turns: Turns, rows: list[dict], count: int, make) -> Iterator:
    place = 0
    while True:
        turns()
        yield make([rows[(place + i) % len(rows)] for i in range(count)])
        place += count


def _dpo(turns: Turns) -> None:
    settings = DPOTrainingConfig(
        eval_every_n_steps=10**9,
        max_steps=10**6,
        beta=problem.BETA,
        max_prompt_length=problem.PROMPT,
        max_response_length=problem.ANSWER + 1,
        max_inflight_computations=1,  # the next batch is asked for when a step is done, so that steps can be measured
    )
    make = lambda rows: DataInput(
        prompts=[row["prompt"] for row in rows],
        chosen_responses=[row["chosen"] for row in rows],
        rejected_responses=[row["rejected"] for row in rows],
    )
    trainer = DPOTrainer(_model(), _model(), _optimizer(), settings, _Letters())
    trainer.train(_rows(turns, problem.preferences(), problem.PAIRS, make))


def _grpo(turns: Turns, beta: float) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = rl_cluster.Role
    rollout = base_rollout.RolloutConfig(
        max_tokens_to_generate=problem.NEW,
        max_prompt_length=problem.PROMPT,
        kv_cache_size=problem.PROMPT + problem.NEW + 1,
        temperature=1.0,
        top_p=None,
        eos_tokens=[10**6],  # no end, so that all answers are as long
    )
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=_optimizer(),
        eval_every_n_steps=10**9,
        max_steps=10**6,
        mini_batch_size=problem.GROUPS,
        train_micro_batch_size=problem.GROUPS,
    )
    cluster = rl_cluster.RLCluster(
        actor=_model(),
        reference=_model() if beta else None,
        tokenizer=_Letters(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys((roles.ACTOR, roles.REFERENCE, roles.ROLLOUT), mesh),
            training_config=training,
            rollout_config=rollout,
        ),
    )
    generate = cluster.generate

    def timed(*args, **kwargs):
        jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
        with turns.sampling():
            return generate(*args, **kwargs)

    cluster.generate = timed
    score = lambda prompts, completions, **_: [problem.reward(text) for text in completions]
    learner = GRPOLearner(cluster, GRPOConfig(num_generations=problem.GROUP, beta=beta), score)
    make = lambda rows: {"prompts": np.array([row["prompt"][1:] for row in rows])}  # it adds a token at the start
    learner.train(_rows(turns, problem.prompts(), problem.GROUPS, make))


def main(method: str) -> None:
    logging.disable(logging.WARNING)
    turns = Turns()
    if method == "dpo":
        _dpo(turns)
    else:
        _grpo(turns, 0.04 if method == "grpo-kl" else 0.0)


if __name__ == "__main__":
    main(sys.argv[1])
