"""adapter_config.json of Hugging Face's peft (0.21): which modules have a low-rank adapter, of which rank and scale."""

import collections
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from model.adapt.lora import Lora
from model.config import ModelConfig
from model.interop.files.folder import Folder
from model.interop.files.tensorfile import CheckpointFolderError

NAME = "adapter_config.json"
# Fields that change the function of the two factors, or adapt weights other than linear layers'.
_ABSENT: tuple[str, ...] = ("use_dora", "lora_bias", "layers_to_transform", "layer_replication")
_ABSENT += ("trainable_token_indices",)
_ABSENT += ("target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config")
_ABSENT += ("monteclora_config", "velora_config", "lora_ga_config", "corda_config", "loftq_config", "layers_pattern")
_ABSENT += ("ensure_weight_tying",)
# Fields that do not change a trained adapter: its origin, its initialization, how peft runs it.
_NEUTRAL: tuple[str, ...] = ("auto_mapping", "peft_version", "base_model_name_or_path", "revision")
_NEUTRAL += ("inference_mode", "eva_config")
_NEUTRAL += ("fan_in_fan_out", "megatron_config", "megatron_core", "qalora_group_size", "runtime_config")
_READ = ("peft_type", "task_type", "bias", "init_lora_weights")
# Values of init_lora_weights. With the others, training starts from changed base weights, which the factors belong to.
_INITIAL = (True, False, "gaussian", "eva", "orthogonal")
_TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "none": "FEATURE_EXTRACTION"}  # by head
_WRITERS = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}  # for other heads, by architecture


class Given(NamedTuple):
    """The content of a file. Modules have their names in the model, 'model.layers.0.self_attn.q_proj'."""

    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    target_modules: list[str] | str
    exclude_modules: list[str] | str
    modules_to_save: list[str]
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]

    def targets(self, module: str) -> bool:
        """Returns whether a module has an adapter."""
        if self.saves(module) or _among(self.exclude_modules, module):
            return False
        return _among(self.target_modules, module)

    def saves(self, module: str) -> bool:
        """Returns whether a module trained without an adapter, and is stored whole."""
        parts = module.split(".")
        above = (".".join(parts[: i + 1]) for i in range(len(parts)))
        return any(name.endswith(saved) for name in above for saved in self.modules_to_save)

    def rank(self, module: str) -> int:
        """Returns the rank of a module's adapter."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """Returns the scale of a module's adapter."""
        rank = self.rank(module)
        return _by_pattern(self.alpha_pattern, module, self.lora_alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def settings(self, modules: Iterable[str], targets: Iterable[str]) -> Lora:
        """Returns the settings of one adapter for all these modules: the largest rank, the most common scale.

        Args:
          targets: patterns of our weights.
        """
        modules = list(modules)
        rank, scale = max(map(self.rank, modules)), _commonest(map(self.scale, modules))
        return Lora(
            rank=rank,
            alpha=float(_rounded(scale * (math.sqrt(rank) if self.use_rslora else rank))),
            dropout=float(self.lora_dropout),
            rank_stabilized=self.use_rslora,
            targets=(*((target, True) for target in targets), (".*", False)),
        )


def read(folder: Folder, model: ModelConfig) -> Given:
    """Reads adapter_config.json.

    Args:
      model: the config of the base.

    Raises:
      CheckpointFolderError: the adapter is of another kind or for another head, or a value can't be read.
    """
    given, file = folder.config(NAME), folder.path / NAME

    def only(field, allowed):
        if field in given and given[field] not in allowed:
            raise CheckpointFolderError(
                f"{file}: {field} is {given[field]!r}; only adapters where it is {' or '.join(map(repr, allowed))} can "
                "be read (peft's merge_and_unload converts any to a plain checkpoint)"
            )

    only("peft_type", ("LORA",))
    only("bias", ("none",))
    only("init_lora_weights", _INITIAL)
    for field in _ABSENT:
        if not (given.get(field) is None or given[field] is False or given[field] in ([], {})):
            only(field, (None,))
    for field, value in given.items():
        if field not in (*_ABSENT, *_NEUTRAL, *_READ, *Given._fields) and value not in (None, [], {}):
            raise CheckpointFolderError(
                f"{file}: {field} is {value!r}; the field is not known here, so it may change what the adapter does; "
                "if it does not, delete it"
            )
    if not isinstance(given.get("use_rslora", False), bool | None):
        raise CheckpointFolderError(f"{file}: use_rslora is {given['use_rslora']!r}; it must be true or false")
    head = {"SEQ_CLS": "sequence", "TOKEN_CLS": "token"}.get(str(given.get("task_type")), model.head)
    if head != model.head:
        raise CheckpointFolderError(
            f"{file}: task_type {given['task_type']} is for a model with the head {head}, but the base has the head "
            f"{model.head}; import the base from a checkpoint with that head"
        )
    try:
        found = Given(
            r=given["r"],
            lora_alpha=given["lora_alpha"],
            lora_dropout=given.get("lora_dropout") or 0.0,
            use_rslora=bool(given.get("use_rslora")),
            target_modules=given["target_modules"] or [],
            exclude_modules=given.get("exclude_modules") or [],
            modules_to_save=given.get("modules_to_save") or [],
            rank_pattern=given.get("rank_pattern") or {},
            alpha_pattern=given.get("alpha_pattern") or {},
        )
        ranks, alphas = [found.r, *found.rank_pattern.values()], [found.lora_alpha, *found.alpha_pattern.values()]
        if not all(type(rank) is int and rank > 0 for rank in ranks):
            raise ValueError(f"ranks are {ranks}; they must be whole numbers of at least 1")
        if not all(
            isinstance(alpha, int | float) and not isinstance(alpha, bool) and math.isfinite(alpha) for alpha in alphas
        ):
            raise ValueError(f"alphas are {alphas}; they must be finite numbers")
        found.targets("")  # raises for an invalid pattern
        found.settings([""], ())
        return found
    except KeyError as error:
        raise CheckpointFolderError(f"{file} has no {error}") from error
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise CheckpointFolderError(f"{file}: {error}") from error


def base_name(folder: Folder) -> str | None:
    """Returns the name of the adapter's base model; None if the file lacks it."""
    name = folder.config(NAME).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def describe(
    model: ModelConfig,
    ranks: Mapping[str, int],
    scales: Mapping[str, float],
    names: Iterable[str],
    saved: list[str],
    **values,
) -> dict[str, Any]:
    """Returns the content of adapter_config.json.

    Args:
      ranks, scales: of every adapted module.
      names: all modules of the model.
      saved: modules that are stored whole.
      values: additional fields.
    """
    rank = _commonest(ranks.values())
    alphas = {module: _rounded(scales[module] * ranks[module]) for module in ranks}
    alpha = _commonest(alphas.values())
    last = lambda module: module.rsplit(".", 1)[-1]
    short = {last(module) for module in ranks}
    enough = not any(last(module) in short and module not in ranks and module not in saved for module in names)
    return {
        "peft_type": "LORA",
        "task_type": _TASKS.get(model.head, _WRITERS.get(model.architecture)),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: own for module, own in ranks.items() if own != rank},
        "alpha_pattern": {module: own for module, own in alphas.items() if own != alpha},
        "target_modules": sorted(short if enough else ranks),
        "modules_to_save": saved or None,
        "bias": "none",
        "inference_mode": True,
        **values,
    }


def _among(wanted: list[str] | str, module: str) -> bool:
    """Matches as peft does: against a list of names or suffixes of names, or one regular expression."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == end or module.endswith(f".{end}") for end in wanted)


def _by_pattern(patterns: Mapping, module: str, default):
    """Returns the value of the first pattern that matches the end of a module's name, else the default."""
    fits = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(fits, default)


def _commonest(values: Iterable):
    return collections.Counter(values).most_common(1)[0][0]


def _rounded(value: float) -> float:
    """Removes rounding errors of alpha = (alpha / rank) * rank."""
    return round(value) if math.isclose(value, round(value), rel_tol=1e-12) else value
