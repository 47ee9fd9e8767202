"""Tests classifiers: from files to labels of new texts, and exported to transformers."""

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

from configs import classify
from data.batch import DataError
from launch.answers.classifier import Classifier
from launch.program.checking import ConfigError
from launch.run import restore
from launch.run.workdirs import Workdir
from launch.train import train
from model.weights import by_name
from tests.launch.conftest import shrink
from train.record import metrics


def small(data_dir, path, architecture="decoder", **labels):
    argument = {"decoder": "tiny", "encoder": "tiny_encoder"}.get(architecture, architecture)
    config = shrink(classify.get_config(argument), data_dir, path)
    config.model.num_kv_heads = 4
    config.data.update(sources=(), path=str(path), seq_len=64, split="document")
    config.data.labels.update(labels)
    config.update(eval_rows=0, steps=2, eval_every=2, checkpoint_every=2)
    config.optimizer.warmup_steps = 1
    return config


def figures(workdir) -> dict:
    return [row for row in metrics.read(workdir / "metrics.jsonl") if "validation/loss" in row][-1]


def parameters(workdir) -> dict:
    return jax.device_get(by_name(restore.for_inference(Workdir(workdir))[1]))


@pytest.fixture(scope="module")
def trained(news, data_dir, tmp_path_factory):
    """A decoder that learnt the topics from augmented texts."""
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
    assert Workdir(trained).labels["names"] == ["money", "sky", "sport"]
    assert Workdir(trained).architecture.num_labels == 3
    assert "most frequent class" in (trained / "report.html").read_text()


def test_new_texts_are_labelled_as_transformers_does(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("launch.answers.classifier.BATCH", 2)
    texts = ["so we lost the ball", "moon and star", "so much debt " * 40, "the bank", "a"]
    found = [row for (row,) in Classifier(Workdir(trained))((text, None) for text in texts)]
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
    (row,) = next(Classifier(Workdir(tmp_path / "back"))([(texts[0], None)]))
    np.testing.assert_allclose(row, found[0], atol=1e-5)
    assert Workdir(tmp_path / "back").labels == {"kind": "class", "names": ["money", "sky", "sport"], "read": "last"}


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
    (tmp_path / "new.txt").write_text("the ball\x0cteam\u2028goal\r\n\nmoon and star\n")  # two texts
    done = run("classify", f"--file={tmp_path / 'new.txt'}", "--step=48")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(row[0], row[2]) for row in rows] == [("sport", "the ball team goal"), ("sky", "moon and star")], (
        done.stderr
    )
    (tmp_path / "other.jsonl").write_text('{"title": "the ball"}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "the ball"}\n{\n')
    (tmp_path / "none.csv").write_text("text\n")
    for flag, words in (
        ("--text=a --step=7", "holds no step '7'"),
        (
            f"--file={tmp_path / 'other.jsonl'}",
            "line 1: no field 'text', only title; name the fields as in the data of",
        ),
        (f"--file={tmp_path / 'broken.jsonl'}", "broken.jsonl, line 2: "),
        (f"--file={tmp_path / 'none.csv'}", "none.csv holds no texts"),
    ):
        done = run("classify", *flag.split())
        assert done.returncode == 1 and done.stderr.startswith("error: ") and words in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and "config." not in done.stderr
    shown = run("evaluate").stdout
    assert "accuracy of always predicting the most frequent class" in shown and "Matthews correlation" in shown


def test_numbers(news, data_dir, tmp_path):
    rows = list(csv.DictReader(news.open()))
    path = tmp_path / "lengths.tsv"
    path.write_text("text\tlabel\n" + "\n".join(f"{row['text']}\t{len(row['text']) / 10}" for row in rows))
    train(small(data_dir, path, "encoder", kind="number"), tmp_path / "run")
    found = figures(tmp_path / "run")
    assert found["validation/mse"] == found["validation/loss"] and -1 <= found["validation/pearson"] <= 1
    assert found["validation/mean_mse"] == pytest.approx(np.var([len(row["text"]) / 10 for row in rows]), rel=0.3)
    assert not any("perplexity" in row for row in metrics.read(tmp_path / "run" / "metrics.jsonl"))
    assert Workdir(tmp_path / "run").architecture.num_labels == 1
    ((number,),) = next(Classifier(Workdir(tmp_path / "run"))([("some text", None)]))
    assert np.isfinite(number)
    assert "mean of training" in (tmp_path / "run" / "report.html").read_text()


def test_words(data_dir, tmp_path, capsys):
    lines = [json.dumps({"tokens": ["in", "Rome", str(i)], "labels": ["O", "B-PLACE", None]}) for i in range(40)]
    (tmp_path / "words.jsonl").write_text("\n".join(lines))
    config = small(data_dir, tmp_path / "words.jsonl", "encoder", kind="token")
    train(config, tmp_path / "run")
    assert Workdir(tmp_path / "run").architecture.head == "token"
    assert "loss" in (out := capsys.readouterr().out) and "ppl" not in out  # classes have no perplexity
    assert not any("perplexity" in row for row in metrics.read(tmp_path / "run" / "metrics.jsonl"))
    assert {"validation/f1", "validation/entity_f1"} <= figures(tmp_path / "run").keys()
    row, cut = Classifier(Workdir(tmp_path / "run"))([(["in", "Oslo", "now"], None), (["in"] * 40, None)])
    assert row.shape == (3, 2) and cut.shape == (40, 2)
    np.testing.assert_allclose(row.sum(-1), 1, rtol=1e-5)
    fit = (64 - 2 + 1) // 3  # in rows of 64 bytes: "in" and a space, except for the last, and two special tokens
    assert not np.isnan(cut[:fit]).any() and np.isnan(cut[fit:]).all()
    flags = [f"--workdir={tmp_path / 'run'}", f"--text=now {'in ' * 40}"]
    done = subprocess.run([sys.executable, "-m", "launch.classify", *flags], capture_output=True, text=True)
    lines = [line.split("\t") for line in done.stdout.splitlines()[:-1]]
    assert [word for _, _, word in lines] == ["now"] + ["in"] * 40
    assert lines[0][0] in ("O", "B-PLACE") and lines[-1][:2] == ["", ""]
    assert "of 41 words get no label" in done.stderr


PAIRS = [("a b", "hello a"), ("b " * 40, "a x"), ("hello", "x b " * 30), ("x", "b b"), ("a x a", "hello")]


def test_an_imported_pair_classifier_scores_as_in_transformers(data_dir, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "x", "hello"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    theirs.save_pretrained(tmp_path / "hf")
    sizes = dict(vocab_size=9, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(
        transformers.BertConfig(**sizes, max_position_embeddings=32, initializer_range=0.5, num_labels=3)
    ).eval()
    bert.save_pretrained(tmp_path / "hf")
    given = theirs(*zip(*PAIRS, strict=True), truncation="longest_first", max_length=32, padding=True)
    with torch.no_grad():
        expected = bert(**given.convert_to_tensors("pt")).logits.softmax(-1).numpy()
        given["token_type_ids"] *= 0
        assert abs(bert(**given).logits.softmax(-1).numpy() - expected).max() > 0.1  # types matter

    command = lambda name, *flags: subprocess.run(
        [sys.executable, "-m", f"launch.{name}", *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    base = tmp_path / "base"
    command("convert", f"--from_hf={tmp_path / 'hf'}", f"--workdir={base}")
    record = json.loads((base / "config.json").read_text())
    record["model"]["dtype"] = "float32"
    (base / "config.json").write_text(json.dumps(record))
    np.testing.assert_allclose([row for (row,) in Classifier(Workdir(base))(PAIRS)], expected, atol=1e-5)
    done = command("classify", f"--workdir={base}", f"--text={PAIRS[0][0]}", f"--pair={PAIRS[0][1]}")
    label, probability, _ = done.stdout.split("\t")
    assert label == f"LABEL_{expected[0].argmax()}" and float(probability) == pytest.approx(expected[0].max(), abs=1e-4)

    rows = [{"text": one, "other": two, "label": f"LABEL_{i % 3}"} for i, (one, two) in enumerate(PAIRS * 12)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = small(data_dir, tmp_path / "pairs.jsonl", "encoder", pair="other")
    config.init_from, config.optimizer.learning_rate, config.data.seq_len = str(base), 0.0, 32
    train(config, tmp_path / "run")
    prepared = Workdir(tmp_path / "run").prepared
    place = {pair: i for i, pair in enumerate(PAIRS)}
    held_out = list(prepared.records(prepared.sources[0], "validation"))
    true = [expected[place[row["text"], row["pair"]], int(row["label"][-1])] for row in held_out]
    assert figures(tmp_path / "run")["validation/loss"] == pytest.approx(-np.log(true).mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"data.labels.label": "topic"},
            DataError,
            r"line 1: no field 'topic', only label, text; .*data\.labels\.label to",
        ),
        ({"model.head": "token"}, ConfigError, "head is 'token', but config.data.labels.kind 'class' needs 'sequence'"),
        ({"model.num_labels": 5}, ConfigError, "config.model.num_labels is 5, but the labels need 3"),
        (
            {"data.sources": (("stdlib", 1.0),)},
            ConfigError,
            "'labels' can learn only from labels, but config.data also has text",
        ),
        ({"data.augment.mask": 0.1}, DataError, "data.augment.mask masks words, but the tokenizer has no mask token"),
    ],
)
def test_mistakes(news, data_dir, tmp_path, changes, error, message):
    config = small(data_dir, news)
    config.update_from_flattened_dict(changes)
    with pytest.raises(error, match=message):
        train(config, tmp_path / "run")
