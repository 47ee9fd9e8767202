"""Makes the table of supported families in model/README.md from the tables of the code.

    python -m tests.support     # writes the table between the two comments that mark its place

This file is in tests/ because it needs configs, which no package of the product imports.
"""

from collections import defaultdict
from pathlib import Path

from configs.sizes import SIZES
from model.config import ModelConfig
from model.interop.registry import FAMILIES, family_of
from tests.configs.published import CONFIGS
from train.objectives.language import CORRUPTION

README = Path(__file__).resolve().parents[1] / "model" / "README.md"
MARKS = ("<!-- python -m tests.support -->", "<!-- end of what it writes -->")
NAMES = {
    "gpt2": "GPT-2, GPT-3",
    "opt": "OPT",
    "bloom": "BLOOM",
    "llama": "LLaMA 1, 2, 3",
    "mistral": "Mistral",
    "phi3": "Phi-3, Phi-4",
    "mixtral": "Mixtral",
    "qwen2": "Qwen2",
    "qwen2_moe": "Qwen2-MoE",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3-MoE",
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "deepseek_v2": "DeepSeek-V2",
    "deepseek_v3": "DeepSeek-V3",
    "bert": "BERT",
    "roberta": "RoBERTa",
    "albert": "ALBERT",
    "t5": "T5, T5 1.1",
    "switch_transformers": "Switch",
}
TITLES = {"decoder": "Decoders", "encoder": "Encoders", "encoder_decoder": "Encoder-decoders"}
TARGETS = {"none": "next tokens", "masked": "masked tokens", "spans": "spans taken out"}


def _position(c: ModelConfig) -> tuple[str, ...]:
    scaling = c.rope.scaling if c.position == "rotary" else "none"
    return "ALiBi" if c.position == "alibi" else c.position, "" if scaling == "none" else f"{scaling} scaling"


def _norm(c: ModelConfig) -> tuple[str, ...]:
    place = {"both": "before and after"}.get(c.norm_position, c.norm_position)
    return {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[c.norm], place


def _attention(c: ModelConfig) -> tuple[str, ...]:
    heads = "multi-head" if c.num_heads == c.num_kv_heads else "multi-query" if c.num_kv_heads == 1 else "grouped"
    local, cycle = c.attention_pattern.count("local"), len(c.attention_pattern)
    window = {0: "", cycle: "window"}.get(local, f"window in {local} of {cycle}")
    return "latent" if c.latent else heads, window, c.qk_norm * "q/k norm", (c.attention_softcap > 0) * "soft cap"


def _feed_forward(c: ModelConfig) -> tuple[str, ...]:
    activation = {"silu": "SiLU", "gelu": "GELU", "gelu_tanh": "tanh GELU", "relu": "ReLU"}[c.activation]
    experts = f"{c.experts.per_token} of {c.experts.count} experts" if c.experts else ""
    shared = "shared expert" if c.experts and c.experts.shared_dim else ""
    return c.gated * "gated " + activation, experts, shared, (c.share_groups > 0) * "one layer for all"


def _output(c: ModelConfig) -> tuple[str, ...]:
    return ("tied" if c.tied else "own",)


COLUMNS = {"position": _position, "norm": _norm, "attention": _attention, "feed-forward": _feed_forward}
COLUMNS["output"] = _output


def _cell(column, configs: list[ModelConfig]) -> str:
    """Returns the text of a column for a family; where its sizes differ, the text has all the values."""
    found = []
    for values in zip(*map(column, configs), strict=True):
        if text := _either(list(dict.fromkeys(filter(None, values)))):
            found.append(text + " in some" if "" in values else text)
    return ", ".join(found)


def _either(values: list[str]) -> str:
    """Joins values: `2 of 8 experts`, `2 of 16 experts` -> `2 of 8 or 2 of 16 experts`; three or more give a range."""
    noun = " " + values[-1].split()[-1] if values else ""
    if len(values) < 2 or not all(value.endswith(noun) for value in values):
        return " or ".join(values)
    return f"{values[0].removesuffix(noun)} {'or' if len(values) == 2 else 'to'} {values[-1]}"


def _names(sizes: list[str]) -> str:
    """Returns the names in code style: a, b_1, b_2 -> `a` `b_{1,2}`."""
    groups = defaultdict(list)
    for stem, line, end in (size.partition("_") for size in sizes):
        groups[stem + line].append(end)
    return " ".join(
        f"`{stem}{{{','.join(ends)}}}`" if len(ends) > 1 else f"`{stem}{ends[0]}`" for stem, ends in groups.items()
    )


def table() -> str:
    families = defaultdict(dict)
    for name, fields in SIZES.items():
        if fields["vocab_size"]:  # sizes without a vocabulary are our own, for small machines
            config = ModelConfig(**fields)
            family = CONFIGS[name]["model_type"] if name in CONFIGS else family_of(config)
            families[family][name] = config
    lacking = (FAMILIES.keys() | NAMES.keys()) - (families.keys() & NAMES.keys())
    assert not lacking, f"no size in configs/sizes/ or no name in NAMES for: {', '.join(sorted(lacking))}"
    lines = [f"| | {' | '.join(COLUMNS)} | sizes |", "|" + "---|" * (len(COLUMNS) + 2)]
    for architecture, title in TITLES.items():
        members = [family for family in NAMES if next(iter(families[family].values())).architecture == architecture]
        heading = f"**{title}**, trained on {TARGETS[CORRUPTION[architecture]]}"
        lines += [f"| {heading} |" + " |" * (len(COLUMNS) + 1)] if members else []
        for family in members:
            cells = [_cell(column, list(families[family].values())) for column in COLUMNS.values()]
            lines.append(f"| {' | '.join([NAMES[family], *cells, _names(list(families[family]))])} |")
    return "\n".join(lines)


def parts(text: str) -> list[str]:
    """Returns the parts of a README before, between and after the marks."""
    before, _, rest = text.partition(MARKS[0] + "\n")
    between, _, after = rest.partition(MARKS[1])
    return [before, between.strip(), after]


if __name__ == "__main__":
    before, _, after = parts(README.read_text())
    README.write_text(f"{before}{MARKS[0]}\n\n{table()}\n\n{MARKS[1]}{after}")
