"""Greedy tokens are the argmax of full passes, rows are independent, and ends, limits and meshes work."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest

from model import axes
from model.architectures import Decoder
from model.decode import generate as module
from model.decode import sampling
from model.decode.generate import check, generate
from model.parts import Experts
from tests.model import tiny

PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22]]
WARM = sampling.settings(temperature=1.5)


@functools.cache
def model(name="llama", **changes):
    return tiny.drawn(dataclasses.replace(tiny.BOTH[name], **changes))


def run(model, prompts=PROMPTS, seed=0, new=12, **options):
    return generate(model, prompts, jax.random.key(seed), max_new_tokens=new, **options)


@pytest.mark.parametrize("name", tiny.BOTH)
def test_greedy_is_the_argmax_of_full_passes(name):
    """One full pass over the result checks every step: each token is the argmax after the tokens before it."""
    out = run(model(name))
    rows = np.zeros((len(PROMPTS), 32), np.int32)  # what follows a token cannot change its logits
    for row, prompt, tokens in zip(rows, PROMPTS, out.tokens, strict=True):
        row[: len(prompt) + 12] = [*prompt, *tokens]
    best = np.asarray(jax.jit(Decoder.logits)(model(name), rows).argmax(-1))
    for row, prompt, tokens in zip(best, PROMPTS, out.tokens, strict=True):
        np.testing.assert_array_equal(tokens, row[len(prompt) - 1 : len(prompt) + 11])
    assert len({tuple(row) for row in out.tokens.tolist()}) == len(PROMPTS)
    assert out.tokens.dtype == np.int32 and out.lengths.tolist() == [12, 12, 12]


def test_a_row_does_not_depend_on_the_others():
    expected = run(model(), settings=WARM).tokens
    np.testing.assert_array_equal(run(model(), PROMPTS[:1], settings=WARM).tokens[0], expected[0])
    changed = run(model(), [PROMPTS[0], [1, 2, 3, 4], PROMPTS[2]], settings=WARM).tokens
    np.testing.assert_array_equal(changed[[0, 2]], expected[[0, 2]])
    assert (changed[1] != expected[1]).any()


def test_a_row_with_experts_does_not_depend_on_the_others():
    """A capacity by capacity_factor would grow with the padded length of the batch."""
    experts = Experts(count=4, per_token=2, mlp_dim=16, capacity_factor=0.05)
    few = tiny.drawn(dataclasses.replace(tiny.LLAMA, mlp_pattern=("sparse",), experts=experts))
    alone = run(few, PROMPTS[:1]).tokens
    long = [1, 2, 3, 4] * 12
    np.testing.assert_array_equal(run(few, [PROMPTS[0], long]).tokens[0], alone[0])
    assert few.config.experts.capacity_factor == 0.05


def test_seeds():
    one, again, other = (run(model(), settings=WARM, seed=seed).tokens for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any(axis=1).all()
    same_prompt = run(model(), [PROMPTS[0]] * 3, settings=WARM).tokens
    assert len({tuple(row) for row in same_prompt.tolist()}) == 3


def test_a_row_with_a_key_of_its_own_does_not_depend_on_its_place():
    keys = jax.random.split(jax.random.key(5), 3)
    ask = lambda rows: (
        generate(model(), [PROMPTS[i] for i in rows], keys[np.array(rows)], max_new_tokens=12, settings=WARM).tokens
    )
    expected = ask([0, 1, 2])
    np.testing.assert_array_equal(ask([2, 0, 1]), expected[[2, 0, 1]])
    np.testing.assert_array_equal(ask([1]), expected[[1]])
    numbered = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(3))
    found = generate(model(), PROMPTS, numbered, max_new_tokens=12, settings=WARM).tokens
    np.testing.assert_array_equal(found, run(model(), settings=WARM).tokens)
    with axes.use_mesh(axes.make_mesh(dict(data=2, fsdp=2, tensor=2))):  # rows are added, which need keys too
        sharded = generate(tiny.drawn(tiny.BOTH["llama"]), PROMPTS, keys, max_new_tokens=12, settings=WARM).tokens
    np.testing.assert_array_equal(sharded, expected)
    with pytest.raises(ValueError, match="there are 3 prompts and 2 keys"):
        generate(model(), PROMPTS, keys[:2], max_new_tokens=12, settings=WARM)


@pytest.mark.parametrize("shape", [None, dict(data=2, fsdp=2, tensor=2)], ids=["one device", "a mesh"])
def test_a_prompt_with_several_answers_is_read_once(shape):
    """Each answer is that of its prompt alone with the same key, and a quarter of the 16 rows is read."""
    rows = np.array([2, 0, 1, 0]).repeat(4)
    keys = jax.random.split(jax.random.key(5), 16)
    ask = lambda rows: generate(
        tiny.drawn(tiny.LLAMA), [PROMPTS[i] for i in rows], keys, max_new_tokens=6, settings=WARM
    )
    (_, lengths), of_B = module._distinct(*module._padded([PROMPTS[i] for i in rows], 16))
    assert len(lengths) == 4 and (lengths[of_B] == [len(PROMPTS[i]) for i in rows]).all()
    with axes.use_mesh(axes.make_mesh(shape)) if shape else contextlib.nullcontext():
        found = ask(rows)
    for row in (0, 5, 15):
        alone = generate(model(), [PROMPTS[rows[row]]], keys[row][None], max_new_tokens=6, settings=WARM)
        np.testing.assert_array_equal(found.tokens[row], alone.tokens[0])
    assert len({tuple(row) for row in found.tokens}) == 16


def test_a_row_ends_with_an_end_token():
    free = run(model())
    first, other = int(free.tokens[0, 3]), int(free.tokens[1, 5])
    for eos in (first, [first, other]):
        ended = run(model(), eos_id=eos)
        for tokens, expected, length in zip(ended.tokens, free.tokens, ended.lengths, strict=True):
            where = np.flatnonzero(np.isin(expected, eos))
            assert length == (where[0] + 1 if len(where) else 12)
            np.testing.assert_array_equal(tokens, np.where(np.arange(12) < length, expected, 0))
        assert ended.lengths[0] < 12
    assert ended.lengths[1] < 12


def test_tokens_that_only_pad_the_table_never_come():
    hot = sampling.settings(temperature=100.0)
    assert run(model(), new=40, settings=hot).tokens.max() > 29
    for settings in (hot, sampling.Settings()):
        assert run(model(), new=40, settings=settings, vocab_size=30).tokens.max() < 30


def test_lengths_and_settings_of_a_kind_share_a_program():
    run(model(), settings=WARM)
    before = module._generate._cache_size()
    run(model(), [[1] * 20, [2], [3]], new=5, settings=sampling.settings(temperature=0.3), eos_id=7)
    assert module._generate._cache_size() == before


def test_what_follows_a_shorter_request_is_the_same():
    np.testing.assert_array_equal(run(model(), new=5).tokens, run(model()).tokens[:, :5])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("llama", dict(data=2, fsdp=2, tensor=2)),
        ("gpt", dict(data=2, fsdp=2, tensor=2)),
        ("gpt", dict(stage=2, context=2, tensor=2)),
    ],
)
def test_on_a_mesh(name, shape):
    """Three rows on four row devices; decoding splits heads and vocabulary in two, but no layers or lengths."""
    for settings in (sampling.Settings(), WARM) if name == "llama" else (sampling.Settings(),):
        expected = run(model(name), settings=settings)
        with axes.use_mesh(axes.make_mesh(shape)):
            out = run(tiny.drawn(tiny.BOTH[name]), settings=settings)
        np.testing.assert_array_equal(out.tokens, expected.tokens)
        np.testing.assert_array_equal(out.lengths, expected.lengths)


def test_an_encoder_decoder_with_experts_on_a_mesh():
    options = dict(sources=[[7, 8, 9, 10], [3], [5, 4]])
    expected = run(tiny.drawn(tiny.SWITCH), [[0]] * 3, **options)
    assert len({tuple(row) for row in expected.tokens}) == 3
    with axes.use_mesh(axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        found = run(tiny.drawn(tiny.SWITCH), [[0]] * 3, **options)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_sources_belong_to_encoder_decoders():
    with pytest.raises(ValueError, match="needs sources"):
        check([[1]], 1, 64, tiny.SWITCH)
    with pytest.raises(ValueError, match="and no other model, needs sources"):
        check([[1]], 1, 64, tiny.LLAMA, [[1]])
    with pytest.raises(ValueError, match="source 0 has 65 tokens"):
        check([[1]], 1, 64, tiny.SWITCH, [[1] * 65])
    with pytest.raises(ValueError, match="1 prompts and 2 sources"):
        check([[1]], 1, 64, tiny.SWITCH, [[1], [2]])


def test_bfloat16_stays_near_float32():
    """The chosen tokens have nearly the largest logits of the float32 model, and the model itself is unchanged."""
    narrow = model(dtype="bfloat16")
    out = run(narrow)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(narrow)} == {"float32"}
    rows = np.zeros((3, 32), np.int32)
    for row, prompt, tokens in zip(rows, PROMPTS, out.tokens, strict=True):
        row[: len(prompt) + 12] = [*prompt, *tokens]
    logits = np.asarray(jax.jit(Decoder.logits)(model(), rows))
    for row, prompt, tokens in zip(logits, PROMPTS, out.tokens, strict=True):
        after = row[len(prompt) - 1 : len(prompt) + 11]
        chosen = np.take_along_axis(after, tokens[:, None], axis=1)[:, 0]
        assert (after.max(-1) - chosen).max() < 0.3 * after.std()


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([], {}, "no prompt"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1, 64]], {}, "prompt 0 has ids from 1 to 64, but the vocabulary has 64"),
        ([[1]], {"new": 0}, "max_new_tokens is 0"),
        ([[1]], {"new": np.int64(0)}, "max_new_tokens is 0"),
        ([[1]], {"vocab_size": 65}, "vocab_size 65"),
        ([[1], [1] * 60], {}, r"prompt 1 has 60 tokens, with 12 new ones 72, .* context is 64 \(model.max_length\)"),
    ],
)
def test_what_is_refused(prompts, options, words):
    with pytest.raises(ValueError, match=words):
        run(model(), prompts, **options)


def test_an_encoder_is_refused():
    config = dataclasses.replace(tiny.GPT, architecture="encoder", head="masked")
    with pytest.raises(ValueError, match="only models with a decoder"):
        check([[1]], 1, 64, config)
