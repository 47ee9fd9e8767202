"""Chat templates of Hugging Face tokenizers as programs: compiled by Jinja, in a sandbox, and run.

The environment is transformers': `raise_exception`, {% break %} and {% continue %}, and blocks {% generation %} ...
{% endgeneration %} that say what is trained on. `strftime_now` is always of 26 July 2024 (the date that Llama 3.1's
template writes where there is none), so that the same conversation gives the same rows on every day.
"""

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox

from data.batch import DataError

BEGIN, END = "\ue0f0", "\ue0f1"  # what a {% generation %} block stands between when it is written
DATE = datetime.datetime(2024, 7, 26)


class Program:
    """A chat template.

    Attributes:
      names: what it looks at by name: variables, attributes and keys, and texts that it compares with.

    Raises:
      DataError: the template is broken.
    """

    def __init__(self, text: str, variables: Mapping[str, Any]):
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals |= {"raise_exception": _raise, "strftime_now": DATE.strftime}
        try:
            self._template, tree = environment.from_string(text), environment.parse(text)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"The tokenizer's chat template is broken: line {error.lineno}: {error.message}."
            ) from error
        self._variables = {"tools": None, "documents": None, **variables}
        found = [node.name for node in tree.find_all(nodes.Name)]
        found += [node.attr for node in tree.find_all(nodes.Getattr)]
        found += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        self.names = frozenset(found)

    def __call__(self, **variables) -> str:
        """What it writes; ValueError where it refuses."""
        try:
            return self._template.render(**(self._variables | variables))
        except Exception as error:  # a template is a program and may fail in any way
            raise ValueError(f"the tokenizer's chat template refuses it: {error}") from error


def without_marks(text: str) -> str:
    """What a template has written, as other libraries have it."""
    return re.sub(f"[{BEGIN}{END}]", "", text)


class _Generation(ext.Extension):
    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller) -> str:
        return BEGIN + caller() + END


def _raise(message: str):
    raise jinja2.TemplateError(message)
