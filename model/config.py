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
