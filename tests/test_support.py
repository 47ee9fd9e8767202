"""model/README.md's table of families is the one that the code gives."""

from tests import support


def test_readme_says_what_is_supported():
    _, written, _ = support.parts(support.README.read_text())
    assert written == support.table(), "out of date; write it again: python -m tests.support"
