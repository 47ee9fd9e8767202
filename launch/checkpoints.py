"""List the checkpoints of a run: steps, sizes, times, and whether their files are complete.

    python -m launch.checkpoints --workdir=runs/quickstart
    python -m launch.checkpoints --workdir=runs/quickstart --verify     # reads every byte

The exit status is 1 if a checkpoint is damaged. This changes nothing; training sets damaged checkpoints aside.
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.checkpoints")

from launch.program import runtime

runtime.configure()

import sys
from pathlib import Path

from absl import flags

from launch.training import recovery

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a run or of an imported model. Required.", required=True)
_VERIFY = flags.DEFINE_bool("verify", False, "Read every byte and compare it with the hashes of the manifest.")


def main() -> None:
    lines, good = recovery.listed(Path(_WORKDIR.value).absolute(), _VERIFY.value)
    print("\n".join(lines))
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    runtime.run(main)
