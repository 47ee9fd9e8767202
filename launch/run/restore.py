"""Loads models from workdirs: whole models, or a base with the adapter that was trained over it.

The calls are for_inference -> model -> over_base -> pretrained (of the base). The last one reads the base's own
checkpoint; if that holds an adapter too, it calls over_base again and merges the adapter.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from launch.program.checking import ConfigError, checking
from launch.run.early_stopping import find_step
from launch.run.workdirs import Workdir
from model import architectures, axes
from model.adapt.lora import Lora, merged
from model.adapt.tuning import Tuning
from model.compress import quantize
from model.config import ModelConfig
from model.fingerprint import array_sum, fingerprint
from model.patterns import restacked
from model.weights import by_name, trained, variables
from train import state as states


def for_inference(run: Workdir, mesh: jax.sharding.Mesh | None = None, step: str = "", dtype: str | None = None):
    """Loads a model to generate, evaluate or export.

    Args:
      run: the workdir of the model.
      mesh: the devices to load it onto; None: one device.
      step: which checkpoint (Checkpoints.find).
      dtype: the precision (see in_precision); None: the run's.

    Returns:
      (mesh, model, tokenizer).
    """
    config = in_precision(run, run.architecture, dtype)
    mesh = axes.make_mesh({"data": 1}, jax.devices()[:1]) if mesh is None else mesh
    with axes.use_mesh(mesh):
        return mesh, model(run, config, step), run.tokenizer


def in_precision(run: Workdir, config: ModelConfig, dtype: str | None) -> ModelConfig:
    """Returns the run's architecture with parameters and computation in `dtype`; None: as it is.

    If weights are quantized, only the computation is in `dtype`. The other parameters keep their dtype, because the
    quantized weights, and an adapter over them, were made for exactly these values.
    """
    if dtype is None:
        return config
    quantized = run.tuning.quantization is not None or run.compression is not None
    return dataclasses.replace(config, dtype=dtype, param_dtype=config.param_dtype if quantized else dtype)


def spread(config: ModelConfig) -> jax.sharding.Mesh:
    """Returns an fsdp mesh over as many devices as the model can be split over."""
    devices = jax.devices()
    for size in range(len(devices), 1, -1):
        with contextlib.suppress(ValueError):
            config.check_mesh({"fsdp": size})
            return axes.make_mesh({"fsdp": size}, devices[:size])
    return axes.make_mesh({"fsdp": 1}, devices[:1])


def model(run: Workdir, config: ModelConfig, step: str = ""):
    """Loads the model of a checkpoint, with its adapter if it has one, onto the current mesh."""
    if run.tuning.method is not None:
        return over_base(run, config, run.tuning, step)[0]
    like = states.abstract_model(_maker(run, config))
    with contextlib.closing(run.checkpoints()) as checkpoints:
        step_there = find_step(checkpoints, step)
        if run.compression is None:
            return checkpoints.restore_model(like, step_there)
        # One array at a time: asked for all, Orbax holds a second copy of many of them at once, and a machine that
        # needs a quantized model may have no memory for that.
        shapes: Mapping[str, Any] = by_name(like)  # shapes, because the model is abstract
        arrays = [array for _, array in checkpoints.restore_arrays(shapes, step_there)]
    return jax.tree.unflatten(jax.tree.structure(like), arrays)


def _maker(run: Workdir, config: ModelConfig):
    """Returns a function from nnx.Rngs to a model of `config`, with weights in the form that the checkpoints of `run`
    store. It is traced for shapes and for missing parameters."""
    make, form = lambda rngs: architectures.make(config, rngs), run.compression
    return make if form is None else lambda rngs: quantize.quantize(make(rngs), form)


def over_base(run: Workdir, config: ModelConfig, tuning: Tuning, step: str = ""):
    """Loads a model whose checkpoints hold only what was trained over a base, onto the current mesh.

    Args:
      run: its workdir.
      config: its architecture.
      tuning: that of the run; without `quantization` the adapter is loaded over the original weights of the base.
      step: which checkpoint (Checkpoints.find).

    Returns:
      (model, content hash of the base).
    """
    seed, base_step = run.config.seed, run.config.init_step
    base, content, _ = pretrained(run.base, config, seed, run.labels, tuning.quantization, base_step)
    over = tuned(base, tuning, seed)
    with contextlib.closing(run.checkpoints(content)) as checkpoints:
        return checkpoints.restore_model(over, find_step(checkpoints, step)), content


def tuned(model, tuning: Tuning, seed: int):
    """Returns the model with an adapter or frozen parameters, as `tuning` says; `model` itself is donated."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return jax.jit(tuning.apply, donate_argnums=0)(model, key)


def pretrained(
    source: Workdir,
    config: ModelConfig,
    seed: int = 0,
    labels: Mapping[str, Any] | None = None,
    quantization: quantize.Settings | None = None,
    step: str = "",
    *,
    into_quantized: bool = False,
):
    """Loads a whole model with the parameters of a checkpoint onto the current mesh.

    An adapter in `source` is merged into its base. Weights that `source` stores quantized stay quantized, and never
    exist as floats. With `quantization`, at most one array at a time exists as floats (all of them, if `cuts` differ).

    Args:
      source: the workdir of the checkpoint.
      config: the architecture of the result. It may differ from that of `source` in `cuts`, in fields that change no
        parameters, and in the head: the head of `source` is kept only if its scores mean the same.
      seed: for parameters that the checkpoint lacks, such as a new head.
      labels: the labels that the result gives (labels.json); None: the objective needs none, and keeps the scores of
        `source` if there are as many.
      quantization: how to quantize the weights that `source` stores as floats; None: not.
      step: which checkpoint (Checkpoints.find).
      into_quantized: merge an adapter into the quantized weights that it was trained over, written out in full, instead
        of into the original ones.

    Returns:
      (model, content hash of the checkpoint's parameters, names of the parameters that are new).
    """
    make_model = _maker(source, config)
    target = variables(states.abstract_model(make_model))
    if not _same_scores(labels, source, config):
        target = {name: leaf for name, leaf in target.items() if not name.startswith("classifier/")}
    form = quantization if source.compression is None else None
    narrowed = (lambda name, variable: variable) if form is None else form.narrowed
    take = lambda name, array: narrowed(name, target[name].replace(array.astype(target[name].dtype)))
    arrays: Iterable[tuple[str, jax.Array]]
    content: str | None
    if source.tuning.method is None:
        arrays, content = _stored(source, step), None
    else:
        arrays, content = _merged(source, step, into_quantized)
    there, whole, leaves, sums = source.architecture, {}, {}, {}
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


def _same_scores(labels: Mapping[str, Any] | None, source: Workdir, config: ModelConfig) -> bool:
    """Returns whether the scores of a classifier head in `source` mean what they shall mean in the result."""
    if labels is None:
        return source.architecture.num_labels == config.num_labels
    there = source.labels or {}
    return (labels["kind"], labels.get("names")) == (there.get("kind"), there.get("names"))


def _stored(source: Workdir, step: str) -> Iterator[tuple[str, jax.Array]]:
    """Yields (name, array) of a checkpoint that holds a whole model, one at a time."""
    shapes: Mapping[str, Any] = by_name(states.abstract_model(_maker(source, source.architecture)))
    with contextlib.closing(source.checkpoints()) as checkpoints:
        yield from checkpoints.restore_arrays(shapes, find_step(checkpoints, step))


def _merged(source: Workdir, step: str, into_quantized: bool) -> tuple[Iterable[tuple[str, jax.Array]], str]:
    """Returns (the arrays of a base with the adapter merged into them, content hash of the workdir).

    The hash is that of the stored arrays, because the last bits of merged weights depend on the mesh and the compiler.
    A base that is stored quantized has no original weights, so the adapter is merged into the dequantized ones.
    """
    check_mergeable(source)
    config, tuning = source.architecture, source.tuning
    method = tuning.method
    assert isinstance(method, Lora)  # no other method can be merged
    if not into_quantized and source.base.compression is None:
        tuning = dataclasses.replace(tuning, quantization=None)
        config = dataclasses.replace(config, param_dtype=stored_dtype(source))
    with checking(f"config.init_from {source.path}"):
        model, base = over_base(source, config, tuning, step)
        sums = {name: array_sum(v[...]) for name, v in trained(model).items()}
        content = fingerprint(sums | {"base": base, "scale": repr(method.scale)})
        return by_name(merged(quantize.dequantized(model))).items(), content


def quantization_note(run: Workdir) -> str:
    """Returns a warning if merging the adapter into the original weights changes the model's answers; else ''."""
    settings = run.tuning.quantization
    if settings is None or run.base.compression is not None:
        return ""
    return (
        f"the adapter in {run.path} was trained over weights in {settings.kind}; merged into the original ones, which "
        "it has never seen, it gives slightly different answers"
    )


def check_mergeable(run: Workdir) -> None:
    """Checks that another run can begin with the model of this workdir.

    Raises:
      ConfigError: it holds adapter layers or a prompt, which can't be merged into the base.
    """
    method = run.tuning.method
    if not isinstance(method, Lora | None):
        raise ConfigError(
            f"{run.path} holds parameters of the method {run.config.adapt.method}, which can't be merged into "
            f"the base; begin with the base itself, {run.base.path}"
        )


def stored_dtype(run: Workdir):
    """Returns the dtype of the parameters of the model under all adapters. A run over quantized weights may hold its
    other parameters in fewer bits than that."""
    while run.tuning.method is not None:
        run = run.base
    return run.architecture.param_dtype
