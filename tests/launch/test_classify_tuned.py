"""Tests classifiers that start from another model and train all of it, an adapter or a prompt."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import pretrain_decoder
from configs.searches import lora as search_lora
from launch.answers.classifier import Classifier
from launch.program.checking import ConfigError
from launch.run import models, restore
from launch.run.workdirs import Workdir
from launch.sweeps import search
from launch.train import train
from model import axes
from model.weights import by_name
from tests.launch.conftest import TEXT, shrink
from tests.launch.test_classify import figures, parameters, small


@pytest.fixture(scope="module")
def language_model(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    (folder / "fox.txt").write_text("".join(TEXT.format(i) for i in range(100)))
    config = shrink(pretrain_decoder.get_config(), data_dir, folder / "fox.txt")
    config.update(steps=2, checkpoint_every=2, eval_every=0)
    config.optimizer.warmup_steps = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *args, all=jax.devices: all(*args)[:1])
        train(config, folder / "run")
    return folder / "run"


def test_a_language_model_becomes_a_classifier_whose_head_is_kept(language_model, news, data_dir, tmp_path, capsys):
    config = small(data_dir, news)
    # A rate of 0, so that it ends with the parameters that it starts with.
    config.init_from, config.optimizer.learning_rate = str(language_model), 0.0
    train(config, tmp_path / "first")
    assert f"begins with the parameters of {language_model}; new: classifier/weight\n" in capsys.readouterr().out
    base, first = parameters(language_model), parameters(tmp_path / "first")
    assert {name for name in first if name not in base} == {"classifier/weight"}
    for name in set(base) & set(first):
        np.testing.assert_array_equal(base[name], first[name])
    assert first["classifier/weight"].shape == (32, 3) and first["classifier/weight"].std() > 0.01

    known, model_config = Workdir(tmp_path / "first").labels, Workdir(tmp_path / "first").architecture
    with axes.use_mesh(axes.make_mesh({"data": 1})):
        model, _, new = restore.pretrained(Workdir(tmp_path / "first"), model_config, 1, known | {"counts": [9, 9, 9]})
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(by_name(model)), first)
        assert not new
        model, _, new = restore.pretrained(
            Workdir(tmp_path / "first"), model_config, 1, known | {"names": ["x", "y", "z"]}
        )
    assert new == ["classifier/weight"]
    assert not np.array_equal(by_name(model)["classifier/weight"], first["classifier/weight"])
    np.testing.assert_array_equal(by_name(model)["norm/scale"], first["norm/scale"])


def test_low_rank_adapters_and_a_new_head_train_over_a_frozen_model(language_model, news, data_dir, tmp_path):
    config = small(data_dir, news, "lora")
    search.check(search_lora.get_search(), config)
    config.init_from, config.adapt.rank, config.steps = str(language_model), 4, 4
    train(config, tmp_path / "run")
    base, tuned = parameters(language_model), parameters(tmp_path / "run")
    trained_here = {name for name in tuned if name.removesuffix("/base") not in base}
    ranks = {tuned[name].shape[-1] for name in trained_here if name.endswith("/a")}
    assert {name for name in trained_here if not name.endswith(("/a", "/b"))} == {"classifier/weight"} and ranks == {4}
    for name, array in tuned.items():
        if name not in trained_here:
            np.testing.assert_array_equal(array, base[name.removesuffix("/base")])
    prepared = Workdir(tmp_path / "run").prepared
    classifier, names = Classifier(Workdir(tmp_path / "run")), Workdir(tmp_path / "run").labels["names"]
    records = list(prepared.records(prepared.sources[0], "validation"))
    said = [names[row.argmax()] for (row,) in classifier((record["text"], None) for record in records)]
    right = [name == record["label"] for name, record in zip(said, records, strict=True)]
    assert np.mean(right) == pytest.approx(figures(tmp_path / "run")["validation/accuracy"])


@pytest.mark.parametrize("architecture", ["decoder", "encoder"])
def test_a_prompt_tuned_classifier_labels_as_its_evaluation_does(news, data_dir, tmp_path, architecture):
    train(small(data_dir, news, architecture), tmp_path / "base")
    config = small(data_dir, news, architecture)
    config.init_from = str(tmp_path / "base")
    config.data.seq_len, config.adapt = 32, ConfigDict({"method": "prompt", "length": 4})  # most texts are cut
    config.optimizer.learning_rate = 0.3  # so that the prompt matters
    train(config, tmp_path / "run")
    prepared = Workdir(tmp_path / "run").prepared
    (source,) = prepared.sources
    held_out = list(prepared.records(source, "validation"))
    classify, names = Classifier(Workdir(tmp_path / "run")), Workdir(tmp_path / "run").labels["names"]
    found = [row for (row,) in classify((record["text"], None) for record in held_out)]
    losses = [-np.log(row[names.index(record["label"])]) for row, record in zip(found, held_out, strict=True)]
    assert np.mean(losses) == pytest.approx(figures(tmp_path / "run")["validation/loss"], rel=1e-4)


def test_mistakes_between_kinds_of_runs(news, tiny, language_model, tmp_path):
    tiny.data.update(path=str(news), format="labels")
    with pytest.raises(ConfigError, match=r"'language' cannot learn, because .* configs/classify\.py"):
        train(tiny, tmp_path / "run")
    tiny.objective.name = "labels"
    with pytest.raises(ConfigError, match=r"z_loss is not a field of objective 'labels', which has label_smoothing, "):
        models.objective(tiny)
    with pytest.raises(ConfigError, match=r"gives no labels; train with --config=configs/classify\.py"):
        Classifier(Workdir(language_model))
