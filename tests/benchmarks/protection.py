"""Measures what protection costs: guarded against unguarded steps, saves, and verifying a checkpoint.

    python -m tests.benchmarks.protection --model=small --steps=8 --rounds=8

Guarded: updates are checked (finite, no spike), a watchdog runs, and phases are timed. Unguarded: none of this, and
every update is applied. Both run the same loop in one process, taking turns. The figures for saves are how long the
loop waits for a save, in steps, and how much slower the steps are while it is written.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

from launch.program import runtime

runtime.configure("training")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import benchmark
from data.batch import DTYPES
from launch.run import build, models
from launch.training import recovery
from model import architectures, axes
from model.weights import replaced, trained
from train import loop, state
from train.checkpoints import manifest
from train.checkpoints.checkpoint import Checkpoints
from train.early_stopping import EarlyStopping
from train.optimizer import gradient_norm
from train.parts import Parts, Schedule
from train.record import metrics
from train.step import make_gradients
from train.watch.goodput import Goodput
from train.watch.phases import Phases


class Rows:
    """Gives the same random rows at every step."""

    def __init__(self, config):
        rng = np.random.default_rng(0)
        shape = (config.batch_size, config.data.seq_len)
        self.batch = {name: np.ones(shape, dtype) for name, dtype in DTYPES.items()}
        self.batch |= {key: rng.integers(0, config.model.vocab_size, shape, np.int32) for key in ("tokens", "targets")}
        self.batch["positions"] = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)

    def next(self):
        return self.batch

    def position(self):
        return {}

    def damaged(self):
        return []


def unguarded(objective, tx):
    """Returns train.step.make_train_step without the check of updates."""
    gradients = make_gradients(objective)

    def train_step(now, batch):
        params = trained(now.model)
        grads, loss = gradients(now, batch)
        updates, opt_state = tx.update(grads, now.opt_state, params)
        model = replaced(now.model, optax.apply_updates(params, updates))
        zero = jnp.zeros((), jnp.int32)
        new = state.TrainState(now.step + 1, model, opt_state, now.skipped, now.streak, now.recent)
        figures = {name: value / loss.weight for name, value in loss.metrics.items()}
        return new, figures | dict(
            grad_norm=gradient_norm(grads), weight=loss.weight, skipped=zero, streak=zero, left_out=zero
        )

    return jax.jit(train_step, donate_argnums=0)


class NoPhases(Phases):
    def __call__(self, name, behind=None):
        return contextlib.nullcontext()


class Runner:
    """Runs one of the two loops: `run(steps)` returns seconds."""

    def __init__(self, config, mesh, model, workdir: Path, protected: bool):
        self.config, self.step, self.protected = config, 0, protected
        tx = build.optimizer(config, model)
        step, _ = build.steps(config, tx, models.objective(config))
        step = step if protected else unguarded(models.objective(config), tx)
        self.state = state.create(lambda rngs: architectures.make(model, rngs), tx, 0)
        self.phases = Phases() if protected else NoPhases()
        checkpoints = Checkpoints(workdir)
        self.parts = Parts(
            train_step=step,
            source=Rows(config),
            checker=None,
            put=build.put(mesh),
            evaluate=None,
            observe=lambda *_: None,
            stopping=EarlyStopping("validation/loss", 0, 0.0, checkpoints.loop()),
            learning_rates=build.learning_rates(config),
            checkpoints=checkpoints,
            phases=self.phases,
            goodput=Goodput(self.phases, {}),
            meet=lambda what: None,
            writer=metrics.Writer(workdir),
            progress=metrics.Progress(10**6, 1, 1.0, 0, console=metrics.Console(quiet=True)),
            workdir=workdir,
        )

    def save(self, steps: int) -> tuple[float, float]:
        """Returns (seconds that the loop waits for a save, seconds per step of the steps after it)."""
        save, times = self.parts.checkpoints.save, []

        def timed(*arguments):
            begin = time.perf_counter()
            save(*arguments)
            times.append((begin, time.perf_counter()))

        self.step -= self.step % (2 * steps)  # saves happen at multiples of 2 * steps
        self.parts.checkpoints.save = timed
        self.run(2 * steps, save_every=steps)
        self.parts.checkpoints.save = save
        (begin, end), (next_begin, _), *_ = times
        return end - begin, (next_begin - end) / steps

    def run(self, steps: int, save_every: int = 0) -> float:
        end = self.step + steps
        schedule = Schedule(end, log_every=4, eval_every=0, checkpoint_every=save_every, max_bad_steps=10)
        watched = recovery.watched(self.config, self.phases) if self.protected else contextlib.nullcontext()
        begin = time.perf_counter()
        with watched:
            self.state, self.step = loop.train(self.state, self.step, {}, schedule, self.parts)
        return (time.perf_counter() - begin) / steps


def spread(values) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="small", help="a model of configs/benchmark.py")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch_size", type=int, default=16)
    for name, default in (("steps", 8), ("rounds", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    config = benchmark.get_config(args.model)
    config.model.dtype, config.batch_size = args.dtype, args.batch_size
    model, mesh = models.model_config(config), build.mesh(config)
    with tempfile.TemporaryDirectory() as folder, axes.use_mesh(mesh):
        both = {on: Runner(config, mesh, model, Path(folder) / str(on), on) for on in (True, False)}
        for runner in both.values():
            runner.run(3)
        seconds = {on: [] for on in both}
        for number in range(args.rounds):
            for on in (True, False) if number % 2 else (False, True):
                seconds[on].append(both[on].run(args.steps))
        ratios = [on / off for on, off in zip(seconds[True], seconds[False], strict=True)]
        size = sum(a.nbytes for a in jax.tree.leaves(both[True].state))
        rows = f"batch {config.batch_size} x {config.data.seq_len}"
        print(f"{args.model}, {args.dtype}, {rows}, {jax.devices()[0].device_kind}")
        print(f"a step without    {spread(seconds[False])} s")
        print(f"a step with       {spread(seconds[True])} s")
        print(f"with / without    {spread(ratios)}")
        runner, step = both[True], statistics.median(seconds[True])
        waits, after = zip(*(runner.save(args.steps) for _ in range(3)), strict=True)
        print(f"a save of {size / 1e6:,.0f} MB: the loop waits {spread([wait / step for wait in waits])} steps")
        print(f"the {args.steps} steps after it take {spread([one / step for one in after])} times as long")
        checkpoint = sorted((Path(folder) / "True" / "checkpoints").iterdir())[-1]
        read = manifest.size(checkpoint)
        begin = time.perf_counter()
        assert manifest.problems(checkpoint) == []
        took = time.perf_counter() - begin
        print(f"verifying {read / 1e6:,.0f} MB, cached: {took:.2f} s, {read / took / 1e6:,.0f} MB/s")


if __name__ == "__main__":
    main()
