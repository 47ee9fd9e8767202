"""Labelled texts come correctly from files to batches."""

import json
import math
import re

import numpy as np
import pytest

from data.batch import TRAINED, Channel, DataError, check
from data.examples import kinds, labels
from data.examples.label_reader import Reader
from data.pipeline import train_pipeline, validation_batches
from data.prepare import prepare
from data.read.documents import BadLines
from data.read.records import RecordSource
from data.rows.pack import RowReader
from data.tokens import hub
from data.tokens import tokenizer as tokenizers

WORDS = ["the", "ball", "was", "kicked", "over", "the", "bank", "and", "nobody", "paid"]


def quiet(line: str) -> None: ...


def write(folder, name: str, content: str):
    path = folder / name
    path.write_text(content)
    return path


def texts(count: int):
    """Returns (text, label) pairs; the label is 'long', 'mid' or 'short'."""
    for i in range(count):
        yield f"{i} " + " ".join(WORDS[: 1 + i % 9]), ("short", "mid", "long")[i % 9 // 3]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    lines = [f'{label},"{text}"' for text, label in texts(120)]
    return write(tmp_path_factory.mktemp("labels"), "sizes.csv", "\n".join(["label,text", *lines]) + "\n")


@pytest.fixture
def config(settings):
    """Returns `config(path, block, **changes)`, which makes the data block of a config with labels."""

    def config(path, block=None, **changes) -> dict:
        block = {"read": "last"} | (block or {})
        defaults = dict(
            sources=(), path=str(path), format="labels", labels=block, seq_len=64, tokenizer={"kind": "byte"}
        )
        return settings(**(defaults | changes))

    return config


def examples(prepared, split="train"):
    """Yields (ids, {place: target}) for every example."""
    channels = prepared.sources[0].channels
    numbers = Channel("targets", "float32") in channels
    reader = RowReader(getattr(prepared.sources[0], split), prepared.seq_len, channels=channels)
    for row in reader.read(range(len(reader))).astype(np.int32):
        targets = row[1].view(np.float32) if numbers else row[1]
        for segment in range(1, row[2].max() + 1):
            at = row[2] == segment
            places = np.flatnonzero(row[3][at] & TRAINED)
            yield row[0][at].tolist(), {int(place): targets[at][place].item() for place in places}


@pytest.mark.parametrize("read", ["last", "first"])
def test_texts_stand_whole_in_the_rows_with_their_class_where_it_is_read(table, config, tmp_path, read):
    prepared = prepare(config(table, {"read": read}), tmp_path, quiet)
    tokenizer = tokenizers.load(prepared.tokenizer_path)
    facts = prepared.sources[0].facts
    assert facts["names"] == ["long", "mid", "short"]
    found, counts = [], [0, 0, 0]
    for split in ("train", "validation"):
        for ids, targets in examples(prepared, split):
            ((place, target),) = targets.items()
            assert ids[0] == tokenizer.special.begin and place == (0 if read == "first" else len(ids) - 1)
            assert (ids[-1] == tokenizer.eot_id) == (read == "first")
            found.append((tokenizer.decode(ids), facts["names"][target]))
            counts[target] += split == "train"
    assert sorted(found) == sorted(texts(120))
    assert facts["counts"] == counts
    batch = next(validation_batches(prepared, 2))
    assert batch["targets"].dtype == np.int32 and 0 < batch["weights"].sum() < 40


def test_numbers_are_float32_targets(config, tmp_path):
    given = [(f"text {i}", i / 7 - 3) for i in range(60)]
    path = write(tmp_path, "n.jsonl", "\n".join(json.dumps({"review": t, "stars": y}) for t, y in given))
    prepared = prepare(config(path, {"kind": "number", "text": "review", "label": "stars"}), tmp_path, quiet)
    tokenizer = tokenizers.load(prepared.tokenizer_path)
    all_of_them = [*examples(prepared), *examples(prepared, "validation")]
    found = {tokenizer.decode(ids): list(targets.values()) for ids, targets in all_of_them}
    assert found == {text: [float(np.float32(y))] for text, y in given}
    train = [value for _, targets in examples(prepared) for value in targets.values()]
    assert prepared.sources[0].facts["mean"] == pytest.approx(np.mean(train), rel=1e-6)
    pipeline = train_pipeline(prepared, 2, 0)
    batch = pipeline.next()
    pipeline.close()
    assert batch["targets"].dtype == np.float32 and set(batch["targets"][batch["weights"] > 0]) <= set(train)


def test_words_are_asked_at_their_first_token(config, tmp_path):
    sentences = [(["New", "York", "is", "bigger", str(i)], ["B", "I", None, "O", "O"]) for i in range(40)]
    lines = [json.dumps({"tokens": words, "labels": given}) for words, given in sentences]
    path = write(tmp_path, "t.jsonl", "\n".join(lines))
    tokenizer = {"kind": "bpe", "vocab_size": 290}
    prepared = prepare(config(path, {"kind": "token", "read": "first"}, tokenizer=tokenizer), tmp_path, quiet)
    tokenizer = tokenizers.load(prepared.tokenizer_path)
    assert prepared.sources[0].facts["names"] == ["B", "I", "O"]
    for ids, targets in examples(prepared):
        text = tokenizer.decode(ids)
        begins = [0, 4, 12, 19]  # where New, York, bigger and the number begin, in characters
        ends = [len(tokenizer.decode(ids[: i + 1])) for i in range(len(ids))]
        places = [next(i for i, end in enumerate(ends) if end > begin) for begin in begins]
        assert targets == dict(zip(places, [0, 1, 2, 2], strict=True)) and text.startswith("New York is bigger ")
    assert len(list(examples(prepared))) + len(list(examples(prepared, "validation"))) == 40


def test_a_long_text_loses_its_end(table, config, tmp_path):
    said = []
    for read in ("last", "first"):
        prepared = prepare(config(table, {"read": read}, seq_len=16), tmp_path, said.append)
        tokenizer = tokenizers.load(prepared.tokenizer_path)
        longest = [(ids, targets) for ids, targets in examples(prepared) if tokenizer.decode(ids).startswith("35 ")]
        ((ids, targets),) = longest
        text = "35 the ball was kicked over the bank and nobody"
        assert tokenizer.decode(ids) == text[: 15 if read == "last" else 14]
        assert targets == {15 if read == "last" else 0: 0}
    assert sum("were longer than 16 tokens and were cut" in line for line in said) == 4


def test_cut_words_keep_their_own_labels(config, tmp_path):
    lines = [json.dumps({"tokens": list("abcdefgh"), "labels": list("ABCDEFGH")}) for _ in range(20)]
    path = write(tmp_path, "t.jsonl", "\n".join(lines))
    for read, count in (("last", 4), ("first", 3)):
        prepared = prepare(config(path, {"kind": "token", "read": read}, seq_len=8), tmp_path, quiet)
        for ids, targets in examples(prepared):
            assert len(ids) == 8 and targets == {1 + 2 * i: i for i in range(count)}


def test_odd_words_and_records_are_counted_and_no_error(bert, config, tmp_path):
    odd = ["\u200b", "hello", "\ufe0f", " hellos", "\x96", "a", "\u0301"]
    hub.read(bert, {"model_type": "bert"}).save(tmp_path / "tokenizer.json")
    given = [(odd, list("ABABABA")), (["\u200b", "a"], ["A", None]), (["a"] * 9 + ["b"], [None] * 9 + ["B"])]
    given = [pair for pair in given for _ in range(40)]
    lines = [json.dumps({"tokens": words, "labels": tags}) for words, tags in given]
    path, said = write(tmp_path, "t.jsonl", "\n".join(lines)), []
    tokenizer = {"kind": "file", "path": str(tmp_path / "tokenizer.json")}
    block = {"kind": "token", "read": "first"}
    prepared = prepare(config(path, block, tokenizer=tokenizer, seq_len=8), tmp_path, said.append)
    found = [targets for split in ("train", "validation") for _, targets in examples(prepared, split)]
    assert found == [{1: 1, 2: 1, 4: 1}] * 40

    counted = lambda note: sum(int(count) for line in said for count in re.findall(rf": (\d+) {note}\.$", line))
    assert counted("words have no token of their own and get no label") == 4 * 40
    left_out = "examples have no labelled word with a token of its own in their first 8 tokens, and are skipped"
    assert counted(left_out) == 80
    write(tmp_path, "t.jsonl", "\n".join(lines[40:]))
    with pytest.raises(DataError, match=r"t\.jsonl: no example is left: \d+ examples have no labelled word"):
        prepare(config(path, block, tokenizer=tokenizer, seq_len=8), tmp_path, quiet)


def test_a_batch_of_two_texts_has_token_types(config, tmp_path):
    rows = [{"text": WORDS[i % 9], "other": WORDS[i % 7], "label": i % 2} for i in range(60)]
    path = write(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows)))
    prepared = prepare(config(path, {"pair": "other", "read": "first"}), tmp_path, quiet)
    tokenizer = tokenizers.load(prepared.tokenizer_path)
    reader, examples = Reader(tokenizer, "first", 64), 0
    for batch in validation_batches(prepared, 2):
        check(batch, tokenizer.vocab_size, prepared.channels)
        for ids, segments, types in zip(batch["tokens"], batch["segment_ids"], batch["token_types"], strict=True):
            for segment in range(1, segments.max() + 1):
                here, types_here = ids[segments == segment].tolist(), types[segments == segment].tolist()
                first, second = (
                    tokenizer.decode(here[: types_here.index(1)]),
                    tokenizer.decode(here[types_here.index(1) :]),
                )
                given = reader.text(first, second)
                assert here == given.ids and types_here == [0] * given.second + [1] * (len(here) - given.second)
                assert first in WORDS and second in WORDS
                examples += 1
        assert not batch["token_types"][batch["segment_ids"] == 0].any()
    assert examples == prepared.sources[0].validation_documents
    pipeline = train_pipeline(prepared, 2, 0)
    assert pipeline.next()["token_types"].any()
    pipeline.close()


@pytest.mark.parametrize("validation", [0, 0.2])
def test_a_field_may_say_the_split_and_the_test_is_in_neither(config, tmp_path, validation):
    parts = ("train", "test", "dev", "train")
    lines = [f"{label}\t{text}\t{parts[i % 4]}" for i, (text, label) in enumerate(texts(60))]
    path = write(tmp_path, "s.tsv", "\n".join(["label\ttext\tpart", *lines]))
    said = []
    prepared = prepare(config(path, {"split": "part"}, validation=validation), tmp_path, said.append)
    tokenizer = tokenizers.load(prepared.tokenizer_path)
    numbers = lambda split: sorted(int(tokenizer.decode(ids).split()[0]) for ids, _ in examples(prepared, split))
    assert numbers("train") == [i for i in range(60) if i % 4 in (0, 3)]
    assert numbers("validation") == list(range(2, 60, 4)) and prepared.sources[0].validation_documents == 15
    assert [line for line in said if line.endswith("s.tsv: 15 records of the test split were skipped.")]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            ("train", "test"),
            "but validation has none: there are 10 train, 10 test. Name some of them validation, or",
        ),
        (("test", "valid"), "but train has none: there are 10 test, 10 validation. Name some of them train, or"),
    ],
)
@pytest.mark.parametrize("validation", [0, 0.2])
def test_a_split_that_no_record_names_is_an_error(config, tmp_path, validation, parts, message):
    lines = [f"{label},{text},{parts[i % 2]}" for i, (text, label) in enumerate(texts(20))]
    path = write(tmp_path, "s.csv", "\n".join(["label,text,part", *lines]))
    with pytest.raises(DataError, match=message):
        prepare(config(path, {"split": "part"}, validation=validation), tmp_path, quiet)


def test_classes_are_those_of_all_sources_that_are_trained(config, tmp_path):
    one = write(tmp_path, "one.csv", "text,label\n" + "\n".join(f"t{i},{'ab'[i % 2]}" for i in range(40)))
    two = write(tmp_path, "two.csv", "text,label\n" + "\n".join(f"u{i},{'bc'[i % 2]}" for i in range(40)))
    both = tuple((f"labels:{path}", 1.0) for path in (one, two))
    prepared = prepare(config("", sources=both), tmp_path / "data", quiet)
    assert [source.facts["names"] for source in prepared.sources] == [["a", "b", "c"]] * 2
    with pytest.raises(
        DataError, match=r"labels:.*two\.csv, two\.csv, line \d+: the label 'c' does not occur in training"
    ):
        prepare(config("", sources=(both[0], (both[1][0], 0.0)), validation=0.5), tmp_path / "data", quiet)


@pytest.mark.parametrize(
    ("block", "content", "message"),
    [
        (
            {},
            "text,labels\na,b\n",
            r"a\.csv, line 1: no field 'label', only text, labels; set config\.data\.labels\.label",
        ),
        ({"text": "x"}, "text,label\na,b\n", r"a\.csv, line 1: no field 'x', .*config\.data\.labels\.text to one"),
        ({}, "text,label\na,b\n,c\n", r"a\.csv, line 3: field 'text' is empty"),
        ({}, "text,label\na,\n", r"a\.csv, line 2: field 'label' is ''"),
        ({"kind": "number"}, "text,label\na,2.5x\n", r"a\.csv, line 2: .*'2\.5x'; data\.labels\.kind 'number' needs"),
        ({"kind": "number"}, "text,label\na,1e39\n", r"a\.csv, line 2: .*finite number"),
        ({"kind": "token"}, "tokens,labels\na,b\n", r"a\.csv, line 2: field 'tokens' is not an array but str"),
        ({"split": "part"}, "text,label,part\na,b,held\n", r"a\.csv, line 2: field 'part' is 'held', but must be one"),
    ],
)
def test_a_broken_record_is_named_by_file_and_line(tmp_path, block, content, message):
    path = write(tmp_path, "a.csv", content)
    parse = lambda record: kinds.KINDS["labels"].parse(record, labels.FIELDS | block)
    with pytest.raises(DataError, match=message):
        list(RecordSource(str(path), parse, None).documents(BadLines(0)))


@pytest.mark.parametrize(
    ("words", "given", "message"),
    [
        (["a"], ["x", "y"], "1 words, but 2 labels"),
        (["a"], [None], "has no label"),
        (["a", " "], ["x", "y"], "field 'tokens' is empty"),
        (["a"], [1.5], "is 1.5; a class is a string"),
        (["a", "b", "c"], [-100, math.nan, " "], "has no label"),
    ],
)
def test_odd_words(words, given, message):
    with pytest.raises(ValueError, match=message):
        kinds.KINDS["labels"].parse({"tokens": words, "labels": given}, labels.FIELDS | {"kind": "token"})


def test_a_number_beyond_any_float_is_a_broken_record():
    with pytest.raises(ValueError, match=r"'label' is 1000.*needs a finite number"):
        kinds.KINDS["labels"].parse({"text": "a", "label": 10**400}, labels.FIELDS | {"kind": "number"})


def test_mistakes_about_labels(table, config, tmp_path):
    one = write(tmp_path, "one.csv", "text,label\n" + "\n".join(f"t{i},a" for i in range(40)))
    words = write(tmp_path, "one.jsonl", "\n".join([json.dumps({"tokens": ["t"], "labels": ["a"]})] * 40))
    for path, block, message in (
        (one, {}, r"have 1 different values \(a\).*config\.data\.labels\.kind to 'number'"),
        (words, {"kind": "token"}, r"have 1 different values \(a\).*Is config\.data\.labels\.label the right field\?$"),
        (table, {"kind": "classes"}, "data.labels.kind must be one of class, token, number"),
        (table, {"kind": "token", "pair": "b"}, "data.labels.pair is for texts"),
        (table, {"txt": "b"}, "data.labels.txt: did you mean text"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(config(path, block), tmp_path, quiet)
    with pytest.raises(DataError, match="labels:GLOB are for decoders and encoders"):
        prepare(config(table), tmp_path, quiet, encoder=True)
