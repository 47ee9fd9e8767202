"""Preparation runs once per configuration, survives kills, and has clear errors."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from data import prepare as prepare_module
from data import stage
from data.batch import DataError, from_rows
from data.builders import text as corpora
from data.prepare import load, prepare
from data.rows import pack
from data.rows.pack import RowReader
from data.tokens import tokenizer as tokenizers

ROOT = Path(__file__).parents[2]


def quiet(line: str) -> None:
    """Ignores a line of the log."""


def files(folder: Path) -> dict[str, tuple[int, int]]:
    found = [(path, path.stat()) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): (stat.st_mtime_ns, stat.st_ino) for path, stat in found}


def unpacked(folder: Path, prepared) -> list[str]:
    """Returns the documents in packed rows, joined again."""
    tokenizer = tokenizers.load(prepared.tokenizer_path)
    reader = RowReader(folder, prepared.seq_len)
    batch = from_rows(reader.read(range(len(reader))))
    targets = batch["targets"].reshape(-1)[batch["weights"].reshape(-1) > 0]
    ends = np.flatnonzero(targets == tokenizer.eot_id)
    return [tokenizer.decode(part[:-1]) for part in np.split(targets, ends + 1)[:-1]]


def test_all_text_arrives_in_the_rows(corpus, prepared):
    (source,) = prepared.sources
    train, held_out = unpacked(source.train, prepared), unpacked(source.validation, prepared)
    assert sorted(train + held_out) == sorted(corpus[1])
    assert list(prepared.validation_texts()) == held_out
    assert prepared.validation_bytes == sum(len(text.encode()) for text in held_out) == source.validation_bytes
    assert (source.train_documents, source.validation_documents) == (len(train), len(held_out))
    tokenizer = tokenizers.load(prepared.tokenizer_path)
    assert source.train_tokens == sum(len(tokenizer.encode(text)) + 1 for text in train)
    assert source.train_rows == -(-source.train_tokens // prepared.seq_len)
    assert prepared.vocab_size == tokenizer.vocab_size


def test_the_tokenizer_sees_no_held_out_text(corpus, settings, tmp_path):
    prepared = prepare(settings(corpus[0]), tmp_path, quiet)
    train = list(corpora.read(prepared.sources[0].corpus, "train"))
    assert tokenizers.train(train, "bpe", 330).fingerprint == tokenizers.load(prepared.tokenizer_path).fingerprint


def test_a_second_call_does_nothing(corpus, settings, tmp_path):
    first = prepare(settings(corpus[0]), tmp_path / "out", quiet)
    before = files(tmp_path / "out")
    lines = []
    assert prepare(ConfigDict(settings(corpus[0])), tmp_path / "out", lines.append) == first
    assert load(first.directory) == first
    assert files(tmp_path / "out") == before
    assert lines == []


def test_two_folders_get_the_same_bytes(corpus, settings, tmp_path):
    first, second = (prepare(settings(corpus[0]), tmp_path / name, quiet) for name in ("one", "two"))
    assert first.content_hash == second.content_hash
    for a, b in zip(first.sources, second.sources, strict=True):
        assert (a.train / pack.ROWS_FILE).read_bytes() == (b.train / pack.ROWS_FILE).read_bytes()
    assert first.tokenizer_path.read_bytes() == second.tokenizer_path.read_bytes()


def test_other_settings_and_other_text_overwrite_nothing(settings, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("some text " * 100)
    config = settings(text, split="tail", tokenizer={"kind": "byte"})
    first = prepare(config, tmp_path / "out", quiet)
    before = files(tmp_path / "out")
    longer = prepare(config | {"seq_len": 64}, tmp_path / "out", quiet)
    text.write_text("other text " * 100)
    changed = prepare(config, tmp_path / "out", quiet)
    assert len({first.directory, longer.directory, changed.directory}) == 3
    assert first.content_hash == longer.content_hash != changed.content_hash
    after = files(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    # Only the time has changed: the file is read again, and the text found to be the same.
    os.utime(text, (1, 1))
    assert prepare(config, tmp_path / "out", quiet).directory == changed.directory


@pytest.mark.parametrize("broken", ["build", "train", "write_rows"])
def test_a_killed_preparation_is_done_again(corpus, settings, tmp_path, monkeypatch, broken):
    expected = prepare(settings(corpus[0]), tmp_path / "whole", quiet)
    owner = {"build": corpora, "train": prepare_module.tokenizers, "write_rows": pack}[broken]
    whole = getattr(owner, broken)

    def half(*args, **kwargs):
        whole(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, broken, half)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings(corpus[0]), tmp_path / "out", quiet)
    finished = {name for name in files(tmp_path / "out") if ".partial" not in name}
    assert len(list((tmp_path / "out").rglob("*.partial"))) == 1
    lines = []
    prepared = prepare(settings(corpus[0]), tmp_path / "out", lines.append)
    assert list((tmp_path / "out").rglob("*.partial")) == []
    assert len(lines) == {"build": 3, "train": 2, "write_rows": 1}[broken]  # finished stages are not written again
    assert finished <= set(files(tmp_path / "out"))
    assert (prepared.sources[0].train / pack.ROWS_FILE).read_bytes() == (
        expected.sources[0].train / pack.ROWS_FILE
    ).read_bytes()


def test_a_second_process_waits(corpus, settings, tmp_path):
    program = f"from data.prepare import prepare; prepare({settings(corpus[0])!r}, {str(tmp_path)!r})"
    lines = []
    with stage.lock(tmp_path, lines.append):
        process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == f"another process is preparing {tmp_path}: waiting for it\n"
        time.sleep(0.5)  # plenty of time, because all imports are done
        assert process.poll() is None
        assert not (tmp_path / "corpora").exists()
    assert "writing" in process.communicate(timeout=60)[0]
    assert process.returncode == 0


def test_a_prepared_folder_can_move(corpus, settings, tmp_path):
    prepared = prepare(settings(corpus[0]), tmp_path / "here", quiet)
    texts = list(prepared.validation_texts())
    (tmp_path / "here").rename(tmp_path / "there")
    moved = load(tmp_path / "there" / prepared.directory.relative_to(tmp_path / "here"))
    assert list(moved.validation_texts()) == texts
    assert len(RowReader(moved.sources[0].train, moved.seq_len)) == moved.sources[0].train_rows


def test_a_given_tokenizer_is_used(corpus, settings, prepared, tmp_path):
    tokenizer = {"kind": "file", "path": str(prepared.tokenizer_path)}
    again = prepare(settings(corpus[0], tokenizer=tokenizer, seq_len=16), tmp_path, quiet)
    assert again.tokenizer_path.read_bytes() == prepared.tokenizer_path.read_bytes()


def test_unknown_characters_are_reported(settings, tmp_path):
    (tmp_path / "a.txt").write_text("ab" * 100 + "é")
    lines = []
    prepare(settings(tmp_path / "a.txt", split="tail", tokenizer={"kind": "char"}), tmp_path / "out", lines.append)
    assert any("1 of 42 validation tokens are unknown" in line for line in lines)


def test_broken_lines_are_reported(settings, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a text that is long enough"}\nbroken\n' * 3)
    config = settings(path, split="tail", tokenizer={"kind": "byte"})
    lines = []
    prepared = prepare(config, tmp_path / "out", lines.append)
    assert prepared.sources[0].bad_lines == 3
    assert any(f"{path}, line 2: not JSON" in line and "skipped 3" in line for line in lines)
    with pytest.raises(DataError, match=r"max_bad_lines = 2[\s\S]*x.jsonl, line 6"):
        prepare(config | {"max_bad_lines": 2}, tmp_path / "other", quiet)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seqlen": 5}, "Unknown field data.seqlen: did you mean seq_len?"),
        (
            {"tokenizer": {"vocabsize": 5}},
            "Unknown field data.tokenizer.vocabsize: did you mean vocab_size?",
        ),
        (
            {"tokenizer": {"kind": "wordpiece"}},
            "data.tokenizer.kind must be one of bpe, byte, char, file, not 'wordpiece'",
        ),
        ({"tokenizer": {"kind": "file"}}, "data.tokenizer.path must name"),
        ({"tokenizer": {"kind": "file", "path": "/nowhere"}}, "There is no tokenizer at /nowhere"),
        ({"tokenizer": {"kind": "bpe", "vocab_size": 10}}, "needs a vocab_size of 257"),
        ({"sources": ()}, "data.sources is empty"),
        ({"sources": ("stdlib", 1.0)}, "data.sources must be pairs"),
        ({"sources": (("/nowhere/a.txt", 1.0),)}, "There is no file or folder /nowhere/a.txt"),
        ({"sources": (("stdlib", float("nan")),)}, "must be a positive number, not nan"),
        ({"seq_len": 0}, "data.seq_len must be a whole number of at least 1"),
        ({"max_bad_lines": -1}, "data.max_bad_lines must be a whole number of at least 0"),
        ({"tokenizer": {"kind": "bpe", "vocab_size": 0}}, "a tokenizer of kind bpe needs a whole number of at least 1"),
        ({"validation": 5}, "data.validation must be a fraction"),
        ({"split": "random"}, "data.split must be one of document, tail"),
        ({"tokenizer": {"mask": 1}}, "data.tokenizer.mask must be True or False"),
        ({"tokenizer": {"kind": "file", "path": "x", "sentinels": 9}}, "are for tokenizers trained here"),
        ({"corruption": {"kind": "masked", "rates": 0.2}}, "Unknown field data.corruption.rates: did you mean rate?"),
        ({"corruption": {"kind": "masked"}}, "set data.tokenizer.mask to True"),
        ({"corruption": {"kind": "spans"}, "seq_len": 512}, "set data.tokenizer.sentinels to 26"),
    ],
)
def test_settings_errors(corpus, settings, tmp_path, changes, message):
    with pytest.raises(DataError) as error:
        prepare(settings(corpus[0]) | changes, tmp_path, quiet)
    assert message in str(error.value)


def test_a_given_tokenizer_must_suit_the_corruption(corpus, settings, prepared, tmp_path):
    """The check comes before any work, so nothing is written."""
    tokenizer = {"kind": "file", "path": str(prepared.tokenizer_path)}
    with pytest.raises(DataError, match=r"the tokenizer has no mask token"):
        prepare(settings(corpus[0], tokenizer=tokenizer, corruption={"kind": "masked"}), tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_prepared(settings, tmp_path):
    with pytest.raises(DataError, match="holds no prepared data"):
        load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"File exists .*file"):
        prepare(settings("stdlib"), tmp_path / "file", quiet)


def test_a_full_disk_is_an_error_and_loses_nothing(settings, tmp_path):
    """A limit on the file size replaces a full disk; the system refuses the write in the same way."""
    (tmp_path / "a.txt").write_bytes(np.random.default_rng(0).integers(32, 127, 300_000, dtype=np.uint8).tobytes())
    config = settings(tmp_path / "a.txt", split="tail", tokenizer={"kind": "byte"})
    program = (
        "import resource; from data.prepare import prepare; from data.batch import DataError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))\n"
        f"try: prepare({config!r}, {str(tmp_path / 'out')!r}, lambda line: None)\n"
        "except DataError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "File too large while data was prepared" in result.stdout, result.stderr
    finished = files(tmp_path / "out" / "corpora") | files(tmp_path / "out" / "tokenizers")
    assert finished
    prepare(config, tmp_path / "out", quiet)
    assert files(tmp_path / "out" / "corpora") | files(tmp_path / "out" / "tokenizers") == finished


CONFIG = """
from configs import pretrain_decoder

def get_config(path):
    config = pretrain_decoder.get_config("tiny")
    config.data.update(sources=((path, 1.0),), validation=0.1, split="tail", seq_len=16)
    config.data.tokenizer.update(kind="byte", vocab_size=0)
    return config
"""


def test_the_program_prints_a_table_or_one_line(tmp_path):
    (tmp_path / "a config.py").write_text(CONFIG)
    (tmp_path / "a text.txt").write_text("some text\n" * 50)

    def run(text):
        config, out = f"--config={tmp_path}/a config.py:{tmp_path}/{text}", f"--data_dir={tmp_path}/an out"
        command = [sys.executable, "-m", "launch.prepare", config, out]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    result = run("a text.txt")
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if " train " in line)
    assert line.split()[-6:] == ["1", "450", "451", "0.998", "29", "0"]
    assert "content hash" in result.stdout
    assert result.stderr == ""
    result = run("missing.txt")
    assert result.returncode == 1
    assert result.stderr == f"error: There is no file or folder {tmp_path}/missing.txt.\n"


def test_new_text_of_the_same_size_and_time_is_noticed(settings, tmp_path):
    path, config = tmp_path / "a.txt", settings(tmp_path / "a.txt", split="tail", tokenizer={"kind": "byte"})
    path.write_text("some text " * 100)
    before, time_ = prepare(config, tmp_path / "out", quiet), path.stat().st_mtime_ns
    path.write_text("more text " * 100)
    os.utime(path, ns=(time_, time_))
    after = prepare(config, tmp_path / "out", quiet)
    assert after.content_hash != before.content_hash
    assert list(after.validation_texts()) == ["more text " * 10 * 2]


def test_what_is_not_read_is_said_each_time(settings, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "A.TXT").write_text("some text " * 100)
    (tmp_path / "in" / "empty.txt").write_text("")
    (tmp_path / "in" / "b.pdf").write_text("")
    config = settings(tmp_path / "in", split="tail", tokenizer={"kind": "byte"})
    first, second = [], []
    for lines in (first, second):
        prepare(config, tmp_path / "out", lines.append)
        assert f"{tmp_path}/in: not read: files of other kinds (.pdf 1) (1): {tmp_path}/in/b.pdf" in lines
    assert f"{tmp_path}/in: 1 files or documents are empty and were skipped." in first
    assert len(second) == 1
