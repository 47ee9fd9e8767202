"""Whether a config, with its data, may continue the run that a directory holds."""

import json

from ml_collections import ConfigDict

from data.batch import DataError
from data.prepare import Prepared
from launch.program.checking import ConfigError
from launch.run import recorded, workdirs
from launch.run.defaults import completed, flat
from launch.run.workdirs import Workdir

# How a run computes and when it saves, not what it learns or measures: trials of one sweep may differ in it.
SAME_FIGURES: tuple[str, ...] = (
    "mesh",
    "model.attention",
    "model.remat",
    "model.scan_unroll",
    "data.dir",
    "log_every",
    "profile_start",
)
SAME_FIGURES += ("model.context", "model.pipeline_slots", "model.pipeline_groups", "optimizer.offload")
SAME_FIGURES += ("profile_steps", "checkpoint_every", "keep_last", "keep_best", "verify_checkpoints")

# What may differ between a run and its continuation; anything else would make it another run.
FREE_TO_CHANGE: tuple[str, ...] = (*SAME_FIGURES, "eval_every", "grade.metrics", "early_stopping.patience")
FREE_TO_CHANGE += ("spike", "max_bad_steps", "on_bad_steps", "watchdog", "check_every")


def check(workdir: Workdir, config: ConfigDict) -> None:
    """Refuse a directory that holds a run of another config, listing the fields that differ and may not."""
    path = workdir.path
    if workdirs.steps(path) and not (path / recorded.NAME).exists():
        raise ConfigError(
            f"{path} holds checkpoints but no {recorded.NAME}, so it cannot be told which run they belong to; bring "
            "that file back, or use a new --workdir"
        )
    going_on = workdirs.begun(path)
    taken = 0 if going_on else workdirs.steps_logged(path)
    if not going_on and not taken:
        return
    free = FREE_TO_CHANGE if _ranked_by_grades(workdir.config) else (*FREE_TO_CHANGE, "grade")
    old, new = (flat(completed(fields)) for fields in (workdir.record, json.loads(config.to_json())))
    if lines := differing(old, new, free):
        what = f"{taken:,} steps, without a checkpoint, of a run" if taken else "a run"
        raise ConfigError(
            f"{path} holds {what} of another config; use a new --workdir, or the same values. Differing:\n  "
            + "\n  ".join(lines)
        )


def _ranked_by_grades(config: ConfigDict) -> bool:
    """Whether the best evaluation is the one with the best answers."""
    graded = tuple(name.strip() for name in config.grade.metrics.split(",") if name.strip())
    return config.early_stopping.metric.rpartition("/")[2].startswith(graded)


def differing(old: dict, new: dict, free: tuple[str, ...]) -> list[str]:
    """A line for each field, by its name with dots, that differs and is neither one of `free` nor in such a block."""
    free = tuple(f"{name}." for name in free)
    names = [name for name in {**new, **old} if old.get(name) != new.get(name) and not f"{name}.".startswith(free)]
    return [f"{name}: {old.get(name)!r} there, {new.get(name)!r} now" for name in names]


def check_data(workdir: Workdir, prepared: Prepared) -> None:
    """Refuse data that are not those with which the run in this directory began."""
    if not workdirs.begun(workdir.path) or not (workdir.path / "data.json").exists():
        return
    try:
        there = workdir.prepared
    except DataError:  # it is gone; the position in the stream tells whether these are the same
        return
    old = {source.spec: source.content_hash for source in there.sources}
    changed = [source.spec for source in prepared.sources if old.get(source.spec, "") != source.content_hash]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} has other content than when the run in {workdir.path} began ({there.directory}); "
            "bring that back, or use a new --workdir"
        )
