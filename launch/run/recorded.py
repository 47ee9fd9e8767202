"""Writes and reads config.json of a workdir. No other file reads it, so all code gets a config in today's form.

Runs stay readable when fields change. A field that an old config lacks has its default (defaults.py), which is what
runs did before the field existed. CHANGES lists fields that were renamed or got another type. An unknown field is an
error that names it, because ignoring it would silently drop a setting of the run.
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
    """A field that older versions of config.json have under another name or type."""

    version: int  # the first version that has the field as it is now
    was: str  # its name in older versions, with dots
    now: str
    value: Callable[[Any], Any] = lambda value: value  # computes the new value from the old one


VERSION = 1  # of the files that are written; increase it with each entry of CHANGES. Version 0 had no such field.
CHANGES: tuple[Change, ...] = ()  # oldest first

# Entries of config.json that are not fields of a run: the family of an imported model, the folder that it came from,
# whether the import changed its weights, and how a checkpoint of launch.compress stores its quantized weights.
FACTS = ("model_type", "imported_from", "imported_changed", "compress")


def written(config: ConfigDict) -> dict:
    """Returns the content of config.json for a config, in JSON's types."""
    return {"version": VERSION} | json.loads(config.to_json())


def write(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json atomically."""
    files.replace(workdir / NAME, json.dumps(written(config), indent=2) + "\n")


def read(workdir: Path) -> dict:
    """Returns the recorded fields by their current names; fields that the file lacks are left out.

    Raises:
      ConfigError: there is no config of a run, it is damaged or of a later version, or it has an unknown field.
    """
    path = workdir / NAME
    if not path.exists():
        raise ConfigError(f"{workdir} holds no run (no {NAME}); train one: python -m launch.train --workdir=...")
    given = read_json(path)
    if isinstance(given, dict) and "model" not in given and "model_type" in given:
        raise ConfigError(
            f"{workdir} is a checkpoint folder of Hugging Face, not a workdir; convert it: python -m "
            f"launch.convert --from_hf={workdir} --workdir=..."
        )
    if not isinstance(given, dict) or not isinstance(given.get("model"), dict):
        raise ConfigError(
            f"{path} is not the config of a run: it has no block 'model'; restore it, or use a new --workdir"
        )
    return current(given, str(path))


def current(given: dict, where: str) -> dict:
    """Returns recorded fields of any version up to this one in the current form, as `read` does.

    Args:
      given: the fields as recorded.
      where: the file that they are from, for errors.
    """
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
            f"{where} has the field {unknown[0]}, which this code does not know: use the code that wrote it, or remove "
            "the field if it was added by hand"
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
    """Returns the content of a JSON file of a workdir.

    Raises:
      ConfigError: it is not valid JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # also raised for bytes that are not UTF-8
        raise ConfigError(f"{path} is damaged ({error}); restore it, or use a new --workdir") from error
