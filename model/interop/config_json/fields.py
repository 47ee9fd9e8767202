"""The fields of config.json: which ones a family reads, which do not change its scores, and which it must refuse.

transformers applies every field of a config, so a field that is ignored here would give a model that runs but is wrong.
Each family therefore has a table with a row for every field of its transformers config class, and a field in no row is
an error. Absent fields get transformers' defaults (5.24). tests/model/interop/config_json/test_fields.py compares the
tables with transformers' classes, and test_field_walk.py sets every field to another value.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


def names(text: str) -> frozenset[str]:
    """Returns field names from a text that separates them with spaces."""
    return frozenset(text.split())


class Known(NamedTuple):
    """One family's table."""

    read: Mapping[str, Any]  # fields that affect scores -> transformers' default
    only: Mapping[str, tuple] = {}  # fields of features that our model lacks -> the values that disable them
    neutral: frozenset[str] = frozenset()  # fields that never affect scores
    older: frozenset[str] = frozenset()  # read if present; transformers has dropped them, or derives them
    aliases: Mapping[str, str] = {}  # alternative field names -> names


# Fields that affect no family's scores. Class names and token ids are read elsewhere (launch/convert.py,
# data/tokens/hub.py), and so are the dtype and quantization_config (registry.py, quantized.py).
_NEUTRAL = names(
    # The file's origin.
    """_commit_hash _name_or_path architectures auto_map custom_pipelines dtype finetuning_task fp16 hub_model_id
    model_type name_or_path quantization_config task_specific_params tokenizer_class torch_dtype transformers_version
    transformers.js_config unsloth_fixed unsloth_version"""
    # How a program runs, and what it returns besides the scores.
    """ _attn_implementation _attn_implementation_autoset _experts_implementation attn_implementation
    cache_implementation chunk_size_feed_forward experts_implementation gradient_checkpointing output_attentions
    output_hidden_states output_past return_dict tie_last_hidden_states torchscript use_bfloat16 use_cache
    use_return_dict"""
    # Initialization of parameters that are not in the file.
    """ init_std initializer_factor initializer_range"""
    # Classes and special tokens.
    """ bos_token_id cls_token_id decoder_start_token_id eos_token_id id2label label2id mask_token_id num_labels
    pad_token_id prefix problem_type sep_token_id unk_token_id"""
    # Generation settings, which transformers reads from generation_config.json.
    """ assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty
    do_sample early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens
    min_length min_new_tokens no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups
    num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate
    suppress_tokens target_lookbehind temperature top_k top_p typical_p"""
)
# Features that none of our models has.
_ONLY: dict[str, tuple] = {
    "cross_attention_hidden_size": (None,),
    "partial_rotary_factor": (None, 1),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
    "tie_encoder_decoder": (False,),
}
# Features that no family's decoder has.
DECODER_ONLY = {"add_cross_attention": (False,), "is_causal": (True,), "is_encoder_decoder": (False,)}
# Fields for which null has a meaning, though their default is not null.
_NULLABLE = names(
    "attn_logit_softcapping final_logit_softcapping first_k_dense_replace n_group norm_topk_prob num_decoder_layers "
    "num_experts_per_tok num_key_value_heads q_lora_rank rope_interleave sliding_window topk_group topk_method"
)
# Sample values that give the type of fields whose default is null.
_SAMPLES: dict[str, float] = dict.fromkeys(
    names("head_dim n_inner num_key_value_heads word_embed_proj_dim num_decoder_layers"), 1
)
_SAMPLES |= dict.fromkeys(names("n_group topk_group num_experts_per_tok seq_length n_positions qk_head_dim"), 1)
_SAMPLES |= dict.fromkeys(names("encoder_sparse_step decoder_sparse_step sliding_window_pattern"), 1)
_SAMPLES |= dict(rope_theta=1.0, rope_local_base_freq=1.0, original_max_position_embeddings=1)
_SAMPLES |= dict.fromkeys(names("scale_decoder_outputs is_gated_act tie_word_embeddings"), True)
_MAY_BE_0 = names(
    "first_k_dense_replace max_window_layers n_shared_experts num_sparse_decoder_layers num_sparse_encoder_layers "
    "pad_token_id sliding_window"
)
# Our field names -> config.json's, for error messages of ModelConfig.
_OURS = {
    "embed_dim": ("hidden_size", "n_embd", "d_model"),
    "encoder_layers": ("num_layers",),
    "experts.count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "experts.groups": ("n_group",),
    "experts.groups_per_token": ("topk_group",),
    "experts.mlp_dim": ("moe_intermediate_size", "d_ff", "intermediate_size"),
    "experts.capacity": ("expert_capacity",),
    "experts.per_token": ("num_experts_per_tok",),
    "experts.scale": ("routed_scaling_factor",),
    "experts.shared_dim": ("shared_expert_intermediate_size", "n_shared_experts"),
    "head_dim": ("head_dim", "d_kv"),
    "latent.content_dim": ("qk_nope_head_dim",),
    "latent.kv_rank": ("kv_lora_rank",),
    "latent.query_rank": ("q_lora_rank",),
    "latent.rope_dim": ("qk_rope_head_dim",),
    "latent.value_dim": ("v_head_dim",),
    "max_length": ("max_position_embeddings", "n_positions"),
    "mlp_dim": ("intermediate_size", "ffn_dim", "d_ff", "n_inner"),
    "norm_epsilon": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    "num_heads": ("num_attention_heads", "n_head", "num_heads"),
    "num_kv_heads": ("num_key_value_heads",),
    "num_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "relative_buckets": ("relative_attention_num_buckets",),
    "relative_distance": ("relative_attention_max_distance",),
    "num_labels": ("num_labels",),
    "rope.attention_factor": ("rope_parameters",),
    "rope.factor": ("rope_parameters",),
    "rope.high_factor": ("rope_parameters",),
    "rope.low_factor": ("rope_parameters",),
    "rope.original_length": ("rope_parameters",),
    "rope.theta": ("rope_parameters",),
    "share_groups": ("num_hidden_groups",),
    "share_inner": ("inner_group_num",),
    "table_dim": ("embedding_size", "word_embed_proj_dim"),
    "token_types": ("type_vocab_size",),
    "window": ("sliding_window",),
}


class Given(Mapping):
    """The fields of one config.json, with transformers' defaults for absent ones.

    Args:
      values: the content of config.json.
      known: the family's table.

    Raises:
      ValueError: a field is in no row of the table, or has a value that its row does not allow; names the field.
    """

    def __init__(self, values: Mapping[str, Any], known: Known):
        self._known = known
        self._values = _under_one_name(values, known.aliases)
        self.asked: set[str] = set()  # fields that have been read; a test compares them with the table
        for field, value in self._values.items():
            self._check(field, value)

    def __getitem__(self, field: str) -> Any:
        self.asked.add(field)
        if field in self._values:
            return self._values[field]
        return self._known.read.get(field)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._known.read, **self._values})

    def __len__(self) -> int:
        return len({**self._known.read, **self._values})

    def in_their_words(self, message: str) -> str:
        """Returns a message of ModelConfig with config.json's field names."""

        def theirs(match):
            return next((name for name in _OURS.get(match[1], ()) if name in self._known.read), match[0])

        return re.sub(r"\b(?:model\.|(?=experts\.|latent\.))((?:(?:experts|latent|rope)\.)?\w+)", theirs, message)

    def _check(self, field: str, value: Any) -> None:
        only = self._known.only.get(field) or _ONLY.get(field)
        if only is not None:
            if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in only):
                choices = " or ".join(repr(choice) for choice in only)
                raise ValueError(f"{field} is {value!r}; only {choices} can be read")
        elif field in self._known.read or field in self._known.older:
            _check_type(field, value, self._known.read.get(field))
        elif field not in self._known.neutral and field not in _NEUTRAL and value not in (None, [], {}):
            raise ValueError(
                f"{field} is {value!r}; the field is not known here, so it may change the model's scores; if it does "
                "not, delete it from config.json"
            )


def _under_one_name(values: Mapping, aliases: Mapping[str, str]) -> dict:
    found = {field: value for field, value in values.items() if field not in aliases}
    for alias, field in aliases.items():
        if alias in values and found.setdefault(field, values[alias]) != values[alias]:
            raise ValueError(f"{alias} is {values[alias]!r}, but {field} is {found[field]!r}; they must be equal")
    return found


def _check_type(field: str, value: Any, default: Any) -> None:
    sample = _SAMPLES.get(field) if default is None else default
    if value is None and (default is None or field in _NULLABLE):
        return
    wrong = None
    if isinstance(sample, bool):
        wrong = None if isinstance(value, bool) else "true or false"
    elif isinstance(sample, int):
        least = 0 if field in _MAY_BE_0 else 1
        right = isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31
        wrong = None if right else f"an integer of at least {least}, and less than 2^31"
    elif isinstance(sample, float):
        right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        wrong = None if right else "a number of at least 0"
    elif isinstance(sample, str):
        wrong = None if isinstance(value, str) else "a string"
    if wrong:
        raise ValueError(f"{field} is {value!r}; it must be {wrong}")
