"""Entries equal indices written by hand in both directions, read only what is needed, and must be consistent."""

import itertools

import numpy as np
import pytest

from model.interop.layout import Entry

CASES = {  # their layout, our layout, slot; their index of (d, k, g, h) for sizes 4, 3, 2, 5
    "linear": ("(k g h) d", "d k g h", None, lambda d, k, g, h: (k * 10 + g * 5 + h, d)),
    "gpt2": ("d (3 k g h)", "d k g h", 1, lambda d, k, g, h: (d, 30 + k * 10 + g * 5 + h)),
    "bloom": ("(k 3 g h) d", "d k g h", 2, lambda d, k, g, h: (k * 30 + 20 + g * 5 + h, d)),
    "out": ("d (k g h)", "k g h d", None, lambda d, k, g, h: (d, k * 10 + g * 5 + h)),
    "last": ("d (g h k 2)", "d k g h", 0, lambda d, k, g, h: (d, ((g * 5 + h) * 3 + k) * 2)),
    "phi3 query": ("(k g h)+(k h)+(k h) d", "d k g h", 0, lambda d, k, g, h: (k * 10 + g * 5 + h, d)),
    "second of three": ("d (k h rest)+(k g h)+(g 2)", "d k g h", 1, lambda d, k, g, h: (d, 105 + k * 10 + g * 5 + h)),
    "parts": ("d k (g rest+h)", "d k g h", None, lambda d, k, g, h: (d, k, g * 12 + 7 + h)),
}
SIZES = {"d": 4, "k": 3, "g": 2, "h": 5, "rest": 7}


@pytest.mark.parametrize("case", CASES)
def test_both_directions(case):
    theirs, ours, slot, where = CASES[case]
    entry = Entry("a/b", "c.weight", theirs, ours, slot)
    tensor = np.random.default_rng(0).standard_normal(entry.shape(SIZES))
    array = entry.take(lambda index: tensor[index], SIZES, {})
    assert array.shape == tuple(SIZES[dim] for dim in ours.split())
    back = np.full_like(tensor, np.nan)
    entry.put(array, back, SIZES)
    for point in itertools.product(*(range(SIZES[dim]) for dim in ours.split())):
        there = where(**dict(zip(ours.split(), point, strict=True)))
        assert array[point] == tensor[there] == back[there]
    assert np.isnan(back).sum() == tensor.size - array.size


@pytest.mark.parametrize("case", CASES)
def test_a_part_is_the_part(case):
    theirs, ours, slot, _ = CASES[case]
    entry = Entry("a/b", "c.weight", theirs, ours, slot)
    tensor = np.random.default_rng(0).standard_normal(entry.shape(SIZES))
    whole = entry.take(lambda index: tensor[index], SIZES, {})
    for wanted in ({"d": (1, 3)}, {"k": (2, 3)}, {"k": (0, 2), "h": (3, 5)}, {"k": (1, 2), "g": (1, 2), "d": (0, 1)}):
        cut = tuple(slice(*wanted.get(dim, (0, SIZES[dim]))) for dim in ours.split())
        np.testing.assert_array_equal(entry.take(lambda index: tensor[index], SIZES, wanted), whole[cut])


def test_reads_only_what_is_asked_for_where_that_is_a_plain_slice():
    asked = []

    def read(index):
        asked.append(index)
        return np.zeros([part.stop - part.start for part in index])

    Entry("a/b", "c", "(k g h) d", "d k g h").take(read, SIZES, {"k": (1, 3), "d": (2, 4)})
    Entry("a/b", "c", "d (3 k g h)", "d k g h", 1).take(read, SIZES, {"k": (1, 2), "g": (1, 2), "h": (2, 4)})
    Entry("a/b", "c", "(k 3 g h) d", "d k g h", 1).take(read, SIZES, {"k": (1, 2)})
    Entry("a/b", "c", "(k h)+(k g h) d", "d k g h", 1).take(read, SIZES, {"k": (1, 2), "d": (0, 1)})
    assert asked[3] == (slice(25, 35), slice(0, 1))
    assert asked[0] == (slice(10, 30), slice(2, 4))
    assert asked[1] == (slice(0, 4), slice(47, 49))
    assert asked[2] == (slice(40, 50), slice(0, 4))


def test_names_of_the_tensors():
    entry = Entry("a/b", "h.{layer}.e.{expert}", "d k", "layer expert k d", layers=range(3, 9, 3))
    names = list(entry.names((2, 2, 3, 4)))
    assert names == [((0, 0), "h.3.e.0"), ((0, 1), "h.3.e.1"), ((1, 0), "h.6.e.0"), ((1, 1), "h.6.e.1")]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (dict(name="w", theirs="(k h) d", ours="d k"), "dim h is not in ours"),
        (dict(name="w", theirs="k d", ours="d k h"), "dim h is not in theirs"),
        (dict(name="w", theirs="k k", ours="k"), "twice"),
        (dict(name="w.{layer}", theirs="k d", ours="k layer d"), "must come first"),
        (dict(name="w.{layer}", theirs="k d", ours="k d"), "must come first"),
        (dict(name="w", theirs="(3 k) d", ours="k d"), "slot"),
        (dict(name="w", theirs="(3 k) d", ours="k d", slot=3), "slot"),
        (dict(name="w", theirs="k d", ours="k d", slot=0), "slot"),
        (dict(name="w", theirs="k+n d", ours="d"), "one of k"),
        (dict(name="w", theirs="(k)+(k h) d", ours="k d"), "slot"),
        (dict(name="w", theirs="(k)+(k h) d", ours="k d", slot=2), "slot"),
        (dict(name="w", theirs="(k)+(k h) (d)+(d)", ours="k d", slot=0), "slot"),
        (dict(name="w", theirs="(2 k)+(k h) d", ours="k d", slot=0), "slot"),
    ],
)
def test_an_entry_that_makes_no_sense_is_named(entry, message):
    with pytest.raises(ValueError, match=rf"^entry a/b <-> w.*{message}"):
        Entry("a/b", **entry)


def test_a_parameter_with_other_dims_is_named():
    with pytest.raises(ValueError, match=r"entry a/b <-> w .*our parameter has 3 dims"):
        Entry("a/b", "w", "k d", "d k").sizes((2, 3, 4))
