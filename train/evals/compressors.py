"""What general-purpose compressors reach on a text: the yardstick beside a model's bits per byte.

A model that predicts a text with b bits per byte would compress it to b / 8 of its size (arXiv:2309.10668).
"""

import lzma
import zlib
from collections.abc import Iterable


def compressed_bits_per_byte(texts: Iterable[str]) -> dict[str, float]:
    """Bits per byte of `xz -9` and `gzip -9` on all texts one after another, as one file (which favours them)."""
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
