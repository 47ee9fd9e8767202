"""Which precision a model of a checkpoint folder has: that of its tensors, whatever config.json says.

Parameters are float32 or bfloat16 (model/config.py), and a checkpoint loses nothing: they are bfloat16 where all
tensors are, and else float32, which holds every value of float16 and of bfloat16. One precision serves the whole model,
so a file of bfloat16 with a few tensors in float32 takes float32 for all. float64 has no place; it is rounded, which is
said.
"""

import re
from collections.abc import Mapping

from model.interop.files.tensorfile import Tensor
from model.interop.table import Table

_FLOAT32 = "/correction"  # parameters that are float32 in a model of any precision (model/experts/moe.py) end so


def param_dtype(tensors: Mapping[str, Tensor], table: Table) -> str:
    """'bfloat16' or 'float32', for the parameters of a model with this table."""
    return "bfloat16" if _found(tensors, table) == {"bfloat16"} else "float32"


def described(tensors: Mapping[str, Tensor], table: Table) -> str:
    """What becomes of the precision of a folder, in words."""
    found, held = sorted(_found(tensors, table)), param_dtype(tensors, table)
    if "float64" in found:
        return f"{held}, rounded from float64"
    return held if found == [held] else f"{held}, which holds the file's {' and '.join(found)} exactly"


def _found(tensors: Mapping[str, Tensor], table: Table) -> set[str]:
    """The dtypes of the tensors that parameters are made of."""
    always = [re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(e.name)) for e in table.entries if e.path.endswith(_FLOAT32)]
    kept = re.compile("|".join([*table.ignored, *always]) or r"(?!)")
    return {tensor.dtype.name for name, tensor in tensors.items() if not kept.fullmatch(table.renamed(name))}
