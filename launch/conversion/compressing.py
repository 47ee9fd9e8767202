"""Makes a workdir with quantized weights from one with float weights."""

import contextlib
import shutil
from pathlib import Path

import jax

from launch.program.checking import ConfigError, checking
from launch.run import restore, workdirs
from launch.run.workdirs import Workdir
from model import architectures, axes
from model.compress.quantize import Settings, footprint, quantize
from model.weights import by_name
from train import state as states
from train.checkpoints import read_back
from train.checkpoints.checkpoint import CheckpointError


def compress(run: Workdir, out: Path, form: Settings, step: str = "", dtype: str | None = None) -> None:
    """Reads a checkpoint array by array, quantizes each, writes the new workdir, and reads it back to compare.

    Args:
      run: the workdir with float weights.
      out: the new workdir.
      form: how to quantize.
      step: which checkpoint of `run` (Checkpoints.find).
      dtype: for the parameters that are not quantized and for computation; weights are rounded to it before they are
        quantized. None: that of `run`.

    Raises:
      ConfigError: `out` is in use, the model in `run` is quantized or an adapter, or the form does not support a
        weight's number of inputs.
      CheckpointError: the checkpoint of `run` is damaged, or the new one does not hold what was written.
    """
    workdirs.check_new(out)
    if run.compression is not None:
        raise ConfigError(f"the weights in {run.path} are in {run.compression.kind} already; use the float model")
    if run.tuning.method is not None:
        raise ConfigError(
            f"{run.path} holds an adapter over the model in {run.base.path}, but only a whole model can be "
            "compressed: merge it first (launch.convert --merge --to_workdir)"
        )
    config = restore.in_precision(run, run.architecture, dtype)
    with axes.use_mesh(restore.spread(config)):
        with checking(f"{run.path}"):  # by shapes, before anything is read
            states.abstract_model(lambda rngs: quantize(architectures.make(config, rngs), form))
        before = _bytes(states.abstract_model(lambda rngs: architectures.make(run.architecture, rngs)))
        model = restore.pretrained(run, config, labels=run.labels, quantization=form, step=step)[0]
        record = run.record | {"compress": form.fields()}
        record["model"] = run.record["model"] | {"dtype": config.dtype, "param_dtype": config.param_dtype}
        workdirs.create(out, record, model, run.tokenizer, run.labels)
        if (run.path / "data.json").exists():
            shutil.copy(run.path / "data.json", out)
        _read_back(Workdir(out), model)
    found, after = footprint(model), _bytes(model)
    print(
        f"{run.path} -> {out}: {form.kind}, {before:,} bytes before, {after:,} after; "
        f"{found.weights:,} weights of linear layers take {8 * found.bytes / found.weights:.3f} bits each"
    )


def _bytes(model) -> int:
    return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(model))


def _read_back(written: Workdir, model) -> None:
    """Compares what is on disk with what is in memory. The float model may be deleted next, so a disk that stores wrong
    numbers must be noticed now."""
    with contextlib.closing(written.checkpoints()) as checkpoints:
        for name in read_back.differing(checkpoints, checkpoints.steps()[-1], "model", by_name(model)):
            raise CheckpointError(
                f"{name} in {written.path} has other numbers than were written: delete it, and use another disk"
            )
