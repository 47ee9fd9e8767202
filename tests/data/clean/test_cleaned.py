"""A source is read once, its documents pass all steps, and read = kept + dropped."""

import json
import os
import re
import tracemalloc
from collections import Counter

import pytest

from data.batch import DataError
from data.clean.cleaned import clean
from data.clean.steps import STEPS, Dropped
from data.read.documents import Document
from data.read.sources import open_source


def cleaned(spec, directory, validation=0.2, rule="document", max_bad_lines=0, **settings):
    """Returns (facts, texts by split)."""
    directory.mkdir(exist_ok=True)
    settings |= {"validation": validation, "rule": rule, "max_bad_lines": max_bad_lines}
    found = clean(open_source(str(spec)) if isinstance(spec, str | os.PathLike) else spec, directory, **settings)
    texts = {split: [text.decode() for _, text in waiting.read()] for split, waiting in found.splits.items()}
    return found.facts(), texts


def test_errors(tmp_path):
    (tmp_path / "one.txt").write_text("one document")
    with pytest.raises(DataError, match=r"one_txt has too few documents: .*none of .* falls into .*split = 'tail'"):
        cleaned(tmp_path / "one.txt", tmp_path / "out")
    (tmp_path / "short.txt").write_text("x")
    # The advice must not be split = 'tail', which is set already.
    with pytest.raises(DataError, match=r"too short to be split in two: add longer ones"):
        cleaned(tmp_path / "short.txt", tmp_path / "out 4", rule="tail")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="empty_txt is empty"):
        cleaned(tmp_path / "empty.txt", tmp_path / "out 2")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"bad_txt is empty[\s\S]*bad.txt, line 1: not UTF-8"):
        cleaned(tmp_path / "bad.txt", tmp_path / "out 3", max_bad_lines=1)


class Records:
    """A source whose documents name their split, or None."""

    name, notes = "made_up", ()

    def __init__(self, *splits):
        self._splits, self.times = splits, 0

    def documents(self, bad):
        self.times += 1
        return (Document(f"{i}", f"document {i}", split) for i, split in enumerate(self._splits))


@pytest.mark.parametrize(
    ("splits", "records", "rule", "validation", "advice", "not_advised"),
    [
        ([None], False, "document", 0.05, "Raise that fraction, or set config.data.split = 'tail'", "records"),
        ([None] * 3, False, "document", 0.999, "Lower that fraction, or set config.data.split = 'tail'", "records"),
        ([None] * 3, False, "tail", 0.99, "All of its texts are too short to be split", "records|split = 'tail'"),
        ([None] * 3, True, "document", 1e-9, "Raise that fraction, or add records", "tail"),
        ([None], True, "document", 0.05, "Add records, or set it to 0.* config.eval_every to 0", "tail|Raise"),
        (["train", "test"], True, "document", 0.05, "or leave config.data.labels.split empty", "tail|Raise"),
        (["train"], False, "document", 0.05, "Add some to the dataset, or read its documents as files", "tail|labels"),
    ],
)
def test_advice_is_of_use_for_the_kind_of_data(tmp_path, splits, records, rule, validation, advice, not_advised):
    settings = {"validation": validation, "rule": rule, "max_bad_lines": 0, "records": records}
    with pytest.raises(DataError, match=advice) as error:
        clean(Records(*splits), tmp_path, **settings)
    assert not re.search(not_advised, str(error.value))


@pytest.mark.parametrize("validation", [0.05, 0.3])
def test_the_advice_for_one_text_works(tmp_path, validation):
    (tmp_path / "one.txt").write_text("one document")
    _, texts = cleaned(tmp_path / "one.txt", tmp_path / "out", validation, rule="tail")
    assert "".join(texts["train"] + texts["validation"]) == "one document"


@pytest.mark.parametrize("splits", [[None] * 50, ["train", "validation", "test"] * 10])
def test_a_source_is_read_once(tmp_path, splits):
    source = Records(*splits)
    facts, texts = cleaned(source, tmp_path)
    assert source.times == 1
    assert facts["account"] == {"read": len(splits), "kept": len(splits), "dropped": {}}
    assert facts["test"] == splits.count("test") == len(splits) - sum(map(len, texts.values()))
    assert not list(tmp_path.iterdir())  # the files of waiting documents are deleted after reading


def test_documents_go_through_all_steps_and_the_account_closes(tmp_path):
    def short(document):
        return Dropped("shorter than 3 letters") if len(document.text) < 3 else document

    def without_digits(document):
        return document._replace(text=re.sub(r"\d", "", document.text))

    given = ["ab", "abc1", "", "123", "long enough", "12345", "x"] * 20
    lines = [*(json.dumps({"text": text}) for text in given), "broken"]
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n")
    steps = (short, without_digits, *STEPS)
    facts, texts = cleaned(tmp_path / "x.jsonl", tmp_path / "out", max_bad_lines=1, steps=steps)
    account = facts["account"]
    assert account == {"read": 140, "kept": 40, "dropped": {"shorter than 3 letters": 60, "empty": 40}}
    assert account["read"] == account["kept"] + sum(account["dropped"].values())
    assert Counter(texts["train"] + texts["validation"]) == {"abc": 20, "long enough": 20}
    assert sum(split["documents"] for split in facts["splits"].values()) == account["kept"]
    assert (facts["empty"], facts["bad_lines"]["count"]) == (40, 1)


def test_all_being_dropped_is_said_with_the_reasons(tmp_path):
    with pytest.raises(DataError, match=r"made_up is empty[\s\S]*skipped:\n  3 documents: not wanted"):
        cleaned(Records(None, None, None), tmp_path, steps=[lambda document: Dropped("not wanted")])


def test_empty_documents_and_files_are_counted_together(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "a long enough text"}\n{"text": ""}\n')
    (tmp_path / "in" / "b.jsonl").write_text("")
    (tmp_path / "in" / "c.txt").write_text("")
    facts, texts = cleaned(tmp_path / "in", tmp_path / "out", rule="tail")
    assert facts["empty"] == 3 and facts["account"] == {"read": 3, "kept": 1, "dropped": {"empty": 2}}
    assert "".join(texts["train"] + texts["validation"]) == "a long enough text"


def test_no_more_than_a_document_is_in_memory(tmp_path):
    class Many(Records):
        def documents(self, bad):
            return (Document(f"{i}", f"{i} " * 20_000) for i in range(400))  # 30 MB

    tracemalloc.start()
    found = clean(Many(), tmp_path, validation=0.2, rule="document", max_bad_lines=0)
    sizes = [len(text) for waiting in found.splits.values() for _, text in waiting.read()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(sizes) == 400 and sum(sizes) > 2e7 and peak < 2e6
