"""Named meshes have as many chips as their name says, and hold the model that they are meant for."""

import math
import re

import pytest

from configs import pretrain_decoder, pretrain_moe
from configs.parts.meshes import MESHES
from model.config import ModelConfig

PLANNED = {
    "h100_8": "llama3_8b",
    "h100_32": "llama3_70b",
    "h100_32_stages": "llama2_70b",
    "v5e_16": "llama3.2_1b",
    "v5e_2x16": "llama3.2_1b",
    "v5e_256": "llama3_8b",
    "v5p_64": "llama3_8b",
    "v5p_64_context": "llama3.1_8b",
    "v5p_64_experts": "mixtral_8x7b",
    "v5p_512": "llama2_70b",
    "v6e_256": "llama3.1_70b",
}


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_has_its_chips_and_holds_its_model(name):
    make = pretrain_moe if name.endswith("experts") else pretrain_decoder
    config = make.get_config(f"{PLANNED[name]}@{name}")
    chips = re.match(r"[^_]+_([\dx]+)", name)[1]
    sizes = dict(config.mesh)
    assert math.prod(sizes.values()) == math.prod(map(int, chips.split("x")))
    ModelConfig(**config.model.to_dict()).check_mesh(sizes)


def test_a_size_without_a_mesh_takes_every_device():
    assert pretrain_decoder.get_config("tiny").mesh.data == -1


def test_an_unknown_mesh():
    with pytest.raises(ValueError, match=r"unknown mesh 'v5p_63'; configs/parts/meshes\.py has h100_8, "):
        pretrain_decoder.get_config("tiny@v5p_63")
