"""The small random models of tests/launch/judging, and a second one that talks."""

import pytest

from configs import sft
from tests.launch.judging.conftest import made, rewarder, talker  # noqa: F401


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    return made(sft.get_config(), tmp_path_factory.mktemp("other") / "run", seed=5)
