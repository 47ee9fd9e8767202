"""Language modelling: predict each target token from the tokens that the model sees.

The data define the targets (data/rows/corrupt.py): the next tokens of a text for a decoder, masked tokens for an
encoder, and the removed spans for an encoder-decoder (span corruption).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from data.batch import GROUPS
from data.examples import kinds
from model.architectures import Source
from model.config import ModelConfig
from train.evals import perplexity
from train.losses import Loss, cross_entropy
from train.objectives import routing
from train.objectives.objective import LOSS, Curve, Headline, HeldOut, Objective

HEADS = ("language_model", "masked")  # those that give token logits
# The config.data.corruption.kind that each architecture learns from.
CORRUPTION = {"decoder": "none", "encoder": "masked", "encoder_decoder": "spans"}


@dataclasses.dataclass(frozen=True)
class Language(Objective):
    """Cross-entropy of the target tokens. The metric `loss` is nats per token, without label smoothing.

    Args:
      z_loss, label_smoothing: see losses.cross_entropy.
      balance_loss, router_z_loss: see routing.with_routers.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    balance_loss: float = 0.0
    router_z_loss: float = 0.0

    config: ClassVar = "configs/pretrain_decoder.py"
    predicts_tokens: ClassVar = True
    headlines: ClassVar = (
        Headline("bits_per_byte", "bits per byte", "all on the same held-out files", others="compressors"),
        Headline("loss", "nats per token", "on the target tokens of held-out data", {"unigram": "token frequencies"}),
    )
    curves: ClassVar = (LOSS, Curve(("bits_per_byte",), "Bits per byte", log=True))
    meanings: ClassVar = {
        "loss": "nats per token",
        "perplexity": "e to the loss",
        "bits_per_byte": "the loss as bits per byte of the text, which compares models of different tokenizers",
    }
    ranges: ClassVar = {"z_loss": "float [0, inf)", "label_smoothing": "float [0, 1)"} | routing.RANGES

    def check(self, model: ModelConfig, data: Mapping[str, Any]) -> None:
        if model.head not in HEADS:
            raise ValueError(
                f"config.model.head is {model.head!r}, which gives no token logits, but config.objective.name "
                f"'language' needs them; set it to one of {', '.join(HEADS)}"
            )
        found = {kinds.kind_of(spec) for spec, _ in kinds.sources(data)}
        if others := sorted(kind for kind in found - {kinds.TEXT} if not kinds.learnable(kind)):
            raise ValueError(
                f"config.data has {', '.join(others)}, which config.objective.name 'language' cannot learn, because "
                "they have no text to predict; use a config for them, such as configs/classify.py for labels or "
                "configs/reward.py for rankings"
            )
        if ranked := sorted(kind for kind in found if GROUPS[0] in kinds.channels(kind, kinds.checked(data), False)):
            raise ValueError(
                f"config.data has {', '.join(ranked)}, of which config.objective.name 'language' would learn the "
                "rejected answers too; use a config that compares answers, such as configs/dpo.py"
            )
        if (examples := sorted(found - {kinds.TEXT})) and model.architecture == "encoder":
            raise ValueError(
                f"config.data.sources of kind {' and '.join(examples)} need a model that generates answers, but "
                "config.model.architecture is encoder; use a decoder or an encoder-decoder"
            )
        kind, fitting = data["corruption"]["kind"], CORRUPTION[model.architecture]
        if kind != fitting and kinds.TEXT in found:
            raise ValueError(
                f"config.data.corruption.kind is {kind!r}, but config.model.architecture {model.architecture} learns "
                f"from {fitting!r}; change one of them"
            )

    def __call__(self, model, batch, key) -> Loss:
        rows = lambda prefix: [batch[prefix + name] for name in ("tokens", "segment_ids", "positions")]
        source = {"source": Source(*rows("encoder_"))} if "encoder_tokens" in batch else {}
        hidden = model(*rows(""), key=key, **source)
        weights_BT, smoothing = batch["weights"], self.label_smoothing
        loss = cross_entropy(
            model.output(hidden.x_BTD), batch["targets"], weights_BT, z_loss=self.z_loss, label_smoothing=smoothing
        )
        metrics = {"loss": loss.cross_entropy}
        if self.z_loss:
            metrics["z_loss"] = loss.z_loss
        found = Loss(loss.total, weights_BT.sum(), metrics)
        return routing.with_routers(found, hidden.router, self.balance_loss, self.router_z_loss)

    def figures(self, loss: Loss, held_out: HeldOut) -> dict[str, float]:
        return perplexity.figures(loss, held_out.bytes_per_token)

    def lines(self, figures: Mapping[str, float], held_out: HeldOut) -> Iterator[str]:
        if "bits_per_byte" in figures:
            yield f"held-out text: {held_out.bytes:,} bytes, not used in training"
            for name, value in {"this model": figures["bits_per_byte"], **held_out.compressors}.items():
                yield f"  {name:12} {value:6.3f} bits per byte"
        else:
            yield "held-out data, not used in training:"
            yield f"  no bits per byte, because {held_out.no_bits_per_byte}"
        yield f"  loss {figures['loss']:.4f} nats per token, perplexity {figures['perplexity']:.2f}"
        yield f"  token frequencies alone: {figures['unigram']:.4f} nats per token"
        yield from (f"  {name} {value:.4f}" for name, value in figures.items() if "/" in name)
