"""With a template exported beside the tokenizer, transformers makes the same tokens as data/examples/chat.py."""

import dataclasses
import json

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from data.batch import DataError
from data.examples import chat_export
from data.examples.chat import Chat
from data.tokens import hub
from data.tokens import tokenizer as tokenizers
from data.tokens.special import SpecialTokens
from data.tokens.templates import TEMPLATES
from tests.data.examples.test_chat import CONVERSATIONS, MARKERS, PUBLISHED, bringing, without_marks

NOTHING = {"template": "auto", "system": ""}


@pytest.fixture(scope="module")
def words(texts):
    return tokenizers.train(texts, "bpe", 420, MARKERS)


def written(words, path):
    """Returns what AutoTokenizer makes of the files of an export."""
    path.mkdir()
    for file, text in hub.files(words).items():
        (path / file).write_text(text, encoding="utf-8")
    return transformers.AutoTokenizer.from_pretrained(path)


def assert_same(words, settings, path, conversations=CONVERSATIONS):
    """Asserts that transformers gives the same ids, for prompts and for whole conversations."""
    chat, theirs = Chat(words, settings), written(chat_export.hand_on(words, settings, encoder=False), path)
    ids = lambda messages, **options: theirs.apply_chat_template(messages, return_dict=False, **options)
    for messages in conversations:
        assert ids(messages[:-1], add_generation_prompt=True) == chat.prompt(messages[:-1])
        assert ids(messages) == chat.encode(messages)[0].tolist()
    return theirs


@pytest.mark.parametrize("system", ["", 'Say "yes" in 東京 🙂,\n{{ nothing }} {% else %}'])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_templates_of_this_code(name, system, words, tmp_path):
    assert_same(words, {"template": name, "system": system}, tmp_path / "out")


@pytest.mark.parametrize("system", ["", "Be kind."])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_template_that_the_tokenizer_brought_along(name, system, words, tmp_path):
    template, begin, end = PUBLISHED[name]
    theirs = assert_same(
        bringing(words, without_marks(template), begin, end), NOTHING | {"system": system}, tmp_path / "out"
    )
    if not system:
        assert theirs.chat_template == without_marks(template)


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_the_input_of_an_instruction(system, words, tmp_path):
    asked = {"role": "user", "content": "Sort.\n\n3 1 2", "input": "3 1 2"}
    plain = {"role": "user", "content": "And?"}
    said = {"role": "assistant", "content": "1 2 3"}
    conversations = [[*system, asked, said], [*system, plain, said, asked, said], [*system, asked, said, plain, said]]
    assert_same(words, {"template": "alpaca", "system": ""}, tmp_path / "out", conversations)


def test_the_template_that_a_run_was_tuned_on_replaces_that_of_the_tokenizer(words, tmp_path):
    own = bringing(words, without_marks(PUBLISHED["llama3"][0]), "<|begin_of_text|>", "<|eot_id|>")
    theirs = assert_same(own, {"template": "chatml", "system": ""}, tmp_path / "out")
    assert "im_start" in theirs.chat_template and "eot_id" not in theirs.chat_template


def test_other_templates_of_a_tokenizer_are_kept(words, tmp_path):
    default, tools = without_marks(PUBLISHED["chatml"][0]), "{{ tools }}"
    for given in (
        [{"name": "tool_use", "template": tools}, {"name": "default", "template": default}],
        {"tool_use": tools, "default": default},
    ):
        own = bringing(words, given, "", "<|im_end|>")
        found = chat_export.hand_on(own, NOTHING | {"system": "Be kind."}, encoder=False)
        kept = found.special.tokenizer_config["chat_template"]
        kept = {item["name"]: item["template"] for item in kept} if isinstance(kept, list) else kept
        assert kept["tool_use"] == tools and kept["default"].endswith(default) and "Be kind." in kept["default"]


def test_what_ends_an_answer_ends_a_text(words):
    for name in TEMPLATES:
        chat = Chat(words, {"template": name, "system": ""})
        found = chat_export.hand_on(words, {"template": name, "system": ""}, encoder=False)
        ends = found.special.config["eos_token_id"]
        assert (ends if isinstance(ends, list) else [ends]) == list(chat.ends)
        assert found.special.config["pad_token_id"] == words.eot_id
        assert found.encode("a<|im_end|>") == words.encode("a<|im_end|>")  # the tokenizer itself is unchanged


def test_the_date_is_that_of_training(words, tmp_path):
    template = "{%- set day = strftime_now(\"%d %b %Y\") %}{{ day + strftime_now('%Y') }}" + PUBLISHED["chatml"][0]
    own = bringing(words, without_marks(template), "", "<|im_end|>")
    theirs = assert_same(own, NOTHING, tmp_path / "out")
    assert "26 Jul 20242024<|im_start|>" in theirs.apply_chat_template(CONVERSATIONS[0], tokenize=False)
    own = bringing(words, "{%- set form = '%Y' %}{{ strftime_now(form) }}" + without_marks(template), "", "<|im_end|>")
    with pytest.raises(DataError, match="calls strftime_now in a way that can't be replaced"):
        chat_export.hand_on(own, NOTHING, encoder=False)


def test_a_token_that_no_tokenizer_config_names(words, tmp_path):
    """An undefined bos_token is an empty string here, but an error in transformers."""
    own = bringing(words, "{{ bos_token + '' }}" + without_marks(PUBLISHED["chatml"][0]), "", "<|im_end|>")
    settings = {role: token for role, token in own.special.tokenizer_config.items() if role != "bos_token"}
    own = tokenizers.Tokenizer(
        Tokenizer.from_str(own.to_json()), dataclasses.replace(own.special, tokenizer_config=settings)
    )
    assert_same(own, NOTHING, tmp_path / "out")


def test_markers_that_are_only_in_the_vocabulary(words, tmp_path):
    """The export makes them added tokens, so that they are found in a text; their ids stay."""
    content = json.loads(words.to_json())
    content["added_tokens"] = [token for token in content["added_tokens"] if "<|im_" not in token["content"]]
    assert "<|im_end|>" in content["model"]["vocab"]
    own = tokenizers.Tokenizer(Tokenizer.from_str(json.dumps(content)))
    theirs = assert_same(own, {"template": "chatml", "system": ""}, tmp_path / "out")
    assert theirs.convert_tokens_to_ids("<|im_end|>") == Chat(own, {"template": "chatml", "system": ""}).ends[0]


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_the_spaces_of_sentencepiece(scheme, texts, tmp_path):
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    said = [f" {message['content']} [INST] <<SYS>>\n[/INST] " for turns in CONVERSATIONS for message in turns] * 9
    names = ["<unk>", "<s>", "</s>"]
    backend.train_from_iterator(
        [*texts, *said], trainers.BpeTrainer(vocab_size=400, special_tokens=names, show_progress=False)
    )
    tokens = dict(zip(("unk_token", "bos_token", "eos_token"), names, strict=True))
    words = tokenizers.Tokenizer(backend, SpecialTokens(1, (2,), None, {"eos_token_id": 2}, tokens))
    for name in ("llama2", "alpaca"):
        assert_same(words, {"template": name, "system": ""}, tmp_path / name)


def test_an_encoder_reads_the_end_of_its_text(words, tmp_path):
    settings = {"template": "chatml", "system": "Be kind."}
    theirs = written(chat_export.hand_on(words, settings, encoder=True), tmp_path / "out")
    for messages in CONVERSATIONS:
        (source,) = Chat(words, settings).inputs([messages[:-1]], encoder=True)["sources"]
        found = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        assert found == source


def test_what_other_libraries_would_encode_otherwise_is_refused(words):
    """The marker is an added token with lstrip; when a text is encoded as a whole, it consumes the spaces before it."""
    content = Tokenizer.from_str(words.to_json())
    content.add_special_tokens([AddedToken("<|im_end|>", lstrip=True)])
    stripping = tokenizers.Tokenizer(content)
    with pytest.raises(
        DataError, match=r"'chatml' can't be exported with this tokenizer: .*different tokens from token"
    ):
        chat_export.hand_on(stripping, {"template": "chatml", "system": ""}, encoder=False)


def test_no_special_token_out_of_a_message_where_transformers_is_told_so(words, tmp_path):
    settings = {"template": "chatml", "system": ""}
    theirs = written(chat_export.hand_on(words, settings, encoder=False), tmp_path / "out")
    messages = [{"role": "user", "content": "a<|im_end|>b"}]
    found = theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
    )
    assert found == Chat(words, settings).prompt(messages)
