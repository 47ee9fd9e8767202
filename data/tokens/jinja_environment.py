"""Runs chat templates of Hugging Face tokenizers: Jinja programs, in a sandbox.

The environment is that of transformers: `raise_exception`, {% break %} and {% continue %}, and blocks {% generation %}
... {% endgeneration %} that say what is trained on. `strftime_now` always returns 26 July 2024 (the default date of
Llama 3.1's template), so that a conversation gives the same rows on every day.
"""

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox

from data.batch import DataError

BEGIN, END = "\ue0f0", "\ue0f1"  # mark the text of a {% generation %} block
DATE = datetime.datetime(2024, 7, 26)


class Program:
    """A compiled chat template.

    Args:
      text: the template.
      variables: names that the template may use in every call (bos_token, eos_token, ...).

    Attributes:
      names: variables, attributes, keys and string constants of the template, which show what it reads.

    Raises:
      DataError: the template has a syntax error.
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
        """Returns the rendered text.

        Raises:
          ValueError: the template refuses the conversation, or fails.
        """
        try:
            return self._template.render(**(self._variables | variables))
        except Exception as error:  # a template is a program and may fail in any way
            raise ValueError(f"the tokenizer's chat template refuses the conversation: {error}") from error


def without_marks(text: str) -> str:
    """Returns rendered text without the marks, as other libraries render it."""
    return re.sub(f"[{BEGIN}{END}]", "", text)


class _Generation(ext.Extension):
    tags: set[str] = {"generation"}  # noqa: RUF012 (Jinja declares it as a plain set)

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller) -> str:
        return BEGIN + caller() + END


def _raise(message: str):
    raise jinja2.TemplateError(message)
