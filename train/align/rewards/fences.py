"""Finds the code of an answer that also has words."""

import re
import textwrap

# ```python ... ```; a block that the completion's end has cut off counts too.
_BLOCK = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)


def last_block(text: str, languages: tuple[str, ...]) -> str:
    """Returns the last fenced block in one of the languages, or the last without a language, or the whole text.

    A block in another language, such as the program's output, does not count; if a text has only such blocks, it is
    returned whole. A block that stands in a list loses the indent of the list.
    """
    blocks = [(match[2].lower(), textwrap.dedent(match[3])) for match in _BLOCK.finditer(text)]
    for wanted in (languages, ("",)):
        if inside := [code for language, code in blocks if language in wanted]:
            return inside[-1]
    return text
