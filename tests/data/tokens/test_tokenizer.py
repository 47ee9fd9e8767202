"""Trained tokenizers are lossless and deterministic, and saved files restore them."""

import dataclasses
import random

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from data.batch import DataError
from data.tokens.special import EOT, SpecialTokens
from data.tokens.tokenizer import MASK, Tokenizer, load, specials, train


def random_texts(count: int) -> list[str]:
    """Returns texts with characters from all of Unicode, including controls and odd spaces, but no surrogates."""
    random_ = random.Random(0)
    ranges = [(0, 0x20), (0x20, 0x7F), (0x80, 0x2FF), (0x300, 0x370), (0x2000, 0x2070), (0xE000, 0x10FFFF)]
    texts = []
    for _ in range(count):
        points = [random_.randint(*random_.choice(ranges)) for _ in range(random_.randint(0, 60))]
        texts.append("".join(map(chr, points)))
    return texts


@pytest.mark.parametrize("kind", ["bpe", "byte"])
def test_lossless_for_every_text(kind, texts):
    tokenizer = train(texts, kind, 400 if kind == "bpe" else None)
    hard = [
        "",
        " ",
        "  leading",
        "trailing \n\n",
        "\ufeffbom",
        "\x00\x01\x7f",
        "\ufffd\uffff",
        "e\u0301",
        "👨‍👩‍👧",
        EOT,
        f"a{EOT} b",
    ]
    for text in hard + random_texts(200) + texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eot_id not in ids


def test_byte_ids_are_the_utf8_bytes():
    tokenizer = train([], "byte")
    text = "aé🙂\n"
    ids = tokenizer.encode(text)
    assert tokenizer.vocab_size == 257
    assert len(ids) == len(text.encode())
    assert len({tokenizer.encode(chr(point))[-1] for point in range(256)}) == 64 + 128  # ASCII, and 64 second bytes


def test_char_ids_are_the_characters():
    tokenizer = train(["banana", "bad"], "char")
    assert tokenizer.vocab_size == 4 + 2
    assert tokenizer.decode(tokenizer.encode("bad nab")) == "badnab"  # training saw no space
    assert tokenizer.encode("bad nab").count(tokenizer.unknown_id) == 1
    assert len(tokenizer.encode(EOT)) == len(EOT)


def test_char_keeps_the_most_frequent():
    tokenizer = train(["aaabbc"], "char", vocab_size=4)
    assert [tokenizer.encode(char)[0] == tokenizer.unknown_id for char in "abc"] == [False, False, True]


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_the_file_is_the_only_truth(kind, tmp_path, texts):
    tokenizer = train(texts, kind, 400)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load(tmp_path / "tokenizer.json")
    plain = Backend.from_file(str(tmp_path / "tokenizer.json"))
    for text in texts:
        assert again.encode(text) == tokenizer.encode(text)
        assert plain.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)
    assert (again.vocab_size, again.eot_id) == (tokenizer.vocab_size, tokenizer.eot_id)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.fingerprint != train(["other text"], "char").fingerprint


def test_training_is_deterministic_and_reaches_the_size(texts):
    first, second = train(texts, "bpe", 320), train(iter(texts), "bpe", 320)
    assert first.fingerprint == second.fingerprint
    assert first.vocab_size == 320
    # Merges were learnt, so there are fewer tokens than bytes.
    assert len(first.encode(texts[0])) < 0.6 * len(texts[0].encode())


def test_a_batch_is_its_texts_one_by_one(texts):
    tokenizer = train(texts, "bpe", 400)
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_a_loaded_file_neither_pads_nor_truncates(tmp_path, texts):
    tokenizer = train(texts, "bpe", 400)
    tokenizer.save(tmp_path / "plain.json")
    backend = Backend.from_file(str(tmp_path / "plain.json"))
    backend.enable_truncation(5)
    backend.enable_padding(length=7)
    assert Tokenizer(backend).encode(texts[0]) == tokenizer.encode(texts[0])


@pytest.mark.parametrize(("kind", "size"), [("bpe", 330), ("byte", 0), ("char", 0)])
def test_special_tokens_are_trained_along_and_found_again(kind, size, tmp_path, texts):
    tokenizer = train(texts, kind, size, specials(mask=True, sentinels=3))
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load(tmp_path / "tokenizer.json")
    assert again.special_ids == tokenizer.special_ids
    assert (again.mask_id, again.sentinel_ids) == (tokenizer.mask_id, tokenizer.sentinel_ids)
    assert len({again.eot_id, again.mask_id, *again.sentinel_ids}) == 5
    assert {again.eot_id, again.mask_id, *again.sentinel_ids} == set(again.special_ids) - {again.unknown_id}
    text = f"a {MASK} <extra_id_0> {EOT}"
    assert not set(again.encode(text)) & {again.eot_id, again.mask_id, *again.sentinel_ids}
    if kind != "char":
        assert again.decode(again.encode(text)) == text
    if size:
        assert again.vocab_size == size


def test_without_special_tokens_nothing_changes(texts):
    tokenizer = train(texts, "bpe", 400)
    assert tokenizer.fingerprint == train(texts, "bpe", 400, specials(mask=False, sentinels=0)).fingerprint
    assert (tokenizer.mask_id, tokenizer.sentinel_ids, tokenizer.special_ids) == (None, (), (tokenizer.eot_id,))


@pytest.mark.parametrize(
    "change",
    [{"start": 7}, {"end": (0, 7)}, {"tokenizer_config": {"chat_template": "y"}}, {"config": {"pad_token_id": 7}}],
)
def test_the_fingerprint_follows_all_that_is_kept_of_a_published_model(change, tmp_path):
    backend = Backend.from_str(train([], "byte").to_json())
    special = SpecialTokens(0, (0,), 5, tokenizer_config={"chat_template": "x", "bos_token": "z"})
    tokenizer = Tokenizer(backend, special)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load(tmp_path / "tokenizer.json").fingerprint == tokenizer.fingerprint
    assert Tokenizer(backend, dataclasses.replace(special, **change)).fingerprint != tokenizer.fingerprint


def vocabulary(tokens, model=models.BPE, **options) -> Backend:
    options = {"merges": []} | options if model is models.BPE else options
    return Backend(model({token: i for i, token in enumerate(tokens)}, **options))


def test_special_tokens_of_other_people_are_found():
    bert = vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"], models.WordPiece, unk_token="[UNK]")
    bert.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    assert Tokenizer(bert).special_ids == (0, 1, 2, 3, 4)
    assert (Tokenizer(bert).eot_id, Tokenizer(bert).mask_id, Tokenizer(bert).sentinel_ids) == (3, 4, ())
    t5 = vocabulary(["<pad>", "</s>", "a", "<extra_id_2>", "<extra_id_1>", "<extra_id_0>"])
    assert Tokenizer(t5).sentinel_ids == (5, 4, 3)
    assert Tokenizer(t5).mask_id is None
    assert Tokenizer(vocabulary(["</s>", "<mask>"])).mask_id == 1


def continued(backend) -> set[str]:
    tokenizer = Tokenizer(backend)
    flags = tokenizer.continuations()
    assert flags.shape == (tokenizer.vocab_size,)
    return {token for token, i in backend.get_vocab().items() if flags[i]}


def test_which_tokens_go_on_with_a_word():
    pieces = ["[SEP]", "[UNK]", "un", "##able", "##1", ".", "a"]
    assert continued(vocabulary(pieces, models.WordPiece, unk_token="[UNK]")) == {"##able", "##1"}
    levels = vocabulary([EOT, "Ġhello", "lo", "Ċ", "ĊĊ", ".", "1", "Ã©", "Ã", "©", "Ġ", "ing", "'s", "æĿ±"])
    levels.decoder = decoders.ByteLevel()
    assert continued(levels) == {"lo", "Ã©", "Ã", "©", "ing"}
    pieces = [
        "</s>",
        "▁the",
        "▁",
        "s",
        "é",
        "9",
        ",",
        "東",
        "の",
        "한",
        "<0x0A>",
        "<0xC3>",
        "<0xA9>",
        "<0xE4>",
        "<0xB8>",
    ]
    assert continued(vocabulary(pieces)) == {"s", "é", "한", "<0xC3>", "<0xA9>", "<0xB8>"}
    assert continued(train(["ab 1.東"], "char")._backend) == {"a", "b"}


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_each_token_of_chinese_begins_a_word(kind):
    text = "今天天气很好。我们去 cafés 吃面, 한국어 ひらがな"
    tokenizer = train([text * 9], kind, 400 if kind == "bpe" else 0)
    ids = tokenizer.encode(text)
    words = np.split(ids, np.flatnonzero(~tokenizer.continuations()[ids]))[1:]
    words = [tokenizer.decode(word) for word in words]
    assert "".join(words) == text and " cafés" in words and " 한국어" in words
    if kind == "byte":
        assert words[:8] == list("今天天气很好。我") and words[-4:] == list("ひらがな")


def test_errors(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer at .*nowhere"):
        load(tmp_path / "nowhere.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken.json is not a tokenizer.json"):
        load(tmp_path / "broken.json")
    with pytest.raises(DataError, match="Unknown tokenizer kind 'bqe'"):
        train([], "bqe", 400)
    with pytest.raises(DataError, match="257"):
        train([], "bpe", 256)
    with pytest.raises(DataError, match=r"needs a vocab_size of 359 \(256 bytes and .*<extra_id_0>, \.\.\.\), not 300"):
        train([], "byte", 300, specials(mask=True, sentinels=101))
    with pytest.raises(DataError, match="needs a vocab_size"):
        train([], "bpe")
    with pytest.raises(DataError, match="surrogates"):
        train([], "byte").encode("a\ud800")
    backend = Backend.from_str('{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}')
    with pytest.raises(DataError, match="no token that ends a document"):
        Tokenizer(backend)


def metaspace(tokens) -> Backend:
    """Returns a backend like SentencePiece's: a space before the text, and '▁' for spaces."""
    backend = vocabulary(["</s>", *tokens])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return backend


def prefixed_bytes() -> Backend:
    backend = vocabulary([EOT, *pre_tokenizers.ByteLevel.alphabet()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    return backend


def bert_like(**options) -> Backend:
    backend = vocabulary(["[SEP]", "[UNK]", "a", "b", "##b"], models.WordPiece, unk_token="[UNK]")
    backend.normalizer = normalizers.BertNormalizer(**options)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return backend


def unigram() -> Backend:
    backend = Backend(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("▁", -1.0), ("a", -1.0), ("fi", -1.0)], 0))
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


@pytest.mark.parametrize(
    ("backend", "kept", "lost"),
    [
        (lambda: Backend.from_str(train(["ab ab"], "bpe", 300).to_json()), ["ab", " ab\r\n", "é🙂\x00", ""], []),
        (lambda: Backend.from_str(train(["ab "], "char").to_json()), ["ab", "b a "], ["abc", "\n", EOT]),
        (prefixed_bytes, ["a", " a", "a é\n"], []),
        (lambda: metaspace("▁ab"), ["ab", "a  b", " a", ""], ["abc", "A", "a\n"]),
        (bert_like, ["a b", "ab"], ["A", "a  b", "a\n", "á", "x", "[UNK]"]),
        (lambda: bert_like(lowercase=False), ["a b"], ["A", "a  b"]),
        (unigram, ["a", "a fi"], ["ab", "\ufb01", "a\u00a0a"]),
    ],
)
def test_texts_that_do_not_come_back(backend, kept, lost):
    tokenizer = Tokenizer(backend())
    for texts, count in ((kept, 0), (lost, len(lost)), ([*lost, *kept], len(lost))):
        assert tokenizer.altered(texts, tokenizer.encode_batch(texts)) == count
    for text in lost:
        assert tokenizer.altered([text], [tokenizer.encode(text)]) == 1, text


def test_unknown_tokens_of_every_model():
    word_level = Backend(models.WordLevel({"a": 0, "oov": 1, "</s>": 2}, unk_token="oov"))
    bpe = vocabulary(["</s>", "a", "<unk>"], unk_token="<unk>")
    for backend, name in ((bert_like(), "[UNK]"), (unigram(), "<unk>"), (word_level, "oov"), (bpe, "<unk>")):
        tokenizer = Tokenizer(backend)
        assert tokenizer.unknown_id == backend.token_to_id(name)
        assert tokenizer.encode("q")[-1] == tokenizer.unknown_id
    assert Tokenizer(prefixed_bytes()).unknown_id is None is train([], "byte").unknown_id
