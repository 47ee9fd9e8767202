"""Tests that there are bits per byte if the targets encode the whole text, and a reason if they do not."""

import dataclasses
import math
import re

import jax.numpy as jnp
import pytest

from launch.answers import held_out
from launch.program.checking import ConfigError
from launch.run import build
from model import axes
from train.losses import Loss
from train.objectives.language import Language
from train.objectives.objective import HeldOut

TEXT = "".join(f"line {i} of a text\n" for i in range(300))
ODD = "an ö in a text\n" * 3  # with a character that TEXT lacks


def eval_step(model, batch, companions=None):
    """Returns a loss of one nat per target."""
    weight = jnp.sum(batch["weights"])
    return Loss(weight, weight, {"loss": weight})


def evaluated(config, tmp_path) -> tuple[dict, HeldOut, object]:
    prepared = build.data(config, tmp_path / "run")
    corruption, mesh = build.corruption(config, prepared), build.mesh(config)
    with axes.use_mesh(mesh):
        evaluate = held_out.Evaluation(config, prepared, corruption, Language(), eval_step, mesh)
        figures = evaluate(None, None)
    return figures, evaluate.about(), prepared


@pytest.fixture
def config(tiny, tmp_path):
    """A config over a text whose held-out part, its tail, has a character that training lacks."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT + ODD)
    tiny.data.update(sources=((str(path), 1.0),), dir=str(tmp_path / "data"))
    return tiny


@pytest.mark.parametrize(("kind", "size"), [("byte", 0), ("bpe", 300)])
def test_a_tokenizer_that_loses_nothing(config, tmp_path, kind, size):
    config.data.tokenizer.update(kind=kind, vocab_size=size)
    figures, about, prepared = evaluated(config, tmp_path)
    (source,) = prepared.sources
    bits = source.validation_tokens / math.log(2) / source.validation_bytes
    assert about.no_bits_per_byte == "" and figures["validation/bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_a_tokenizer_of_few_characters(config, tmp_path, capsys):
    config.data.tokenizer.update(kind="char", vocab_size=0)
    figures, about, prepared = evaluated(config, tmp_path)
    assert "validation/bits_per_byte" not in figures and "validation/loss" in figures
    assert "the tokenizer loses text: 1 of 1 held-out documents" in about.no_bits_per_byte
    said = capsys.readouterr().out
    assert re.search(r"warning: .*: 3 of \d+ validation tokens are unknown to the tokenizer \(0\.\d+ %\)", said)
    assert "not what their tokens decode to, so no bits per byte" in said
    plain = {name.removeprefix("validation/"): value for name, value in figures.items()}
    assert f"no bits per byte, because {about.no_bits_per_byte}" in "\n".join(Language().lines(plain, about))
    # As if prepared before this was counted.
    old = [dataclasses.replace(source, validation_altered=None) for source in prepared.sources]
    old = dataclasses.replace(prepared, sources=tuple(old))
    assert held_out.no_bits_per_byte(old, None) == about.no_bits_per_byte


def test_characters_that_training_has_too(config, tmp_path):
    """The same kind of tokenizer loses nothing of a text whose characters are all in the training part."""
    config.data.tokenizer.update(kind="char", vocab_size=0)
    (tmp_path / "text.txt").write_text(TEXT)
    figures, about, _ = evaluated(config, tmp_path)
    assert "validation/bits_per_byte" in figures and about.no_bits_per_byte == ""


def test_a_source_that_is_only_watched_takes_no_figure_from_the_others(config, tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text(TEXT)
    config.data.update(sources=((str(plain), 1.0), (str(tmp_path / "text.txt"), 0.0)))
    config.data.tokenizer.update(kind="char", vocab_size=0)
    figures, about, _ = evaluated(config, tmp_path)
    assert {name for name in figures if "bits" in name} == {
        "validation/bits_per_byte",
        "validation/plain_txt/bits_per_byte",
    }
    assert about.no_bits_per_byte == ""


def test_corrupted_text(config, tmp_path):
    config.data.tokenizer.mask = True
    config.data.corruption.kind = "masked"
    figures, about, _ = evaluated(config, tmp_path)
    assert "validation/bits_per_byte" not in figures and "corrupted" in about.no_bits_per_byte


def test_nothing_is_held_out(config, tmp_path):
    """The error comes before the first step, and its advice works."""
    config.data.validation = 0.0
    prepared = build.data(config, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"raise config\.data\.validation .*, or set config\.eval_every=0"):
        held_out.check_held_out(config, prepared)
    config.eval_every = 0
    held_out.check_held_out(config, prepared)
