"""The templates of data/tokens/templates.py as Jinja text, for libraries that read the chat template of a tokenizer.

With `add_generation_prompt`, each text renders a conversation token for token as its function in
data/tokens/templates.py builds it; data/examples/chat_export.py checks that. The texts contain the names of tokens
instead of `bos_token` or `eos_token`, so that a tokenizer may give these roles to any of its tokens. `text` sets
`begin`, `end` and similar variables before the text.
"""

import json

from data.tokens.templates import ALPACA_INPUT, ALPACA_SYSTEM, QWEN_SYSTEM, Ends

_CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

_QWEN = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\n' + default_system + '<|im_end|>\\n' -}}
{%- endif -%}
"""

_SPLIT = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = default_system -%}{%- set turns = messages -%}
{%- endif -%}
"""

_LLAMA2 = """\
{%- for message in turns -%}
{%- if message['role'] == 'assistant' -%}
{{- ' ' + (message['content'] | trim) + ' </s>' -}}
{%- elif loop.first and system -%}
{{- '<s>[INST] <<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'].rstrip() + ' [/INST]' -}}
{%- else -%}
{{- '<s>[INST] ' + (message['content'] | trim) + ' [/INST]' -}}
{%- endif -%}
{%- endfor -%}"""

_LLAMA3 = """\
{{- '<|begin_of_text|>' -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + (message['content'] | trim) -}}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"""

_GEMMA = """\
{{- '<bos>' -}}
{%- for message in turns -%}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' -}}
{%- if loop.first and system -%}{{- system + '\\n\\n' -}}{%- endif -%}
{{- (message['content'] | trim) + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"""

# A message may have `input`, the end of its content that is not the instruction, as in records of Alpaca.
_ALPACA = """\
{%- set asked = messages | selectattr('role', 'equalto', 'user') | first -%}
{%- set default_system = with_input if asked['input'] else without_input -%}
"""
_ALPACA_TURNS = """\
{{- begin -}}
{%- if system -%}{{- system + '\\n\\n' -}}{%- endif -%}
{%- for message in turns -%}
{%- if message['role'] == 'assistant' -%}
{{- message['content'] + end + '\\n\\n' -}}
{%- elif message['input'] -%}
{%- set instruction = message['content'] -%}
{%- if instruction.endswith('\\n\\n' + message['input']) -%}
{%- set instruction = instruction[:(instruction | length) - (message['input'] | length) - 2] -%}
{%- endif -%}
{{- '### Instruction:\\n' + instruction + '\\n\\n### Input:\\n' + message['input'] + '\\n\\n### Response:' -}}
{%- else -%}
{{- '### Instruction:\\n' + message['content'] + '\\n\\n### Response:' -}}
{%- endif -%}
{%- endfor -%}"""

_PLAIN = """\
{{- begin -}}
{%- if system -%}{{- system + '\\n\\n' -}}{%- endif -%}
{%- for message in turns -%}
{{- message['content'] + (end if message['role'] == 'assistant' else '') -}}
{%- endfor -%}"""

_TEXTS = {
    "chatml": _CHATML,
    "qwen": _QWEN + _CHATML,
    "llama2": _SPLIT + _LLAMA2,
    "llama3": _LLAMA3,
    "gemma": _SPLIT + _GEMMA,
    "alpaca": _ALPACA + _SPLIT + _ALPACA_TURNS,
    "plain": _SPLIT + _PLAIN,
}


def text(name: str, ends: Ends) -> str:
    """Returns the template `name` of data/tokens/templates.py as Jinja text; `ends` begin and end some of them."""
    values = {
        "qwen": {"default_system": QWEN_SYSTEM},
        "llama2": {"default_system": ""},
        "gemma": {"default_system": ""},
        "alpaca": {"with_input": ALPACA_SYSTEM.format(ALPACA_INPUT), "without_input": ALPACA_SYSTEM.format("")}
        | {"begin": ends.begin or "", "end": ends.end},
        "plain": {"default_system": "", "begin": ends.begin or "", "end": ends.end},
    }.get(name, {})
    return "".join(f"{{%- set {field} = {literal(value)} -%}}\n" for field, value in values.items()) + _TEXTS[name]


def literal(value: str) -> str:
    """Returns a string as a Jinja literal."""
    return json.dumps(value, ensure_ascii=False)
