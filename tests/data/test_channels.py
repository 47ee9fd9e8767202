"""A kind of examples that `data` does not know: preferred and rejected answers, with floats for each token.

Only its declarations tell how it goes from records to batches on a mesh, beside text, and is restored from a saved
position.
"""

import json
import random

import jax
import numpy as np
import pytest

from data.batch import GROUPS, TEXT, Channel, DataError, check, example_channels, from_rows, united
from data.examples import kinds, packing
from data.examples.example import Context, Encoding, Example, Kind
from data.pipeline import train_pipeline, validation_batches
from data.prepare import load, prepare
from data.rows import augment
from data.rows.pack import RowReader
from data.tokens import tokenizer as tokenizers
from launch.run import build
from model import axes

FIRST = 16  # a bit of the marks
OWN = (
    *GROUPS,
    Channel("advantages", "float32"),
    Channel("old_logprobs", "float32"),
    Channel("votes"),
    Channel("first", mark=FIRST),
)
SEQ_LEN = 48


def parse(record, settings):
    return {name: record[name] for name in ("prompt", "answers", "advantages", "votes")}


def text(record):
    return record["prompt"] + "".join(record["answers"])


def logprobs(ids):
    """Returns floats whose mantissas are not short, so that a loss of precision would show."""
    return np.array([-np.log(2 + i) / 3 for i in ids], np.float32)


def encoding(settings, context):
    words = context.tokenizer

    def segment(record, i):
        asked, said = words.encode(record["prompt"]), [*words.encode(record["answers"][i]), words.eot_id]
        source = [*asked, words.eot_id] if context.encoder else None
        before = [words.start_id] if context.encoder else [words.eot_id, *asked]
        content = [False] * len(before) if context.encoder else [False, *(True for _ in asked)]
        trained = [False] * len(before) + [True] * len(said)
        example = Example.of_ids(
            [*before, *said], trained, content + [False] * len(said), source, [True] * len(asked) + [False]
        )
        example.marks[0] |= FIRST
        advantages = np.full(len(example.tokens), record["advantages"][i], np.float32)
        own = {"advantages": advantages, "old_logprobs": logprobs(example.targets)}
        return example._replace(own=own | {"votes": np.full(len(example.tokens), record["votes"], np.int64)})

    return Encoding(lambda record: [segment(record, i) for i in range(len(record["answers"]))])


KIND = Kind(
    fields={"prompt": "prompt"},
    columns=("prompt",),
    check=lambda settings: None,
    parse=parse,
    text=text,
    identity=lambda settings, tokenizer, encoder: settings["prompt"],
    encoding=encoding,
    channels=lambda settings: OWN,
)


@pytest.fixture(autouse=True)
def table(monkeypatch):
    monkeypatch.setitem(kinds.KINDS, "ranked", KIND)


def records(count=80):
    random_ = random.Random(1)
    word = lambda most: "".join(random_.choices("abcdef ", k=random_.randint(1, most)))
    return [
        {
            "prompt": f"{i} {word(5)}?",
            "answers": [word(6) for _ in range(2 + i % 2)],
            "advantages": [random_.gauss(0, 1) for _ in range(3)],
            "votes": random_.choice([-(2**31), -70_000, -1, 0, 2**31 - 1]),
        }
        for i in range(count)
    ]


@pytest.fixture(params=[False, True], ids=["decoder", "encoder_decoder"])
def mixed(request, tmp_path, corpus, settings):
    (tmp_path / "preferred.jsonl").write_text("\n".join(map(json.dumps, records())))
    sources = ((f"files:{corpus[0]}/*.txt", 1.0), (f"ranked:{tmp_path}/preferred.jsonl", 2.0))
    config = settings(seq_len=SEQ_LEN, tokenizer={"kind": "byte"}) | {"sources": sources}
    prepared = prepare(config, tmp_path / "out", lambda line: None, encoder=request.param)
    assert load(prepared.directory) == prepared
    return prepared


def groups(batch):
    """Yields the segments of each example of the batch, in the order of their ranks, as {name: values}."""
    for row in range(len(batch["tokens"])):
        here = {name: array[row] for name, array in batch.items()}
        for group in range(1, here["group_ids"].max() + 1):
            inside = np.flatnonzero(here["group_ids"] == group)
            assert np.array_equal(inside, np.arange(inside[0], inside[-1] + 1))  # contiguous
            segments = list(dict.fromkeys(here["segment_ids"][inside].tolist()))
            ats = [here["segment_ids"] == segment for segment in segments]
            yield [{name: array[at] for name, array in here.items() if len(array) == len(at)} for at in ats]


def test_examples_stay_together_with_all_that_they_bring(mixed):
    source, words = mixed.sources[1], tokenizers.load(mixed.tokenizer_path)
    expected = {record["prompt"]: record for record in records()}
    found = {}
    for split in ("train", "validation"):
        reader = RowReader(getattr(source, split), SEQ_LEN, channels=source.channels)
        batch = from_rows(reader.read(range(len(reader))), source.channels)
        check(batch, words.vocab_size, source.channels)
        assert all(not batch[name][batch["segment_ids"] == 0].any() for name in batch if not name.startswith("encoder"))
        for segments in groups(batch):
            said = [words.decode(part["targets"][part["weights"] > 0][:-1]) for part in segments]
            record = next(
                r for r in expected.values() if r["answers"] == said and r["votes"] == segments[0]["votes"][0]
            )
            found[record["prompt"]] = said
            for rank, part in enumerate(segments):
                assert set(part["ranks"]) == {rank}
                assert set(part["advantages"]) == {np.float32(record["advantages"][rank])}
                assert np.array_equal(part["old_logprobs"], logprobs(part["targets"]))
                assert part["first"].tolist() == [1] + [0] * (len(part["first"]) - 1)
    assert found == {prompt: record["answers"] for prompt, record in expected.items()}


def test_beside_text_on_a_mesh_and_from_a_saved_position(mixed):
    everything = train_pipeline(mixed, 8, 0)
    batches = [everything.next() for _ in range(6)]
    everything.close()
    mesh = axes.make_mesh({"data": 2, "fsdp": 4})
    with axes.use_mesh(mesh):
        for batch in batches:
            check(batch, mixed.vocab_size, mixed.channels)
            of_text = batch["weights"].any(1) & ~batch["group_ids"].any(1)
            assert of_text.any() and not of_text.all()
            assert not any(
                batch[name][of_text].any() for name in ("ranks", "advantages", "old_logprobs", "votes", "first")
            )
            back = jax.device_get(build.put(mesh)(batch))
            assert all(
                back[name].dtype == array.dtype and np.array_equal(back[name], array) for name, array in batch.items()
            )
    first = train_pipeline(mixed, 8, 0)
    first.next(), first.next()
    position = json.loads(json.dumps(first.position()))
    first.close()
    shares = [train_pipeline(mixed, 8, 0, rows, position) for rows in np.split(np.arange(8), 2)]
    for batch in batches[2:]:
        parts = [share.next() for share in shares]
        assert all(np.array_equal(array, np.concatenate([p[name] for p in parts])) for name, array in batch.items())
    for share in shares:
        share.close()
    held_out = list(validation_batches(mixed, 4))
    assert sum(len(list(groups(batch))) for batch in held_out) == mixed.sources[1].validation_documents > 0


def test_what_belongs_to_a_token_moves_with_it_when_words_are_swapped(mixed):
    rates = {"swap": 0.5, "delete": 0.2}
    change = augment.make(rates, tokenizers.load(mixed.tokenizer_path))
    pipelines = [train_pipeline(mixed, 8, 0, augmentation=given) for given in (None, change)]
    plain, changed = (pipeline.next() for pipeline in pipelines)
    for pipeline in pipelines:
        pipeline.close()
    check(changed, mixed.vocab_size, mixed.channels)
    side = "encoder_tokens" if "encoder_tokens" in changed else "tokens"
    assert (plain[side] != changed[side]).any()
    of_groups = changed["group_ids"] > 0
    assert np.array_equal(changed["old_logprobs"][of_groups], logprobs(changed["targets"][of_groups]))
    for before, after in zip(groups(plain), groups(changed), strict=True):
        assert [set(part["advantages"]) for part in before] == [set(part["advantages"]) for part in after]


def packed(folder, example, own=OWN, prefix=(), count=3):
    """Packs `count` copies of an example; returns its channels as arrays [B, T], and the notes."""
    context = Context(tokenizers.train([], "byte"), SEQ_LEN, False, lambda: iter(()), prefix)
    channels = example_channels(own, encoder=False)
    given = ((f"line {i}", {}) for i in range(count))
    counts = packing.pack_records(given, Encoding(lambda record: example), context, channels, "made:up", folder)
    return from_rows(RowReader(folder, SEQ_LEN, channels=channels).read(range(counts.rows)), channels), counts.notes


def segment(n, own=OWN):
    """Returns a segment of n tokens; only the last is trained, and floats number the places."""
    floats = np.arange(n, dtype=np.float32)
    named = {channel.name: floats for channel in own if channel not in GROUPS and not channel.mark}
    return Example(*np.ones((2, n), np.int32), np.r_[np.zeros(n - 1), 1].astype(np.uint8), own=named)


@pytest.mark.parametrize(
    ("sizes", "prefix", "cut"),
    [
        ((30, 4), 0, (30, 4)),
        ((40, 8), 0, (40, 8)),
        ((100, 9), 0, (39, 9)),
        ((3, 100, 90), 0, (3, 22, 22)),
        ((3, 100, 90), 5, (8, 20, 20)),
    ],
)
def test_the_longest_segments_are_cut_until_all_fit_into_a_row(tmp_path, sizes, prefix, cut):
    batch, notes = packed(tmp_path, [segment(n) for n in sizes], prefix=(300,) * prefix)
    examples = list(groups(batch))
    assert len(examples) == 3
    for example in examples:
        assert [len(part["tokens"]) for part in example] == list(cut)
        for part, n in zip(example, sizes, strict=True):
            own = len(part["tokens"]) - prefix
            kept = np.r_[np.zeros(prefix), np.arange(n - own, n)]  # floats lose their left end too
            assert np.array_equal(part["advantages"], kept) and part["weights"][-1] == 1
    long = sum(sizes) + prefix * len(sizes) > SEQ_LEN
    assert notes == ({f"examples were longer than {SEQ_LEN} tokens and were cut": 3} if long else {})


def test_what_has_no_room_is_left_out_and_counted(tmp_path):
    with pytest.raises(DataError, match="3 examples have more segments than rows of 48 tokens have room for, and are"):
        packed(tmp_path, [segment(1)] * (SEQ_LEN + 1))


def test_a_kind_must_bring_what_it_declares(tmp_path):
    with pytest.raises(DataError, match=r"made:up, line 0: it has 2 segments, but .* declare group_ids and ranks"):
        packed(tmp_path, [segment(3, ())] * 2, own=())
    with pytest.raises(DataError, match=r"has the channels \[\], but its kind declares \['advantages', "):
        packed(tmp_path, segment(3, ()))
    with pytest.raises(DataError, match=r"has the channels \['advantages'"):
        packed(tmp_path, segment(3), own=())


def test_sources_of_one_mixture_agree_on_their_channels():
    numbers = example_channels([Channel("targets", "float32")], encoder=False)
    both = united({"a": TEXT, "b": example_channels(OWN, encoder=True), "c": example_channels((), encoder=False)})
    assert both == example_channels(OWN, encoder=True)
    with pytest.raises(DataError, match="sources a and b can't be in one batch: their targets are int32 and float32"):
        united({"a": TEXT, "b": numbers})


def test_a_mixture_of_kinds_that_do_not_agree_is_refused_before_the_work(tmp_path, settings):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1.5}\n' * 20)
    sources, said = (("stdlib", 1.0), (f"labels:{tmp_path}/a.jsonl", 1.0)), []
    config = settings(tokenizer={"kind": "byte"}, labels={"kind": "number"}) | {"sources": sources}
    with pytest.raises(DataError, match=r"stdlib and labels:.* their targets are int32 and float32"):
        prepare(config, tmp_path / "out", said.append)
    assert not said


@pytest.mark.parametrize("name", ["weights", "positions", "marks"])
def test_what_follows_from_other_channels_can_not_be_declared(name):
    with pytest.raises(ValueError, match=f"{name} are derived from other channels"):
        example_channels([Channel(name, "float32")], encoder=False)


def test_other_channels_make_other_rows(tmp_path, settings, monkeypatch):
    (tmp_path / "preferred.jsonl").write_text("\n".join(map(json.dumps, records())))
    config = settings(f"ranked:{tmp_path}/preferred.jsonl", seq_len=SEQ_LEN, tokenizer={"kind": "byte"})
    first = prepare(config, tmp_path / "out", lambda line: None)
    more = KIND._replace(
        channels=lambda settings: (*OWN, Channel("margins", "float32")),
        encoding=lambda settings, context: with_margins(encoding(settings, context)),
    )
    monkeypatch.setitem(kinds.KINDS, "ranked", more)
    second = prepare(config, tmp_path / "out", lambda line: None)
    assert first.directory != second.directory and first.sources[0].corpus == second.sources[0].corpus
    assert {channel.name for channel in second.channels} - {channel.name for channel in first.channels} == {"margins"}


def with_margins(found):
    more = lambda part: part._replace(own=part.own | {"margins": np.ones(len(part.tokens), np.float32)})
    return found._replace(encode=lambda record: [more(part) for part in found.encode(record)])
