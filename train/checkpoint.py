"""Checkpoints: the training state, the data position and the loop's counters as one step, written by Orbax.

    WORKDIR/checkpoints/STEP/model     parameters, by name       (all that inference and export read)
    WORKDIR/checkpoints/STEP/training  optimizer state, counters (what training reads as well)
    WORKDIR/checkpoints/STEP/loop      JSON: data position, running sums of the metrics

Arrays are saved under flat names ('stack/segments/0/0/attention/key'), so a file does not depend on Python classes, and
are written asynchronously: the loop goes on once they are copied from the device.
"""

import contextlib
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from model.weights import by_name
from train.state import TrainState

BEST = "validation/loss"


class CheckpointError(Exception):
    """A checkpoint could not be written or read; the message says which and what to do."""


class Checkpoints:
    """The checkpoints of one working directory: the newest `keep_last`, and the `keep_best` by validation loss."""

    def __init__(self, workdir, keep_last: int = 2, keep_best: int = 1):
        best = policy.BestN(
            get_metric_fn=lambda metrics: metrics[BEST],
            reverse=True,
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(keep_last), best]),
            cleanup_tmp_directories=True,
        )
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=("model", "training", "loop"))

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, loop: dict, metrics: dict[str, float] | None = None) -> None:
        """Start to save; `loop` is JSON. `metrics` with BEST in it make the step a candidate for the best ones.

        Raises:
          CheckpointError: this save, or the one before it that ran in the background, failed.
        """
        if step == self.latest_step:
            return
        model, training = _split(state)
        items = ocp.args.Composite(
            model=ocp.args.StandardSave(model), training=ocp.args.StandardSave(training), loop=ocp.args.JsonSave(loop)
        )
        ranked = {BEST: metrics[BEST]} if metrics and BEST in metrics else None
        self._guard("write", step, lambda: self._manager.save(step, args=items, metrics=ranked))

    def save_model(self, step: int, model) -> None:
        """Save a model alone: to read it for inference and export, and to start a run from it."""
        items = ocp.args.Composite(model=ocp.args.StandardSave(by_name(model)))
        self._guard("write", step, lambda: self._manager.save(step, args=items))
        self.wait()

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """The state of `step` (default: the latest), placed as `abstract` says, and its `loop` JSON."""
        step = self.latest_step if step is None else step
        model, training = _split(abstract)
        items = ocp.args.Composite(
            model=ocp.args.StandardRestore(model),
            training=ocp.args.StandardRestore(training),
            loop=ocp.args.JsonRestore(),
        )
        found = self._guard("read", step, lambda: self._manager.restore(step, args=items))
        return _join(abstract, found["model"], found["training"]), found["loop"]

    def restore_model(self, abstract_model, step: int | None = None):
        """The model alone."""
        step = self.latest_step if step is None else step
        items = ocp.args.Composite(model=ocp.args.StandardRestore(by_name(abstract_model)))
        found = self._guard("read", step, lambda: self._manager.restore(step, args=items))
        return _rename(abstract_model, found["model"])

    def wait(self) -> None:
        """Return when everything is on disk."""
        self._guard("write", None, self._manager.wait_until_finished)

    def close(self) -> None:
        self._manager.close()

    def _guard(self, verb: str, step: int | None, action):
        try:
            return action()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            which = "a checkpoint" if step is None else f"checkpoint {step}"
            with contextlib.suppress(
                Exception
            ):  # an earlier save may still run; its own failure is reported as this one
                self._manager.wait_until_finished()
            kept = self._manager.latest_step()
            good = "none is complete yet" if kept is None else f"the last complete one is step {kept}"
            reason = str(error).strip().split("\n")[0][:400] or type(error).__name__
            raise CheckpointError(f"could not {verb} {which} in {self.directory} ({good}): {reason}") from error


def _rename(tree, values: dict):
    return jax.tree.unflatten(jax.tree.structure(tree), [values[name] for name in by_name(tree)])


def _split(state: TrainState):
    rest = (state.opt_state, state.skipped, state.streak)
    return by_name(state.model), by_name({"step": state.step, "rest": rest})


def _join(abstract: TrainState, model: dict, training: dict) -> TrainState:
    rest = (abstract.opt_state, abstract.skipped, abstract.streak)
    tree = _rename({"step": abstract.step, "rest": rest}, training)
    opt_state, skipped, streak = tree["rest"]
    return TrainState(tree["step"], _rename(abstract.model, model), opt_state, skipped, streak)
