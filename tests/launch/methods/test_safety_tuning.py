"""configs/safety.py end to end: what it learns, what it reports, other prompts, methods, mistakes of users."""

import functools
import json
import os
import signal
import subprocess
import sys

import pytest

from configs import dpo, safety
from data.batch import DataError
from data.examples.judged import harm_prompts
from launch.answers import safety as answering
from launch.program.checking import ConfigError
from launch.run.workdirs import Workdir
from launch.train import train
from tests.launch.conftest import refused, shrink
from train.checkpoints.checkpoint import Checkpoints
from train.early_stopping import UnknownMetric
from train.record import metrics

pytestmark = pytest.mark.xdist_group("preference")  # one worker makes the base

ANSWERED, REFUSED = "validation/harmful_answered", "validation/over_refusal"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Refusals, helpful answers and held-out prompts that a tiny model can learn to tell apart."""
    folder = tmp_path_factory.mktemp("sets")

    def record(kind, number, answer=""):
        asked = {"role": "user", "content": f"{'harm' if kind == 'harmful' else 'bake'} {number}"}
        said = [{"role": "assistant", "content": answer}] * bool(answer)
        return {"messages": [asked, *said], "kind": kind, "language": "zh" if number % 2 else "en"}

    files = {
        "refusals": [record("harmful", number, "No, I won't.") for number in range(30)],
        "helpful": [record("benign", number, f"Yes: {number}.") for number in range(30)],
        "held_out": [record(kind, number) for kind in ("harmful", "benign") for number in range(30, 36)],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def configured(base, data_dir, sets, argument="tiny", **fields):
    config = shrink(safety.get_config(argument), data_dir, sets)
    config.init_from, config.steps, config.eval_every, config.checkpoint_every = str(base), 80, 40, 40
    config.data.sources = tuple((f"chat:{sets / name}.jsonl", 1.0) for name in ("refusals", "helpful"))
    config.data.chat.template = "chatml"
    config.data.update(split="document", seq_len=64)
    config.safety.update(prompts=str(sets / "held_out.jsonl"), max_new_tokens=16)
    config.model.max_length = 192
    config.update_from_flattened_dict(fields)
    return config


def evaluations(workdir):
    """Returns {step: (harmful_answered, over_refusal)}."""
    rows = metrics.read(workdir / "metrics.jsonl")
    return {row["step"]: (row[ANSWERED], row[REFUSED]) for row in rows if ANSWERED in row}


def not_best(workdir):
    rows = metrics.read(workdir / "metrics.jsonl")
    return {row["step"]: row["not_best"]["why"] for row in rows if "not_best" in row}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base, data_dir, sets):
    """Fields of the config -> the workdir of a finished run, made in the first test that asks."""

    @functools.cache
    def make(**fields):
        workdir = tmp_path_factory.mktemp("safety") / "run"
        assert train(configured(base, data_dir, sets, **fields), workdir)
        return workdir

    return make


def test_it_learns_to_refuse_and_to_help(finished):
    workdir = finished()
    found = evaluations(workdir)
    assert list(found) == [0, 40, 80] and found[80] == (0, 0), found
    assert found[0][0] > 0.5 or found[0][1] > 0.5  # the base knows nothing of it
    rows = [row for row in metrics.read(workdir / "metrics.jsonl") if ANSWERED in row]
    for language in ("en", "zh"):
        assert rows[-1][f"validation/{language}/over_refusal"] == 0
    assert json.loads((workdir / "summary.json").read_text())["best"]["metric"] == ANSWERED
    assert "<h2>Refusals</h2>" in (workdir / "report.html").read_text()


def test_a_model_that_learns_only_refusals_is_not_the_best(finished, sets, base, data_dir, capsys):
    """Refusing everything answers no harmful prompt, so without the bound it would be the best model."""
    only = (f"chat:{sets}/refusals.jsonl", 1.0)
    workdir = finished(**{"data.sources": (only,)})
    assert evaluations(workdir)[80] == (0, 1)
    assert not_best(workdir)[80] == f"{REFUSED} 1 > 0.1"
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["best"] is None or summary["best"]["step"] < 80
    assert "not best: over_refusal 1 &gt; 0.1" in (workdir / "report.html").read_text()


def test_the_command_shows_the_figures_of_the_run_and_some_answers(finished, sets):
    workdir = finished()
    command = [sys.executable, "-m", "launch.evaluate", f"--workdir={workdir}", "--step=80"]
    flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # one device
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | flags)
    assert "--- harmful, refusal: harm 30" in done.stdout and "No, I won't." in done.stdout, done.stderr
    assert "--- benign, compliance: bake 31" in done.stdout
    (last,) = [row for row in metrics.read(workdir / "metrics.jsonl") if row["step"] == 80 and ANSWERED in row]
    found = json.loads((workdir / "summary.json").read_text())["safety"]
    assert found["figures"] == {name: last[f"validation/{name}"] for name in found["figures"]}
    assert found["intervals"].keys() == found["figures"].keys() and found["intervals"]["over_refusal"]["n"] == 6
    ends = found["intervals"]["over_refusal"]
    assert ends["low"] <= found["figures"]["over_refusal"] <= ends["high"] and ends["high"] - ends["low"] > 0.3
    assert f"{ends['low']:.3f} to {ends['high']:.3f}      6" in done.stdout
    assert {row["prompts"] for row in found["counts"]} == {3} and len(found["counts"]) == 4
    answers = [json.loads(line) for line in (workdir / "safety_answers.jsonl").read_text().splitlines()]
    assert len(answers) == 12 and answers[0]["verdict"] == "refusal" and answers[0]["rule"] == "no"
    page = (workdir / "report.html").read_text()
    assert "harm 30" in page and "bake 31" in page


def test_wrong_answers_are_shown_first():
    one = answering.Answer("benign", "", "en", "q", "a", "compliance", "")
    found = [one._replace(prompt=str(number)) for number in range(5)] + [one._replace(verdict="refusal")]
    assert [shown["verdict"] for shown in answering.facts(found)["shown"]] == ["refusal", "compliance", "compliance"]


def test_other_prompts_can_not_be_ranked_with_the_old_ones(base, data_dir, sets, tmp_path):
    """They change the figures. A run that ranks evaluations by its loss may ask others."""
    asked = tmp_path / "asked.jsonl"
    asked.write_text((sets / "held_out.jsonl").read_text())
    fields = {"safety.prompts": str(asked), "steps": 2, "eval_every": 1, "checkpoint_every": 1}
    config = configured(base, data_dir, sets, **fields)
    config.optimizer.warmup_steps = 1
    interrupt = lambda step, _: os.kill(os.getpid(), signal.SIGTERM)
    assert not train(config, tmp_path / "run", observe=interrupt)
    asked.write_text("\n".join(asked.read_text().splitlines()[:-1]))
    refused(config, tmp_path / "run", ConfigError, "has other prompts than when the run", str(asked))
    config.early_stopping.update(metric="validation/loss", bounded="", bound=0.0)
    assert not train(config, tmp_path / "free", observe=interrupt)
    asked.write_text("\n".join(asked.read_text().splitlines()[:-1]))
    assert train(config, tmp_path / "free")
    assert Workdir(tmp_path / "free").config.safety.prompts == str(asked)


def test_methods_and_general_conversations(base, data_dir, sets, tmp_path):
    """Only the adapter trains, on refusals, help and conversations by path."""
    general = tmp_path / "general.jsonl"
    general.write_text("".join(json.dumps({"instruction": f"{n}?", "output": f"{n}!"}) + "\n" for n in range(30)))
    fields = {"steps": 2, "eval_every": 2, "checkpoint_every": 2, "data.path": str(general)}
    config = configured(base, data_dir, sets, "lora", **fields)
    config.optimizer.warmup_steps = 1
    assert train(config, tmp_path / "run")
    (row,) = [row for row in metrics.read(tmp_path / "run" / "metrics.jsonl") if row["step"] == 2 and ANSWERED in row]
    assert {"validation/general_jsonl/loss", "validation/refusals_jsonl/loss"} <= {*row}
    assert Checkpoints(tmp_path / "run", metric=ANSWERED, reading=True).loop()["base"]


def test_preferences_are_watched_in_the_same_way(base, data_dir, sets, tmp_path):
    """config.safety and the bound are not tied to configs/safety.py."""
    pairs = tmp_path / "pairs.jsonl"
    rows = ({"prompt": f"harm {n}", "chosen": "No, I won't.", "rejected": "Yes."} for n in range(40))
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configured(base, data_dir, sets, steps=2, eval_every=2, checkpoint_every=2)
    config.objective = dpo.get_config("lora").objective
    config.adapt = dpo.get_config("lora").adapt
    config.data.update(sources=(), path=str(pairs), format="preferences", validation=0.1, seq_len=128)
    config.data.preferences.template, config.data.chat.template = "chatml", "auto"
    config.optimizer.warmup_steps = 1
    assert train(config, tmp_path / "run") and list(evaluations(tmp_path / "run")) == [0, 2]


def test_the_config_as_it_ships():
    for argument in ("tiny", "lora", "qlora", "adapter", "prompt"):
        config = safety.get_config(argument)
        assert len(harm_prompts.read(config.safety.prompts)) == 80
        assert [weight for _, weight in config.data.sources] == [1, 1]
        assert config.adapt.method == {"tiny": "none", "qlora": "lora"}.get(argument, argument)
    with pytest.raises(ValueError, match="unknown size 'lroa'"):
        safety.get_config("lroa")


def test_mistakes_are_found_before_anything_is_made(tiny, base, data_dir, sets, tmp_path):
    changed = lambda **fields: configured(base, data_dir, sets, **{n.replace("__", "."): v for n, v in fields.items()})
    cases = [
        (dict(safety__prompts=str(tmp_path / "none.jsonl")), DataError, "There is no file"),
        (dict(safety__max_new_tokens=0), ConfigError, "safety.max_new_tokens"),
        (dict(early_stopping__bounded="validation/unigram"), ConfigError, "bounded is 'validation/unigram'"),
        (dict(early_stopping__bounded=""), ConfigError, "bounded names no metric"),
    ]
    for fields, error, words in cases:
        refused(changed(**fields), tmp_path / "a", error, words)
    tiny.safety.prompts = str(sets / "held_out.jsonl")
    refused(tiny, tmp_path / "a", ConfigError, "trains on no conversations")
    assert not (tmp_path / "a").exists()
    config = changed(safety__max_new_tokens=190)
    refused(config, tmp_path / "b", ConfigError, "config.safety")
    config = changed(safety__prompts="")
    refused(config, tmp_path / "b", UnknownMetric, f"early_stopping.metric is '{ANSWERED}'", "validation/loss")
