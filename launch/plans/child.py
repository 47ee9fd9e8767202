"""The process that a plan is made in: reads a job on stdin, writes what it found to the file that the job names.

Not for users: launch/plan.py starts it, with the environment that the target needs, so that neither a compiler's crash
nor its messages are a report's.
"""

if __package__ in (None, ""):  # as a script, launch/ would be the first place where modules are looked for
    raise SystemExit("start it from the checkout as: python -m launch.plan")

from launch.program import runtime

runtime.configure()  # what training on the target sets is there already

import json
import sys
from pathlib import Path

import jax
from flax import nnx
from ml_collections import ConfigDict

from data.batch import ENCODER_DTYPES, DataError, dtypes
from data.examples import kinds
from launch.program.checking import ConfigError, checking
from launch.run import build, checks, models
from model import architectures, axes, count, weights
from model.compress.quantize import quantize
from train import state
from train.planning import compile, targets
from train.planning.analyse import analyse


def found(config: ConfigDict, target: targets.Target, mesh_shape: dict[str, int]) -> dict:
    """What is known of the step of `config`; 'missing' says what is not, for want of a compiler."""
    missing = ""
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
    with checking("--target, --mesh"):
        try:
            mesh = compile.mesh(target, mesh_shape)
        except compile.CompilerMissing as error:
            mesh, missing = compile.abstract_mesh(target, mesh_shape), str(error)
    checks.check(config, mesh)
    tokenizer_size = 0 if config.model.vocab_size else config.data.tokenizer.vocab_size
    model = models.model_config(config, tokenizer_size, config.model.get("num_labels") or 1)
    tx, tuning = build.optimizer(config, model), models.tuning(config)

    def make(rngs: nnx.Rngs):
        base = architectures.make(model, rngs)
        return tuning.apply(quantize(base, tuning.quantization) if tuning.quantization else base, jax.random.key(0))

    with axes.use_mesh(mesh):
        abstract = state.abstract(make, tx)
        step, _ = build.steps(config, tx, models.objective(config))
        result = analyse(step, abstract, batch(config, model, mesh), mesh, target)
    trains = weights.trained(abstract.model)
    tokens = config.batch_size * config.data.seq_len
    per_token = build.flops(config, model, trains, None)
    return result | {
        "missing": missing,
        "parameters": count.num_params(model),
        "trained": sum(leaf.size for leaf in trains.values()),
        "tokens": tokens,
        "model_flops": per_token * tokens,
    }


def batch(config: ConfigDict, model, mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch without values (data/batch.py); both sides of an encoder-decoder are config.data.seq_len long."""
    data, encoder = config.data.to_dict(), model.architecture == "encoder_decoder"
    if not kinds.sources(data):
        data["path"] = "data"  # a plan reads none, and where it lies need not be known yet: data.format says what it is
    found = dtypes(kinds.batch_channels(data, encoder)) | (ENCODER_DTYPES if encoder else {})
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
