"""Every family equals transformers': logits, hidden states, generation, and export."""

import functools
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from model import architectures, axes
from model.decode.generate import generate
from model.interop import registry
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from model.weights import by_name
from tests.model.interop import hub
from train import state

# Float32 errors are this large; even a small mistake (another kind of gelu) changes these models' logits by 1e-3.
TOLERANCE = dict(atol=2e-4, rtol=0)
PAD = 1
logits = jax.jit(lambda model, *batch: model.logits(*batch))


@jax.jit
def inside(model, *batch):
    """Returns hidden states and attention probabilities of all layers."""
    layers = range(model.stack.depth)
    return model.tapped(*batch, hidden=range(len(layers) + 1), attention=layers)[1][:2]


@functools.cache
def ours(name):
    folder = Folder(hub.reference(name)[1])
    family, config = registry.read_config(folder)
    assert family == folder.config()["model_type"]
    config = type(config)(**config.__dict__ | {"dtype": "float32"})
    return registry.read(folder, family, jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))


def padded(side, lengths=(20, 13, 1), width=20):
    """Returns tokens, mask and positions counted from the first token, padded on this side."""
    tokens = np.random.default_rng(0).integers(2, 64, (len(lengths), width))
    places = np.arange(width)[None] - (width - np.array(lengths)[:, None] if side == "left" else 0)
    real = (places >= 0) & (places < np.array(lengths)[:, None])
    return np.where(real, tokens, PAD), real, np.where(real, places, 0)


def theirs(name, tokens, real, positions, **arguments):
    model = hub.reference(name)[0]
    arguments["attention_mask"] = torch.tensor(real.astype(np.int64))
    if hub.CHECKPOINTS[name][0] is not transformers.BloomConfig:  # BLOOM takes its positions from the mask
        arguments["position_ids"] = torch.tensor(positions)
    with torch.no_grad():
        return model(torch.tensor(tokens), **arguments)


def batch(tokens, real, positions):
    return tokens.astype(np.int32), real.astype(np.int32), positions.astype(np.int32)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", hub.each(hub.CHECKPOINTS))
def test_logits_of_padded_rows(name, side):
    tokens, real, positions = padded(side)
    expected = theirs(name, tokens, real, positions).logits.numpy()
    assert expected[real].std() > 0.1
    found = logits(ours(name), *batch(tokens, real, positions))
    np.testing.assert_allclose(np.asarray(found)[real], expected[real], **TOLERANCE)


@pytest.mark.parametrize("name", hub.each(name for name in hub.CHECKPOINTS if name != "bloom"))
def test_positions_that_start_late(name):
    tokens, real, positions = padded("right", (20, 20, 20))
    expected = theirs(name, tokens, real, positions + 31).logits.numpy()
    found = logits(ours(name), *batch(tokens, real, positions + 31))
    np.testing.assert_allclose(found, expected, **TOLERANCE)


@pytest.mark.parametrize("name", hub.each(hub.CHECKPOINTS))
def test_hidden_states_and_attention_of_every_layer(name):
    rows = padded("left")
    expected = theirs(name, *rows, output_hidden_states=True, output_attentions=True)
    states, attention = inside(ours(name), *batch(*rows))
    assert_same_states(states, expected.hidden_states, rows[1])
    assert_same_attention(attention, expected.attentions, rows[1])


def assert_same_states(found, expected, real):
    """Compares states where tokens are real."""
    for mine, reference in zip(found, expected, strict=True):
        if mine.shape == reference.shape:  # OPT projects its last hidden state to another width
            np.testing.assert_allclose(np.asarray(mine)[real], reference.numpy()[real], **TOLERANCE)


def assert_same_attention(found, expected, real):
    """Compares probabilities where queries are real."""
    of_queries = lambda probabilities: np.moveaxis(np.asarray(probabilities), 1, 2)[real]
    for mine, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(of_queries(mine), of_queries(reference), **TOLERANCE)


@pytest.mark.parametrize("name", hub.each(hub.CHECKPOINTS))
def test_greedy_generation_with_the_cache(name):
    model = hub.reference(name)[0]
    tokens, real, _ = padded("left", (12, 5, 9), 12)
    settings = transformers.GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=PAD, eos_token_id=None)
    with torch.no_grad():
        expected = model.generate(
            torch.tensor(tokens), attention_mask=torch.tensor(real.astype(np.int64)), generation_config=settings
        )[:, 12:]
    prompts = [row[mask].tolist() for row, mask in zip(tokens, real, strict=True)]
    found = generate(ours(name), prompts, jax.random.key(0), max_new_tokens=12)
    np.testing.assert_array_equal(found.tokens, expected.numpy())


@pytest.mark.parametrize("name", hub.each(hub.CHECKPOINTS))
def test_the_way_back_is_exact(name, tmp_path):
    reference, folder = hub.reference(name)
    registry.write(ours(name), Folder(folder).config()["model_type"], tmp_path / "out")
    old, new = Folder(folder), Folder(tmp_path / "out")
    assert old.tensors.keys() == new.tensors.keys()
    for tensor in old.tensors:
        np.testing.assert_array_equal(old.read(tensor), new.read(tensor))
    given, name = new.config(), old.config()["model_type"]
    if given.pop("rope_parameters", None):  # without it, transformers 4's field remains
        assert registry.model_fields(name, given) == registry.model_fields(name, old.config())
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    tokens = torch.arange(20)[None] + 2
    with torch.no_grad():  # the tensors are equal, but torch's products depend on memory addresses
        torch.testing.assert_close(again(tokens).logits, reference(tokens).logits, rtol=1e-5, atol=1e-6)


def test_each_device_reads_its_part_of_a_fused_tensor():
    config, folder = ours("phi3").config, Folder(hub.reference("phi3")[1])
    with axes.use_mesh(axes.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])):
        found = registry.read(folder, "phi3", state.abstract_model(lambda rngs: architectures.make(config, rngs)))
    wanted = by_name(ours("phi3"))
    for path, array in by_name(found).items():
        np.testing.assert_array_equal(array, wanted[path])


def test_gelu_in_the_first_releases_of_gemma():
    values = hub.CHECKPOINTS["gemma"][1] | dict(hidden_act="gelu")
    assert transformers.GemmaConfig(**values).hidden_act == "gelu_pytorch_tanh"
    assert registry.model_fields("gemma", values)["activation"] == "gelu_tanh"


@pytest.mark.parametrize("name", hub.each(hub.CHECKPOINTS))
def test_the_family_of_a_model_is_found(name):
    """launch.convert calls this for a model that was trained here. Phi-3's equations belong to earlier families too."""
    earlier = {"phi3": "mistral", "phi3 multi-head": "llama"}
    assert registry.family_of(ours(name).config) == earlier.get(name, hub.CHECKPOINTS[name][0].model_type)


@pytest.mark.parametrize(("name", "pattern"), [("gemma2", "lg"), ("gemma3", "lllllg")])
def test_layers_are_read_as_a_pattern(name, pattern):
    """The pattern is the shortest one, as in the published sizes, even if it does not divide the number of layers."""
    config = ours(name).config
    assert config.num_layers % len(pattern)
    assert "".join(kind[0] for kind in config.attention_pattern) == pattern


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("mixtral", dict(num_experts_per_tok=9), "num_experts_per_tok 9"),
        ("llama", dict(num_attention_heads=0), "num_attention_heads is 0; it must be an integer of at least 1"),
        ("llama", dict(num_key_value_heads=3), "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ("llama", dict(num_attention_heads=None), "num_attention_heads is None"),
        ("llama", dict(hidden_size="32"), "hidden_size is '32'; it must be an integer"),
        ("llama", dict(my_new_norm=True), "my_new_norm is True; the field is not known here"),
        ("llama", dict(rope_parameters=None, rope_scaling="linear"), "rope_scaling is 'linear'; it must be an object"),
    ],
)
def test_odd_values_of_config_json_are_named(name, change, words, tmp_path):
    folder = hub.reference(name)[1]
    given = {key: value for key, value in (Folder(folder).config() | change).items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(given))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(CheckpointFolderError, match=words):
        registry.read_config(Folder(tmp_path))
