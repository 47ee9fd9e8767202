"""The programs: from a tuned model to samples, preferences and DPO; the best of several answers; user errors."""

import json
import os
import subprocess
import sys

import pytest

from launch.judging import questions
from tests.launch.conftest import ROOT
from tests.launch.judging.openai_server import longer, serving

PROMPTS = [{"prompt": f"What is {i} and {i * i}?", "id": i} for i in range(9)]
# Runs a program several times in one process, as loading jax takes longer than an error.
SEVERAL = """
import importlib, inspect, json, sys
from absl import flags
from launch.program import runtime
program = importlib.import_module(f"launch.{sys.argv[1]}")
for words in json.loads(sys.argv[2]):
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    try:
        rest = flags.FLAGS([sys.argv[1], *words])[1:]
        program.main(*[rest][: len(inspect.signature(program.main).parameters)])
        print("done")
    except runtime.mistakes() as error:
        print(json.dumps(str(error)))
"""


def environment():
    return os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}


def program(name, *flags, check=True):
    command = [sys.executable, "-m", f"launch.{name}", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def several(name, *calls):
    """Returns the error of each call of a program, or 'done'."""
    command = [sys.executable, "-c", SEVERAL, name, json.dumps(calls)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line == "done" or line.startswith('"')]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def samples(talker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    done = program(
        "generate", f"--workdir={talker}", f"--prompts={folder / 'prompts.jsonl'}", "--num_samples=4",
        f"--output={folder / 'samples.jsonl'}", "--max_new_tokens=8", "--batch_size=8", "--temperature=1",
    )  # fmt: skip
    assert "36 answers to 9 prompts" in done.stdout and "9 of 9 prompts" in done.stderr
    return folder / "samples.jsonl"


def test_from_samples_to_preferences_to_dpo(samples, talker, tmp_path):
    assert [row["id"] for row in lines(samples)] == list(range(9))
    output = tmp_path / "preferences.jsonl"
    flags = [f"--samples={samples}", f"--judge={talker}", f"--output={output}"]
    done = program("judge", *flags, "--mode=score")
    summary = json.loads((tmp_path / "preferences.about.json").read_text())["summary"]
    assert f"{summary['written']} of 9 records" in done.stdout and summary["written"] > 4
    assert summary["questions"] == summary["answers"] - summary["empty answers"] - summary["repeated answers"]
    program(
        "train", "--config=configs/dpo.py", f"--config.init_from={talker}", f"--config.data.path={output}",
        f"--workdir={tmp_path / 'dpo'}", "--config.steps=2", "--config.eval_every=0", "--config.data.seq_len=512",
        "--config.optimizer.warmup_steps=1", "--config.checkpoint_every=2", "--config.batch_size=2",
        "--config.data.validation=0.4",
    )  # fmt: skip
    assert (tmp_path / "dpo" / "checkpoints" / "2" / "manifest.json").exists()


def test_a_server_judges(samples, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    output = tmp_path / "preferences.jsonl"
    (tmp_path / "mine.txt").write_text("Be as long as you can.\n")
    # Every fifth request fails once.
    with serving(longer, lambda number, body: (503, {}) if number % 5 == 0 else None) as there:
        flags = [f"--samples={samples}", f"--judge={there.url}", "--judge_model=m", f"--output={output}"]
        mine = f"--principles={tmp_path / 'mine.txt'}"
        first, again, other = several("judge", [*flags, mine], [*flags, mine], flags)
    assert first == again == "done" and len(there.asked) == len({*there.asked})  # nothing is asked twice
    assert all("Be as long as you can." in text for text in there.asked)
    assert "was begun with other settings (principles: 'Be as long as you can.', now" in other
    length = lambda answer: len("\n".join(answer["answer"].splitlines()))  # as it is quoted
    for row in lines(output):
        ranked = sorted(row["answers"], key=lambda answer: (answer["score"], length(answer)))
        assert [length(answer) for answer in ranked] == sorted(map(length, ranked))
    assert len(lines(output)) > 5


def test_the_best_of_several_answers(samples, talker, rewarder, tmp_path):
    output = tmp_path / "best.jsonl"
    flags = [f"--workdir={talker}", "--max_new_tokens=8", "--best_of=4", f"--reward_model={rewarder}"]
    both = lambda name: (f"--prompts={samples.with_name('prompts.jsonl')}", f"--output={tmp_path / name}.jsonl")
    found, shown, *errors = several(
        "generate",
        [*flags, *both("best")],
        [*flags, "--prompt=a?", "--prompt=b?"],
        [*flags, "--prompt="],
        [*flags, "--prompt=a?", "--num_samples=2"],
        flags[:-1],
        [*flags[:-1], f"--reward_model={talker}", "--prompt=a?"],
        [flags[0], f"--prompts={samples}"],
        [flags[0], f"--prompts={samples}", f"--output={output}", "--prompt=a"],
        [flags[0], f"--prompts={tmp_path / 'none.jsonl'}", f"--output={tmp_path / 'new.jsonl'}"],
        [flags[0], f"--prompts={tmp_path / 'best.txt'}", f"--output={tmp_path / 'new.jsonl'}"],
        [flags[0], f"--prompts={samples}", f"--output={output}"],
        [*flags[:-1], "--reward=length:1-100", "--min_score=1", *both("short")],
        [*flags[:-1], "--reward=length:900-1000", "--min_score=1", *both("long")],
        [*flags[:-1], "--reward=numeric:none", *both("wrong")],
        [*flags[:-1], "--reward=length:1-9", "--prompt=a?"],
    )
    assert found == shown == errors[9] == "done"
    kept = lines(tmp_path / "short.jsonl")
    assert len(kept) == 9 and all(0 < len(row["messages"][-1]["content"].strip()) <= 100 for row in kept)
    assert [row["id"] for row in lines(output)] == list(range(9))
    assert all(row["score"] >= row["mean_score"] for row in lines(output))
    for error, words in zip(
        errors,
        (
            "--prompt: field 'prompt' is empty",
            "leave out --num_samples",
            "--best_of and --reward_model or --reward (which score the answers) go together",
            "holds no reward model; train one with --config=configs/reward.py",
            "--prompts (a file) and --output (for the answers) go together",
            "can't be given along with --prompt",
            "there is no file",
            "there is no file",
            "was begun with other settings",
            "done",
            "is empty: every prompt is without an answer that has a score, or one of at least --min_score",
            "--reward: reward 'numeric:none', record 1",
            "--reward and --min_score are for --prompts",
        ),
        strict=True,
    ):
        assert words in error


def test_mistakes(samples, talker, rewarder, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "same.jsonl").write_text('{"prompt": "a", "answers": [{"answer": "b"}, {"answer": "b"}]}\n')
    (tmp_path / "taken.jsonl").write_text("mine\n")
    given, output = f"--samples={samples}", f"--output={tmp_path / 'new.jsonl'}"
    judge = f"--judge={talker}"
    server = "--judge=http://127.0.0.1:9/v1"
    calls = {
        "there is no file": [f"--samples={tmp_path}/gone.jsonl", judge, output],
        "unknown kind of file": [f"--samples={tmp_path}/empty.txt", judge, output],
        "holds no records": [f"--samples={tmp_path}/none.jsonl", judge, output],
        "new.jsonl is empty: no record has answers of different scores": [
            f"--samples={tmp_path}/same.jsonl", judge, output,
        ],
        "holds no run (no config.json)": [given, f"--judge={tmp_path}", output],
        "a judge is a decoder with the head language_model": [given, f"--judge={rewarder}", output],
        "gives no reply: ": [given, server, "--judge_model=m", output],
        "name its model with --judge_model": [given, server, output],
        "--parallel is for a server": [given, judge, "--parallel=3", output],
        "--dtype is for a workdir": [given, server, "--dtype=float32", output],
        "gone.txt can't be read: No such file": [given, judge, output, f"--principles={tmp_path}/gone.txt"],
        "empty.txt is empty; write what makes": [given, judge, output, f"--principles={tmp_path}/empty.txt"],
        "latin.txt can't be read: not UTF-8": [given, judge, output, f"--principles={tmp_path}/latin.txt"],
        "does not exist; create it": [given, judge, f"--output={tmp_path}/gone/new.jsonl"],
        "does not say how it was made": [given, judge, f"--output={tmp_path}/taken.jsonl"],
    }  # fmt: skip
    for (words, call), error in zip(calls.items(), several("judge", *calls.values()), strict=True):
        assert words in error, (call, error)
    assert (tmp_path / "taken.jsonl").read_text() == "mine\n"


def test_the_default_principles_are_short():
    assert len(questions.principles(questions.PRINCIPLES)) < 300
