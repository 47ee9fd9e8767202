"""Sets every field of every family's config class, one at a time, to another legal value.

The logits must then equal transformers', or the error must name the field. An ordinary run covers one family of each
kind; `pytest tests/model/interop/config_json/test_field_walk.py --all-families` covers all of them. transformers writes
the checkpoint itself, so a field that changes shapes changes them in the file too.
"""

import copy
import dataclasses
import json
import tempfile
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from model import architectures
from model.interop import registry
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError
from tests.model.interop import hub
from tests.model.interop.tables.test_families import TOLERANCE

_ENCODER = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
_ENCODER |= dict(max_position_embeddings=64, layer_norm_eps=0.01)
_WINDOW = dict(use_sliding_window=True, sliding_window=5, max_window_layers=2)


def _with(checkpoint: tuple, **values) -> tuple:
    return checkpoint[0], checkpoint[1] | values


# The smallest config of each family in which as many fields as possible make a difference.
WALKED = {
    "gpt2": hub.CHECKPOINTS["gpt2"],
    "llama": hub.CHECKPOINTS["llama"],
    "qwen2_moe": _with(hub.CHECKPOINTS["qwen2 experts"], **_WINDOW),
    "gemma3_text": hub.CHECKPOINTS["gemma3"],
    "deepseek_v3": hub.CHECKPOINTS["deepseek3"],
    "bert": (transformers.BertConfig, _ENCODER),
    "t5": hub.ENCODER_DECODERS["t5"],
    "mistral": hub.CHECKPOINTS["mistral"],
    "phi3": hub.CHECKPOINTS["phi3"],
    "opt": hub.CHECKPOINTS["opt"],
    "bloom": hub.CHECKPOINTS["bloom"],
    "qwen2": hub.CHECKPOINTS["qwen2"],
    "qwen3": _with(hub.CHECKPOINTS["qwen3"], **_WINDOW),
    "mixtral": hub.CHECKPOINTS["mixtral"],
    "qwen3_moe": _with(hub.CHECKPOINTS["qwen3 experts"], use_sliding_window=True, sliding_window=5),
    "gemma": hub.CHECKPOINTS["gemma"],
    "gemma2": hub.CHECKPOINTS["gemma2"],
    "deepseek_v2": hub.CHECKPOINTS["deepseek2 groups"],
    "roberta": (transformers.RobertaConfig, _ENCODER | dict(pad_token_id=1)),
    "albert": (transformers.AlbertConfig, _ENCODER | dict(embedding_size=16, num_hidden_groups=3)),
    "switch_transformers": hub.ENCODER_DECODERS["switch"],
}
ORDINARY = ("gpt2", "llama", "qwen2_moe", "gemma3_text", "deepseek_v3", "bert", "t5")

_YARN = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=16)
# Alternative values of fields for which none can be derived from the default.
VALUES = {
    "activation_function": ["relu", "gelu", "gelu_fast", "quick_gelu"],
    "hidden_act": ["relu", "gelu", "gelu_pytorch_tanh", "tanh"],
    "hidden_activation": ["relu", "gelu", "mish"],
    "dense_act_fn": ["gelu_new", "silu"],
    "feed_forward_proj": ["gated-gelu", "gated-silu", "silu", "gelu"],
    "layer_types": [["full_attention", "sliding_attention", "full_attention"]],
    "mlp_only_layers": [[0], [1, 2]],
    "num_key_value_heads": [4, 2, None],
    "num_attention_heads": [2, 8],
    "num_heads": [2, 8],
    "n_head": [2, 8, 3],
    "head_dim": [8, 24],
    "rope_parameters": [_YARN, dict(rope_type="linear", factor=2.0), dict(rope_type="dynamic", factor=2.0)],
    "router_dtype": ["bfloat16"],
    "topk_method": ["greedy", "group_limited_greedy"],
    "dtype": ["bfloat16"],
    "id2label": [{0: "a", 1: "b", 2: "c"}],
    "label2id": [{"a": 0, "b": 1}],
    "problem_type": ["regression"],
    "architectures": [["SomethingElse"]],
    "sliding_window": [3, None],
    "n_group": [2, 1, None],
    "topk_group": [1],
    "q_lora_rank": [12, None],
    "embedding_size": [8],
    "word_embed_proj_dim": [16],
    "num_hidden_groups": [1],
    "inner_group_num": [2],
    "summary_type": ["last"],
    "summary_activation": ["tanh"],
    "classifier_dropout": [0.3],
    "position_embedding_type": ["relative_key"],
}
# Fields that no class declares, but that its code or common code reads.
UNDECLARED = {
    "is_causal": [False],
    "partial_rotary_factor": [0.5],
    "rope_theta": [50.0],
    "rope_scaling": [dict(rope_type="linear", factor=2.0)],
    "per_layer_config": [{"1": {"intermediate_size": 16}}],
    "attention_chunk_size": [4],
    # In DeepSeek, it sharpens attention with every kind of scaling.
    "rope_parameters": [dict(rope_type="linear", rope_theta=50.0, factor=4.0, mscale_all_dim=1.0)],
    "scale_decoder_outputs": [False],
    "is_gated_act": [True],
    "tie_encoder_decoder": [True],
}


def others(field: str, value) -> list:
    """Returns other legal values of a field."""
    if field in VALUES:
        return [other for other in VALUES[field] if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [2 * value or 1]
    if isinstance(value, float):
        return [2.5 * value + 0.25]
    return []


def walks(name: str) -> list[tuple]:
    kind, values = WALKED[name]
    base = kind(**values)
    found = []
    for field in dataclasses.fields(kind):
        if field.init and field.name not in ("transformers_version", "output_hidden_states", "return_dict"):
            found += [(field.name, value) for value in others(field.name, getattr(base, field.name))]
    undeclared = {field: value for field, value in UNDECLARED.items() if "rope" not in field or _turned(kind)}
    return found + [(field, value) for field, values in undeclared.items() for value in values]


def _turned(kind) -> bool:
    return "rope_parameters" in {field.name for field in dataclasses.fields(kind)}


def made(name: str, change: dict):
    """Returns (transformers' model, its folder), or None if it can't make the model.

    Parameters of the same name and shape have the same random values.
    """
    kind, values = WALKED[name]
    own = copy.deepcopy(values | change)  # transformers writes into what it is given
    auto = transformers.AutoModelForCausalLM
    auto = transformers.AutoModelForMaskedLM if name in ("bert", "roberta", "albert") else auto
    auto = transformers.AutoModelForSeq2SeqLM if name in ("t5", "switch_transformers") else auto
    try:
        model = auto.from_config(kind(**own, attn_implementation="eager"), dtype=torch.float32).eval()
        with torch.no_grad():
            trained = [(path, b) for path, b in model.named_buffers() if path.endswith("e_score_correction_bias")]
            for path, tensor in (*model.named_parameters(), *trained):
                generator = torch.Generator().manual_seed(zlib.crc32(path.encode()))
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
        model.save_pretrained(folder)
        return model, folder
    except Exception:  # transformers refuses illegal values with many kinds of exceptions
        return None


TOKENS = np.random.default_rng(0).integers(3, 30, (1, 14))


def theirs(name: str, model) -> np.ndarray | None:
    tokens = torch.tensor(TOKENS)
    second = dict(decoder_input_ids=tokens) if name in ("t5", "switch_transformers") else {}
    try:
        with torch.no_grad():
            return model(tokens, **second).logits.float().numpy()
    except Exception:  # the model can be made with this value, but not run
        return None


def ours(name: str, folder) -> np.ndarray:
    family, config = registry.read_config(Folder(folder))
    # Leave out fields that change no program, so that most fields need no compilation.
    config = dataclasses.replace(config, dtype="float32", param_dtype="float32", init_std=0.02, num_labels=2)
    model = registry.read(Folder(folder), family, jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))
    tokens = TOKENS.astype(np.int32)
    if config.architecture == "encoder_decoder":
        whole = np.ones_like(tokens), np.arange(14, dtype=np.int32)[None]
        return np.asarray(_logits(model, tokens, *whole, source=architectures.Source(tokens, *whole)))
    return np.asarray(_logits(model, tokens))


_logits = jax.jit(lambda model, *rows, **source: model.logits(*rows, **source))


@pytest.mark.parametrize("name", hub.each(WALKED))
def test_a_walk_through_all_fields(name, request):
    if name not in ORDINARY and not request.config.getoption("--all-families"):
        pytest.skip("this family runs only with --all-families")
    wrong, walked, refused = [], 0, set()
    for field, value in walks(name):
        if (found := made(name, {field: value})) is None or (wanted := theirs(name, found[0])) is None:
            continue
        folder = found[1]
        given = json.loads((folder / "config.json").read_text())
        if field in UNDECLARED or given.get(field, value) != value:  # as a user would write it
            (folder / "config.json").write_text(json.dumps(given | {field: value}))
        walked += 1
        try:
            difference = np.abs(ours(name, folder) - wanted).max()
        except CheckpointFolderError as error:
            refused.add(field)
            if field not in str(error):
                wrong.append(f"{field}={value!r} is refused without its name: {error}")
            continue
        if not difference < TOLERANCE["atol"]:
            wrong.append(f"{field}={value!r} moves the logits by {difference:.3g}")
    print(f"{name}: {walked} values, refused: {', '.join(sorted(refused))}")
    jax.clear_caches()  # the next family needs none of these programs
    assert not wrong, "\n".join(wrong)
    assert walked > 15
