"""Models out of workdirs: a trained or imported one, or a base with what was trained over it."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from launch.program.checking import ConfigError, checking
from launch.run import workdirs
from launch.run.early_stopping import find_step
from model import architectures, axes
from model.adapt.lora import Lora, merged
from model.adapt.tuning import Tuning
from model.compress import quantize
from model.config import ModelConfig
from model.fingerprint import array_sum, fingerprint
from model.patterns import restacked
from model.weights import by_name, trained, variables
from train import state as states


def restore_for_inference(workdir, mesh: jax.sharding.Mesh | None = None, step: str = "", dtype: str | None = None):
    """(mesh, model, tokenizer) of a checkpoint in `workdir` (Checkpoints.find), on a mesh or on one device; in another
    precision than the run's, where `dtype` says one."""
    workdir = Path(workdir).absolute()
    config, words = workdirs.contents(workdir)
    config = in_precision(config, dtype, workdir)
    mesh = axes.make_mesh({"data": 1}, jax.devices()[:1]) if mesh is None else mesh
    with axes.use_mesh(mesh):
        return mesh, restore_model(workdir, config, step), words


def in_precision(config: ModelConfig, dtype: str | None, workdir: Path) -> ModelConfig:
    """The config with parameters and computation in `dtype`; None: as they are. A base that is quantized keeps its
    parameters, for they belong to what was trained over it, and computes in `dtype`."""
    if dtype is None:
        return config
    quantized = workdirs.tuning(workdirs.recorded_config(workdir)).quantization is not None
    return dataclasses.replace(config, dtype=dtype, **({} if quantized else {"param_dtype": dtype}))


def spread(config: ModelConfig) -> jax.sharding.Mesh:
    """An fsdp mesh of as many devices as the model can be split over."""
    devices = jax.devices()
    for size in range(len(devices), 1, -1):
        with contextlib.suppress(ValueError):
            config.check_mesh({"fsdp": size})
            return axes.make_mesh({"fsdp": size}, devices[:size])
    return axes.make_mesh({"fsdp": 1}, devices[:1])


def restore_model(workdir: Path, config: ModelConfig, step: str = "", *, original: bool = False):
    """The model of a checkpoint in `workdir`, on the mesh that is set; with its adapters, if it has some.

    Args:
      original: adapters stand on the weights as they were before they were quantized.
    """
    record = workdirs.recorded_config(workdir)
    tuning = workdirs.tuning(record)
    if original:
        tuning = dataclasses.replace(tuning, quantization=None)
    if tuning.method is None:
        with contextlib.closing(workdirs.finished_checkpoints(workdir)) as checkpoints:
            like = states.abstract_model(lambda rngs: architectures.make(config, rngs))
            return checkpoints.restore_model(like, find_step(checkpoints, step))
    return _over_base(workdir, record, config, tuning, step)[0]


def _over_base(workdir: Path, record: ConfigDict, config: ModelConfig, tuning: Tuning, step: str):
    """(model of a workdir that holds what trained over a base, content hash of that base)."""
    source, labels = workdirs.base_of(workdir), workdirs.labels(workdir)
    model, base, _ = pretrained(source, config, record.seed, labels, tuning.quantization, record.get("init_step", ""))
    model = tuned(model, tuning, record.seed)
    with contextlib.closing(workdirs.finished_checkpoints(workdir, base)) as checkpoints:
        return checkpoints.restore_model(model, find_step(checkpoints, step)), base


def pretrained(
    workdir: Path,
    config: ModelConfig,
    seed: int = 0,
    labels: dict | None = None,
    quantization: quantize.Settings | None = None,
    step: str = "",
    *,
    into_quantized: bool = False,
):
    """(model of `config` with the parameters of a checkpoint in `workdir`, content hash of these, names of those that
    it lacks and that are drawn), on the mesh that is set.

    `config` differs from that run's in fields that are no matter of its parameters, in `cuts`, and in the head where
    the model is to give `labels`: the head there is taken over if it gives the same ones. Adapters that were trained
    there are merged into the weights that they stand on, as these were before any quantization, or as they were after
    it (`into_quantized`). With `quantization` no more than one array at a time is there unquantized (all of them, where
    `cuts` differ).
    """
    there, _ = workdirs.contents(workdir)
    same = _meaning(labels) == _meaning(workdirs.labels(workdir))
    like = by_name(states.abstract_model(lambda rngs: architectures.make(there, rngs)))
    make_model = lambda rngs: architectures.make(config, rngs)
    target = variables(states.abstract_model(make_model))
    if not same:
        target = {name: leaf for name, leaf in target.items() if not name.startswith("classifier/")}
    narrowed = quantization.narrowed if quantization else lambda name, variable: variable
    take = lambda name, array: narrowed(name, target[name].replace(array.astype(target[name].dtype)))
    if workdirs.tuning(workdirs.recorded_config(workdir)).method is None:
        arrays, content = _stored(workdir, like, step), None
    else:
        arrays, content = _merged(workdir, there, step, into_quantized)
    whole, leaves, sums = {}, {}, {}
    for name, array in arrays:
        sums[name] = "" if content else array_sum(array)
        if there.cuts != config.cuts:
            whole[name] = array
        elif name in target:
            leaves[name] = take(name, array)
        del array  # before the next one is read
    if whole:
        leaves = {name: take(name, array) for name, array in restacked(whole, there, config, target).items()}
    model, new = states.completed(make_model, seed, leaves)
    return model, content or fingerprint(sums), new


def _meaning(labels: dict | None):
    """What the scores of a classifier stand for."""
    return labels and (labels["kind"], labels.get("names"))


def _stored(workdir: Path, like: dict, step: str) -> Iterator[tuple[str, jax.Array]]:
    with contextlib.closing(workdirs.finished_checkpoints(workdir)) as checkpoints:
        yield from checkpoints.restore_arrays(like, find_step(checkpoints, step))


def _merged(
    workdir: Path, config: ModelConfig, step: str, into_quantized: bool
) -> tuple[Iterable[tuple[str, jax.Array]], str]:
    """(arrays with the adapter in them, content hash of the workdir).

    What is hashed is what is stored: the last bits of a merged weight depend on the mesh and on the compiler.
    """
    check_mergeable(workdir)
    record = workdirs.recorded_config(workdir)
    tuning = workdirs.tuning(record)
    if not into_quantized:
        tuning = dataclasses.replace(tuning, quantization=None)
        config = dataclasses.replace(config, param_dtype=stored_dtype(workdir))
    with checking(f"config.init_from {workdir}"):
        model, base = _over_base(workdir, record, config, tuning, step)
        sums = {name: array_sum(v[...]) for name, v in trained(model).items()}
        content = fingerprint(sums | {"base": base, "scale": repr(tuning.method.scale)})
        return by_name(merged(quantize.dequantized(model))).items(), content


def quantization_note(workdir: Path) -> str:
    """What merging the adapter of a workdir into the original weights changes; '' where it changes nothing."""
    settings = workdirs.tuning(workdirs.recorded_config(workdir)).quantization
    if settings is None:
        return ""
    return (
        f"the adapter in {workdir} was trained over weights in {settings.kind}; merged into the original ones, which "
        "it has never seen, the model's answers differ a little from those it gave there"
    )


def check_mergeable(workdir: Path) -> None:
    """Refuse a workdir from whose model no other run can begin."""
    method = workdirs.tuning(workdirs.recorded_config(workdir)).method
    if not isinstance(method, Lora | None):
        raise ConfigError(
            f"{workdir} holds what can't be merged into its base ({type(method).__name__.lower()}); begin with the "
            f"base itself, {workdirs.base_of(workdir)}"
        )


def stored_dtype(workdir: Path):
    """That of the parameters at the bottom of a chain of adapters; what trains over quantized weights may hold the
    others in fewer bits."""
    while workdirs.tuning(workdirs.recorded_config(workdir)).method is not None:
        workdir = workdirs.base_of(workdir)
    return workdirs.contents(workdir)[0].param_dtype


def tuned(model, tuning, seed: int):
    """The model, given away, with what a run trains of it or over it."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return jax.jit(tuning.apply, donate_argnums=0)(model, key)
