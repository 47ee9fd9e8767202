"""Patterns match parameters per layer and decide where stacks are split; broken lists are refused."""

import dataclasses
import re

import pytest

from model import count
from model.patterns import aliases, by_array, by_layer, check_used, checked, cuts
from tests.model import tiny

LLAMA = dataclasses.replace(tiny.LLAMA, num_layers=5)
SWITCH = dataclasses.replace(tiny.SWITCH, num_layers=4, encoder_layers=6)
QUERY = "stack/segments/0/0/attention/query"


def test_a_name_for_each_layer_from_both_ends():
    assert aliases(LLAMA, QUERY) == [f"stack/layer/{n}/{n - 5}/attention/query" for n in range(5)]
    assert aliases(LLAMA, "inputs/tokens/table") == ["inputs/tokens/table"]


def test_layers_of_a_repeated_pattern_are_every_other_one():
    """Alternating dense and sparse layers are in one segment; the encoder counts its own layers."""
    config = dataclasses.replace(SWITCH, mlp_pattern=("dense", "sparse"))
    assert len(config.segments()) == 1
    numbers = lambda name: [int(alias.split("/")[2]) for alias in aliases(config, name)]
    assert numbers("stack/segments/0/1/attention/query") == [1, 3]
    assert numbers("encoder/segments/0/0/attention/query") == [0, 2, 4]
    assert aliases(config, "encoder/segments/0/1/attention/query")[-1] == "encoder/layer/5/-1/attention/query"


def test_layers_of_a_parted_stack_go_on_counting():
    parted = dataclasses.replace(LLAMA, cuts=(2,))
    last = aliases(parted, "stack/segments/1/0/attention/query")
    assert last == [f"stack/layer/{n}/{n - 5}/attention/query" for n in (2, 3, 4)]


def test_one_array_of_shared_layers_has_one_name():
    shared = dataclasses.replace(LLAMA, num_layers=4, share_groups=1)
    assert aliases(shared, QUERY) == ["stack/layer/0/-4/attention/query"]


def test_the_first_pattern_that_is_found_decides():
    rules = (("layer/0/", 1), ("/-1/", 2), (".*", 3))
    assert by_layer(LLAMA, [QUERY, "norm/scale"], rules, "") == {QUERY: [1, 3, 3, 3, 2], "norm/scale": [3]}
    assert by_array(LLAMA, [QUERY], (("query", True), (".*", False)), "") == {QUERY: True}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((("layer/.*/-[12]/", True), (".*", False)), (3,)),
        ((("layer/[13]/", True), (".*", False)), (1, 2, 3, 4)),
        ((("layer/0/.*query", True), (".*", False)), (1,)),
        (((".*", True),), ()),
        ((("unembedding", True), (".*", False)), ()),
    ],
)
def test_cuts_are_where_values_change(rules, expected):
    assert cuts(LLAMA, count.names(LLAMA), rules, "") == expected


def test_a_parted_stack_has_one_value_an_array():
    rules = (("layer/.*/-[12]/", True), (".*", False))
    with pytest.raises(ValueError, match=r"layers of .*attention/.* different values"):
        by_array(LLAMA, count.names(LLAMA), rules, "")
    parted = dataclasses.replace(LLAMA, cuts=cuts(LLAMA, count.names(LLAMA), rules, ""))
    values = by_array(parted, count.names(parted), rules, "")
    assert {name for name, value in values.items() if value} == {
        name for name in count.names(parted) if name.startswith("stack/segments/1/")
    }


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ((("norm", True),), "no pattern of rates matches parameter stack/layer/0/-5/attention/query; end the list"),
        ((("layer/0", 1.0), (".*", 2.0)), r"rates gives .* different values, \[1.0, 2.0, 2.0, 2.0, 2.0\]"),
    ],
)
def test_refuses(rules, words):
    with pytest.raises(ValueError, match=words):
        by_array(LLAMA, [QUERY], rules, "rates")


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (("query", "key"), bool),
        ((".*", False), bool),  # the outer brackets are missing
        ((("(", True),), bool),
        (((".*", 1),), bool),
        (((".*", True),), float),
        (((".*", "1"),), float),
        (((".*", True, True),), bool),
        ((((".*", True),),), bool),
        (True, bool),
    ],
)
def test_refuses_what_is_no_list_of_rules(given, kind):
    form = {bool: "True or False, like (('.*', True),)", float: "a number, like (('.*', 1.0),)"}[kind]
    with pytest.raises(ValueError, match=re.escape(f"rates must be pairs of a regular expression and {form}, not ")):
        checked(given, "rates", kind)
    assert checked([["norm", 0.5], [".*", 1]], "rates", float) == (("norm", 0.5), (".*", 1))


def test_a_rule_that_matches_nothing_is_refused():
    names = count.names(LLAMA)
    check_used(LLAMA, names, (("norm|bias", False), ("layer/.*/-1/", True), (".*", True)), "optimizer.decay")
    said = r"the pattern 'policy/stack/' of optimizer\.rates matches no parameter's name"
    with pytest.raises(ValueError, match=said):
        check_used(LLAMA, names, (("policy/stack/", 0.5), (".*", 1.0)), "optimizer.rates")
    with pytest.raises(ValueError, match=r"'layer/5/'.*similar names: stack/layer/"):
        check_used(LLAMA, names, (("layer/5/", False), (".*", True)), "train_only")
