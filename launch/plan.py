"""Plan a training run for accelerators that you don't have: memory, communication and time.

    python -m launch.plan --config=configs/pretrain_decoder.py:llama3_8b --target=v5p:4x4x4 --mesh=fsdp=16,tensor=4
    python -m launch.plan --config=configs/pretrain_decoder.py:llama3_8b --target=h100:2x8 --search

The real train step is compiled for the target, in a separate process. To install the compilers:
`pip install --no-deps -r launch/plans/requirements.txt`.
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.plan")

from launch.program import runtime

runtime.configure()

import sys

from absl import flags
from ml_collections import config_flags

from launch.plans import candidates
from launch.program.checking import ConfigError, checking
from launch.run import init_from
from train.planning import page, targets

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with its argument after a colon. Required.")
_TARGET = flags.DEFINE_string(
    "target", None, "Chips: v4, v5e, v5p or v6e:TOPOLOGY, h100:GPUS or h100:NODESxGPUS, cpu:N. Required.", required=True
)
_SLICES = flags.DEFINE_integer("slices", 1, "Number of slices of a TPU target, connected by the data center's network.")
_MESH = flags.DEFINE_string(
    "mesh", "", "Sizes of mesh axes, as in fsdp=16,tensor=4; the other devices go to data. Empty: config.mesh."
)
_TOKENS = flags.DEFINE_float("tokens", 0, "Training tokens; 0: 20 per parameter (Chinchilla).", lower_bound=0)
_SEARCH = flags.DEFINE_bool("search", False, "Try other meshes and remat policies, and rank those that fit by time.")
_TRIES = flags.DEFINE_integer("tries", 12, "How many programs --search compiles at most.", lower_bound=1)


def main() -> None:
    config, name = _CONFIG.value, config_flags.get_config_filename(flags.FLAGS["config"])
    if config.init_from:
        config, _ = init_from.resolve(config, None, config_flags.get_override_values(flags.FLAGS["config"]))
    with checking("--target"):
        target = targets.parse(_TARGET.value, _SLICES.value)
    mesh = candidates.mesh_of(_MESH.value, config)
    if _SEARCH.value:
        if not target.chip.flops:
            raise ConfigError(f"--search ranks by estimated time, but no rates are published for {target.name}")
        show = lambda row: print(page.table([row], target).splitlines()[-1], file=sys.stderr, flush=True)
        rows = candidates.search(config, target, mesh if _MESH.value else {}, _TRIES.value, show)
        print(f"{name} on {target}, {config.batch_size} x {config.data.seq_len} tokens per step")
        print(page.table(rows, target))
        return
    for text in candidates.pages(config, target, mesh, name, _TOKENS.value):
        print(text, flush=True)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    runtime.run(main)
