"""BERT, RoBERTa and ALBERT equal transformers' with each head."""

import functools

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from model import architectures
from model.interop import registry
from model.interop.files.folder import Folder
from tests.model.interop import hub
from tests.model.interop.tables.test_families import (
    PAD,
    TOLERANCE,
    assert_same_attention,
    assert_same_states,
    batch,
    inside,
    padded,
)

_SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48)
_SMALL |= dict(max_position_embeddings=64, layer_norm_eps=0.01, id2label={i: f"LABEL_{i}" for i in range(3)})
CONFIGS = {
    "bert": (transformers.BertConfig, _SMALL | dict(type_vocab_size=2)),
    "roberta": (transformers.RobertaConfig, _SMALL | dict(type_vocab_size=1, pad_token_id=PAD)),
    "albert": (
        transformers.AlbertConfig,
        _SMALL | dict(type_vocab_size=2, embedding_size=16, num_hidden_groups=2, inner_group_num=2),
    ),
}
HEADS = {
    "masked": transformers.AutoModelForMaskedLM,
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
    "none": transformers.AutoModel,
}
ALL = [pytest.param(name, head, marks=pytest.mark.xdist_group(name)) for name in CONFIGS for head in HEADS]


@functools.cache
def reference(name, head):
    kind, values = CONFIGS[name]
    return hub.saved(HEADS[head].from_config(kind(**values, attn_implementation="eager")))


@functools.cache
def ours(name, head):
    folder = Folder(reference(name, head)[1])
    family, config = registry.read_config(folder)
    assert (family, config.head) == (name, head)
    config = type(config)(**config.__dict__ | {"dtype": "float32"})
    return registry.read(folder, family, jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))


def theirs(name, head, tokens, real, positions, types):
    model = reference(name, head)[0]
    offset = PAD + 1 if name == "roberta" else 0
    arguments = dict(attention_mask=real.astype(np.int64), position_ids=positions + offset, token_type_ids=types)
    with torch.no_grad():
        return model(
            torch.tensor(tokens),
            **{key: torch.tensor(value) for key, value in arguments.items()},
            output_hidden_states=True,
            output_attentions=True,
        )


@functools.partial(jax.jit, static_argnums=1)
def found(model, head, tokens, segments, positions, types):
    x_BTD = model(tokens, segments, positions, types_BT=types).x_BTD
    if head == "masked":
        return model.output(x_BTD).logits()
    if head == "token":
        return model.classes(x_BTD)
    return (model.pooled if head == "none" else model.classes)(x_BTD)[:, 0]


@pytest.mark.parametrize(("name", "head"), ALL)
@pytest.mark.parametrize("late", [0, 31])
def test_heads(name, head, late):
    tokens, real, positions = padded("right")
    rows = tokens, real, positions + late
    types = np.random.default_rng(1).integers(0, 2, rows[0].shape)
    expected = theirs(name, head, *rows, np.minimum(types, CONFIGS[name][1]["type_vocab_size"] - 1))
    mine = np.asarray(found(ours(name, head), head, *batch(*rows), types.astype(np.int32)))
    wanted = (expected.pooler_output if head == "none" else expected.logits).numpy()
    assert wanted.std() > 0.01
    real = rows[1] if head in ("masked", "token") else slice(None)
    np.testing.assert_allclose(mine[real], wanted[real], **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", hub.each(CONFIGS))
def test_hidden_states_and_attention_of_every_layer(name, side):
    rows = padded(side)
    expected = theirs(name, "masked", *rows, np.zeros_like(rows[0]))
    states, attention = inside(ours(name, "masked"), *batch(*rows))
    assert_same_states(states, expected.hidden_states, rows[1])
    assert_same_attention(attention, expected.attentions, rows[1])


@pytest.mark.parametrize(("name", "head"), ALL)
def test_the_way_back_is_exact(name, head, tmp_path):
    model, folder = reference(name, head)
    registry.write(ours(name, head), name, tmp_path / "out")
    old, new = Folder(folder), Folder(tmp_path / "out")
    assert old.tensors.keys() == new.tensors.keys()
    for tensor in old.tensors:
        np.testing.assert_array_equal(old.read(tensor), new.read(tensor))
    again = HEADS[head].from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    tokens = torch.arange(20)[None] + 2
    with torch.no_grad():
        assert torch.equal(again(tokens)[0], model(tokens)[0])


def test_names_of_old_files(tmp_path):
    folder = reference("bert", "masked")[1]
    old = lambda name: name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
    tensors = {old(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    extra = {"bert.pooler.dense.bias": np.zeros(32, np.float32), "cls.seq_relationship.bias": np.zeros(2, np.float32)}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    _, config = registry.read_config(Folder(tmp_path))
    model = registry.read(Folder(tmp_path), "bert", jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))
    np.testing.assert_array_equal(model.inputs.norm.scale[...], ours("bert", "masked").inputs.norm.scale[...])
