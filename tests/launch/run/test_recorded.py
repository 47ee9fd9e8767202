"""Tests config.json across versions: new fields, renamed ones, ones of another type, and errors."""

import dataclasses
import json
import tarfile
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import classify, lora, prompt, qlora
from configs.parts.defaults import DEFAULTS
from data.examples import kinds
from data.rows import augment, corrupt
from launch.convert import export
from launch.program.checking import ConfigError
from launch.run import continuing, defaults, models, recorded
from launch.run.defaults import flat
from launch.run.workdirs import Workdir
from launch.sweeps.trials import Trials
from launch.train import train
from model.config import ModelConfig
from tests.launch.conftest import refused
from train.objectives import table

RECORDED = Path(__file__).parent / "recorded.tar.xz"


def holding(workdir, config, change=lambda fields: None):
    """Returns a workdir with a checkpoint folder and the config as it is recorded today, edited by `change`."""
    fields = recorded.written(config)
    change(fields)
    (workdir / "checkpoints" / "4").mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(fields))
    return Workdir(workdir)


def without(*names):
    """Returns a function that removes these fields or blocks from a record."""

    def change(fields):
        for name in names:
            *blocks, last = name.split(".")
            inside = fields
            for block in blocks:
                inside = inside[block]
            del inside[last]

    return change


@pytest.mark.parametrize("name", ["check_every", "data.copies", "optimizer.offload", "watchdog", "model.context"])
def test_a_run_that_is_older_than_a_field_goes_on_with_its_default(name, tiny, tmp_path):
    there = holding(tmp_path, tiny, without("version", name))
    continuing.check(there, tiny)
    assert flat(there.config.to_dict()).items() >= flat({name: flat(DEFAULTS).get(name, DEFAULTS.get(name))}).items()
    if name == "data.copies":
        tiny.data.copies = "drop"
        with pytest.raises(ConfigError, match=r"data\.copies: 'keep' there, 'drop' now"):
            continuing.check(there, tiny)


@pytest.mark.parametrize("name", [name for name in flat(DEFAULTS) if name not in ("train_only", "data.sources")])
def test_a_run_that_lacks_a_field_is_refused_where_the_default_is_not_what_the_config_says(name, tiny, tmp_path):
    """This holds for every field, except those that a continued run may change."""
    tiny.update_from_flattened_dict({name: (value := flat(DEFAULTS)[name])})
    changed = {bool: lambda v: not v, str: lambda v: f"{v} other", tuple: lambda v: (*v, "a")}
    other = changed.get(type(value), lambda v: v + 1)(value)
    there = holding(tmp_path, tiny, without(name))
    if name in ("objective.name", "adapt.method", "data.corruption.kind"):
        other = {"objective.name": "labels", "adapt.method": "lora", "data.corruption.kind": "masked"}[name]
    continuing.check(there, tiny)
    tiny.update_from_flattened_dict({name: other})
    free = (*continuing.FREE_TO_CHANGE, "grade", "safety")
    if f"{name}.".startswith(tuple(f"{other}." for other in free)):
        continuing.check(there, tiny)
        return
    with pytest.raises(ConfigError) as caught:
        continuing.check(there, tiny)
    assert f"\n  {name}: {json.loads(json.dumps(value))!r} there, {json.loads(json.dumps(other))!r} now" in str(
        caught.value
    )


def test_a_field_has_one_default():
    """configs/ imports nothing, so it repeats the defaults of the code that reads each field; both must agree."""
    of_model = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    assert DEFAULTS["model"].items() <= of_model.items()
    assert {name: dict(kind.fields) for name, kind in kinds.KINDS.items()}.items() <= DEFAULTS["data"].items()
    assert DEFAULTS["data"]["augment"] == augment.FIELDS
    assert corrupt.FIELDS[DEFAULTS["data"]["corruption"]["kind"]] == {}
    assert table.fields("language") | {"name": "language"} == DEFAULTS["objective"]


@pytest.mark.parametrize("config", [classify, lora, qlora, prompt])
def test_a_block_whose_fields_its_name_chooses_has_the_defaults_of_its_reader(config):
    """Not those of configs/: a recorded method without a rank gets the default rank of the method itself."""
    whole = json.loads(config.get_config().to_json())
    method, objective = whole["adapt"]["method"], whole["objective"]["name"]
    bare = whole | {"adapt": {"method": method}, "objective": {"name": objective}}
    found = ConfigDict(defaults.completed(bare))
    assert flat(found.to_dict()).keys() >= flat(whole).keys()
    assert models.tuning(found) == models.tuning(ConfigDict(bare))
    assert found.objective.to_dict() == whole["objective"]
    assert found.adapt.get("alpha") == (8.0 if method == "lora" else None)  # configs/parts/methods.py has 16


def test_a_renamed_field_keeps_its_value(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "VERSION", 3)
    changes = [recorded.Change(2, "lr", "optimizer.peak"), recorded.Change(3, "optimizer.peak", "optimizer.final")]
    monkeypatch.setattr(recorded, "CHANGES", tuple(changes))
    tiny.optimizer.final = 0.25

    def old(version):
        def change(fields):
            value = fields["optimizer"].pop("final")
            fields["version"] = version
            if version < 2:
                fields["lr"] = value
            else:
                fields["optimizer"]["peak"] = value
            if not version:
                del fields["version"]

        return change

    for version in (0, 1, 2):
        there = holding(tmp_path, tiny, old(version))
        continuing.check(there, tiny)
        assert there.config.optimizer.final == 0.25
    tiny.optimizer.final = 0.5
    with pytest.raises(ConfigError, match=r"optimizer\.final: 0\.25 there, 0\.5 now"):
        continuing.check(there, tiny)
    there = holding(tmp_path, tiny, without("optimizer.final"))  # in a config of today's version: its default
    assert there.config.optimizer.final == DEFAULTS["optimizer"]["final"]
    there = holding(tmp_path, tiny, lambda fields: fields.update(lr=0.25))  # an old name in a config of today's version
    with pytest.raises(ConfigError, match=r"config\.json has the field lr, which this code does not know"):
        _ = there.config


def test_a_field_of_another_type_is_turned_into_it(tiny, tmp_path, monkeypatch):
    """Also if its name becomes the name of a block."""
    monkeypatch.setattr(recorded, "VERSION", 2)
    seconds = recorded.Change(2, "watchdog", "watchdog.seconds", float)
    monkeypatch.setattr(recorded, "CHANGES", (seconds, recorded.Change(2, "spike", "spike", lambda on: 10.0 * on)))
    there = holding(tmp_path, tiny, lambda fields: fields.update(version=1, watchdog="60", spike=True))
    assert (there.config.spike, there.config.watchdog.seconds, there.config.watchdog.barrier) == (10.0, 60.0, 600.0)
    there = holding(tmp_path, tiny, lambda fields: fields.update(version=1, watchdog="soon"))
    with pytest.raises(ConfigError, match=r"config\.json: watchdog is 'soon', which watchdog\.seconds can't hold"):
        _ = there.config


@pytest.mark.parametrize("version", [recorded.VERSION + 1, 99, "1", None, 1.5, True])
def test_a_later_version_is_refused(version, tiny, tmp_path):
    holding(tmp_path, tiny, lambda fields: fields.update(version=version))
    words = (f"{tmp_path / 'config.json'} is of version {version!r}", f"versions up to {recorded.VERSION}", "later one")
    refused(tiny, tmp_path, ConfigError, *words)


@pytest.mark.parametrize(
    "name", ["learning_rate", "optimizer.weight_decy", "model.embed_dims", "data.tokenizer.kinds", "watchdog.second"]
)
def test_a_field_that_nobody_knows_is_refused_by_name(name, tiny, tmp_path):
    def change(fields):
        *blocks, last = name.split(".")
        for block in blocks:
            fields = fields[block]
        fields[last] = 1

    holding(tmp_path, tiny, change)
    refused(
        tiny, tmp_path, ConfigError, f"{tmp_path / 'config.json'} has the field {name}, which this code does not know"
    )


@pytest.mark.parametrize("text", ["[1]", "{}", '{"model": 3}', "", "\x00", '{"model": '])
def test_what_is_no_config_of_a_run_is_refused(text, tiny, tmp_path):
    holding(tmp_path, tiny)
    (tmp_path / "config.json").write_text(text)
    refused(tiny, tmp_path, ConfigError, f"{tmp_path / 'config.json'} is ", "restore it, or use a new --workdir")


def test_a_model_without_a_run_has_read_nothing(tmp_path):
    fields = {"model": dict(vocab_size=320, num_layers=2, embed_dim=16, num_heads=4, mlp_dim=32, max_length=64)}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"model_type": "llama", "imported_from": "/there"}))
    config = Workdir(tmp_path).config
    assert (list(config.data.sources), config.data.seq_len, config.init_from, config.model_type) == (
        [],
        64,
        "",
        "llama",
    )
    assert Workdir(tmp_path).record.keys() == {"model", "model_type", "imported_from"}


def test_a_sweep_that_is_older_than_a_field_goes_on(tiny, tmp_path):
    space = {"optimizer.learning_rate": ("choice", 1e-3, 1e-2)}
    study = Trials(tiny, space, tmp_path / "sweep", "grid").study
    kept = study.user_attrs["sweep"]
    assert kept.pop("version") == recorded.VERSION and kept["data"].pop("copies") == "keep"
    study.set_user_attr("sweep", kept)
    Trials(tiny, space, tmp_path / "sweep", "grid")
    tiny.data.copies = "drop"
    with pytest.raises(ConfigError, match=r"holds another sweep(.|\n)*data\.copies: 'keep' there, 'drop' now"):
        Trials(tiny, space, tmp_path / "sweep", "grid")


def test_recorded_configs_have_every_field():
    """Configs of all kinds of runs, recorded by older code, are complete with their defaults."""
    count = 0
    with tarfile.open(RECORDED) as archive:
        for member in archive:
            if member.name.endswith("config.json"):
                given = json.load(archive.extractfile(member))
                found = defaults.completed(recorded.current(given, member.name))
                assert flat(found).items() >= flat(given).items()
                assert all(name in flat(found) for name in flat(DEFAULTS) if not name.startswith("objective."))
                count += 1
    assert count == 13


def test_a_config_is_read_once(tiny, tmp_path, monkeypatch):
    """Each workdir of a command is read once, however many files of launch/ need it."""
    tiny.update(steps=3, eval_every=0, checkpoint_every=3)
    train(tiny, tmp_path / "base")
    reads, read = [], recorded.read
    monkeypatch.setattr(recorded, "read", lambda workdir: reads.append(workdir) or read(workdir))
    over = lora.get_config()
    over.update(init_from=str(tmp_path / "base"), data=tiny.data, mesh=tiny.mesh, optimizer=tiny.optimizer)
    over.update(steps=3, batch_size=8, eval_every=0, checkpoint_every=3)
    train(over, tmp_path / "run")
    assert reads == [tmp_path / "base"]
    reads.clear()
    train(over, tmp_path / "run")  # which is done
    assert sorted(reads) == [tmp_path / "base", tmp_path / "run"]
    reads.clear()
    export(tmp_path / "run", tmp_path / "out", merge=True)
    assert sorted(reads) == [tmp_path / "base", tmp_path / "run"]
