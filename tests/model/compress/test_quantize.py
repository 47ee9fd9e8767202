"""Models with a quantized base are equal on every mesh and after a checkpoint, small, and free of float copies."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import sizes
from model import architectures, axes, weights
from model.compress.quantize import Settings, _made, footprint, is_linear, quantize, quantized_weight
from model.compress.quantized import QuantizedWeight
from model.config import ModelConfig
from model.decode.generate import generate
from model.parts import Experts
from model.roles import Role
from model.weights import by_name, replaced, trained
from tests.model import tiny
from tests.model.compress.torch_layout import LAYOUTS, drawn
from tests.model.test_meshes import MISTAKE, batch, captured
from train import state
from train.checkpoints.checkpoint import Checkpoints
from train.objectives.language import Language

# One weight sums over several dims, others belong to experts, and splitting `embed` in two or more breaks its blocks.
SMALL = dataclasses.replace(
    tiny.LLAMA, mlp_pattern=("sparse",), experts=Experts(count=4, per_token=2, mlp_dim=32, shared_dim=96)
)
# Large enough that each of 2 x 2 shards has whole blocks.
WIDE = dataclasses.replace(tiny.LLAMA, embed_dim=128, mlp_dim=256, head_dim=16)
NF4 = Settings("nf4")


def make(config, settings=NF4):
    return lambda rngs: quantize(architectures.make(config, rngs), settings)


def abstract(make):
    return jax.eval_shape(lambda key: make(nnx.Rngs(key)), jax.random.key(0))


def filled(config=SMALL):
    """Returns a model that one program quantizes on the devices of its float weights."""
    shapes, rng = abstract(lambda rngs: architectures.make(config, rngs)), np.random.default_rng(0)
    values = [np.float32(0.3 * rng.standard_normal(like.shape)) for like in jax.tree.leaves(shapes)]
    if axes.has_mesh():
        mesh, specs = jax.sharding.get_mesh(), [like.sharding.spec for like in jax.tree.leaves(shapes)]
        values = [jax.device_put(w, jax.NamedSharding(mesh, at)) for w, at in zip(values, specs, strict=True)]
    model = jax.tree.unflatten(jax.tree.structure(shapes), values)
    return jax.jit(lambda model: quantize(model, NF4))(model)


def loss(model, rows):
    return Language(balance_loss=1e-2)(model, rows, None).total


def gradients(model, rows):
    """Returns the program (trainable parameters, model, batch) -> (loss, gradients)."""
    f = lambda params, model, rows: loss(replaced(model, params), rows)
    return jax.jit(jax.value_and_grad(f)).lower(trained(model), model, rows).compile()


@functools.cache
def on_one_device():
    model, rows = filled(), batch("llama")
    return model, jax.device_get(gradients(model, rows)(trained(model), model, rows))


@pytest.mark.parametrize(
    ("layout", "spec", "x_shape"),
    [
        ("inputs first", "BTD,DF->BTF", (2, 3, 128)),
        ("several input dims", "BTKGH,KGHD->BTD", (2, 3, 8, 2, 16)),
        ("inputs last", "BTR,KCR->BTKC", (2, 3, 64)),
        ("inputs last", "BTKGC,KCR->BTGKR", (2, 3, 8, 1, 6)),
    ],
)
def test_contractions_are_those_of_the_dequantized_weights(layout, spec, x_shape):
    weight = jax.tree.map(lambda array: array[0], quantized_weight(drawn(layout), NF4))
    assert weight.shape == LAYOUTS[layout][0][1:]
    x = jnp.asarray(np.random.default_rng(1).standard_normal(x_shape), jnp.float32)
    f = lambda x: weights.einsum(spec, x, weight, (None,) * len(spec.split(">")[1]))
    y, back = jax.vjp(f, x)
    want, want_back = jax.vjp(lambda x: jnp.einsum(spec, x, weight.gathered(jnp.float32)), x)
    np.testing.assert_allclose(y, want, atol=1e-5)
    np.testing.assert_allclose(back(y)[0], want_back(y)[0], atol=1e-5)


def test_loss_is_that_of_the_dequantized_weights():
    model, (found, gradients) = on_one_device()
    is_quantized = lambda leaf: isinstance(leaf, QuantizedWeight)
    back = lambda w: nnx.Param(w.gathered(jnp.float32)) if is_quantized(w) else w
    want = jax.jit(loss)(jax.tree.map(back, model, is_leaf=is_quantized), batch("llama"))
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert gradients and all(is_linear(v) is False for v in trained(model).values())


def test_a_mesh_equals_one_device(compiled_afresh):
    """Codes are equal bit for bit, sharded like the weight, and communicated as codes."""
    model, (want_loss, want) = on_one_device()
    mesh = axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with axes.use_mesh(mesh):
        split, rows = filled(), jax.device_put(batch("llama"), axes.batch_sharding(mesh))
        likes = by_name(abstract(make(SMALL)))
        floats = by_name(abstract(lambda rngs: architectures.make(SMALL, rngs)))
        program, log = captured(lambda: gradients(split, rows))
        found_loss, found = program(trained(split), split, rows)
    assert MISTAKE not in log, log
    for (which, array), one in zip(by_name(split).items(), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(array, one, which)
        assert array.sharding.spec == likes[which].sharding.spec, which
        if which.endswith("/codes"):
            weight = floats[which.removesuffix("/codes")].sharding.spec
            assert [axis for axis in array.sharding.spec if axis] == [axis for axis in weight if axis], which
    np.testing.assert_allclose(found_loss, want_loss, rtol=1e-6)
    for which, gradient in found.items():
        np.testing.assert_allclose(gradient, want[which], atol=1e-5 * max(1, np.abs(want[which]).max()))
    travelling = re.findall(r"= (\w+)\[([\d,]+)\]\S* all-gather", program.as_text())
    assert any(kind == "u8" for kind, _ in travelling)
    tables_and_router = {"64,32", "32,32", "32,4"}  # the shape added below is that of rows, between sublayers
    assert {shape for kind, shape in travelling if kind != "u8"} <= tables_and_router | {"2,16,32"}


def test_memory_of_a_step_does_not_grow_by_weights():
    """With eight layers instead of two, a step needs a few more activations, but not a copy of the codes."""

    def temporary(layers):
        config = dataclasses.replace(
            SMALL, num_layers=layers, embed_dim=256, head_dim=16, scan_unroll=1, experts=Experts(4, 2, 128)
        )
        model = abstract(make(config))
        rows = dict(zip(("tokens", "segment_ids", "positions"), np.ones((3, 1, 4), np.int32), strict=True))
        rows |= {"targets": rows["tokens"], "weights": np.ones((1, 4), np.float32)}
        return gradients(model, rows).memory_analysis().temp_size_in_bytes, footprint(model).bytes

    (few, few_codes), (many, many_codes) = temporary(2), temporary(8)
    assert many - few < 0.5 * (many_codes - few_codes)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize(("dtype", "limit"), [(jnp.float32, 1 / 8), (jnp.bfloat16, 1 + 1 / 4)])
def test_memory_of_quantizing(kind, dtype, limit):
    """Quantizing 12 stacked matrices needs extra memory for one of them in float32. (On a CPU, bfloat16 is copied.)"""
    array = jax.ShapeDtypeStruct((12, 1024, 4096), dtype)
    weight = nnx.Param(
        array, out_sharding=("layers", "embed", "mlp"), inputs=("embed",), role=Role.MATRIX, eager_sharding=False
    )
    found = _made.lower(weight, Settings(kind)).compile().memory_analysis()
    assert found.temp_size_in_bytes < limit * array.size * array.dtype.itemsize


@pytest.mark.parametrize(("kind", "limit", "whole"), [("nf4", 0.517, 0.574), ("int8", 1.001, 1.040)])
def test_bytes_of_a_large_model(kind, limit, whole):
    """The bytes are computed by hand for LLaMA-7B: 32 layers of 4 times 4096 x 4096 and 3 times 4096 x 11008."""
    config = ModelConfig(**sizes.SIZES["llama_7b"], param_dtype="bfloat16")
    found, count = footprint(abstract(make(config, Settings(kind)))), 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    matrices = [(4096, 4096)] * 4 + [(4096, 11008), (4096, 11008), (11008, 4096)]
    of = {
        "nf4": lambda i, o: i * o // 2 + i * o // 64 + 4 * -(-i * o // 64 // 256) + 4,
        "int8": lambda i, o: i * o + 4 * o,
    }[kind]
    assert found.weights == count
    assert found.bytes == found.device_bytes == 32 * sum(of(*shape) for shape in matrices)
    assert found.bytes <= limit * count
    # The whole model: embedding tables and norms stay in bfloat16.
    rest, arrays = 2 * 32000 * 4096 + 65 * 4096, jax.tree.leaves(abstract(make(config, Settings(kind))))
    assert sum(array.size * array.dtype.itemsize for array in arrays) == found.bytes + 2 * rest
    assert (found.bytes + 2 * rest) / (count + rest) == pytest.approx(whole, abs=5e-4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns (directory, the saved model), of a model on 2 x 2 x 2 devices."""
    directory = tmp_path_factory.mktemp("quantized")
    with axes.use_mesh(axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        model = filled(WIDE)
        Checkpoints(directory).save_model(1, model)
    return directory, model


def test_bytes_on_devices(saved):
    """Bytes allocated for a model whose shards all have whole blocks are compared with those of the float weights."""
    _, model = saved
    quantized = [array for name, array in by_name(model).items() if re.search("/(codes|absmax|inner|mean)$", name)]
    shards = sum(shard.data.nbytes for array in quantized for shard in array.addressable_shards)
    floats = trained(abstract(lambda rngs: architectures.make(WIDE, rngs)))
    weights = sum(variable.size for which, variable in floats.items() if "/segments/" in which and is_linear(variable))
    # Half a byte per code, one byte of absmax for 32 or more, replicated inner and mean; `data` replicates everything.
    assert 0.5 * 2 * weights < shards <= 0.57 * 2 * weights
    assert footprint(model) == (weights, shards, shards / 8)


@pytest.mark.parametrize("shape", [{"fsdp": 4, "tensor": 2}, {"data": 1}])
def test_a_checkpoint_keeps_every_bit(saved, shape):
    directory, model = saved
    with axes.use_mesh(axes.make_mesh(shape, jax.devices()[: 1 if "data" in shape else 8])):
        likes = state.abstract_model(make(WIDE))
        restored = Checkpoints(directory).restore_model(likes)
    for (which, array), (like, one) in zip(
        by_name(restored).items(), zip(jax.tree.leaves(likes), jax.tree.leaves(model), strict=True), strict=True
    ):
        assert (array.dtype, array.sharding) == (like.dtype, like.sharding), which
        np.testing.assert_array_equal(array, one, which)
    if "data" in shape:
        assert footprint(restored).bytes <= 0.57 * footprint(restored).weights


def test_decodes():
    """Greedy tokens have the largest logits of a full pass."""
    model, _ = on_one_device()
    prompt = [3, 1, 4, 1, 5]
    tokens = generate(model, [prompt], jax.random.key(0), max_new_tokens=4).tokens[0].tolist()
    row = np.array([prompt + tokens])
    logits = jax.jit(lambda model, *row: model.logits(*row))(model, row, row * 0 + 1, np.arange(row.size)[None])
    assert np.argmax(logits[0, len(prompt) - 1 : -1], -1).tolist() == tokens


def test_patterns_choose():
    is_weight = lambda leaf: isinstance(leaf, QuantizedWeight)

    def names(settings):
        leaves = jax.tree.leaves_with_path(abstract(make(tiny.LLAMA, settings)), is_leaf=is_weight)
        return {weights.whole_name(path) for path, leaf in leaves if is_weight(leaf)}

    floats = trained(abstract(lambda rngs: architectures.make(tiny.LLAMA, rngs)))
    assert names(NF4) == {which for which, variable in floats.items() if is_linear(variable)}
    chosen = (("down$", False), ("feed_forward", True), ("", False))
    assert names(Settings("int8", weights=chosen)) == {f"stack/segments/0/0/feed_forward/{w}" for w in ("gate", "up")}


def test_the_float_weight_is_given_away():
    weight = drawn("inputs first")
    quantized_weight(weight, NF4)
    assert weight[...].is_deleted()


def test_errors():
    wrong = lambda message: pytest.raises(ValueError, match=message)
    with wrong("stack/segments/0/0/feed_forward/down can't be quantized: it has 24 inputs"):
        abstract(make(dataclasses.replace(tiny.LLAMA, mlp_dim=24)))
    with wrong("no weight of a linear layer is chosen"):
        abstract(make(tiny.LLAMA, Settings(weights=(("inputs/tokens", True), ("", False)))))
    with wrong("no pattern matches stack/segments/0/0/attention/key"):
        abstract(make(tiny.LLAMA, Settings(weights=(("down$", True),))))
    with wrong("'nf3'; choose from nf4, int8"):
        Settings("nf3")
