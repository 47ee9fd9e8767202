"""Writes and prints what happens in a step: its log line, a skipped update, an evaluation."""

import math
from typing import Any

from train import guard
from train.objectives.objective import numbers
from train.parts import Parts
from train.watch.goodput import share


def log(step: int, means: dict[str, float], seconds: float, parts: Parts) -> None:
    """Logs a line of metrics: the `means` since the last line, the speed, and the wall time by phase.

    It reads nothing from a device, because the device is already computing the next step.

    Args:
      step: the last step of the window.
      means: metrics averaged over the window.
      seconds: per step; NaN if unknown.
      parts: of the loop.
    """
    rate, progress = float(parts.learning_rates[step - 1]), parts.progress
    loss = means.pop("loss")
    values: dict[str, Any] = {"loss": loss, "learning_rate": rate, **means}
    if progress.perplexity:
        values["perplexity"] = math.exp(min(loss, 700.0))
    if math.isfinite(seconds):
        values["seconds_per_step"] = seconds
        if progress.tokens_per_step:
            values["tokens_per_second"] = progress.tokens_per_step / seconds
            if progress.peak_flops:
                values["mfu"] = progress.flops_per_token * values["tokens_per_second"] / progress.peak_flops
    values |= {"goodput": share(wall := parts.goodput.wall()), "wall": wall}
    parts.writer.write(step, values)
    progress.update(step, loss, rate, seconds, means)


def left_out(step: int, result: dict, place: Any, parts: Parts) -> None:
    """Prints and records why the update of a step was skipped, and where its batch begins in the data."""
    why, norm = guard.REASONS[int(result["left_out"])], float(result["grad_norm"])
    loss = float(result["loss"]) if "loss" in result else math.nan
    parts.writer.event(step, {"left_out": why, "loss": loss, "grad_norm": norm, "position": place})
    parts.progress.message(f"step {step}: update skipped, {why} (loss {loss:.4g}, gradient norm {norm:.4g})")


def not_best(step: int, why: str, parts: Parts) -> None:
    """Prints and records why the evaluation of a step can't be the best one (EarlyStopping.excluded).

    It is no event, because it belongs to the evaluation: a run that repeats the step after a roll-back judges it anew.
    """
    parts.writer.write(step, {"not_best": {"why": why}})
    parts.progress.message(f"step {step}: not best: {why.removeprefix('validation/')}")


def evaluation(step: int, figures: dict[str, Any]) -> str:
    """Returns the line that is printed for an evaluation: its numbers."""
    words = lambda name: name.removeprefix("validation/").replace("_", " ")
    shown = "  ".join(f"{words(name)} {value:.4g}" for name, value in numbers(figures).items())
    return f"step {step}  validation: {shown}"
