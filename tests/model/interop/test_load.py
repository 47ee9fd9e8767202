"""transformers' checkpoints load into a model and save back with equal logits and bytes, on every mesh."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file
from safetensors.torch import load_file

from model import axes
from model.architectures import Decoder
from model.interop import load as load_module
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from model.interop.layout import Entry
from model.interop.load import load, save
from model.interop.table import Table
from model.weights import by_name
from tests.model import tiny
from tests.model.interop import made_up
from tests.model.test_architectures import redrawn

logits = jax.jit(Decoder.logits)
TOKENS = np.random.default_rng(0).integers(0, 64, (8, 16)).astype(np.int32)


def llama():
    """Returns transformers' model for tiny.LLAMA."""
    settings = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=16, head_dim=4)
    settings |= dict(num_key_value_heads=8, rms_norm_eps=3e-3, vocab_size=64, max_position_embeddings=64)
    settings |= dict(rope_parameters={"rope_type": "default", "rope_theta": 100.0}, tie_word_embeddings=False)
    return redrawn(transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)))


def gpt2():
    """Returns transformers' model for tiny.GPT."""
    settings = dict(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=8, n_inner=64)
    return redrawn(transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings, layer_norm_epsilon=1e-5)))


BOTH = {"llama": (tiny.LLAMA, made_up.LLAMA, llama), "gpt2": (tiny.GPT, made_up.GPT2, gpt2)}


@functools.cache
def reference(name, dtype=torch.float32):
    return BOTH[name][2]().to(dtype)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a function (name, dtype, shard size) -> folder that transformers wrote."""

    @functools.cache
    def write(name, dtype=torch.float32, size="1GB"):
        folder = tmp_path_factory.mktemp(name)
        reference(name, dtype).save_pretrained(folder, max_shard_size=size)
        return folder

    return write


def as_bits(tensor: torch.Tensor):
    """Returns an array's bytes, in numpy."""
    return tensor.contiguous().view(torch.uint8).numpy()


def tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        np.testing.assert_array_equal(as_bits(found[name]), as_bits(tensor), err_msg=name)


@pytest.mark.parametrize("name", BOTH)
def test_logits_are_those_of_transformers(name, saved):
    config, table, _ = BOTH[name]
    model = load(made_up.abstract(config), table, Folder(saved(name)))
    with torch.no_grad():
        expected = reference(name)(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(logits(model, TOKENS), expected, atol=2e-4)


# Every pair of values of mesh, dtype and number of files occurs.
@pytest.mark.parametrize(
    ("shape", "dtype", "size"),
    [
        ({"fsdp": 4, "tensor": 2}, torch.float32, "1GB"),
        ({"fsdp": 4, "tensor": 2}, torch.bfloat16, "20kB"),
        ({"data": 2, "tensor": 4}, torch.float32, "20kB"),
        ({"data": 2, "tensor": 4}, torch.bfloat16, "1GB"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", BOTH)
def test_there_and_back_on_a_mesh(name, dtype, size, shape, saved, tmp_path):
    """Arrays have the mesh's shardings, and writing them in the file's dtype gives the same tensors bit for bit."""
    config, table, _ = BOTH[name]
    folder = saved(name, dtype, size)
    assert (folder / "model.safetensors.index.json").exists() == (size == "20kB")
    with axes.use_mesh(axes.make_mesh(shape)):
        abstract = made_up.abstract(config)
        model = load(abstract, table, Folder(folder))
        for leaf, wanted in zip(jax.tree.leaves(model), jax.tree.leaves(abstract), strict=True):
            assert (leaf.shape, leaf.dtype, leaf.sharding.spec) == (wanted.shape, wanted.dtype, wanted.sharding.spec)
        assert logits(model, TOKENS).shape == (8, 16, 64)
        save(model, table, tmp_path / "out", {"config.json": "{}"}, str(dtype).removeprefix("torch."), 20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert_same(tensors(tmp_path / "out"), tensors(folder))
    # The same values on one device, and without a mesh.
    alone = load(made_up.abstract(config), table, Folder(tmp_path / "out"))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(alone), jax.tree.leaves(jax.device_get(model)))


def test_transformers_reads_what_is_written(saved, tmp_path):
    model = load(made_up.abstract(tiny.LLAMA), made_up.LLAMA, Folder(saved("llama")))
    save(model, made_up.LLAMA, tmp_path / "out", {"config.json": (saved("llama") / "config.json").read_text()})
    read, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(read.state_dict(), reference("llama").state_dict())


def test_parameters_get_the_dtype_of_the_model(saved):
    config = dataclasses.replace(tiny.LLAMA, param_dtype="bfloat16")
    model = load(made_up.abstract(config), made_up.LLAMA, Folder(saved("llama")))
    exact = load(made_up.abstract(tiny.LLAMA), made_up.LLAMA, Folder(saved("llama")))
    for leaf, value in zip(jax.tree.leaves(model), jax.tree.leaves(exact), strict=True):
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, value.astype(jnp.bfloat16))


def test_old_names_and_buffers(saved, tmp_path):
    """GPT-2's files on the hub have no prefix, and store the causal mask as a buffer."""
    old = {name.removeprefix("transformer."): t.numpy() for name, t in tensors(saved("gpt2")).items()}
    save_file(old | {"h.0.attn.bias": np.ones((1, 1, 64, 64), np.uint8)}, tmp_path / "model.safetensors")
    model = load(made_up.abstract(tiny.GPT), made_up.GPT2, Folder(tmp_path))
    new = load(made_up.abstract(tiny.GPT), made_up.GPT2, Folder(saved("gpt2")))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(model), jax.tree.leaves(new))


def refused(folder, match, table=made_up.LLAMA, config=tiny.LLAMA):
    with pytest.raises(CheckpointFolderError, match=match) as error:
        load(made_up.abstract(config), table, Folder(folder))
    assert "\n" not in str(error.value)


def test_everything_that_does_not_fit_is_named_at_once(saved, tmp_path):
    changed = {name: tensor.numpy() for name, tensor in tensors(saved("llama")).items()}
    del changed["model.layers.1.mlp.up_proj.weight"]
    changed["model.norm.weight"] = np.ones(16, np.float32)
    changed["model.layers.2.mlp.up_proj.weight"] = np.ones((64, 32), np.float32)
    save_file(changed, tmp_path / "model.safetensors")
    refused(
        tmp_path, r"1 tensors are missing: model\.layers\.1\.mlp\.up_proj\.weight; 1 .*unexpected: model\.layers\.2\."
    )
    refused(tmp_path, r"another shape: model\.norm\.weight is \[16\], for norm/scale it must be \[32\]$")


def test_a_name_under_two_spellings(saved, tmp_path):
    twice = {name: tensor.numpy() for name, tensor in tensors(saved("gpt2")).items()}
    save_file(twice | {"ln_f.bias": np.ones(32, np.float32)}, tmp_path / "model.safetensors")
    refused(tmp_path, r"holds transformer\.ln_f\.bias twice", made_up.GPT2, tiny.GPT)


def test_a_parameter_without_an_entry(saved):
    table = Table(made_up.LLAMA.entries[1:])
    with pytest.raises(ValueError, match="no entry for the model's parameter inputs/tokens/table"):
        load(made_up.abstract(tiny.LLAMA), table, Folder(saved("llama")))


class Small(nnx.Module):
    """Covers parameters that the Decoder lacks: experts, parts of unequal size, a bias that a file may lack."""

    def __init__(self, **leaves):
        for name, leaf in leaves.items():
            setattr(self, name, nnx.Param(leaf))


SMALL = Table(
    entries=(
        Entry(
            "experts", "layers.{layer}.experts.{expert}.w", "mlp embed", "layer expert embed mlp", layers=range(1, 9, 2)
        ),
        Entry("key", "kv.{layer}", "(head nope+value) latent", "layer latent head nope"),
        Entry("value", "kv.{layer}", "(head nope+value) latent", "layer latent head value"),
        Entry("bias", "bias.{layer}", "embed", "layer embed", absent=0.0),
    )
)
SHAPES = {"experts": (4, 8, 6, 4), "key": (2, 4, 8, 3), "value": (2, 4, 8, 5), "bias": (2, 6)}
SPECS = {"experts": ("fsdp", "tensor"), "key": (None, None, "tensor"), "value": (None, None, "tensor"), "bias": ()}


@pytest.fixture(params=[jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def small(request):
    """Returns (abstract, values); layers and experts themselves are split, as over stages and expert parallelism."""
    mesh, rng = axes.make_mesh({"fsdp": 2, "tensor": 4}), np.random.default_rng(0)
    place = lambda name: NamedSharding(mesh, PartitionSpec(*SPECS[name]))
    shaped = {name: jax.ShapeDtypeStruct(SHAPES[name], request.param, sharding=place(name)) for name in SHAPES}
    values = {name: rng.standard_normal(shape).astype(request.param) for name, shape in SHAPES.items()}
    values["experts"][0, 0, 0, 0] = -0.0
    values["bias"][:] = 0
    return Small(**shaped), values


@pytest.mark.parametrize("inside", [True, False])
def test_experts_and_fused_parts_of_unequal_size(small, inside, tmp_path):
    abstract, values = small
    theirs = {
        f"layers.{2 * layer + 1}.experts.{expert}.w": values["experts"][layer, expert].T
        for layer in range(4)
        for expert in range(8)
    }
    for layer in range(2):
        both = np.concatenate([values["key"][layer], values["value"][layer]], axis=-1)  # latent, head, nope + value
        theirs[f"kv.{layer}"] = np.moveaxis(both, 0, -1).reshape(8 * 8, 4)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in theirs.items()}, tmp_path / "model.safetensors")
    with axes.use_mesh(axes.make_mesh({"data": 8})) if inside else contextlib.nullcontext():
        model = load(abstract, SMALL, Folder(tmp_path))
        save(model, SMALL, tmp_path / "out", {})
    likes = by_name(abstract)
    for name, leaf in by_name(model).items():
        assert leaf.sharding == likes[name].sharding
        np.testing.assert_array_equal(np.asarray(leaf).view(np.uint8), values[name].view(np.uint8), err_msg=name)
    assert_same(tensors(tmp_path / "out"), tensors(tmp_path))


def test_gathering_over_devices_of_other_processes(small):
    """`save` runs this program if a process does not have all of a parameter; here all devices are in one process."""
    abstract, values = small
    like = by_name(abstract)["experts"]
    values["experts"][0, 0, 0, 1] = np.nan  # a folder with NaN is refused when read, but training may produce one
    experts = jax.device_put(values["experts"], like.sharding)
    with jax.set_mesh(like.sharding.mesh):
        for layer, expert in ((0, 0), (3, 5)):
            found = load_module._gather(experts, [np.int32(layer), np.int32(expert)], like.dtype)
            assert found.is_fully_replicated
            np.testing.assert_array_equal(
                np.asarray(found).view(np.uint8), values["experts"][layer, expert].view(np.uint8)
            )


def test_what_their_format_has_no_place_for(small, tmp_path):
    model = Small(**{name: jnp.asarray(value) for name, value in small[1].items()})
    model.bias[...] = model.bias[...].at[1, 2].set(0.5)
    with pytest.raises(CheckpointFolderError, match="no place for parameter bias, unless all its values are 0"):
        save(model, SMALL, tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


def test_absent_in_some_layers_only(small, tmp_path):
    abstract, values = small
    model = Small(**{name: jnp.asarray(value) for name, value in values.items()})
    save(model, SMALL, tmp_path / "out", {})
    there = {name: np.asarray(tensor.float()) for name, tensor in tensors(tmp_path / "out").items()}
    save_file(there | {"bias.1": np.ones(6, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointFolderError, match=r"missing: bias\.0"):
        load(abstract, SMALL, Folder(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"key": Entry("key", "kv.{layer}", "(head nope) latent", "layer latent head nope")},  # value has another shape
        {
            "value": Entry("value", "v.{layer}", "(head nope+value) latent", "layer latent head value")
        },  # the size of nope is unknown
        {
            "key": Entry("key", "kv.{layer}", "(head nope+value) latent", "layer latent head value")
        },  # the same part twice
        {"bias": Entry("bias", "bias.{layer}", "embed", "layer embed", layers=range(3))},
        {"bias": Entry("bias", "bias.{layer}", "(2 embed)", "layer embed", slot=0)},  # the other half is missing
    ],
)
def test_entries_that_contradict_each_other_or_the_model(small, changes, tmp_path):
    table = Table(tuple(changes.get(entry.path, entry) for entry in SMALL.entries))
    model = Small(**{name: jnp.asarray(value) for name, value in small[1].items()})
    with pytest.raises(ValueError, match=r"entry (key|value|bias) <-> "):
        save(model, table, tmp_path / "out", {})
