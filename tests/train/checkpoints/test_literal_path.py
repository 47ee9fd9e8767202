"""Checkpoints work in folders whose names etils would interpret as patterns or as buckets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.checkpoints.checkpoint import Checkpoints
from train.checkpoints.literal_path import LiteralPath

# (the folder, another one beside it that its name would match as a pattern)
NAMES = [
    ("a[bc]", "ab"),
    ("a*b", "axb"),
    ("a?b", "axb"),
    ("a**b", "ab"),
    ("{a,b}", "a"),
    ("a%41", "aA"),
    ("[!x]*", "a"),
]
NAMES += [(name, "other") for name in ("sp ace", "日本 ü", "q'\"", "$HOME", "#;&|<>()=,@", "-x", ".x", "new\nline")]


@pytest.mark.parametrize(("name", "other"), NAMES)
def test_a_folder_is_taken_by_its_own_name(name, other, tmp_path):
    """Steps of the folder are listed, kept and read, also array by array, and the folder beside it is untouched."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {"w": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=device)}
    for folder, steps in ((other, (7,)), (name, (1, 2, 3))):
        checkpoints = Checkpoints(tmp_path / folder, keep_last=2, keep_best=0)
        for step in steps:
            checkpoints.save_model(step, {"w": jnp.full(3, step, jnp.float32)})
        checkpoints.close()
    for folder, steps in ((other, [7]), (name, [2, 3])):
        checkpoints = Checkpoints(tmp_path / folder, reading=True)
        assert checkpoints.steps() == steps
        for step in steps:
            np.testing.assert_array_equal(checkpoints.restore_model(like, step)["w"], np.full(3, step))
            np.testing.assert_array_equal(dict(checkpoints.restore_arrays(like, step))["w"], np.full(3, step))
        checkpoints.close()
    assert {path.name for path in tmp_path.iterdir()} == {name, other}


def test_a_folder_that_is_called_like_a_kind_of_bucket_is_a_folder():
    path = LiteralPath("/gs/runs") / "mine"
    assert str(path) == "/gs/runs/mine" and isinstance(path, LiteralPath) and not path.exists()
