"""transformers' classes with a known model_type but another structure are refused by name."""

import json
import shutil

import pytest
import transformers

from model.interop import registry
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from tests.model.interop import hub


def described(source, path, name):
    """Reads the config.json of a folder with another class, as registry.read_config does."""
    shutil.copytree(source, path)
    given = json.loads((path / "config.json").read_text()) | {"architectures": name if name is None else [name]}
    (path / "config.json").write_text(json.dumps(given))
    return registry.read_config(Folder(path))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        (
            "LlamaForQuestionAnswering",
            "LlamaForCausalLM, LlamaModel, LlamaForSequenceClassification, LlamaForTokenClassification",
        ),
        ("LlamaBidirectionalModel", "LlamaForCausalLM"),  # the same tensors, but another function
        ("MistralForCausalLM", "LlamaForCausalLM"),
        ("LlamaForRewardModel", "LlamaForCausalLM"),
    ],
)
def test_a_class_that_is_not_read_is_named(name, known, tmp_path):
    with pytest.raises(
        CheckpointFolderError, match=rf"architectures is '{name}', a class .*for model_type llama .*{known}"
    ) as e:
        described(hub.reference("llama")[1], tmp_path / "model", name)
    assert str(e.value).startswith(f"{tmp_path / 'model'}: config.json") and "\n" not in str(e.value)


def test_the_encoder_of_a_t5_alone(tmp_path):
    kind, values = hub.ENCODER_DECODERS["t5"]
    _, source = hub.saved(transformers.T5EncoderModel(kind(**values)))
    with pytest.raises(CheckpointFolderError, match=r"'T5EncoderModel'.*T5ForConditionalGeneration, T5Model"):
        registry.read_config(Folder(source))


def test_a_head_that_a_family_has_not(tmp_path):
    with pytest.raises(CheckpointFolderError, match=r"from OPTForCausalLM, OPTModel, OPTForSequenceClassification$"):
        described(hub.reference("opt")[1], tmp_path / "model", "OPTForTokenClassification")


def test_what_is_no_name_of_a_class(tmp_path):
    with pytest.raises(CheckpointFolderError, match=r"architectures is \[3\]; it must be a list with the name"):
        described(hub.reference("llama")[1], tmp_path / "model", 3)


@pytest.mark.parametrize("name", ["LLaMAForCausalLM", None])
def test_names_of_first_conversions_are_read(name, tmp_path):
    assert described(hub.reference("llama")[1], tmp_path / "model", name)[1].head == "language_model"
