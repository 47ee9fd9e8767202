"""The compressors' bits per byte equal those of compression in one call."""

import gzip
import lzma

import pytest

from train.evals.compressors import compressed_bits_per_byte

TEXTS = [f"def f{i}(x):\n    return x + {i}  # größer\n" for i in range(500)]


def test_equal_whole_files():
    data = "".join(TEXTS).encode()
    figures = compressed_bits_per_byte(TEXTS)
    assert figures["xz -9"] == pytest.approx(8 * len(lzma.compress(data, preset=9)) / len(data), rel=1e-6)
    assert figures["gzip -9"] == pytest.approx(8 * len(gzip.compress(data, 9)) / len(data), rel=1e-6)
    assert figures["xz -9"] < 8


def test_no_text():
    assert set(compressed_bits_per_byte([])) == {"xz -9", "gzip -9"}
