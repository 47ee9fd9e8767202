"""T5 and Switch Transformers equal transformers': logits, hidden states, generation, and export."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from model import architectures
from model.architectures import Source
from model.decode.generate import generate
from model.interop import registry
from model.interop.files.folder import Folder
from tests.model.interop import hub
from tests.model.interop.tables.test_families import TOLERANCE, assert_same_attention, assert_same_states, batch, padded

LENGTHS = (17, 9, 12)  # of the targets
# In "switch full" experts are full, and transformers gives padding places; see test_a_full_expert_drops_tokens.
ROOMY = [name for name in hub.ENCODER_DECODERS if name != "switch full"]
logits = jax.jit(lambda model, rows, source: model.logits(*rows, source=source))


@jax.jit
def inside(model, rows, source):
    """Returns hidden states and attention probabilities of all layers."""
    own, others = range(model.stack.depth), range(model.encoder.depth)
    decoder = dict(hidden=range(len(own) + 1), attention=own, cross=own)
    encoder = dict(encoder_hidden=range(len(others) + 1), encoder_attention=others)
    return model.tapped(*rows, source=source, **decoder, **encoder)[1]


@functools.cache
def ours(name):
    folder = Folder(hub.encoder_decoder(name)[1])
    family, config = registry.read_config(folder)
    config = type(config)(**config.__dict__ | {"dtype": "float32"})
    return registry.read(folder, family, jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))


@functools.cache
def theirs(name):
    """Returns transformers' outputs for left-padded sources and right-padded targets."""
    model = hub.encoder_decoder(name)[0]
    (source, real, _), (target, seen, _) = padded("left"), padded("right", LENGTHS, max(LENGTHS))
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(source),
            attention_mask=torch.tensor(real.astype(np.int64)),
            decoder_input_ids=torch.tensor(target),
            decoder_attention_mask=torch.tensor(seen.astype(np.int64)),
            output_hidden_states=True,
            output_attentions=True,
        )


def rows():
    """Returns our inputs for the same tokens, and which tokens of targets and sources are real."""
    target, source = padded("right", LENGTHS, max(LENGTHS)), padded("left")
    return batch(*target), Source(*map(jnp.asarray, batch(*source))), target[1], source[1]


@pytest.mark.parametrize("name", hub.each(ROOMY))
def test_logits_of_padded_rows(name):
    target, source, seen, _ = rows()
    expected = theirs(name).logits.numpy()
    assert expected[seen].std() > 0.05
    np.testing.assert_allclose(np.asarray(logits(ours(name), target, source))[seen], expected[seen], **TOLERANCE)


@pytest.mark.parametrize("name", hub.each(ROOMY))
def test_hidden_states_and_attention_of_every_layer(name):
    target, source, seen, real = rows()
    found, expected = inside(ours(name), target, source), theirs(name)
    assert_same_states(found.encoder_hidden, expected.encoder_hidden_states, real)
    assert_same_states(found.hidden, expected.decoder_hidden_states, seen)
    assert_same_attention(found.encoder_attention, expected.encoder_attentions, real)
    assert_same_attention(found.attention, expected.decoder_attentions, seen)
    assert_same_attention(found.cross, expected.cross_attentions, seen)


def test_a_full_expert_drops_tokens():
    """Uses rows without padding, so that both models count the same tokens."""
    model = hub.encoder_decoder("switch full")[0]
    tokens = np.random.default_rng(3).integers(2, 64, (3, 20))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(tokens), decoder_input_ids=torch.tensor(tokens)).logits.numpy()
    whole = batch(tokens, np.ones_like(tokens), np.broadcast_to(np.arange(20), tokens.shape))
    np.testing.assert_allclose(logits(ours("switch full"), whole, Source(*whole)), expected, **TOLERANCE)
    hidden = ours("switch full")(*whole, source=Source(*whole))
    assert hidden.router.dropped.shape == (4,) and np.all(hidden.router.dropped > 0)


@pytest.mark.parametrize("name", hub.each(ROOMY))
def test_greedy_generation_with_the_cache(name):
    model = hub.encoder_decoder(name)[0]
    source, real, _ = padded("left", (12, 5, 9), 12)
    settings = transformers.GenerationConfig(
        max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0
    )
    with torch.no_grad():
        expected = model.generate(
            torch.tensor(source), attention_mask=torch.tensor(real.astype(np.int64)), generation_config=settings
        )[:, 1:]
    sources = [row[mask].tolist() for row, mask in zip(source, real, strict=True)]
    found = generate(ours(name), [[0]] * 3, jax.random.key(0), max_new_tokens=12, sources=sources, eos_id=1)
    width = expected.shape[1]  # theirs stop when all rows have ended
    np.testing.assert_array_equal(found.tokens[:, :width], expected.numpy())
    assert not found.tokens[:, width:].any() and width > 5


@pytest.mark.parametrize("name", hub.each(hub.ENCODER_DECODERS))
def test_the_way_back_is_exact(name, tmp_path):
    reference, folder = hub.encoder_decoder(name)
    family = registry.family_of(ours(name).config)
    assert family == Folder(folder).config()["model_type"]
    registry.write(ours(name), family, tmp_path / "out")
    old, new = Folder(folder), Folder(tmp_path / "out")
    assert old.tensors.keys() == new.tensors.keys()
    for tensor in old.tensors:
        np.testing.assert_array_equal(old.read(tensor), new.read(tensor))
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    tokens = torch.arange(20)[None] + 2
    with torch.no_grad():
        found, expected = (model(tokens, decoder_input_ids=tokens).logits for model in (again, reference))
    # The tensors are equal bit for bit, see above, but torch's matmuls depend on their memory addresses.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_t5_1_1_as_transformers_4_wrote_it(tmp_path):
    """tie_word_embeddings false means two things: a separate output layer, and unscaled logits."""
    folder = hub.encoder_decoder("t5 gated")[1]
    given = json.loads((folder / "config.json").read_text())
    assert given.pop("scale_decoder_outputs") is False
    (tmp_path / "config.json").write_text(json.dumps(given | {"tie_word_embeddings": False}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert registry.read_config(Folder(tmp_path))[1] == registry.read_config(Folder(folder))[1]
