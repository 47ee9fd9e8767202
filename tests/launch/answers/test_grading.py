"""Tests graded answers to held-out examples, with an encoder-decoder that learns pairs of texts and text."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from scipy import stats

from data.batch import DataError
from launch.answers import against as other_model
from launch.answers import grading
from launch.program.checking import ConfigError
from launch.run import build, restore
from launch.run.workdirs import Workdir
from launch.train import train
from model import axes
from model.decode.generate import generate
from tests.launch.conftest import shrink
from train.evals import intervals, text
from train.evals.bulk import answers
from train.record import metrics
from train.report.run_report import write_report

COLOURS = {"red": "rot", "green": "gruen", "blue": "blau", "brown": "braun"}
GRADE = {"metrics": "exact_match,bleu", "rows": 0, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus, data_dir):
    """A run over pairs of texts, and over text with span corruption."""
    workdir = tmp_path_factory.mktemp("grading")
    path = workdir / "colours.jsonl"
    said = [(f"{number} {colour}", COLOURS[colour]) for number in range(60) for colour in COLOURS]
    path.write_text("".join(json.dumps({"source": a, "target": b}) + "\n" for a, b in said))
    config = shrink(importlib.import_module("configs.text2text").get_config(), data_dir, corpus)
    config.model.num_kv_heads = 4
    config.data.path, config.data.sources = str(path), ((f"files:{corpus}", 0.1),)
    config.data.corruption.update(kind="spans", rate=0.15, mean_length=3.0)
    config.data.tokenizer.sentinels = 30
    config.steps, config.eval_every, config.checkpoint_every, config.batch_size = 120, 60, 60, 16
    config.grade.update(GRADE)
    config.early_stopping.metric = "validation/exact_match"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *args, all=jax.devices: all(*args)[:1])
        train(config, workdir / "run")
    return workdir / "run"


@pytest.fixture(scope="module")
def restored(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *args, all=jax.devices: all(*args)[:1])
        return restore.for_inference(Workdir(run), step="latest")


def grader(run, **given):
    run = Workdir(run)
    wanted = grading.settings(run.config, **given)
    return grading.Grader(run.config, run.prepared, run.architecture, run.tokenizer, wanted)


def test_what_it_learnt_is_graded_while_it_trains(run, restored):
    rows = [row for row in metrics.read(run / "metrics.jsonl") if "validation/bleu" in row]
    assert [row["step"] for row in rows] == [0, 60, 120]  # step 0 shows that the metric exists
    assert rows[-1]["validation/exact_match"] > 75  # by chance: 25, one of four answers
    assert rows[-1]["validation/loss"] < rows[-1]["validation/unigram"]
    best = json.loads((run / "summary.json").read_text())["best"]
    assert best["value"] == max(row["validation/exact_match"] for row in rows)
    # The restored model gives the same answers, and the figures follow from its answers and the references.
    asked = grader(run)
    with axes.use_mesh(restored[0]):
        found = list(asked.answers(restored[1]))
    assert {(one.prompt.split()[1], one.reference) for one in found} <= set(COLOURS.items()) and len(found) > 20
    said, references = [one.answer for one in found], [one.reference for one in found]
    right = sum(a == b for a, b in zip(said, references, strict=True))
    figures = asked.figures(found)
    assert figures["exact_match"] == pytest.approx(100 * right / len(found)) == rows[-1]["validation/exact_match"]
    assert figures["bleu"] == rows[-1]["validation/bleu"] == figures["colours_jsonl/bleu"]
    assert figures["bleu"] == text.grade(said, references, ["bleu"])["bleu"]


def test_the_command_writes_and_reports(run, restored, tmp_path):
    flags = ["--grade=chrf, rouge", "--grade_rows=3", "--max_new_tokens=12", "--step=latest"]
    flags += [f"--against={run}", "--against_step=60"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.evaluate", f"--workdir={run}", *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},  # one device
    )
    assert "answers to 3 held-out examples, from 0 to 100:" in done.stdout, done.stderr
    assert "nc:6|nw:0" in done.stdout and "rougeL" in done.stdout and "token frequencies alone" in done.stdout
    with axes.use_mesh(restored[0]):
        found = list(grader(run, rows=3).answers(restored[1]))
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert lines == [one._asdict() for one in found] and len(lines) == 3
    facts = json.loads((run / "summary.json").read_text())["grade"]
    expected = text.grade([one.answer for one in found], [one.reference for one in found], ["chrf"])["chrf"]
    assert facts["figures"]["chrf"] == expected and facts["shown"] == lines
    ends, against = facts["intervals"]["chrf"], facts["against"]["differences"]["chrf"]
    assert (ends["n"], against["n"], facts["prompts"]) == (3, 3, 3) and against["this"] == expected
    assert (
        f"  chrf               {expected:6.2f}  {intervals.spelled(ends, '{:.2f}'):>16}       3  nrefs" in done.stdout
    )
    assert f"against {run}, on the same examples:" in done.stdout
    differs = f"{against['other']:6.2f}  {against['difference']:+10.2f}"
    assert f"  chrf               {expected:6.2f}  {differs}" in done.stdout
    facts["shown"][0]["answer"] = "<i>blau"
    (tmp_path / "summary.json").write_text(json.dumps({"grade": facts}))
    page = write_report(tmp_path).read_text()
    assert "&lt;i&gt;blau" in page and found[1].prompt in page and f"{expected:.2f}" in page
    assert f"{intervals.spelled(ends, '{:.2f}')}, n 3" in page and f"<td>{against['difference']:+.2f}</td>" in page


def test_intervals_and_differences_follow_from_the_answers(run):
    """A model that is right for 12 of 20 prompts, each asked twice, against one that is right for 4 of them."""
    asked = grader(run, metrics="exact_match,f1,bleu")
    said = lambda right: [
        grading.Answer("colours_jsonl", f"{n} red", "rot", "rot" if n < right else "blau", False)
        for n in (*range(20), *range(20))
    ]
    facts = asked.facts(said(12))
    assert facts["figures"]["exact_match"] == 60 and facts["prompts"] == 20 and facts["examples"] == 40
    once = asked.facts(said(12)[:20])
    low, high = stats.binomtest(12, 20).proportion_ci(method="wilson")
    for name in ("exact_match", "colours_jsonl/f1"):
        ends, alone = facts["intervals"][name], once["intervals"][name]
        assert (alone["n"], ends["n"]) == (20, 40)
        assert (alone["low"], alone["high"]) == pytest.approx((100 * low, 100 * high), abs=0.01)
        # Twice the same questions tell nothing new.
        assert 0.8 < (ends["high"] - ends["low"]) / (alone["high"] - alone["low"]) < 1.3
    assert "intervals draw the 20 different prompts" in grading.table(facts)
    assert "different prompts" not in grading.table(once)
    against = other_model.Against(Workdir(run), asked)
    found = against.facts(said(12), said(4))
    assert found["differences"].keys() == facts["figures"].keys()
    one = found["differences"]["exact_match"]
    assert (one["this"], one["other"], one["difference"], one["n"]) == (60, 20, 40, 40)
    # Of 8 prompts that differ, only the swaps of all or none give as large a difference: 2 of 2^8.
    assert one["p"] == pytest.approx(2 / 2**8, abs=0.003) and 10 < one["low"] < 40 < one["high"] < 70
    assert "+40.00" in other_model.table(found) and against.facts(said(4), said(12))["differences"]["f1"]["low"] < -40


def test_evaluations_of_training_draw_no_resamples(run, monkeypatch):
    monkeypatch.setattr(intervals, "interval", None)  # calling it would raise
    found = [grading.Answer("colours_jsonl", "1 red", "rot", "rot", False)]
    assert grader(run).figures(found)["exact_match"] == 100
    with pytest.raises(TypeError):
        grader(run).facts(found)


def test_models_with_other_examples_are_not_compared(run, tmp_path):
    config = Workdir(run).config.copy_and_resolve_references()
    path = tmp_path / "colours.jsonl"
    path.write_text(Path(config.data.path).read_text().replace(" red", " white"))
    config.data.path = str(path)
    prepared = build.data(config, tmp_path / "run")
    other = Workdir(run)
    other.__dict__["prepared"] = prepared  # of a run over this file
    with pytest.raises(ConfigError, match=r"^--against: .* holds out other examples than --workdir, so a difference"):
        other_model.Against(other, grader(run))


def test_nothing_to_compare_is_refused_before_a_model_is_loaded(run):
    command = [sys.executable, "-m", "launch.evaluate", f"--workdir={run}", f"--against={run}", "--grade="]
    done = subprocess.run([*command, "--step=7"], capture_output=True, text=True)  # there is no such checkpoint
    assert done.returncode == 1 and "--against compares graded answers, but nothing is graded" in done.stderr
    assert "Traceback" not in done.stderr


def test_answers_come_in_the_order_of_the_prompts(restored):
    """Compares answers to 20 texts of different lengths, in batches of 16, with batches in the order of the prompts."""
    mesh, model, words = restored
    asked = [f"{'9' * (7 * number % 20)} {colour}" for number, colour in enumerate([*COLOURS] * 5)]
    sources = words.inputs(asked, True)["sources"]
    starts, ends = [[words.start_id]] * 16, words.special.end
    options = dict(max_new_tokens=12, vocab_size=words.vocab_size)
    with axes.use_mesh(mesh):
        found = answers(model, [*starts, *starts[:4]], sources, batch_size=16, ends=ends, **options)
        for first in (0, 4):
            part = sources[first : first + 16]
            out = generate(model, starts, jax.random.key(1), sources=part, eos_id=ends, **options)
            expected = [ids[:length].tolist() for ids, length in zip(out.tokens, out.lengths, strict=True)]
            assert [ids.tolist() for ids in found[first : first + 16]] == expected
    assert len({tuple(ids.tolist()) for ids in found}) >= 4


def test_long_prompts_are_cut_as_in_training(run):
    asked = grader(run)
    (records,) = asked.records.values()
    records[0]["source"] = "x" * 40 + "5 red"
    given = []

    def answer(model, prompts, sources, **_):
        given.extend(sources)
        return [[] for _ in prompts]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grading, "answers", answer)
        found = list(asked.answers(None))
    words = Workdir(run).tokenizer
    assert words.decode(given[0]) == "x" * 31 and given[0][-1] == words.eot_id and len(given[0]) == 32
    assert [one.cut for one in found] == [True] + [False] * (len(found) - 1)


def test_refuses(run, tiny, tmp_path):
    config = Workdir(run).config
    for given, words in (
        ({"metrics": "bleu,meteor"}, "grade: unknown metric 'meteor'; choose from bleu"),
        ({"tokenizer": "zz"}, "unknown BLEU tokenizer 'zz'"),
        ({"max_new_tokens": 0}, "grade.max_new_tokens is 0; it must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            grading.settings(config, **given)
    with pytest.raises(ConfigError, match="leaves no room for a prompt"):
        grader(run, max_new_tokens=64)
    tiny.grade.metrics = "bleu"
    with pytest.raises(ConfigError, match=r"this run reads text$"):
        train(tiny, tmp_path / "text")
    assert not (tmp_path / "text").exists()
    prepared = Workdir(run).prepared
    empty = dataclasses.replace(
        prepared, sources=tuple(dataclasses.replace(s, validation_rows=0) for s in prepared.sources)
    )
    with pytest.raises(DataError, match="No conversations or pairs of texts are held out"):
        grading.Grader(config, empty, Workdir(run).architecture, Workdir(run).tokenizer, grading.settings(config))


def test_held_out_conversations_that_ask_for_no_answer(run, monkeypatch):
    monkeypatch.setattr(grading, "_asks", lambda source: lambda record: False)
    with pytest.raises(DataError, match=r"No held-out conversation in .* has an answer to compare with"):
        grader(run)
