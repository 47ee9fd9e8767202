"""Checkpoints: the training state, the data position and the loop's counters, written together by Orbax.

    WORKDIR/checkpoints/STEP/model     parameters by name; inference and export read only this
    WORKDIR/checkpoints/STEP/training  optimizer state and counters, which only training reads
    WORKDIR/checkpoints/STEP/loop      JSON: data position, running sums of the metrics, counters of early stopping
    WORKDIR/checkpoints/STEP/manifest.json  sizes and hashes of these files (manifest.py), compared before a read

If an adapter or another part trains over a frozen base, the checkpoint holds only the trained part, and `loop` holds
the content hash of the base (model/fingerprint.py).

Arrays are saved under flat names ('stack/segments/0/0/attention/key'), so a checkpoint does not depend on Python
classes. They are written asynchronously: training continues as soon as they are copied from the device.
"""

import contextlib
import functools
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
    """A checkpoint could not be written or read. The message says which one and what to do."""


class Checkpoints:
    """The checkpoints in WORKDIR/checkpoints: the newest `keep_last`, and the best `keep_best` by `metric`.

    Args:
      base: content hash of the frozen base; then only the trained parameters are saved. None: all are saved.
      reading: True if nothing will be saved. Then unfinished files stay, because the run may still be writing them.
      verify: how the files of a step are compared with their manifest before their first read (manifest.LEVELS).
    """

    any_failed = False  # whether a save of this process failed; some of Orbax's threads may then never end

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
            best_fn=lambda metrics: metrics[metric],  # without it Orbax does not write metrics to disk
            cleanup_tmp_directories=not reading,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._describe),
        )
        if not reading:
            orbax_noise.quiet()
        self.metric, self.base, self.verify = metric, base, verify
        self.companions: dict[str, dict] = {}  # origin of each frozen companion, recorded with each step
        self._saving: int | None = None
        self._verified: set[int] = set()
        self._failed = False
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._place = LiteralPath(self.directory)  # the same directory in the form that Orbax gets
        self._manager = ocp.CheckpointManager(self._place, options=options, item_names=("model", "training", "loop"))

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the steps of all kept checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, loop: dict, metrics: dict[str, float] | None = None) -> None:
        """Starts to save a step in the background. Does nothing if it is the latest step already.

        Args:
          loop: JSON that `restore` will return.
          metrics: of an evaluation of this step. If its `metric` is finite, the step may be kept as a best one.

        Raises:
          CheckpointError: this save failed, or the previous one, which ran in the background.
        """
        if step == self.latest_step:
            return
        parts = {part: ocp.args.StandardSave(arrays) for part, arrays in self.parts(state).items()}
        own: dict[str, Any] = {"base": self.base} if self.base else {}
        own |= {"companions": self.companions} if self.companions else {}
        items = ocp.args.Composite(**parts, loop=ocp.args.JsonSave(loop | own))
        value = value_of(self.metric, metrics) if metrics else math.nan
        own_rank = {self.metric: value} if math.isfinite(value) else {}
        self._write(step, items, own_rank)

    def save_model(self, step: int, model) -> None:
        """Saves a model without training state, for inference, for export and to start runs from, and waits for it."""
        items = dict(model=ocp.args.StandardSave(self._held(model)))
        if self.base:
            items["loop"] = ocp.args.JsonSave({"base": self.base})
        self._write(step, ocp.args.Composite(**items), {})
        self.wait()

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """Returns the state of `step` (default: the latest) with the shardings of `like`, and its `loop` JSON.

        Args:
          like: a state of shapes or arrays. A frozen base must be arrays, because it is not in the checkpoint.

        Raises:
          CheckpointError: the checkpoint cannot be read, or was trained over another base.
        """
        step = self._verified_step(step)
        self._check_base(step)
        parts = {part: ocp.args.StandardRestore(arrays) for part, arrays in self.parts(like).items()}
        items = ocp.args.Composite(**parts, loop=ocp.args.JsonRestore())
        found = self._guard("read", step, lambda: self._manager.restore(step, args=items))
        return _join(like, found["model"], found["training"]), found["loop"]

    def restore_model(self, like, step: int | None = None):
        """Returns the model of `step`. `like` is a model; otherwise this works like `restore`."""
        step = self._verified_step(step)
        self._check_base(step)
        items = ocp.args.Composite(model=ocp.args.StandardRestore(self._held(like)))
        found = self._guard("read", step, lambda: self._manager.restore(step, args=items))
        return _rename(like, found["model"])

    def parts(self, state: TrainState) -> dict[str, dict]:
        """Returns the arrays of a state as {folder inside the step: {name: array}}."""
        return {"model": self._held(state.model), "training": _training(state)}

    def restore_arrays(
        self, like: Mapping[str, jax.ShapeDtypeStruct], step: int | None = None, part: str = "model"
    ) -> Iterator[tuple[str, jax.Array]]:
        """Yields (name, array) of a part one after another, so that the caller need not hold all arrays at once."""
        step = self._verified_step(step)
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        for name, shape in like.items():
            item = {name: shape}
            how = ocp.checkpoint_utils.construct_restore_args(item)
            wanted = ocp.args.PyTreeRestore(item, restore_args=how, partial_restore=True)
            read = functools.partial(reader.restore, self._place / str(step) / part, args=wanted)
            yield name, self._guard("read", step, read)[name]

    def _verified_step(self, step: int | None) -> int:
        """Returns `step` (default: the latest) after its files were compared with their manifest."""
        step = self.latest_step if step is None else step
        if step is None:
            raise CheckpointError(f"{self.directory} holds no checkpoint")
        if step not in self._verified:
            if found := self._guard("read", step, lambda: manifest.problems(self.directory / str(step), self.verify)):
                more = f", and {len(found) - 3} more" if len(found) > 3 else ""
                raise CheckpointError(
                    f"checkpoint {step} in {self.directory} is damaged: {'; '.join(found[:3])}{more}. "
                    f"python -m launch.checkpoints --workdir={self.directory.parent} --verify lists the intact ones"
                )
            self._verified.add(step)
        return step

    def _describe(self) -> None:
        """Writes the manifest into Orbax's temporary folder, after all files and before Orbax renames the folder."""
        (folder,) = self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        manifest.write(folder)

    def _write(self, step: int, items, metrics: dict[str, float]) -> None:
        self.wait()  # for the previous save
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
                f"the model in config.init_from has {self.base}; restore the original base, or start a new run"
            )

    def loop(self, step: int | None = None) -> dict:
        """Returns the `loop` JSON of a step (default: the latest), or {} if there is no step, or only a model."""
        step = self.latest_step if step is None else step
        if step is None or not (self.directory / str(self._verified_step(step)) / "loop").exists():
            return {}
        items = ocp.args.Composite(loop=ocp.args.JsonRestore())
        return self._guard("read", step, lambda: self._manager.restore(step, args=items))["loop"]

    def find(self, wanted: str = "") -> int:
        """Returns the step that a user asks for.

        Args:
          wanted: a step number; 'latest'; 'best' by `metric` among the evaluated steps; or '': the best step if the run
            stopped early, else the latest one.

        Raises:
          CheckpointError: there is no such step. The message lists the steps that exist.
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
        """Raises a CheckpointError if a save in the background has failed."""
        # Orbax's check_for_errors would consume the error, and its thread would then delete old steps in spite of it.
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk; raises a CheckpointError if it failed."""
        self._guard("write", self._saving, self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for the running save, and closes. An error is only logged; to get it raised, call `wait` first."""
        reported = self._failed
        try:
            self._guard("write", self._saving, self._manager.close)
        except CheckpointError as error:
            if not reported:
                logging.error("%s", error)
        for _ in range(10 * self._failed):  # after a failure Orbax's threads still write for a moment
            self._sweep()
            time.sleep(0.1)

    def newest_complete(self) -> int | None:
        """Returns the newest step that is completely on disk, or None. `latest_step` may still be in progress."""
        complete = (step for step in self.steps() if (self.directory / str(step) / manifest.NAME).exists())
        return max(complete, default=None)

    def _sweep(self) -> None:
        """Removes temporary files of failed saves. It must not be called while another save is running."""
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
            with contextlib.suppress(Exception):  # errors of an earlier save that still runs; the new one is reported
                self._manager.wait_until_finished()
            with contextlib.suppress(OSError, ValueError):
                self._manager.reload()  # Orbax has already forgotten the step that this save was meant to replace
            self._sweep()  # makes room on a full disk
            kept = self.newest_complete()
            good = "none is complete yet" if kept is None else f"the last complete one is step {kept}"
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            if len(reason) > 400:  # long because of paths; the system's own message is at the end
                reason = f"{reason[:150]} ... {reason[-250:]}"
            raise CheckpointError(f"could not {verb} {which} in {self.directory} ({good}): {reason}") from error


def _rename(tree, values: dict):
    """Returns the tree with these values at the leaves with these names; other leaves stay as they are."""
    leaves = [values.get(name, leaf) for name, leaf in by_name(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _training(state: TrainState) -> dict:
    rest = (state.opt_state, state.skipped, state.streak, state.recent)
    return by_name({"step": state.step, "rest": rest, "critic": state.critic})


def _join(like: TrainState, model: dict, training: dict) -> TrainState:
    rest = (like.opt_state, like.skipped, like.streak, like.recent)
    tree = _rename({"step": like.step, "rest": rest, "critic": like.critic}, training)
    opt_state, skipped, streak, recent = tree["rest"]
    own = _rename(like.model, model)
    return TrainState(tree["step"], own, opt_state, skipped, streak, recent, like.companions, tree["critic"])
