"""ModelConfig: the architecture as data. It checks itself and computes how its layers repeat.

All differences between families are fields of this config, so a family is one set of values. Published sizes are in
configs/sizes/, parameter counts in count.py, and everything about training in configs/*.py.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

from model import ranges
from model.parts import Experts, Latent, Rope

CHOICES = {
    "architecture": ("decoder", "encoder", "encoder_decoder"),
    "norm": ("rmsnorm", "layernorm"),
    "norm_position": ("pre", "post", "both"),
    "position": ("rotary", "learned", "alibi", "relative", "none"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
    "head": ("language_model", "masked", "sequence", "token", "none"),
    "remat": ("none", "dots", "full"),
    "attention": ("auto", "xla", "blocked", "splash", "cudnn"),
    "context": ("gather", "ring"),
    "dtype": ("float32", "bfloat16"),
    "param_dtype": ("float32", "bfloat16"),
}
# Allowed ranges of numeric fields (syntax: ranges.py). `_check` verifies how the fields fit together.
RANGES = dict.fromkeys(("vocab_size", "num_layers", "embed_dim", "num_heads", "mlp_dim", "max_length"), "int [1, inf)")
RANGES |= dict.fromkeys(("share_inner", "num_labels", "pipeline_groups", "relative_distance"), "int [1, inf)")
RANGES |= dict.fromkeys(("encoder_layers", "num_kv_heads", "head_dim", "table_dim", "share_groups"), "int [0, inf)")
RANGES |= dict.fromkeys(("window", "token_types", "position_offset", "scan_unroll", "pipeline_slots"), "int [0, inf)")
RANGES |= dict.fromkeys(("attention_scale", "attention_softcap", "logit_softcap", "init_std"), "float [0, inf)")
RANGES |= dict(norm_epsilon="float [0, inf)", norm_offset="float (-inf, inf)", embedding_scale="float (0, inf)")
RANGES |= dict(logit_scale="float (0, inf)", dropout="float [0, 1)", embedding_noise="float [0, inf)")
RANGES |= dict(relative_buckets="int [4, inf)")
_LONGEST_PATTERN = 8


class Kind(NamedTuple):
    """The properties in which layers of one model may differ."""

    attention: str  # 'global' or 'local'
    mlp: str  # 'dense' or 'sparse'


class Segment(NamedTuple):
    """Layers that run under one scan: a pattern of kinds, repeated."""

    kinds: tuple[Kind, ...]
    repeats: int
    shared: bool  # every repeat has the same parameters


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The configuration of a Transformer.

    Raises:
      ValueError: a field has an impossible value; the message names the field.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    mlp_dim: int
    max_length: int  # the longest context, in tokens
    architecture: str = "decoder"
    encoder_layers: int = 0  # encoder-decoders only (num_layers then counts decoder layers); 0: same as num_layers
    num_kv_heads: int = 0  # key/value heads; a group of query heads shares each (arXiv:2305.13245); 0: num_heads
    head_dim: int = 0  # 0: embed_dim / num_heads
    table_dim: int = 0  # width of the embedding table, projected to embed_dim (arXiv:1909.11942); 0: embed_dim

    norm: str = "rmsnorm"  # arXiv:1910.07467, or layernorm, arXiv:1607.06450
    norm_epsilon: float = 1e-5
    norm_offset: float = 0.0  # added to a norm's scale parameter (Gemma: 1)
    norm_position: str = "pre"  # pre: before each sublayer; post: after the residual sum; both: before and after
    final_norm: bool = True  # after the last layer; post-norm models have none
    embedding_norm: bool = False
    embedding_scale: float = 1.0

    position: str = "rotary"  # or a learned table, ALiBi (arXiv:2108.12409), T5's relative buckets (arXiv:1910.10683)
    position_offset: int = 0  # rows of the learned table before the row of position 0 (OPT, RoBERTa: 2)
    rope: Rope = dataclasses.field(default_factory=Rope)
    relative_buckets: int = 32
    relative_distance: int = 128  # all larger distances share the last bucket
    token_types: int = 0  # rows of the token type table (BERT: 2); 0: no table

    attention_pattern: tuple[str, ...] = ("global",)  # 'global' or 'local' (sliding window), repeated over the layers
    window: int = 0  # positions that a token of a local layer attends to, including its own
    attention_scale: float = 0.0  # multiplies query-key products; 0: 1 / sqrt(head_dim)
    attention_softcap: float = 0.0  # scores become cap * tanh(score / cap) (arXiv:2408.00118); 0: no cap
    qk_norm: bool = False  # normalizes each head's query and key (arXiv:2302.05442)
    qkv_bias: bool = False
    out_bias: bool = False
    latent: Latent | None = None  # multi-head latent attention (arXiv:2405.04434), see attention/mla.py

    mlp_pattern: tuple[str, ...] = ("dense",)  # 'dense' or 'sparse' (mixture of experts), repeated over the layers
    experts: Experts | None = None  # the experts of sparse layers
    activation: str = "silu"
    gated: bool = True  # down(act(gate(x)) * up(x)), arXiv:2002.05202
    mlp_bias: bool = False
    share_groups: int = 0  # groups of consecutive layers that share parameters (ALBERT); 0: no sharing
    share_inner: int = 1  # blocks in each shared group; each of its layers runs all of them in order
    cuts: tuple[int, ...] = ()  # layers at which a new scan starts, so that earlier layers can be frozen

    tied: bool = False  # the output layer reuses the embedding table
    output_bias: bool = False
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    head: str = "language_model"
    num_labels: int = 2  # classes of the heads 'sequence' and 'token'; 1: regression

    dropout: float = 0.0  # after the embedding, the attention and the feed-forward
    embedding_noise: float = 0.0  # alpha of the noise added to embeddings in training (NEFTune, arXiv:2310.05914)
    init_std: float = 0.02
    dtype: str = "bfloat16"  # compute dtype; norms, softmax and the loss stay in float32
    param_dtype: str = "float32"
    # What a layer saves for the backward pass: everything (none), outputs of matmuls with weights (dots), or only its
    # input (full).
    remat: str = "none"
    scan_unroll: int = 0  # pattern repeats per scan iteration; 0: all on a CPU, where loops are slow, and 1 elsewhere
    # For layers split over the mesh axis `stage` (stack/pipeline.py): micro-batches that start on each stage (0: up to
    # 4), and groups of layers per stage (2 or more select the circular schedule).
    pipeline_slots: int = 0
    pipeline_groups: int = 1
    attention: str = "auto"  # kernel; auto: chosen by platform, see attention/attend.py
    context: str = "gather"  # over the mesh axis `context`: all-gather keys and values, or ring attention (ring.py)

    def __post_init__(self):
        fill = lambda name, value: object.__setattr__(self, name, value)
        for name, interval in RANGES.items():
            ranges.check(getattr(self, name), interval, f"model.{name}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"model.{name} is {getattr(self, name)!r}; choose from {', '.join(choices)}")
        for name, choices in (("attention_pattern", ("global", "local")), ("mlp_pattern", ("dense", "sparse"))):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"model.{name} is {getattr(self, name)!r}; it must be a list, like ('{choices[0]}',)")
            pattern = tuple(getattr(self, name))
            if not pattern or set(pattern) - set(choices):
                raise ValueError(f"model.{name} is {pattern!r}; choose its entries from {', '.join(choices)}")
            fill(name, pattern)
        fill("cuts", tuple(self.cuts))
        for name, kind in (("rope", Rope), ("latent", Latent), ("experts", Experts)):
            if isinstance(getattr(self, name), Mapping):
                fill(name, _nested(name, kind, getattr(self, name)))
        if not self.num_kv_heads:
            fill("num_kv_heads", self.num_heads)
        if self.latent:
            fill("head_dim", self.latent.content_dim + self.latent.rope_dim)
        if not self.head_dim:
            if self.embed_dim % self.num_heads:
                raise ValueError(
                    f"model.embed_dim {self.embed_dim} is not a multiple of model.num_heads {self.num_heads}; "
                    "change one of them or set model.head_dim"
                )
            fill("head_dim", self.embed_dim // self.num_heads)
        if not self.table_dim:
            fill("table_dim", self.embed_dim)
        if not self.attention_scale:
            fill("attention_scale", self.head_dim**-0.5)
        self._check()

    def _check(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads {self.num_heads} is not a multiple of model.num_kv_heads {self.num_kv_heads}"
            )
        if self.position == "rotary" and self.head_dim % 2 and not self.latent:
            raise ValueError(f"model.head_dim {self.head_dim} is odd; rotary positions rotate pairs of features")
        if self.latent and (self.num_kv_heads, self.position) != (self.num_heads, "rotary"):
            raise ValueError("model.latent needs a key for each head and rotary positions: leave num_kv_heads at 0")
        if self.latent and self.architecture == "encoder_decoder":
            raise ValueError("model.latent has no cross-attention: set model.architecture to decoder or encoder")
        if self.latent and (self.qk_norm or self.qkv_bias or self.out_bias):
            raise ValueError(
                "model.latent supports neither biases nor q/k norms: leave qkv_bias, out_bias, qk_norm off"
            )
        if "sparse" in self.mlp_pattern and not self.experts:
            raise ValueError("model.mlp_pattern has sparse layers; describe their experts in model.experts")
        if "local" in self.attention_pattern and self.window < 1:
            raise ValueError(f"model.window is {self.window!r}; 'local' layers need a window of at least 1")
        if self.share_groups and self.num_layers % self.share_groups:
            raise ValueError(
                f"model.num_layers {self.num_layers} is not a multiple of model.share_groups {self.share_groups}"
            )
        one_kind = len({*self.attention_pattern}) == len({*self.mlp_pattern}) == 1
        if self.share_groups and not (one_kind and self.architecture != "encoder_decoder"):
            raise ValueError("model.share_groups: layers that share parameters must all be of one kind, in one stack")
        heads: dict[str, tuple[str, ...]] = {"encoder_decoder": ("language_model",)}
        heads |= {"decoder": ("language_model", "sequence", "token"), "encoder": CHOICES["head"][1:]}
        if self.head not in heads[self.architecture]:
            raise ValueError(
                f"model.head is {self.head!r}; choose for the architecture {self.architecture} from "
                + ", ".join(heads[self.architecture])
            )
        if self.cuts and (self.share_groups or list(self.cuts) != sorted({*self.cuts}) or min(self.cuts) < 1):
            raise ValueError(f"model.cuts is {self.cuts!r}; it must rise from 1, and layers must not share parameters")
        if self.position == "alibi" and self.architecture != "decoder":
            raise ValueError("model.position alibi needs causal attention; set model.architecture to decoder")
        if self.experts and "sparse" not in self.mlp_pattern:
            raise ValueError("model.experts is set, but no layer of model.mlp_pattern is 'sparse'")

    def segments(self, num_layers: int = 0) -> tuple[Segment, ...]:
        """Returns the fewest scans that cover `num_layers` layers (0: the config's), each repeating one pattern."""
        count = num_layers or self.num_layers
        cycle = lambda pattern: (pattern * -(-count // len(pattern)))[:count]
        kinds = [Kind(*pair) for pair in zip(cycle(self.attention_pattern), cycle(self.mlp_pattern), strict=True)]
        if self.share_groups:
            return (Segment(tuple(kinds[:1]) * self.share_inner, count // self.share_groups, True),) * self.share_groups
        found, ends = [], [*(cut for cut in self.cuts if cut < count), count]
        for start, end in zip([0, *ends], ends, strict=False):
            rest = kinds[start:end]
            while rest:
                length, repeats = max(_repetitions(rest), key=lambda pair: (pair[0] * pair[1], -pair[0]))
                found.append(Segment(tuple(rest[:length]), repeats, False))
                rest = rest[length * repeats :]
        return tuple(found)

    def check_mesh(self, mesh_shape: dict[str, int]) -> None:
        """Refuses a mesh that cannot hold the model, before anything compiles.

        Args:
          mesh_shape: devices per mesh axis; absent axes have 1.

        Raises:
          ValueError: names the dim, the mesh axis, and axis sizes that would work.
        """
        sizes = lambda *names: {name: mesh_shape.get(name, 1) for name in names}
        stored = sizes("fsdp", "expert", "context")
        for name, split in (
            ("num_kv_heads", sizes("tensor")),
            ("mlp_dim", sizes("tensor")),
            ("vocab_size", sizes("tensor")),
            ("embed_dim", stored),
            ("table_dim", stored),
            ("experts.count", sizes("expert")),
            ("experts.mlp_dim", sizes("tensor")),
            ("experts.shared_dim", sizes("tensor")),
            ("latent.kv_rank", stored),
            ("latent.query_rank", stored),
        ):
            part, _, inner = name.partition(".")
            dim = getattr(self, part) if not inner else getattr(getattr(self, part), inner, 0)
            parts = math.prod(split.values())
            if dim % parts:
                hint = f"; {-(-dim // parts) * parts} would divide" if name == "vocab_size" else ""
                raise ValueError(_cannot_be_split(f"model.{name} {dim}", dim, split, hint))
        self._check_stages(mesh_shape.get("stage", 1))

    def _check_stages(self, stages: int) -> None:
        if stages == 1:
            return
        if self.share_groups:
            raise ValueError("mesh axis stage: layers that share parameters (model.share_groups) can't be split")
        stacks = {"num_layers": self.num_layers}
        if self.architecture == "encoder_decoder":
            stacks["encoder_layers"] = self.encoder_layers or self.num_layers
        for name, layers in stacks.items():
            for segment in self.segments(layers):
                if segment.repeats % (stages * self.pipeline_groups):
                    of = f"repeats of {len(segment.kinds)} layers" if len(segment.kinds) > 1 else "alike in a row"
                    part = "" if segment.repeats == layers else f" ({segment.repeats} {of})"
                    split = {"stage": stages, "model.pipeline_groups": self.pipeline_groups}
                    raise ValueError(_cannot_be_split(f"model.{name} {layers}{part}", segment.repeats, split))


def _cannot_be_split(what: str, dim: int, split: dict[str, int], hint: str = "") -> str:
    """Returns an error message that suggests sizes.

    Args:
      split: devices of each mesh axis over which the dim would be split.
    """
    used = {axis: size for axis, size in split.items() if size > 1}
    parts, divisors = math.prod(split.values()), [n for n in range(1, dim + 1) if dim % n == 0]
    fits = [n for n in divisors if n < parts][-3:] + [n for n in divisors if n > parts][:1]
    sizes = "sizes of " + next(iter(used)) if len(used) == 1 else "products of these"
    over = " x ".join(f"{axis}={size}" for axis, size in used.items())
    return f"{what} cannot be split over mesh axis {over}{hint}; {sizes} that work: {', '.join(map(str, fits))}"


def _nested(name: str, kind, fields):
    if unknown := set(fields) - {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"model.{name}.{min(unknown)} is not a field of {kind.__name__}")
    needed = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    if missing := [field for field in needed if field not in fields]:
        raise ValueError(f"model.{name} lacks {', '.join(missing)}")
    return kind(**fields)


def _repetitions(kinds: list[Kind]):
    """Yields (length, repeats) for each repeating pattern at the start of the list."""
    for length in range(1, min(_LONGEST_PATTERN, len(kinds)) + 1):
        repeats = 1
        while kinds[repeats * length : (repeats + 1) * length] == kinds[:length]:
            repeats += 1
        if length == 1 or repeats > 1:
            yield length, repeats
