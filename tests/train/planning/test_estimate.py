"""Targets match the table of peaks and the published shapes, and times match calculations by hand."""

import fnmatch

import pytest

from train.planning.collectives import Collective
from train.planning.estimate import Place, Times, collective_seconds, compute_seconds, ring_rate, talks
from train.planning.flops import Product
from train.planning.targets import CHIPS, TargetError, parse
from train.record import mfu


@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.flops])
def test_peaks_are_those_that_training_prints(name):
    chip = CHIPS[name]
    rates = [rate for pattern, rate in mfu.DEVICE_FLOPS if fnmatch.fnmatchcase(chip.device_kind, pattern)]
    assert rates[0] == chip.flops


def test_targets():
    assert parse("v5p:4x4x4").devices == 64
    assert parse("v5e:4x4", 2).devices == 32 and str(parse("v5e:4x4", 2)) == "2 slices of v5e:4x4"
    assert parse("h100:8").shape == (1, 8) and parse("h100:4x8").devices == 32


@pytest.mark.parametrize(
    "text, slices, words",
    [
        ("v7:4x4", 1, "unknown target"),
        ("v5p:4x4", 1, "3 sizes"),
        ("v5e:4xx", 1, "2 sizes"),
        ("v5e:32x16", 1, "at most 256"),
        ("h100:2x16", 1, "at most 8 GPUs"),
        ("h100:8", 2, "only TPUs"),
        ("v5e:4x4", 0, "slices=0"),
    ],
)
def test_targets_that_do_not_exist(text, slices, words):
    with pytest.raises(TargetError, match=words):
        parse(text, slices)


def row(target, dim=0):
    """Returns all chips along one dim of a slice."""
    point = lambda i: tuple(i if d == dim else 0 for d in range(len(target.shape)))
    return [Place(0, point(i)) for i in range(target.shape[dim])]


def gather(n, payload=64e6, kind="all-gather"):
    return Collective(kind, ("a",), tuple(range(n)), payload, 1, False)


def test_rings_of_a_torus_and_lines_of_a_part():
    v5p, v5e = parse("v5p:4x4x8"), parse("v5e:16x16")
    assert ring_rate(row(v5p), v5p) == 2 * 90e9  # the whole dim of 4 forms a ring
    assert ring_rate(row(v5p)[:2], v5p) == 90e9  # half of it is a line
    assert ring_rate(row(v5e), v5e) == 2 * 45e9
    assert ring_rate(row(parse("v5e:8x8")), parse("v5e:8x8")) == 45e9
    plane = [Place(0, (i, j, 0)) for i in range(4) for j in range(4)]
    assert ring_rate(plane, v5p) == 4 * 90e9


def test_seconds_of_collectives():
    v5p = parse("v5p:4x4x4")
    once = 64e6 * 3 / 4 / 180e9
    assert collective_seconds(gather(4), row(v5p), v5p) == pytest.approx(once)
    assert collective_seconds(gather(4, kind="all-reduce"), row(v5p), v5p) == pytest.approx(2 * once)
    assert collective_seconds(gather(4, kind="collective-permute"), row(v5p)[:2], v5p) == pytest.approx(64e6 / 90e9)
    # Each chip holds 64 MB, 4 x 64 MB in total. An all-gather would move 3/4 of the total; an all-to-all moves 1/4 of
    # that.
    assert collective_seconds(gather(4, kind="all-to-all"), row(v5p), v5p) == pytest.approx(once)


def test_several_slices_and_nodes_add_their_network():
    slices = parse("v5e:4x4", 2)
    pair = [Place(0, (0, 0)), Place(1, (0, 0))]
    assert collective_seconds(gather(2), pair, slices) == pytest.approx(64e6 / 2 / 3.125e9)
    nodes = parse("h100:2x8")
    one_node = [Place(0, (0, i)) for i in range(8)]
    assert collective_seconds(gather(8), one_node, nodes) == pytest.approx(64e6 * 7 / 8 / 450e9)
    both = one_node + [Place(0, (1, i)) for i in range(8)]
    expected = 64e6 * 7 / 8 / 450e9 + 64e6 / 2 / (8 * 50e9)
    assert collective_seconds(gather(16), both, nodes) == pytest.approx(expected)


def test_products_take_the_longer_of_flops_and_bytes():
    chip = CHIPS["v6e"]
    square = Product("dot_general", (1, 8192, 8192, 8192), 1, 3 * 2 * 8192**2, runs=3)
    assert compute_seconds([square], chip) == pytest.approx(3 * 2 * 8192**3 / 918e12)
    thin = Product("dot_general", (1, 1, 1024, 1024), 1, 2 * 1024**2, runs=1)
    assert compute_seconds([thin], chip) == pytest.approx(2 * 1024**2 / 1638e9)
    padded = Product("dot_general", (1, 1024, 1024, 130), 1, 0.0, 1)  # 130 columns are padded to 256
    assert compute_seconds([padded], chip) == pytest.approx(2 * 1024**2 * 256 / 918e12)


def test_sums_by_kind_and_axes_and_what_is_hidden():
    v5p = parse("v5p:4x4x4")
    places = row(v5p)
    hidden = gather(4)._replace(asynchronous=True, runs=10)
    found = talks([gather(4), hidden, hidden], places, v5p)
    assert [(talk.count, talk.hidden) for talk in found] == [(20, True), (1, False)]
    assert found[0].nbytes == 20 * 64e6 * 3 / 4
    assert Times(compute=2, memory=1, hidden=4, waited=1).found()["step"] == 5
    assert Times(compute=2, memory=3, hidden=4, waited=1).found()["step"] == 6
