"""Train the model of a config, or continue the run of a workdir.

    python -m launch.train --config=configs/NAME.py:ARG --workdir=DIR --config.optimizer.learning_rate=3e-4

The same command continues the run, or reports that it is done. On SIGTERM or Ctrl-C the run saves before it stops. For
several hosts, run the same command on each of them (launch/hosts/distributed.py).
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.train")

from launch.program import runtime

runtime.configure("training")

from absl import flags
from ml_collections import config_flags

from launch.hosts import distributed
from launch.run import places
from launch.training import replay
from launch.training.trainer import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with its argument after a colon. Required.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the config, metrics, checkpoints and report of the run. Required."
)
_REPLAY = flags.DEFINE_integer(
    "replay",
    None,
    "Repeat this step of the run, from the checkpoint before it, and print its loss, norms and rows.",
    lower_bound=1,
)
flags.adopt_module_key_flags(distributed)


def main() -> None:
    chosen = config_flags.get_override_values(flags.FLAGS["config"])
    with distributed.joined():
        if _REPLAY.value:
            replay.show(_CONFIG.value, places.named(_WORKDIR.value or ""), chosen, _REPLAY.value)
            return
        train(_CONFIG.value, places.named(_WORKDIR.value or ""), chosen)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    runtime.run(main)
