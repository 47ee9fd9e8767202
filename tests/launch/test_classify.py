"""Classifiers from files to labels of new texts, and out to transformers."""

import csv
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers

from configs import classify, pretrain_decoder
from data.batch import DataError
from launch import restore, workdirs
from launch.checking import ConfigError
from launch.classifier import Classifier
from launch.train import train
from model import axes
from model.weights import by_name
from tests.launch.conftest import TEXT, shrink
from train import metrics

TOPICS = {
    "sport": ["ball", "match", "goal", "team"],
    "money": ["bank", "shares", "price", "debt"],
    "sky": ["star", "moon"],
}


def text_of(random, topic) -> str:
    words = ["the", "of", "was", "and", "new", "so"]
    return (
        " ".join(random.choice(TOPICS[topic] if random.random() < 0.4 else words) for _ in range(8))
        + " "
        + TOPICS[topic][0]
    )


@pytest.fixture(scope="module")
def news(tmp_path_factory):
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("news") / "news.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("label", "text"), *((t, text_of(random, t)) for t in list(TOPICS) * 60)])
    return path


def small(data_dir, path, architecture="decoder", **labels):
    config = shrink(classify.get_config("tiny" if architecture == "decoder" else "tiny_encoder"), data_dir, path)
    config.model.num_kv_heads = 4
    config.data.update(sources=(), path=str(path), seq_len=64, split="document")
    config.data.labels.update(labels)
    config.update(eval_rows=0, steps=2, eval_every=2, checkpoint_every=2)
    config.optimizer.warmup_steps = 1
    return config


def figures(workdir) -> dict:
    return [row for row in metrics.read(workdir / "metrics.jsonl") if "validation/loss" in row][-1]


def parameters(workdir) -> dict:
    return jax.device_get(by_name(restore.restore_for_inference(workdir)[1]))


@pytest.fixture(scope="module")
def trained(news, data_dir, tmp_path_factory):
    """A decoder that has learnt the topics, of augmented texts."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    config = small(data_dir, news)
    config.update(steps=48, eval_every=48, checkpoint_every=48, log_every=20)
    config.data.augment.update(delete=0.1, swap=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *args, all=jax.devices: all(*args)[:1])
        train(config, workdir)
    return workdir


def test_a_classifier_learns_and_its_figures_stand_beside_the_most_frequent_class(trained):
    found = figures(trained)
    assert found["validation/accuracy"] > 0.9 > 0.6 > found["validation/majority_accuracy"]
    assert found["validation/macro_f1"] > 0.9 and found["validation/matthews"] > 0.85
    assert not any("unigram" in name or "bits" in name or "perplexity" in name for name in found)
    assert workdirs.labels(trained)["names"] == ["money", "sky", "sport"]
    assert workdirs.contents(trained)[0].num_labels == 3
    assert "most frequent class" in (trained / "report.html").read_text()


def test_new_texts_are_labelled_as_transformers_does(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("launch.classifier.BATCH", 2)
    texts = ["so we lost the ball", "moon and star", "so much debt " * 40, "the bank", "a"]
    found = [row for (row,) in Classifier(trained)((text, None) for text in texts)]
    assert [row.argmax() for row in found[:2]] == [2, 1]
    command = [sys.executable, "-m", "launch.convert", f"--workdir={trained}", f"--to_hf={tmp_path / 'out'}"]
    subprocess.run(command, check=True, capture_output=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert type(model).__name__ == "LlamaForSequenceClassification" and model.config.id2label[0] == "money"
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for side in ("right", "left"):
        words.padding_side = side
        rows = words(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        assert not rows["attention_mask"].all()
        with torch.no_grad():
            scores = model(rows["input_ids"], attention_mask=rows["attention_mask"]).logits.softmax(-1)
        np.testing.assert_allclose(found, scores, atol=1e-4)
    again = [sys.executable, "-m", "launch.convert", f"--from_hf={tmp_path / 'out'}", f"--workdir={tmp_path / 'back'}"]
    subprocess.run(again, check=True, capture_output=True)
    (row,) = next(Classifier(tmp_path / "back")([(texts[0], None)]))
    np.testing.assert_allclose(row, found[0], atol=1e-5)
    assert workdirs.labels(tmp_path / "back") == {"kind": "class", "names": ["money", "sky", "sport"], "read": "last"}


def test_the_commands(trained, tmp_path):
    (tmp_path / "new.csv").write_text('text,id\n"the team, the ball",1\nstar,2\n')
    run = lambda name, *flags: subprocess.run(
        [sys.executable, "-m", f"launch.{name}", f"--workdir={trained}", *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},  # one device
    )
    done = run("classify", f"--file={tmp_path / 'new.csv'}")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(row[0], row[2]) for row in rows] == [("sport", "the team, the ball"), ("sky", "star")], done.stderr
    assert all(0.5 < float(row[1]) <= 1 for row in rows)
    shown = run("evaluate").stdout
    assert "accuracy of always saying the most frequent class" in shown and "Matthews correlation" in shown


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
    config.init_from, config.optimizer.learning_rate = str(language_model), 0.0  # what it begins with, it ends with
    train(config, tmp_path / "first")
    assert f"begins with the parameters of {language_model}; new: classifier/weight\n" in capsys.readouterr().out
    base, first = parameters(language_model), parameters(tmp_path / "first")
    assert {name for name in first if name not in base} == {"classifier/weight"}
    for name in set(base) & set(first):
        np.testing.assert_array_equal(base[name], first[name])
    assert first["classifier/weight"].shape == (32, 3) and first["classifier/weight"].std() > 0.01

    known, model_config = workdirs.labels(tmp_path / "first"), workdirs.contents(tmp_path / "first")[0]
    with axes.use_mesh(axes.make_mesh({"data": 1})):
        model, _, new = restore.pretrained(tmp_path / "first", model_config, 1, known | {"counts": [9, 9, 9]})
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(by_name(model)), first)
        assert not new
        model, _, new = restore.pretrained(tmp_path / "first", model_config, 1, known | {"names": ["x", "y", "z"]})
    assert new == ["classifier/weight"]
    assert not np.array_equal(by_name(model)["classifier/weight"], first["classifier/weight"])
    np.testing.assert_array_equal(by_name(model)["norm/scale"], first["norm/scale"])


def test_numbers(news, data_dir, tmp_path):
    rows = list(csv.DictReader(news.open()))
    path = tmp_path / "lengths.tsv"
    path.write_text("text\tlabel\n" + "\n".join(f"{row['text']}\t{len(row['text']) / 10}" for row in rows))
    train(small(data_dir, path, "encoder", kind="number"), tmp_path / "run")
    found = figures(tmp_path / "run")
    assert found["validation/mse"] == found["validation/loss"] and -1 <= found["validation/pearson"] <= 1
    assert found["validation/mean_mse"] == pytest.approx(np.var([len(row["text"]) / 10 for row in rows]), rel=0.3)
    assert not any("perplexity" in row for row in metrics.read(tmp_path / "run" / "metrics.jsonl"))
    assert workdirs.contents(tmp_path / "run")[0].num_labels == 1
    ((number,),) = next(Classifier(tmp_path / "run")([("some text", None)]))
    assert np.isfinite(number)
    assert "mean of training" in (tmp_path / "run" / "report.html").read_text()


def test_words(data_dir, tmp_path):
    lines = [json.dumps({"tokens": ["in", "Rome", str(i)], "labels": ["O", "PLACE", None]}) for i in range(40)]
    (tmp_path / "words.jsonl").write_text("\n".join(lines))
    config = small(data_dir, tmp_path / "words.jsonl", "encoder", kind="token")
    train(config, tmp_path / "run")
    assert workdirs.contents(tmp_path / "run")[0].head == "token"
    assert "validation/f1" in figures(tmp_path / "run")
    (row,) = Classifier(tmp_path / "run")([(["in", "Oslo", "now"], None)])
    assert row.shape == (3, 2)
    np.testing.assert_allclose(row.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"data.labels.label": "topic"},
            DataError,
            r"line 1: no field 'topic', only label, text; .*data\.labels\.label to",
        ),
        ({"model.head": "token"}, ConfigError, "labels of config.data.labels.kind 'class' need 'sequence'"),
        ({"model.num_labels": 5}, ConfigError, "config.model.num_labels is 5, but the labels need 3"),
        (
            {"data.sources": (("stdlib", 1.0),)},
            ConfigError,
            "'labels' learns from labels alone, and config.data has text",
        ),
        ({"data.augment.mask": 0.1}, DataError, "data.augment.mask hides words, but the tokenizer has no mask token"),
    ],
)
def test_mistakes(news, data_dir, tmp_path, changes, error, message):
    config = small(data_dir, news)
    config.update_from_flattened_dict(changes)
    with pytest.raises(error, match=message):
        train(config, tmp_path / "run")


def test_mistakes_between_kinds_of_runs(news, tiny, language_model, tmp_path):
    tiny.data.update(path=str(news), format="labels")
    with pytest.raises(ConfigError, match=r"'language' can't learn; use --config=configs/classify\.py"):
        train(tiny, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"gives no labels; train with --config=configs/classify\.py"):
        Classifier(language_model)
