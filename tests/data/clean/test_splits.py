"""The rules that split documents are exact and never change."""

import numpy as np
import pytest

from data.clean.splits import assign
from data.read.documents import Document


def test_the_split_by_document_depends_on_the_name_alone():
    names = [f"some/file_{i}.py" for i in range(4000)]
    first = [next(assign(Document(name, "x"), 0.1, "document"))[0] for name in names]
    assert [next(assign(Document(name, "other text"), 0.1, "document"))[0] for name in names] == first
    # A larger fraction holds out all that a smaller one does, and more.
    more = [next(assign(Document(name, "x"), 0.3, "document"))[0] for name in names]
    assert all(large == "validation" for small, large in zip(first, more, strict=True) if small == "validation")
    for splits, fraction in ((first, 0.1), (more, 0.3)):
        share = np.mean([split == "validation" for split in splits])
        assert abs(share - fraction) < 4 * (fraction * (1 - fraction) / len(names)) ** 0.5
    # This rule must never change, because published figures depend on the files that it holds out.
    assert [i for i, split in enumerate(first) if split == "validation"][:3] == [1, 5, 14]


@pytest.mark.parametrize("length", [1, 9, 10, 11, 999, 1_115_394])
def test_the_tail_is_nanogpts_split(tmp_path, length):
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, length)))
    parts = dict(assign(Document("a", text), 0.1, "tail"))
    assert parts.get("train", "") == text[: int(length * 0.9)]
    assert parts.get("validation", "") == text[int(length * 0.9) :]
