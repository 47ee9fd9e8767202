"""The corpus is cleaned once, and no temporary files stay behind."""

import pytest

from data import stage
from data.batch import DataError
from data.clean import steps
from data.prepare import prepare


def quiet(line: str) -> None:
    """Ignores a line of the log."""


def test_documents_that_waited_on_disk_are_gone(corpus, settings, tmp_path):
    """They are deleted also after an error; other unfinished files stay until the next run."""
    (source,) = prepare(settings(corpus[0], tokenizer={"kind": "byte"}), tmp_path / "out", quiet).sources
    assert {path.name for path in source.corpus.parents[2].iterdir()} == {"manifest.json", "tfds"}
    (tmp_path / "a.jsonl").write_text("broken\n" * 3)
    with pytest.raises(DataError, match="can't be read"):
        prepare(settings(tmp_path / "a.jsonl", max_bad_lines=2), tmp_path / "second", quiet)
    assert not [path for path in (tmp_path / "second" / "corpora").rglob("*") if path.is_file()]


def test_what_a_step_drops_is_said_and_kept_with_the_corpus(corpus, settings, tmp_path, monkeypatch):
    def few(document):
        return steps.Dropped("a file of its own") if document.name.startswith("doc 1") else document

    before = prepare(settings(corpus[0], tokenizer={"kind": "byte"}), tmp_path, quiet).sources[0].corpus
    monkeypatch.setattr("data.corpus.STEPS", (few, *steps.STEPS))
    said = []
    prepared = prepare(settings(corpus[0], tokenizer={"kind": "byte"}), tmp_path, said.append)
    assert f"{corpus[0]}: 11 of 40 documents were dropped: a file of its own." in said
    assert prepared.sources[0].corpus != before  # a corpus that was made without this step is not used again
    account = stage.manifest(prepared.sources[0].corpus.parents[2])["account"]
    assert account == {"read": 40, "kept": 29, "dropped": {"a file of its own": 11}}
    assert prepared.sources[0].train_documents + prepared.sources[0].validation_documents == 29
