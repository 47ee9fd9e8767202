"""Time the train step of a config on random tokens.

    python -m launch.benchmark --config=configs/benchmark.py:small --config.model.dtype=float32

This prints compile time, median tokens per second, peak memory and MFU. It reads no data and writes nothing.
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.benchmark")

from launch.program import runtime

runtime.configure("training")

import json
import os
import resource
import statistics
import sys
import time

import jax
import numpy as np
from absl import flags
from flax import nnx
from ml_collections import config_flags

from launch.program.checking import ConfigError
from launch.run import build, checks, init_from, models, restore
from model import architectures, axes, count
from model.compress.quantize import quantize
from model.weights import trained
from train import state
from train.record import mfu

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with its argument after a colon. Required.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps to time, after compilation and two warmup steps.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
_SERVE = flags.DEFINE_bool(
    "serve",
    False,
    "Print facts, then time as many steps as each line of stdin says. For comparisons, in turns with other programs.",
)


def main() -> None:
    config = _CONFIG.value
    if config.init_from:
        config, _ = init_from.resolve(config, None, config_flags.get_override_values(flags.FLAGS["config"]))
    mesh = build.mesh(config)
    checks.check(config, mesh)
    model = models.model_config(config, models.planned_tokenizer_size(config))
    if model.architecture == "encoder_decoder":
        raise ConfigError(
            "launch.benchmark times only decoders and encoders, but config.model.architecture is encoder_decoder; "
            "launch.train prints its tokens/s"
        )
    objective = models.objective(config)
    if not objective.predicts_tokens:
        raise ConfigError(
            f"launch.benchmark times only the prediction of tokens, but config.objective.name is "
            f"{config.objective.name!r}; launch.train prints its tokens/s"
        )
    rng = np.random.default_rng(0)
    shape = (config.batch_size, config.data.seq_len)
    tokens = rng.integers(0, model.vocab_size, (shape[0], shape[1] + 1), np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones(shape, np.int32),
        "positions": np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
        "weights": np.ones(shape, np.float32),
    }
    tx = build.optimizer(config, model)
    train_step, _ = build.steps(config, tx, objective)
    with axes.use_mesh(mesh):
        train_state = state.around(random_model(config, model), tx)
        trains = trained(train_state.model)
        flops = count.flops_per_token(model, config.data.seq_len, trains=trains)
        trained_parameters = sum(param.size for param in trains.values())
        batch = build.put(mesh)(batch)
        start = time.perf_counter()
        compiled = train_step.lower(train_state, batch).compile()
        compile_seconds = time.perf_counter() - start

        def timed(steps: int) -> list[float]:
            nonlocal train_state
            seconds = []
            for _ in range(steps):
                start = time.perf_counter()
                train_state, result = compiled(train_state, batch)
                jax.block_until_ready(result)
                seconds.append(time.perf_counter() - start)
            return seconds

        timed(2)
        if _SERVE.value:
            facts = {"compile_seconds": compile_seconds, "trained_parameters": trained_parameters}
            print(json.dumps(facts), flush=True)
            for line in sys.stdin:
                print(json.dumps(timed(int(line))), flush=True)
            return
        # The peak is measured before and after, because the speed of a shared machine drifts.
        before = mfu.peak_flops(mesh.devices.flat, model.dtype)[0]
        seconds = timed(_STEPS.value)
        peak, words = mfu.peak_flops(mesh.devices.flat, model.dtype)
    rate = config.batch_size * config.data.seq_len / statistics.median(seconds)
    figures = {
        "parameters": count.num_params(model),
        "trained_parameters": trained_parameters,
        "compile_seconds": compile_seconds,
        "step_seconds": statistics.median(seconds),
        "tokens_per_second": rate,
        "mfu": mfu.model_flops_utilization(flops, rate, max(before, peak)),
        "peak_memory_bytes": peak_memory(mesh),
    }
    if _JSON.value:
        print(json.dumps(figures))
        return
    print(f"{figures['parameters']:,} parameters, batch {shape[0]} x {shape[1]}, {model.dtype}, {words}")
    print(f"trained       {trained_parameters:8,} parameters")
    print(f"compile       {compile_seconds:8.1f} s")
    print(f"step          {figures['step_seconds']:8.3f} s     median of {len(seconds)}")
    print(f"tokens/s      {rate:8,.0f}")
    print(f"MFU           {100 * figures['mfu']:8.1f} %")
    print(f"peak memory   {figures['peak_memory_bytes'] / 2**30:8.2f} GiB")
    print(f"XLA_FLAGS     {os.environ.get('XLA_FLAGS') or 'none'}")
    print(mfu.MFU_CONVENTION)


def random_model(config, model):
    """Returns a model with random parameters, quantized and with adapters as config.adapt says."""
    tuning = models.tuning(config)
    made = jax.jit(lambda key: architectures.make(model, nnx.Rngs(key)))(jax.random.key(config.seed))
    if tuning.quantization:
        made = quantize(made, tuning.quantization)
    return restore.tuned(made, tuning, config.seed)


def peak_memory(mesh: jax.sharding.Mesh) -> int:
    """Returns the peak of bytes in use on the first device; on a CPU, that of the whole process."""
    stats = mesh.devices.flat[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    runtime.run(main)
