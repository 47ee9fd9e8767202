"""launch.benchmark runs with an adapter over a quantized base."""

import json
import subprocess
import sys


def test_one_step():
    sizes = dict(num_layers=1, embed_dim=64, num_heads=2, mlp_dim=64, vocab_size=64, dtype="float32")
    words = ["--config=configs/benchmark.py:small-qlora", "--steps=1", "--json", "--config.batch_size=8"]
    words += ["--config.data.seq_len=16", *(f"--config.model.{name}={value}" for name, value in sizes.items())]
    done = subprocess.run([sys.executable, "-m", "launch.benchmark", *words], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    figures = json.loads(done.stdout)
    # Adapters of rank 8 on query, key, value, out, up and down, each with 64 inputs and 64 outputs.
    assert figures["trained_parameters"] == 6 * 8 * (64 + 64)
    assert figures["tokens_per_second"] > 0 and figures["step_seconds"] > 0 and figures["peak_memory_bytes"] > 0


def test_only_the_prediction_of_tokens_is_timed():
    words = ["--config=configs/dpo.py:tiny", "--config.model.vocab_size=64"]
    done = subprocess.run([sys.executable, "-m", "launch.benchmark", *words], capture_output=True, text=True)
    assert done.returncode == 1 and "config.objective.name is 'preference'" in done.stderr
    assert "Traceback" not in done.stderr
