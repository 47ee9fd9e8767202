"""Trains a run from its last checkpoint to its end. launch.train and the trials of launch.sweep call it."""

import contextlib
import dataclasses
import functools
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from launch.answers import grading, held_out, safety
from launch.hosts import distributed
from launch.run import build, checks, early_stopping, locks, places, workdirs
from launch.training import critics, recovery, references, runs
from model import axes, weights
from train import loop
from train.checkpoints.checkpoint import Checkpoints
from train.parts import Parts
from train.record import lines, metrics, mfu
from train.report import run_report, summary
from train.state import TrainState
from train.watch import goodput
from train.watch.phases import Phases
from train.watch.silent_corruption import Checker


def train(config: ConfigDict, workdir: Path, chosen: Iterable[str] = (), observe: Callable = lambda *_: None) -> bool:
    """Trains or continues the run in `workdir`; returns whether it is done (if not, a signal stopped it).

    Args:
      config: of the run.
      workdir: of the run; created if it does not exist.
      chosen: fields that the user has set.
      observe: called with (step, figures) after each evaluation. An error that it raises ends the run without a save,
        and is raised from here.

    Raises:
      ConfigError: the config can't be run, or does not fit the workdir.
      DataError: there are no data, or they can't be prepared or read.
      CheckpointError: no checkpoint can be read, or the last save failed.
      TrainingStopped, SilentCorruption, UnknownMetric: see loop.train.
    """
    places.check(workdir)
    back = None
    with locks.alone(workdir, "trains") if jax.process_index() == 0 else contextlib.nullcontext():
        while True:
            try:
                return _Attempt(workdir, observe, back).run(config, chosen)
            except loop.RollBack as error:
                back = error.with_traceback(None)  # the traceback would keep the state alive


class _Attempt:
    """One attempt, from the last checkpoint to the end of the run, a signal or a roll-back.

    `run` calls the other methods in order.

    Args:
      workdir, observe: see `train`.
      back: the roll-back that ended the previous attempt, or None. This attempt continues after the data that it names.
    """

    def __init__(self, workdir: Path, observe: Callable, back: loop.RollBack | None):
        self.workdir, self.observe, self.back = workdir, observe, back
        self.phases, self.began = Phases(), time.time()
        self.first = jax.process_index() == 0
        self.step = 0  # the last step that was done
        self.saved: dict = {}  # the JSON of the checkpoint
        self.state: TrainState

    def run(self, config: ConfigDict, chosen: Iterable[str]) -> bool:
        with contextlib.ExitStack() as stack:
            stack.enter_context(goodput.counted(self.phases))
            with self.phases("start"):
                self._open(config, chosen)
            stack.enter_context(recovery.watched(self.opened.config, self.phases))
            self._find_checkpoint(stack)
            if self.step >= self.opened.config.steps or self.stopping.ended:
                _say_done(self.workdir, self.step, self.stopping)
                return True
            stack.enter_context(axes.use_mesh(self.opened.mesh))
            self._restore()
            with self.phases("start"):
                parts = self._parts(stack)
                self._describe()
            if self.back is not None:
                words = f"rolled back to step {self.step}: {self.back}; continues with the data after them"
                parts.progress.message(words)
            if not self.step:
                self._evaluate_first(parts)
            schedule = build.loop_schedule(self.opened.config)
            self.state, self.step = loop.train(self.state, self.step, self.saved, schedule, parts)
        return self._finish(parts)

    def _open(self, config: ConfigDict, chosen: Iterable[str]) -> None:
        """Makes everything that needs no checkpoint: data, optimizer, jitted steps."""
        run = self.opened = runs.opened(config, self.workdir, chosen)
        self.tx, self.rates = run.optimizer(), build.learning_rates(run.config)
        critic_tx = critics.optimizer(run.config, run.model)
        self.train_step, self.eval_step = build.steps(run.config, self.tx, run.objective, critic_tx)
        grade = grading.evaluation_of(run.config, run.prepared, run.model, run.words)
        refusals = safety.evaluation_of(run.config, run.model, run.words)
        self.answers = lambda model: grade(model) | refusals(model)  # figures of what the model answers

    def _find_checkpoint(self, stack: contextlib.ExitStack) -> None:
        """Finds the newest intact checkpoint, the same in all processes."""
        config = self.opened.config
        with self.phases("restore"):
            self.aside = recovery.settle(self.workdir, config.verify_checkpoints)
        metric = config.early_stopping.metric
        # verify="off", because `settle` has just compared the files.
        self.checkpoints = Checkpoints(self.workdir, config.keep_last, config.keep_best, metric, verify="off")
        stack.push(functools.partial(_close, self.checkpoints))
        self.step = self.checkpoints.latest_step or 0
        distributed.agree("latest checkpoint", str(self.step))
        self.stopping = early_stopping.make(config, self.checkpoints.loop())

    def _restore(self) -> None:
        """Makes or restores the state before the next step, and the JSON of its checkpoint ({} at the start)."""
        with self.phases("start"):
            self.opened = references.stored(self.opened, self.checkpoints, self.step)
            self.state = self.opened.state(self.tx, self.checkpoints, self.step)
        if self.step:
            with self.phases("barrier"):
                self._meet(f"restoring step {self.step}")
            with self.phases("restore"):
                self.state, self.saved = self.checkpoints.restore(self.state)
            print(f"continuing {self.workdir} after step {self.step}")

    def _meet(self, what: str) -> None:
        distributed.meet(what, seconds=self.opened.config.watchdog.barrier)

    def _parts(self, stack: contextlib.ExitStack) -> Parts:
        """Returns the parts that the training loop calls."""
        run, config = self.opened, self.opened.config
        recorded = metrics.read(self.workdir / "metrics.jsonl")
        source = self._source(recorded)
        stack.enter_context(contextlib.closing(source))
        distributed.first_writes(
            self.workdir / "config.json", lambda: workdirs.claim(self.workdir, config, run.prepared)
        )
        if run.asked is not None:
            stack.callback(run.asked.rewarding.close)
        if self.back is not None:
            earlier = goodput.rolled_back(self.saved.get("wall", {}), self.back.wall)
        else:
            earlier = recovery.earlier(recorded, self.saved, self.began)
        spent = goodput.Goodput(self.phases, earlier)
        writer = metrics.Writer(self.workdir, resume_step=self.step or -1, enabled=self.first)
        stack.enter_context(contextlib.closing(writer))
        self._record_start(writer, int(earlier["starts"]), spent)
        self.flops = build.flops(config, self.state, run.corruption)
        self.tokens = 0 if run.asked else config.batch_size * config.data.seq_len  # 0: answers have any length
        self.peak, self.peak_words = mfu.peak_flops(run.mesh.devices.flat, run.model.dtype)
        evaluate = run.evaluation(self.eval_step)
        return Parts(
            train_step=self.train_step,
            source=source,
            checker=Checker(self.train_step, distributed.device_name),
            put=build.put(run.mesh),
            evaluate=lambda state: evaluate(state) | self.answers(state.model),
            observe=self.observe,
            stopping=self.stopping,
            learning_rates=self.rates,
            checkpoints=self.checkpoints,
            phases=self.phases,
            goodput=spent,
            meet=self._meet,
            writer=writer,
            progress=metrics.Progress(
                config.steps,
                self.tokens,
                self.flops,
                self.peak,
                self.step,
                perplexity=run.objective.predicts_tokens,
                shown=run.objective.progress,
            ),
            workdir=self.workdir,
        )

    def _source(self, recorded: list[dict]):
        """Returns the batches after those of the checkpoint; after a roll-back, those after the bad ones."""
        place = recovery.position(recorded, self.step, self.saved)
        if self.back is not None:
            recovery.limit_roll_backs(recorded, self.step, self.back)
            place = self.back.position
            self.state = dataclasses.replace(self.state, streak=jnp.zeros_like(self.state.streak))
        return self.opened.source(place)

    def _record_start(self, writer: metrics.Writer, starts: int, spent: goodput.Goodput) -> None:
        for event in self.aside:
            writer.event(self.step, event)
        if self.back is not None:
            event = {"rolled_back": str(self.back), "from_step": self.back.step, "position": self.back.position}
            writer.event(self.step, event)
        writer.event(self.step, {"start": starts, "wall": spent.wall()})

    def _describe(self) -> None:
        """Prints the first lines of the log, and stores the facts for the report."""
        run = self.opened
        words = f"{mfu.MFU_CONVENTION} Here: {self.peak_words}"
        facts = summary.facts(self.state.model, self.flops, run.mesh, run.prepared, words)
        facts["no_bits_per_byte"] = held_out.no_bits_per_byte(run.prepared, run.corruption)
        if self.first:
            summary.update(self.workdir, facts)
        trains = weights.trained(self.state.model)
        print("\n".join([summary.headline(facts), *checks.notes(run.config, run.model, trains)]))

    def _evaluate_first(self, parts: Parts) -> None:
        """Evaluates before step 1 if the run begins with another run's model, to compare with it at the end. Also if
        early stopping uses other metrics than validation/loss, because only an evaluation shows whether they exist."""
        config = self.opened.config
        named = parts.stopping.metric != "validation/loss" or parts.stopping.bounded
        if (config.init_from or named) and config.eval_every:
            with parts.phases("evaluate"):
                before = parts.evaluate(self.state)
            parts.stopping.rank(before)
            parts.writer.write(0, before)
            parts.progress.message(lines.evaluation(0, before))

    def _finish(self, parts: Parts) -> bool:
        """Writes the report and the last lines of the log; returns whether the run is done."""
        config, stopping = self.opened.config, self.stopping
        wall = parts.goodput.wall()
        done = {"goodput": goodput.share(wall), "wall": wall, "tokens": self.step * self.tokens}
        done |= {"bound": stopping.outcome()}
        done |= {"best": stopping.best(), "ended": f"Ended early: {stopping.why()}." if stopping.ended else ""}
        if self.first:
            summary.update(self.workdir, done)
            if config.init_from:
                recorded = metrics.read(self.workdir / "metrics.jsonl")
                meanings = self.opened.objective.meanings
                print(held_out.before_and_after(recorded, stopping.step, meanings), end="")
            print(f"{goodput.line(wall)}\nreport: {run_report.write_report(self.workdir)}")
        if done["bound"]:
            print(done["bound"])
        if stopping.ended:
            print(done["ended"])
        elif self.step < config.steps:
            print(f"stopped after step {self.step}, saved. To continue:\n  {_command()}")
        return stopping.ended or self.step >= config.steps


def _close(checkpoints: Checkpoints, kind, *_) -> None:
    """Waits for a save in progress, unless a second Ctrl-C ends the run."""
    if kind is not KeyboardInterrupt:
        checkpoints.close()


def _say_done(workdir: Path, step: int, stopping) -> None:
    why, how = f"{step} steps", "start a new run with more config.steps"
    if stopping.ended:
        why, how = stopping.why(), "raise config.early_stopping.patience"
    print(f"{workdir} is done: {why}. To train longer, {how}.")
    curve, page = workdir / "metrics.jsonl", workdir / "report.html"
    outdated = curve.exists() and (not page.exists() or page.stat().st_mtime < curve.stat().st_mtime)
    if outdated and jax.process_index() == 0:  # the run was killed before its report was written
        print(f"report: {run_report.write_report(workdir)}")


def _command() -> str:
    """Returns the command that continues this run."""
    return shlex.join(["python", "-m", "launch.train", *sys.argv[1:]])
