"""Tests that every number of every config has a range, and that values outside are refused first of all."""

import importlib
import math
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.sizes import SIZES
from data.examples import kinds
from launch.program.checking import ConfigError
from launch.run import ranges
from launch.run.defaults import flat
from tests.launch.conftest import refused
from train.objectives.table import OBJECTIVES

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
ARGUMENTS = {"benchmark": ["small", "small-lora", "small-qlora"]}


def published():
    """Yields the fields of every config in configs/ and of every size, by their names with dots."""
    for path in sorted(CONFIGS.glob("*.py")):
        module = importlib.import_module(f"configs.{path.stem}")
        if hasattr(module, "get_config"):
            for argument in ARGUMENTS.get(path.stem, [None]):
                config = module.get_config(argument) if argument else module.get_config()
                yield flat(config.to_dict())
    yield from (flat(size, "model.") for size in SIZES.values())


def numbers(fields):
    """Yields (field, value) of each number, or None in place of one, also inside lists of pairs (as `field[]`)."""
    is_number = lambda value: value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    for field, value in fields.items():
        if isinstance(value, tuple) and value and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
            yield from ((f"{field}[]", number) for _, number in value if is_number(number))
        elif is_number(value):
            yield field, value


RANGES = ranges.known_ranges()
NUMBERS = {field: value for fields in published() for field, value in numbers(fields)}


def test_every_number_has_a_range_and_lies_in_it():
    missing = NUMBERS.keys() - RANGES.keys()
    places = "configs/parts/ranges.py, beside the default in model/, or `ranges` of the objective"
    assert not missing, f"add a line to {places}: {sorted(missing)}"
    for fields in published():
        ranges.check(ConfigDict(nested(fields)))


def test_no_range_is_left_over():
    """The fields of a model are not all set by some size; ModelConfig reads the ranges of the others."""
    assert {field for field in RANGES if not field.startswith("model.")} <= NUMBERS.keys()


def test_a_setting_has_the_same_range_in_every_objective():
    found = {(field, interval) for kind in OBJECTIVES.values() for field, interval in kind.ranges.items()}
    assert len(found) == len({field for field, _ in found})


@pytest.mark.parametrize(
    ("field", "near"),
    [("learning_rate", "optimizer.learning_rate"), ("optimizer.weight_decy", "optimizer.weight_decay")],
)
def test_a_field_that_nobody_reads_is_refused(field, near, tiny, tmp_path):
    tiny.unlock()
    tiny.update_from_flattened_dict({field: 1.0}) if "." in field else tiny.update({field: 1.0})
    refused(tiny, tmp_path / "run", ConfigError, f"config.{field} is a field that no run reads", near)
    assert not list(tmp_path.iterdir())


def test_every_field_of_a_config_is_known():
    """Of the two tables in configs/parts/ranges.py, and none of them is left over."""
    elsewhere = ("model.", "objective.", "adapt.", *(f"data.{kind}." for kind in kinds.KINDS))
    fields = {field for fields in published() for field in fields if not field.startswith(elsewhere)}
    assert {field for field in fields if field not in RANGES} == set(ranges.OTHERS)


def nested(fields):
    tree = {}
    for field, value in fields.items():
        *blocks, name = field.split(".")
        inside = tree
        for block in blocks:
            inside = inside.setdefault(block, {})
        inside[name] = value
    return tree


def outside(field):
    """Values below and above the range of a field, of another type, and what is no number."""
    kind, low, high, right = re.fullmatch(r"(int|float).* ?[\[(](\S+), (\S+)([\])])", RANGES[field]).groups()
    values = [math.nan, math.inf, -math.inf, "1", True, (1,)]
    values += [1.5, 1.0] if kind == "int" else []
    values += [None] if "None" not in RANGES[field] else []
    values += [int(low) - 1, int(low) - 7, float(low) - 1e-3] if math.isfinite(float(low)) else []
    if math.isfinite(float(high)):
        values += [float(high) + 1e-3, 2 * int(high) + 1] + ([float(high)] if right == ")" else [])
    return values


@pytest.mark.parametrize("field", NUMBERS)
def test_a_value_outside_of_its_range_is_refused_first(field, tiny, tmp_path):
    """The error names the field as its flag does. The norm is wrong too, which a later check would report first."""
    fields = flat(tiny.to_dict()) | {"model.norm": "none of these"}
    for value in outside(field):
        if field.endswith("[]"):
            config = ConfigDict(nested(fields | {field[:-2]: ((".*", 1.0), (".*", value))}))
            name = f"config.{field[:-2]}[1]"
        else:
            config, name = ConfigDict(nested(fields | {field: value})), f"config.{field}"
        refused(config, tmp_path / "run", ConfigError, f"{name} is {value!r}; it must be ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer.clip_norm", -1.0),
        ("optimizer.learning_rate", -3e-4),
        ("optimizer.learning_rate", math.nan),
        ("optimizer.final", -1.0),
        ("optimizer.beta1", 1.5),
        ("objective.label_smoothing", 2.0),
        ("eval_rows", -1),
        ("accumulate", 0),
        ("seed", 2**32),
        ("model.norm_epsilon", math.nan),
    ],
)
def test_what_users_have_tried(field, value, tiny, tmp_path):
    tiny.update_from_flattened_dict({field: value})
    refused(tiny, tmp_path / "run", ConfigError, f"config.{field} is {value!r}; it must be ")
    assert not (tmp_path / "run").exists()
