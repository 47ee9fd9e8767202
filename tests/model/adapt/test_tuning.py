"""Each method trains what it should and nothing else; bottleneck adapters and prompts follow their formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from model import architectures
from model.adapt import tuning
from model.adapt.bottleneck import Adapter
from model.compress.quantize import quantize
from model.patterns import restacked
from model.weights import by_name, trained, variables
from tests.model import tiny
from tests.model.adapt.test_lora import shaken
from train import state, step
from train.objectives.language import Language

ROWS = tiny.packed_rows(4, 16)
BATCH = dict(zip(("tokens", "segment_ids", "positions"), ROWS, strict=True)) | {
    "targets": np.roll(ROWS[0], -1, axis=1),
    "weights": (ROWS[1] > 0).astype(np.float32),
}
LAST = (("layer/.*/-1/|unembedding", True), (".*", False))
METHODS = {
    "lora": (dict(method="lora", rank=2), ()),
    "houlsby": (dict(method="adapter", placement="houlsby", reduction=8), ()),
    "pfeiffer": (dict(method="adapter", placement="pfeiffer", reduction=8), ()),
    "prompt": (dict(method="prompt", length=3), ()),
    "last": (dict(method="none"), LAST),
    "qlora": (dict(method="lora", rank=2, base="nf4"), ()),
    "qlora-int8": (dict(method="lora", rank=2, base="int8"), ()),
}


def tuned(name, config=tiny.LLAMA):
    """Returns the model prepared for training."""
    fields, train_only = METHODS[name]
    made = tuning.make(fields, train_only)
    config = dataclasses.replace(config, cuts=made.cuts(config, variables(tiny.drawn(config))))
    base = lambda model: quantize(model, made.quantization) if made.quantization else model
    return jax.jit(lambda model, key: made.apply(base(model), key))(tiny.drawn(config), jax.random.key(3))


@pytest.mark.parametrize("name", METHODS)
def test_two_steps_move_what_trains_and_nothing_else(name):
    """Frozen arrays, including codes of quantized ones, are bit-identical afterwards and have no optimizer state."""
    model = tuned(name)
    before, after_names = jax.device_get(by_name(model)), set(by_name(trained(model)))
    assert after_names and after_names != set(before)
    codes = [name for name in before if name.endswith("/codes")]
    assert len(codes) == (7 if name.startswith("qlora") else 0) and not after_names & set(codes)
    tx = optax.adamw(0.1, weight_decay=0.1)
    current = state.around(model, tx)
    moments = {leaf.shape for leaf in jax.tree.leaves(current.opt_state) if leaf.ndim}
    assert moments == {before[name].shape for name in after_names}
    train_step = step.make_train_step(Language(), tx)
    for _ in range(2):
        current, metrics = train_step(current, BATCH)
    assert np.isfinite(metrics["loss"])
    after = jax.device_get(by_name(current.model))
    assert {path for path in after if (after[path] != before[path]).any()} == after_names
    if name == "last":
        assert {path for path in after_names if "stack" in path} == {
            path for path in after if path.startswith("stack/segments/1/")
        }


def test_what_trains_beside_an_adapter_is_float32():
    """Over a base in fewer bits, a norm's scale of 1 moves down by an update that bfloat16 would round away."""
    made = tuning.make(dict(method="lora", rank=2, base="nf4"), (("norm", True), (".*", False)))
    config = dataclasses.replace(tiny.LLAMA, param_dtype="bfloat16")
    make = lambda key: made.apply(quantize(architectures.make(config, nnx.Rngs(key)), made.quantization), key)
    model = jax.jit(make)(jax.random.key(0))
    assert {str(p.dtype) for p in trained(model).values()} == {"float32"}
    assert model.inputs.tokens.table.dtype == "bfloat16" and (model.norm.scale[...] == 1).all()
    tx = optax.adam(2e-4)
    current, _ = step.make_train_step(Language(), tx)(state.around(model, tx), BATCH)
    np.testing.assert_allclose(np.abs(np.asarray(current.model.norm.scale) - 1), 2e-4, rtol=1e-3)


def test_a_parted_stack_is_the_same_model():
    config = dataclasses.replace(tiny.LLAMA, num_layers=5)
    whole = tiny.drawn(config)
    parted = dataclasses.replace(config, cuts=(1, 3))
    model = tiny.drawn(parted, seed=1)
    assert [segment.repeats for segment in parted.segments()] == [1, 2, 2]
    moved = restacked(by_name(whole), config, parted, by_name(model))
    leaves = [moved[name] for name in by_name(model)]
    model = jax.tree.unflatten(jax.tree.structure(model), leaves)
    run = jax.jit(lambda model: model.logits(*ROWS))
    np.testing.assert_allclose(run(model), run(whole), atol=1e-5)
    back = restacked(by_name(model), parted, config, by_name(whole))
    assert all((back[name] == leaf).all() for name, leaf in by_name(whole).items())


@pytest.mark.parametrize("activation", ["relu", "swish"])
def test_an_adapter_by_pytorch(activation):
    """An adapter is down, ReLU (or another activation), up, as in AdapterHub; it starts as N(0, 0.02), biases as 0."""
    made = tuning.make(METHODS["pfeiffer"][0] | {"activation": activation})
    model = jax.jit(made.apply)(tiny.drawn(tiny.LLAMA), jax.random.key(3))
    adapter = model.stack.segments[0][0].feed_forward_adapter
    assert isinstance(adapter, Adapter) and model.stack.segments[0][0].attention_adapter is None
    assert 0.015 < float(adapter.down[...].std()) < 0.025 and not adapter.up_bias[...].any()
    layer = jax.tree.map(lambda leaf: leaf[1], shaken(model).stack.segments[0][0].feed_forward_adapter)
    x = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    t = lambda leaf: torch.tensor(np.asarray(leaf[...]))
    h = {"relu": torch.relu, "swish": torch.nn.functional.silu}[activation](
        torch.nn.functional.linear(torch.tensor(x), t(layer.down).T, t(layer.down_bias))
    )
    expected = torch.nn.functional.linear(h, t(layer.up).T, t(layer.up_bias))
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-5)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_a_block_with_adapters_by_pytorch(placement, norm_position):
    """Each adapter reads and writes at the same place as AdapterHub's double_seq_bn and seq_bn."""
    config = dataclasses.replace(tiny.GPT, num_layers=1, norm_position=norm_position, final_norm=False)
    model = shaken(jax.jit(tuning.make(METHODS[placement][0]).apply)(tiny.drawn(config), jax.random.key(0)))
    before, after = jax.jit(lambda model: model.tapped(*ROWS, hidden=(0, 1))[1].hidden)(model)
    w = {
        name.removeprefix("stack/segments/0/0/"): torch.tensor(np.asarray(leaf[0]))
        for name, leaf in by_name(model).items()
    }
    einsum, functional = torch.einsum, torch.nn.functional
    norm = lambda x, part: functional.layer_norm(x, (32,), w[f"{part}_norm/scale"], w[f"{part}_norm/bias"], 1e-5)
    segments = torch.tensor(ROWS[1])
    seen = (segments[:, None, :, None] == segments[:, None, None]) & torch.ones(16, 16, dtype=torch.bool).tril()

    def attention(x):
        matrix = lambda name: w[f"attention/{name}"].reshape(32, 8, 4)
        head = lambda name: einsum("btd,dkh->bkth", x, matrix(name)) + w[f"attention/{name}_bias"].reshape(8, 1, 4)
        q, k, v = map(head, ("query", "key", "value"))
        y = functional.scaled_dot_product_attention(q, k, v, seen)
        return einsum("bkth,khd->btd", y, w["attention/out"].reshape(8, 4, 32)) + w["attention/out_bias"]

    def feed_forward(x):
        h = functional.gelu(x @ w["feed_forward/up"] + w["feed_forward/up_bias"], approximate="tanh")
        return h @ w["feed_forward/down"] + w["feed_forward/down_bias"]

    def adapter(x, part):
        name = f"{part}_adapter/"
        return torch.relu(x @ w[name + "down"] + w[name + "down_bias"]) @ w[name + "up"] + w[name + "up_bias"]

    x = torch.tensor(np.asarray(before))
    for part, run in {"attention": attention, "feed_forward": feed_forward}.items():
        y = run(x if norm_position == "post" else norm(x, part))
        if placement == "houlsby":
            y = y + adapter(y, part)
        elif part == "feed_forward":
            y = y + adapter(norm(x + y, part) if norm_position == "post" else x + y, part)
        x = norm(x + y, part) if norm_position == "post" else x + y
    real = ROWS[1] > 0  # padding attends to padding
    np.testing.assert_allclose(np.asarray(after)[real], x.numpy()[real], atol=2e-5)


def test_prompts_are_rows_behind_the_table():
    """Ids after the vocabulary's select the prompt; it starts as rows of the table, random or of a given text."""
    made = tuning.make(dict(method="prompt", length=3, init_ids=(5, 9)))
    base = tiny.drawn(tiny.GPT)
    model = jax.jit(made.apply)(base, jax.random.key(0))
    table = np.asarray(base.inputs.tokens.table[...])
    np.testing.assert_array_equal(model.inputs.tokens.prompt[...], table[[5, 9, 5]])
    ids = made.method.ids(64)
    assert ids == (64, 65, 66) and model.inputs.tokens.rows == 67
    behind = lambda ids: jnp.asarray([[*ids, 1, 2, 3]])
    np.testing.assert_allclose(model.logits(behind(ids)), base.logits(behind((5, 9, 5))), atol=1e-5)
    drawn = np.asarray(
        jax.jit(tuning.make(dict(method="prompt", length=3)).apply)(base, jax.random.key(0)).inputs.tokens.prompt
    )
    assert all((table == row).all(1).any() for row in drawn)


def test_what_trains_as_a_whole_gets_no_adapter():
    model = tiny.drawn(tiny.LLAMA)
    targets = (("attention|unembedding", True), (".*", False))
    made = tuning.make(dict(method="lora", rank=2, targets=targets), (("query|unembedding|^norm", True), (".*", False)))
    names = set(trained(jax.eval_shape(made.apply, model, jax.random.key(0))))
    attention = "stack/segments/0/0/attention/"
    factors = {f"{attention}{weight}/{part}" for weight in ("key", "value", "out") for part in "ab"}
    assert names == factors | {f"{attention}query", "unembedding/table", "norm/scale"}


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_weights_can_not_train(kind):
    """The message names the weight, also if a pattern ends with the weight's name."""
    for pattern in (".*", "layer/.*/query$"):
        made = tuning.make(dict(method="lora", rank=2, base=kind), ((pattern, True), (".*", False)))
        make = lambda key, made=made: made.apply(
            quantize(architectures.make(tiny.LLAMA, nnx.Rngs(key)), made.quantization), key
        )
        with pytest.raises(ValueError, match=r"train_only: .*/attention/\w+ is quantized"):
            jax.eval_shape(make, jax.random.key(0))


def test_refuses():
    model = tiny.drawn(tiny.LLAMA)
    for fields, words in (
        (dict(method="loar"), "method is 'loar'; choose from"),
        (dict(method="lora", ranks=3), "ranks is not a field of method lora; choose from rank"),
        (dict(method="adapter", placement="both"), "choose from houlsby, pfeiffer"),
        (dict(method="adapter", reduction=True), "reduction is True"),
        (dict(method="adapter", reduction=2.5), "reduction is 2.5"),
        (dict(method="prompt", length=0), "length is 0"),
        (dict(method="prompt", length=True), "length is True"),
        (dict(method="lora", base="nf4", double_quantization="no"), "double quantization is 'no'"),
        (dict(method="lora", base="int4"), "base is 'int4'; choose from float, nf4, int8"),
    ):
        with pytest.raises(ValueError, match=words):
            tuning.make(fields)
    with pytest.raises(ValueError, match="no parameter would train"):
        tuning.make({}, ((".*", False),)).apply(model, jax.random.key(0))
    with pytest.raises(ValueError, match="every weight that it selects already trains by train_only"):
        tuning.make(dict(method="lora"), ((".*", True),)).apply(model, jax.random.key(0))
    with pytest.raises(ValueError, match="leaves none"):
        tuning.make(dict(method="adapter", reduction=64)).apply(model, jax.random.key(0))
    with pytest.raises(ValueError, match="end the list with"):
        tuning.make({}, (("norm", False),)).apply(model, jax.random.key(0))
