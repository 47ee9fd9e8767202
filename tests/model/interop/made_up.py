"""The tables of the two small decoders, in LLaMA's and GPT-2's layouts, and the places of their parameters."""

import jax
from flax import nnx

from model import axes
from model.architectures import Decoder
from model.interop.tables import gpt2, llama
from tests.model import tiny
from train import state

LLAMA, GPT2 = llama.table(tiny.LLAMA), gpt2.GPT2.table(tiny.GPT)


def abstract(config):
    """Returns a Decoder's shapes, dtypes and shardings on the current mesh, if there is one."""
    make = lambda rngs: Decoder(config, rngs)
    return state.abstract_model(make) if axes.has_mesh() else jax.eval_shape(lambda: make(nnx.Rngs(0)))
