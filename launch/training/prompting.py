"""Sets up rollouts for a run whose data are prompts: the prompts as ids, and the source of batches.

Left out: models with an encoder, and prompt tuning, whose vectors would take places in the rows.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data import stage
from data.batch import Batch, DataError
from data.examples import kinds
from data.prepared import Prepared
from data.tokens.tokenizer import Tokenizer
from launch.program.checking import ConfigError
from launch.run import build, models
from launch.training import critics, rewarding
from model import axes
from train.align.measure import make_measure
from train.align.rollouts import Rollouts
from train.align.rounds import TRUNCATED, Prompt, Rounds, Settings, Tools
from train.align.sampler import make_sampler
from train.objectives.objective import Objective

_KIND = "prompts"


def settings(config: ConfigDict) -> Settings:
    return Settings(**{name: config.rollouts[name] for name in Settings._fields})


def check(config: ConfigDict) -> None:
    """Checks config.rollouts and config.reward, before data are prepared.

    Raises:
      ConfigError: rollouts can't be made with these settings.
    """
    if not kinds.asks(config.data):
        return
    objective = models.objective(config)
    if models.prefix(config):
        raise ConfigError("config.adapt.method prompt can't learn from rollouts; choose another method, such as lora")
    if objective.rollouts == "advantages":
        _check_noise(config)
    wanted, size = settings(config), config.batch_size * config.rollouts.minibatches
    if size % wanted.group:
        raise ConfigError(
            f"config.rollouts.group {wanted.group} does not divide the {size} completions of a round "
            "(config.batch_size x config.rollouts.minibatches)"
        )
    weights = {weight for spec, weight in kinds.sources(config.data) if weight and kinds.kind_of(spec) == _KIND}
    if len(weights) > 1:
        raise ConfigError(
            f"config.data.sources gives prompts the weights {', '.join(map(str, sorted(weights)))}, but every "
            "prompt is asked once per epoch; give all of them the same weight"
        )
    compares = objective.rollouts == "pairs" or getattr(objective, "advantages", "") in ("group", "rloo")
    if compares and wanted.group < 2:
        raise ConfigError("config.rollouts.group is 1, but answers to a prompt are compared; set it to 2 or more")
    if wanted.truncated not in TRUNCATED:
        raise ConfigError(f"config.rollouts.truncated is {wanted.truncated!r}; choose from {', '.join(TRUNCATED)}")
    if _room(config) < 1:
        several = ", which holds two answers to each prompt" if objective.rollouts == "pairs" else ""
        raise ConfigError(
            f"config.rollouts.max_new_tokens {wanted.max_new_tokens} leaves no room for a prompt in "
            f"config.data.seq_len {config.data.seq_len}{several}"
        )
    if wanted.text_rows and not getattr(objective, "text", 0.0):
        raise ConfigError("config.rollouts.text_rows has no effect, because config.objective.text is 0")
    if getattr(objective, "text", 0.0) and not wanted.text_rows:
        raise ConfigError("config.objective.text needs rows of text in each batch; set config.rollouts.text_rows")
    if wanted.resample and not compares:
        raise ConfigError(
            "config.rollouts.resample replaces prompts whose answers all have the same reward, but these advantages "
            "learn from them too; set it to 0"
        )
    rewarding.check(config)
    critics.check(config)


def _check_noise(config: ConfigDict) -> None:
    """Checks that an update computes the probabilities that were sampled from.

    Sampling and measuring use no dropout. With dropout in the update, the ratios to what they found would be noise: in
    a small model with a rate of 0.1, 39 % of the tokens are clipped before anything has been learned.
    """
    for field in ("model.dropout", "model.embedding_noise", "adapt.dropout"):
        block, name = field.split(".")
        if rate := config[block].get(name, 0):
            raise ConfigError(
                f"config.{field} is {rate}, but answers are sampled without it, so an update would compare their "
                "probabilities with those of another model; set it to 0"
            )


def _room(config: ConfigDict) -> int:
    """Returns how many tokens a prompt may have. The last token of an answer is only a target."""
    segments = 2 if models.objective(config).rollouts == "pairs" else 1
    length = min(config.data.seq_len // segments + 1, config.model.max_length)
    return length - config.rollouts.max_new_tokens


def read(config: ConfigDict, prepared: Prepared, tokenizer: Tokenizer, split: str) -> list[Prompt]:
    """Returns the prompts of a split, without those that leave no room for an answer, which are counted and printed.

    Raises:
      DataError: none is left.
    """
    asking, own = kinds.KINDS[_KIND].asking, kinds.checked(config.data)[_KIND]
    assert asking is not None
    records = [
        record
        for source in prepared.sources
        if source.kind == _KIND and (source.weight or split == "validation")
        for record in prepared.records(source, split)
    ]
    questions = [asking.question(record) for record in records]
    try:
        ids = asking.prompts(own, tokenizer, questions, False).prompts if questions else []
    except ValueError as error:
        raise DataError(f"A prompt can't be written with the chat template: {error}.") from error
    room = _room(config)
    found = [
        Prompt(np.asarray(one, np.int32), asking.shown(question), record)
        for one, question, record in zip(ids, questions, records, strict=True)
        if len(one) <= room
    ]
    if left := len(records) - len(found):
        print(
            f"{left:,} of {len(records):,} {split} prompts are left out: they are longer than {room} tokens, which is "
            f"what config.data.seq_len {config.data.seq_len} has room for beside config.rollouts.max_new_tokens "
            f"{config.rollouts.max_new_tokens}"
        )
    if not found and (split == "train" or left):
        raise DataError(f"No {split} prompt is left in {prepared.directory}: raise config.data.seq_len.")
    return found


class Asked:
    """Everything that asks prompts: tools for rounds and evaluations.

    Args:
      config, prepared, tokenizer, objective, mesh: of the run.
      recorded: the frozen models that the run's checkpoint names (rewarding.Rewarding); {} for a new run.
    """

    def __init__(
        self,
        config: ConfigDict,
        prepared: Prepared,
        tokenizer: Tokenizer,
        objective: Objective,
        mesh: jax.sharding.Mesh,
        recorded: Mapping[str, dict],
    ):
        self.config, self.prepared, self.tokenizer = config, prepared, tokenizer
        self.objective, self.mesh = objective, mesh
        asking, own = kinds.KINDS[_KIND].asking, kinds.checked(config.data)[_KIND]
        assert asking is not None
        form = asking.prompts(own, tokenizer, [], False)
        self.settings = settings(config)
        self.rewarding = rewarding.Rewarding(config, recorded)
        if self.settings.text_rows % self.unit:
            raise ConfigError(
                f"config.rollouts.text_rows is {self.settings.text_rows}; it must be a multiple of {self.unit}, the "
                "number of parts that a batch is split into (devices x config.accumulate x config.model.pipeline_slots)"
            )
        self.sample = make_sampler(
            lambda ids: form.answer(tokenizer, ids.tolist()),
            ends=form.ends,
            vocab_size=tokenizer.vocab_size,
            max_new_tokens=self.settings.max_new_tokens,
            temperature=self.settings.temperature,
            # Evaluations may ask more prompts at once than a round does.
            rows=self.settings.rows or config.batch_size * self.settings.minibatches,
        )

    def measure(self, steps: int):
        """Returns train.align.measure.make_measure's function, for this many updates on a round."""
        put = build.put(self.mesh)
        run = make_measure(self.objective, lambda batch: put(self.share(batch)), steps)
        return lambda state, batch: {name: build.in_order(self.mesh, a) for name, a in run(state, batch).items()}

    def share(self, batch: Batch) -> Batch:
        """Returns the rows of a batch that this process passes to its devices."""
        mine = build.batch_rows(self.mesh, len(batch["tokens"]))
        return batch if mine is None else {name: array[mine] for name, array in batch.items()}

    @functools.cached_property
    def unit(self) -> int:
        """What the number of rows in a batch is a multiple of."""
        return axes.batch_parts(self.mesh)[1] * self.config.accumulate * max(self.config.model.pipeline_slots, 1)

    def source(self, position: Mapping[str, Any] | None, text: Any, everything: bool) -> Rollouts:
        """Returns the batches of rollouts, from the start or from a position; the arguments are those of Run.source."""
        config, prompts = self.config, read(self.config, self.prepared, self.tokenizer, "train")
        self.rewarding.check(prompts)
        wanted = self.settings
        measure = None
        if self.objective.rollouts == "advantages":
            measure = self.measure(wanted.epochs * wanted.minibatches)
        rounds = Rounds(
            prompts,
            self.objective,
            wanted,
            config.data.seq_len,
            self.unit,
            Tools(self.sample, self.rewarding, measure),
        )
        contents = [[source.content_hash, source.encoding] for source in self.prepared.sources if not source.channels]
        return Rollouts(
            rounds,
            self.objective,
            wanted,
            len(prompts),
            batch_size=config.batch_size,
            seq_len=config.data.seq_len,
            unit=self.unit,
            seed=config.seed,
            stream=stage.digest([contents, config.seed, len(prompts)])[:16],
            place=position,
            text=text,
            share=(lambda batch: batch) if everything else self.share,
        )
