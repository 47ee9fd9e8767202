"""Parts of ModelConfig with fields of their own: Rope, Latent, Experts. They check themselves."""

import dataclasses

from model import ranges

# Allowed ranges of numeric fields (syntax: ranges.py), by the part's field name in ModelConfig.
RANGES = {
    "rope": {
        **dict.fromkeys(("theta", "factor", "low_factor", "high_factor", "beta_fast", "beta_slow"), "float (0, inf)"),
        "attention_factor": "float (0, inf)",
        "local_theta": "float [0, inf)",
        "original_length": "int [0, inf)",
    },
    "latent": {
        **dict.fromkeys(("kv_rank", "content_dim", "value_dim"), "int [1, inf)"),
        "rope_dim": "int [2, inf)",
        "query_rank": "int [0, inf)",
    },
    "experts": {
        **dict.fromkeys(("count", "per_token", "mlp_dim", "groups", "groups_per_token"), "int [1, inf)"),
        **dict.fromkeys(("shared_dim", "capacity"), "int [0, inf)"),
        **dict.fromkeys(("capacity_factor", "buffer"), "float [0, inf)"),
        "scale": "float (0, inf)",
    },
}


def _check(part, name: str) -> None:
    for field, interval in RANGES[name].items():
        ranges.check(getattr(part, field), interval, f"model.{name}.{field}")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions (arXiv:2104.09864) and how their angles are rescaled for longer contexts.

    Raises:
      ValueError: a field has an impossible value; the message names the field.
    """

    theta: float = 10_000.0
    local_theta: float = 0.0  # for layers with a sliding window, never rescaled (Gemma 3); 0: same as theta
    scaling: str = "none"  # none, linear (arXiv:2306.15595), llama3 (arXiv:2407.21783), yarn (arXiv:2309.00071)
    factor: float = 1.0
    original_length: int = 0  # context length before rescaling; llama3 and yarn need it
    # llama3: divide frequencies with wavelengths above original_length / low_factor by `factor`.
    low_factor: float = 1.0
    high_factor: float = 4.0  # llama3: keep wavelengths below original_length / high_factor
    beta_fast: float = 32.0  # yarn: keep frequencies that rotate more often over the original context
    beta_slow: float = 1.0  # yarn: divide frequencies that rotate less often by `factor`
    attention_factor: float = 1.0  # yarn: multiplies cosines and sines
    interleaved: bool = False  # rotate feature pairs (2i, 2i + 1) (DeepSeek) instead of (i, i + head_dim / 2)

    def __post_init__(self):
        _check(self, "rope")
        scalings = ("none", "linear", "llama3", "yarn")
        if self.scaling not in scalings:
            raise ValueError(f"model.rope.scaling is {self.scaling!r}; choose from {', '.join(scalings)}")
        if self.scaling in ("llama3", "yarn") and self.original_length < 1:
            raise ValueError(f"model.rope.original_length must be set for the scaling {self.scaling!r}")
        if self.scaling == "llama3" and self.low_factor >= self.high_factor:
            raise ValueError(
                f"model.rope.low_factor is {self.low_factor}; it must be smaller than model.rope.high_factor, which is "
                f"{self.high_factor}"
            )


@dataclasses.dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Each head's query and key has content features without position, computed from the token's latent vector, and rotary
    features. All heads share the rotary key.

    Raises:
      ValueError: a field has an impossible value; the message names the field.
    """

    kv_rank: int  # width of the latent vector that keys and values come from; a cache stores this vector
    content_dim: int  # features without position in a head's query and key
    rope_dim: int  # rotary features in a head's query and key
    value_dim: int  # features of a head's value
    query_rank: int = 0  # width of the latent vector of queries; 0: project queries directly from the residual stream

    def __post_init__(self):
        _check(self, "latent")
        if self.rope_dim % 2:
            raise ValueError(f"model.latent.rope_dim {self.rope_dim} is odd; rotary positions rotate pairs of features")


@dataclasses.dataclass(frozen=True)
class Experts:
    """A feed-forward as a mixture of experts; activation, gating and initialization are the ModelConfig's.

    Every token goes to `per_token` of `count` experts, whatever their load. If a capacity is set, an expert accepts
    only that many tokens of a row and drops later ones (Switch Transformer, arXiv:2101.03961). Padding uses no capacity
    (it does in transformers' Switch).

    Raises:
      ValueError: a field has an impossible value; the message names the field.
    """

    count: int
    per_token: int
    mlp_dim: int  # hidden size of one expert
    shared_dim: int = 0  # hidden size of the shared expert(s), which every token uses (arXiv:2401.06066); 0: none
    shared_gate: bool = False  # a sigmoid gate, computed from the token, scales the shared expert's output (Qwen2-MoE)
    score: str = "softmax"  # of the router's logits; sigmoid scores each expert independently (DeepSeek-V3)
    normalize: bool = True  # divide the weights of a token's experts by their sum
    scale: float = 1.0  # multiplies the weights after normalization
    # A token may only choose experts of its best `groups_per_token` groups. A group's score is that of its best expert
    # (max: DeepSeek-V2, arXiv:2405.04434) or the sum of its best two (top2: DeepSeek-V3, arXiv:2412.19437).
    groups: int = 1
    groups_per_token: int = 1
    group_score: str = "max"
    correction: bool = False  # a load-balancing bias that affects the choice but not the weights (arXiv:2408.15664)
    capacity: int = 0  # tokens of a row that an expert accepts; 0: use capacity_factor
    capacity_factor: float = 0.0  # capacity as a multiple of the mean load; 0 and no capacity: drop nothing
    # Receive buffer for tokens sent to the experts of a device on the mesh axis `expert`, as a multiple of an even
    # share. Tokens that do not fit are dropped. 0: room for all tokens, which needs a lot of memory.
    buffer: float = 0.0

    def __post_init__(self):
        _check(self, "experts")
        for name, choices in dict(score=("softmax", "sigmoid"), group_score=("max", "top2")).items():
            if getattr(self, name) not in choices:
                raise ValueError(f"model.experts.{name} is {getattr(self, name)!r}; choose from {', '.join(choices)}")
        if self.count % self.groups:
            raise ValueError(f"model.experts.count {self.count} is not a multiple of experts.groups {self.groups}")
        if self.groups_per_token > self.groups:
            raise ValueError(
                f"model.experts.groups_per_token {self.groups_per_token} must lie in [1, groups {self.groups}]"
            )
        size = self.count // self.groups
        if self.per_token > self.groups_per_token * size:
            raise ValueError(
                f"model.experts.per_token {self.per_token} is more than the {self.groups_per_token * size} experts "
                "that a token can choose from (model.experts.groups_per_token * model.experts.count / "
                "model.experts.groups)"
            )
        if self.per_token == 1 and self.normalize:
            raise ValueError(
                "model.experts.per_token is 1 and model.experts.normalize would make the weight of the only expert 1: "
                "the router would never learn; set model.experts.normalize to False"
            )
        if self.groups > 1 and self.group_score == "top2" and size < 2:
            raise ValueError(f"model.experts.group_score top2 needs groups of two or more experts; they have {size}")
        if self.shared_gate and not self.shared_dim:
            raise ValueError("model.experts.shared_gate needs a shared expert: set model.experts.shared_dim")
        if self.capacity and self.capacity_factor:
            raise ValueError("set model.experts.capacity_factor or model.experts.capacity, not both")
