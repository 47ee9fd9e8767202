"""Checks whether a config and its data may continue the run in a workdir."""

import json

from ml_collections import ConfigDict

from data.batch import DataError
from data.prepare import Prepared
from launch.program.checking import ConfigError
from launch.run import recorded, workdirs
from launch.run.defaults import completed, flat
from launch.run.workdirs import Workdir
from train.evals import refusals

# Fields for how a run computes and when it saves. They change no figure, so trials of one sweep may differ in them.
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

# Fields that may differ when a run is continued. With any other field changed, it would be another run.
FREE_TO_CHANGE: tuple[str, ...] = (*SAME_FIGURES, "eval_every", "grade.metrics", "early_stopping.patience")
FREE_TO_CHANGE += ("spike", "max_bad_steps", "on_bad_steps", "watchdog", "check_every", "reward.seconds", "reward.gold")


def check(workdir: Workdir, config: ConfigDict) -> None:
    """Checks that the workdir does not hold a run of another config.

    Raises:
      ConfigError: it does; lists the fields that differ and may not.
    """
    path = workdir.path
    if workdirs.steps(path) and not (path / recorded.NAME).exists():
        raise ConfigError(
            f"{path} holds checkpoints but no {recorded.NAME}, so it cannot be told which run they belong to; bring "
            "that file back, or use a new --workdir"
        )
    begun = workdirs.begun(path)
    logged = 0 if begun else workdirs.steps_logged(path)
    if not begun and not logged:
        return
    free = (*FREE_TO_CHANGE, *({"grade", "safety"} - _ranking(workdir.config)))
    old, new = (flat(completed(fields)) for fields in (workdir.record, json.loads(config.to_json())))
    if lines := differing(old, new, free):
        what = f"{logged:,} steps, without a checkpoint, of a run" if logged else "a run"
        raise ConfigError(
            f"{path} holds {what} of another config; use a new --workdir, or the same values. Differing:\n  "
            + "\n  ".join(lines)
        )


def _ranking(config: ConfigDict) -> set[str]:
    """Returns which of the blocks `grade` and `safety` make figures that rank evaluations, or exclude some."""
    names = [config.early_stopping[field].rpartition("/")[2] for field in ("metric", "bounded")]
    graded = tuple(name.strip() for name in config.grade.metrics.split(",") if name.strip())
    found = {"grade"} if any(name.startswith(graded) for name in names) else set()
    return found | ({"safety"} if {*names} & {*refusals.FIGURES} else set())


def differing(old: dict, new: dict, free: tuple[str, ...]) -> list[str]:
    """Returns a line for each field that differs, unless `free` has it or a block around it; names have dots."""
    free = tuple(f"{name}." for name in free)
    names = [name for name in {**new, **old} if old.get(name) != new.get(name) and not f"{name}.".startswith(free)]
    return [f"{name}: {old.get(name)!r} there, {new.get(name)!r} now" for name in names]


def check_data(workdir: Workdir, prepared: Prepared) -> None:
    """Checks that the data are those with which the run in this workdir began.

    Raises:
      ConfigError: the content of a source has changed, or of prompts by whose answers evaluations are ranked.
    """
    path = workdir.path / "data.json"
    if not workdirs.begun(workdir.path) or not path.exists():
        return
    asked = recorded.read_json(path).get("safety_prompts", "")  # runs of older versions ask none
    if "safety" in _ranking(workdir.config) and asked != workdirs.safety_prompts(workdir.config):
        raise ConfigError(
            f"{workdir.config.safety.prompts} has other prompts than when the run in {workdir.path} began, so its "
            "evaluations can't be compared with the best one so far; bring them back, or use a new --workdir"
        )
    try:
        there = workdir.prepared
    except DataError:  # they are gone; the saved position of the data stream tells whether these are the same
        return
    old = {source.spec: source.content_hash for source in there.sources}
    changed = [source.spec for source in prepared.sources if old.get(source.spec, "") != source.content_hash]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} has other content than when the run in {workdir.path} began ({there.directory}); "
            "bring that back, or use a new --workdir"
        )
