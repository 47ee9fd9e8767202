"""The small random models of tests/launch/judging, for tests that sample from them."""

from tests.launch.judging.conftest import rewarder, talker  # noqa: F401
