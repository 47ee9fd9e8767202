"""The report of a run: one self-contained report.html (inline SVG, no scripts), written from files only.

It reads these files of the workdir. Each file and each key is optional:

    metrics.jsonl   training lines (loss, perplexity, learning_rate, grad_norm, tokens_per_second, mfu, skipped; with
                    experts their load [layers, experts] and the share of dropped choices) and
                    evaluation lines (validation/loss, /perplexity, /bits_per_byte, /unigram; for labels
                    /accuracy and /majority_accuracy, or /mse and /mean_mse)
    config.json     the config of the run, nested
    summary.json    model {parameters, non_embedding_parameters, flops_per_token}, device, mesh, tokens, wall (seconds),
                    validation {loss, perplexity, bits_per_byte, unigram}, compressors {name: bits per byte},
                    no_bits_per_byte (the reason if there are none),
                    mfu_convention, best {metric, value, step}, ended (the reason if it stopped early), bound (what
                    the bound of early stopping made of the run),
                    samples [{prompt, text: the continuation}],
                    grade {figures {name: from 0 to 100}, examples, signatures {metric: text},
                    shown [{prompt, reference, answer}]},
                    safety {counts [{kind, language, prompts, VERDICT: number}], shown [{kind, verdict, rule, prompt,
                    answer}]} (refusals.py),
                    corpus [{name, content_hash, train_documents, validation_documents, bytes, tokens}]

Missing parts are left out or marked as missing, so the report of a running or failed run can be written too. Comparing
runs is left to TensorBoard.
"""

import json
import math
import time
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from data import files
from train.early_stopping import lower_is_better
from train.objectives.objective import Objective
from train.objectives.table import OBJECTIVES
from train.record.metrics import duration, read, short
from train.record.mfu import MFU_CONVENTION
from train.report import plots, refusals
from train.report.web_page import page
from train.watch import goodput


def write_report(workdir) -> Path:
    """Writes WORKDIR/report.html from the files there and returns its path."""
    workdir = Path(workdir)
    rows = read(workdir / "metrics.jsonl")
    summary, config = _load(workdir / "summary.json"), _load(workdir / "config.json")
    walls = [wall for wall in (summary.get("wall"), *(row.get("wall") for row in rows)) if wall]
    summary["wall"] = max(walls, key=goodput.total, default={})
    objective = (config.get("objective") or {}).get("name", "language")
    sections = _headline(rows, summary, objective) + _plots(rows)
    sections += (
        _wall(summary["wall"])
        + _experts(rows)
        + _answers(summary.get("grade") or {})
        + refusals.section(rows, summary)
        + _samples(summary.get("samples") or [])
        + _corpus(summary.get("corpus") or [])
        + _config(config)
    )
    run = " · ".join(str(summary[key]) for key in ("device", "mesh") if summary.get(key))
    best = summary.get("best") or {}
    found = f"Best evaluation: {best['metric']} {best['value']:.4g} at step {best['step']:,}." if best else ""
    outcome = str(summary.get("ended") or found or summary.get("bound") or "")
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(rows[-1]["time"])) if rows and "time" in rows[-1] else ""
    above = (" · ".join(filter(None, (run, when and "last logged " + when))), outcome)
    below = (
        str(summary.get("mfu_convention") or MFU_CONVENTION),
        "Written from metrics.jsonl, config.json and summary.json in the same folder.",
    )
    path = workdir / "report.html"
    files.replace(path, page(workdir.resolve().name, above, sections, below))
    return path


def _load(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (ValueError, TypeError) as error:
        logging.warning("%s is left out of the report: %s", path, error)
        return {}


def _series(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and values of the lines that have `key`. Values that were not finite are NaN."""
    pairs = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    steps, values = np.array(pairs, float).reshape(-1, 2).T
    return steps, values


def _show(value, form) -> str:
    """Formats a value with a format string or a function; returns a dash if it is missing or NaN."""
    if not isinstance(value, int | float) or math.isnan(value):
        return "–"
    return form(value) if callable(form) else form.format(value)


def _headline(rows: list[dict], summary: dict, objective: str) -> str:
    def last(key):
        return next((row[key] for row in reversed(rows) if key in row), None)

    def median(key):
        values = _series(rows, key)[1]
        return float(np.median(values[np.isfinite(values)])) if np.isfinite(values).any() else math.nan

    model, wall, skipped = summary.get("model") or {}, summary["wall"], last("skipped")
    bodies = model.get("non_embedding_parameters")
    prefix = "validation/"
    validation: dict = {key.removeprefix(prefix): row[key] for row in rows for key in row if key.startswith(prefix)}
    validation |= summary.get("validation") or {}
    train_loss = plots.smooth(_series(rows, "loss")[1])
    facts = (
        (
            "Validation loss",
            _show(validation.get("loss"), "{:.3f}"),
            _show(validation.get("perplexity"), "perplexity {:.4g}"),
        ),
        ("Train loss", _show(float(train_loss[-1]) if train_loss.size else None, "{:.3f}"), "smoothed"),
        ("Steps", _show(last("step"), "{:,}"), _show(skipped or None, "{:.0f} skipped")),
        ("Tokens per second", _show(median("tokens_per_second"), short), "median"),
        ("MFU", _show(100 * median("mfu"), "{:.1f} %"), "median, see below"),
        ("Wall time", _show(goodput.total(wall), duration) if wall else "–", f"goodput {goodput.share(wall):.1%}"),
        ("Parameters", _show(model.get("parameters"), short), _show(bodies, lambda n: short(n) + " non-embedding")),
        ("FLOPs per token", _show(model.get("flops_per_token"), short), "forward, backward"),
        ("Tokens seen", _show(summary.get("tokens"), short), ""),
    )
    tiles = ""
    for name, value, note in facts:
        note = "" if "–" in value + note else escape(note)
        tiles += f"<div><dt>{name}</dt><dd>{escape(value)}<small>{note}</small></dd></div>"
    chart = _chart(validation, summary, objective)
    return f'<section class="head"><div class="card">{chart}</div><dl class="card">{tiles}</dl></section>'


def _chart(validation: dict, summary: dict, objective: str) -> str:
    """Returns the first metric of the objective that was evaluated, beside its baselines."""
    headlines = OBJECTIVES.get(objective, Objective).headlines
    headline = next((one for one in headlines if validation.get(one.metric) is not None), headlines[0])
    figures: dict[str, Any] = {"this model": validation.get(headline.metric)}
    figures |= {name: validation.get(metric) for metric, name in headline.baselines.items()}
    figures |= summary.get(headline.others) or {}
    shown = {name: value for name, value in figures.items() if _show(value, str) != "–"}
    longest = max((1e-9, *shown.values()))
    bars = ""
    for name, value in shown.items():
        width = f'style="width:{100 * max(0, value) / longest:.1f}%"{" class=own" if name == "this model" else ""}'
        bars += f"<span>{escape(name)}</span><i {width}></i><span>{value:.3f}</span>"
    better = "Lower" if lower_is_better(headline.metric) else "Higher"
    note = f"{better} is better; {headline.where}." if len(shown) > 1 else "" if shown else "No evaluation yet."
    if headline.metric == "loss" and summary.get("no_bits_per_byte"):
        note += f" No bits per byte, because {escape(summary['no_bits_per_byte'])}."
    own = _show(figures["this model"], "{:.3f}")
    return f"""<small>Validation, {headline.label}</small><div class="figure">{own}</div>
<div class="bars">{bars}</div><small>{note}</small>"""


def _plots(rows: list[dict]) -> str:
    loss, validation, bits = (_series(rows, key) for key in ("loss", "validation/loss", "validation/bits_per_byte"))
    if not np.isfinite([*loss[1], *validation[1]]).any():
        return "<section><h2>Curves</h2><p class=card>No metrics yet.</p></section>"
    none = _series([], "")
    key = '<span class="key"><i class="thin"></i>train<i></i>smoothed<i class="dot"></i>validation</span>'
    wide, narrow = (9.6, 3.4), (4.3, 2.9)  # two shapes of the loss, because a wide plot is unreadable on a phone
    drawn = {
        f"Loss{key}": f'<div class="wide">{plots.curve(wide, loss, validation)}</div>'
        f'<div class="narrow">{plots.curve(narrow, loss, validation)}</div>',
        "Learning rate": plots.curve(narrow, _series(rows, "learning_rate"), none, raw=True),
        "Gradient norm": plots.curve(narrow, _series(rows, "grad_norm"), none),
        "Tokens per second": plots.curve(narrow, _series(rows, "tokens_per_second"), none),
        "Validation bits per byte": plots.curve(narrow, none, bits),
    }
    cards = "".join(f'<figure class="card"><h3>{title}</h3>{svg}</figure>' for title, svg in drawn.items() if svg)
    return f'<section><h2>Curves</h2><div class="plots">{cards}</div></section>'


def _wall(wall: dict) -> str:
    """Returns the section on wall time by phase."""
    parts, total, bars = goodput.parts(wall), goodput.total(wall), ""
    for name, seconds in parts.items():
        width = f'style="width:{100 * seconds / max(parts.values()):.1f}%"{" class=own" if name == "step" else ""}'
        figure = f"{goodput.spell(seconds)}, {seconds / total:.1%}"
        bars += f"<span>{escape(name)}</span><i {width}></i><span>{figure}</span>"
    note = "; ".join(filter(None, (f"{goodput.share(wall):.1%} in steps that were kept", goodput.restarts(wall))))
    body = f'<div class="card"><div class="bars">{bars}</div><small>{note}.</small></div>'
    return f"<section><h2>Wall time</h2>{body}</section>" if parts else ""


def _experts(rows: list[dict]) -> str:
    last = lambda name: next((row for row in reversed(rows) if f"experts/{name}" in row), None)
    load, dropped = last("load"), last("dropped")
    if not load or not dropped or np.ndim(load["experts/load"]) != 2:
        return ""
    step, load_LE = load["step"], np.asarray(load["experts/load"])
    note = (
        f"Load of each expert before step {step}, one row per layer; full colour means twice an even share or more. "
        f"The highest load is {load_LE.max():.2f} times an even share; {dropped['experts/dropped']:.1%} of all "
        "choices were dropped."
    )
    body = f'<figure class="card">{plots.loads(load_LE)}<p>{note}</p></figure>'
    return f"<section><h2>Load of experts</h2>{body}</section>"


def _samples(samples: list[dict]) -> str:
    cards = ""
    for sample in samples:
        prompt, text = (escape(str(sample.get(key, ""))) for key in ("prompt", "text"))
        cards += f'<pre class="card">\n<mark>{prompt}</mark>{text}</pre>'  # HTML drops the newline after <pre>
    return f"<section><h2>Samples</h2>{cards or '<p class=card>No samples yet.</p>'}</section>"


def _answers(grade: dict) -> str:
    figures = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{_show(value, '{:.2f}')}</dd></div>"
        for name, value in (grade.get("figures") or {}).items()
    )
    signatures = "".join(
        f"<p>{escape(name)}: {escape(text)}</p>" for name, text in (grade.get("signatures") or {}).items()
    )
    columns = ("prompt", "reference", "answer")
    cells = "".join(f"<th>{name}</th>" for name in columns)
    for answer in grade.get("shown") or []:
        cells += "</tr><tr>" + "".join(f"<td>{escape(str(answer.get(name, '')))}</td>" for name in columns)
    table = f'<div class="card scroll"><table class="answers"><tr>{cells}</tr></table></div>'
    note = f"<p>{_show(grade.get('examples'), '{:,}')} held-out examples; from 0 to 100.</p>"
    head = f'<div class="card"><dl>{figures}</dl>{note}{signatures}</div>'
    return f"<section><h2>Answers</h2>{head}{table}</section>" if grade else ""


def _corpus(corpus: list[dict]) -> str:
    counts = ("train_documents", "validation_documents", "bytes", "tokens")
    body = ""
    for source in corpus:
        cells = "".join(f"<td>{_show(source.get(key), '{:,}')}</td>" for key in counts)
        ratio = (source.get("bytes") or math.nan) / (source.get("tokens") or math.nan)
        digest = escape(str(source.get("content_hash") or "–").split(":")[-1])  # may be sha256:...
        body += f"<tr><td>{escape(str(source.get('name', '–')))}</td>{cells}<td>{_show(ratio, '{:.2f}')}</td>"
        body += f'<td><code title="{digest}">{digest[:12]}</code></td></tr>'
    head = "".join(
        f"<th>{name.replace('_', ' ')}</th>" for name in ("source", *counts, "bytes_per_token", "content_hash")
    )
    table = f'<div class="card scroll"><table><tr>{head}</tr>{body}</table></div>'
    return f"<section><h2>Corpus</h2>{table}</section>" if corpus else ""


def _config(config: dict) -> str:
    def lines(prefix, value):
        if isinstance(value, dict) and value:
            return [line for key, inner in value.items() for line in lines(f"{prefix}.{key}", inner)]
        value = escape(json.dumps(value, ensure_ascii=False))
        return [f"<div><code>{escape(prefix[1:])}</code><code>{value}</code></div>"]

    body = lines("", config) if config else []
    body = f'<summary>{len(body)} fields</summary><div class="config">{"".join(body)}</div>'
    body = f'<details class="card">{body}</details>' if config else "<p class=card>No config.json.</p>"
    return f"<section><h2>Config as run</h2>{body}</section>"
