"""Models out of workdirs: a trained or imported one, or a base with what was trained over it.

for_inference -> model -> over_base -> pretrained, of the base -> its own checkpoint, or over_base again and merged
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

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
    """(mesh, model, tokenizer) of a checkpoint (Checkpoints.find), on a mesh or on one device; in another precision
    than the run's, where `dtype` says one."""
    config = in_precision(run, run.architecture, dtype)
    mesh = axes.make_mesh({"data": 1}, jax.devices()[:1]) if mesh is None else mesh
    with axes.use_mesh(mesh):
        return mesh, model(run, config, step), run.tokenizer


def in_precision(run: Workdir, config: ModelConfig, dtype: str | None) -> ModelConfig:
    """The run's config with parameters and computation in `dtype`; None: as they are. Where weights are quantized, the
    other parameters belong to them, and to what was trained over them: they stay, and `dtype` is computed in."""
    if dtype is None:
        return config
    quantized = run.tuning.quantization is not None or run.compression is not None
    return dataclasses.replace(config, dtype=dtype, **({} if quantized else {"param_dtype": dtype}))


def spread(config: ModelConfig) -> jax.sharding.Mesh:
    """An fsdp mesh of as many devices as the model can be split over."""
    devices = jax.devices()
    for size in range(len(devices), 1, -1):
        with contextlib.suppress(ValueError):
            config.check_mesh({"fsdp": size})
            return axes.make_mesh({"fsdp": size}, devices[:size])
    return axes.make_mesh({"fsdp": 1}, devices[:1])


def model(run: Workdir, config: ModelConfig, step: str = ""):
    """The model of a checkpoint, on the mesh that is set; with its adapters, if it has some."""
    if run.tuning.method is not None:
        return over_base(run, config, run.tuning, step)[0]
    like = states.abstract_model(_maker(run, config))
    with contextlib.closing(run.checkpoints()) as checkpoints:
        step_there = find_step(checkpoints, step)
        if run.compression is None:
            return checkpoints.restore_model(like, step_there)
        # One array after another: Orbax, given all, has a second copy of many at once, and who reads a quantized model
        # may have no room for more than that.
        arrays = [array for _, array in checkpoints.restore_arrays(by_name(like), step_there)]
    return jax.tree.unflatten(jax.tree.structure(like), arrays)


def _maker(run: Workdir, config: ModelConfig):
    """nnx.Rngs -> a model of `config` whose weights are kept as in the checkpoints of `run`; for its shapes."""
    make, form = lambda rngs: architectures.make(config, rngs), run.compression
    return make if form is None else lambda rngs: quantize.quantize(make(rngs), form)


def over_base(run: Workdir, config: ModelConfig, tuning: Tuning, step: str = ""):
    """(model of a run that holds what trained over a base, content hash of that base), on the mesh that is set.

    Args:
      tuning: the run's, or with it over the weights as they were before they were quantized.
    """
    seed, base_step = run.config.seed, run.config.init_step
    base, content, _ = pretrained(run.base, config, seed, run.labels, tuning.quantization, base_step)
    over = tuned(base, tuning, seed)
    with contextlib.closing(run.checkpoints(content)) as checkpoints:
        return checkpoints.restore_model(over, find_step(checkpoints, step)), content


def tuned(model, tuning: Tuning, seed: int):
    """The model, given away, with what a run trains of it or over it."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return jax.jit(tuning.apply, donate_argnums=0)(model, key)


def pretrained(
    source: Workdir,
    config: ModelConfig,
    seed: int = 0,
    labels: dict | None = None,
    quantization: quantize.Settings | None = None,
    step: str = "",
    *,
    into_quantized: bool = False,
):
    """(model of `config` with the parameters of a checkpoint in `source`, content hash of these, names of those that
    it lacks and that are drawn), on the mesh that is set.

    `config` differs from that run's in fields that are no matter of its parameters, in `cuts`, and in the head where
    the model is to give `labels`: the head there is taken over if it gives the same ones. Adapters that were trained
    there are merged into the weights that they stand on, as these were before any quantization, or as they were after
    it (`into_quantized`). With `quantization` no more than one array at a time is there unquantized (all of them, where
    `cuts` differ). What is quantized in `source` already stays as it is, and no float array of it is made.
    """
    make_model = _maker(source, config)
    target = variables(states.abstract_model(make_model))
    if _meaning(labels) != _meaning(source.labels):
        target = {name: leaf for name, leaf in target.items() if not name.startswith("classifier/")}
    quantizes = quantization is not None and source.compression is None
    narrowed = quantization.narrowed if quantizes else lambda name, variable: variable
    take = lambda name, array: narrowed(name, target[name].replace(array.astype(target[name].dtype)))
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


def _meaning(labels: dict | None):
    """What the scores of a classifier stand for."""
    return labels and (labels["kind"], labels.get("names"))


def _stored(source: Workdir, step: str) -> Iterator[tuple[str, jax.Array]]:
    """(name, array) of a checkpoint that holds a whole model, one at a time."""
    like = by_name(states.abstract_model(_maker(source, source.architecture)))
    with contextlib.closing(source.checkpoints()) as checkpoints:
        yield from checkpoints.restore_arrays(like, find_step(checkpoints, step))


def _merged(source: Workdir, step: str, into_quantized: bool) -> tuple[Iterable[tuple[str, jax.Array]], str]:
    """(arrays of a base with the adapter in them, content hash of the workdir).

    What is hashed is what is stored: the last bits of a merged weight depend on the mesh and on the compiler. Of a base
    that is stored quantized there are no original weights, so they are merged into those.
    """
    check_mergeable(source)
    config, tuning = source.architecture, source.tuning
    if not into_quantized and source.base.compression is None:
        tuning = dataclasses.replace(tuning, quantization=None)
        config = dataclasses.replace(config, param_dtype=stored_dtype(source))
    with checking(f"config.init_from {source.path}"):
        model, base = over_base(source, config, tuning, step)
        sums = {name: array_sum(v[...]) for name, v in trained(model).items()}
        content = fingerprint(sums | {"base": base, "scale": repr(tuning.method.scale)})
        return by_name(merged(quantize.dequantized(model))).items(), content


def quantization_note(run: Workdir) -> str:
    """What merging the adapter of a workdir into the original weights changes; '' where it changes nothing."""
    settings = run.tuning.quantization
    if settings is None or run.base.compression is not None:
        return ""
    return (
        f"the adapter in {run.path} was trained over weights in {settings.kind}; merged into the original ones, which "
        "it has never seen, the model's answers differ a little from those it gave there"
    )


def check_mergeable(run: Workdir) -> None:
    """Refuse a workdir from whose model no other run can begin."""
    method = run.tuning.method
    if not isinstance(method, Lora | None):
        raise ConfigError(
            f"{run.path} holds what can't be merged into its base ({type(method).__name__.lower()}); begin with the "
            f"base itself, {run.base.path}"
        )


def stored_dtype(run: Workdir):
    """That of the parameters at the bottom of a chain of adapters; what trains over quantized weights may hold the
    others in fewer bits."""
    while run.tuning.method is not None:
        run = run.base
    return run.architecture.param_dtype
