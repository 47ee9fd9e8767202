"""Ordered (pattern, value) lists over parameters: what decays, what trains, how fast, what gets an adapter.

The first regular expression of a list that is found in a parameter's name decides. One array stacks several layers, so
a pattern is matched against one name per layer, with the layer's number from the front and from the back:

    stack/segments/0/0/attention/query  ->  stack/layer/0/-12/attention/query, stack/layer/1/-11/attention/query, ...

For example, 'layer/.*/-[12]/' selects the last two layers. Where a list gives layers of one array different values,
`cuts` returns where to split the array (ModelConfig.cuts), and `restacked` converts parameters between such models.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from model.config import ModelConfig

Rules = Sequence[tuple[str, Any]]

_STACKED = re.compile(r"(stack|encoder)/segments/(\d+)/(\d+)/(.*)")


def layers(config: ModelConfig, name: str) -> tuple[str, list[int], str] | None:
    """Returns (stack, numbers of the layers in the array `name`, name inside a layer); None outside of the stacks."""
    found = _STACKED.fullmatch(name)
    if not found:
        return None
    stack, number, place, inner = found[1], int(found[2]), int(found[3]), found[4]
    plan = config.segments(_depth(config, stack))
    start = sum(len(segment.kinds) * segment.repeats for segment in plan[:number])
    segment = plan[number]
    end = start + len(segment.kinds) * (1 if segment.shared else segment.repeats)
    return stack, list(range(start + place, end, len(segment.kinds))), inner


def aliases(config: ModelConfig, name: str) -> list[str]:
    """Returns the names that patterns are matched against: one for each layer of the array `name`."""
    found = layers(config, name)
    if found is None:
        return [name]
    stack, numbers, inner = found
    depth = _depth(config, stack)
    return [f"{stack}/layer/{number}/{number - depth}/{inner}" for number in numbers]


def checked(given: Any, name: str, kind: type) -> Rules:
    """Returns `given` as rules with values of one type.

    Args:
      given: the list from a config.
      name: the config field, for errors.
      kind: type of the values, bool or float.

    Raises:
      ValueError: `given` is not a list of (pattern, value) pairs.
    """
    forms: dict[type, tuple[set[type], str]] = {bool: ({bool}, "True or False"), float: ({int, float}, "a number")}
    kinds, words = forms[kind]
    try:
        rules = tuple((re.compile(pattern).pattern, value) for pattern, value in given)
        if wrong := [value for _, value in rules if type(value) not in kinds]:
            raise ValueError(f"{wrong[0]!r} is not {words}")
    except (re.error, TypeError, ValueError) as error:
        form = ((".*", kind(1)),)
        raise ValueError(
            f"{name} must be pairs of a regular expression and {words}, like {form}, not {given!r}: {error}"
        ) from error
    return rules


def by_layer(config: ModelConfig, names: Iterable[str], rules: Rules, of: str) -> dict[str, list]:
    """Returns, for each array, the values of its layers.

    Args:
      of: the config field that holds the rules, for errors.

    Raises:
      ValueError: no pattern matches a parameter.
    """

    def value(alias: str):
        for pattern, value in rules:
            if re.search(pattern, alias):
                return value
        raise ValueError(f'no pattern of {of} matches parameter {alias}; end the list with (".*", ...)')

    return {name: [value(alias) for alias in aliases(config, name)] for name in names}


def check_used(config: ModelConfig, names: Iterable[str], rules: Rules, of: str) -> None:
    """Refuses a rule that matches no parameter's name: a mistyped rule would silently change nothing.

    Args:
      names: all parameters, including frozen ones.
      of: the config field that holds the rules, for errors.

    Raises:
      ValueError: a pattern matches nothing; the message suggests existing names.
    """
    found = sorted({alias for name in names for alias in aliases(config, name)})
    for pattern, _ in rules:
        if not any(re.search(pattern, alias) for alias in found):
            near = difflib.get_close_matches(pattern, found, 3, cutoff=0.3) or found[:3]
            raise ValueError(
                f"the pattern {pattern!r} of {of} matches no parameter's name, so it would change nothing; fix or "
                f"remove it; similar names: {', '.join(near)}"
            )


def by_array(config: ModelConfig, names: Iterable[str], rules: Rules, of: str) -> dict[str, Any]:
    """Returns the value of each array.

    Raises:
      ValueError: as in `by_layer`, or the layers of one array get different values.
    """
    found = by_layer(config, names, rules, of)
    for name, values in found.items():
        if any(value != values[0] for value in values):
            raise ValueError(f"{of} gives the layers of {name} different values, {values}; one array can hold only one")
    return {name: values[0] for name, values in found.items()}


def cuts(config: ModelConfig, names: Iterable[str], rules: Rules, of: str) -> tuple[int, ...]:
    """Returns the layers whose values differ from the layer before: where a stack must be split."""
    values: dict[tuple[str, str], dict[int, Any]] = {}
    for name, found in by_layer(config, names, rules, of).items():
        if (where := layers(config, name)) is not None:
            stack, numbers, inner = where
            values.setdefault((stack, inner), {}).update(zip(numbers, found, strict=True))
    return tuple(sorted({n for of in values.values() for n in of if n - 1 in of and of[n] != of[n - 1]}))


def restacked(arrays: Mapping[str, jax.Array], source: ModelConfig, target: ModelConfig, names: Iterable[str]) -> dict:
    """Converts the arrays of a model of `source` to those of `target`, which differs only in its `cuts`.

    Args:
      names: the target's arrays; names that the source lacks are skipped.
    """
    if source.cuts == target.cuts:
        return {name: arrays[name] for name in names if name in arrays}
    place: dict[tuple[str, int, str], tuple[str, int]] = {}
    for name in arrays:
        if (where := layers(source, name)) is not None:
            stack, numbers, inner = where
            place |= {(stack, number, inner): (name, index) for index, number in enumerate(numbers)}
    found: dict[str, jax.Array] = {}
    for name in names:
        where = layers(target, name)
        if where is None:
            found |= {name: arrays[name]} if name in arrays else {}
            continue
        stack, numbers, inner = where
        if (stack, numbers[0], inner) in place:
            parts = (place[stack, number, inner] for number in numbers)
            found[name] = jnp.stack([arrays[name][index] for name, index in parts])
    return found


def _depth(config: ModelConfig, stack: str) -> int:
    return (config.encoder_layers or config.num_layers) if stack == "encoder" else config.num_layers
