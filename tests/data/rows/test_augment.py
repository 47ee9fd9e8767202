"""Augmentation keeps everything else: the other words, their order, answers, labels, special tokens."""

import dataclasses
import re

import numpy as np
import pytest

from data.batch import CONTENT, TRAINED, check, example_channels, from_rows
from data.batches import Block, to_batch
from data.examples import kinds
from data.examples.example import Context, Example, prefixed
from data.examples.label_reader import Reader
from data.examples.packing import pack
from data.rows import augment
from data.rows.spans import span_counts
from data.tokens import tokenizer as tokenizers
from data.tokens.templates import TEMPLATES

COUNT = 200  # texts; each is a class of its own


@pytest.fixture(scope="module")
def tokenizer():
    """Returns a byte tokenizer; its words are a space with letters, or letters at the start of a text."""
    return tokenizers.train([], "byte", specials=tokenizers.specials(mask=True, sentinels=0))


@pytest.fixture(scope="module")
def given():
    """Returns texts of 1 to 30 words, without repeated words."""
    random = np.random.default_rng(0)
    name = lambda j: "abcdefghij"[j // 10] + "klmnopqrst"[j % 10] * (1 + j % 3)
    return [[name(j) for j in random.permutation(60)[:n]] for n in random.integers(1, 31, COUNT)]


def packed(examples, encoder=False):
    return np.concatenate(list(pack(examples, 256, example_channels((), encoder), np.dtype("<u2"))))


@pytest.fixture(scope="module")
def rows(tokenizer, given):
    """Packs each text with a period, whose token predicts the class; a row has a few texts."""
    reader, examples = Reader(tokenizer, "last", 256), []
    for i, words in enumerate(given):
        ids, (place,), *_ = reader.text(" ".join(words) + ".")
        example = Example(np.array(ids, np.int32), np.zeros(len(ids), np.int32), np.full(len(ids), CONTENT, np.uint8))
        example.marks[0] = 0  # the begin token
        example.targets[place], example.marks[place] = i, CONTENT | TRAINED
        examples.append(example)
    return packed(examples)


def channels(rows):
    return example_channels((), encoder=rows.shape[1] == 6)


def run(tokenizer, rows, seed=3, first=100, **rates):
    change, places = augment.make(rates, tokenizer), first + np.arange(len(rows))
    return to_batch(Block(rows, places, np.zeros(len(rows), bool)), seed, channels(rows), augmentation=change)


def texts(batch, tokenizer) -> dict[int, str]:
    """Returns {class: text} of a batch, and asserts that everything else is as it must be."""
    check(batch, tokenizer.vocab_size, example_channels((), "encoder_tokens" in batch))
    found = {}
    for row in range(len(batch["tokens"])):
        segments = batch["segment_ids"][row]
        for segment in range(1, segments.max() + 1):
            at = np.flatnonzero(segments == segment)
            assert np.array_equal(at, at[0] + np.arange(len(at)))
            assert np.array_equal(batch["positions"][row][at], np.arange(len(at)))
            assert batch["weights"][row][at].tolist() == [0] * (len(at) - 1) + [1]
            begin, *ids = batch["tokens"][row][at]
            assert begin == tokenizer.special.begin
            text = tokenizer.decode(ids)
            assert text[-1] == "."
            found[int(batch["targets"][row][at][-1])] = text[:-1]
        padding = segments == 0
        assert not any(batch[key][row][padding].any() for key in ("tokens", "targets", "weights", "positions"))
    assert sorted(found) == list(range(COUNT))
    return found


def is_part(part, whole) -> bool:
    rest = iter(whole)
    return all(word in rest for word in part)


def test_deletion_leaves_whole_words_in_their_order(rows, tokenizer, given):
    found = texts(run(tokenizer, rows, delete=0.3), tokenizer)
    left = [found[i].split() for i in range(COUNT)]
    assert all(map(is_part, left, given)) and all(left)
    kept, words = sum(map(len, left)), sum(map(len, given))
    assert abs(kept / words - 0.7) < 4 * (0.21 / words) ** 0.5
    most = texts(run(tokenizer, rows, delete=0.99), tokenizer)
    assert np.mean([len(text.split()) == 1 for text in most.values()]) > 0.9 and all(most.values())


@pytest.mark.parametrize("rate", [0.1, 0.25])
def test_swaps_are_of_as_many_pairs_as_edas(rows, tokenizer, given, rate):
    """A text has max(1, int(rate * words)) swaps (arXiv:1901.11196, section 2); the first word stays."""
    found = texts(run(tokenizer, rows, swap=rate), tokenizer)
    for i, words in enumerate(given):
        after = found[i].split(" ")
        assert after[0] == words[0] and sorted(after) == sorted(words)
        moved = [(a, b) for a, b in zip(words, after, strict=True) if a != b]
        movable = len(words) - 1
        assert len(moved) == 2 * min(max(1, int(rate * movable)), movable // 2)
        assert {(b, a) for a, b in moved} == set(moved)


def test_masks_hide_whole_words_in_stretches(rows, tokenizer):
    before, batch = from_rows(rows, channels(rows)), run(tokenizer, rows, mask=0.2)
    hidden = batch["tokens"] == tokenizer.mask_id
    assert np.array_equal(np.where(hidden, before["tokens"], batch["tokens"]), before["tokens"])
    assert all(np.array_equal(batch[key], before[key]) for key in before if key != "tokens")
    for row in range(len(rows)):
        ids, segments = before["tokens"][row], before["segment_ids"][row]
        special = np.isin(ids, tokenizer.special_ids)
        spaces = (ids == tokenizer.encode(" ")[0]) | (np.roll(special, 1) & (segments > 0) & ~special)
        words = np.split(np.arange(256), np.flatnonzero(spaces | special | (ids == tokenizer.encode(".")[0])))
        words = [word for word in words if segments[word[:1]].any() and spaces[word[0]]]
        masked = np.array([hidden[row, word].any() for word in words])
        assert all(hidden[row, word].all() for word, is_masked in zip(words, masked, strict=True) if is_masked)
        assert hidden[row].sum() == sum(len(word) for word, is_masked in zip(words, masked, strict=True) if is_masked)
        noise, spans = span_counts(len(words), 0.2, 3.0)
        assert masked.sum() == noise and (np.diff(masked.astype(int), prepend=0) == 1).sum() == spans


def test_random_numbers_follow_from_seed_and_place(rows, tokenizer):
    rates = dict(delete=0.1, swap=0.1, mask=0.1)
    whole = run(tokenizer, rows, **rates)
    part = run(tokenizer, rows[4:6], first=104, **rates)
    assert all(np.array_equal(part[key], whole[key][4:6]) for key in whole)
    for other in (run(tokenizer, rows, seed=4, **rates), run(tokenizer, rows, first=101, **rates)):
        assert (other["tokens"] != whole["tokens"]).any(1).all()


def test_answers_stay(tokenizer):
    ids = lambda text: tokenizer.encode(text)
    prompt, answer, more, last = ids(" one two six ten"), ids(" yes it is"), ids(" and now then"), ids(" no not so")
    trained = [False] * (1 + len(prompt)) + [True] * len(answer) + [False] * len(more) + [True] * len(last)
    example = Example.of_ids([tokenizer.eot_id, *prompt, *answer, *more, *last], trained, ~np.array(trained))
    rows = packed([example] * 8)
    batch = run(tokenizer, rows, delete=0.5, swap=0.3, mask=0.3)
    changed = 0
    for row in range(len(rows)):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            at = np.flatnonzero(batch["segment_ids"][row] == segment)
            weighted = at[batch["weights"][row][at] > 0]
            assert batch["targets"][row][weighted].tolist() == answer + last
            # Within an answer, each token is predicted from the answer's token before it.
            for said in (weighted[: len(answer)], weighted[len(answer) :]):
                assert np.array_equal(said, said[0] + np.arange(len(said)))
                assert batch["tokens"][row][said[1:]].tolist() == batch["targets"][row][said[:-1]].tolist()
            changed += len(at) != len(example.tokens)
    assert changed > 4


def test_an_encoder_reads_what_is_augmented(tokenizer):
    source = [*tokenizer.encode("put this into other words"), tokenizer.eot_id]
    example = Example.of_ids(
        [0, *tokenizer.encode("so it is")], [False] + [True] * 8, source=source, source_content=True
    )
    rows = packed([example] * 20, encoder=True)
    before, batch = from_rows(rows, channels(rows)), run(tokenizer, rows, delete=0.4)
    check(batch, tokenizer.vocab_size, example_channels((), "encoder_tokens" in batch))
    assert all(np.array_equal(batch[key], before[key]) for key in before if not key.startswith("encoder_"))
    for row in range(len(rows)):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            ids = batch["encoder_tokens"][row][batch["encoder_segment_ids"][row] == segment]
            assert ids[-1] == tokenizer.eot_id
            assert is_part(tokenizer.decode(ids).split(), ["put", "this", "into", "other", "words"]) and len(ids) > 1
    assert (batch["encoder_segment_ids"] > 0).sum() < 0.8 * (before["encoder_segment_ids"] > 0).sum()


OWN = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' + m['content'] | trim + '<|im_end|>' }}\
{% if m['role'] == 'user' and 'zqc' in m['content'] %}{{ 'Be short.' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"""
TALK = [
    ("system", "Be kind."),
    ("user", "zqa zqb zqc zqd"),
    ("assistant", "It is."),
    ("user", "zqe zqf zqg"),
    ("assistant", "No."),
]


def of_record(kind, record, settings, tokenizer, encoder):
    """Packs 20 copies of a record's example into rows."""
    settings = kinds.KINDS[kind].fields | settings
    context = Context(tokenizer, 256, encoder, lambda: iter([record]))
    example = kinds.KINDS[kind].encoding(settings, context).encode(record)
    return packed([example] * 20, encoder)


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize(
    "template", [*(name for name in TEMPLATES if name != "plain"), "tokenizer"]
)  # plain writes nothing
def test_what_a_template_writes_stays(template, encoder):
    markers = sorted({marker for template in TEMPLATES.values() for marker in template.markers})
    plain = tokenizers.train([], "byte", specials=[*tokenizers.specials(mask=True, sentinels=0), *markers])
    special = dataclasses.replace(plain.special, tokenizer_config={"chat_template": OWN})
    tokenizer = tokenizers.Tokenizer(tokenizers.Backend.from_str(plain.to_json()), special)
    space = " " if template == "tokenizer" else ""  # the template trims it
    record = {"messages": [{"role": role, "content": f"{space}{content}{space}"} for role, content in TALK]}
    check_frame(tokenizer, of_record("chat", record, {"template": template}, tokenizer, encoder))


@pytest.mark.parametrize("encoder", [False, True])
def test_the_prefix_of_pairs_stays(tokenizer, encoder):
    record = {"source": "zqa zqb zqc zqd", "target": "so it is"}
    check_frame(tokenizer, of_record("pairs", record, {"prefix": "put shortly: "}, tokenizer, encoder))


def check_frame(tokenizer, rows):
    """Asserts that each of the words zqa, zqb, ... can change, and that everything else stays."""
    side = "encoder_" if rows.shape[1] == 6 else ""
    backend = tokenizers.Backend.from_str(tokenizer.to_json())

    def parts(batch):
        for tokens, segments in zip(batch[side + "tokens"], batch[side + "segment_ids"], strict=True):
            for segment in range(1, segments.max() + 1):
                text = "".join(backend.id_to_token(int(i)) for i in tokens[segments == segment])
                yield re.findall("zq[a-z]", text), re.sub("zq[a-z]|Ġ", "", text)

    (words, frame), *_ = parts(from_rows(rows, channels(rows)))
    firsts = {"zqa", "zqe"}  # the space before them is not their own, so they cannot be swapped
    for rates, changed in (({"delete": 0.4}, set(words)), ({"swap": 0.5}, set(words) - firsts)):
        after = list(parts(run(tokenizer, rows, **rates)))
        assert {rest for _, rest in after} == {frame}
        assert all({*found[:4]} == {*words[:4]} for found, _ in after if "swap" in rates)  # words stay in their message
        assert {word for found, _ in after for i, word in enumerate(words) if found[i : i + 1] != [word]} == changed
    masked = run(tokenizer, rows, mask=0.3)[side + "tokens"] == tokenizer.mask_id
    hidden = {backend.id_to_token(int(i)) for i in from_rows(rows, channels(rows))[side + "tokens"][masked]}
    assert set("zq") < hidden <= set("Ġ".join(words))


def test_the_ids_of_prompt_tuning_stay(tokenizer):
    """The ids of a prompt follow the vocabulary, and augmentation leaves them alone."""
    prompt, words = (tokenizer.vocab_size, tokenizer.vocab_size + 5), tokenizer.encode("one two six")
    example = Example.of_ids([*words, tokenizer.eot_id], [False] * len(words) + [True], [True] * len(words) + [False])
    rows = packed([prefixed(example, prompt)] * 10)  # one row
    after = run(tokenizer, rows, delete=0.5, swap=0.1, mask=0.1)
    begins = np.flatnonzero(after["positions"][0] == 0)[:10]
    assert {tuple(after["tokens"][0][begin : begin + 2].tolist()) for begin in begins} == {prompt}
    assert np.isin(after["tokens"], prompt).sum() == 20 and begins[-1] < 9 * (2 + len(words))
