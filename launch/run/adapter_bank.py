"""Loads several low-rank adapters over one base, for batches whose rows choose among them (model/adapt/bank.py)."""

import contextlib
import dataclasses
from collections.abc import Sequence

import jax

from launch.program.checking import ConfigError, checking
from launch.run import restore
from launch.run.early_stopping import find_step
from launch.run.workdirs import Workdir
from model import architectures, axes, count
from model.adapt.bank import bank
from model.adapt.lora import Lora
from model.adapt.tuning import Tuning
from model.config import ModelConfig
from model.patterns import restacked
from model.roles import Role, role_of
from model.weights import by_name, replaced, trained, variables
from train import state


def lora(run: Workdir) -> Tuning:
    """Returns how the low-rank adapter in a workdir was tuned.

    Raises:
      ConfigError: the workdir holds no low-rank adapter.
    """
    method = run.tuning.method
    if not isinstance(method, Lora):
        kind = "no adapter" if method is None else f"parameters of the method {run.config.adapt.method}"
        raise ConfigError(f"{run.path} holds {kind}; a low-rank adapter is needed (configs/lora.py)")
    return run.tuning


def several(
    base: Workdir,
    runs: Sequence[Workdir],
    mesh: jax.sharding.Mesh | None = None,
    step: str = "",
    dtype: str | None = None,
):
    """Loads a model with several adapters, of which each row of a batch uses one.

    Args:
      base: the workdir of the model under the adapters.
      runs: the workdirs of the adapters.
      mesh: the devices to load it onto; None: one device.
      step: which checkpoint of each adapter (Checkpoints.find).
      dtype: the precision (restore.in_precision); None: that of `base`.

    Returns:
      (mesh, model, tokenizer).

    Raises:
      ConfigError: a workdir holds no low-rank adapter, or other parameters that were trained along with it.
      CheckpointError: an adapter was trained over another base.
    """
    config = dataclasses.replace(restore.in_precision(base, base.architecture, dtype), cuts=())
    # Stacks are cut wherever one of the adapters cuts them.
    cuts = {cut for run in runs for cut in lora(run).cuts(config, count.names(config))}
    config = dataclasses.replace(config, cuts=tuple(sorted(cuts)))
    mesh = axes.make_mesh({"data": 1}, jax.devices()[:1]) if mesh is None else mesh
    with axes.use_mesh(mesh):
        seen = [run.tuning.quantization for run in runs]
        if base.compression is None and any(form != seen[0] for form in seen):
            raise ConfigError(
                "the adapters of --adapter were trained over different forms of the base: "
                + ", ".join(f"{run.path} over {run.config.adapt.get('base', 'float')}" for run in runs)
                + "; generate with each alone"
            )
        base_step = runs[0].config.init_step  # `_over` refuses an adapter of another step
        model, content, _ = restore.pretrained(base, config, quantization=seen[0], step=base_step)
        adapted = [_over(config, run, content, step) for run in runs]
        with checking("--adapter"):
            return mesh, bank(model, adapted), base.tokenizer


def _over(config: ModelConfig, run: Workdir, content: str, step: str):
    """Returns a model with the adapter of a workdir over the shapes of its base, with stacks cut as in `config`."""
    shapes = lambda config: state.abstract_model(
        lambda rngs: run.tuning.apply(architectures.make(config, rngs), rngs.params())
    )
    with contextlib.closing(run.checkpoints(content)) as checkpoints:
        arrays = by_name(trained(checkpoints.restore_model(shapes(run.architecture), find_step(checkpoints, step))))
    target = shapes(config)
    if other := [name for name, leaf in trained(target).items() if role_of(leaf) is not Role.LOW_RANK]:
        raise ConfigError(
            f"--adapter={run.path}: {other[0]} was trained along with the adapter, and a batch has only one "
            "value of it; generate with this adapter alone (--workdir)"
        )
    found = restacked(arrays, run.architecture, config, trained(target))
    places = variables(target)
    return replaced(target, {name: places[name].replace(array) for name, array in found.items()})
