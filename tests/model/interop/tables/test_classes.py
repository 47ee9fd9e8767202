"""Decoders with classification heads equal transformers', in both directions."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from model import architectures
from model.interop import registry
from model.interop.config_json.classes import names as names_of
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from tests.model.interop import hub
from tests.model.interop.tables.test_families import PAD, TOLERANCE, batch, padded

HEADS = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
}
# Both names of the layer, with and without a bias; a softcap, which only affects the language model's head; a
# projection to the width of a narrow table, which affects both.
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
    return registry.read(folder, family, jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))


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
    """An export's `architectures` names transformers' class."""
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
                with pytest.raises(ValueError, match=r"architectures is 'NoSuchClass', a class that"):
                    registry.model_fields(kind.model_type, fields)


@pytest.mark.parametrize(
    "given",
    [
        {"0": "no", "1": "yes", "2": "10"},
        {"2": 10, "0": "no", "1": "yes"},
        ["no", "yes", "10"],
        {0: "no", 1: "yes", 2: "10"},
    ],
)
def test_names_of_classes_in_the_order_of_their_numbers(given):
    assert names_of({"id2label": given}) == ["no", "yes", "10"]


@pytest.mark.parametrize("given", [None, {}, []])
def test_no_names_of_classes(given):
    assert names_of({"id2label": given}) is None and names_of({}) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"no": 0, "yes": 1},
            "id2label has the key 'no'; keys must be class numbers from 0 on, and values class names",
        ),
        ({"LABEL_0": "no"}, "has the key 'LABEL_0'"),
        ({"0": "no", "-1": "yes"}, "has the key '-1'"),
        ({"0": "no", "1.0": "yes"}, "has the key '1.0'"),
        ({"1": "no", "2": "yes"}, "has the numbers 1, 2; the numbers of 2 classes must be 0 to 1"),
        ({"0": "no", "00": "yes"}, "has the numbers 0; the numbers of 2 classes must be 0 to 1"),
        ({"0": "no", "1": None}, "calls class 1 None; a name must be a string"),
        (["no", ["yes"]], r"calls class 1 \['yes'\]"),
        ("no", "id2label is 'no'; it must map numbers to names of classes"),
        (3, "id2label is 3; it must map"),
    ],
)
def test_names_of_classes_that_are_refused(given, words, tmp_path):
    shutil.copytree(reference("llama", "sequence")[1], tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text()) | {"id2label": given}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointFolderError, match=words) as error:
        registry.read_config(Folder(tmp_path / "copy"))
    assert str(error.value).startswith(f"{tmp_path / 'copy'}: config.json: ") and "\n" not in str(error.value)
