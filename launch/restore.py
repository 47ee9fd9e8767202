"""Models out of workdirs."""

import contextlib
from pathlib import Path

import jax

from launch import workdirs
from model import axes, families
from model.config import ModelConfig
from train import state as states


def restore_for_inference(workdir, mesh: jax.sharding.Mesh | None = None):
    """(mesh, model, tokenizer) of the latest checkpoint in `workdir`, on a mesh or on one device."""
    workdir = Path(workdir).absolute()
    config, words = workdirs.contents(workdir)
    mesh = axes.make_mesh({"data": 1}, jax.devices()[:1]) if mesh is None else mesh
    with axes.use_mesh(mesh):
        return mesh, restore_model(workdir, config), words


def restore_model(workdir: Path, config: ModelConfig):
    """The model of the latest checkpoint in `workdir`, on the mesh that is set."""
    with contextlib.closing(workdirs.finished_checkpoints(workdir)) as checkpoints:
        return checkpoints.restore_model(states.abstract_model(lambda rngs: families.make(config, rngs)))
