"""Checkpoints: the training state, the data position and the loop's counters as one step, written by Orbax.

    WORKDIR/checkpoints/STEP/model     parameters, by name       (all that inference and export read)
    WORKDIR/checkpoints/STEP/training  optimizer state, counters (what training reads as well)
    WORKDIR/checkpoints/STEP/loop      JSON: data position, running sums of the metrics, waiting of early stopping
    WORKDIR/checkpoints/STEP/manifest.json  sizes and hashes of these files (manifest.py), compared before a read

Of a model with an adapter, or another part that trains over a base that doesn't, the checkpoint holds what trains, and
in `loop` the content hash of the base (model/fingerprint.py).

Arrays are saved under flat names ('stack/segments/0/0/attention/key'), so a file does not depend on Python classes, and
are written asynchronously: the loop goes on once they are copied from the device.
"""

import contextlib
import functools
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from model.weights import by_name, trained
from train.checkpoints import manifest, orbax_noise
from train.checkpoints.best import Best, ranked
from train.checkpoints.literal_path import LiteralPath
from train.early_stopping import value_of
from train.state import TrainState


class CheckpointError(Exception):
    """A checkpoint could not be written or read; the message says which and what to do."""


class Checkpoints:
    """The checkpoints of one working directory: the newest `keep_last`, and the `keep_best` by `metric`.

    Args:
      base: content hash of the model under what trains: only what trains is saved. None: all is.
      reading: nothing is saved; of a run that may be going on, what it has not finished stays.
      verify: how a step's files are compared with their manifest before they are read first (manifest.LEVELS).
    """

    any_failed = False  # a save of this process has: some of Orbax's threads may then wait for good

    def __init__(
        self,
        workdir,
        keep_last: int = 2,
        keep_best: int = 1,
        metric: str = "validation/loss",
        base: str | None = None,
        reading: bool = False,
        verify: str = "full",
    ):
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(keep_last), Best(metric, keep_best)]),
            best_fn=lambda metrics: metrics[metric],  # without it metrics are not written, and forgotten at a restart
            cleanup_tmp_directories=not reading,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._describe),
        )
        if not reading:
            orbax_noise.quiet()
        self.metric, self.base, self.verify = metric, base, verify
        self.companions: dict[str, dict] = {}  # where the frozen models of a state are from, recorded with each step
        self._saving: int | None = None
        self._verified: set[int] = set()
        self._failed = False
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._place = LiteralPath(self.directory)  # the same for Orbax
        self._manager = ocp.CheckpointManager(self._place, options=options, item_names=("model", "training", "loop"))

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Those that are kept, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, loop: dict, metrics: dict[str, float] | None = None) -> None:
        """Start to save; `loop` is JSON. `metrics`, where finite, make the step a candidate for the best ones.

        Raises:
          CheckpointError: this save, or the one before it that ran in the background, failed.
        """
        if step == self.latest_step:
            return
        parts = {part: ocp.args.StandardSave(arrays) for part, arrays in self.parts(state).items()}
        own: dict = {"base": self.base} if self.base else {}
        own |= {"companions": self.companions} if self.companions else {}
        items = ocp.args.Composite(**parts, loop=ocp.args.JsonSave(loop | own))
        value = value_of(self.metric, metrics) if metrics else math.nan
        own_rank = {self.metric: value} if math.isfinite(value) else {}
        self._write(step, items, own_rank)

    def save_model(self, step: int, model) -> None:
        """Save a model alone: to read it for inference and export, and to start a run from it."""
        items = dict(model=ocp.args.StandardSave(self._held(model)))
        if self.base:
            items["loop"] = ocp.args.JsonSave({"base": self.base})
        self._write(step, ocp.args.Composite(**items), {})
        self.wait()

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """The state of `step` (default: the latest), placed as `like` says, and its `loop` JSON.

        Args:
          like: shapes or arrays; of a base that is not in the checkpoint, the arrays.

        Raises:
          CheckpointError: the checkpoint cannot be read, or is of another base.
        """
        step = self._verified_step(step)
        self._check_base(step)
        parts = {part: ocp.args.StandardRestore(arrays) for part, arrays in self.parts(like).items()}
        items = ocp.args.Composite(**parts, loop=ocp.args.JsonRestore())
        found = self._guard("read", step, lambda: self._manager.restore(step, args=items))
        return _join(like, found["model"], found["training"]), found["loop"]

    def restore_model(self, like, step: int | None = None):
        """The model alone; `like` and errors as in `restore`."""
        step = self._verified_step(step)
        self._check_base(step)
        items = ocp.args.Composite(model=ocp.args.StandardRestore(self._held(like)))
        found = self._guard("read", step, lambda: self._manager.restore(step, args=items))
        return _rename(like, found["model"])

    def parts(self, state: TrainState) -> dict[str, dict]:
        """The arrays of a state by the folder of a step that they are saved in, and by name."""
        return {"model": self._held(state.model), "training": _training(state)}

    def restore_arrays(
        self, like: Mapping[str, jax.ShapeDtypeStruct], step: int | None = None, part: str = "model"
    ) -> Iterator[tuple[str, jax.Array]]:
        """Yields (name, array) of a part, one after another: for who need not hold all of them at once."""
        step = self._verified_step(step)
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        for name, shape in like.items():
            item = {name: shape}
            how = ocp.checkpoint_utils.construct_restore_args(item)
            wanted = ocp.args.PyTreeRestore(item, restore_args=how, partial_restore=True)
            read = functools.partial(reader.restore, self._place / str(step) / part, args=wanted)
            yield name, self._guard("read", step, read)[name]

    def _verified_step(self, step: int | None) -> int:
        """The step (default: the latest), whose files are as they were written."""
        step = self.latest_step if step is None else step
        if step is None:
            raise CheckpointError(f"{self.directory} holds no complete checkpoint")
        if step not in self._verified:
            if found := self._guard("read", step, lambda: manifest.problems(self.directory / str(step), self.verify)):
                more = f", and {len(found) - 3} more" if len(found) > 3 else ""
                raise CheckpointError(
                    f"checkpoint {step} in {self.directory} is damaged: {'; '.join(found[:3])}{more}. "
                    f"python -m launch.checkpoints --workdir={self.directory.parent} --verify shows which are good"
                )
            self._verified.add(step)
        return step

    def _describe(self) -> None:
        """In the folder that Orbax renames next, when all is in it."""
        (folder,) = self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        manifest.write(folder)

    def _write(self, step: int, items, metrics: dict[str, float]) -> None:
        self.wait()  # for the save before
        self._sweep()
        self._saving = step
        if not self._guard("write", step, lambda: self._manager.save(step, args=items, metrics=metrics)):
            raise CheckpointError(f"{self.directory} holds step {self.latest_step}, so step {step} was not written")

    def _held(self, model) -> dict:
        return by_name(trained(model) if self.base else model)

    def _check_base(self, step: int) -> None:
        if not self.base:
            return
        there = self.loop(step).get("base")
        if there != self.base:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} was trained over a base with the content hash {there}, but "
                f"the model in config.init_from has {self.base}: bring back the base as it was, or train anew"
            )

    def loop(self, step: int | None = None) -> dict:
        """The `loop` JSON of a step (default: the latest); {} where there is none: a model alone, or nothing yet."""
        step = self.latest_step if step is None else step
        if step is None or not (self.directory / str(self._verified_step(step)) / "loop").exists():
            return {}
        items = ocp.args.Composite(loop=ocp.args.JsonRestore())
        return self._guard("read", step, lambda: self._manager.restore(step, args=items))["loop"]

    def find(self, wanted: str = "") -> int:
        """The kept step that a user means: a number, 'latest', 'best' (by `metric`, among those that were evaluated),
        or '': the best one of a run that ended early, else the latest.

        Raises:
          CheckpointError: it isn't there; lists what is.
        """
        steps = self.steps()
        metrics = {step: self._manager.metrics(step) or {} for step in steps}
        values = {step: found[self.metric] for step, found in metrics.items() if found}
        if not wanted:
            wanted = "best" if values and self.loop().get("early_stopping", {}).get("ended") else "latest"
        if wanted == "best" and values:
            return ranked(self.metric, values)[0]
        if wanted == "latest" and steps:
            return steps[-1]
        if wanted.isdecimal() and int(wanted) in steps:
            return int(wanted)
        evaluated = f"; evaluated for {self.metric}: {', '.join(map(str, values)) or 'none'}"
        raise CheckpointError(
            f"{self.directory} holds no step {wanted!r}; there are: {', '.join(map(str, steps)) or 'none'}{evaluated}"
        )

    def check(self) -> None:
        """Raise the CheckpointError of a save that has failed in the background."""
        if not self._manager.is_saving_in_progress():  # Orbax's check_for_errors would take the error from the thread
            self.wait()  # that deletes old steps unless it hears of one

    def wait(self) -> None:
        """Return when everything is on disk."""
        self._guard("write", self._saving, self._manager.wait_until_finished)

    def close(self) -> None:
        """Wait for what is under way. A save that fails now is said; where that is an error, `wait` has raised it."""
        said = self._failed
        try:
            self._guard("write", self._saving, self._manager.close)
        except CheckpointError as error:
            if not said:
                logging.error("%s", error)
        for _ in range(10 * self._failed):  # its threads write on for a moment
            self._sweep()
            time.sleep(0.1)

    def newest_complete(self) -> int | None:
        """On disk; `latest_step` may still be written."""
        complete = (step for step in self.steps() if (self.directory / str(step) / manifest.NAME).exists())
        return max(complete, default=None)

    def _sweep(self) -> None:
        """Take away what saves that failed have written, also after they had failed; no other save is under way."""
        if self._failed and self._saving is not None and jax.process_index() == 0:
            with contextlib.suppress(OSError):
                for left in self.directory.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(left, ignore_errors=True)

    def _guard(self, verb: str, step: int | None, action):
        try:
            return action()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            which = "a checkpoint" if step is None else f"checkpoint {step}"
            if verb == "write":
                self._failed = Checkpoints.any_failed = True
            with contextlib.suppress(Exception):  # of an earlier save that still runs: what failed now is reported
                self._manager.wait_until_finished()
            with contextlib.suppress(OSError, ValueError):
                self._manager.reload()  # it has forgotten the step that this save was to replace
            self._sweep()  # a full disk needs the room
            kept = self.newest_complete()
            good = "none is complete yet" if kept is None else f"the last complete one is step {kept}"
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            if len(reason) > 400:  # it ends with what the system said, after paths
                reason = f"{reason[:150]} ... {reason[-250:]}"
            raise CheckpointError(f"could not {verb} {which} in {self.directory} ({good}): {reason}") from error


def _rename(tree, values: dict):
    """The tree with these values at the leaves of their names; other leaves stay."""
    leaves = [values.get(name, leaf) for name, leaf in by_name(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _training(state: TrainState) -> dict:
    rest = (state.opt_state, state.skipped, state.streak, state.recent)
    return by_name({"step": state.step, "rest": rest})


def _join(like: TrainState, model: dict, training: dict) -> TrainState:
    rest = (like.opt_state, like.skipped, like.streak, like.recent)
    tree = _rename({"step": like.step, "rest": rest}, training)
    opt_state, skipped, streak, recent = tree["rest"]
    restored = _rename(like.model, model)
    return TrainState(tree["step"], restored, opt_state, skipped, streak, recent, like.companions)
