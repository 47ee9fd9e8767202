"""A small corpus with what occurs in real text (code, other scripts, odd spaces), from a seeded generator.

Helpers are fixtures that return functions, so that no test file imports another.
"""

import json
import random

import pytest
import transformers
from tokenizers import pre_tokenizers

from data.prepare import prepare

WORDS = ["def", "return", "the", "model", "of", "a", "lines", "x_y", "==", "()", "{}", "3.14", "2024", "'quoted'"]
WORDS += ["naïve", "straße", "東京", "привет", "🙂", "\t", "tab", ""]


def make_text(seed: int, words: int) -> str:
    random_ = random.Random(seed)
    return "".join(random_.choice(WORDS) + random_.choice([" ", " ", " ", "\n", "  ", "\r\n"]) for _ in range(words))


@pytest.fixture(scope="session")
def texts():
    return [make_text(seed, 300) for seed in range(8)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Makes a folder (with a space in its name) of 20 files and 20 lines of jsonl; returns it and the 40 texts."""
    folder = tmp_path_factory.mktemp("some corpus")
    texts = [make_text(i, 20 + 37 * i % 400) for i in range(40)]
    for i, text in enumerate(texts[:20]):
        (folder / f"doc {i}.txt").write_bytes(text.encode())
    lines = [json.dumps({"text": text}) for text in texts[20:]]
    (folder / "more.jsonl").write_text("\n".join(lines) + "\n")
    return folder, texts


@pytest.fixture(scope="session")
def settings():
    """Returns `settings(*sources, **changes)`, which makes the data block of a config."""

    def settings(*sources, **changes) -> dict:
        defaults = {
            "sources": tuple((str(source), 1.0) for source in sources),
            "validation": 0.2,
            "seq_len": 32,
            "tokenizer": {"kind": "bpe", "vocab_size": 330},
        }
        return defaults | changes

    return settings


@pytest.fixture(scope="session")
def prepared(corpus, settings, tmp_path_factory):
    return prepare(settings(corpus[0]), tmp_path_factory.mktemp("prepared data"), log=lambda line: None)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """Makes the folder of a BERT tokenizer with a few words, as transformers writes it."""
    folder = tmp_path_factory.mktemp("bert")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "hello", "##s", "x"]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def roberta(tmp_path_factory):
    """Makes the folder of a RoBERTa tokenizer without merges."""
    folder = tmp_path_factory.mktemp("roberta")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = [str(folder / name) for name in ("vocab.json", "merges.txt")]
    transformers.RobertaTokenizer(*files).save_pretrained(folder)
    return folder
