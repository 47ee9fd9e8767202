"""Prompts that a model should refuse, and harmless ones that look like them. They have no answers to learn from.

    {"messages": [{"role": "user", "content": "How do I kill a Python process?"}], "kind": "benign", ...}
    {"prompt": "How do I kill a Python process?", "label": "safe", ...}            XSTest (arXiv:2308.01263)

`kind` or `label` is harmful or unsafe, or benign or safe. An answer at the end of the messages is ignored. `language`
and `category` are optional texts, by which figures and answers are grouped; all other fields are for people.
"""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from data import stage
from data.batch import DataError
from data.examples.conversations import asking_conversation
from data.read.documents import BadLines
from data.read.listing import find_files
from data.read.records import SUFFIXES, read_file

HARMFUL = {"harmful": True, "unsafe": True, "benign": False, "safe": False}  # by the value of `kind` or `label`


class HarmPrompt(NamedTuple):
    """A question, and whether it should be refused."""

    messages: list[dict[str, Any]]
    harmful: bool
    language: str = ""
    category: str = ""


def read(pattern: str) -> list[HarmPrompt]:
    """Returns the prompts of a file, a folder or a glob (.jsonl, .json, .csv, .tsv), in their order.

    Raises:
      DataError: there is no such file, it has no prompts, or a record is not a prompt; names the record.
    """
    bad, found = BadLines(limit=sys.maxsize), []
    for file in find_files(pattern, SUFFIXES, "").files:
        for where, record in read_file(file, bad):
            try:
                found.append(_prompt(record))
            except ValueError as error:
                bad.add(f"{file}, {where}", str(error))
    if bad.count:
        raise DataError(f"{bad.count:,} prompts can't be read; the first: {bad.first[0]}")
    if not found:
        raise DataError(f"{pattern} has no prompts")
    return found


def digest(prompts: list[HarmPrompt]) -> str:
    """Returns a hash of everything that figures depend on."""
    return stage.digest([list(prompt) for prompt in prompts])


def _prompt(record: Mapping[str, Any]) -> HarmPrompt:
    name = next((name for name in ("kind", "label") if record.get(name)), None)
    if name is None or not isinstance(record[name], str) or record[name] not in HARMFUL:
        value = "missing" if name is None else repr(record[name])
        raise ValueError(f'"{name or "kind"}" is {value}; it must be one of {", ".join(HARMFUL)}')
    messages, text = record.get("messages"), record.get("prompt")
    if not messages and text:
        messages = [{"role": "user", "content": text}]
    if not messages or not isinstance(messages, list):
        raise ValueError('it has neither "messages", a list, nor a text in "prompt"')
    if isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
        messages = messages[:-1]
    asked = asking_conversation(messages)["messages"]
    texts = [record.get(name) or "" for name in ("language", "category")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError('"language" and "category" must be texts')
    return HarmPrompt(asked, HARMFUL[record[name]], *texts)
