"""The report of a run: one self-contained report.html (inline SVG, no scripts), written from files only.

It reads these files of the workdir. Each file and each key is optional:

    metrics.jsonl   training lines (loss, perplexity, learning_rate, grad_norm, tokens_per_second, mfu, skipped; with
                    experts their load [layers, experts] and the share of dropped choices) and
                    evaluation lines (validation/loss, /perplexity, /bits_per_byte, /unigram; for labels
                    /accuracy and /majority_accuracy, or /mse and /mean_mse; whatever the objective's curves and bins
                    name; /kl with /reward and /gold)
    config.json     the config of the run, nested
    summary.json    model {parameters, non_embedding_parameters, flops_per_token}, device, mesh, tokens, wall (seconds),
                    validation {loss, perplexity, bits_per_byte, unigram}, compressors {name: bits per byte},
                    no_bits_per_byte (the reason if there are none),
                    mfu_convention, best {metric, value, step}, ended (the reason if it stopped early), bound (what
                    the bound of early stopping made of the run),
                    samples [{prompt, text: the continuation}],
                    completions {first, last: {step, shown [{prompt, completion, reward: number or null}]}},
                    grade {figures {name: from 0 to 100}, intervals {name: {n, low, high}}, examples,
                    signatures {metric: text}, shown [{prompt, reference, answer}],
                    against {workdir, differences {name: {this, other, difference, low, high, p}}}},
                    safety {figures {name: from 0 to 1}, intervals {name: {n, low, high}},
                    counts [{kind, language, prompts, VERDICT: number}], shown [{kind, verdict, rule, prompt,
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

import numpy as np

from data import files
from train.record.mfu import MFU_CONVENTION
from train.report import answers, curves, evaluations, headline, over_optimization, plots, refusals
from train.report.recorded import Recorded, load, show
from train.report.web_page import page
from train.watch import goodput


def write_report(workdir) -> Path:
    """Writes WORKDIR/report.html from the files there and returns its path."""
    workdir = Path(workdir)
    run = load(workdir)
    rows, summary = run.rows, run.summary
    sections = (
        headline.section(run)
        + curves.section(run)
        + evaluations.section(run)
        + evaluations.bins(run)
        + over_optimization.section(run)
        + answers.completions(summary.get("completions") or {})
        + _wall(summary["wall"])
        + _experts(run)
        + answers.graded(summary.get("grade") or {})
        + refusals.section(run)
        + answers.samples(summary.get("samples") or [], bool(summary.get("completions")))
        + _corpus(summary.get("corpus") or [])
        + _config(run.config)
    )
    about = " · ".join(str(summary[key]) for key in ("device", "mesh") if summary.get(key))
    best = summary.get("best") or {}
    found = f"Best evaluation: {best['metric']} {best['value']:.4g} at step {best['step']:,}." if best else ""
    outcome = str(summary.get("ended") or found or summary.get("bound") or "")
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(rows[-1]["time"])) if rows and "time" in rows[-1] else ""
    above = (" · ".join(filter(None, (about, when and "last logged " + when))), outcome)
    below = (
        str(summary.get("mfu_convention") or MFU_CONVENTION),
        "Written from metrics.jsonl, config.json and summary.json in the same folder.",
    )
    path = workdir / "report.html"
    files.replace(path, page(workdir.resolve().name, above, sections, below))
    return path


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


def _experts(run: Recorded) -> str:
    last = lambda name: next((row for row in reversed(run.rows) if f"experts/{name}" in row), None)
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


def _corpus(corpus: list[dict]) -> str:
    counts = ("train_documents", "validation_documents", "bytes", "tokens")
    body = ""
    for source in corpus:
        cells = "".join(f"<td>{show(source.get(key), '{:,}')}</td>" for key in counts)
        ratio = (source.get("bytes") or math.nan) / (source.get("tokens") or math.nan)
        digest = escape(str(source.get("content_hash") or "–").split(":")[-1])  # may be sha256:...
        body += f"<tr><td>{escape(str(source.get('name', '–')))}</td>{cells}<td>{show(ratio, '{:.2f}')}</td>"
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
