"""The model with adapters that several files here look at."""

import pytest

from tests.launch.conversion import peft_adapters


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Returns (the folder of a LLaMA, of two adapters of peft and of their workdirs; the model by adapter)."""
    return peft_adapters.make(tmp_path_factory.mktemp("adapters"))
