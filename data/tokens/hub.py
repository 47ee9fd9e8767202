"""Imports and exports the tokenizer of a Hugging Face checkpoint folder.

    tokenizer.json               used as it is
    vocab.json, merges.txt       byte-level BPE of GPT-2, OPT, RoBERTa
    vocab.txt                    WordPiece of BERT
    tokenizer_config.json, special_tokens_map.json, added_tokens.json, config.json, generation_config.json
                                 special tokens: which tokens begin and end a text

Left out: a folder with only a sentencepiece file. Normalization, the space before a text and the order of merges differ
between families and are not in that file, so transformers must convert it to a tokenizer.json once.
"""

import copy
import dataclasses
import json
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from data.batch import DataError
from data.files import refuse_pointer
from data.tokens import backends
from data.tokens.special import EOT, SpecialTokens, usual_special_tokens
from data.tokens.tokenizer import Tokenizer

_HINT = "make a tokenizer.json with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
_BPE_FILES = ("vocab.json", "merges.txt")
_TEMPLATE, _MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
# Further fields of tokenizer_config.json that an export keeps.
_HANDED_ON = ("chat_template", "model_max_length", "padding_side", "clean_up_tokenization_spaces")

# A family's names of special tokens, for folders whose tokenizer_config.json lacks them (as in transformers' classes).
_BERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
_NAMES = {
    "gpt2": {"bos_token": EOT, "eos_token": EOT, "unk_token": EOT},
    "opt": {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"},
    "roberta": _ROBERTA | {"unk_token": "<unk>", "pad_token": "<pad>"},
    "bert": _BERT | {"unk_token": "[UNK]", "pad_token": "[PAD]"},
    "albert": _BERT | {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "<unk>", "pad_token": "<pad>"},
}


def read(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Returns the tokenizer of a folder; `config` is the content of its config.json.

    Raises:
      DataError: there is no tokenizer that can be read, or a file is damaged; the message names the folder.
    """
    try:
        return _read(folder, config)
    except DataError as error:
        if str(folder) in str(error):
            raise
        raise DataError(f"{folder}: {error}") from error


def _read(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    family = config.get("model_type")
    settings, generation = (_json(folder / f"{name}_config.json") for name in ("tokenizer", "generation"))
    named = _NAMES.get(family or "", {}) | _json(folder / "special_tokens_map.json") | settings
    names = {role: _content(named[role]) for role in _ROLES if role in named}
    for name in (*_BPE_FILES, "vocab.txt", _TEMPLATE):
        if (folder / name).exists():
            refuse_pointer(folder / name)
    if (folder / "tokenizer.json").exists():
        backend = backends.load(folder / "tokenizer.json")
    else:
        backend = _build(folder, family, settings, names)
    special = _special_tokens(backend, names, config, generation, settings.get("add_bos_token", False))
    handed_on = {name: settings[name] for name in _HANDED_ON if settings.get(name) is not None}
    files_of = {path.stem: path for path in sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))}
    files_of |= {"default": folder / _TEMPLATE} if (folder / _TEMPLATE).exists() else {}
    try:
        templates = [{"name": name, "template": path.read_text(encoding="utf-8")} for name, path in files_of.items()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{folder}: a chat template can't be read: {error}.") from error
    if templates:
        handed_on["chat_template"] = templates[0]["template"] if [*files_of] == ["default"] else templates
    return Tokenizer(backend, dataclasses.replace(special, tokenizer_config=special.tokenizer_config | handed_on))


def padded(words: Tokenizer) -> Tokenizer:
    """Returns the tokenizer with a padding token: its own, or else its end token, which never occurs inside a text."""
    special = words.special
    if special.config.get("pad_token_id") is not None:
        return words
    token = Backend.from_str(words.to_json()).id_to_token(words.eot_id)
    found = copy.copy(words)
    found.special = dataclasses.replace(
        special,
        config=special.config | {"pad_token_id": words.eot_id},
        tokenizer_config=special.tokenizer_config | {"pad_token": token},
    )
    return found


def settings_of_generation(folder: Path) -> list[str]:
    """Returns the fields of generation_config.json beside tokens: transformers' sampling, which nothing here reads."""
    known = ("transformers_version", "_from_model_config")
    found = _json(folder / "generation_config.json")
    return sorted(name for name in found if not name.endswith("_token_id") and name not in known)


def files(words: Tokenizer) -> dict[str, str]:
    """Returns the texts of tokenizer.json and tokenizer_config.json, for transformers to read.

    The tokenizer of a published model stays unchanged. A tokenizer that was trained here gets a post-processor that
    begins a text with the same token as documents in training.
    """
    backend, special = Backend.from_str(words.to_json()), words.special
    # This class uses tokenizer.json unchanged; a family's own class would rebuild the tokenizer from the vocabulary.
    settings = special.tokenizer_config | {"tokenizer_class": "PreTrainedTokenizerFast"}
    if not words.published:
        assert special.begin is not None  # see `usual_special_tokens`
        token = backend.id_to_token(special.begin)
        assert token is not None
        backend.post_processor = _begin_with(token, special.begin)
        settings |= {} if words.mask_id is None else {"mask_token": backend.id_to_token(words.mask_id)}
    return {"tokenizer.json": backend.to_str(), "tokenizer_config.json": json.dumps(settings, indent=2) + "\n"}


def _special_tokens(backend: Backend, names: Mapping, config: Mapping, generation: Mapping, add_begin: bool):
    """Returns the special tokens that the files name.

    The tokenizer's names take precedence over the model's ids, which are wrong in some old folders.

    Args:
      backend: the tokenizer.
      names: role ('bos_token') to token; None: there is no such token.
      config, generation: config.json, and generation_config.json, which takes precedence.
      add_begin: add_bos_token of tokenizer_config.json.

    Raises:
      DataError: an id is not a token id, or there is no end token.
    """
    vocab = backend.get_vocab(with_added_tokens=True)
    token_of = {i: token for token, i in vocab.items()}

    def named(role: str) -> list[int]:
        return [vocab[names[role]]] if names.get(role) in vocab else []

    def given(role: str) -> list[int]:
        value = generation.get(f"{role}_id", config.get(f"{role}_id"))
        ids = [i for i in (value if isinstance(value, list) else [value]) if i not in (None, -1)]  # both mean "none"
        for i in ids:
            if type(i) is not int or i < 0:
                raise DataError(f"{role}_id is {value!r}; it must be the id of a token, or a list of ids.")
        found = [i for i in ids if i in token_of]
        if ids and not found and role == "eos_token" and not named(role):
            raise DataError(f"{role}_id is {value!r}, which the tokenizer lacks; it must be the end token's id.")
        return found

    end = list(dict.fromkeys(named("eos_token") + given("eos_token"))) or named("sep_token")
    end = end or list(usual_special_tokens(vocab).end)
    bos = _first(named("bos_token") if "bos_token" in names else given("bos_token"))
    encoding = backend.encode("a")
    pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    begin = _first([i for i, added in takewhile(lambda pair: pair[1], pairs)])
    if begin is None and (add_begin or bos == end[0]):  # one token for both separates documents (GPT-2)
        begin = bos
    pad = _first(given("pad_token") + named("pad_token"))
    ids: dict[str, int | list[int] | None] = {"bos_token_id": _first(given("bos_token") + named("bos_token"))}
    ids["eos_token_id"] = end if len(end) > 1 else end[0]
    start = _first(given("decoder_start_token"))
    ids |= {} if pad is None else {"pad_token_id": pad}
    name_of = lambda i: None if i is None else token_of.get(i)
    tokens = {"bos_token": name_of(bos), "eos_token": token_of[end[0]], "pad_token": name_of(pad)}
    tokens |= {role: name for role, name in names.items() if name in vocab}
    tokens = {role: token for role, token in tokens.items() if token is not None}
    return SpecialTokens(begin, tuple(end), start, ids, tokens)


def _build(folder: Path, family: str | None, settings: Mapping, names: Mapping) -> Backend:
    """Returns the tokenizer of a folder without a tokenizer.json."""
    files: tuple[str, ...]
    families: tuple[str, ...]
    if all((folder / name).exists() for name in _BPE_FILES):
        files, build, families = _BPE_FILES, _byte_level, ("gpt2", "opt", "roberta")
    elif (folder / "vocab.txt").exists():
        files, build, families = ("vocab.txt",), _word_piece, ("bert",)
    else:
        pieces = sorted(path.name for path in folder.glob("*.model"))
        found = f"only {', '.join(pieces)}, which is not enough" if pieces else "none of the usual files"
        raise DataError(f"{folder} has no tokenizer ({found}): {_HINT}.")
    if family not in families:
        raise DataError(f"{folder} has {' and '.join(files)}, which is not a whole tokenizer of {family}: {_HINT}.")
    try:
        backend = build([str(folder / name) for name in files], settings, names)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # broken files raise plain Exceptions, and panics of the library, which are not
        raise DataError(f"{folder}: {' and '.join(files)} can't be read: {error}.") from error
    decoder = settings.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict) or not all(str(i).isdecimal() and isinstance(t, dict) for i, t in decoder.items()):
        raise DataError(f"{folder}: added_tokens_decoder of tokenizer_config.json must map ids to tokens.")
    extra = [(int(i), AddedToken(**token)) for i, token in decoder.items()]
    extra = extra or [(i, AddedToken(token)) for token, i in _json(folder / "added_tokens.json").items()]
    for i, token in sorted(extra, key=lambda pair: pair[0]):
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != i:
            raise DataError(f"{folder}: the added token {token.content!r} has id {i}, which leaves a gap; {_HINT}.")
    backend.add_special_tokens([name for name in names.values() if name and backend.token_to_id(name) is not None])
    backend.post_processor = _post_processor(backend, family, settings, names)
    return backend


def _byte_level(files: list[str], settings: Mapping, names: Mapping) -> Backend:
    backend = Backend(models.BPE.from_file(*files))
    space = settings.get("add_prefix_space", False)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = decoders.ByteLevel()
    return backend


def _word_piece(files: list[str], settings: Mapping, names: Mapping) -> Backend:
    backend = Backend(models.WordPiece.from_file(*files, unk_token=names["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _post_processor(backend: Backend, family: str | None, settings: Mapping, names: Mapping):
    """Returns the post-processor that adds the family's special tokens around a text."""

    def token(role: str) -> tuple[str, int]:
        i = backend.token_to_id(names[role])
        if i is None:
            raise DataError(f"The vocabulary has no token {names[role]!r}, which is the {role} of {family}.")
        return names[role], i

    if family == "bert":
        return processors.BertProcessing(token("sep_token"), token("cls_token"))
    if family == "roberta":
        return processors.RobertaProcessing(token("sep_token"), token("cls_token"))
    if settings.get("add_bos_token"):
        return _begin_with(*token("bos_token"))
    return processors.ByteLevel(trim_offsets=False)


def _begin_with(token: str, i: int):
    return processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", token, "$B:1"], special_tokens=[(token, i)]
    )


def _content(token) -> str | None:
    name = token.get("content") if isinstance(token, dict) else token
    if name is not None and not isinstance(name, str):
        raise DataError(f"tokenizer_config.json or special_tokens_map.json has {token!r} instead of a token.")
    return name


def _first(values: list[int]) -> int | None:
    return values[0] if values else None


def _json(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8")
        refuse_pointer(path)
        value = json.loads(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is damaged: it is not a JSON object.")
    return value
