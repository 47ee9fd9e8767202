"""config.early_stopping, and the flag --step: which checkpoint of a run is read."""

import sys

from absl import flags
from ml_collections import ConfigDict

from launch.program.checking import ConfigError, checking
from train.checkpoints.checkpoint import Checkpoints
from train.early_stopping import EarlyStopping

flags.disclaim_key_flags()  # --step belongs to the program that calls define_step: its --help shows no others' flags


def make(config: ConfigDict, saved: dict | None = None) -> EarlyStopping:
    """As the block says, and as it was when `saved`, the loop's part of a checkpoint, was written."""
    with checking("config.early_stopping"):
        stopping = EarlyStopping(**config.early_stopping, saved=(saved or {}).get("early_stopping"))
    if stopping.patience and not (config.eval_every and config.keep_best):
        raise ConfigError(
            f"config.early_stopping.patience {stopping.patience} needs evaluations and their best checkpoint: set "
            f"config.eval_every (now {config.eval_every}) and config.keep_best (now {config.keep_best}) to at least 1"
        )
    return stopping


def define_step():
    """The flag --step of a program that reads one checkpoint of a run."""
    return flags.DEFINE_string(
        "step", "", "Checkpoint to read: a number, latest, or best. Without: best if the run ended early, else latest."
    )


def find_step(checkpoints: Checkpoints, wanted: str = "") -> int:
    """The step that `wanted` means (Checkpoints.find); says on stderr where it is an earlier one that is the best."""
    step, latest = checkpoints.find(wanted), checkpoints.latest_step
    if step != latest and not wanted.isdecimal():
        run = checkpoints.directory.parent
        print(f"{run}: reading step {step}, the best by {checkpoints.metric}; the latest is {latest}", file=sys.stderr)
    return step
