"""Models out of workdirs: a trained or imported one, or a base with what was trained over it."""

import contextlib
from pathlib import Path

import jax

from launch import workdirs
from launch.checking import ConfigError, checking
from launch.early_stopping import find_step
from model import axes, families
from model.adapt.lora import Lora, merged
from model.config import ModelConfig
from model.fingerprint import array_sum, fingerprint
from model.patterns import restacked
from model.weights import by_name
from train import state as states


def restore_for_inference(workdir, mesh: jax.sharding.Mesh | None = None, step: str = ""):
    """(mesh, model, tokenizer) of a checkpoint in `workdir` (Checkpoints.find), on a mesh or on one device."""
    workdir = Path(workdir).absolute()
    config, words = workdirs.contents(workdir)
    mesh = axes.make_mesh({"data": 1}, jax.devices()[:1]) if mesh is None else mesh
    with axes.use_mesh(mesh):
        return mesh, restore_model(workdir, config, step), words


def spread(config: ModelConfig) -> jax.sharding.Mesh:
    """An fsdp mesh of as many devices as the model can be split over."""
    devices = jax.devices()
    for size in range(len(devices), 1, -1):
        with contextlib.suppress(ValueError):
            config.check_mesh({"fsdp": size})
            return axes.make_mesh({"fsdp": size}, devices[:size])
    return axes.make_mesh({"fsdp": 1}, devices[:1])


def restore_model(workdir: Path, config: ModelConfig, step: str = ""):
    """The model of a checkpoint in `workdir`, on the mesh that is set; with its adapters, if it has some."""
    record = workdirs.recorded_config(workdir)
    tuning = workdirs.tuning(record)
    if tuning.method is None:
        with contextlib.closing(workdirs.finished_checkpoints(workdir)) as checkpoints:
            like = states.abstract_model(lambda rngs: families.make(config, rngs))
            return checkpoints.restore_model(like, find_step(checkpoints, step))
    model, base, _ = pretrained(Path(record.init_from).absolute(), config, record.seed, workdirs.labels(workdir))
    model = tuned(model, tuning, record.seed)
    with contextlib.closing(workdirs.finished_checkpoints(workdir, base)) as checkpoints:
        return checkpoints.restore_model(model, find_step(checkpoints, step))


def pretrained(workdir: Path, config: ModelConfig, seed: int = 0, labels: dict | None = None, step: str = ""):
    """(model of `config` with the parameters of a checkpoint in `workdir`, content hash of these, names of those that
    it lacks and that are drawn), on the mesh that is set.

    `config` differs from that run's in fields that are no matter of its parameters, in `cuts`, and in the head where
    the model is to give `labels`: the head there is taken over if it gives the same ones. Adapters that were trained
    there are merged into what they stand on.
    """
    there, _ = workdirs.contents(workdir)
    same = _meaning(labels) == _meaning(workdirs.labels(workdir))
    like = by_name(states.abstract_model(lambda rngs: families.make(there, rngs)))
    target = states.abstract_model(lambda rngs: families.make(config, rngs))
    dtypes = {name: leaf.dtype for name, leaf in by_name(target).items()}
    arrays, sums = {}, {}
    for name, array in _arrays(workdir, there, like, step):
        sums[name] = array_sum(array)
        arrays[name] = array.astype(dtypes.get(name, next(iter(dtypes.values()))))
    leaves = restacked(arrays, there, config, by_name(target))
    leaves = {name: leaf for name, leaf in leaves.items() if same or not name.startswith("classifier/")}
    model, new = states.completed(lambda rngs: families.make(config, rngs), seed, leaves)
    return model, fingerprint(sums), new


def _meaning(labels: dict | None):
    """What the scores of a classifier stand for."""
    return labels and (labels["kind"], labels.get("names"))


def _arrays(workdir: Path, config: ModelConfig, like: dict, step: str):
    method = workdirs.tuning(workdirs.recorded_config(workdir)).method
    if method is not None:
        if not isinstance(method, Lora):
            raise ConfigError(
                f"{workdir} holds what can't be merged into its base ({type(method).__name__.lower()}); begin with the "
                "base itself"
            )
        with checking(f"config.init_from {workdir}"):
            yield from by_name(merged(restore_model(workdir, config, step))).items()
        return
    with contextlib.closing(workdirs.finished_checkpoints(workdir)) as checkpoints:
        yield from checkpoints.restore_arrays(like, find_step(checkpoints, step))


def tuned(model, tuning, seed: int):
    """The model, given away, with what a run trains of it or over it."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return jax.jit(tuning.apply, donate_argnums=0)(model, key)
