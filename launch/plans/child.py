"""Makes a plan in a process of its own: reads a job from stdin, and writes the result to the file that the job names.

It is not for users. launch/plan.py starts it with the environment of the target. So a crash of the compiler does not
end launch.plan, and the compiler's messages stay out of the report.
"""

if __package__ in (None, ""):  # run as a script, launch/ would come first on sys.path
    raise SystemExit("start it from the checkout as: python -m launch.plan")

from launch.program import runtime

runtime.configure()  # the parent process has already set the variables for training on the target

import json
import sys
from pathlib import Path

import jax
from flax import nnx
from ml_collections import ConfigDict

from data.batch import ENCODER_DTYPES, DataError, dtypes
from data.examples import kinds
from launch.program.checking import ConfigError, checking
from launch.run import build, checks, companions, models
from model import architectures, axes, count, weights
from model.compress.quantize import quantize
from train import state
from train.planning import compile, targets
from train.planning.analyse import analyse


def found(config: ConfigDict, target: targets.Target, mesh_shape: dict[str, int]) -> dict:
    """Returns a plan of the train step of `config`: the values of `analyse`, and sizes of model and batch.

    If the compiler for the target is not installed, 'missing' is a message about it, and only values that need no
    compiler are returned.

    Raises:
      ConfigError: the config can't be run on the target.
      DataError: config.data is wrong.
    """
    missing = ""
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
    with checking("--target, --mesh"):
        try:
            mesh = compile.mesh(target, mesh_shape)
        except compile.CompilerMissing as error:
            mesh, missing = compile.abstract_mesh(target, mesh_shape), str(error)
    checks.check(config, mesh)
    model = models.model_config(config, models.planned_tokenizer_size(config), config.model.get("num_labels") or 1)
    tx, tuning = build.optimizer(config, model), models.tuning(config)

    def make(rngs: nnx.Rngs):
        base = architectures.make(model, rngs)
        return tuning.apply(quantize(base, tuning.quantization) if tuning.quantization else base, jax.random.key(0))

    with axes.use_mesh(mesh):
        objective, alone = models.objective(config), state.abstract(make, tx)
        abstract = state.beside(alone, companions.planned(objective, config, alone.model))
        if kinds.asks(config.data.to_dict() | {"path": config.data.path or "data"}):
            raise ConfigError(
                "a step over rollouts has as many rows as the answers need, so it can't be planned; plan "
                "configs/sft.py with the same model and mesh, whose step differs only in the loss"
            )
        step, _ = build.steps(config, tx, objective)
        result = analyse(step, abstract, batch(config, model, mesh), mesh, target)
    trains = weights.trained(abstract.model)
    tokens = config.batch_size * config.data.seq_len
    per_token = build.flops(config, abstract, None)
    return result | {
        "missing": missing,
        "parameters": count.num_params(model),
        "trained": sum(leaf.size for leaf in trains.values()),
        "tokens": tokens,
        "model_flops": per_token * tokens,
    }


def batch(config: ConfigDict, model, mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of a global batch (data/batch.py). The sequences of an encoder and those of its decoder
    both have config.data.seq_len tokens."""
    data, encoder = config.data.to_dict(), model.architecture == "encoder_decoder"
    if not kinds.sources(data):
        data["path"] = "data"  # a plan reads no data, so the path may still be unknown; data.format gives the channels
    channels = (*kinds.batch_channels(data, encoder), *models.objective(config).channels)
    found = dtypes(channels) | (ENCODER_DTYPES if encoder else {})
    shape, sharding = (config.batch_size, config.data.seq_len), axes.batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in found.items()}


def main() -> None:
    job = json.load(sys.stdin)
    target = targets.parse(job["target"], job["slices"])
    try:
        result = found(ConfigDict(job["config"]), target, job["mesh"])
    except (ConfigError, DataError) as error:
        result = {"mistake": str(error)}
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        words = f"{error} launch/plans/requirements.txt has it; or plan with --config.model.attention=xla"
        result = {"mistake": words}
    Path(job["out"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
