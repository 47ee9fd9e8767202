"""Tokenizers of checkpoint folders equal transformers' own, on small vocabularies made here."""

import json

import pytest
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors, trainers

from data.batch import DataError
from data.examples.chat import own_templates
from data.tokens import hub
from data.tokens.tokenizer import load

CORPUS = [
    "the quick brown fox jumps over the lazy dog; der schnelle braune Fuchs, naïve café 12345",
    "東京 is 日本's",
] * 9
AWKWARD = [
    "",
    " ",
    "The QUICK  brown\tfox\n\n jumps ",
    "Café cafe\u0301 NAÏVE Straße İstanbul",
    "東京都 日本語テキスト",
    "👨‍👩‍👧 \u200b\ufeff\u00a0x",
    "\x00\x07 control \ufffd",
    "<s>the</s> <|endoftext|> [CLS] fox [MASK]<mask>",
    "##fox ## don't I'LL 3.14 1,000",
    "x" * 150,
]


def write(path, **files):
    """Writes files into a folder: a dict as JSON, else text; '__' in a name means its dot."""
    for name, content in files.items():
        text = json.dumps(content) if isinstance(content, dict) else content
        (path / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return path


def byte_level(path, family, special, alphabet=None, **settings):
    """Writes a folder with vocab.json and merges.txt."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if alphabet is None else alphabet
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.model.save(str(path))
    return write(path, config__json={"model_type": family}, tokenizer_config__json=settings)


def word_piece(path, **settings):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = ["the", "quick", "fox", "Fox", "##s", "##e", "cafe", "café", "caf", "##é", "na", "##ive", "##ïve", "İ"]
    pieces += ["東", "京", "strasse", "stra", "##ße", "i", "I", "'", ".", "#", "don", "t", "1", "##0", "[", "]", "MASK"]
    pieces += ["mask", "<", ">", "over", "x", "##x"]
    return write(path, config__json={"model_type": "bert"}, vocab__txt="\n".join(special + pieces) + "\n", **settings)


def read(path):
    return hub.read(path, json.loads((path / "config.json").read_text()))


def written(ours, path):
    """Returns what AutoTokenizer makes of the files of an export."""
    (path / "out").mkdir()
    for file, text in hub.files(ours).items():
        (path / "out" / file).write_text(text, encoding="utf-8")
    return transformers.AutoTokenizer.from_pretrained(path / "out")


def assert_same(ours, theirs, texts=AWKWARD):
    """Asserts the same ids for each text; text that looks like a special token is text."""
    for text in texts:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


FAMILIES = {
    "gpt2": (["<|endoftext|>"], transformers.GPT2Tokenizer),
    "opt": (["<s>", "<pad>", "</s>", "<unk>"], transformers.GPT2Tokenizer),
    "roberta": (["<s>", "<pad>", "</s>", "<unk>", "<mask>"], transformers.RobertaTokenizer),
}
OPT = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>") | {"pad_token": "<pad>"}


@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_vocab_json_and_merges(family, space, tmp_path):
    special, kind = FAMILIES[family]
    settings = {"add_prefix_space": space} | (OPT | {"add_bos_token": True} if family == "opt" else {})
    folder = byte_level(tmp_path, family, special, **settings)
    ours, theirs = read(folder), kind.from_pretrained(folder, split_special_tokens=True)
    assert_same(ours, theirs)
    assert written(ours, tmp_path).encode("the fox") == theirs.encode("the fox")
    assert ours.eot_id == special.index({"gpt2": "<|endoftext|>"}.get(family, "</s>"))
    assert ours.special.begin == special.index({"gpt2": "<|endoftext|>", "opt": "</s>", "roberta": "<s>"}[family])


def test_a_vocabulary_without_all_bytes(tmp_path):
    folder = byte_level(tmp_path, "gpt2", ["<|endoftext|>"], alphabet=["a", "e"])
    assert_same(read(folder), transformers.GPT2Tokenizer.from_pretrained(folder, split_special_tokens=True))


@pytest.mark.parametrize(
    "settings",
    [{}, {"do_lower_case": False}, {"strip_accents": False}, {"do_lower_case": False, "tokenize_chinese_chars": False}],
)
def test_vocab_txt(settings, tmp_path):
    folder = word_piece(tmp_path, tokenizer_config__json=settings)
    ours, theirs = read(folder), transformers.BertTokenizer.from_pretrained(folder, split_special_tokens=True)
    assert_same(ours, theirs)
    assert (ours.special.begin, ours.eot_id, ours.mask_id) == (2, 3, 4)
    assert [*ours.prompts(["the fox"])[0], ours.eot_id] == theirs.encode("the fox")
    again = written(ours, tmp_path)
    assert again.encode("the fox", "fox") == theirs.encode("the fox", "fox")
    assert again.mask_token == theirs.mask_token


def test_added_tokens(tmp_path):
    folder = byte_level(tmp_path, "gpt2", ["<|endoftext|>"])
    size = read(folder).vocab_size
    write(folder, added_tokens__json={"<a b>": size + 1, "<more>": size})
    ours = read(folder)
    assert ours.vocab_size == size + 2
    assert_same(ours, transformers.GPT2Tokenizer.from_pretrained(folder, split_special_tokens=True), ["x<more>y <a b>"])
    write(folder, added_tokens__json={"<more>": size + 5})
    with pytest.raises(DataError, match=rf"'<more>' has id {size + 5}, which leaves a gap"):
        read(folder)


def tokenizer_json(path, special, lead="", trail="", config=None, **files):
    """Writes a folder with a tokenizer.json whose post-processor adds `lead` and `trail` around a text."""
    backend = Backend(models.BPE({token: i for i, token in enumerate([*special, "a", "b"])}, []))
    backend.add_special_tokens(special)
    ids = [(token, special.index(token)) for token in (lead, trail) if token]
    if ids:
        template = [token for token in (lead, "$A", trail) if token]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    backend.save(str(path / "tokenizer.json"))
    return write(path, config__json=config or {}, **files)


ADDED = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "rstrip": False, "normalized": False}
T5 = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
LLAMA, QWEN = ["<unk>", "<s>", "</s>"], ["<|im_end|>", "<|endoftext|>"]
# Files as the families publish them: (contents, (the begin token, the end tokens, ids for config.json)).
PUBLISHED = {
    "llama": (
        dict(special=LLAMA, lead="<s>", tokenizer_config__json={"bos_token": "<s>", "eos_token": ADDED}),
        (1, (2,), {"bos_token_id": 1, "eos_token_id": 2}),
    ),
    "llama with the ids of its first conversion": (
        dict(special=LLAMA, lead="<s>", tokenizer_config__json={"bos_token": "<s>", "eos_token": "</s>"})
        | dict(config={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1}),
        (1, (2,), {"bos_token_id": 1, "eos_token_id": 2}),
    ),
    "add_bos_token alone": (
        dict(special=LLAMA, special_tokens_map__json={"bos_token": "<s>", "eos_token": "</s>"})
        | dict(tokenizer_config__json={"add_bos_token": True}),
        (1, (2,), {"bos_token_id": 1, "eos_token_id": 2}),
    ),
    "llama 3 for dialogue": (
        dict(special=["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], lead="<|begin_of_text|>")
        | dict(tokenizer_config__json={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"})
        | dict(config={"eos_token_id": 1}, generation_config__json={"eos_token_id": [1, 2], "pad_token_id": 1}),
        (0, (2, 1), {"bos_token_id": 0, "eos_token_id": [2, 1], "pad_token_id": 1}),
    ),
    "qwen2": (
        dict(special=QWEN, tokenizer_config__json={"bos_token": None, "eos_token": "<|endoftext|>"})
        | dict(config={"bos_token_id": 1, "eos_token_id": 1}),
        (None, (1,), {"bos_token_id": 1, "eos_token_id": 1}),
    ),
    "gpt2": (
        dict(special=["<|endoftext|>"], config={"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 0}),
        (0, (0,), {"bos_token_id": 0, "eos_token_id": 0}),
    ),
    "bloom": (
        dict(special=["<unk>", "<s>", "</s>", "<pad>"], config={"bos_token_id": 1, "eos_token_id": 2})
        | dict(tokenizer_config__json={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}),
        (None, (2,), {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}),
    ),
    "t5": (
        dict(special=["<pad>", "</s>"], trail="</s>", config=T5),
        (None, (1,), {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}),
    ),
    "bert": (
        dict(special=["[PAD]", "[CLS]", "[SEP]"], lead="[CLS]", trail="[SEP]", config={"model_type": "bert"}),
        (1, (2,), {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}),
    ),
    "ids of the model alone": (
        dict(special=["<x>", "<y>"], lead="<x>", config={"bos_token_id": 0, "eos_token_id": 1}),
        (0, (1,), {"bos_token_id": 0, "eos_token_id": 1}),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_special_tokens(name, tmp_path):
    files, (begin, end, ids) = PUBLISHED[name]
    folder = tokenizer_json(tmp_path, **files)
    special = read(folder).special
    assert (special.begin, special.end, special.config) == (begin, end, ids)


@pytest.mark.parametrize("name", PUBLISHED)
def test_written_files_give_the_ids_that_the_folder_gave(name, tmp_path):
    files, _ = PUBLISHED[name]
    folder = tokenizer_json(tmp_path, **files)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = read(folder)
    ours.save(tmp_path / "tokenizer.json")
    ours = load(tmp_path / "tokenizer.json")  # a run saves the special tokens with it
    assert ours.published and ours.special == read(folder).special
    again = written(ours, tmp_path)
    assert again.encode("ab ba") == theirs.encode("ab ba")
    assert again.eos_token_id == ours.eot_id
    for role in ("bos_token_id", "pad_token_id"):
        if getattr(theirs, role) is not None:
            assert getattr(again, role) == getattr(theirs, role)


def test_what_encoder_and_decoder_of_a_t5_read(tmp_path):
    folder = tokenizer_json(tmp_path, **PUBLISHED["t5"][0])
    ours, theirs = read(folder), transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert ours.inputs(["ab", ""], encoder=True) == {"prompts": [[0], [0]], "sources": theirs(["ab", ""])["input_ids"]}
    assert ours.inputs(["ab"], encoder=False) == {"prompts": [ours.encode("ab")], "sources": None}


def test_chat_templates_are_handed_on(tmp_path):
    folder = tokenizer_json(tmp_path, LLAMA, lead="<s>", tokenizer_config__json={"eos_token": "</s>"})
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    read(folder).save(tmp_path / "kept.json")
    for words in (read(folder), load(tmp_path / "kept.json")):
        assert json.loads(hub.files(words)["tokenizer_config.json"])["chat_template"].startswith("{{")


def test_several_chat_templates_of_transformers_5_are_handed_on(tmp_path):
    folder = tokenizer_json(tmp_path, LLAMA, lead="<s>", tokenizer_config__json={"eos_token": "</s>"})
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    theirs.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    theirs.save_pretrained(folder)
    assert (folder / "additional_chat_templates").is_dir()
    assert own_templates(read(folder))["default"] == "{{ 1 }}"
    assert written(read(folder), tmp_path).chat_template == theirs.chat_template
