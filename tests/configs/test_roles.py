"""Over the published sizes, one of each structure, each parameter's role decides the same as its name would.

The names are those of today's architectures, written out here again. A parameter of a new kind needs a role, not just a
name that one of these patterns happens to match.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from optax.contrib import MuonDimensionNumbers

from configs.parts.base import base
from configs.sizes import DECODERS, SIZES
from model import count
from model.adapt import tuning
from model.architectures import make
from model.compress.quantize import dequantized, is_linear, quantize
from model.config import ModelConfig
from model.decode import generate
from model.patterns import by_array
from model.roles import Role, role_of
from model.weights import Frozen, frozen, param, trained, variables
from tests.model import tiny
from train import optimizer, state

MUON = {
    "query": ((1,), (2, 3, 4)),
    "key": ((1,), (2, 3)),
    "value": ((1,), (2, 3)),
    "query_down": ((1,), (2,)),
    "query_up": ((1,), (2, 3, 4)),
    "latent_down": ((1,), (2,)),
    "key_up": ((3,), (1, 2)),
    "value_up": ((3,), (1, 2)),
    "out": ((1, 2, 3), (4,)),
    "gate": ((1,), (2,)),
    "up": ((1,), (2,)),
    "down": ((1,), (2,)),
    "experts_gate": ((2,), (3,)),
    "experts_up": ((2,), (3,)),
    "experts_down": ((2,), (3,)),
}
TABLES = ("inputs/tokens", "inputs/positions", "inputs/types", "unembedding/table")
HEADS = {"decoder": ("language_model", "token"), "encoder": ("masked", "sequence"), "encoder_decoder": (None,)}


# One worker makes these models, because that takes a while.
pytestmark = pytest.mark.xdist_group("roles")


def structure(fields):
    """What decides which parameters a model has. Numbers decide their shapes, and whether they are there at all."""
    number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
    return tuple(sorted((name, bool(v) if number(v) else repr(v)) for name, v in fields.items()))


def models():
    """Returns (name, abstract model) for one size of each structure, and for each method over a few of the models.

    Sizes of one structure have the same parameters in other shapes. The first size of an architecture has every head.
    """
    seen, met = set(), set()
    for name, fields in SIZES.items():
        config = ModelConfig(**fields | dict(vocab_size=fields["vocab_size"] or 256))
        if structure(fields) in seen:
            continue
        for head in HEADS[config.architecture][: 1 if config.architecture in met else 2]:
            changed = config if head is None else dataclasses.replace(config, head=head, num_labels=3)
            yield f"{name}:{head}", jax.eval_shape(lambda config=changed: make(config, nnx.Rngs(0)))
        seen.add(structure(fields))
        met.add(config.architecture)
    for config in (tiny.LLAMA, tiny.GPT, tiny.SWITCH, tiny.LATENT):
        for method in ("lora", "adapter", "prompt"):
            made = tuning.make(dict(method=method) | (dict(reduction=8) if method == "adapter" else {}))
            adapted = lambda config=config, made=made: made.apply(make(config, nnx.Rngs(0)), jax.random.key(0))
            yield f"{config.architecture}:{method}", jax.eval_shape(adapted)


@pytest.fixture(scope="module")
def all_models():
    return dict(models())


def each(model):
    return [(name, name.rsplit("/", 1)[-1], variable) for name, variable in variables(model).items()]


def test_every_role_is_met(all_models):
    assert {role_of(v) for model in all_models.values() for _, _, v in each(model)} == set(Role)


def test_muon(all_models):
    for which, model in all_models.items():
        dims = optimizer.muon_dims(trained(model))
        for name, last, _ in each(model):
            if name in dims:
                found = dims[name].get_value()
                assert found == (MuonDimensionNumbers(*MUON[last]) if last in MUON else None), (which, name)


def test_decay(all_models):
    """Roles decide on decay like the published default, patterns over names, except for Gemma's norms after a sublayer.

    The names of those norms do not contain "norm", so by the patterns they would decay. The correction of experts is
    skipped, because it has an update of its own.
    """
    rules = base("tiny", DECODERS).optimizer.decay
    for which, model in all_models.items():
        wanted = by_array(model.config, variables(model), rules, "")
        for name, _, variable in each(model):
            behind = name.endswith("_after/scale")
            if role_of(variable) is not Role.CORRECTION:
                assert wanted[name] == (role_of(variable) not in count.ELEMENTWISE or behind), (which, name)


def test_what_decoding_keeps_in_float32(all_models):
    """Parameters along dims of these names stay in float32, whatever dtype the model computes in."""
    for which, model in all_models.items():
        model = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float16), model)
        kept = jax.eval_shape(lambda model: generate.narrowed(model, jnp.bfloat16), model)
        for name, _, variable in each(kept):
            wide = variable.get_metadata("out_sharding")[-1] in ("norm", "choices", "group")
            assert (variable.dtype == jnp.float16) == wide, (which, name)


def test_linear_corrections_routers_and_factors(all_models):
    for which, model in all_models.items():
        for name, last, variable in each(model):
            role, adapter = role_of(variable), "_adapter/" in name
            inputs = bool(variable.get_metadata("inputs"))
            assert is_linear(variable) == (inputs and not adapter), (which, name)
            assert (role is Role.CORRECTION) == (last == "correction"), (which, name)
            assert (role is Role.ROUTER) == (last == "router"), (which, name)
            assert (role is Role.LOW_RANK) == (last in ("a", "b")), (which, name)
            assert (role is Role.ADAPTER) == (adapter and last in ("down", "up")), (which, name)


def test_counting(all_models):
    """Roles separate tables, which are looked up, from matrices, which multiply each token."""
    for which, model in all_models.items():
        for name, last, variable in each(model):
            role = role_of(variable)
            table = name.startswith(TABLES)
            assert (role in count.LOOKED_UP) == table, (which, name)
            multiplied = not table and not re.search("bias", name) and last not in ("scale", "correction")
            assert multiplied == (role not in count.LOOKED_UP + count.ELEMENTWISE), (which, name)


def roles(model):
    return {name: role_of(variable) for name, variable in variables(model).items()}


def test_roles_stay_through_transformations():
    """Roles survive jit, eval_shape, freezing, quantization and back, and an optimizer step."""
    model = tiny.drawn(tiny.SWITCH)
    wanted = roles(model)
    assert roles(jax.jit(lambda model: model)(model)) == wanted
    assert roles(state.abstract_model(lambda rngs: make(tiny.SWITCH, rngs))) == wanted
    assert roles(frozen(model)) == wanted
    assert roles(dequantized(quantize(frozen(tiny.drawn(tiny.SWITCH))))) == wanted
    settings = base("tiny", DECODERS).optimizer
    settings.decay = ()
    tx = optimizer.make_optimizer(settings, lambda step: 0.1, tiny.SWITCH)
    params = trained(model)
    updates, _ = jax.jit(lambda params: tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params))(
        params
    )
    assert {name: role_of(update) for name, update in updates.items()} == wanted
    # Roles also have their effect: with zero gradients, exactly the decayed parameters move.
    moved = {name for name, update in updates.items() if jnp.any(update[...])}
    assert moved == {name for name, role in wanted.items() if role not in count.ELEMENTWISE}


def test_a_parameter_without_a_role_is_an_error():
    make_one = lambda **fields: param(
        nnx.Rngs(0), (2, 3), ("embed", "mlp"), nnx.initializers.zeros, jnp.float32, **fields
    )
    with pytest.raises(TypeError, match="role"):
        make_one()
    with pytest.raises(ValueError, match="'matrix'; it must be one of"):
        make_one(role="matrix")
    with pytest.raises(ValueError, match=r"the role MATRIX can't have the inputs \(\)"):
        make_one(role=Role.MATRIX)
    with pytest.raises(ValueError, match=r"the role NORM can't have the inputs \('embed',\)"):
        make_one(role=Role.NORM, inputs=("embed",))
    with pytest.raises(ValueError, match=r"can't have the inputs \('vocab',\)"):
        make_one(role=Role.MATRIX, inputs=("vocab",))
    for kind in (nnx.Param, Frozen):
        with pytest.raises(ValueError, match=r"of shape \(4,\) does not say what it is"):
            is_linear(kind(jnp.ones(4)))
