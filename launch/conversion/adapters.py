"""Converts workdirs of low-rank adapters: from and to folders of peft, and merged into their base."""

import contextlib
import dataclasses
import re
import shutil
import sys
from pathlib import Path

import jax

from launch.program.checking import ConfigError
from launch.run import models, restore, workdirs
from launch.run.adapter_bank import lora
from launch.run.early_stopping import find_step
from launch.run.workdirs import Workdir
from model import axes, count
from model.adapt.lora import Lora
from model.config import ModelConfig
from model.interop import peft, peft_config, registry
from model.interop.files.folder import Folder
from model.interop.table import Table
from model.weights import trained

INTO = ("original", "quantized")


def from_peft(folder: Path, base: Workdir, workdir: Path, step: str = "") -> None:
    """Reads an adapter of peft and writes it as a workdir.

    Args:
      folder: of the adapter.
      base: the workdir of the model under the adapter.
      workdir: the new workdir.
      step: which checkpoint of `base` (Checkpoints.find).

    Raises:
      ConfigError: `workdir` is in use, or the weights in `base` were changed by the import.
    """
    workdirs.check_new(workdir)
    _refuse_changed(base)
    _warn_of_another_base(folder, base)
    config, model_type = dataclasses.replace(base.architecture, cuts=()), base.config.get("model_type")
    with axes.use_mesh(restore.spread(config)):
        with contextlib.closing(base.checkpoints()) as checkpoints:
            step = str(find_step(checkpoints, step))
        model, content, _ = restore.pretrained(base, config, labels=base.labels, step=step)
        model, tuning = peft.read(folder, _table(config, model_type), model)
        fields = {"model": dataclasses.asdict(config), "init_from": str(base.path), "init_step": step, "seed": 0}
        assert isinstance(tuning.method, Lora)  # peft.read reads no other method
        adapt = {"method": "lora"} | dataclasses.asdict(tuning.method) | models.base_fields(base.compression)
        fields |= {"adapt": adapt, "train_only": tuning.train_only}
        fields |= {"model_type": model_type} if model_type else {}
        workdirs.create(workdir, fields, model, base.tokenizer, base.labels, content)
    size = sum(w.size for w in trained(model).values())
    print(f"{folder}: {size:,} parameters over {base.path} -> {workdir}")


def _refuse_changed(base: Workdir) -> None:
    """Raises a ConfigError for a GPT-2 with scale_attn_by_inverse_layer_idx.

    The import multiplied that factor into its weights, so adapters of the published model do not fit them.
    """
    if base.config.get("imported_changed"):
        raise ConfigError(
            f"the weights in {base.path} were changed when they were imported (scale_attn_by_inverse_layer_idx), so "
            "adapters of the published model do not fit this one, and adapters of this one do not fit that; merge the "
            "adapter first, with --merge --to_hf or with peft's merge_and_unload"
        )


def _warn_of_another_base(folder: Path, base: Workdir) -> None:
    """Warns if the adapter names another base. Shapes alone can't tell, because many models have the same ones."""
    wanted, there = peft_config.base_name(Folder(folder, peft.FILES)), base.config.get("imported_from")
    if wanted and there and _model_name(wanted) != _model_name(there):
        print(
            f"warning: {folder / peft_config.NAME} says that the adapter was trained over {wanted}, but {base.path} "
            f"was imported from {there}; over other weights than its own, an adapter gives nonsense. Ignore "
            "this if these are two names of one model; otherwise name the right --base",
            file=sys.stderr,
        )


def _model_name(path: str) -> str:
    """Returns the last part of 'organisation/name', of a folder, or of a folder in the cache of Hugging Face."""
    parts = [part for part in re.split(r"[\\/]+", path) if part]
    cached = next((part for part in parts if part.startswith("models--")), None)
    return (cached.split("--")[-1] if cached else parts[-1] if parts else path).lower()


def to_peft(run: Workdir, folder: Path, step: str = "") -> None:
    """Writes the adapter of a workdir as a folder that peft reads.

    Args:
      run: the workdir of the adapter.
      folder: where to write; it must not exist, or be empty.
      step: which checkpoint (Checkpoints.find).

    Raises:
      ConfigError: `run` holds no low-rank adapter, or the weights of its base were changed by the import.
    """
    lora(run)
    _refuse_changed(run.base)
    published = run.base.config.get("imported_from")
    mesh, model, _ = restore.for_inference(run, restore.spread(run.architecture), step)
    with axes.use_mesh(mesh):
        peft.write(model, _table(run.architecture, run.config.get("model_type")), folder, published)
    way = "--merge --to_hf" if run.base.tuning.method else "--to_hf"
    base = published or f"the model in {run.base.path} (launch.convert {way} writes that)"
    print(f"{run.path} -> {folder}: an adapter for peft, over {base}")


def merge(run: Workdir, out: Path, step: str = "", into: str = "original") -> None:
    """Merges the adapter of a workdir into its base and writes the result as a new workdir, which needs neither.

    Args:
      run: the workdir of the adapter.
      out: the new workdir.
      step: which checkpoint (Checkpoints.find).
      into: one of INTO, see `merged`.

    Raises:
      ConfigError: `out` is in use, `run` holds no low-rank adapter, or `into` does not apply to it.
    """
    workdirs.check_new(out)
    model = merged(run, restore.spread(run.architecture), step, into)
    own = {"adapt", "train_only", "init_from", "init_step"}  # fields of an adapter's run
    if any(companion.field == "init_from" for companion in models.objective(run.config).beside().companions):
        own -= {"init_from", "init_step"}  # evaluations still need the reference
    fields = {name: value for name, value in run.record.items() if name not in own}
    fields["model"] = dataclasses.asdict(model.config)
    workdirs.create(out, fields, model, run.tokenizer, run.labels)
    if (run.path / "data.json").exists():
        shutil.copy(run.path / "data.json", out)
    size = count.num_params(model.config)
    print(f"{run.path}, merged into {run.config.init_from}: {size:,} parameters -> {out}")


def merged(run: Workdir, mesh: jax.sharding.Mesh, step: str = "", into: str = "original"):
    """Returns the model of a workdir with its adapter merged into the base, on `mesh`.

    Args:
      run: the workdir of the adapter.
      mesh: the devices to load it onto.
      step: which checkpoint (Checkpoints.find).
      into: one of INTO. 'original': the weights as they were before quantization; 'quantized': the quantized ones that
        the adapter was trained over, dequantized to the dtype of the original ones.

    Raises:
      ConfigError: `run` holds no low-rank adapter, or `into` is 'quantized' and its base is not.
    """
    note, tuning, quantized = restore.quantization_note(run), lora(run), into == "quantized"
    if quantized and tuning.quantization is None:
        raise ConfigError(
            f"--merge_into=quantized is for adapters that were trained over quantized weights; the one in {run.path} "
            "was not"
        )
    if note and not quantized:
        print(
            f"warning: {note}; --merge_into=quantized merges it into the weights that it was trained over",
            file=sys.stderr,
        )
    config = dataclasses.replace(run.architecture, cuts=(), param_dtype=restore.stored_dtype(run))
    with axes.use_mesh(mesh):
        return restore.pretrained(run, config, labels=run.labels, step=step, into_quantized=quantized)[0]


def _table(config: ModelConfig, model_type: str | None) -> Table:
    return registry.FAMILIES[model_type or registry.family_of(config)].table(config)
