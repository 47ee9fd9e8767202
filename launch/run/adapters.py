"""Workdirs of low-rank adapters: from and to folders of peft, merged into their base, several in one batch."""

import contextlib
import dataclasses
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from launch.program.checking import ConfigError, checking
from launch.run import restore, workdirs
from launch.run.early_stopping import find_step
from model import architectures, axes, count
from model.adapt.bank import bank
from model.adapt.lora import Lora
from model.config import ModelConfig
from model.interop import peft, peft_config, registry
from model.interop.files.folder import Folder
from model.interop.table import Table
from model.patterns import restacked
from model.weights import by_name, replaced, trained, variables
from train import state

INTO = ("original", "quantized")


def from_peft(folder: Path, base: Path, workdir: Path, step: str = "") -> None:
    """The adapter of a folder as a workdir over the one in `base`, a checkpoint of it."""
    workdirs.check_new(workdir)
    _refuse_changed(base)
    _warn_of_another_base(folder, base)
    config, words = workdirs.contents(base)
    config, record = dataclasses.replace(config, cuts=()), workdirs.recorded_config(base)
    with axes.use_mesh(restore.spread(config)):
        with contextlib.closing(workdirs.finished_checkpoints(base)) as checkpoints:
            step = str(find_step(checkpoints, step))
        model, content, _ = restore.pretrained(base, config, labels=workdirs.labels(base), step=step)
        model, tuning = peft.read(folder, _table(config, record.get("model_type")), model)
        fields = {"model": dataclasses.asdict(config), "init_from": str(base), "init_step": step, "seed": 0}
        fields |= {"adapt": {"method": "lora"} | dataclasses.asdict(tuning.method), "train_only": tuning.train_only}
        fields |= {"model_type": record.model_type} if "model_type" in record else {}
        workdirs.create(workdir, fields, model, words, workdirs.labels(base), content)
    size = sum(w.size for w in trained(model).values())
    print(f"{folder}: {size:,} parameters over {base} -> {workdir}")


def _refuse_changed(base: Path) -> None:
    """GPT-2's scale_attn_by_inverse_layer_idx is kept in the weights, where an adapter can't know of it."""
    if workdirs.recorded_config(base).get("imported_changed"):
        raise ConfigError(
            f"the weights in {base} were changed when they were imported (scale_attn_by_inverse_layer_idx), so an "
            "adapter of the published model does not fit this one, nor the other way round; merge it before, with "
            "--merge --to_hf or with peft's merge_and_unload"
        )


def _warn_of_another_base(folder: Path, base: Path) -> None:
    """An adapter has the shapes of many models and fits one; what tells them apart is a name."""
    wanted, there = (
        peft_config.base_name(Folder(folder, peft.FILES)),
        workdirs.recorded_config(base).get("imported_from"),
    )
    if wanted and there and _model_name(wanted) != _model_name(there):
        print(
            f"warning: {folder / peft_config.NAME} says that the adapter was trained over {wanted}, but {base} was "
            f"imported from {there}; over other weights than its own an adapter says nothing sensible. Go on if these "
            "are two names of one model, else name the right --base",
            file=sys.stderr,
        )


def _model_name(path: str) -> str:
    """The last part of 'organisation/name', of a folder, or of what stands for it in the cache of Hugging Face."""
    parts = [part for part in re.split(r"[\\/]+", path) if part]
    cached = next((part for part in parts if part.startswith("models--")), None)
    return (cached.split("--")[-1] if cached else parts[-1] if parts else path).lower()


def to_peft(workdir: Path, folder: Path, step: str = "") -> None:
    """The adapter of a workdir as a folder."""
    _lora(workdir)
    record, (config, _) = workdirs.recorded_config(workdir), workdirs.contents(workdir)
    base = workdirs.base_of(workdir)
    _refuse_changed(base)
    published = workdirs.recorded_config(base).get("imported_from")
    mesh, model, _ = restore.restore_for_inference(workdir, restore.spread(config), step)
    with axes.use_mesh(mesh):
        peft.write(model, _table(config, record.get("model_type")), folder, published)
    way = "--merge --to_hf" if workdirs.tuning(workdirs.recorded_config(base)).method else "--to_hf"
    stands = published or f"the model in {base} (launch.convert {way} writes that)"
    print(f"{workdir} -> {folder}: an adapter for peft, over {stands}")


def merge(workdir: Path, out: Path, step: str = "", into: str = "original") -> None:
    """A workdir with the adapter of another in its parameters: a model like any."""
    workdirs.check_new(out)
    record, (config, words) = workdirs.recorded_config(workdir), workdirs.contents(workdir)
    model = merged(workdir, restore.spread(config), step, into)
    own = ("adapt", "train_only", "init_from", "init_step")  # what made it no whole model
    fields = {name: value for name, value in record.to_dict().items() if name not in own}
    fields["model"] = dataclasses.asdict(model.config)
    workdirs.create(out, fields, model, words, workdirs.labels(workdir))
    if (workdir / "data.json").exists():
        shutil.copy(workdir / "data.json", out)
    print(f"{workdir}, merged into {record.init_from}: {count.num_params(model.config):,} parameters -> {out}")


def merged(workdir: Path, mesh: jax.sharding.Mesh, step: str = "", into: str = "original"):
    """The model of a workdir, the adapter in the parameters of its base.

    Args:
      into: one of INTO: the base's weights as they were before they were quantized, or as the adapter was trained over
        them, written out in the dtype of the original ones.
    """
    note, tuning = restore.quantization_note(workdir), _lora(workdir)
    if into == "quantized" and tuning.quantization is None:
        raise ConfigError(
            f"--merge_into=quantized is for adapters that were trained over quantized weights; the one in {workdir} "
            "was not"
        )
    if note and into == "original":
        print(f"warning: {note}; --merge_into=quantized merges it into those that it was trained over", file=sys.stderr)
    config = dataclasses.replace(workdirs.contents(workdir)[0], cuts=(), param_dtype=restore.stored_dtype(workdir))
    with axes.use_mesh(mesh):
        labels, quantized = workdirs.labels(workdir), into == "quantized"
        return restore.pretrained(workdir, config, labels=labels, step=step, into_quantized=quantized)[0]


def several(
    base: Path, runs: Sequence[Path], mesh: jax.sharding.Mesh | None = None, step: str = "", dtype: str | None = None
):
    """(mesh, model, tokenizer): the model of `base` with the adapters of these workdirs, to be chosen by row; of each
    the checkpoint `step`; in another precision than the base's, where `dtype` says one."""
    config, words = workdirs.contents(base)
    config = restore.in_precision(config, dtype, base)
    config, tunings = dataclasses.replace(config, cuts=()), [_lora(run) for run in runs]
    # Parted wherever an adapter parts its layers.
    cuts = {cut for tuning in tunings for cut in tuning.cuts(config, count.names(config))}
    config = dataclasses.replace(config, cuts=tuple(sorted(cuts)))
    mesh = axes.make_mesh({"data": 1}, jax.devices()[:1]) if mesh is None else mesh
    with axes.use_mesh(mesh):
        model, content, _ = restore.pretrained(base, config)
        adapted = [_over(config, run, tuning, content, step) for run, tuning in zip(runs, tunings, strict=True)]
        with checking("--adapter"):
            return mesh, bank(model, adapted), words


def _over(config: ModelConfig, workdir: Path, tuning, content: str, step: str):
    """A model with the adapter of a workdir over shapes of its base, parted as in `config`."""
    own, _ = workdirs.contents(workdir)
    shapes = lambda config: state.abstract_model(
        lambda rngs: tuning.apply(architectures.make(config, rngs), rngs.params())
    )
    with contextlib.closing(workdirs.finished_checkpoints(workdir, content)) as checkpoints:
        arrays = by_name(trained(checkpoints.restore_model(shapes(own), find_step(checkpoints, step))))
    target = shapes(config)
    if other := [name for name in trained(target) if not name.endswith(("/a", "/b"))]:
        raise ConfigError(f"--adapter={workdir}: {other[0]} was trained beside the adapter, and rows can't share it")
    found = restacked(arrays, own, config, trained(target))
    places = variables(target)
    return replaced(target, {name: places[name].replace(array) for name, array in found.items()})


def _lora(workdir: Path):
    """What trained there, low-rank adapters."""
    tuning = workdirs.tuning(workdirs.recorded_config(workdir))
    if not isinstance(tuning.method, Lora):
        kind = "no adapter" if tuning.method is None else f"{type(tuning.method).__name__.lower()} and no such adapter"
        raise ConfigError(f"{workdir} holds {kind}; this is for low-rank ones (configs/lora.py)")
    return tuning


def _table(config: ModelConfig, model_type: str | None) -> Table:
    return registry.FAMILIES[model_type or registry.family_of(config)].table(config)
