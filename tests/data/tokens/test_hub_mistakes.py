"""Missing, damaged and contradictory tokenizer files in checkpoint folders are refused by name."""

import pytest

from data.batch import DataError
from data.tokens import special
from data.tokens.tokenizer import load
from tests.data.tokens.test_hub import LLAMA, read, tokenizer_json, word_piece, write


def test_mistakes(tmp_path):
    def refused(words, **files):
        for path in tmp_path.iterdir():
            path.unlink()
        with pytest.raises(DataError, match=words):
            read(write(tmp_path, **({"config__json": {"model_type": "gpt2"}} | files)))

    refused(r"has no tokenizer \(none of the usual files\): make a tokenizer.json with transformers")
    refused(r"only tokenizer.model, which is not enough\): make", tokenizer__model="\x0a")
    refused(r"vocab.json and merges.txt can't be read", vocab__json="{", merges__txt="#version: 0.2\n")
    refused(r"vocab.json and merges.txt can't be read", vocab__json={"a": 0}, merges__txt="a b\n")
    qwen = dict(config__json={"model_type": "qwen2"}, vocab__json={"a": 0}, merges__txt="")
    refused(r"not a whole tokenizer of qwen2: make a tokenizer.json", **qwen)
    bert = dict(config__json={"model_type": "bert"}, vocab__txt="[UNK]\n[SEP]\na\n")
    refused(r"no token '\[CLS\]', which is the cls_token of bert", **bert)
    refused(r"tokenizer_config.json can't be read", tokenizer__json="{}", tokenizer_config__json="{")
    refused(r"generation_config.json is damaged", tokenizer__json="{}", generation_config__json="[]")
    refused(r"tokenizer.json is not a tokenizer.json", tokenizer__json="{}")


def test_a_damaged_record_of_special_tokens(tmp_path):
    read(tokenizer_json(tmp_path, LLAMA, lead="<s>")).save(tmp_path / "tokenizer.json")
    for content in ("{", "[]", '{"begin": 1, "end": []}', '{"begin": "x", "end": [1]}', '{"end": [1]}'):
        (tmp_path / special.FILE).write_text(content)
        with pytest.raises(DataError, match=r"special_tokens.json is damaged .*begin must be an id"):
            load(tmp_path / "tokenizer.json")
    (tmp_path / special.FILE).write_text('{"begin": 1, "end": [77]}')
    with pytest.raises(DataError, match="outside the vocabulary of 5 tokens: begin 1, end 77"):
        load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "chat_template.jinja"]
)
def test_a_pointer_in_place_of_a_file(name, tmp_path):
    tokenizer_json(tmp_path, LLAMA, lead="<s>")
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 2200119\n")
    with pytest.raises(DataError, match=rf"{name} is a Git LFS pointer, .*not downloaded; run: git lfs pull"):
        read(tmp_path)


def test_every_mistake_names_the_folder(tmp_path):
    words = tokenizer_json(tmp_path, ["<x>"])
    with pytest.raises(DataError, match=rf"{tmp_path}.*no token that ends a document"):
        read(words)
    (tmp_path / "bert").mkdir()
    bert = word_piece(tmp_path / "bert", tokenizer_config__json={"cls_token": "[NONE]"})
    with pytest.raises(DataError, match=rf"{bert.name}.*no token '\[NONE\]', which is the cls_token"):
        read(bert)


@pytest.mark.parametrize("given", ["0", 1.0, True, [[0]], {"a": 0}, -2])
def test_ids_that_are_none_are_refused_by_name(given, tmp_path):
    folder = tokenizer_json(tmp_path, LLAMA, lead="<s>", generation_config__json={"eos_token_id": given})
    with pytest.raises(DataError, match=r"eos_token_id is .*; it must be the id of a token, or a list of ids"):
        read(folder)


def test_an_end_that_is_no_token_is_refused_where_nothing_else_says_it(tmp_path):
    folder = tokenizer_json(tmp_path, LLAMA, lead="<s>", generation_config__json={"eos_token_id": 99999})
    with pytest.raises(DataError, match="eos_token_id is 99999, which the tokenizer lacks"):
        read(folder)


def test_a_chat_template_in_another_encoding_is_refused(tmp_path):
    folder = tokenizer_json(tmp_path, LLAMA, lead="<s>", tokenizer_config__json={"eos_token": "</s>"})
    (folder / "chat_template.jinja").write_bytes(b"\xe4")
    with pytest.raises(DataError, match="a chat template can't be read"):
        read(folder)
