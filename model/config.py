"""ModelConfig: the architecture as data. It checks itself and says how its layers repeat.

What differs between families is here: a family of known parts is a set of these values. What it leaves out: published
sizes (configs/sizes/), counts (count.py) and everything about training (configs/*.py).
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
# What numbers may be (ranges.py); how they fit together, `_check` says.
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
    """What distinguishes one layer from the next."""

    attention: str  # 'global' or 'local'
    mlp: str  # 'dense' or 'sparse'


class Segment(NamedTuple):
    """Layers that run under one scan: a pattern of kinds, repeated."""

    kinds: tuple[Kind, ...]
    repeats: int
    shared: bool  # every repeat has the same parameters


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Transformer.

    Raises:
      ValueError: a value that is not possible; the message names the field.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    mlp_dim: int
    max_length: int  # the longest context, in tokens
    architecture: str = "decoder"
    encoder_layers: int = 0  # of an encoder-decoder, whose num_layers are the decoder's; 0: as many as those
    num_kv_heads: int = 0  # key/value heads, each shared by a group of queries (arXiv:2305.13245); 0: as many as heads
    head_dim: int = 0  # 0: embed_dim / num_heads
    table_dim: int = 0  # features of the embedding table, projected to embed_dim (arXiv:1909.11942); 0: embed_dim

    norm: str = "rmsnorm"  # arXiv:1910.07467, or layernorm, arXiv:1607.06450
    norm_epsilon: float = 1e-5
    norm_offset: float = 0.0  # a norm's scale is this + its parameter (Gemma: 1)
    norm_position: str = "pre"  # before each part of a layer, after its sum with the stream (post), or before and after
    final_norm: bool = True  # after the last layer; post-norm models have none
    embedding_norm: bool = False
    embedding_scale: float = 1.0

    position: str = "rotary"  # or a learned table, ALiBi (arXiv:2108.12409), T5's relative buckets (arXiv:1910.10683)
    position_offset: int = 0  # rows of the learned table before that of position 0 (OPT, RoBERTa: 2)
    rope: Rope = dataclasses.field(default_factory=Rope)
    relative_buckets: int = 32
    relative_distance: int = 128  # from here on, all distances share the last bucket
    token_types: int = 0  # rows of the table of token types (BERT: 2); 0: no table

    attention_pattern: tuple[str, ...] = ("global",)  # 'global', 'local' (a window): cycled over the layers
    window: int = 0  # positions that a token of a local layer sees, its own included
    attention_scale: float = 0.0  # of queries times keys; 0: 1 / sqrt(head_dim)
    attention_softcap: float = 0.0  # scores become cap * tanh(score / cap) (arXiv:2408.00118); 0: no
    qk_norm: bool = False  # a norm over each head's query and key (arXiv:2302.05442)
    qkv_bias: bool = False
    out_bias: bool = False
    latent: Latent | None = None  # keys and values come from a narrow vector a token (arXiv:2405.04434), see mla.py

    mlp_pattern: tuple[str, ...] = ("dense",)  # 'dense', 'sparse' (a mixture of experts): cycled over the layers
    experts: Experts | None = None  # of sparse layers
    activation: str = "silu"
    gated: bool = True  # down(act(gate(x)) * up(x)), arXiv:2002.05202
    mlp_bias: bool = False
    share_groups: int = 0  # groups of consecutive layers with the same parameters (ALBERT); 0: each layer has its own
    share_inner: int = 1  # blocks of a group, which each of its layers runs one after the other
    cuts: tuple[int, ...] = ()  # layers with which a new scan begins, so that those before can be frozen

    tied: bool = False  # the output layer is the embedding table
    output_bias: bool = False
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    head: str = "language_model"
    num_labels: int = 2  # classes of the heads 'sequence' and 'token'; 1: a number

    dropout: float = 0.0  # after the embedding, the attention and the feed-forward
    embedding_noise: float = 0.0  # alpha of the noise that training adds to embedded tokens (NEFTune, arXiv:2310.05914)
    init_std: float = 0.02
    dtype: str = "bfloat16"  # of the computation; norms, softmax and the loss stay in float32
    param_dtype: str = "float32"
    # What a layer keeps for its gradient: everything, its products with weights, or only its input.
    remat: str = "none"
    scan_unroll: int = 0  # repeats an iteration of a scan; 0 by platform: all on a CPU, where a loop is slow, else 1
    # Of layers that are split over the mesh axis `stage` (pipeline.py): micro-batches that begin at each, 0: up to 4;
    # groups of layers of a stage, from 2 on of the circular schedule.
    pipeline_slots: int = 0
    pipeline_groups: int = 1
    attention: str = "auto"  # implementation: by platform, see attend.py
    context: str = "gather"  # over the mesh axis `context`: gather all keys and values, or pass them round (ring.py)

    def __post_init__(self):
        fill = lambda name, value: object.__setattr__(self, name, value)
        for name, interval in RANGES.items():
            ranges.check(getattr(self, name), interval, f"model.{name}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"model.{name} is {getattr(self, name)!r}; choose from {', '.join(choices)}")
        for name, choices in (("attention_pattern", ("global", "local")), ("mlp_pattern", ("dense", "sparse"))):
            pattern = tuple(getattr(self, name))
            if not pattern or set(pattern) - set(choices):
                raise ValueError(f"model.{name} is {pattern!r}; it must be some of {', '.join(choices)}")
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
            raise ValueError(f"model.head_dim {self.head_dim} is odd; rotary positions turn pairs of features")
        if self.latent and (self.num_kv_heads, self.position) != (self.num_heads, "rotary"):
            raise ValueError("model.latent has a key for each head, and rotary positions: leave num_kv_heads at 0")
        if self.latent and self.architecture == "encoder_decoder":
            raise ValueError("model.latent has no attention to an encoder: choose the architecture decoder or encoder")
        if self.latent and (self.qk_norm or self.qkv_bias or self.out_bias):
            raise ValueError(
                "model.latent has neither biases nor norms of heads: leave qkv_bias, out_bias, qk_norm off"
            )
        if "sparse" in self.mlp_pattern and not self.experts:
            raise ValueError("model.mlp_pattern has sparse layers; say in model.experts what they are")
        if "local" in self.attention_pattern and self.window < 1:
            raise ValueError(f"model.window is {self.window!r}; layers of the kind 'local' need one of at least 1")
        if self.share_groups and self.num_layers % self.share_groups:
            raise ValueError(
                f"model.num_layers {self.num_layers} is not a multiple of model.share_groups {self.share_groups}"
            )
        one_kind = len({*self.attention_pattern}) == len({*self.mlp_pattern}) == 1
        if self.share_groups and not (one_kind and self.architecture != "encoder_decoder"):
            raise ValueError("model.share_groups: layers that share parameters are all of one kind, in one stack")
        heads = dict.fromkeys(("decoder", "encoder", "encoder_decoder"), ("language_model",))
        heads |= {"decoder": ("language_model", "sequence", "token"), "encoder": CHOICES["head"][1:]}
        if self.head not in heads[self.architecture]:
            raise ValueError(
                f"model.head is {self.head!r}; the architecture {self.architecture} can have "
                + ", ".join(heads[self.architecture])
            )
        if self.cuts and (self.share_groups or list(self.cuts) != sorted({*self.cuts}) or min(self.cuts) < 1):
            raise ValueError(f"model.cuts is {self.cuts!r}; it must rise from 1, and layers must not share parameters")
        if self.position == "alibi" and self.architecture != "decoder":
            raise ValueError("model.position alibi counts backwards; it is for decoders")
        if self.experts and "sparse" not in self.mlp_pattern:
            raise ValueError("model.experts is set, but no layer of model.mlp_pattern is 'sparse'")

    def segments(self, num_layers: int = 0) -> tuple[Segment, ...]:
        """The layers as scans: the fewest that each repeat one pattern. Default: `num_layers` of the config."""
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
        """Refuse a mesh that cannot hold the model, before anything compiles.

        Raises:
          ValueError: names the dim, the axis, and sizes of the axis that would do.
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
            raise ValueError("mesh axis stage: layers that share parameters (model.share_groups) can't be parted")
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
    """
    Args:
      split: devices of the axes over which it would be.
    """
    used = {axis: size for axis, size in split.items() if size > 1}
    parts, divisors = math.prod(split.values()), [n for n in range(1, dim + 1) if dim % n == 0]
    fits = [n for n in divisors if n < parts][-3:] + [n for n in divisors if n > parts][:1]
    sizes = "sizes of " + next(iter(used)) if len(used) == 1 else "products of these"
    over = " x ".join(f"{axis}={size}" for axis, size in used.items())
    return f"{what} cannot be split over mesh axis {over}{hint}; {sizes} that work: {', '.join(map(str, fits))}"


def _nested(name: str, kind, fields):
    if unknown := set(fields) - {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"model.{name}.{min(unknown)} is no field of {kind.__name__}")
    try:
        return kind(**fields)
    except TypeError as error:  # a field is missing
        raise ValueError(f"model.{name}: {error}") from error


def _repetitions(kinds: list[Kind]):
    """(length, repeats) of each pattern that the list begins with."""
    for length in range(1, min(_LONGEST_PATTERN, len(kinds)) + 1):
        repeats = 1
        while kinds[repeats * length : (repeats + 1) * length] == kinds[:length]:
            repeats += 1
        if length == 1 or repeats > 1:
            yield length, repeats
