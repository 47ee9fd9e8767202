"""Tokens see only what they should (by gradient), packing changes nothing, and GPT-2 and LLaMA equal transformers'."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from model import architectures
from model.architectures import Decoder
from tests.model import tiny

run = jax.jit(lambda model, *batch: model(*batch).x_BTD)
logits = jax.jit(Decoder.logits)


@functools.cache
def model(name):
    return tiny.drawn(tiny.BOTH[name])


@pytest.mark.parametrize("name", tiny.BOTH)
def test_a_token_sees_itself_and_what_came_before_in_its_document(name):
    """Each of 24 tokens has its own vector in the table; gradients show which of them affects which hidden state."""
    _, segments, positions = tiny.packed_rows(1, 24, seed=5)
    tokens = np.arange(24, dtype=np.int32)[None]

    @jax.jit
    def moved(model):
        def by(position):
            state = lambda model: jnp.sin(model(tokens, segments, positions).x_BTD[0, position]).sum()
            return jnp.abs(jax.grad(state)(model).inputs.tokens.table[...]).max(-1)[:24]

        return jax.lax.map(by, jnp.arange(24))

    same = segments[0][:, None] == segments[0][None]
    sees = same & (np.arange(24)[:, None] >= np.arange(24)[None])
    real = segments[0] > 0
    np.testing.assert_array_equal((np.asarray(moved(model(name))) > 0)[real], sees[real])


@pytest.mark.parametrize("name", tiny.BOTH)
def test_packed_documents_do_not_know_of_each_other(name):
    tokens, segments, positions = tiny.packed_rows(2, 24, seed=2)
    states = run(model(name), tokens, segments, positions)
    other = np.where(segments == 2, (tokens + 7) % 64, tokens)
    changed = run(model(name), other, segments, positions)
    np.testing.assert_array_equal(states[segments != 2], changed[segments != 2])
    assert np.abs(states[segments == 2] - changed[segments == 2]).max(-1).min() > 1e-3
    # A document by itself, from position 0, gives the same as inside a row.
    alone, length = np.zeros((1, 24), np.int32), int((segments[0] == 2).sum())
    alone[0, :length] = tokens[0, segments[0] == 2]
    expected = run(model(name), alone, None, None)[0, :length]
    np.testing.assert_allclose(states[0, segments[0] == 2], expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["decoder", "encoder"])
def test_classes_of_a_packed_text_are_those_of_the_text_alone(architecture):
    config = dataclasses.replace(tiny.GPT, architecture=architecture, head="sequence", num_labels=3)
    classifier, classes = tiny.drawn(config), jax.jit(lambda model, *batch: model.classes(model(*batch).x_BTD))
    tokens, segments, positions = tiny.packed_rows(2, 24, seed=2)
    found = classes(classifier, tokens, segments, positions)
    assert (found.shape, found.dtype) == ((2, 24, 3), jnp.float32)
    own, length = segments[0] == 2, int((segments[0] == 2).sum())
    row = np.zeros((1, 24), np.int32)
    alone, document, places = row.copy(), row.copy(), row.copy()
    alone[0, :length], document[0, :length], places[0, :length] = tokens[0, own], 1, np.arange(length)
    expected = classes(classifier, alone, document, places)[0, :length]
    read = 0 if architecture == "encoder" else length - 1
    assert np.abs(expected).min() > 1e-3
    np.testing.assert_allclose(found[0, own][read], expected[read], atol=1e-5)


def test_a_decoder_reads_the_source_of_its_own_document():
    """Tokens attend to the whole of their document, in both directions, and to no other."""
    rows = tiny.packed_rows(2, 24, seed=2)
    source, segments = architectures.Source(*tiny.packed_rows(2, 32, seed=3)), rows[1]
    model = tiny.drawn(tiny.SWITCH)
    forward = jax.jit(lambda source: model(*rows, source=source).x_BTD)
    states = np.asarray(forward(source))
    for end in (0, -1):  # the first and the last token of document 2
        row, place = (indices[end] for indices in np.nonzero(source.segments_BS == 2))
        other = source.tokens_BS.copy()
        other[row, place] = (other[row, place] + 7) % 64
        moved = np.abs(np.asarray(forward(source._replace(tokens_BS=other))) - states).max(-1)
        of_the_document = (segments == 2) & (np.arange(2)[:, None] == row)
        assert moved[of_the_document].min() > 1e-4 and moved[~of_the_document].max() == 0


@pytest.mark.parametrize("name", tiny.BOTH)
def test_positions_matter(name):
    tokens = np.array([[5, 9, 5, 9, 5, 9, 5, 9]], np.int32)
    states = run(model(name), tokens, None, None)[0]
    assert np.abs(states[1] - states[5]).max() > 1e-2


def redrawn(reference):
    """Makes every parameter random, because values of 0 or 1 hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return reference.eval()


def weights(reference, pattern):
    """Returns the weight of this name in each layer, stacked [L, ...]."""
    state = reference.state_dict()
    layers = [state[pattern.format(layer)] for layer in range(reference.config.num_hidden_layers)]
    return np.stack([weight.numpy() for weight in layers])


def check(model, reference):
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 20))
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits(model, jnp.asarray(tokens, jnp.int32)), expected, atol=2e-4)


def test_logits_are_those_of_transformers_gpt2():
    config = dataclasses.replace(tiny.GPT, norm_epsilon=3e-3)
    reference = redrawn(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=8, n_inner=64, layer_norm_epsilon=3e-3
            )
        )
    )
    model, state = tiny.drawn(config), reference.state_dict()
    take = functools.partial(weights, reference)
    model.inputs.tokens.table[...] = state["transformer.wte.weight"].numpy()
    model.inputs.positions.table[...] = state["transformer.wpe.weight"].numpy()
    model.norm.scale[...] = state["transformer.ln_f.weight"].numpy()
    model.norm.bias[...] = state["transformer.ln_f.bias"].numpy()
    block = model.stack.segments[0][0]
    for norm, name in ((block.attention_norm, "ln_1"), (block.feed_forward_norm, "ln_2")):
        norm.scale[...] = take(f"transformer.h.{{}}.{name}.weight")
        norm.bias[...] = take(f"transformer.h.{{}}.{name}.bias")
    # Conv1D stores [in, out]; queries, keys and values are concatenated.
    query, key, value = np.split(take("transformer.h.{}.attn.c_attn.weight").reshape(2, 32, 24, 4), 3, axis=2)
    block.attention.query[...], block.attention.key[...], block.attention.value[...] = query[:, :, :, None], key, value
    query, key, value = np.split(take("transformer.h.{}.attn.c_attn.bias").reshape(2, 24, 4), 3, axis=1)
    block.attention.query_bias[...], block.attention.key_bias[...] = query[:, :, None], key
    block.attention.value_bias[...] = value
    block.attention.out[...] = take("transformer.h.{}.attn.c_proj.weight").reshape(2, 8, 1, 4, 32)
    block.attention.out_bias[...] = take("transformer.h.{}.attn.c_proj.bias")
    block.feed_forward.up[...] = take("transformer.h.{}.mlp.c_fc.weight")
    block.feed_forward.up_bias[...] = take("transformer.h.{}.mlp.c_fc.bias")
    block.feed_forward.down[...] = take("transformer.h.{}.mlp.c_proj.weight")
    block.feed_forward.down_bias[...] = take("transformer.h.{}.mlp.c_proj.bias")
    check(model, reference)


def test_logits_are_those_of_transformers_llama():
    settings = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=16, head_dim=4)
    settings |= dict(num_key_value_heads=8, rms_norm_eps=3e-3, vocab_size=64, max_position_embeddings=64)
    rope = {"rope_type": "default", "rope_theta": 100.0}
    reference = redrawn(
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**settings, rope_parameters=rope, tie_word_embeddings=False)
        )
    )
    model, state = tiny.drawn(tiny.LLAMA), reference.state_dict()
    # Linear stores [out, in].
    take = lambda name: np.moveaxis(weights(reference, f"model.layers.{{}}.{name}.weight"), -1, 1)
    block = model.stack.segments[0][0]
    model.inputs.tokens.table[...] = state["model.embed_tokens.weight"].numpy()
    model.unembedding.table[...] = state["lm_head.weight"].numpy()
    model.norm.scale[...] = state["model.norm.weight"].numpy()
    block.attention_norm.scale[...] = weights(reference, "model.layers.{}.input_layernorm.weight")
    block.feed_forward_norm.scale[...] = weights(reference, "model.layers.{}.post_attention_layernorm.weight")
    block.attention.query[...] = take("self_attn.q_proj").reshape(2, 32, 8, 2, 4)
    block.attention.key[...] = take("self_attn.k_proj").reshape(2, 32, 8, 4)
    block.attention.value[...] = take("self_attn.v_proj").reshape(2, 32, 8, 4)
    block.attention.out[...] = take("self_attn.o_proj").reshape(2, 8, 2, 4, 32)
    block.feed_forward.gate[...] = take("mlp.gate_proj")
    block.feed_forward.up[...] = take("mlp.up_proj")
    block.feed_forward.down[...] = take("mlp.down_proj")
    check(model, reference)
