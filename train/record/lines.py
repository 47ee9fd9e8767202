"""What a run writes and says of a step: its log line, an update left out, an evaluation."""

import math
from typing import Any

from train import guard
from train.parts import Parts
from train.watch.goodput import share


def log(step: int, means: dict[str, float], seconds: float, parts: Parts) -> None:
    """One line of figures: the `means` since the last one, what follows from the `seconds` a step, and where the time
    went. Reads nothing from a device, which is at work on the next step."""
    rate, progress = float(parts.learning_rates[step - 1]), parts.progress
    loss = means.pop("loss")
    values: dict[str, Any] = {"loss": loss, "learning_rate": rate, **means}
    if progress.perplexity:
        values["perplexity"] = math.exp(min(loss, 700.0))
    if math.isfinite(seconds):
        values["seconds_per_step"] = seconds
        values["tokens_per_second"] = progress.tokens_per_step / seconds
        if progress.peak_flops:
            values["mfu"] = progress.flops_per_token * values["tokens_per_second"] / progress.peak_flops
    values |= {"goodput": share(wall := parts.goodput.wall()), "wall": wall}
    parts.writer.write(step, values)
    progress.update(step, loss, rate, seconds)


def left_out(step: int, result: dict, place: Any, parts: Parts) -> None:
    """Say and keep why the update of a step was not made, and where its batch begins."""
    why, norm = guard.REASONS[int(result["left_out"])], float(result["grad_norm"])
    loss = float(result["loss"]) if "loss" in result else math.nan
    parts.writer.event(step, {"left_out": why, "loss": loss, "grad_norm": norm, "position": place})
    parts.progress.message(f"step {step}: update left out, {why} (loss {loss:.4g}, gradient norm {norm:.4g})")


def evaluation(step: int, figures: dict[str, float]) -> str:
    """What a person sees of an evaluation."""
    shown = "  ".join(f"{name.removeprefix('validation/').replace('_', ' ')} {v:.4g}" for name, v in figures.items())
    return f"step {step}  validation: {shown}"
