"""Tensors are found with and without a prefix, tied under either name, and with separate heads.

Each case is a file that transformers can load too, so the logits must equal transformers'.
"""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from model import architectures
from model.architectures import Source
from model.interop import registry
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from tests.model.interop import hub
from tests.model.interop.tables import test_encoders
from tests.model.interop.tables.test_families import TOLERANCE

TOKENS = np.random.default_rng(0).integers(2, 60, (2, 12))
CAUSAL, MASKED = transformers.AutoModelForCausalLM, transformers.AutoModelForMaskedLM
SEQUENCES, BARE = transformers.AutoModelForSeq2SeqLM, transformers.AutoModel


def changed(tmp_path, folder, change, config=None):
    """Copies a folder, with its tensors changed by `change` and additional fields in config.json."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(dict(tensors)), tmp_path / "model.safetensors")
    given = json.loads((folder / "config.json").read_text()) | (config or {})
    given = {field: value for field, value in given.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(given))
    return tmp_path


def same_logits(tmp_path, auto):
    """Asserts that the folder gives transformers' logits (a bare encoder: its pooler's output); returns our config."""
    theirs, tokens = auto.from_pretrained(tmp_path, attn_implementation="eager").eval(), torch.tensor(TOKENS)
    second = dict(decoder_input_ids=tokens) if auto is SEQUENCES else {}
    with torch.no_grad():
        found = theirs(tokens, **second)
        wanted = (found.pooler_output if auto is BARE else found.logits).numpy()
    name, config = registry.read_config(Folder(tmp_path))
    config = type(config)(**config.__dict__ | {"dtype": "float32"})
    model = registry.read(Folder(tmp_path), name, jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))
    rows = TOKENS.astype(np.int32)
    if auto is BARE:
        ours = model.pooled(model(rows).x_BTD)[:, 0]
    elif auto is SEQUENCES:
        places = np.ones_like(rows), np.broadcast_to(np.arange(12, dtype=np.int32), rows.shape)
        ours = model.logits(rows, *places, source=Source(rows, *places))
    else:
        ours = model.logits(rows)
    np.testing.assert_allclose(ours, wanted, **TOLERANCE)
    return config


def noise(like: np.ndarray) -> np.ndarray:
    return 0.3 * np.random.default_rng(1).normal(size=like.shape).astype(np.float32)


EMBEDDINGS = {
    "gpt2": "transformer.wte.weight",
    "llama yarn": "model.embed_tokens.weight",
    "opt": "model.decoder.embed_tokens.weight",
    "bloom": "transformer.word_embeddings.weight",
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_head_beside_a_tied_table(name, tmp_path):
    """If equal to the table, it is tied; otherwise it is separate, as in transformers, which warns."""
    folder, words = hub.reference(name)[1], EMBEDDINGS[name]
    same = changed(tmp_path, folder, lambda tensors: tensors | {"lm_head.weight": tensors[words].copy()})
    assert same_logits(same, CAUSAL).tied
    own = changed(tmp_path, folder, lambda tensors: tensors | {"lm_head.weight": noise(tensors[words])})
    assert not same_logits(own, CAUSAL).tied


def test_a_tied_table_under_the_heads_name(tmp_path):
    def only_head(tensors):
        return tensors | {"lm_head.weight": tensors.pop(EMBEDDINGS["llama yarn"])}

    assert same_logits(changed(tmp_path, hub.reference("llama yarn")[1], only_head), CAUSAL).tied


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("llama yarn", "model."), ("gpt2", "transformer."), ("opt", "model."), ("bloom", "transformer.")],
)
def test_names_without_the_prefix_of_the_whole_model(name, prefix, tmp_path):
    """The folder is saved like a bare LlamaModel."""
    bare = lambda tensors: {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    same_logits(changed(tmp_path, hub.reference(name)[1], bare), CAUSAL)


def test_an_untied_model_without_a_head_is_refused(tmp_path):
    changed(tmp_path, hub.reference("llama")[1], lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"})
    name, config = registry.read_config(Folder(tmp_path))
    with pytest.raises(CheckpointFolderError, match=r"1 tensors are missing: lm_head\.weight"):
        registry.read(Folder(tmp_path), name, jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))


DECODERS = {
    "bert": ("cls.predictions", "bert.embeddings.word_embeddings.weight"),
    "roberta": ("lm_head", "roberta.embeddings.word_embeddings.weight"),
    "albert": ("predictions", "albert.embeddings.word_embeddings.weight"),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("tied", [True, False])
def test_an_encoder_with_an_output_layer_of_its_own(name, tied, tmp_path):
    """The head is separate if config.json says so, or if the file has a different one although config.json ties it."""
    head, words = DECODERS[name]
    extra = lambda tensors: {f"{head}.decoder.weight": noise(tensors[words])}
    bias = {} if tied else {f"{head}.decoder.bias": np.linspace(-1, 1, 64, dtype=np.float32)}
    folder = test_encoders.reference(name, "masked")[1]
    changed(tmp_path, folder, lambda t: t | extra(t) | bias, {"tie_word_embeddings": tied})
    assert not same_logits(tmp_path, MASKED).tied


@pytest.mark.parametrize("name", DECODERS)
def test_an_untied_encoder_goes_back(name, tmp_path):
    head, words = DECODERS[name]
    extra = lambda tensors: {f"{head}.decoder.weight": noise(tensors[words])}
    bias = {f"{head}.decoder.bias": np.linspace(-1, 1, 64, dtype=np.float32)}
    folder = test_encoders.reference(name, "masked")[1]
    (tmp_path / "one").mkdir()
    changed(tmp_path / "one", folder, lambda t: t | extra(t) | bias, {"tie_word_embeddings": False})
    name, config = registry.read_config(Folder(tmp_path / "one"))
    config = type(config)(**config.__dict__ | {"dtype": "float32"})
    abstract = jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0)))
    registry.write(registry.read(Folder(tmp_path / "one"), name, abstract), name, tmp_path / "two")
    same_logits(tmp_path / "two", MASKED)
    with torch.no_grad():
        one, two = (
            MASKED.from_pretrained(tmp_path / part).eval()(torch.tensor(TOKENS)).logits for part in ("one", "two")
        )
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", DECODERS)
def test_the_bias_of_a_decoder_under_either_name(name, tmp_path):
    head = DECODERS[name][0]
    folder = test_encoders.reference(name, "masked")[1]

    def only_decoders(tensors):
        return tensors | {f"{head}.decoder.bias": tensors.pop(f"{head}.bias")}

    same_logits(changed(tmp_path, folder, only_decoders), MASKED)
    other = lambda tensors: tensors | {f"{head}.decoder.bias": noise(tensors[f"{head}.bias"])}
    same_logits(changed(tmp_path, folder, other), MASKED)


@pytest.mark.parametrize("name", DECODERS)
def test_a_bare_encoder_with_a_prefix_and_a_headed_one_without(name, tmp_path):
    prefix = f"{name}."
    with_prefix = lambda tensors: {prefix + key: tensor for key, tensor in tensors.items()}
    same_logits(changed(tmp_path, test_encoders.reference(name, "none")[1], with_prefix), BARE)
    without = lambda tensors: {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    same_logits(changed(tmp_path, test_encoders.reference(name, "masked")[1], without), MASKED)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("head", ["masked", "sequence", "token", "none"])
def test_the_head_without_architectures(name, head, tmp_path):
    """The config also lacks the epsilon, whose default is 1e-12."""
    folder = test_encoders.reference(name, head)[1]
    changed(tmp_path, folder, lambda t: t, {"architectures": ..., "layer_norm_eps": ...})
    config = registry.read_config(Folder(tmp_path))[1]
    assert (config.head, config.norm_epsilon) == (head, 1e-12)


def test_a_decoder_that_scores_classes_needs_architectures(tmp_path):
    folder = hub.reference("llama")[1]
    changed(tmp_path, folder, lambda t: t | {"score.weight": np.ones((2, 32), np.float32)}, {"architectures": None})
    with pytest.raises(CheckpointFolderError, match="architectures is absent"):
        registry.read_config(Folder(tmp_path))


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_t5_with_the_table_of_one_side_only(side, tmp_path):
    def one_side(tensors):
        return tensors | {f"{side}.embed_tokens.weight": tensors.pop("shared.weight")}

    same_logits(changed(tmp_path, hub.encoder_decoder("t5")[1], one_side), SEQUENCES)


def test_t5_with_a_head_that_config_json_calls_tied(tmp_path):
    folder = hub.encoder_decoder("t5")[1]
    changed(tmp_path, folder, lambda t: t | {"lm_head.weight": noise(t["shared.weight"])})
    assert not same_logits(tmp_path, SEQUENCES).tied


def test_t5_without_a_head_though_config_json_says_it_has_one(tmp_path):
    changed(tmp_path, hub.encoder_decoder("t5")[1], lambda t: t, {"tie_word_embeddings": False})
    assert same_logits(tmp_path, SEQUENCES).tied


def test_tables_of_two_sides_that_differ_are_refused(tmp_path):
    folder = hub.encoder_decoder("t5")[1]
    changed(tmp_path, folder, lambda t: t | {"encoder.embed_tokens.weight": noise(t["shared.weight"])})
    name, config = registry.read_config(Folder(tmp_path))
    with pytest.raises(CheckpointFolderError, match=r"shared\.weight and encoder\.embed_tokens\.weight must be equal"):
        registry.read(Folder(tmp_path), name, jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))


def test_scores_divided_by_the_number_of_the_layer(tmp_path):
    """scale_attn_by_inverse_layer_idx works, and so do scores that are not scaled by the head's width."""
    for change in ({"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}):
        same_logits(changed(tmp_path, hub.reference("gpt2")[1], lambda t: t, change), CAUSAL)


def test_a_bare_bert_without_a_pooler(tmp_path):
    """transformers draws a random one; here the user must ask for it. Everything before it comes from the file."""
    folder = test_encoders.reference("bert", "none")[1]
    changed(tmp_path, folder, lambda tensors: {k: v for k, v in tensors.items() if "pooler" not in k})
    name, config = registry.read_config(Folder(tmp_path))
    config = type(config)(**config.__dict__ | {"dtype": "float32"})
    abstract = jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0)))
    with pytest.raises(CheckpointFolderError, match=f"^{tmp_path} has no pooler.*draw_pooler gives it a random one"):
        registry.read(Folder(tmp_path), name, abstract)
    model = registry.read(Folder(tmp_path), name, abstract, draw_pooler=True)
    assert np.std(model.pooler.weight[...]) == pytest.approx(0.02, rel=0.1) and not np.any(model.pooler.bias[...])
    rows, theirs = TOKENS.astype(np.int32), BARE.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor(TOKENS)).last_hidden_state.numpy()
    np.testing.assert_allclose(model(rows).x_BTD, wanted, **TOLERANCE)
    with pytest.raises(CheckpointFolderError, match="leave it out"):
        registry.read(Folder(folder), name, abstract, draw_pooler=True)
