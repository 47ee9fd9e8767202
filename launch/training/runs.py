"""Sets up a run from its config, up to its first step. Training and replaying a step share this."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from data import pipeline, stage
from data.examples import kinds
from data.examples.labels import num_scores
from data.prepare import Prepared
from data.rows.corrupt import Corruption
from data.tokens import tokenizer
from launch.answers import grading, held_out, safety
from launch.hosts import distributed
from launch.run import (
    build,
    checks,
    companions,
    continuing,
    early_stopping,
    init_from,
    models,
    places,
    ranges,
    workdirs,
)
from launch.run.workdirs import Workdir
from launch.training import critics, prompting, recovery
from launch.training.sampled import SampledEvaluation
from model.config import ModelConfig
from train import state as states
from train.align.rollouts import Rollouts
from train.checkpoints.checkpoint import Checkpoints
from train.objectives.objective import Objective
from train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose config fits its workdir and whose data are prepared."""

    config: ConfigDict  # with the fields that come from config.init_from
    workdir: Path
    pretrained: Workdir | None  # that config.init_from names
    mesh: jax.sharding.Mesh
    prepared: Prepared
    model: ModelConfig
    words: tokenizer.Tokenizer
    corruption: Corruption | None
    objective: Objective
    recorded: dict[str, dict] = dataclasses.field(default_factory=dict)  # companions and rewards of the checkpoint
    # Workdir, step and content hash of companions whose numbers are a channel of the rows (references.py), by name.
    references: dict[str, dict] = dataclasses.field(default_factory=dict)

    def optimizer(self):
        return build.optimizer(self.config, self.model)

    def state(self, tx, checkpoints: Checkpoints, step: int = 0) -> TrainState:
        """Returns the state that the run begins with, or the state to restore a checkpoint into, with the companions.

        Checkpoints hold neither the base of adapters nor companions, so both are read again. `checkpoints` is told
        which ones, so that it can compare or record them.

        Args:
          tx: the optimizer.
          checkpoints: of the run.
          step: that will be restored; 0 if the run begins.
        """
        tuning, labels = models.tuning(self.config, self.words), self.prepared.labels
        state, checkpoints.base = init_from.create(
            self.config, self.pretrained, self.model, tuning, tx, step > 0, labels
        )
        state = dataclasses.replace(state, critic=critics.create(self.config, self.pretrained, self.model, step > 0))
        if step:
            self.recorded.update(checkpoints.loop(step).get("companions", {}))
        beside = companions.found(self.objective, self.config, state.model, self.recorded)
        rewards = self.asked.rewarding.record if self.asked else {}
        checkpoints.companions = beside.record | self.references | rewards
        return states.beside(state, beside.models)

    @functools.cached_property
    def asked(self) -> prompting.Asked | None:
        """What asks prompts; None: the run learns from rows of data."""
        if not kinds.asks(self.config.data):
            return None
        return prompting.Asked(self.config, self.prepared, self.words, self.objective, self.mesh, self.recorded)

    def source(self, position: dict | None, everything: bool = False) -> pipeline.Pipeline | Rollouts:
        """Returns the training batches, from the start or from a position.

        Args:
          position: None for the start.
          everything: read all rows of a batch; otherwise only those that this process needs.
        """
        if self.asked is None:
            return self._rows(position, self.config.batch_size, everything)
        text = None
        if count := self.config.rollouts.text_rows:
            text = self._rows((position or {}).get("text"), count, everything=True)
        return self.asked.source(position, text, everything)

    def evaluation(self, eval_step) -> Callable[[TrainState], dict[str, float]]:
        """Returns a function from the state to the figures of an evaluation, {'validation/...': value}."""
        if self.asked is not None:
            return SampledEvaluation(self.asked, self.workdir)
        evaluate = held_out.Evaluation(
            self.config, self.prepared, self.corruption, self.objective, eval_step, self.mesh
        )
        return lambda state: evaluate(state.model, self.config.eval_rows or None, state.companions)

    def _rows(self, position: dict | None, count: int, everything: bool) -> pipeline.Pipeline:
        return pipeline.train_pipeline(
            self.prepared,
            count,
            self.config.seed,
            None if everything else build.batch_rows(self.mesh, count),
            position,
            self.corruption,
            build.augmentation(self.config, self.prepared),
            self.config.data.max_bad_lines,
        )


class Checked(NamedTuple):
    """A config that passed all checks that need no data."""

    config: ConfigDict  # with the fields that come from config.init_from
    pretrained: Workdir | None  # that config.init_from names
    mesh: jax.sharding.Mesh


def checked(config: ConfigDict, workdir: Workdir, chosen: Iterable[str] = ()) -> Checked:
    """Checks a config without its data, and fills in the fields that come from config.init_from.

    Args:
      config: of the run.
      workdir: of the run.
      chosen: fields that the user has set.

    Raises:
      ConfigError: the config can't be run.
    """
    places.check(workdir.path)
    ranges.check(config)  # checks.check repeats it with the fields that come from config.init_from
    checks.check_read(config, chosen)
    config, pretrained = init_from.resolve(config, workdir, chosen)
    mesh = build.mesh(config)
    checks.check(config, mesh, new=not workdirs.begun(workdir.path))
    companions.check(models.objective(config).beside(), config)
    early_stopping.make(config)
    grading.settings(config)
    safety.check(config)
    held_out.check(config)
    recovery.check(config)
    prompting.check(config)
    return Checked(config, pretrained, mesh)


def opened(config: ConfigDict, workdir: Path, chosen: Iterable[str] = ()) -> Run:
    """Checks a config, prepares its data and returns the run; all processes agree on both.

    Args:
      config, workdir: of the run.
      chosen: fields that the user has set.

    Raises:
      ConfigError: the config can't be run, does not fit the workdir, or differs between processes.
      DataError: there are no data, or they can't be prepared.
    """
    there = Workdir(workdir)
    config, pretrained, mesh = checked(config, there, chosen)
    continuing.check(there, config)
    prepared = build.data(config, workdir)
    continuing.check_data(there, prepared)
    held_out.check_held_out(config, prepared)
    num_labels = 0 if prepared.labels is None else num_scores(prepared.labels)
    model = models.model_config(config, prepared.vocab_size, num_labels)
    words = tokenizer.load(prepared.tokenizer_path)
    distributed.agree("config", stage.digest(config.to_json()))
    distributed.agree("data", f"{prepared.content_hash} ({prepared.directory.name})")
    if config.safety.prompts:
        distributed.agree("prompts of config.safety", workdirs.safety_prompts(config))
    corruption = build.corruption(config, prepared)
    objective = models.objective(config, prepared.labels)
    objective = objective.sampling(config.rollouts.temperature, config.rollouts.max_new_tokens, words.vocab_size)
    return Run(config, workdir, pretrained, mesh, prepared, model, words, corruption, objective)
