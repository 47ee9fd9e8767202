"""Meshes by name. The name goes behind the size: --config=configs/pretrain_decoder.py:llama3_8b@v5p_64

A mesh gives the sizes of the axes of model/axes.py. Their product is the number of chips in the name (2x16: two slices
of 16). The comment after each line names the model that it was planned for with launch.plan. To add a mesh, add a
line; to set one without a name, use --config.mesh.AXIS=SIZE.
"""

MESHES = {
    "h100_8": dict(fsdp=8),  # llama3_8b
    "h100_32": dict(fsdp=32),  # llama3_70b
    "h100_32_stages": dict(stage=4, fsdp=8),  # llama2_70b, one stage per node
    "v5e_16": dict(fsdp=16),  # llama3.2_1b
    "v5e_2x16": dict(data=2, fsdp=16),  # llama3.2_1b
    "v5e_256": dict(fsdp=256),  # llama3_8b
    "v5p_64": dict(fsdp=16, tensor=4),  # llama3_8b
    "v5p_64_context": dict(fsdp=8, context=8),  # llama3.1_8b, rows of 131,072 tokens
    "v5p_64_experts": dict(fsdp=8, expert=8),  # mixtral_8x7b
    "v5p_512": dict(data=8, fsdp=64),  # llama2_70b
    "v6e_256": dict(fsdp=256),  # llama3.1_70b
}


def meshed(name: str) -> dict[str, int]:
    """Returns the sizes of the axes that a named mesh sets, and of `data`: 1 unless the mesh sets it.

    Raises:
      ValueError: the mesh is unknown.
    """
    if name not in MESHES:
        raise ValueError(f"unknown mesh {name!r}; configs/parts/meshes.py has {', '.join(MESHES)}")
    return {"data": 1} | MESHES[name]
