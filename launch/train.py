"""Train.

    python -m launch.train --config=configs/NAME.py:ARG --workdir=DIR --config.optimizer.learning_rate=3e-4

The same command again continues the run, or says that it is done. SIGTERM or Ctrl-C saves first. On several hosts the
same command on each of them: launch/distributed.py.
"""

if __package__ in (None, ""):  # as a script, launch/ would be the first place where modules are looked for
    raise SystemExit("start it from the checkout as: python -m launch.train")

from launch import runtime

runtime.configure("training")

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from data import pipeline, stage, tokenizer
from data.labels import num_scores
from launch import build, distributed, early_stopping, evaluation, grading, init_from, recovery, workdirs
from model import axes, weights
from train import loop, metrics, mfu, report, summary
from train.checkpoint import Checkpoints
from train.early_stopping import value_of

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with its argument after a colon.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run leaves its config, metrics, checkpoints and report.")
flags.adopt_module_key_flags(distributed)
_ROLL_BACKS = 3  # in one process


def checked(config: ConfigDict, workdir: Path, chosen: Iterable[str] = ()) -> tuple[ConfigDict, jax.sharding.Mesh]:
    """(the config with what config.init_from brings, its mesh), once all is checked that can be without data.

    Args, and what is raised: those of `train`.
    """
    config = init_from.resolve(config, workdir, chosen)
    mesh = build.mesh(config)
    build.check(config, mesh)
    early_stopping.make(config)
    grading.settings(config)
    recovery.check(config)
    return config, mesh


def train(config: ConfigDict, workdir: Path, chosen: Iterable[str] = (), observe: Callable = lambda *_: None) -> bool:
    """Train or continue the run in `workdir`; whether it is done (else a signal stopped it).

    Args:
      chosen: fields that the user has set.
      observe: (step, figures) of each evaluation; what it raises ends the run without a save, and is raised from here.
    """
    back = None
    for _ in range(_ROLL_BACKS + 1):
        try:
            return _train(config, workdir, chosen, observe, back)
        except loop.RollBack as error:
            back = error
    raise loop.TrainingStopped(f"{back}; the run was rolled back {_ROLL_BACKS} times before: look at the data")


def _train(config, workdir, chosen, observe, back: loop.RollBack | None) -> bool:
    """`train`, from the last checkpoint; `back`: with the data behind those that it names."""
    config, mesh = checked(config, workdir, chosen)
    workdirs.check(workdir, config)
    prepared = build.data(config, workdir)
    num_labels = 0 if prepared.labels is None else num_scores(prepared.labels)
    model_config = build.model_config(config, prepared.vocab_size, num_labels)
    words = tokenizer.load(prepared.tokenizer_path)
    grade = grading.evaluation_of(config, prepared, model_config, words)
    distributed.agree("config", stage.digest(config.to_json()))
    distributed.agree("data", f"{prepared.content_hash} ({prepared.directory.name})")
    distributed.first_writes(workdir / "config.json", lambda: workdirs.claim(workdir, config, prepared))
    first = jax.process_index() == 0

    rate, tx = build.learning_rate(config), build.optimizer(config, model_config)
    train_step, eval_step = build.steps(config, tx, prepared.labels)
    tuning = workdirs.tuning(config, words)
    recovery.settle(workdir, config.verify_checkpoints)
    metric = config.early_stopping.metric
    checkpoints = Checkpoints(workdir, config.keep_last, config.keep_best, metric, verify="off")  # which is settled
    peak, peak_words = mfu.peak_flops(mesh.devices.flat, model_config.dtype)
    step = checkpoints.latest_step or 0
    distributed.agree("latest checkpoint", str(step))
    stopping = early_stopping.make(config, checkpoints.loop())
    if step >= config.steps or stopping.ended:
        checkpoints.close()
        why, how = f"{step} steps", "start a new run with more config.steps"
        if stopping.ended:
            why, how = stopping.why(), "raise config.early_stopping.patience"
        print(f"{workdir} is done: {why}. To train longer, {how}.")
        return True
    with contextlib.closing(checkpoints), axes.use_mesh(mesh), recovery.watched(config) as phases:
        train_state, checkpoints.base = init_from.create(config, model_config, tuning, tx, step > 0, prepared.labels)
        saved = {}
        if step:
            with phases("restore"):
                train_state, saved = checkpoints.restore(train_state)
            print(f"continuing {workdir} after step {step}")
        corruption = build.corruption(config, prepared)
        tokens = config.batch_size * config.data.seq_len
        trains = weights.trained(train_state.model)
        flops = build.flops(config, model_config, trains, corruption)
        evaluate = evaluation.evaluation(config, prepared, corruption, eval_step, mesh)
        parts = loop.Parts(
            train_step=train_step,
            source=pipeline.train_pipeline(
                prepared,
                config.batch_size,
                config.seed,
                build.batch_rows(mesh, config.batch_size),
                saved.get("position") if back is None else back.position,
                corruption,
                build.augmentation(config, prepared),
                config.data.max_bad_lines,
            ),
            put=build.put(mesh),
            evaluate=lambda model: evaluate(model, config.eval_rows or None) | grade(model),
            observe=observe,
            stopping=stopping,
            learning_rate=rate,
            checkpoints=checkpoints,
            phases=phases,
            writer=metrics.Writer(workdir, resume_step=step or -1, enabled=first),
            progress=metrics.Progress(
                config.steps, tokens, flops, peak, step, perplexity=config.objective.name == "language"
            ),
            workdir=workdir,
        )
        convention = f"{mfu.MFU_CONVENTION} Here: {peak_words}"
        facts = summary.facts(train_state.model, flops, mesh, prepared, convention)
        print("\n".join([summary.headline(facts), *build.notes(config, model_config, trains)]))
        with contextlib.closing(parts.source), contextlib.closing(parts.writer):
            if back is not None:
                why = {"rolled_back": str(back), "from_step": back.step, "position": back.position}
                parts.writer.event(step + 1, why)
                parts.progress.message(f"rolled back to step {step}: {back}; goes on with the data behind them")
            named = stopping.metric != "validation/loss"  # of which it shows only now whether evaluations give it
            if (config.init_from or named) and config.eval_every and not step:
                before = parts.evaluate(train_state.model)
                value_of(stopping.metric, before)
                parts.writer.write(0, before)
                parts.progress.message(loop.evaluation_line(0, before))
            train_state, step, clock = loop.train(train_state, step, saved, build.loop_schedule(config), parts)
    done = {"goodput": clock.goodput, "wall_seconds": clock.now() - clock.begin, "tokens": step * tokens}
    done |= {"best": stopping.best(), "ended": f"Ended early: {stopping.why()}." if stopping.ended else ""}
    if first:
        summary.update(workdir, facts | done)
        if config.init_from:
            print(evaluation.before_and_after(metrics.read(workdir / "metrics.jsonl"), stopping.step), end="")
        print(f"report: {report.write_report(workdir)}")
    if stopping.ended:
        print(done["ended"])
    elif step < config.steps:
        print(f"stopped after step {step}, saved. The same command continues the run.")
    return stopping.ended or step >= config.steps


def main() -> None:
    chosen = config_flags.get_override_values(flags.FLAGS["config"])
    with distributed.joined():
        train(_CONFIG.value, Path(_WORKDIR.value).absolute(), chosen)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    runtime.run(main)
