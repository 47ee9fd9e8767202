"""Prepares data once: corpus -> TFDS (array_record) -> tokenizer -> packed rows.

    DIR/corpora/NAME-HASH/     the text of one source, cleaned and split (data/clean/, data/builders/text.py)
    DIR/tokenizers/KIND-HASH/  tokenizer.json
    DIR/rows/tLENGTH-HASH/      packed rows of all sources and a copy of tokenizer.json: all that training reads

Each folder is a stage (data/stage.py): a finished one is reused, a killed one is redone, and other settings or changed
text get a new folder. On a pod every process calls `prepare`. If they share DIR, one works, and the others wait and
find everything done; if each has its own disk, each writes the same files.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data import corpus, stage
from data.batch import BASE, Channel, DataError, stored
from data.checked import checked, specials
from data.clean.splits import SPLITS
from data.copies import HeldOut
from data.corpus import Corpus
from data.examples import kinds
from data.examples.example import Context, Encoding
from data.examples.packing import pack_records
from data.prepared import Prepared, load
from data.rows.pack import pack_texts, write_rows
from data.tokens import tokenizer as tokenizers
from data.tokens.long_words import LONGEST, LongWords

Log = Callable[[str], None]

# A tokenizer learns little from more text than this; each source contributes its share by weight.
_TOKENIZER_CHARACTERS = 256 << 20

_EXAMPLES = 4  # part of the hash of example rows: raise it when the same records give different rows


def prepare(
    data_config: Mapping[str, Any],
    directory: str | os.PathLike,
    log: Log = print,
    encoder: bool = False,
    prefix: tuple[int, ...] = (),
) -> Prepared:
    """Prepares the data that a config describes in `directory`, or finds it there, and opens it.

    Args:
      data_config: the config's `data` block. Its fields are `sources` ((spec, weight), ...; with weight 0 only the
        held-out part is packed), `path` and `format` (one more source of examples), `validation` (the fraction to hold
        out), `split` ('document' or 'tail'; records of examples are never split), `copies` ('keep' or 'drop': training
        documents that are copies of held-out ones), `seq_len`, `tokenizer` {`kind`: 'bpe', 'byte', 'char' or 'file';
        `vocab_size`; `path`; `mask`: whether it gets a mask token; `sentinels`: how many; `chat`: a template whose
        markers it gets (data/tokens/templates.py)}, `max_bad_lines`, `corruption` (data/rows/corrupt.py) and `augment`
        (data/rows/augment.py), which apply when rows are read and are only checked here, before the long work, and a
        block for each kind of examples (data/examples/kinds.py).
      directory: the folder of all prepared data.
      log: gets a line for each thing that a user should know.
      encoder: the model has an encoder beside its decoder, which reads everything before an answer.
      prefix: ids that every example begins with (those of prompt tuning follow the vocabulary).

    Raises:
      DataError: the config or the data is wrong, or the disk is full or not writable.
    """
    config = checked(data_config, encoder)
    if len(prefix) >= config["seq_len"]:
        raise DataError(
            f"A prompt of {len(prefix)} vectors leaves no room for text in data.seq_len {config['seq_len']}: raise it, "
            "or shorten the prompt."
        )
    if not os.fspath(directory):
        raise DataError("config.data.dir is empty: name a folder (a variable in the command may not be set).")
    root = Path(directory).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with stage.lock(root, log):
            built = [corpus.read(spec, config, root, log) for spec, _ in config["sources"]]
            held_out = HeldOut(functools.partial(_held_out, built))
            if config["copies"] == "drop":
                built = [dataclasses.replace(source, without=held_out) for source in built]
            tokenizer = _tokenizer(built, config, root, log)
            return load(_rows(built, held_out, tokenizer, config, root, log, encoder, prefix))
    except (OSError, RuntimeError) as error:
        problem = stage.storage_problem(error)
        if problem is None:
            raise
        raise DataError(
            f"{problem} while data was prepared in {root}: {error}. Fix that (or choose another folder) and run again; "
            "finished stages are kept."
        ) from error


# Stages


def _tokenizer(built: list[Corpus], config: dict, root: Path, log: Log) -> tokenizers.Tokenizer:
    kind, vocab_size = config["tokenizer"]["kind"], config["tokenizer"]["vocab_size"]
    if kind == "file":
        return tokenizers.load(config["tokenizer"]["path"])
    special = specials(config["tokenizer"])
    weights = [weight for _, weight in config["sources"]]

    def texts() -> Iterator[str]:
        for source, weight in zip(built, weights, strict=True):
            left = _TOKENIZER_CHARACTERS * weight / sum(weights)
            for text in source.plain_texts("train") if weight else ():
                yield text
                left -= len(text)
                if left <= 0:
                    break

    def make(folder: Path) -> dict:
        long = LongWords()
        read = long.watched(texts()) if kind == "bpe" else texts()
        tokenizer = tokenizers.train(read, kind, vocab_size, special)
        tokenizer.save(folder / "tokenizer.json")
        if long.count:
            log(
                f"{long.count:,} words are longer than {LONGEST} characters (the longest has {long.longest:,}): the "
                "tokenizer learned from pieces of them, so none of its tokens is longer than a piece."
            )
        if kind == "bpe" and tokenizer.vocab_size < vocab_size:
            log(f"The text is too short for {vocab_size} tokens: the vocabulary has {tokenizer.vocab_size}.")
        return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}

    contents = [[source.content, weight] for source, weight in zip(built, weights, strict=True)]
    inputs = {"kind": kind, "vocab_size": vocab_size, "corpora": contents}
    if special:  # without special tokens, the folder keeps the name from before they existed
        inputs["specials"] = special
    if config["copies"] == "drop":
        inputs["copies"] = "drop"
    folder, _ = stage.run(root / "tokenizers", kind, inputs, make, log)
    return tokenizers.load(folder / "tokenizer.json")


def _rows(
    built: list[Corpus],
    held_out: HeldOut,
    tokenizer: tokenizers.Tokenizer,
    config: dict,
    root: Path,
    log: Log,
    encoder: bool,
    prefix: tuple,
) -> Path:
    seq_len = config["seq_len"]
    identities = [_identity(source.kind, config, tokenizer, encoder, prefix) for source in built]
    weights = [weight for _, weight in config["sources"]]
    inputs = {"sources": [], "tokenizer": tokenizer.fingerprint, "seq_len": seq_len}
    for source, weight, identity in zip(built, weights, identities, strict=True):
        inputs["sources"].append([source.spec, source.content, weight] + [identity] * (identity is not None))

    if config["copies"] == "drop":
        inputs["copies"] = "drop"

    def make(folder: Path) -> dict:
        tokenizer.save(folder / "tokenizer.json")
        sources, warned = [], set()
        for i, (source, weight, identity) in enumerate(zip(built, weights, identities, strict=True)):
            facts = {
                "name": source.name,
                "spec": source.spec,
                "weight": weight,
                "content_hash": source.content,
                "bad_lines": source.bad_lines,
                "corpus": os.path.relpath(source.dataset, folder),
            }
            without = _copies(source, held_out, log) if weight else {}
            pack = _pack_text
            trained = functools.partial(_trained, source.kind, built, weights)
            context = Context(tokenizer, seq_len, encoder, trained, prefix)
            if identity is not None:
                make_encoding = kinds.KINDS[source.kind].encoding
                channels = kinds.channels(source.kind, config, encoder)
                facts |= {"kind": source.kind, "channels": channels, "encoding": stage.digest(identity)[:16]}
                if make_encoding is None:
                    pack = _pack_nothing
                else:
                    encoding = make_encoding(config[source.kind], context)
                    pack = functools.partial(_pack_examples, encoding=encoding, channels=channels)
                    facts |= {"facts": dict(encoding.facts)}
                    for warning in encoding.warnings:
                        if warning not in warned:  # all sources of a kind give the same warnings
                            warned.add(warning)
                            log(f"warning: {source.spec}: {warning}.")
            for split in SPLITS:
                counts = source.splits.get(split, {"documents": 0, "bytes": 0})
                path = f"{i}-{source.name}/{split}"
                if split == "train" and not weight:
                    facts |= {"train_rows": write_rows(folder / path, ()), "train_tokens": 0}
                else:
                    facts |= pack(source, split, context, folder / path, log)
                facts |= {split: path, f"{split}_documents": counts["documents"]}
                facts |= {f"{split}_bytes": counts["bytes"]}
            facts |= without
            sources.append(facts)
        return {"vocab_size": tokenizer.vocab_size, "seq_len": seq_len, "sources": sources}

    return stage.run(root / "rows", f"t{seq_len}", inputs, make, log)[0]


def _held_out(built: list[Corpus]) -> Iterator[str]:
    for source in built:
        yield from source.texts("validation")


def _copies(source: Corpus, held_out: HeldOut, log: Log) -> dict[str, int]:
    """Counts and logs the training documents that are copies of held-out ones.

    Returns:
      fields of PreparedSource: the number of copies, and if they are left out, what remains.
    """
    train = source.splits.get("train", {"documents": 0, "bytes": 0})
    count = held_out.count(dataclasses.replace(source, without=None).texts("train"))
    some = (
        f"{source.spec}: {count.documents:,} of {train['documents']:,} training documents are copies of held-out ones"
    )
    if count.documents and source.without is None:
        log(
            f"warning: {some}, which makes held-out metrics too good. config.data.copies=drop leaves them out of "
            "training."
        )
    if source.without is None:
        return {"train_copies": count.documents}
    left = train["documents"] - count.documents
    if count.documents and not left:
        raise DataError(f"{some}, so nothing is left to train on. Set config.data.copies to keep.")
    if count.documents:
        log(f"{some}, and are left out of training.")
    sizes = {"train_documents": left, "train_bytes": train["bytes"] - count.bytes}
    return {"train_copies": count.documents} | sizes


def _trained(kind: str, built: list[Corpus], weights: list[float]) -> Iterator[dict]:
    """Yields the training records of all sources of a kind."""
    for source, weight in zip(built, weights, strict=True):
        if source.kind == kind and weight:
            yield from (record for _, record in source.records("train"))


def _identity(kind: str, config: dict, tokenizer: tokenizers.Tokenizer, encoder: bool, prefix: tuple) -> list | None:
    """Returns what the examples of a source depend on beside records and tokenizer, or None for text."""
    if kind == kinds.TEXT:
        return None
    identity = [_EXAMPLES, kind, encoder, kinds.KINDS[kind].identity(config[kind], tokenizer, encoder)]
    identity += [list(prefix)] if prefix else []
    known = {channel.name for channel in BASE}
    own = [channel for channel in stored(kinds.channels(kind, config, encoder)) if channel.name not in known]
    return [*identity, {"channels": own}] if own else identity


def _pack_text(source: Corpus, split: str, context: Context, folder: Path, log: Log) -> dict[str, int]:
    """Writes the rows of a split of text, and returns their counts as fields of PreparedSource."""
    held_out = split == "validation"
    counts = pack_texts(source.texts(split), context.tokenizer, context.seq_len, folder, compare=held_out)
    _warn_of_unknown(source.spec, split, counts.unknown, counts.tokens, log)
    if counts.altered:
        log(
            f"warning: {source.spec}: {counts.altered:,} of {source.splits[split]['documents']:,} held-out documents "
            "are not what their tokens decode to, so no bits per byte are reported. A tokenizer of kind bpe or byte is "
            "lossless."
        )
    facts = {f"{split}_rows": counts.rows, f"{split}_tokens": counts.tokens}
    return facts | ({"validation_altered": counts.altered} if held_out else {})


def _pack_nothing(source: Corpus, split: str, context: Context, folder: Path, log: Log) -> dict[str, int]:
    """Writes no rows, for records that are not packed."""
    return {f"{split}_rows": write_rows(folder, ()), f"{split}_tokens": 0}


def _pack_examples(
    source: Corpus,
    split: str,
    context: Context,
    folder: Path,
    log: Log,
    encoding: Encoding,
    channels: Sequence[Channel],
) -> dict[str, int]:
    """Writes the rows of a split of examples, and returns their counts as fields of PreparedSource."""
    counts = pack_records(source.records(split), encoding, context, channels, source.spec, folder)
    if counts.rows:
        places = counts.rows * context.seq_len * (1 + context.encoder)
        log(
            f"{source.spec}: {split}: {counts.tokens:,} tokens, {counts.targets:,} of them with a target, in "
            f"{counts.rows:,} rows that are {100 * counts.tokens / places:.0f} % full."
        )
    _warn_of_unknown(source.spec, split, counts.unknown, counts.tokens, log)
    for note, count in counts.notes.items():
        log(f"{source.spec}: {split}: {count:,} {note}.")
    return {f"{split}_rows": counts.rows, f"{split}_tokens": counts.tokens}


def _warn_of_unknown(spec: str, split: str, unknown: int, tokens: int, log: Log) -> None:
    if unknown:
        share = f"{100 * unknown / tokens:.2g} %"
        log(f"warning: {spec}: {unknown} of {tokens} {split} tokens are unknown to the tokenizer ({share}).")
