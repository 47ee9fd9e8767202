"""Computes the log-probabilities of a run's reference once, before training (config.objective.precompute).

They become a channel of the rows (data/added.py). The folder is named by what the numbers depend on: the rows, the
content hash of the reference, and how it computes. So the next run with the same rows and reference finds them, and one
that continues needs no reference. Mesh and attention kernel change only the last bits of the numbers and do not count.
"""

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np

from data.added import Added
from launch.hosts import distributed
from launch.run import build, companions, models, restore
from launch.training.runs import Run
from model import architectures, axes
from model.interop.registry import RUNNING
from model.weights import frozen
from train import state as states
from train.checkpoints.checkpoint import Checkpoints
from train.objectives.objective import Companion
from train.objectives.referenced import reference_logprobs


def stored(run: Run, checkpoints: Checkpoints, step: int) -> Run:
    """Returns the run over rows that have the reference's log-probabilities, and computes these if they are missing.

    It must be called on the run's mesh, by all processes, and before the state is made: then the reference is the only
    model in memory. A run whose objective reads no such channel is returned as it is.

    Args:
      run: over its prepared rows.
      checkpoints: of the run.
      step: of the checkpoint that the run continues from; 0 if it begins.

    Raises:
      ConfigError: config.init_from holds another model than when the run began, or config.data.dir is not shared.
      DataError: rows can't be read, or the disk is full.
    """
    if not run.objective.channels:
        return run
    (channel,), (companion,) = run.objective.channels, run.objective.beside().companions
    recorded = checkpoints.loop(step).get("companions", {}) if step else {}
    record, reference = recorded.get(companion.name), None
    added = lambda record: Added(run.prepared, channel, _identity(run, record["content"]))
    if record is None or not _done(added(record)):
        reference, record = _loaded(run, companion, recorded)
    found = added(record)
    if reference is not None:
        _compute(run, found, reference)
    return dataclasses.replace(run, prepared=found.rows(), references={companion.name: record})


def _done(found: Added) -> bool:
    """Returns whether the values are there, the same in all processes: what process 0 sees."""
    return distributed.gathered(f"{found.folder.name} is done", str(found.done))[0] == str(True)


def _identity(run: Run, content: str) -> list[Any]:
    """Returns what the values depend on beside the rows: the reference, its precision, and the form of its weights."""
    running = {*RUNNING} - {"dtype", "param_dtype"}
    fields = {name: value for name, value in dataclasses.asdict(run.model).items() if name not in running}
    return [content, fields, repr(models.tuning(run.config).quantization)]


def _loaded(run: Run, companion: Companion, recorded: dict[str, dict]):
    """Returns (the reference, its record), as runs without precompute would find both."""
    tuning = models.tuning(run.config, run.words)
    shapes = states.abstract_model(lambda rngs: tuning.apply(architectures.make(run.model, rngs), rngs.params()))
    beside = companions.found(run.objective.beside(), run.config, shapes, recorded)
    if beside.models:
        return beside.models[companion.name], beside.record[companion.name]
    assert run.pretrained is not None  # the base of an adapter
    base, content, _ = restore.pretrained(
        run.pretrained, run.model, quantization=tuning.quantization, step=run.config.init_step
    )
    companions.check_same(companion, run.pretrained, recorded.get(companion.name), content)
    return frozen(base), {"workdir": str(run.pretrained.path), "step": int(run.config.init_step), "content": content}


def _compute(run: Run, found: Added, reference) -> None:
    """Computes the values, unless another run did in the meantime. All processes compute, and process 0 writes."""
    size, put, first = run.config.batch_size, build.put(run.mesh), jax.process_index() == 0
    mine = build.batch_rows(run.mesh, size)
    forward = jax.jit(lambda model, batch: axes.place(reference_logprobs(batch, model)[1], None, None))  # on every host

    def values(batch):
        wanted = {name: batch[name] for name in ("tokens", "targets", "segment_ids", "positions")}
        share = wanted if mine is None else {name: a_BT[mine] for name, a_BT in wanted.items()}
        found_BT = build.in_order(run.mesh, np.asarray(forward(reference, put(share))))
        return np.where(batch["weights"] > 0, found_BT, 0)  # nothing reads the others, and zeros need no disk

    with found.lock() if first else contextlib.nullcontext():
        if not _done(found):
            (found.compute if first else found.take_part)(size, values)
    distributed.first_writes(found.folder, lambda: None, "config.data.dir")
