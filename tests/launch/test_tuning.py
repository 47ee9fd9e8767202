"""Runs on examples: conversations and pairs beside text that is watched, what is printed of them, and answers."""

import json
import subprocess
import sys

import pytest

from configs import pretrain_decoder, pretrain_encdec
from data import tokenizer
from data.batch import DataError
from data.chat import Chat
from data.prepare import load
from launch import build, evaluation, prompts, restore, workdirs
from launch.checking import ConfigError
from launch.train import train
from model import axes
from tests.launch.conftest import shrink
from train import metrics

ANSWERS = {"hi": "ho ho", "who?": "me"}


def records(path, count: int, asked: str, said: str):
    """`count` lines of jsonl with the two questions of ANSWERS in turn."""
    pairs = [list(ANSWERS.items())[i % 2] for i in range(count)]
    path.write_text("\n".join(json.dumps({asked: a, said: b}) for a, b in pairs) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A glob of 20 texts."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(20):
        (folder / f"{i}.txt").write_text(f"file {i} says little. " * (i + 3))
    return f"files:{folder}/*.txt"


@pytest.fixture(scope="module")
def made():
    """What the first test that asks for a run made of it; devices are patched a test, so no wider fixture can train."""
    return {}


@pytest.fixture
def base(made, texts, corpus, data_dir, tmp_path_factory):
    """A run on text, as short as can be: (workdir, config)."""
    if "base" not in made:
        config = shrink(pretrain_decoder.get_config(), data_dir, corpus)
        config.steps = config.eval_every = config.checkpoint_every = 4
        config.data.update(split="document", sources=((texts, 1.0),))
        workdir = tmp_path_factory.mktemp("base")
        train(config, workdir)
        made["base"] = workdir, config
    return made["base"]


@pytest.fixture
def tuned(made, base, tmp_path_factory, capsys):
    """That run tuned on conversations, with the text of its base watched: (workdir, config, what was printed)."""
    if "tuned" not in made:
        config = base[1].copy_and_resolve_references()
        config.init_from, config.steps, config.log_every = str(base[0]), 120, 120
        config.eval_every = config.checkpoint_every = 120
        config.data.update(sources=((config.data.sources[0][0], 0.0),), seq_len=64)
        config.data.path = records(tmp_path_factory.mktemp("chat") / "chat.jsonl", 60, "instruction", "output")
        workdir = tmp_path_factory.mktemp("tuned")
        train(config, workdir)
        made["tuned"] = workdir, config, capsys.readouterr().out
    return made["tuned"]


def test_every_source_has_its_figures_before_and_after(base, tuned):
    workdir, config, printed = tuned
    rows = [row for row in metrics.read(workdir / "metrics.jsonl") if "validation/loss" in row]
    assert [row["step"] for row in rows] == [0, 120]
    before, after = rows
    names = {name.split("/")[1] for name in after if name.count("/") == 2}
    assert names == {"chat_jsonl", "txt"}
    # Only conversations train, so they alone are in the figures of the run; only text has bits per byte.
    for row in rows:
        assert row["validation/loss"] == pytest.approx(row["validation/chat_jsonl/loss"])
    assert "validation/txt/bits_per_byte" in after and "validation/bits_per_byte" not in after
    assert after["validation/loss"] < 0.2 < before["validation/loss"]
    assert after["validation/txt/loss"] > before["validation/txt/loss"]  # forgotten
    line = next(line for line in printed.splitlines() if line.startswith("txt/loss"))
    assert [float(part) for part in line.split()[1:]] == pytest.approx(
        [before["validation/txt/loss"], after["validation/txt/loss"]], rel=1e-3
    )

    # Before: what the base says of all that it held out, which is the text that is watched.
    mesh, model, _ = restore.restore_for_inference(base[0])
    prepared = load(json.loads((workdir / "data.json").read_text())["directory"])
    held_out = workdirs.adopted(base[0]).sources[0]
    assert [source.train_rows for source in prepared.sources][1] == 0
    assert prepared.sources[1].validation_documents == held_out.validation_documents > 0
    whole = evaluation.evaluation(config, prepared, None, build.steps(config, None)[1], build.put(mesh))
    with axes.use_mesh(mesh):
        assert whole(model, config.eval_rows)["validation/txt/loss"] == pytest.approx(before["validation/txt/loss"])


def test_answers_end_by_themselves_and_stand_alone(tuned):
    command = [sys.executable, "-m", "launch.generate", f"--workdir={tuned[0]}", "--temperature=0"]
    command += [f"--prompt={question}" for question in ANSWERS] + ["--max_new_tokens=20"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out == "--- 1 of 2 ---\nho ho\n--- 2 of 2 ---\nme\n"


def test_prompts_are_what_examples_began_with(base, tuned):
    config, words = workdirs.recorded_config(tuned[0]), tokenizer.load(tuned[0] / "tokenizer.json")
    chat = Chat(words, config.data.chat)
    given = prompts.inputs(config, words, ["hi"], False, system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert given.prompts == [chat.prompt(messages)] and given.answers
    raw = prompts.inputs(config, words, ["hi"], False, raw=True)
    assert raw.prompts == words.prompts(["hi"]) and not raw.answers
    with pytest.raises(ConfigError, match="--system is for models tuned on conversations, and not for --raw"):
        prompts.inputs(config, words, ["hi"], False, system="Be brief.", raw=True)
    with pytest.raises(ConfigError, match="leave it out"):
        prompts.inputs(workdirs.recorded_config(base[0]), words, ["hi"], False, system="Be brief.")


def test_an_encoder_reads_the_source_of_a_pair():
    config = pretrain_encdec.get_config()
    config.data.update(sources=(), path="pairs.jsonl", format="pairs")
    config.data.pairs.prefix = "say: "
    words = tokenizer.train([], "byte", specials=["<extra_id_0>"])
    given = prompts.inputs(config, words, ["hi"], True)
    assert given.sources == [[*words.encode("say: hi"), words.eot_id]]
    assert given.prompts == [[words.start_id]]
    assert prompts.inputs(config, words, ["hi"], True, raw=True).sources == [[*words.encode("hi"), words.eot_id]]


def test_mistakes_are_said_before_the_work(tiny, tmp_path):
    tiny.data.path = records(tmp_path / "chat.jsonl", 4, "instruction", "output")
    tiny.data.chat.template = "chatml"
    tiny.init_from = ""
    with pytest.raises(DataError, match="the tokenizer has no token"):
        train(tiny, tmp_path / "run")
    tiny.model.update(architecture="encoder", head="masked")
    with pytest.raises(ConfigError, match="need a decoder"):
        train(tiny, tmp_path / "run")
