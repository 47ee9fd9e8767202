"""The top of a run's report: its most important figure beside what to compare it with, and facts in tiles."""

import math
from html import escape
from typing import Any

import numpy as np

from train.early_stopping import lower_is_better
from train.record.metrics import duration, short
from train.report.plots import smooth
from train.report.recorded import Recorded, show
from train.watch import goodput

_OWN, _START = "this model", "at the start"


def section(run: Recorded) -> str:
    def median(key):
        values = run.series(key)[1]
        return float(np.median(values[np.isfinite(values)])) if np.isfinite(values).any() else math.nan

    model, wall, skipped = run.summary.get("model") or {}, run.summary["wall"], run.last("skipped")
    bodies, validation = model.get("non_embedding_parameters"), run.validation
    first = run.objective.curves[0].metrics[0]  # what the report draws first: the loss, or a reward
    train = smooth(run.series(first)[1])
    facts = (
        (
            f"Validation {first}",
            show(validation.get(first), "{:.3f}"),
            show(validation.get("perplexity"), "perplexity {:.4g}"),
        ),
        (f"Train {first}", show(float(train[-1]) if train.size else None, "{:.3f}"), "smoothed"),
        ("Steps", show(run.last("step"), "{:,}"), show(skipped or None, "{:.0f} skipped")),
        ("Tokens per second", show(median("tokens_per_second"), short), "median"),
        ("MFU", show(100 * median("mfu"), "{:.1f} %"), "median, see below"),
        ("Wall time", show(goodput.total(wall), duration) if wall else "–", f"goodput {goodput.share(wall):.1%}"),
        ("Parameters", show(model.get("parameters"), short), show(bodies, lambda n: short(n) + " non-embedding")),
        ("FLOPs per token", show(model.get("flops_per_token"), short), "forward, backward"),
        ("Tokens seen", show(run.summary.get("tokens") or None, short), ""),
    )
    tiles = ""
    known = [fact for fact in facts if fact[1] != "–"]  # a policy has no tokens per second, for example
    for name, value, note in known or facts:
        note = "" if "–" in value + note else escape(note)
        tiles += f"<div><dt>{name}</dt><dd>{escape(value)}<small>{note}</small></dd></div>"
    return f'<section class="head"><div class="card">{_chart(run)}</div><dl class="card">{tiles}</dl></section>'


def _chart(run: Recorded) -> str:
    """Returns the first metric of the objective that was evaluated, beside the model at the start and its baselines."""
    headlines, validation, evaluations = run.objective.headlines, run.validation, run.evaluations
    headline = next((one for one in headlines if validation.get(one.metric) is not None), headlines[0])
    figures: dict[str, Any] = {}
    if len(evaluations) > 1 and evaluations[0]["step"] == 0:
        figures[_START] = evaluations[0].get(headline.metric)
    figures[_OWN] = validation.get(headline.metric)
    figures |= run.baselines(headline.baselines)
    figures |= run.summary.get(headline.others) or {}
    shown = {name: value for name, value in figures.items() if show(value, str) != "–"}
    low, high = min((0, *shown.values())), max((1e-9, *shown.values()))
    bars = ""
    for name, value in shown.items():
        share = (value - low) / (high - low)
        width = f'style="width:{100 * share:.1f}%"{" class=own" if name == _OWN else ""}'
        bars += f"<span>{escape(name)}</span><i {width}></i><span>{value:.3f}</span>"
    better = "Lower" if lower_is_better(headline.metric) else "Higher"
    note = f"{better} is better; {headline.where}." if len(shown) > 1 else "" if shown else "No evaluation yet."
    if _START in shown and run.config.get("eval_rows") and headline.metric in (run.summary.get("validation") or {}):
        note += f" At the start only {run.config['eval_rows']:,} rows were evaluated."
    if headline.metric == "loss" and run.summary.get("no_bits_per_byte"):
        note += f" No bits per byte, because {escape(run.summary['no_bits_per_byte'])}."
    own = show(figures[_OWN], "{:.3f}")
    return f"""<small>Validation, {headline.label}</small><div class="figure">{own}</div>
<div class="bars">{bars}</div><small>{note}</small>"""
