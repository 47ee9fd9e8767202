"""Repeats one step of a run exactly, to find the cause of a loss spike, a skipped update or a wrong number.

    python -m launch.train --config=... --workdir=DIR --replay=STEP

The newest checkpoint before the step is restored, and the steps in between are repeated. This prints the loss, the
norms of gradient and update per parameter, and the rows of the batch. Only the text of the batch is written.
"""

import contextlib
import functools
import math
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from launch.program.checking import ConfigError
from launch.run import build, workdirs
from launch.training import critics, recovery, references, runs
from model import axes
from model.weights import trained
from train import guard
from train.checkpoints.checkpoint import Checkpoints
from train.optimizer import fetched
from train.record import metrics
from train.step import make_gradients

_SHOWN = 5  # rows that are printed, those with the highest loss
_CHARACTERS = 400  # printed per row


def show(config: ConfigDict, workdir: Path, chosen: Iterable[str], step: int) -> None:
    """Repeats a step, prints its figures, and writes the text of its batch to WORKDIR/replay/STEP.txt.

    Args:
      config, workdir: of the run.
      chosen: fields that the user has set.
      step: to repeat, from 1.

    Raises:
      ConfigError: the run has no checkpoint, or has not done the step yet.
    """
    if not workdirs.begun(workdir):
        raise ConfigError(f"--replay: {workdir} holds no run with a checkpoint")
    run = runs.opened(config, workdir, chosen)
    recorded = metrics.read(workdir / "metrics.jsonl")
    with contextlib.ExitStack() as stack:
        stack.enter_context(axes.use_mesh(run.mesh))
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, reading=True)))
        if (done := checkpoints.latest_step or 0) < step and not any(row["step"] >= step for row in recorded):
            raise ConfigError(f"--replay={step}: the run in {workdir} has done only {done} steps")
        begin = max((kept for kept in checkpoints.steps() if kept < step), default=0)
        print(f"step {step}, from " + (f"checkpoint {begin} of {workdir}" if begin else "the beginning of the run"))
        tx = run.optimizer()
        run = references.stored(run, checkpoints, begin)
        state = run.state(tx, checkpoints, begin)
        position = None
        if begin:
            state, saved = checkpoints.restore(state, begin)
            position = recovery.position(recorded, begin, saved)
        if run.asked is not None:
            stack.callback(run.asked.rewarding.close)
        source = stack.enter_context(contextlib.closing(run.source(position)))
        train_step, eval_step = build.steps(run.config, tx, run.objective, critics.optimizer(run.config, run.model))
        put = build.put(run.mesh)
        if step > begin + 1:
            print(f"steps {begin + 1} to {step - 1} are repeated")
        for at in range(begin + 1, step):
            state, _ = train_step(state, put(source.next(state)))
            if (place := recovery.position(recorded, at, {})) is not None:  # the run was rolled back to this step
                source = stack.enter_context(contextlib.closing(run.source(place)))
        # This process reads only its share of the batch, but the texts of all rows are written.
        everything = stack.enter_context(contextlib.closing(run.source(source.to_json(), everything=True)))
        place, whole, batch, origins = source.position(), everything.next(state), source.next(state), source.origins()
        mine = build.batch_rows(run.mesh, len(whole["tokens"]))
        mine = np.arange(len(whole["tokens"])) if mine is None else mine
        loss_of = lambda row: _loss(eval_step(state.model, put(_only(batch, mine == row)), state.companions))
        losses = [loss_of(row) for row in range(len(origins))]
        gradients = make_gradients(run.objective, accumulate=run.config.accumulate, seed=run.config.seed)
        norms = jax.device_get(jax.jit(functools.partial(_norms, gradients, tx))(state, put(batch)))
        _, result = train_step(state, put(batch))
    result = {name: float(value) for name, value in jax.device_get(result).items() if value.size == 1}
    print("\n".join(["", *_figures(step, result, place, recorded), "", *_table(norms), ""]))
    texts = [_text(run.words, whole, row) for row in range(len(origins))]
    rows = enumerate(zip(origins, losses, strict=True))
    headings = [f"row {i} of the batch, {origin}, loss {loss:.4f}" for i, (origin, loss) in rows]
    if jax.process_index() == 0:
        path = workdir / "replay" / f"{step}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"== {head}\n{text}\n\n" for head, text in zip(headings, texts, strict=True)))
        for row in np.argsort(np.nan_to_num(losses, nan=-np.inf))[::-1][:_SHOWN]:
            more = f" ... ({len(texts[row]):,} characters)" if len(texts[row]) > _CHARACTERS else ""
            print(f"{headings[row]}\n  {texts[row][:_CHARACTERS]!r}{more}")
        print(f"all {len(texts)} rows: {path}")


def _only(batch, rows):
    """Returns the batch with all weights set to 0 except those of these rows (a mask [B]), also of text in it."""
    masked = lambda array: np.where(rows[:, None], array, 0).astype(array.dtype)
    return batch | {name: masked(batch[name]) for name in ("weights", "text_weights") if name in batch}


def _loss(loss) -> float:
    """Returns the mean loss of the metrics, without the objective's additional terms such as z-loss."""
    total, weight = float(loss.metrics["loss"]), float(loss.weight)
    return total / weight if weight else math.nan


def _norms(gradients, tx, state, batch) -> dict[str, jax.Array]:
    """Returns {name: [norm of the gradient, number of its elements that are not finite, norm of the update, norm of the
    parameter]} of the trained parameters."""
    grads, _ = gradients(state, batch)
    params = trained(state.model)
    grads = {name: grads[name] for name in params}  # without those of a critic
    updates, _ = tx.update(grads, fetched(state.opt_state), params)
    norm = lambda tree: jnp.sqrt(sum(jnp.sum(jnp.square(a.astype(jnp.float32))) for a in jax.tree.leaves(tree)))
    zero = jnp.zeros((), jnp.int32)
    bad = lambda tree: sum((jnp.sum(~jnp.isfinite(a)) for a in jax.tree.leaves(tree)), zero).astype(jnp.float32)
    return {n: jnp.stack([norm(grads[n]), bad(grads[n]), norm(updates[n]), norm(params[n])]) for n in params}


def _figures(step: int, result: dict, place: dict, recorded: list[dict]) -> list[str]:
    """Returns lines with the figures of the repeated step, and with those that the run recorded."""
    skipped = guard.REASONS[int(result["left_out"])]
    lines = [f"{name:<14} {result[name]:.6g}" for name in result if name not in ("left_out", "streak", "skipped")]
    lines.append(f"{'update':<14} " + (f"skipped: {skipped}" if skipped else "made"))
    lines.append(f"{'data':<14} {recovery.spelled(place)}")
    for row in (row for row in recorded if row["step"] == step):
        event = row.get("event", {})
        if "left_out" in event:
            what = f"skipped: {event['left_out']}, loss {_shown(event['loss'])}"
        elif "loss" in row:
            event, what = row, f"loss {_shown(row['loss'])} (mean since the previous line)"
        if "grad_norm" in event:
            lines.append(f"{'recorded':<14} {what}, gradient norm {_shown(event['grad_norm'])}")
    return lines


def _shown(figure: float | None) -> str:
    return f"{math.nan if figure is None else figure:.6g}"


def _table(norms: dict[str, np.ndarray]) -> list[str]:
    """Returns a table of `_norms`, the largest gradients first, after those that are not finite."""
    width = max(map(len, norms))
    lines = [f"{'parameter':<{width}}  {'gradient':>10}  {'update':>10}  {'of parameter':>12}"]
    order = lambda item: -item[1][0] if np.isfinite(item[1][0]) else -math.inf
    for name, (grad, bad, update, param) in sorted(norms.items(), key=order):
        share = f"{float(update) / float(param):.2e}" if param else "-"
        note = f"  {bad:,.0f} not finite" if bad else ""
        lines.append(f"{name:<{width}}  {grad:>10.3e}  {update:>10.3e}  {share:>12}{note}")
    return lines


def _text(words, batch, row: int) -> str:
    """Returns the documents or examples of a row; those of an encoder come before those of its decoder."""
    parts = []
    for side in ("encoder_", ""):
        if f"{side}tokens" in batch:
            ids, segments = batch[f"{side}tokens"][row], batch[f"{side}segment_ids"][row]
            parts += [words.decode(ids[segments == segment]) for segment in np.unique(segments[segments > 0])]
    return "\n--\n".join(parts)
