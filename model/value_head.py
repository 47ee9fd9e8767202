"""ValueHead: a linear layer that reads a value from the hidden states of another model."""

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.layers import Linear


class ValueHead(nnx.Module):
    """The critic of a policy that shares its layers. It begins at 0 everywhere, so it changes no advantage at first."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.classifier = Linear(config, rngs, config.embed_dim, 1, bias=True)
        self.classifier.weight[...] = jnp.zeros_like(self.classifier.weight[...])

    def classes(self, x_BTD: jax.Array) -> jax.Array:
        """Returns the value at each token, float32 [B, T, 1], under the name that a model with a score head has."""
        return self.classifier(x_BTD.astype(jnp.float32))
