"""The run report is complete, self-contained and escaped, even if half of a run's files are missing."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from train.record import metrics
from train.report import plots, run_report

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that every tag is closed, in order; collects headings, text, tags and attributes."""

    def __init__(self, html):
        super().__init__()
        self.open, self.headings, self.text, self.tags, self.attributes = [], [], "", [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def page(workdir):
    path = run_report.write_report(workdir)
    assert path == workdir / "report.html" and not list(workdir.glob("*.tmp"))
    html = path.read_text(encoding="utf-8")
    assert "://" not in html and "@import" not in html and not re.search(r"url\((?!#)", html)  # nothing to load
    parsed = Page(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    for name, value in parsed.attributes:
        assert not name.startswith("on") and name != "src"
        assert not name.endswith("href") or value.startswith("#")
    return html, parsed


def write_metrics(workdir, steps):
    writer = metrics.Writer(workdir)
    for step in range(1, steps + 1):
        loss = math.nan if step == 3 else 2 + 8 / step
        rates = {"tokens_per_second": 12300.0, "mfu": 0.41, "skipped": int(step >= 3)}
        writer.write(step, {"loss": loss, "learning_rate": 1e-4 * step, "grad_norm": 1 + 5 / step, **rates})
        if step % 10 == 0:
            writer.write(step, {"validation/loss": loss, "validation/perplexity": 9.1, "validation/bits_per_byte": 1.5})
    writer.close()


@pytest.fixture
def run(tmp_path):
    write_metrics(tmp_path, 40)
    evil = "<script>alert('&')</script>"
    summary = {
        "model": {"parameters": 13_900_000, "non_embedding_parameters": 10_700_000, "flops_per_token": 8.97e7},
        "device": "cpu " + evil,
        "wall": {"step": 375.0, "lost": 12.0, "compile": 25.0, "data": 0.01, "between": 95.0, "starts": 3},
        "tokens": 16_400_000,
        "validation": {"loss": 2.21, "perplexity": 9.12, "bits_per_byte": 0.886},
        "compressors": {"xz -9": 1.532, "gzip -9": 1.861, evil: 2.0},
        "samples": [{"prompt": "\ndef " + evil, "text": "x\n    </pre>" + evil}, {"prompt": "", "text": "\ud83d"}],
        "corpus": [{"name": evil, "content_hash": "sha256:0123456789abcdef" + evil, "bytes": 36, "tokens": 10}],
        "mfu_convention": "by " + evil,
    }
    config = {"optimizer": {"learning_rate": 3e-4, "name": evil}, evil: [1, {"a": evil}], "empty": {}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_complete_report(run):
    html, parsed = page(run)
    assert parsed.headings == ["Curves", "Evaluations", "Wall time", "Samples", "Corpus", "Config as run"]
    # loss in two plots, learning rate, gradient norm, throughput, validation bits per byte
    assert parsed.tags.count("svg") == 6 and "details" in parsed.tags and len(html) < 1_000_000
    found = ("0.886", "1.532", "1.861", "2.210", "12.3k", "41.0 %", "6:52", "13.9M", "goodput 91.0%", "1 skipped")
    for text in (*found, "6:15, 91.0%", "12.0 s, 2.9%", "3 starts, 1:35 between them"):
        assert text in parsed.text, text
    assert "optimizer.learning_rate" in parsed.text and "3.60" in parsed.text  # bytes per token
    widths = [float(width) for width in re.findall(r'style="width:([\d.]+)%', html)]
    assert np.allclose(widths[:4], [100 * bits / 2 for bits in (0.886, 1.532, 1.861, 2)], atol=0.1)
    assert np.allclose(widths[4:], [100 * seconds / 375 for seconds in (375, 25, 12)], atol=0.1)


def test_text_from_files_is_escaped(run):
    html, parsed = page(run)  # the parser finds no script tag
    assert html.count("&lt;script&gt;") >= 9 and parsed.text.count("<script>alert('&')</script>") >= 9
    assert "<mark>\ndef &lt;script" in html


def test_plots_follow_light_and_dark(run):
    html, _ = page(run)
    svg = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert set(re.findall(r"(?:stroke|fill): (#\w+|var\(--\w+\))", svg)) <= set(plots.VARIABLES.values())
    assert "prefers-color-scheme: dark" in html


def test_nothing_there_yet(tmp_path):
    _, parsed = page(tmp_path)
    assert parsed.headings == ["Curves", "Samples", "Config as run"] and "svg" not in parsed.tags
    assert "No metrics yet" in parsed.text and "No evaluation yet" in parsed.text


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_without_evaluation(tmp_path, steps):
    write_metrics(tmp_path, steps)
    _, parsed = page(tmp_path)
    assert parsed.tags.count("svg") == 5 and "No evaluation yet" in parsed.text


def test_evaluation_of_a_run_without_metrics(tmp_path):
    metrics.Writer(tmp_path).write(5, {"validation/loss": 2.5, "validation/bits_per_byte": 1.25})
    _, parsed = page(tmp_path)
    assert "1.250" in parsed.text and "2.500" in parsed.text and parsed.tags.count("svg") == 3


def test_why_there_are_no_bits_per_byte(tmp_path):
    metrics.Writer(tmp_path).write(5, {"validation/loss": 2.5, "validation/unigram": 3.5})
    (tmp_path / "summary.json").write_text('{"no_bits_per_byte": "the tokenizer <loses> text"}')
    assert "No bits per byte, because the tokenizer <loses> text." in page(tmp_path)[1].text


def test_broken_and_non_finite_files(tmp_path):
    metrics.Writer(tmp_path).write(1, {"loss": math.nan, "grad_norm": math.inf, "skipped": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    (tmp_path / "summary.json").write_text('{"model": ')
    (tmp_path / "config.json").write_text("[1]")
    _, parsed = page(tmp_path)
    assert "1 skipped" in parsed.text and "No config.json" in parsed.text


def test_long_curves_stay_small_and_keep_spikes():
    steps, values = np.arange(100_000.0), np.ones(100_000)
    values[54_321], values[77_777] = 9.0, -3.0
    values[60_000:61_000] = math.nan
    thin_steps, thin_values = plots.thin(steps, values)
    assert thin_steps.size <= 900 and (np.diff(thin_steps) > 0).all()
    assert {9.0, -3.0} <= set(thin_values.tolist()) and np.isnan(thin_values).any()


def test_smoothing():
    assert np.allclose(plots.smooth(np.full(50, 3.0)), 3.0)
    noisy = np.sin(np.arange(2000.0)) + 5
    noisy[[0, 7]] = math.nan
    smooth = plots.smooth(noisy)
    assert np.isnan(smooth[0]) and np.isfinite(smooth[1:]).all() and abs(smooth[-1] - 5) < 0.05


def test_loads_of_experts_are_drawn(tmp_path):
    writer = metrics.Writer(tmp_path)
    writer.write(1, {"loss": 2.0, "experts/load": np.array([[0.5, 1.5], [2.5, 0.0]]), "experts/dropped": 0.125})
    writer.close()
    html, parsed = page(tmp_path)
    assert "Load of experts" in parsed.headings
    assert re.findall(r'<rect [^>]*fill-opacity="([\d.]+)"', html) == ["0.25", "0.75", "1.00", "0.00"]
    assert "2.50 times" in html and "12.5%" in html
