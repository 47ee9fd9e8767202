"""On every mesh, rounds of PPO equal one device's: the answers, their rewards and advantages, the steps.

A round is sampled, scored, measured and learned from, and the next one is sampled by the model that came out. Sampling
is the same as long as no probability is rounded over the edge that a random number marks, which is so for this seed.
"""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from launch.run import build
from launch.training.prompting import Asked
from model import architectures, axes
from model.parts import Experts
from model.value_head import ValueHead
from model.weights import by_name, frozen
from tests.model import tiny
from tests.model.test_meshes import sizes
from train import state as states
from train import step
from train.align.rollouts import Rollouts
from train.align.rounds import Prompt, Rewards, Rounds, Settings, Tools
from train.align.sampler import make_sampler
from train.objectives.policy import Policy

# Every axis occurs; each shape compiles a sampler, a measurement and a step.
SHAPES = ["data=2,fsdp=2,tensor=2", "stage=2,expert=2,context=2"]
CONFIG = dataclasses.replace(tiny.LLAMA, experts=Experts(count=4, per_token=2, mlp_dim=16), mlp_pattern=("sparse",))
OBJECTIVE = Policy(
    advantages="gae", scale="none", whiten=True, critic="head", kl=0.1, kl_in="reward", kl_estimator="k1"
).sampling(1.0, 8, 60)
SETTINGS = Settings(2, 1, 1, 6, 1.0, 0, "keep", 0.0, 0, 0)
ENDS, LENGTH, SIZE, UNIT = (0, 1, 2, 3), 32, 16, 8


def rewards(prompts, texts):
    total = np.array([len(text) / 6 + 0.1 * sum(map(ord, text)) % 1 for text in texts])
    return Rewards(total, np.ones(len(total), bool), {})


def rounds(mesh):
    """Yields (batch of a round, its figures, metrics of its step), and last the parameters, on this mesh."""
    make = lambda seed: tiny.filled(states.abstract_model(lambda rngs: architectures.make(CONFIG, rngs)), seed)
    tx, critic_tx = optax.sgd(1.0), optax.sgd(0.1)
    state = states.beside(states.around(make(0), tx), {"reference": frozen(make(1))})
    head = tiny.filled(states.abstract_model(lambda rngs: ValueHead(CONFIG, rngs)), 2)
    state.critic = states.critic(head, critic_tx)
    asked = SimpleNamespace(objective=OBJECTIVE, mesh=mesh, share=lambda batch: batch)
    sample = make_sampler(
        lambda ids: "".join(chr(65 + i) for i in ids), ends=ENDS, vocab_size=60, max_new_tokens=6, temperature=1.0
    )
    rng = np.random.default_rng(0)
    prompts = [Prompt(rng.integers(4, 60, n).astype(np.int32), str(n), {}) for n in (1, 4, 2, 7, 3, 5, 2, 6)]
    tools = Tools(sample, rewards, Asked.measure(asked, 1))
    more = dict(batch_size=SIZE, seq_len=LENGTH, unit=UNIT, seed=0, stream="mesh")
    made = Rounds(prompts, OBJECTIVE, SETTINGS, LENGTH, UNIT, tools)
    source = Rollouts(made, OBJECTIVE, SETTINGS, len(prompts), **more)
    run, put = step.make_train_step(OBJECTIVE, tx, critic_tx=critic_tx), build.put(mesh)
    for _ in range(2):
        batch = source.next(state)
        state, metrics = run(state, put(batch))
        yield batch, source.figures(), jax.device_get(metrics)
    yield ({name: np.asarray(array) for name, array in by_name((state.model, state.critic.model)).items()},)


@functools.cache
def on_one_device():
    mesh = axes.make_mesh({"data": 1}, jax.devices()[:1])
    with axes.use_mesh(mesh):
        return list(rounds(mesh))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mesh_samples_and_learns_the_same(shape):
    alone, mesh = on_one_device(), axes.make_mesh(sizes(shape))
    assert all(steps[-1]["grad_norm"] > 0.5 for steps in alone[:-1])  # the second round is of another model
    with axes.use_mesh(mesh):
        for mine, theirs in zip(rounds(mesh), alone, strict=True):
            for found, wanted in zip(mine, theirs, strict=True):
                assert found.keys() == wanted.keys()
                for name, value in wanted.items():
                    # Tokens are equal. Float32 sums in another order differ by up to 3e-6 in values up to 8.
                    exact = np.asarray(value).dtype.kind == "i"
                    np.testing.assert_allclose(found[name], value, rtol=0, atol=0 if exact else 2e-5, err_msg=name)
