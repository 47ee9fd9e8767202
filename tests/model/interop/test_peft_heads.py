"""Adapters of classification models are written with their heads, and read by peft and by us."""

import dataclasses
import functools

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx

from model import architectures
from model.adapt import tuning
from model.interop import peft as adapters
from model.interop import registry
from model.interop.files.folder import Folder
from model.weights import trained, variables
from tests.model.adapt.test_lora import shaken
from tests.model.interop import hub

TOKENS = np.random.default_rng(0).integers(2, 64, (2, 12), np.int32)
SIZES = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
MODELS = {
    "bert": (transformers.BertConfig, transformers.AutoModelForSequenceClassification),
    "llama": (transformers.LlamaConfig, transformers.AutoModelForSequenceClassification),
    "tokens": (transformers.LlamaConfig, transformers.AutoModelForTokenClassification),
}
ALL, NONE = ((".*", True),), ((".*", False),)
# name: (model, targets, train_only, modules that train fully)
CASES = {
    "by default": ("bert", None, (), {"classifier/weight", "classifier/bias", "pooler/weight", "pooler/bias"}),
    "of each linear layer": ("llama", ALL, (), {"classifier/weight"}),
    "of each linear layer, tokens": ("tokens", ALL, (), {"classifier/weight", "classifier/bias"}),
    "with a frozen head": ("llama", None, NONE, set()),
}


@functools.cache
def saved(name):
    kind, auto = MODELS[name]
    model = auto.from_config(kind(**SIZES, num_labels=3, pad_token_id=0))
    model.config.architectures = [type(model).__name__]
    return hub.saved(model)


def base(name):
    """Returns (our model in float32, its family's table)."""
    folder = Folder(saved(name)[1])
    family, config = registry.read_config(folder)
    config = dataclasses.replace(config, dtype="float32")
    abstract = jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0)))
    return registry.read(folder, family, abstract), registry.FAMILIES[family].table(config)


@jax.jit
def ours(model):
    scores = model.classes(model(TOKENS).x_BTD)
    last = 0 if model.config.architecture == "encoder" else -1
    return scores if model.config.head == "token" else scores[:, last]


def theirs(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_gives_classes(case, tmp_path):
    """peft starts with another, random head; the adapter's folder brings the trained one."""
    name, targets, train_only, whole = CASES[case]
    model, table = base(name)
    heads = {path for path in variables(model) if path.startswith(("classifier/", "pooler/"))}
    made = tuning.make({"method": "lora", "rank": 2} | ({"targets": targets} if targets else {}), train_only)
    model = shaken(jax.jit(made.apply)(model, jax.random.key(0)))
    assert {path for path in trained(model) if not path.endswith(("/a", "/b"))} == whole
    assert heads <= variables(model).keys()  # none of them has an adapter
    adapters.write(model, table, tmp_path / "adapter")
    plain = MODELS[name][1].from_pretrained(saved(name)[1])
    before = theirs(plain)
    with torch.no_grad():
        (plain.classifier if name == "bert" else plain.score).weight.zero_()
    found = theirs(peft.PeftModel.from_pretrained(plain, tmp_path / "adapter"))
    assert np.abs(found - before).max() > 0.03
    np.testing.assert_allclose(found, ours(model), atol=1e-5, rtol=1e-5)
    again, _ = adapters.read(tmp_path / "adapter", table, base(name)[0])
    np.testing.assert_allclose(ours(again), found, atol=1e-5, rtol=1e-5)
