"""The precision of a model from a checkpoint folder: its tensors decide, whatever config.json says.

Parameters are float32 or bfloat16 (model/config.py), and reading loses nothing. They are bfloat16 if all tensors are,
and otherwise float32, which represents float16 and bfloat16 exactly. One precision holds for the whole model, so a
bfloat16 file with a few float32 tensors becomes all float32. float64 is not supported; it is rounded to float32, and
`described` reports it.
"""

import re
from collections.abc import Mapping

from model.interop.files.tensorfile import Tensor
from model.interop.table import Table

_FLOAT32 = "/correction"  # path suffix of parameters that are float32 in every model (model/experts/moe.py)


def param_dtype(tensors: Mapping[str, Tensor], table: Table) -> str:
    """Returns 'bfloat16' or 'float32', for the parameters of a model with this table."""
    return "bfloat16" if _found(tensors, table) == {"bfloat16"} else "float32"


def described(tensors: Mapping[str, Tensor], table: Table) -> str:
    """Returns a description of the precision and what it means for the folder's tensors."""
    found, held = sorted(_found(tensors, table)), param_dtype(tensors, table)
    if "float64" in found:
        return f"{held}, rounded from float64"
    return held if found == [held] else f"{held}, which holds the file's {' and '.join(found)} exactly"


def _found(tensors: Mapping[str, Tensor], table: Table) -> set[str]:
    """Returns the dtypes of the tensors that parameters come from."""
    always = [re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(e.name)) for e in table.entries if e.path.endswith(_FLOAT32)]
    kept = re.compile("|".join([*table.ignored, *always]) or r"(?!)")
    return {tensor.dtype.name for name, tensor in tensors.items() if not kept.fullmatch(table.renamed(name))}
