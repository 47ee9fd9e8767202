"""Compares the planner's estimates with published training steps, as a Markdown table for the README.

    python -m tests.benchmarks.published_steps

The published figures are MaxText's tiers of optimized models (maxtext.readthedocs.io, reference/models/tiering), with
batch and mesh from its recipes (AI-Hypercomputer/tpu-recipes, and maxtext's benchmarks/maxtext_v5p_model_configs.py).
Their remat policies keep or offload projections; ours is `full`. The rows of a chip are computed one after another
(accumulate).
"""

from configs import pretrain_decoder
from launch.plans import candidates
from train.planning import page, targets

# name, size, target, mesh, sequence length, rows per chip, micro-batches, published MFU
STEPS = (
    ("Llama 2 70B", "llama2_70b", "v5p:8x8x8", {"data": 8, "fsdp": 64}, 4096, 4, 4, 0.654),
    ("Llama 3.1 8B", "llama3.1_8b", "v6e:16x16", {"fsdp": 256}, 8192, 4, 4, 0.4546),
    ("Llama 3.1 70B", "llama3.1_70b", "v6e:16x16", {"fsdp": 256}, 8192, 5, 5, 0.5033),
    ("Llama 3.1 405B", "llama3.1_405b", "v6e:16x16", {"fsdp": 64, "tensor": 4}, 8192, 1, 4, 0.3855),
)


def main() -> None:
    print("| run | published MFU | estimate | error | estimate of the products alone | peak GiB a chip |")
    print("|---|---|---|---|---|---|")
    for name, size, where, mesh, length, rows, accumulate, published in STEPS:
        target = targets.parse(where)
        config = pretrain_decoder.get_config(size)
        config.model.remat, config.data.seq_len = "full", length
        config.batch_size, config.accumulate = rows * target.devices, accumulate
        found = candidates.plan(config, target, mesh)
        alone = page.mfu(
            found | {"times": dict.fromkeys(found["times"], 0.0) | {"compute": found["times"]["compute"]}}, target
        )
        mfu, error = ("", "") if "out_of_memory" in found else (f"{page.mfu(found, target):.1%}", "")
        if mfu:
            error = f"{page.mfu(found, target) / published - 1:+.0%}"
        peak = f"{found['memory']['peak'] / targets.GIB:.1f}" if mfu else page.verdict(found)
        print(f"| {name}, {where} | {published:.1%} | {mfu} | {error} | {alone:.1%} | {peak} |", flush=True)


if __name__ == "__main__":
    main()
