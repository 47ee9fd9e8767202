"""The table of families in model/README.md is the one that the code gives."""

from tests import support


def test_readme_says_what_is_supported():
    _, written, _ = support.parts(support.README.read_text())
    assert written == support.table(), "the table is out of date; run python -m tests.support"
