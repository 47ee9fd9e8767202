"""config.json of a workdir: written here, and read here alone, so that whoever asks gets a config of today.

A run outlives new fields: what its config lacks has its default (defaults.py), which says what runs did before there
was the field. A field that was renamed, or whose values are of another type now, stands in CHANGES. A field that is
neither known nor there is refused by name, for what it asked for would be left out in silence.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data import files
from launch.program.checking import ConfigError
from launch.run import defaults, ranges
from model.config import ModelConfig

NAME = "config.json"


class Change(NamedTuple):
    """A field that older versions of config.json have otherwise."""

    version: int  # the first one that has it as it is now
    was: str  # its name there, with dots
    now: str
    value: Callable[[Any], Any] = lambda value: value  # its value now, from the one there


VERSION = 1  # what is written; raise it with each entry of CHANGES. Before 1 config.json did not say its version.
CHANGES: tuple[Change, ...] = ()  # in the order in which they came

# What config.json says beside the fields of a run: of which family a model was, from which folder it was imported, and
# whether its weights were changed for that; and how its checkpoint keeps weights that launch.compress has quantized.
FACTS = ("model_type", "imported_from", "imported_changed", "compress")


def written(config: ConfigDict) -> dict:
    """A config as it is recorded, in JSON's types."""
    return {"version": VERSION} | json.loads(config.to_json())


def write(workdir: Path, config: ConfigDict) -> None:
    files.replace(workdir / NAME, json.dumps(written(config), indent=2) + "\n")


def read(workdir: Path) -> dict:
    """The recorded fields, by the names that they have today; those that are not there are left out.

    Raises:
      ConfigError: there is no config of a run, it is damaged or of a later version, or has a field that nobody knows.
    """
    path = workdir / NAME
    if not path.exists():
        raise ConfigError(f"{workdir} holds no run (no {NAME}); train one: python -m launch.train --workdir=...")
    given = read_json(path)
    if isinstance(given, dict) and "model" not in given and "model_type" in given:
        raise ConfigError(
            f"{workdir} is a checkpoint folder of Hugging Face and no workdir; make one of it: python -m "
            f"launch.convert --from_hf={workdir} --workdir=..."
        )
    if not isinstance(given, dict) or not isinstance(given.get("model"), dict):
        raise ConfigError(f"{path} is no config of a run: it has no block 'model'; restore it, or use a new --workdir")
    return current(given, str(path))


def current(given: dict, where: str) -> dict:
    """Fields that were recorded in `where`, by any version up to this one, as `read` gives them."""
    fields = dict(given)
    version = fields.pop("version", 0)
    if type(version) is not int or version > VERSION:
        raise ConfigError(
            f"{where} is of version {version!r}, and this code reads versions up to {VERSION}: use the code that wrote "
            "it, or a later one"
        )
    fields = _changed(fields, [change for change in CHANGES if change.version > version], where)
    if unknown := _unknown(fields):
        raise ConfigError(
            f"{where} has the field {unknown[0]}, which nothing here reads: use the code that wrote it; if it was put "
            "in by hand, take it out"
        )
    return fields


def _changed(fields: dict, changes: Sequence[Change], where: str) -> dict:
    fields = json.loads(json.dumps(fields))
    for change in changes:
        *blocks, name = change.was.split(".")
        inside: Any = fields
        for block in blocks:
            inside = inside.get(block)
            inside = inside if isinstance(inside, dict) else {}
        if name not in inside:
            continue
        value = inside.pop(name)
        try:
            value = change.value(value)
        except (TypeError, ValueError, LookupError) as error:
            raise ConfigError(f"{where}: {change.was} is {value!r}, which {change.now} can't hold ({error})") from error
        *blocks, name = change.now.split(".")
        inside = fields
        for block in blocks:
            inside = inside.setdefault(block, {})
        inside[name] = value
    return fields


def _unknown(fields: dict) -> list[str]:
    known_of_model = {field.name for field in dataclasses.fields(ModelConfig)}
    of_the_run = {name: value for name, value in fields.items() if name not in FACTS}
    found = [name for name in defaults.flat(of_the_run) if not ranges.known(name)]
    return found + [f"model.{name}" for name in fields["model"] if name not in known_of_model]


def read_json(path: Path) -> Any:
    """What a file of a workdir says."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # also of bytes that are no text
        raise ConfigError(f"{path} is damaged ({error}); restore it, or use a new --workdir") from error
