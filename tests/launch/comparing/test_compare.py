"""The program: answers as launch.generate gives them, people's votes, judges, exports, kills, user errors."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from launch.comparing import server
from tests.launch.comparing.test_voting import ask, state
from tests.launch.conftest import ROOT
from tests.launch.judging.openai_server import longer, serving
from tests.launch.judging.test_judge import PROMPTS, environment, lines, program, several

SHORT = ("--max_new_tokens=8", "--temperature=1", "--batch_size=4")


@pytest.fixture(scope="module")
def compared(talker, other, tmp_path_factory):
    """Returns (the folder, the words of the command), after a judge has compared two models."""
    folder = tmp_path_factory.mktemp("compared")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    words = [str(talker), str(other), f"--prompts={prompts}", f"--output={folder / 'out'}", *SHORT]
    done = program("compare", *words, f"--judge={talker}")
    assert "9 of 9 prompts" in done.stderr and "9 comparisons on 9 prompts" in done.stdout
    return folder / "out", words


def names(talker, other):
    return [f"{path.parent.name}/{path.name}" for path in (talker, other)]


def test_answers_are_those_of_generate_and_a_killed_command_continues(compared, talker, other, tmp_path):
    folder, words = compared
    output = tmp_path / "alone.jsonl"
    program("generate", f"--workdir={other}", words[2], f"--output={output}", "--num_samples=1", *SHORT)
    own = folder / "answers" / f"{names(talker, other)[1].replace('/', '+')}.jsonl"
    assert own.read_bytes() == output.read_bytes()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in copy.rglob("*.jsonl"):  # as a kill leaves them
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    program("compare", *words, f"--judge={talker}", f"--output={copy}")
    for path in folder.rglob("*.json*"):
        assert path.read_bytes() == (copy / path.relative_to(folder)).read_bytes(), path.name


def test_people_vote_until_ctrl_c_and_the_votes_become_preferences(compared, talker, other, tmp_path):
    folder, words = compared
    command = [sys.executable, "-m", "launch.compare", *words, "--port=0"]
    serving = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        url = next(line for line in serving.stdout if line.startswith("open ")).split()[1]
        there = state(ask(f"{url}/state?rater=ann"))
        assert there["total"] == 9
        for _ in range(4):
            body = {"rater": "ann", "pair": there["pair"]["id"], "verdict": "left"}
            there = state(ask(f"{url}/vote", body))
        serving.send_signal(signal.SIGINT)
        said, _ = serving.communicate(timeout=60)
    finally:
        serving.kill()
    assert serving.returncode == 0 and "this continues: python -m launch.compare" in said and "--port=0" in said
    assert "4 comparisons on 9 prompts, 0 of them ties (ann 4)." in said
    results = json.loads((folder / "results.json").read_text())
    assert {*results["models"]} == {*names(talker, other)} and results["raters"] == {"ann": 4}
    preferences = tmp_path / "preferences.jsonl"
    (done,) = several("compare", [*words, f"--export={preferences}"])
    assert done == "done"
    rows, prompts = lines(preferences), {row["prompt"] for row in PROMPTS}
    assert 0 < len(rows) <= 4 and all(row.keys() == {"prompt", "chosen", "rejected"} for row in rows)
    assert {row["prompt"] for row in rows} <= prompts


def test_a_server_judges_and_a_third_model_joins(compared, talker, other, tmp_path, monkeypatch):
    folder, words = compared
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    third = tmp_path / "third"
    shutil.copytree(talker, third)  # it gives the same answers as the first one
    preferences = tmp_path / "preferences.jsonl"
    with serving(longer) as there:
        judge = [f"--judge={there.url}", "--judge_model=m", f"--export={preferences}"]
        calls = several("compare", [*words, *judge], [*words, *judge], [str(third), *words, *judge])
        assert calls == ["done"] * 3 and len(there.asked) == 18  # known answers are not judged again
    found = json.loads((folder / "results.json").read_text())
    assert len(found["models"]) == 3 and found["comparisons"] == 18 and found["equal answers"] == 9
    assert found["judge"]["judge_model"] == "m" and found["judging"]["questions"] == 18
    first, second = (found["models"][name] for name in (names(talker, other)[0], "third"))
    assert first["rating"] == pytest.approx(second["rating"], abs=0.2)
    assert all(len(row["chosen"]) >= len(row["rejected"]) for row in lines(preferences))


def test_mistakes_come_before_a_model_is_loaded(compared, talker, other, rewarder, tmp_path):
    _, words = compared
    models, prompts = words[:2], words[2]
    new = f"--output={tmp_path / 'new'}"
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    (tmp_path / "taken").write_text("mine\n")
    shutil.copytree(talker, tmp_path / "same")
    with server.bound(0) as taken:
        port = taken.server_address[1]
        calls = {
            "name at least two workdirs to compare": [models[0], prompts, new],
            "is named twice": [*models, models[0], prompts, new],
            "gone holds no run (no config.json)": [models[0], f"{tmp_path}/gone", prompts, new],
            "the head sequence, which gives no text": [models[0], str(rewarder), prompts, new],
            "there is no file": [*models, f"--prompts={tmp_path}/gone.jsonl", new],
            "holds no records": [*models, f"--prompts={tmp_path}/none.jsonl", new],
            "line 2: there is no prompt, only text": [*models, f"--prompts={tmp_path}/bad.jsonl", new],
            "--judge_model is for --judge": [*models, prompts, new, "--judge_model=m"],
            "--principles is for --judge": [*models, prompts, new, "--principles=p.txt"],
            "name its model with --judge_model": [*models, prompts, new, "--judge=http://127.0.0.1:9/v1"],
            "--port is for the page": [*models, prompts, new, "--export=a.jsonl", "--port=0"],
            "--judge_model is for a server": [*models, prompts, new, f"--judge={talker}", "--judge_model=m"],
            "a judge is a decoder with the head language_model": [*models, prompts, new, f"--judge={rewarder}"],
            "gone.txt can't be read": [*models, prompts, new, f"--judge={talker}", f"--principles={tmp_path}/gone.txt"],
            "--export is 'a.txt'; name a file that ends in .jsonl": [*models, prompts, new, "--export=a.txt"],
            f"--port={port} can't be used": [*models, prompts, new, f"--port={port}"],
            "taken: Not a directory; name a folder": [*models, prompts, f"--output={tmp_path}/taken", "--port=0"],
            "temperature": [*models, prompts, new, "--temperature=-1", "--port=0"],
            "begun with other settings (seed: 0, now 1)": [*words, "--seed=1", "--port=0"],
            "all answers in ": [str(talker), f"{tmp_path}/same", prompts, new, *SHORT, "--port=0"],
        }
        found = several("compare", *calls.values())
    for (text, call), error in zip(calls.items(), found, strict=True):
        assert text in error, (call, error)
    assert os.listdir(tmp_path / "new" / "answers") and not (tmp_path / "new" / "votes.sqlite").exists()
