"""Adds the chat template that a model was tuned on to its tokenizer, for other libraries to use.

Other libraries render the Jinja template to a text and encode it as a whole, which finds special tokens by their names.
This file checks on a few conversations that they get the tokens of data/examples/chat.py. Two differences remain. If a
user writes the name of a special token in a message, it is text here and a token there (unless they sanitize it). And
if an earlier answer begins with a line break, some tokenizers merge it with the prompt's last one; here it stays
separate, as the model generated it.
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
    """Returns the tokenizer with the template as its own, and with all tokens that end an answer as end tokens.

    Args:
      tokenizer: of the model.
      settings: the config's data.chat that the model was tuned with.
      encoder: an encoder reads the conversation, which then ends with the end token like any text it reads.

    Raises:
      DataError: other libraries would encode a conversation differently.
    """
    chat = Chat(tokenizer, settings)
    special = padded(tokenizer).special
    tokens = {role: token for role, token in special.tokenizer_config.items() if role.endswith("_token")}
    template = _template(chat, tokenizer, settings["system"], encoder)
    for role in ("bos_token", "eos_token"):
        if role in template and role not in tokens:  # undefined names are empty here, but an error there
            template = f"{{%- set {role} = '' %}}\n{template}"
    backend = Backend.from_str(tokenizer.to_json())
    backend.encode_special_tokens = False
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    # A tokenizer finds only added tokens by their names in a text.
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
        # Training used a fixed date, whatever the day was (data/tokens/jinja_environment.py).
        found = _TODAY.sub(lambda call: literal(DATE.strftime(call[2])), own_templates(tokenizer)["default"])
        if re.search(r"strftime_now\s*\(", found):
            raise DataError(
                "The tokenizer's chat template calls strftime_now in a way that can't be replaced by the date that "
                "training used; write a date into the template of tokenizer_config.json instead."
            )
    else:
        found = text(chat.template, chat.text_ends)
    if system:
        # The block before the line break removes it, so the template still begins at the start of a line.
        found = (
            "{%- if messages[0]['role'] != 'system' -%}{%- set messages = [{'role': 'system', 'content': "
            f"{literal(system)}}}] + messages -%}}{{%- endif %}}\n{found}"
        )
    if encoder:
        found += f"{{%- if add_generation_prompt -%}}{{{{- {literal(chat.text_ends.end)} -}}}}{{%- endif -%}}"
    return found


def _replaced(given: Any, template: str) -> Any:
    """Returns a tokenizer's own templates with another default."""
    if isinstance(given, list):
        return [item | {"template": template} if item["name"] == "default" else item for item in given]
    return given | {"default": template} if isinstance(given, dict) else template


def _check(chat: Chat, template: str, backend: Backend, tokens: Mapping[str, str], after: list[int]) -> None:
    """Renders and encodes a few conversations as transformers does, and compares the ids with those of `chat`.

    Args:
      chat: encodes conversations as in training.
      template: the Jinja template to export.
      backend: encodes rendered text as transformers does.
      tokens: special tokens that the template may use, by role ('bos_token').
      after: ids that an encoder reads after a conversation.

    Raises:
      DataError: the template can't be rendered, or gives other ids.
    """
    program = Program(template, tokens)
    for messages in _CONVERSATIONS:
        try:
            wanted = chat.prompt(messages) + after
        except ValueError:  # the template refuses this conversation, there as here
            continue
        try:
            rendered = without_marks(program(messages=messages, add_generation_prompt=True))
        except ValueError as error:
            raise DataError(f"The chat template {chat.template!r} can't be exported: {error}.") from error
        found = backend.encode(rendered, add_special_tokens=False).ids
        if found != wanted:
            at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), len(wanted))
            raise DataError(
                f"The chat template {chat.template!r} can't be exported with this tokenizer: other libraries encode a "
                f"conversation as one text, which gives different tokens from token {at} on ({found[at : at + 4]} "
                f"instead of {wanted[at : at + 4]})."
            )
