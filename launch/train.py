"""Train a model by a config, or continue the run of a workdir.

    python -m launch.train --config=configs/NAME.py:ARG --workdir=DIR --config.optimizer.learning_rate=3e-4

The same command again continues the run, or says that it is done. SIGTERM or Ctrl-C saves first. On several hosts the
same command on each of them: launch/hosts/distributed.py.
"""

if __package__ in (None, ""):  # as a script, launch/ would be the first place where modules are looked for
    raise SystemExit("start it from the checkout as: python -m launch.train")

from launch.program import runtime

runtime.configure("training")

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
from absl import flags
from ml_collections import ConfigDict, config_flags

from launch.answers import grading, held_out
from launch.hosts import distributed
from launch.run import build, early_stopping, locks, places, workdirs
from launch.training import recovery, replay, runs
from model import axes, weights
from train import loop
from train.checkpoints.checkpoint import Checkpoints
from train.early_stopping import value_of
from train.parts import Parts
from train.record import lines, metrics, mfu
from train.report import run_report, summary
from train.watch import goodput
from train.watch.phases import Phases
from train.watch.silent_corruption import Checker

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with its argument after a colon. Required.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the config, metrics, checkpoints and report of the run. Required."
)
_REPLAY = flags.DEFINE_integer(
    "replay",
    None,
    "Do a step that the run has taken again, from the checkpoint before it, and show it.",
    lower_bound=1,
)
flags.adopt_module_key_flags(distributed)


def train(config: ConfigDict, workdir: Path, chosen: Iterable[str] = (), observe: Callable = lambda *_: None) -> bool:
    """Train or continue the run in `workdir`; whether it is done (else a signal stopped it).

    Args:
      chosen: fields that the user has set.
      observe: (step, figures) of each evaluation; what it raises ends the run without a save, and is raised from here.
    """
    places.check(workdir)
    back = None
    with locks.alone(workdir, "trains") if jax.process_index() == 0 else contextlib.nullcontext():
        while True:
            try:
                return _train(config, workdir, chosen, observe, back)
            except loop.RollBack as error:
                back = error.with_traceback(None)  # which would keep the state that it came from


def _train(config, workdir, chosen, observe, back: loop.RollBack | None) -> bool:
    """`train`, from the last checkpoint; `back`: with the data behind those that it names."""
    phases, began = Phases(), time.time()
    with contextlib.ExitStack() as stack:
        stack.enter_context(goodput.counted(phases))
        with phases("start"):
            run = runs.opened(config, workdir, chosen)
            config, prepared, mesh = run.config, run.prepared, run.mesh
            tx, rates = run.optimizer(), build.learning_rates(config)
            train_step, eval_step = build.steps(config, tx, prepared.labels)
            grade = grading.evaluation_of(config, prepared, run.model, run.words)
        stack.enter_context(recovery.watched(config, phases))
        with phases("restore"):
            aside = recovery.settle(workdir, config.verify_checkpoints)
        metric = config.early_stopping.metric
        checkpoints = Checkpoints(workdir, config.keep_last, config.keep_best, metric, verify="off")  # which is settled
        stack.push(functools.partial(_close, checkpoints))
        step = checkpoints.latest_step or 0
        distributed.agree("latest checkpoint", str(step))
        stopping = early_stopping.make(config, checkpoints.loop())
        if step >= config.steps or stopping.ended:
            _say_done(workdir, step, stopping)
            return True
        stack.enter_context(axes.use_mesh(mesh))
        meet = functools.partial(distributed.meet, seconds=config.watchdog.barrier)
        with phases("start"):
            state, checkpoints.base = run.state(tx, resume=step > 0)
        saved: dict = {}
        if step:
            with phases("barrier"):
                meet(f"restoring step {step}")
            with phases("restore"):
                state, saved = checkpoints.restore(state)
            print(f"continuing {workdir} after step {step}")
        with phases("start"):
            first = jax.process_index() == 0
            recorded = metrics.read(workdir / "metrics.jsonl")
            place = recovery.position(recorded, step, saved)
            if back is not None:
                recovery.limit_roll_backs(recorded, step, back)
                place, state = back.position, dataclasses.replace(state, streak=jnp.zeros_like(state.streak))
            source = run.source(place)
            stack.enter_context(contextlib.closing(source))
            distributed.first_writes(workdir / "config.json", lambda: workdirs.claim(workdir, config, prepared))
            if back is not None:
                earlier = goodput.rolled_back(saved.get("wall", {}), back.wall)
            else:
                earlier = recovery.earlier(recorded, saved, began)
            spent = goodput.Goodput(phases, earlier)
            writer = metrics.Writer(workdir, resume_step=step or -1, enabled=first)
            stack.enter_context(contextlib.closing(writer))
            for event in aside:
                writer.event(step, event)
            if back is not None:
                writer.event(step, {"rolled_back": str(back), "from_step": back.step, "position": back.position})
            writer.event(step, {"start": earlier["starts"], "wall": spent.wall()})
            trains = weights.trained(state.model)
            flops = build.flops(config, run.model, trains, run.corruption)
            tokens = config.batch_size * config.data.seq_len
            peak, peak_words = mfu.peak_flops(mesh.devices.flat, run.model.dtype)
            evaluate = held_out.evaluation(config, prepared, run.corruption, eval_step, mesh)
            words = config.objective.name == "language"
            parts = Parts(
                train_step=train_step,
                source=source,
                checker=Checker(train_step, distributed.device_name),
                put=build.put(mesh),
                evaluate=lambda model: evaluate(model, config.eval_rows or None) | grade(model),
                observe=observe,
                stopping=stopping,
                learning_rates=rates,
                checkpoints=checkpoints,
                phases=phases,
                goodput=spent,
                meet=meet,
                writer=writer,
                progress=metrics.Progress(config.steps, tokens, flops, peak, step, perplexity=words),
                workdir=workdir,
            )
            facts = summary.facts(state.model, flops, mesh, prepared, f"{mfu.MFU_CONVENTION} Here: {peak_words}")
            facts["no_bits_per_byte"] = held_out.no_bits_per_byte(prepared, run.corruption)
            if first:
                summary.update(workdir, facts)
            print("\n".join([summary.headline(facts), *build.notes(config, run.model, trains)]))
        if back is not None:
            parts.progress.message(f"rolled back to step {step}: {back}; goes on with the data behind them")
        if not step:
            _evaluate_first(config, state, parts)
        state, step = loop.train(state, step, saved, build.loop_schedule(config), parts)
    wall = parts.goodput.wall()
    done = {"goodput": goodput.share(wall), "wall": wall, "tokens": step * tokens}
    done |= {"best": stopping.best(), "ended": f"Ended early: {stopping.why()}." if stopping.ended else ""}
    if first:
        summary.update(workdir, done)
        if config.init_from:
            print(held_out.before_and_after(metrics.read(workdir / "metrics.jsonl"), stopping.step), end="")
        print(f"{goodput.line(wall)}\nreport: {run_report.write_report(workdir)}")
    if stopping.ended:
        print(done["ended"])
    elif step < config.steps:
        print(f"stopped after step {step}, saved. To continue:\n  {_command()}")
    return stopping.ended or step >= config.steps


def _close(checkpoints: Checkpoints, kind, *_) -> None:
    """At once where a second Ctrl-C ends the run: a save may be under way, which is waited for otherwise."""
    if kind is not KeyboardInterrupt:
        checkpoints.close()


def _say_done(workdir: Path, step: int, stopping) -> None:
    why, how = f"{step} steps", "start a new run with more config.steps"
    if stopping.ended:
        why, how = stopping.why(), "raise config.early_stopping.patience"
    print(f"{workdir} is done: {why}. To train longer, {how}.")
    curve, page = workdir / "metrics.jsonl", workdir / "report.html"
    behind = curve.exists() and (not page.exists() or page.stat().st_mtime < curve.stat().st_mtime)
    if behind and jax.process_index() == 0:  # it was killed before its report was written
        print(f"report: {run_report.write_report(workdir)}")


def _evaluate_first(config: ConfigDict, state, parts: Parts) -> None:
    """Where there is something to compare with later, or a metric of which only this shows whether there is one."""
    named = parts.stopping.metric != "validation/loss"
    if (config.init_from or named) and config.eval_every:
        with parts.phases("evaluate"):
            before = parts.evaluate(state.model)
        value_of(parts.stopping.metric, before)
        parts.writer.write(0, before)
        parts.progress.message(lines.evaluation(0, before))


def _command() -> str:
    """This process, as it can be started again."""
    return shlex.join(["python", "-m", "launch.train", *sys.argv[1:]])


def main() -> None:
    chosen = config_flags.get_override_values(flags.FLAGS["config"])
    with distributed.joined():
        if _REPLAY.value:
            replay.show(_CONFIG.value, places.named(_WORKDIR.value or ""), chosen, _REPLAY.value)
            return
        train(_CONFIG.value, places.named(_WORKDIR.value or ""), chosen)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    runtime.run(main)
