"""The TFDS dataset that data/builders writes has every document once, with its name."""

import tensorflow_datasets as tfds

from data.builders.text import build, read
from data.clean.cleaned import clean
from data.read.sources import open_source


def built(spec, directory, validation=0.2, rule="document", max_bad_lines=0):
    directory.mkdir(exist_ok=True)
    settings = {"validation": validation, "rule": rule, "max_bad_lines": max_bad_lines}
    cleaned = clean(open_source(str(spec)), directory, **settings)
    facts = {"dataset": build(cleaned.splits, directory)} | cleaned.facts()
    texts = {split: list(read(directory / facts["dataset"], split)) for split in facts["splits"]}
    return facts, texts


def test_every_document_is_in_one_split(corpus, tmp_path):
    folder, expected = corpus
    facts, texts = built(folder, tmp_path)
    assert sorted(texts["train"] + texts["validation"]) == sorted(expected)
    for split, found in texts.items():
        assert facts["splits"][split]["documents"] == len(found) > 0
        assert facts["splits"][split]["bytes"] == sum(len(text.encode()) for text in found)


def test_it_is_a_tfds_dataset_with_names(corpus, tmp_path):
    facts, _ = built(corpus[0], tmp_path)
    dataset = tfds.builder_from_directory(tmp_path / facts["dataset"])
    names = {example["name"].decode() for split in dataset.info.splits for example in dataset.as_data_source(split)}
    assert names == {f"doc {i}.txt" for i in range(20)} | {f"more.jsonl:{i}" for i in range(1, 21)}
    assert dataset.info.file_format.value == "array_record"


def test_the_hash_is_of_the_content(tmp_path):
    def hashes(**files) -> tuple[str, str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        (folder / "in").mkdir(parents=True)
        for name, text in files.items():
            (folder / "in" / f"{name}.txt").write_text(text)
        facts, _ = built(folder / "in", folder / "out", rule="tail")
        return tuple(facts["splits"][split]["sha256"] for split in ("train", "validation"))

    same = hashes(a="some text", b="more text")
    assert hashes(a="some text", b="more text") == same
    others = [hashes(a="some text", c="more text"), hashes(a="some texT", b="more text"), hashes(a="some text")]
    assert len({same, *others}) == 4


def test_validation_0_holds_nothing_out(corpus, tmp_path):
    _, texts = built(corpus[0], tmp_path, validation=0)
    assert sorted(texts["train"]) == sorted(corpus[1])
    assert list(texts) == ["train"]


def test_broken_lines_are_counted_once(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a long enough text"}\nbroken\n')
    facts, _ = built(tmp_path / "x.jsonl", tmp_path / "out", rule="tail", max_bad_lines=1)
    assert facts["bad_lines"]["count"] == 1
    assert "x.jsonl, line 2: not JSON" in facts["bad_lines"]["first"][0]
