"""Checks a config before anything expensive happens, and collects notes about a valid one."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping

import jax
from flax import nnx
from ml_collections import ConfigDict

from data.examples import kinds
from launch.program.checking import ConfigError, checking
from launch.run import build, models, ranges
from model import architectures, axes, count, patterns, weights
from model.compress.quantize import quantize
from model.config import ModelConfig
from model.interop import peft, registry
from model.interop.files.tensorfile import CheckpointFolderError
from model.parts import Rope
from model.roles import Role, role_of
from train.optimizer import UNREAD, fetched


def check(config: ConfigDict, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None, new: bool = True) -> None:
    """Checks everything that can be known before data are prepared and programs are compiled.

    Args:
      config: the whole config.
      mesh: the devices of the run; None: they are not on this machine, so what depends on them is not checked.
      new: whether the run is new. A run that has begun may continue with patterns that match nothing.

    Raises:
      ConfigError: the run would fail later.
    """
    ranges.check(config)
    if mesh is not None:
        check_batch(config, mesh)
    model = models.model_config(config, tokenizer_size=1, num_labels=config.model.get("num_labels") or 1)
    if mesh is not None:
        with checking("config.mesh"):
            model.check_mesh(dict(mesh.shape))
    objective = models.objective(config)
    try:
        objective.check(model, config.data)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check_training(config, model, new)


def check_read(config: ConfigDict, chosen: Iterable[str]) -> None:
    """Checks that something reads what the user has set: a field of a kind of examples needs data of this kind, and
    fields about sampled answers need prompts.

    Args:
      config: the whole config.
      chosen: fields that the user has set, like 'data.chat.template'.

    Raises:
      ConfigError: nothing reads a field.
    """
    found = {kinds.kind_of(spec) for spec, _ in kinds.sources(config.data)}
    for name in chosen:
        if name.startswith(("rollouts.", "reward.")) and not kinds.asks(config.data):
            raise ConfigError(
                f"config.{name} is set, but nothing reads it: config.data holds {', '.join(sorted(found)) or 'nothing'}"
                ", not prompts, so the model is not asked anything in training"
            )
    for block, kind, field in (name.split(".", 2) for name in chosen if name.count(".") > 1):
        if block == "data" and kind in kinds.KINDS and kind not in found:
            raise ConfigError(
                f"config.data.{kind}.{field} is set, but nothing reads it: config.data holds "
                f"{', '.join(sorted(found)) or 'nothing'}, not {kind}"
            )


def _check_training(config: ConfigDict, model: ModelConfig, new: bool) -> None:
    """Checks which parameters train, the optimizer, and the patterns of both, on shapes alone."""
    tuning, tx = models.tuning(config), build.optimizer(config, model)

    def make(key):
        base = architectures.make(model, nnx.Rngs(key))
        return weights.trained(tuning.apply(quantize(base, tuning.quantization) if tuning.quantization else base, key))

    with checking("config.adapt, config.train_only"):
        params = jax.eval_shape(make, jax.random.key(0))
    with checking("config.optimizer"):
        jax.eval_shape(lambda params: tx.update(params, fetched(tx.init(params)), params), params)
    if new:
        names = {*count.names(model), *params}
        lists = {"train_only": tuning.train_only, "optimizer.decay": config.optimizer.decay}
        lists |= {"optimizer.rates": config.optimizer.rates, "adapt.targets": config.adapt.get("targets", ())}
        with checking("config"):
            for of, rules in lists.items():
                patterns.check_used(model, names, rules, of)


def check_batch(config: ConfigDict, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
    """Checks that every device gets the same number of rows of each micro-batch, and of tokens of each row.

    Raises:
      ConfigError: it does not; names the nearest sizes that fit.
    """
    split = {axis: mesh.shape[axis] for axis in axes.spec("batch")[0]} | {"accumulate": config.accumulate}
    parts = math.prod(split.values())
    if config.batch_size < 1 or config.batch_size % parts:
        near = [n for n in (config.batch_size // parts * parts, (config.batch_size // parts + 1) * parts) if n]
        raise ConfigError(
            f"config.batch_size {config.batch_size} cannot be divided evenly over "
            + " x ".join(f"{name}={size}" for name, size in split.items() if size > 1)
            + "; the nearest that can: "
            + ", ".join(map(str, near))
        )
    if config.model.pipeline_slots and config.batch_size // parts % config.model.pipeline_slots:
        raise ConfigError(
            f"config.model.pipeline_slots {config.model.pipeline_slots} does not divide the "
            f"{config.batch_size // parts} rows that a device has in each accumulated micro-batch"
        )
    halves = 2 * mesh.shape["context"]
    if halves > 2 and config.data.seq_len % halves:
        raise ConfigError(
            f"config.data.seq_len {config.data.seq_len} cannot be split over context={halves // 2}, because each "
            f"device has two equal pieces of a row; the nearest that can: {-(-config.data.seq_len // halves) * halves}"
        )


def notes(config: ConfigDict, model: ModelConfig, trains: Mapping[str, nnx.Variable]) -> list[str]:
    """Returns notes about a valid run that its user would want to know.

    Args:
      trains: the trained parameters by name (model.weights.trained).
    """
    found = []
    if not config.checkpoint_every:
        but = " but the best evaluations" if config.early_stopping.patience else ""
        found.append(
            f"note: config.checkpoint_every is 0, so nothing is saved{but}, not even at the end; only SIGTERM, "
            "Ctrl-C and a failing evaluation save a checkpoint"
        )
    found += [f"note: {field} has no effect: {why}" for field, why in _without_effect(config, model)]
    if unread := UNREAD.get(config.optimizer.name):
        fields = ", ".join(f"config.optimizer.{field}" for field in unread)
        found.append(f"note: the optimizer {config.optimizer.name} does not read {fields}")
    routed = any(role_of(leaf) is Role.ROUTER for leaf in trains.values())
    if routed and model.experts and not model.experts.correction and config.objective.get("balance_loss") == 0:
        found.append("note: nothing balances the load of the experts; config.objective.balance_loss=0.01 would")
    with contextlib.suppress(CheckpointFolderError):  # the model belongs to no family, so it can't be exported anyway
        name = config.get("model_type") or registry.family_of(model)
        adapted = {path.removesuffix("/a") for path in trains if path.endswith("/a")}
        if why := peft.unreadable(model, registry.FAMILIES[name].table(model), adapted):
            found.append(f"note: {why}")
    return found + _rare_sources(config)


def _without_effect(config: ConfigDict, model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yields (field, reason) of fields that are set and that nothing reads."""
    if model.window and "local" not in model.attention_pattern:
        yield "config.model.window", "config.model.attention_pattern has no 'local' layer"
    if model.share_inner != 1 and not model.share_groups:
        yield "config.model.share_inner", "config.model.share_groups is 0"
    for name, scalings in _SCALED.items():
        if getattr(model.rope, name) != getattr(Rope(), name) and model.rope.scaling not in scalings:
            yield f"config.model.rope.{name}", f"config.model.rope.scaling is {model.rope.scaling!r}"
    for field, why in models.objective(config).without_effect():
        yield f"config.objective.{field}", why
    if config.optimizer.critic_rate != 1 and not config.objective.get("critic"):
        yield "config.optimizer.critic_rate", "there is no critic"
    if config.rollouts.truncated_penalty != 1 and config.rollouts.truncated != "penalize":
        yield "config.rollouts.truncated_penalty", f"config.rollouts.truncated is {config.rollouts.truncated!r}"
    if config.adapt.get("base") == "int8" and not config.adapt.get("double_quantization", True):
        yield "config.adapt.double_quantization", "int8 has no scales to quantize"


# The scalings that read a field of model.rope.
_SCALED = {
    "factor": ("linear", "llama3", "yarn"),
    "original_length": ("llama3", "yarn"),
    "low_factor": ("llama3",),
    "high_factor": ("llama3",),
    "beta_fast": ("yarn",),
    "beta_slow": ("yarn",),
    "attention_factor": ("yarn",),
}


def _rare_sources(config: ConfigDict) -> list[str]:
    """Returns a line for each source whose weight is too small to give this run a single row."""
    rows, sources = config.steps * config.batch_size, kinds.sources(config.data)
    total = math.fsum(weight for _, weight in sources)
    return [
        f"note: {spec} has weight {weight:.6g} of {total:.6g} in total, which is less than one row in the {rows:,} "
        "rows of this run"
        for spec, weight in sources
        if 0 < weight * rows < total
    ]
