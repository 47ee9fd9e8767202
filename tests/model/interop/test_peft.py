"""Adapters work with Hugging Face's peft: we read its folders, it reads ours; merging; a training step."""

import copy
import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from model import architectures, axes
from model.adapt import lora
from model.architectures import Source
from model.attention.masks import default_segments
from model.interop import peft as adapters
from model.interop import registry
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from model.weights import marked, replaced, trained
from tests.model.interop import hub
from train import state

TOKENS = np.random.default_rng(0).integers(2, 64, (2, 12))
TOLERANCE = dict(atol=1e-5, rtol=1e-5)


@functools.cache
def bert():
    """Makes a config with a classification head."""
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config)
    model.config.architectures = ["BertForSequenceClassification"]
    return hub.saved(model)


# name: (their model and its folder, values of LoraConfig)
ALL = {"r": 4, "lora_alpha": 6, "init_lora_weights": False}
CASES = {
    "llama": (lambda: hub.reference("llama"), dict(target_modules=["q_proj", "o_proj", "gate_proj", "down_proj"])),
    "qwen2": (lambda: hub.reference("qwen2"), dict(target_modules=r".*(1.*v_proj|0.*k_proj)", use_rslora=True)),
    "gpt2": (lambda: hub.reference("gpt2"), dict(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "phi3": (lambda: hub.reference("phi3"), dict(target_modules=["qkv_proj", "gate_up_proj", "o_proj"])),
    "bloom": (lambda: hub.reference("bloom"), dict(target_modules=["query_key_value"])),
    "deepseek2": (
        lambda: hub.reference("deepseek2"),
        dict(
            target_modules=["kv_b_proj", "kv_a_proj_with_mqa", "q_proj"],
            rank_pattern={"layers.1.self_attn.q_proj": 2, "kv_b_proj": 6},
            alpha_pattern={"q_proj": 3},
        ),
    ),
    "t5": (lambda: hub.encoder_decoder("t5"), dict(target_modules=["q", "v", "wo"])),
    "switch": (lambda: hub.encoder_decoder("switch"), dict(target_modules=["k", "expert_1.wi"])),
    "bert": (bert, dict(target_modules=["query", "output.dense"], task_type="SEQ_CLS")),
}


def plain(name):
    """Returns their model without an adapter."""
    model, folder = CASES[name][0]()
    found = type(model).from_pretrained(folder, attn_implementation="eager")
    if name == "t5":
        found.lm_head.weight = found.shared.weight
    return found.eval()


@functools.cache
def adapted(name):
    """Returns (their model with an adapter, all factors random; the folder it was saved to)."""
    model = peft.get_peft_model(plain(name), peft.LoraConfig(**ALL | CASES[name][1])).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "lora_" in path or "modules_to_save" in path:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    folder = CASES[name][0]()[1] / "adapter"
    model.save_pretrained(folder)
    return model, folder


def base(name):
    """Returns (our model in float32, its family's table)."""
    folder = Folder(CASES[name][0]()[1])
    family, config = registry.read_config(folder)
    config = dataclasses.replace(config, dtype="float32")
    make = lambda rngs: architectures.make(config, rngs)
    abstract = state.abstract_model(make) if axes.has_mesh() else jax.eval_shape(lambda: make(nnx.Rngs(0)))
    return registry.read(folder, family, abstract), registry.FAMILIES[family].table(config)


@functools.cache
def ours(name):
    """Returns (our model with the same adapter, its table)."""
    model, table = base(name)
    return adapters.read(adapted(name)[1], table, model)[0], table


@jax.jit
def run(model):
    tokens = jnp.asarray(TOKENS, jnp.int32)
    if model.config.architecture == "encoder_decoder":
        return model.logits(tokens, source=Source(tokens, *default_segments(tokens)))
    return model.classes(model(tokens).x_BTD)[:, 0] if model.config.head == "sequence" else model.logits(tokens)


def theirs(model):
    tokens = torch.tensor(TOKENS)
    model.eval()
    return model(tokens, **(dict(decoder_input_ids=tokens) if model.config.is_encoder_decoder else {})).logits


def logits(model):
    with torch.no_grad():
        return theirs(model).numpy()


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_made_by_peft(name):
    expected = logits(adapted(name)[0])
    assert np.abs(expected - logits(plain(name))).max() > 0.03
    np.testing.assert_allclose(run(ours(name)[0]), expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "gpt2", "deepseek2"])
def test_merging(name):
    expected = logits(copy.deepcopy(adapted(name)[0]).merge_and_unload())
    np.testing.assert_allclose(run(jax.jit(lora.merged)(ours(name)[0])), expected, **TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_made_here(name, tmp_path):
    """All factors are redrawn, so that no weights of a fused layer share one."""
    model, table = ours(name)
    rng = np.random.default_rng(2)
    noise = lambda w: w.replace(w[...] + 0.1 * rng.standard_normal(w.shape, np.float32) * (w[...] != 0))
    model = replaced(model, {path: noise(w) for path, w in trained(model).items()})
    adapters.write(model, table, tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(plain(name), tmp_path / "adapter")
    np.testing.assert_allclose(logits(again), run(model), **TOLERANCE)


@pytest.mark.parametrize("name", ["gpt2", "deepseek2", "bert", "qwen2"])
def test_a_shared_factor_is_written_once(name, tmp_path):
    """Ranks and scales survive too; if scales differ, B absorbs the difference."""
    model, table = ours(name)
    adapters.write(model, table, tmp_path / "adapter")
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (adapted(name)[1], tmp_path / "adapter"))
    assert old.keys() == new.keys()
    for tensor in old:
        assert old[tensor].shape == new[tensor].shape
        if name != "deepseek2" or "kv_a_proj" in tensor or "lora_A" in tensor:
            np.testing.assert_array_equal(old[tensor], new[tensor])


@pytest.mark.parametrize("name", ["qwen2", "bert"])
def test_a_step_of_training(name, tmp_path):
    model, table = ours(name)
    reference = copy.deepcopy(adapted(name)[0])
    for path, parameter in reference.named_parameters():  # read from a folder, nothing trains
        parameter.requires_grad_("lora_" in path or "modules_to_save" in path)
    targets = np.arange(2) if name == "bert" else (TOKENS + 1) % 64
    scores = theirs(reference).flatten(0, -2)
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor(targets).flatten())
    expected.backward()
    optimizer = torch.optim.SGD([p for p in reference.parameters() if p.requires_grad], 0.5)
    optimizer.step()
    reference.save_pretrained(tmp_path / "theirs")

    @jax.jit
    def step(params):
        def loss(params):
            scores = run(replaced(model, params))
            return optax.softmax_cross_entropy_with_integer_labels(scores, targets).mean()

        value, grads = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda w, g: w - 0.5 * g, params, grads)

    value, params = step(trained(model))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    adapters.write(replaced(model, params), table, tmp_path / "ours")
    found, wanted = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("ours", "theirs"))
    old = load_file(adapted(name)[1] / "adapter_model.safetensors")
    assert found.keys() == wanted.keys()
    for tensor in wanted:
        assert np.abs(wanted[tensor] - old[tensor]).max() > 1e-4
        np.testing.assert_allclose(found[tensor], wanted[tensor], atol=1e-5)


def test_on_a_mesh():
    with axes.use_mesh(axes.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])):
        model, table = base("qwen2")
        found, _ = adapters.read(adapted("qwen2")[1], table, model)
    for path, w in trained(ours("qwen2")[0]).items():
        mine = trained(found)[path]
        assert mine[...].sharding.spec == axes.spec(*w.get_metadata("out_sharding"))
        np.testing.assert_array_equal(mine[...], w[...])


def test_experts_as_transformers_4_had_them(tmp_path):
    """Such a file is read, and merging adds alpha / rank B A to each expert's W. Writing one is refused."""
    folder = hub.reference("mixtral")[1]
    weights, rng = load_file(folder / "model.safetensors"), np.random.default_rng(0)
    modules = [f"model.layers.{n}.block_sparse_moe.experts.{e}.w1" for n in range(3) for e in range(4)]
    shapes = {"lora_A.weight": (2, 32), "lora_B.weight": (48, 2)}
    tensors = {
        f"base_model.model.{module}.{part}": rng.standard_normal(shape, np.float32)
        for module in modules
        for part, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    given = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["w1"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(given))
    family, config = registry.read_config(Folder(folder))
    table = registry.FAMILIES[family].table(config)
    model = registry.read(Folder(folder), family, jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))
    model, _ = adapters.read(tmp_path, table, model)
    with pytest.raises(CheckpointFolderError, match="treats every w1 as an expert's"):
        adapters.write(model, table, tmp_path / "out")
    registry.write(lora.merged(model), family, tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    for module in modules:
        a, b = (tensors[f"base_model.model.{module}.{part}"] for part in shapes)
        np.testing.assert_allclose(found[f"{module}.weight"], weights[f"{module}.weight"] + 1.5 * b @ a, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(use_dora=True), r"adapter_config.json: use_dora is True; only adapters where it is None"),
        (dict(layers_to_transform=0), r"adapter_config.json: layers_to_transform is 0; only"),
        (dict(velora_config={"a": 1}), r"adapter_config.json: velora_config is .*; only"),
        (dict(use_new_thing=True), r"adapter_config.json: use_new_thing is True; the field is not known here"),
        (dict(use_rslora="false"), r"adapter_config.json: use_rslora is 'false'; it must be true or false"),
        (dict(bias="all"), r"adapter_config.json: bias is 'all'; only adapters where it is 'none'"),
        (dict(peft_type="IA3"), r"adapter_config.json: peft_type is 'IA3'"),
        (dict(layers_to_transform=[0]), r"adapter_config.json: layers_to_transform is \[0\]"),
        (dict(init_lora_weights="pissa"), r"adapter_config.json: init_lora_weights is 'pissa'; only .* True or False"),
        (dict(task_type="SEQ_CLS"), r"adapter_config.json: task_type SEQ_CLS is for a model with the head sequence"),
        (dict(r="8"), r"adapter_config.json: ranks are \['8'\]"),
        (dict(r=True), r"adapter_config.json: ranks are \[True\]"),
        (dict(lora_alpha=0), r"adapter_config.json: alpha is 0.0; it must be a finite number above 0"),
        (dict(lora_alpha=math.nan), r"adapter_config.json: alphas are \[nan.*finite"),
        (dict(alpha_pattern={"q_proj": math.inf}), r"adapter_config.json: alphas are .*inf"),
        (dict(lora_dropout=math.nan), r"adapter_config.json: dropout is nan"),
        (dict(target_modules="("), r"adapter_config.json: .*unterminated"),
        (dict(target_modules=["qkv"]), r"target_modules name no linear layer"),
        (dict(r=...), r"adapter_config.json has no 'r'"),
        (
            dict(r=5),
            r"of a model of these shapes: .* of another shape: base_model.*down_proj.lora_A.weight is .* it must be",
        ),
        (
            dict(target_modules=["q_proj", "k_proj"]),
            r"missing: base_model.model.model.layers.0.self_attn.k_proj.lora_A",
        ),
        (dict(target_modules=["q_proj"]), r"unexpected: base_model.model.model.layers.0.*proj.lora_A.weight"),
    ],
)
def test_what_can_not_be_read_is_named(change, words, tmp_path):
    folder = adapted("llama")[1]
    given = json.loads((folder / "adapter_config.json").read_text()) | change
    given = {field: value for field, value in given.items() if value is not ...}
    (tmp_path / "adapter_config.json").write_text(json.dumps(given))
    (tmp_path / "adapter_model.safetensors").symlink_to(folder / "adapter_model.safetensors")
    model, table = base("llama")
    with pytest.raises(CheckpointFolderError, match=words):
        adapters.read(tmp_path, table, model)


def test_what_can_not_be_written_is_named(tmp_path):
    model, table = base("llama")
    with pytest.raises(CheckpointFolderError, match="no low-rank adapter"):
        adapters.write(model, table, tmp_path / "out")
    model, table = ours("gpt2")
    training = lambda path: marked(model, lambda name, trains: trains or name == path)
    with pytest.raises(CheckpointFolderError, match="output layer is tied"):
        adapters.write(training("inputs/tokens/table"), table, tmp_path / "out")
    with pytest.raises(CheckpointFolderError, match="c_attn has an adapter, and also a trainable parameter"):
        adapters.write(training("stack/segments/0/0/attention/query_bias"), table, tmp_path / "out")
