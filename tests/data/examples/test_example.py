"""Examples are packed whole into rows, are cut if too long, mix with text, and need little memory."""

import json
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from data.batch import (
    CONTENT,
    ENCODER_CONTENT,
    TEXT,
    TRAINED,
    Channel,
    DataError,
    check,
    example_channels,
    from_rows,
    marked,
)
from data.examples import packing
from data.examples.example import Example, cut
from data.examples.packing import best_fit, pack, widened
from data.pipeline import train_pipeline, validation_batches
from data.prepare import load, prepare
from data.rows import corrupt
from data.rows.pack import RowReader
from data.tokens import tokenizer as tokenizers


def quiet(line: str) -> None:
    """Ignores a line of the log."""


def some_examples(count: int, longest: int, sides: int, seed: int = 0) -> list[Example]:
    random = np.random.default_rng(seed)

    def one(i: int) -> Example:
        n, m = random.integers(1, longest + 1, 2)
        ids = random.integers(1, 500, n).astype(np.int32)
        marks = random.choice([0, TRAINED, CONTENT, TRAINED | CONTENT], n).astype(np.uint8)
        source = random.integers(1, 500, m).astype(np.int32) if sides == 2 else None
        source_marks = random.choice([0, ENCODER_CONTENT], m).astype(np.uint8) if sides == 2 else None
        return Example(ids, random.integers(1, 500, n).astype(np.int32), marks, source, source_marks)

    return [one(i) for i in range(count)]


def unpacked(rows: np.ndarray) -> list[tuple]:
    """Returns the examples in packed rows by segment id: (tokens, targets, TRAINED, CONTENT).

    With an encoder, its tokens and ENCODER_CONTENT follow.
    """
    channels = example_channels((), rows.shape[1] == 6)
    batch = from_rows(rows, channels)
    batch["content"], batch["encoder_content"] = marked(rows, CONTENT), marked(rows, ENCODER_CONTENT)
    found = []
    for i in range(len(rows)):
        for segment in range(1, batch["segment_ids"][i].max() + 1):
            at = batch["segment_ids"][i] == segment
            assert np.array_equal(batch["positions"][i][at], np.arange(at.sum()))  # the example is whole and contiguous
            parts = [batch[key][i][at] for key in ("tokens", "targets", "weights", "content")]
            if "encoder_tokens" in batch:
                at = batch["encoder_segment_ids"][i] == segment
                assert np.array_equal(batch["encoder_positions"][i][at], np.arange(at.sum()))
                parts += [batch[key][i][at] for key in ("encoder_tokens", "encoder_content")]
            found.append(tuple(tuple(map(int, part)) for part in parts))
    return found


@pytest.mark.parametrize("sides", [1, 2])
def test_every_example_is_in_the_rows_once_and_whole(sides, monkeypatch):
    monkeypatch.setattr(packing, "GROUP", 64)
    monkeypatch.setattr(packing, "BLOCK_TOKENS", 256)
    given, channels = some_examples(200, 32, sides), example_channels((), encoder=sides == 2)
    rows = np.concatenate(list(pack(given, 32, channels, np.dtype("<u2"))))
    parts = lambda example: (
        [example.tokens, example.targets, example.trained, example.marks & CONTENT > 0]
        + ([] if example.source is None else [example.source, example.source_marks > 0])
    )
    expected = [tuple(tuple(map(int, part)) for part in parts(example)) for example in given]
    assert sorted(unpacked(rows)) == sorted(expected)
    check(from_rows(rows, channels), 500, channels)


def test_packing_takes_little_memory(monkeypatch):
    monkeypatch.setattr(packing, "GROUP_TOKENS", 1 << 18)
    monkeypatch.setattr(packing, "BLOCK_TOKENS", 1 << 16)
    array = lambda dtype: np.ones(4096, dtype)
    given = (Example(array(np.int32), array(np.int32), array(np.uint8)) for _ in range(512))
    tracemalloc.start()
    rows = sum(len(block) for block in pack(given, 4096, example_channels((), encoder=False), np.dtype("<u2")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 512 and peak < 2 * (9 << 18) + 2 * (8 << 16)  # bytes: two groups of examples and two blocks of rows


def test_little_is_padding():
    sizes = np.random.default_rng(0).integers(1, 65, (2000, 1))
    place = best_fit(sizes, 128)
    used = np.bincount(place, sizes[:, 0])
    assert used.max() <= 128
    assert len(used) <= -(-sizes.sum() // 128) * 1.01


def test_targets_may_be_the_bits_of_floats():
    values = np.array([-1.5, 0.25, 3e8], np.float32)
    given = Example(np.ones(3, np.int32), values.view(np.int32), np.ones(3, np.uint8))
    channels = example_channels([Channel("targets", "float32")], encoder=False)
    (rows,) = pack([given], 4, channels, np.dtype("<u4"))
    assert np.array_equal(from_rows(rows, channels)["targets"][0], [*values, 0])


def test_the_next_id_is_the_target_and_nothing_stands_behind_the_last_trained_one():
    example = Example.of_ids([5, 6, 7, 8, 9], [False, False, True, True, False])
    assert example.tokens.tolist() == [5, 6, 7]
    assert example.targets.tolist() == [6, 7, 8]
    assert example.trained.tolist() == [False, True, True]


# The begin token is 1, the prompt is 2 .. 6, and the answer is 11 .. 13.
@pytest.mark.parametrize(
    ("seq_len", "tokens", "targets"),
    [
        (8, [1, 2, 3, 4, 5, 6, 11, 12], [2, 3, 4, 5, 6, 11, 12, 13]),  # fits
        (5, [1, 5, 6, 11, 12], [5, 6, 11, 12, 13]),  # the prompt loses its left end
        (3, [1, 11, 12], [11, 12, 13]),  # the prompt is gone
        (2, [1, 11], [11, 12]),  # the answer loses its end
    ],
)
def test_prompts_are_cut_from_the_left_and_answers_at_the_end(seq_len, tokens, targets):
    example = Example.of_ids([1, 2, 3, 4, 5, 6, 11, 12, 13], [False] * 6 + [True] * 3)
    found = cut(example, seq_len, begin=1)
    assert found.tokens.tolist() == tokens
    assert found.targets.tolist() == targets
    assert found.trained.tolist() == [target > 10 for target in targets]
    without = cut(example, seq_len, begin=None)
    assert without.targets.tolist() == targets
    assert all(after == target for (_, after), target in zip(pairwise(without.tokens), without.targets, strict=False))


def test_a_quarter_of_a_row_is_the_prompts_however_long_the_answer():
    example = Example.of_ids([1, *range(2, 12), *range(50, 80)], [False] * 11 + [True] * 30)
    found = cut(example, 16, begin=1)
    assert found.tokens.tolist() == [1, 9, 10, 11, *range(50, 62)]  # the first is the begin token
    assert found.targets.tolist() == [9, 10, 11, *range(50, 63)]
    assert found.trained.tolist() == [False] * 3 + [True] * 13
    short = Example.of_ids([1, 2, *range(50, 80)], [False] * 2 + [True] * 30)
    assert cut(short, 16, begin=1).tokens.tolist() == [1, 2, *range(50, 64)]  # a shorter prompt stays whole


def test_of_several_answers_the_last_stays_whole_and_a_source_is_cut_like_a_prompt():
    ids = [1, 2, 21, 22, 3, 11, 12, 13]
    example = Example.of_ids(ids, [i > 10 for i in ids], source=[1, 7, 8, 9])
    found = cut(example, 5, begin=1)
    assert (found.tokens.tolist(), found.targets.tolist()) == ([1, 22, 3, 11, 12], [22, 3, 11, 12, 13])
    assert found.source.tolist() == [1, 7, 8, 9]
    assert cut(example, 3, begin=1).source.tolist() == [1, 8, 9]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Makes a folder with 90 pairs in files of three kinds; returns it and the pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    given = [(f"say {i} {'again ' * (i % 9)}", f"it is {i * i}, 'or \"so\"'") for i in range(90)]
    (folder / "a.tsv").write_text("\n".join(["id\tin\tout", *(f"7\t{a}\t{b}" for a, b in given[:30])]) + "\n")
    lines = [json.dumps({"in": a, "out": b, "id": 7}) for a, b in given[30:60]]
    (folder / "b.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "c.json").write_text(json.dumps([{"in": a, "out": b} for a, b in given[60:]]))
    return folder, given


@pytest.fixture(scope="module", params=[False, True], ids=["decoder", "encoder_decoder"])
def mixed(request, pairs, corpus, settings, tmp_path_factory):
    """Prepares text and pairs in one mixture, for a decoder and (with corrupted spans) for an encoder-decoder."""
    sources = ((f"pairs:{pairs[0]}", 1.0), (f"files:{corpus[0]}/*.txt", 2.0))
    tokenizer = {"kind": "bpe", "vocab_size": 330, "sentinels": 8}
    blocks = {"pairs": {"source": "in", "target": "out", "prefix": "Q: "}, "seq_len": 48}
    config = settings(tokenizer=tokenizer, **blocks) | {"sources": sources}
    prepared = prepare(config, tmp_path_factory.mktemp("mixed"), quiet, encoder=request.param)
    kind = {"kind": "spans"} if request.param else {"kind": "none"}
    return prepared, corrupt.make(kind, tokenizers.load(prepared.tokenizer_path), prepared.seq_len)


def test_all_pairs_arrive_in_the_rows(mixed, pairs):
    prepared, _ = mixed
    tokenizer, found = tokenizers.load(prepared.tokenizer_path), []
    source = prepared.sources[0]
    for split in ("train", "validation"):
        reader = RowReader(getattr(source, split), prepared.seq_len, channels=source.channels)
        for tokens, targets, weights, _, *encoder in unpacked(reader.read(range(len(reader)))):
            answer = np.array(targets)[np.array(weights) > 0]
            assert answer[-1] == tokenizer.eot_id
            prompt = encoder[0] if encoder else np.array(tokens)[: int(np.argmax(weights)) + 1]
            assert not encoder or tokens[0] == tokenizer.start_id
            found.append((tokenizer.decode(prompt).strip("\n"), tokenizer.decode(answer[:-1])))
    assert sorted(found) == sorted((f"Q: {a}", b) for a, b in pairs[1])
    assert source.kind == "pairs"
    assert load(prepared.directory) == prepared


def equal(first, second) -> bool:
    return set(first) == set(second) and all(np.array_equal(first[key], second[key]) for key in first)


def test_a_mixture_of_text_and_pairs_is_restored_exactly_by_any_number_of_processes(mixed):
    prepared, corruption = mixed
    open_ = lambda rows=None, position=None: train_pipeline(prepared, 4, 0, rows, position, corruption)
    whole = open_()
    batches, positions = [], []
    for _ in range(9):
        positions.append(json.loads(json.dumps(whole.position())))
        batches.append(whole.next())
    whole.close()
    for batch in batches:
        check(batch, prepared.vocab_size, prepared.channels)
        assert batch["tokens"].shape == (4, 48)
        assert batch["weights"].any(1).all()
    shares = [open_(rows, positions[4]) for rows in np.split(np.arange(4), 2)]
    for batch in batches[4:]:
        parts = [share.next() for share in shares]
        assert equal(batch, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    for share in shares:
        share.close()


def test_text_beside_examples_is_what_it_is_alone(mixed, corpus, settings, tmp_path):
    """In a mixture, rows of text equal those of the text alone, except for padding on the decoder side."""
    prepared, corruption = mixed
    text = prepared.sources[1]
    (alone,) = validation_batches(prepared, text.validation_rows, corruption=corruption, only=text)
    rows = RowReader(text.validation, prepared.seq_len).read(range(text.validation_rows))
    places = np.arange(text.validation_rows) + prepared.sources[0].validation_rows
    expected = from_rows(rows) if corruption is None else corruption(rows, places, corrupt.VALIDATION_SEED)
    for key, value in expected.items():
        assert np.array_equal(alone[key][:, : value.shape[1]], value)
        assert not alone[key][:, value.shape[1] :].any()
    everything = list(validation_batches(prepared, 1, corruption=corruption))
    parts = [
        row for source in prepared.sources for row in validation_batches(prepared, 1, None, None, corruption, source)
    ]
    assert all(map(equal, everything, parts)) and len(everything) == len(parts)


def test_a_source_of_weight_0_is_only_held_out(pairs, corpus, settings, tmp_path):
    text = f"files:{corpus[0]}/*.txt"
    blocks = {"pairs": {"source": "in", "target": "out"}, "seq_len": 48, "tokenizer": {"kind": "byte"}}
    config = settings(**blocks) | {"sources": ((text, 0.0),), "path": str(pairs[0]), "format": "pairs"}
    watched = prepare(config, tmp_path, quiet)
    trained = prepare(config | {"sources": ((text, 1.0),), "path": ""}, tmp_path, quiet)
    assert [source.kind for source in watched.sources] == ["pairs", "text"]
    assert watched.sources[1].train_rows == 0
    rows = [
        RowReader(p.sources[-1].validation, 48).read(range(p.sources[-1].validation_rows)) for p in (watched, trained)
    ]
    assert np.array_equal(*rows)
    pipeline = train_pipeline(watched, 4, 0)
    assert pipeline.next()["tokens"].shape == (4, 48)
    pipeline.close()
    with pytest.raises(DataError, match="have weight 0: they are only evaluated"):
        prepare(config | {"path": ""}, tmp_path, quiet)


def test_a_batch_without_weights_shows_its_first_example(pairs, settings, tmp_path, monkeypatch):
    blocks = {"pairs": {"source": "in", "target": "out"}, "seq_len": 64, "tokenizer": {"kind": "byte"}}
    prepared = prepare(settings(f"pairs:{pairs[0]}", **blocks), tmp_path, quiet)
    monkeypatch.setattr(
        "data.batches.from_rows", lambda rows, *kind: from_rows(rows, *kind) | {"weights": 0 * rows[:, 3]}
    )
    pipeline = train_pipeline(prepared, 2, 0)
    with pytest.raises(DataError, match=r"(?s)at row 0 are 0.*'say \d+ "):
        pipeline.next()
    pipeline.close()


def test_rows_of_text_beside_an_encoder_are_all_of_weight_1():
    rows = np.array([[[5, 6, 0], [6, 7, 0], [1, 1, 0]]])
    channels = example_channels((), encoder=True)
    assert from_rows(widened(rows, TEXT, channels), channels)["weights"].tolist() == [[1, 1, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ()}, "data.sources is empty"),
        ({"sources": (), "path": "a.csv", "format": "csv"}, "data.format must be one of"),
        ({"sources": (("stdlib", -1.0),)}, "must not be negative"),
        ({"pairs": {"sauce": ""}}, "Unknown field data.pairs.sauce: did you mean source?"),
        ({"pairs": {"prefix": 3}}, "data.pairs.prefix must be a string"),
    ],
)
def test_mistakes_in_the_config_are_said_before_the_work(settings, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        prepare(settings("stdlib") | changes, tmp_path, quiet)
