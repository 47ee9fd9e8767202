"""Bits per byte of general-purpose compressors on a text: a baseline for a model's bits per byte.

A model that predicts a text with b bits per byte can compress it to b / 8 of its size (arXiv:2309.10668).
"""

import lzma
import zlib
from collections.abc import Iterable


def compressed_bits_per_byte(texts: Iterable[str]) -> dict[str, float]:
    """Returns the bits per byte of `xz -9` and `gzip -9` on all texts, concatenated into one file (in their favour)."""
    xz, gzip = lzma.LZMACompressor(preset=9), zlib.compressobj(9, zlib.DEFLATED, 31)  # 31: a gzip header
    size, sizes = 0, {"xz -9": 0, "gzip -9": 0}
    for text in texts:
        data = text.encode()
        size += len(data)
        sizes["xz -9"] += len(xz.compress(data))
        sizes["gzip -9"] += len(gzip.compress(data))
    sizes["xz -9"] += len(xz.flush())
    sizes["gzip -9"] += len(gzip.flush())
    return {name: 8 * compressed / max(size, 1) for name, compressed in sizes.items()}
