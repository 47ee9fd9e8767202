"""Two processes compute a reference's log-probabilities together; one writes them, and both find them."""

import json

import jax
import numpy as np
import pytest

from configs import dpo, pretrain_decoder
from data.rows.pack import RowReader
from launch.run.workdirs import Workdir
from launch.train import train
from tests.launch.conftest import shrink
from tests.launch.hosts.test_processes import losses, start


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Gives this process four devices, as many as the two others have together."""
    monkeypatch.setattr(jax, "devices", lambda *args, all=jax.devices: all(*args)[:4])


def stored(data_dir, prepared):
    """Returns the log-probabilities of a folder's training rows."""
    (folder,) = (path for path in (data_dir / "reference_logprobs").iterdir() if path.name[0] != ".")
    (source,) = prepared.sources
    channels = (*source.channels, ("reference_logprobs", "float32", 0))
    channels = tuple(type(source.channels[0])(*channel) for channel in channels)
    (path,) = folder.glob("*/train")
    reader = RowReader(path, prepared.seq_len, channels=channels)
    return reader.read(range(len(reader)))[:, -1].view("<f4")


def test_two_processes_compute_together(corpus, tmp_path):
    base = shrink(pretrain_decoder.get_config(), tmp_path / "data", corpus)
    base.steps, base.checkpoint_every, base.eval_every, base.model.max_length = 3, 3, 0, 192
    base.data.tokenizer.chat = "chatml"
    base.model.num_kv_heads, base.mesh.data = 4, 4
    train(base, tmp_path / "base")
    rows = ({"prompt": f"{i} fox?", "chosen": f"{i} red", "rejected": f"{i} blue"} for i in range(40))
    (tmp_path / "foxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for name, mesh in (("alone", {"fsdp": 2, "tensor": 2}), ("several", {"fsdp": 2, "tensor": 2})):
        data_dir = tmp_path / f"{name}_data"
        config = shrink(dpo.get_config(), data_dir, corpus)
        config.update(init_from=str(tmp_path / "base"), steps=4, eval_every=4, checkpoint_every=4)
        config.data.update(path=str(tmp_path / "foxes.jsonl"), sources=(), split="document", seq_len=128)
        config.data.preferences.template, config.objective.precompute = "chatml", True
        config.model.max_length = 192
        config.mesh.update(mesh)
        if name == "alone":
            assert train(config, tmp_path / name)
        else:
            ended = start(config, tmp_path / name, 2)
            assert [status for status, *_ in ended] == [0, 0], ended
            ended = start(config, tmp_path / "again", 2)  # finds them
            assert [status for status, *_ in ended] == [0, 0], ended
        found[name] = stored(data_dir, Workdir(tmp_path / name).prepared)
    np.testing.assert_allclose(found["alone"], found["several"], rtol=1e-5)
    assert np.abs(found["alone"]).max() > 1
    assert losses(tmp_path / "several") == losses(tmp_path / "again")
    for one, other in zip(losses(tmp_path / "alone"), losses(tmp_path / "several"), strict=True):
        assert one == pytest.approx(other, rel=2e-4)
