"""Reads config.early_stopping, and chooses the checkpoint that programs read (the flag --step)."""

import sys

from absl import flags
from ml_collections import ConfigDict

from launch.program.checking import ConfigError, checking
from train.checkpoints.checkpoint import Checkpoints
from train.early_stopping import EarlyStopping

flags.disclaim_key_flags()  # so that --help of a program that calls define_step lists --step as its own


def make(config: ConfigDict, saved: dict | None = None) -> EarlyStopping:
    """Returns early stopping as config.early_stopping describes it.

    Args:
      config: the whole config.
      saved: the loop's part of a checkpoint, to continue counting from there; None: a new run.

    Raises:
      ConfigError: a value is not possible, or there are no evaluations or best checkpoints to stop by.
    """
    with checking("config.early_stopping"):
        stopping = EarlyStopping(**config.early_stopping, saved=(saved or {}).get("early_stopping"))
    if stopping.patience and not (config.eval_every and config.keep_best):
        raise ConfigError(
            f"config.early_stopping.patience {stopping.patience} needs evaluations and their best checkpoint: set "
            f"config.eval_every (now {config.eval_every}) and config.keep_best (now {config.keep_best}) to at least 1"
        )
    return stopping


def define_step():
    """Defines the flag --step of a program that reads one checkpoint of a run."""
    return flags.DEFINE_string(
        "step", "", "Checkpoint to read: a number, latest, or best. Default: best if the run ended early, else latest."
    )


def find_step(checkpoints: Checkpoints, wanted: str = "") -> int:
    """Returns the step that `wanted` means (Checkpoints.find), with a line on stderr if it is not the latest one."""
    step, latest = checkpoints.find(wanted), checkpoints.latest_step
    if step != latest and not wanted.isdecimal():
        run = checkpoints.directory.parent
        print(f"{run}: reading step {step}, the best by {checkpoints.metric}; the latest is {latest}", file=sys.stderr)
    return step
