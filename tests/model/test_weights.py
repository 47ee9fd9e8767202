"""A parameter, its array and its variable have the same name."""

import jax
import pytest
from flax import nnx

from model import architectures
from model.adapt.lora import Lora
from model.weights import by_name, frozen, trained, variables
from tests.model import tiny


@pytest.mark.parametrize("config", [tiny.LLAMA, tiny.LATENT])
def test_a_variable_and_its_array_have_one_name(config):
    """Names include attention's own parameter `value`."""
    model = jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0)))
    assert variables(model).keys() == by_name(model).keys() == trained(model).keys()
    adapted = jax.eval_shape(
        lambda: Lora(targets=(("", True),)).insert(frozen(architectures.make(config, nnx.Rngs(0))), jax.random.key(0))
    )
    assert variables(adapted).keys() == by_name(adapted).keys()
    assert any(name.endswith("attention/out/a") for name in trained(adapted))
    if not config.latent:
        assert "stack/segments/0/0/attention/value/base" in variables(adapted)
