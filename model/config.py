"""ModelConfig: the architecture as data. It checks itself, and counts its parameters and FLOPs.

What it leaves out: published sizes (configs/sizes.py) and everything about training (configs/*.py).
"""

import dataclasses

CHOICES = {
    "norm": ("rmsnorm", "layernorm"),
    "position": ("rotary", "learned"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
    "remat": ("none", "dots", "full"),
    "attention": ("auto", "xla", "blocked"),
    "dtype": ("float32", "bfloat16"),
    "param_dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer.

    Raises:
      ValueError: a value that is not possible; the message names the field.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    mlp_dim: int
    max_length: int  # the longest context, in tokens
    num_kv_heads: int = 0  # key/value heads, each shared by a group of queries (arXiv:2305.13245); 0: as many as heads
    head_dim: int = 0  # 0: embed_dim / num_heads
    norm: str = "rmsnorm"  # arXiv:1910.07467, or layernorm, arXiv:1607.06450
    norm_epsilon: float = 1e-5
    position: str = "rotary"  # arXiv:2104.09864, or a learned table added to the embedding
    rope_theta: float = 10_000.0
    activation: str = "silu"
    gated: bool = True  # down(act(gate(x)) * up(x)), arXiv:2002.05202
    bias: bool = False  # of every projection
    tied: bool = False  # the output layer is the embedding table
    dropout: float = 0.0  # after the embedding, the attention and the feed-forward
    init_std: float = 0.02
    dtype: str = "bfloat16"  # of the computation; norms, softmax and the loss stay in float32
    param_dtype: str = "float32"
    # What a layer keeps for its gradient: everything, its products with weights, or only its input.
    remat: str = "none"
    scan_unroll: int = 0  # layers an iteration of the scan; 0 by platform: all on a CPU, where a loop is slow, else 1
    attention: str = "auto"  # implementation: by platform, see attend.py

    def __post_init__(self):
        fill = lambda name, value: object.__setattr__(self, name, value)
        for name in ("vocab_size", "num_layers", "embed_dim", "num_heads", "mlp_dim", "max_length"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)!r}; it must be an integer of at least 1")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"model.{name} is {getattr(self, name)!r}; choose from {', '.join(choices)}")
        if not self.num_kv_heads:
            fill("num_kv_heads", self.num_heads)
        if not self.head_dim:
            if self.embed_dim % self.num_heads:
                raise ValueError(
                    f"model.embed_dim {self.embed_dim} is not a multiple of model.num_heads {self.num_heads}; "
                    "change one of them or set model.head_dim"
                )
            fill("head_dim", self.embed_dim // self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads {self.num_heads} is not a multiple of model.num_kv_heads {self.num_kv_heads}"
            )
        if self.position == "rotary" and self.head_dim % 2:
            raise ValueError(f"model.head_dim {self.head_dim} is odd; rotary positions turn pairs of features")
        if not isinstance(self.scan_unroll, int) or self.scan_unroll < 0:
            raise ValueError(f"model.scan_unroll is {self.scan_unroll!r}; it must be an integer of at least 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout}; it must lie in [0, 1)")

    def check_mesh(self, mesh_shape: dict[str, int]) -> None:
        """Refuse a mesh that cannot hold the model, before anything compiles.

        Raises:
          ValueError: names the dim, the axis, and sizes of the axis that would do.
        """
        tensor, fsdp = mesh_shape.get("tensor", 1), mesh_shape.get("fsdp", 1)
        for name, axis, size in (
            ("num_kv_heads", "tensor", tensor),
            ("mlp_dim", "tensor", tensor),
            ("vocab_size", "tensor", tensor),
            ("embed_dim", "fsdp", fsdp),
        ):
            dim = getattr(self, name)
            if dim % size:
                fits = [n for n in range(1, 2 * size) if dim % n == 0]
                hint = f"; {-(-dim // size) * size} would divide" if name == "vocab_size" else ""
                raise ValueError(
                    f"model.{name} {dim} cannot be split over mesh axis {axis}={size}{hint}; "
                    f"sizes of {axis} that work: {', '.join(map(str, fits[-4:]))}"
                )

    def _matmul_params(self) -> int:
        """Weights that every token is multiplied with, the output layer included."""
        d, h = self.embed_dim, self.head_dim
        attention = d * h * (2 * self.num_heads + 2 * self.num_kv_heads)
        feed_forward = d * self.mlp_dim * (3 if self.gated else 2)
        return self.num_layers * (attention + feed_forward) + self.vocab_size * d

    def num_params(self, *, embedding: bool = True) -> int:
        """Parameters, each counted once (a tied table too); `embedding=False` leaves out tables and output layer."""
        d, h = self.embed_dim, self.head_dim
        norm = d * (2 if self.norm == "layernorm" else 1)
        bias = 0
        if self.bias:
            bias = h * (self.num_heads + 2 * self.num_kv_heads) + d  # q, k, v; o
            bias += self.mlp_dim * (2 if self.gated else 1) + d
        count = self._matmul_params() - self.vocab_size * d + self.num_layers * (2 * norm + bias) + norm
        if embedding:
            count += self.vocab_size * d * (1 if self.tied else 2)
            count += self.max_length * d if self.position == "learned" else 0
        return count

    def flops_per_token(self, length: int, *, training: bool = True) -> float:
        """Model FLOPs for one token of a sequence of `length` tokens.

        2 a weight forward and 4 backward, plus the two products of attention, of which the causal half is counted
        (each token sees length/2 keys on average). Recomputation (remat) is not counted, so that a slower policy does
        not look better. PaLM's appendix B (arXiv:2204.02311) with the causal mask taken into account.
        """
        attention = self.num_layers * 2 * 2 * self.num_heads * self.head_dim * (length / 2)
        return (2 * self._matmul_params() + attention) * (3 if training else 1)


@dataclasses.dataclass(frozen=True)
class Experts:
    """A feed-forward as a mixture of experts; activation, gating and initialization are the ModelConfig's.

    Every token goes to `per_token` of `count` experts, whatever their load, unless a capacity is set: then an expert
    takes so many tokens of a row, and what comes later is dropped (Switch Transformer, arXiv:2101.03961).

    Raises:
      ValueError: a value that is not possible; the message names the field.
    """

    count: int
    per_token: int
    mlp_dim: int  # hidden size of one expert
    shared_dim: int = 0  # hidden size of the expert(s) that every token goes to (arXiv:2401.06066); 0: none
    shared_gate: bool = False  # the shared expert's output is scaled by a sigmoid of the token (Qwen2-MoE)
    score: str = "softmax"  # of the router's logits: over experts, or each by itself (DeepSeek-V3)
    normalize: bool = True  # the weights of a token's experts are divided by their sum
    scale: float = 1.0  # of the weights, after normalizing
    # Only the experts of a token's best `groups_per_token` groups are eligible; a group is as good as its best expert
    # (DeepSeek-V2, arXiv:2405.04434) or the sum of its best two (DeepSeek-V3, arXiv:2412.19437).
    groups: int = 1
    groups_per_token: int = 1
    group_score: str = "max"
    correction: bool = False  # a bias that balances the load; it selects and does not weigh (arXiv:2408.15664)
    capacity: int = 0  # tokens of a row that an expert takes; 0: by the factor
    capacity_factor: float = 0.0  # as a multiple of the mean load; 0, without a capacity: nothing is dropped

    def __post_init__(self):
        for name, least in dict(count=1, per_token=1, mlp_dim=1, shared_dim=0, capacity=0).items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"experts.{name} is {value!r}; it must be an integer of at least {least}")
        for name, choices in dict(score=("softmax", "sigmoid"), group_score=("max", "top2")).items():
            if getattr(self, name) not in choices:
                raise ValueError(f"experts.{name} is {getattr(self, name)!r}; choose from {', '.join(choices)}")
        if self.groups < 1 or self.count % self.groups:
            raise ValueError(f"experts.count {self.count} is not a multiple of experts.groups {self.groups}")
        if not 1 <= self.groups_per_token <= self.groups:
            raise ValueError(f"experts.groups_per_token {self.groups_per_token} must lie in [1, groups {self.groups}]")
        size = self.count // self.groups
        if self.per_token > self.groups_per_token * size:
            raise ValueError(
                f"experts.per_token {self.per_token} is more than the {self.groups_per_token * size} experts that a "
                "token can choose from (groups_per_token * count / groups)"
            )
        if self.per_token == 1 and self.normalize:
            raise ValueError("experts.normalize makes the weight of a single expert 1: its router would never learn")
        if self.groups > 1 and self.group_score == "top2" and size < 2:
            raise ValueError(f"experts.group_score top2 needs groups of two or more experts; they have {size}")
        if self.shared_gate and not self.shared_dim:
            raise ValueError("experts.shared_gate needs a shared expert: set experts.shared_dim")
        if self.capacity_factor < 0 or (self.capacity and self.capacity_factor):
            raise ValueError("experts.capacity_factor must not be negative; set it or experts.capacity, not both")
