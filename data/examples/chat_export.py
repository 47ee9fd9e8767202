"""A tokenizer that brings along the chat template that a model was tuned on, for other libraries to use.

They render a Jinja text and encode it as a whole, where special tokens are found by their names. That this makes the
tokens of data/examples/chat.py is checked here on a few conversations. Two differences stay. A name of a special token
that someone writes in a message is text here, and a token there (unless they are told to sanitize it). And where an
earlier answer begins with a line break, some tokenizers join it with the prompt's last one; here it stays apart, as the
model generated it.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as Backend

from data.batch import DataError
from data.examples.chat import Chat, own_templates
from data.tokens.hub import padded
from data.tokens.jinja_environment import DATE, Program, without_marks
from data.tokens.template_texts import literal, text
from data.tokens.tokenizer import Tokenizer

_ASKED, _SAID = {"role": "user", "content": " What?\n\nb "}, {"role": "assistant", "content": "It\n- is 4. \n"}
_SYSTEM = {"role": "system", "content": "Be brief.\n"}
_CONVERSATIONS = ([_ASKED], [_SYSTEM, _ASKED], [_ASKED, _SAID, _ASKED], [_SYSTEM, _ASKED, _SAID, _ASKED, _SAID, _ASKED])
_TODAY = re.compile(r"""strftime_now\(\s*(["'])((?:(?!\1)[^\\])*)\1\s*\)""")


def hand_on(tokenizer: Tokenizer, settings: Mapping[str, Any], encoder: bool) -> Tokenizer:
    """The tokenizer with the template as its own, and with all tokens that end an answer as ends of a text.

    Args:
      settings: the config's block data.chat, that a model was tuned with.
      encoder: an encoder reads the conversation, which then ends like any text it reads.

    Raises:
      DataError: other libraries would make other tokens of a conversation.
    """
    chat = Chat(tokenizer, settings)
    special = padded(tokenizer).special
    tokens = {role: token for role, token in special.tokenizer_config.items() if role.endswith("_token")}
    template = _template(chat, tokenizer, settings["system"], encoder)
    for role in ("bos_token", "eos_token"):
        if role in template and role not in tokens:  # nothing here, and an error there
            template = f"{{%- set {role} = '' %}}\n{template}"
    backend = Backend.from_str(tokenizer.to_json())
    backend.encode_special_tokens = False
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    # In the text of a conversation, only added tokens are found by their names.
    backend.add_special_tokens([name for name in chat.markers if name not in added])
    _check(chat, template, backend, tokens, [tokenizer.eot_id] * encoder)
    given = special.tokenizer_config.get("chat_template")
    named = _replaced(given, template) if chat.template == "tokenizer" else template
    ends = list(chat.ends)
    found = Tokenizer(
        backend,
        dataclasses.replace(
            special,
            config=special.config | {"eos_token_id": ends if len(ends) > 1 else ends[0]},
            tokenizer_config=special.tokenizer_config | {"chat_template": named},
        ),
    )
    found.published = tokenizer.published
    return found


def _template(chat: Chat, tokenizer: Tokenizer, system: str, encoder: bool) -> str:
    if chat.template == "tokenizer":
        # Training saw one date, on whichever day it was.
        found = _TODAY.sub(lambda call: literal(DATE.strftime(call[2])), own_templates(tokenizer)["default"])
        if re.search(r"strftime_now\s*\(", found):
            raise DataError(
                "The tokenizer's chat template makes a date with strftime_now in a way that can't be written as the "
                "date that training saw; put a date into the template of tokenizer_config.json in place of it."
            )
    else:
        found = text(chat.template, chat.text_ends)
    if system:
        # The line break goes with the block before it, so that the template begins at the start of a line.
        found = (
            "{%- if messages[0]['role'] != 'system' -%}{%- set messages = [{'role': 'system', 'content': "
            f"{literal(system)}}}] + messages -%}}{{%- endif %}}\n{found}"
        )
    if encoder:
        found += f"{{%- if add_generation_prompt -%}}{{{{- {literal(chat.text_ends.end)} -}}}}{{%- endif -%}}"
    return found


def _replaced(given: Any, template: str) -> Any:
    """The templates that a tokenizer brings along, with another default."""
    if isinstance(given, list):
        return [item | {"template": template} if item["name"] == "default" else item for item in given]
    return given | {"default": template} if isinstance(given, dict) else template


def _check(chat: Chat, template: str, backend: Backend, tokens: Mapping[str, str], after: list[int]) -> None:
    """Render and encode as transformers does.

    Args:
      tokens: what the template may use, by role ('bos_token').
      after: ids that an encoder reads behind a conversation.
    """
    program = Program(template, tokens)
    for messages in _CONVERSATIONS:
        try:
            wanted = chat.prompt(messages) + after
        except ValueError:  # the template refuses it, there as here
            continue
        try:
            rendered = without_marks(program(messages=messages, add_generation_prompt=True))
        except ValueError as error:
            raise DataError(f"The chat template {chat.template!r} can't be handed on: {error}.") from error
        found = backend.encode(rendered, add_special_tokens=False).ids
        if found != wanted:
            at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), len(wanted))
            raise DataError(
                f"The chat template {chat.template!r} can't be handed on with this tokenizer: other libraries encode a "
                f"conversation as one text, which gives other tokens from token {at} on ({found[at : at + 4]}, not "
                f"{wanted[at : at + 4]})."
            )
