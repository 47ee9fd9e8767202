"""Tests mistakes of users: the error names valid values, and comes before anything is created."""

import contextlib
import subprocess
import sys

import pytest

from data.batch import DataError
from launch.program.checking import ConfigError
from launch.run import continuing
from launch.run.workdirs import Workdir
from launch.train import train
from tests.launch.conftest import refused
from tests.launch.test_train import ROOT


@pytest.mark.parametrize(
    ("metric", "field", "refused"),
    [
        ("validation/loss", "eval_rows", True),
        ("validation/loss", "eval_every", False),
        ("validation/loss", "grade.rows", False),
        ("validation/wiki/rouge1", "grade.rows", True),
        ("validation/wiki/rouge1", "grade.metrics", False),
        ("validation/loss", "safety.max_new_tokens", False),
        ("validation/zh/harmful_answered", "safety.max_new_tokens", True),
    ],
)
def test_what_ranks_evaluations_stays_as_it_was(metric, field, refused, tiny, tmp_path):
    """Figures of different examples can't be compared with the best so far."""
    tiny.early_stopping.metric, tiny.grade.metrics = metric, "bleu, rouge"
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "config.json").write_text(tiny.to_json())
    continuing.check(Workdir(tmp_path), tiny)
    tiny.update_from_flattened_dict({field: {"grade.metrics": "rouge"}.get(field, 7)})
    with pytest.raises(ConfigError, match=f"{field}: .* there, 7 now") if refused else contextlib.nullcontext():
        continuing.check(Workdir(tmp_path), tiny)


def test_refuses_before_anything_is_made(tiny, tmp_path):
    """Each error names valid values, and no workdir is left behind."""
    cases = [
        (dict(batch_size=6, accumulate=4), ("batch_size 6", "accumulate=4", "4, 8")),
        ({"model.num_heads": 3}, ("num_heads 3",)),
        ({"model.norm": "batchnorm"}, ("model.norm", "rmsnorm")),
        ({"optimizer.name": "adan"}, ("optimizer.name", "adamw")),
        ({"optimizer.schedule": "linear"}, ("optimizer.schedule", "cosine")),
        ({"optimizer.warmup_steps": 100}, ("warmup_steps is 100",)),
        ({"objective.name": "gan"}, ("objective.name", "language")),
        ({"data.corruption.kind": "masked"}, ("corruption.kind is 'masked'", "decoder", "'none'")),
        (
            {"model.architecture": "encoder", "model.head": "token", "data.corruption.kind": "masked"},
            ("model.head is 'token'", "no token logits"),
        ),
        ({"mesh.fsdp": 3}, ("config.mesh", "1 devices")),
        ({"data.seq_len": 128}, ("seq_len 128", "max_length 64")),
        ({"data.sources": (("files:/nowhere/*.txt", 1.0),)}, ("/nowhere/*.txt",)),
    ]
    for changes, words in cases:
        config = tiny.copy_and_resolve_references()
        config.update_from_flattened_dict({k: v for k, v in changes.items() if "." in k})
        config.update({k: v for k, v in changes.items() if "." not in k})
        refused(config, tmp_path / "run", (ConfigError, DataError), *words)
        assert not (tmp_path / "run").exists(), words


def test_unknown_model_field(tiny, tmp_path):
    with tiny.model.unlocked():
        tiny.model.embed_dims = 3
    refused(tiny, tmp_path / "run", ConfigError, "embed_dims", "did you mean embed_dim?")


def test_vocabulary_that_does_not_fit(tiny, tmp_path):
    tiny.model.vocab_size = 100
    refused(tiny, tmp_path / "run", ConfigError, "vocab_size is 100", "257")


def test_cli_prints_one_line_for_a_mistake(tmp_path):
    """There is no traceback for an unknown field, a missing config, a script started by path, or a missing run."""
    workdir, broken = f"--workdir={tmp_path / 'run'}", tmp_path / "broken.py"
    broken.write_text("def get_config():\n    return {}['absent']\n")
    cases = [
        (
            ["-m", "launch.train", "--config=configs/quickstart.py", workdir, "--config.optimizer.lerning_rate=1"],
            "the config has no field 'lerning_rate'. Did you mean",
        ),
        (
            ["-m", "launch.train", "--config=configs/quickstart.py", workdir, "--config.model.experts=1"],
            "the config has no field 'experts'; flags can only change fields that it has",
        ),
        (
            ["-m", "launch.train", "--config=configs/quickstart.py", workdir, "--config.optimizer.learning_rate=nan"],
            "error: config.optimizer.learning_rate is nan; it must be a number of at least 0",
        ),
        (
            ["-m", "launch.train", "--config=configs/quickstart.py", workdir, "--config.accumulate=1.5"],
            "invalid literal for int() with base 10: '1.5'",
        ),
        (
            ["-m", "launch.train", "--config=configs/lorra.py", workdir],
            "error: there is no config file configs/lorra.py; did you mean configs/lora.py?",
        ),
        (
            ["-m", "launch.train", "--config=configs/quickstart.py:small", workdir],
            "error: configs/quickstart.py takes no argument: leave the colon and what follows it out",
        ),
        (["-m", "launch.train", f"--config={broken}", workdir], "broken.py, line 2: KeyError: absent"),
        (["-m", "launch.train", "--config=configs/pretrain_decoder.py:gpt5", workdir], "gpt5"),
        (["launch/train.py", "--config=configs/quickstart.py", workdir], "python -m launch.train"),
        (["-m", "launch.generate", workdir, "--prompt=a"], "holds no run"),
    ]
    for arguments, words in cases:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode != 0
        assert words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr, done.stderr


def test_steps_of_another_config_are_not_written_over(tiny, tmp_path):
    """Also if the run has saved no checkpoint, because its logged steps belong to its config."""
    tiny.steps, tiny.checkpoint_every, tiny.eval_every = 3, 0, 0
    train(tiny, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    tiny.optimizer.learning_rate = 0.5
    refused(tiny, tmp_path, ConfigError, "3 steps, without a checkpoint, of a run of another config", "learning_rate")
    assert (tmp_path / "metrics.jsonl").read_text() == before
