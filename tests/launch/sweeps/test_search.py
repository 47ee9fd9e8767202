"""Search files: errors and their messages, grids computed by hand, and distributions of the drawn values."""

import math

import optuna
import pytest

from configs import lora, pretrain_decoder
from configs.searches import lora as search_lora
from launch.program.checking import ConfigError
from launch.sweeps import search

RATE = "optimizer.learning_rate"


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            {"optimizer.lerning_rate": ("log", 1e-5, 1e-2)},
            "no field 'optimizer.lerning_rate'; did you mean optimizer.lear",
        ),
        ({"optimizer": ("choice", 1)}, "no field 'optimizer'"),
        ({RATE: [1e-5, 1e-2]}, "must have one of the forms ('float', low, high[, step]), ('log', low, high)"),
        ({RATE: ("uniform", 1e-5, 1e-2)}, "('uniform', 1e-05, 0.01) must have one of the forms"),
        ({RATE: ("log", 1e-2, 1e-5)}, "the range is empty; 0.01 must be below 1e-05"),
        ({RATE: ("float", 0.1, 0.1)}, "the range is empty"),
        ({RATE: ("log", 0.0, 1e-2)}, "a logarithm needs numbers above 0"),
        ({RATE: ("log", 1e-5, 1e-2, 10)}, "'log' must be followed by low, high"),
        ({RATE: ("float", 0.1)}, "'float' must be followed by low, high[, step]"),
        ({RATE: ("float", "0.1", 1)}, "all must be numbers"),
        ({RATE: ("float", 0.0, 0.3, 0.2)}, "steps of 0.2 do not lead from 0.0 to 0.3"),
        ({RATE: ("float", 0.0, 0.3, 0.0)}, "steps of 0.0"),
        ({"optimizer.warmup_steps": ("int", 0, 1.5)}, "all must be whole numbers"),
        ({"optimizer.warmup_steps": ("float", 0.5, 1.5)}, "search: optimizer.warmup_steps: "),
        ({"optimizer.name": ("choice",)}, "needs values that all differ"),
        ({"optimizer.name": ("choice", "adamw", "adamw")}, "needs values that all differ"),
        ({"optimizer.name": ("choice", 1)}, "search: optimizer.name: "),
        ({"data.sources": ("choice", (("stdlib", 1.0),))}, "is not a number, string"),
        ({"early_stopping.metric": ("choice", "validation/loss")}, "must be the same in all trials"),
    ],
)
def test_mistakes_are_named(space, words):
    with pytest.raises(ConfigError) as caught:
        search.check(space, pretrain_decoder.get_config())
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_valid_spaces_pass():
    space = {
        RATE: ("log", 1e-5, 1),
        "optimizer.weight_decay": ("float", 0, 0.3, 0.1),
        "optimizer.warmup_steps": ("int", 0, 10),
        "model.tied": ("choice", True, False),
        "optimizer.name": ("choice", "adamw", "lion"),
    }
    search.check(space, pretrain_decoder.get_config())
    search.check(search_lora.get_search(), lora.get_config())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_search(:", "line 1: SyntaxError"),
        ("x = 1\n\ndef get_search():\n    return {}['a']\n", "line 4: KeyError: 'a'"),
        ("import nowhere\n", "line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("def get_config():\n    return {}\n", "must have a function get_search() that returns {field: (kind, ...)}"),
        ("def get_search():\n    return {}\n", "must have a function get_search()"),
    ],
)
def test_broken_files_are_named(text, words, tmp_path):
    path = tmp_path / "search.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        search.read(str(path))
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*nothing\.py"):
        search.read(str(tmp_path / "nothing.py"))


def test_a_grid_has_every_combination_once():
    space = {
        "a": ("float", 0.0, 0.3, 0.1),
        "b": ("int", 2, 8, 3),
        "c": ("choice", "x", None),
        "d": ("int", 1, 2),
    }
    points = search.grid(space, seed=0)
    expected = {
        (a, b, c, d) for a in (0.0, 0.1, 0.2, 0.3) for b in (2, 5, 8) for c in ("x", None) for d in (1, 2)
    }  # steps are exact: 0.3, not 0.30000000000000004
    assert len(points) == 48 and {tuple(point.values()) for point in points} == expected
    assert points == search.grid(space, seed=0) != search.grid(space, seed=1)


@pytest.mark.parametrize("form", [("log", 1e-5, 1e-2), ("float", 0.0, 1.0)])
def test_a_grid_needs_steps(form):
    with pytest.raises(ConfigError, match=r"a: \('(log|float)'.* has no steps.*\('choice', value, ...\)"):
        search.grid({"b": ("choice", 1), "a": form}, seed=0)


def test_random_values_have_the_distribution_of_their_kind():
    """The means of 400 draws are within 4 standard errors of those of a uniform distribution (for 'log', of the
    logarithm)."""
    space = {"log": ("log", 1e-4, 1e-2), "float": ("float", 0.0, 1.0), "int": ("int", 0, 10, 5)}
    study, drawn = optuna.create_study(), []
    for number in range(400):
        study.sampler = search.sampler("random", 7, number, [])
        drawn.append(search.suggest(study.ask(), space))
    for name, value, mean, deviation in (
        ("log", math.log10, -3, 2 / math.sqrt(12)),
        ("float", float, 0.5, 1 / math.sqrt(12)),
        ("int", float, 5, 5 * math.sqrt(2 / 3)),
    ):
        values = [value(point[name]) for point in drawn]
        assert abs(sum(values) / 400 - mean) < 4 * deviation / 20, name
    assert {point["int"] for point in drawn} == {0, 5, 10}
    assert len({point["float"] for point in drawn}) == 400
