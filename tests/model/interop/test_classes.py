"""Decoders with heads for classes against transformers: both ways."""

import functools

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from model import families
from model.interop import registry
from model.interop.folder import Folder
from tests.model.interop import hub
from tests.model.interop.test_families import PAD, TOLERANCE, batch, padded

HEADS = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
}
# Both names of the layer, with and without a bias; a softcap, which is of the language model's head alone; a projection
# to the width of a narrow table, which is not.
CASES = [("llama", "sequence"), ("llama", "token"), ("gpt2", "sequence"), ("gpt2", "token"), ("gemma2", "sequence")]
CASES += [("opt post-norm", "sequence")]
classes = jax.jit(lambda model, *batch: model.classes(model(*batch).x_BTD))


@functools.cache
def reference(name, head):
    kind, values = hub.CHECKPOINTS[name]
    values = values | dict(num_labels=3, pad_token_id=PAD, attn_implementation="eager")
    return hub.saved(HEADS[head].from_config(kind(**values)))


@functools.cache
def ours(name, head):
    folder = Folder(reference(name, head)[1])
    family, config = registry.read_config(folder)
    assert (family, config.head, config.num_labels) == (folder.config()["model_type"], head, 3)
    config = type(config)(**config.__dict__ | {"dtype": "float32"})
    return registry.read(folder, family, jax.eval_shape(lambda: families.make(config, nnx.Rngs(0))))


@pytest.mark.parametrize(("name", "head"), CASES)
def test_scores_of_padded_rows(name, head):
    tokens, real, positions = padded("right")
    with torch.no_grad():
        wanted = reference(name, head)[0](torch.tensor(tokens), attention_mask=torch.tensor(real.astype(np.int64)))
    mine, wanted = np.asarray(classes(ours(name, head), *batch(tokens, real, positions))), wanted.logits.numpy()
    assert wanted.std() > 0.1 and mine.dtype == np.float32
    if head == "token":
        np.testing.assert_allclose(mine[real], wanted[real], **TOLERANCE)
    else:
        np.testing.assert_allclose(mine[np.arange(len(real)), real.sum(1) - 1], wanted, **TOLERANCE)


@pytest.mark.parametrize(("name", "head"), CASES)
def test_the_way_back_is_exact(name, head, tmp_path):
    model, folder = reference(name, head)
    config = ours(name, head).config
    registry.write(ours(name, head), registry.family_of(config), tmp_path / "out", pad_token_id=PAD)
    old, new = Folder(folder), Folder(tmp_path / "out")
    assert old.tensors.keys() == new.tensors.keys()
    for tensor in old.tensors:
        np.testing.assert_array_equal(old.read(tensor), new.read(tensor))
    assert new.config()["architectures"] == old.config()["architectures"]
    again = HEADS[head].from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    tokens = torch.arange(20)[None] + 2
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_names_are_those_of_transformers():
    """An export says in `architectures` what transformers calls the class."""
    auto = transformers.models.auto.modeling_auto
    known = {
        "sequence": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "token": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    }
    for kind, values in hub.CHECKPOINTS.values():
        for head, names in known.items():
            given = {"model_type": kind.model_type, "architectures": [names.get(kind.model_type) or "NoSuchClass"]}
            fields = kind(**values).to_dict() | given
            if kind.model_type in names:
                assert registry.model_fields(kind.model_type, fields)["head"] == head
            else:
                with pytest.raises(ValueError, match=r"architectures is .'NoSuchClass'.; known is one of"):
                    registry.model_fields(kind.model_type, fields)
