"""What is measured of a round belongs to its own tokens, also on a mesh that reorders the tokens of rows."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from launch.run import build
from launch.training.prompting import Asked
from model import architectures, axes
from tests.model import tiny
from tests.train.objectives.test_policy import IDS, completions, laid_out
from train import state as states
from train.objectives.policy import Policy


@pytest.mark.parametrize("shape", [{"fsdp": 2, "context": 2, "tensor": 2}, {"data": 4, "tensor": 2}])
def test_a_mesh_measures_the_same(shape):
    objective = Policy().sampling(1.0, 8, IDS)
    batch, _ = laid_out(objective, completions(), unit=8)
    config = dataclasses.replace(tiny.LLAMA, num_layers=1)

    def measured(mesh):
        model = tiny.filled(states.abstract_model(lambda rngs: architectures.make(config, rngs)), 0)
        asked = SimpleNamespace(objective=objective, mesh=mesh)
        asked.share = lambda batch: Asked.share(asked, batch)
        return Asked.measure(asked, 2)(states.around(model, optax.sgd(0.1)), batch)["old_logprobs"]

    one = axes.make_mesh({"data": 1}, jax.devices()[:1])
    with axes.use_mesh(one):
        alone = measured(one)
    mesh = axes.make_mesh(shape)
    with axes.use_mesh(mesh):
        np.testing.assert_allclose(measured(mesh), alone, rtol=1e-4, atol=1e-5)
    assert build.dealt(mesh, 32) == ("context" in shape)
