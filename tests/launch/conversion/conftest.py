"""The model with adapters that several test files here share."""

import pytest

from tests.launch.conversion import peft_adapters


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Returns (a folder with a LLaMA, two adapters of peft and their workdirs; transformers' models by adapter)."""
    return peft_adapters.make(tmp_path_factory.mktemp("adapters"))
