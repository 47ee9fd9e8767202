"""Counts the matmul FLOPs of a traced step by walking its jaxpr with trip counts.

XLA's `cost_analysis` counts the body of a scan once, whatever its length. Here each matmul counts as often as it runs,
at 2 FLOPs per multiply-add, including recomputation. Non-matmul ops (norms, softmax, the optimizer) are left out,
because they need only a few FLOPs per element. On an Explicit mesh, types show how each operand is sharded, so the work
of one device is known before compilation.

Rules: a scan runs its body `length` times. A while loop runs as often as its counter says if that is constant, else it
counts once, with a note. Of a cond, the most expensive branch counts. The body of a shard_map has the shapes of one
device along its manual axes. A Pallas kernel counts its `cost_estimate`; without one, its body counts for each point of
its grid with the most expensive branch of each cond, which is an upper bound if blocks are skipped. cuDNN attention
counts its 2 forward and 5 backward matmuls in full, also if it is causal.
"""

import dataclasses
import math
from collections.abc import Mapping

from jax.extend import core

_CUDNN = {"dot_product_attention_fwd": 2, "dot_product_attention_bwd": 5}


@dataclasses.dataclass(frozen=True)
class Product:
    """A matmul on one device, and how often it runs in a step."""

    name: str  # of the primitive
    dims: tuple[int, int, int, int]  # batch, rows, columns, contracted: sizes on one device
    split: int  # number of devices that share the whole matmul; further devices repeat the same work
    nbytes: float  # bytes of operands and result on one device
    runs: int  # per step

    @property
    def flops(self) -> float:
        """FLOPs on one device, per run."""
        return 2.0 * math.prod(self.dims)


@dataclasses.dataclass
class Work:
    products: list[Product]
    notes: list[str]  # messages about work that could not be counted exactly

    @property
    def total(self) -> float:
        """FLOPs of a step over all devices. Work that several devices repeat counts once."""
        return sum(product.flops * product.split * product.runs for product in self.products)

    @property
    def per_device(self) -> float:
        return sum(product.flops * product.runs for product in self.products)


def count(jaxpr: core.ClosedJaxpr, mesh_shape: Mapping[str, int] | None = None) -> Work:
    """Returns the matmuls of a traced step.

    Args:
      jaxpr: of jax.make_jaxpr(step)(...) or jitted_step.trace(...).jaxpr.
      mesh_shape: axis sizes of the mesh under which it was traced; None without a mesh.
    """
    work = Work([], [])
    _walk(jaxpr.jaxpr, 1, 1, dict(mesh_shape or {}), work)
    return work


def _walk(jaxpr, runs: int, manual: int, mesh: Mapping[str, int], work: Work) -> None:
    """Adds the matmuls of a jaxpr to `work`. `manual` is the number of devices along the manual axes around it."""
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            work.products.append(_dot(eqn, runs, manual, mesh))
        elif name.startswith("ragged_dot"):
            work.products.append(_ragged(eqn, runs, manual, mesh))
        elif name == "conv_general_dilated":
            work.products.append(_convolution(eqn, runs, manual, mesh))
        elif passes := next((n for key, n in _CUDNN.items() if name.startswith(key)), 0):
            work.products.append(_cudnn(eqn, passes, runs, manual, mesh))
        elif name == "scan":
            _walk(params["jaxpr"].jaxpr, runs * params["length"], manual, mesh, work)
        elif name == "while":
            trips = _trips(eqn)
            if trips is None:
                work.notes.append("a while loop whose trip count is not constant was counted once")
            _walk(params["body_jaxpr"].jaxpr, runs * (trips or 1), manual, mesh, work)
        elif name == "cond":
            branches = []
            for branch in params["branches"]:
                branches.append(Work([], work.notes))
                _walk(branch.jaxpr, runs, manual, mesh, branches[-1])
            work.products += max(branches, key=lambda branch: branch.per_device).products
        elif name == "shard_map":
            size = math.prod(dict(params["mesh"].shape)[axis] for axis in params["newly_manual_axes"])
            _walk(params["jaxpr"], runs, manual * size, mesh, work)
        elif name == "pallas_call":
            _kernel(eqn, runs, manual, mesh, work)
        else:
            for inner in _inner(params):
                _walk(inner, runs, manual, mesh, work)


def _inner(params):
    """Yields the jaxprs that an equation runs once: those of jit, remat, custom_vjp_call and the like."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def _axes(aval) -> list[tuple[str, ...]]:
    """Returns the mesh axes over which each dim of an array is split."""
    spec = tuple(getattr(getattr(aval, "sharding", None), "spec", ()))
    names = [(entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec]
    return names + [()] * (aval.ndim - len(names))


def _local(aval, mesh) -> float:
    parts = math.prod(mesh.get(name, 1) for names in _axes(aval) for name in names)
    return aval.size * aval.dtype.itemsize / parts


def _product(eqn, groups, runs, manual, mesh) -> Product:
    """Returns the matmul of an equation.

    Args:
      groups: for each of the four kinds of dims (batch, rows, columns, contracted) a list of dims, each as the places
        [(operand or result, dim), ...] where it occurs. Contracted dims are split as in the operands. Other dims are
        split as in the result, except over the axes of contracted dims, because the reduction over these comes after
        the matmul.
    """
    result = eqn.outvars[0].aval
    contracted = {name for places in groups[3] for aval, dim in places for name in _axes(aval)[dim]}
    dims, split = [], manual
    for occurrences in groups:
        size = 1
        for places in occurrences:
            if occurrences is groups[3]:
                names = {name for aval, dim in places for name in _axes(aval)[dim]}
            else:
                names = {name for aval, dim in places if aval is result for name in _axes(aval)[dim]} - contracted
            parts = math.prod(mesh.get(name, 1) for name in names)
            size, split = size * -(-places[0][0].shape[places[0][1]] // parts), split * parts
        dims.append(size)
    avals = [var.aval for var in (*eqn.invars[:2], *eqn.outvars)]
    return Product(
        eqn.primitive.name, (dims[0], dims[1], dims[2], dims[3]), split, sum(_local(aval, mesh) for aval in avals), runs
    )


def _dot(eqn, runs, manual, mesh) -> Product:
    left, right, out = eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval
    (left_in, right_in), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    rows = [dim for dim in range(left.ndim) if dim not in (*left_in, *left_batch)]
    columns = [dim for dim in range(right.ndim) if dim not in (*right_in, *right_batch)]
    n, m = len(left_batch), len(rows)
    groups = (
        [[(left, a), (right, b), (out, i)] for i, (a, b) in enumerate(zip(left_batch, right_batch, strict=True))],
        [[(left, dim), (out, n + i)] for i, dim in enumerate(rows)],
        [[(right, dim), (out, n + m + i)] for i, dim in enumerate(columns)],
        [[(left, a), (right, b)] for a, b in zip(left_in, right_in, strict=True)],
    )
    return _product(eqn, groups, runs, manual, mesh)


def _ragged(eqn, runs, manual, mesh) -> Product:
    """Returns a ragged matmul. Each row is multiplied only with the matrix of its group, so groups add no FLOPs."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (left_in, right_in), (left_batch, right_batch) = numbers.dot_dimension_numbers
    left, right = eqn.invars[0].aval, eqn.invars[1].aval
    rows = [dim for dim in range(left.ndim) if dim not in (*left_in, *left_batch)]
    columns = [dim for dim in range(right.ndim) if dim not in (*right_in, *right_batch, *numbers.rhs_group_dimensions)]
    out, n, m = eqn.outvars[0].aval, len(left_batch), len(rows)
    g = out.ndim - n - m - len(columns)  # 1 if the result has a dim of groups, which it has if rows are contracted
    groups = (
        [[(left, dim), (out, g + i)] for i, dim in enumerate(left_batch)],
        [[(left, dim), (out, g + n + i)] for i, dim in enumerate(rows)],
        [[(right, dim), (out, g + n + m + i)] for i, dim in enumerate(columns)],
        [[(left, dim)] for dim in left_in],
    )
    return _product(eqn, groups, runs, manual, mesh)


def _convolution(eqn, runs, manual, mesh) -> Product:
    kernel, out = eqn.invars[1].aval, eqn.outvars[0].aval
    numbers = eqn.params["dimension_numbers"]
    taps = [dim for dim in range(kernel.ndim) if dim != numbers.rhs_spec[0]]  # input features of a group, and space
    places = [dim for dim in range(out.ndim) if dim != numbers.out_spec[1]]
    groups: tuple[list, ...] = (
        [],
        [[(out, dim)] for dim in places],
        [[(out, numbers.out_spec[1])]],
        [[(kernel, dim)] for dim in taps],
    )
    return _product(eqn, groups, runs, manual, mesh)


def _cudnn(eqn, passes, runs, manual, mesh) -> Product:
    """Queries and keys are [B, T, N, H]."""
    q, k, out = eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval
    groups = ([[(out, 0)], [(out, 2)]], [[(out, 1)]], [[(k, 1)]], [[(q, 3)]])
    return _product(eqn, groups, runs * passes, manual, mesh)


def _kernel(eqn, runs, manual, mesh, work: Work) -> None:
    estimate = eqn.params.get("cost_estimate")
    if estimate is not None and estimate.flops:
        nbytes = sum(_local(var.aval, mesh) for var in (*eqn.invars, *eqn.outvars))
        work.products.append(Product("pallas_call", (1, 1, 1, int(estimate.flops) // 2), manual, nbytes, runs))
        return
    grid = eqn.params["grid_mapping"].grid
    if not all(isinstance(size, int) for size in grid):
        work.notes.append("a Pallas kernel without cost_estimate and with a grid of unknown size was left out")
        return
    work.notes.append("a Pallas kernel without cost_estimate was counted as all blocks of its grid: an upper bound")
    inside = Work([], work.notes)
    _walk(eqn.params["jaxpr"], runs * math.prod(grid), manual, {}, inside)
    # Blocks are on the chip, so only the kernel's own operands and results go to and from the device's memory, once.
    nbytes = sum(_local(var.aval, mesh) for var in (*eqn.invars, *eqn.outvars)) * runs
    for product in inside.products:
        share = nbytes / len(inside.products) / product.runs
        work.products.append(dataclasses.replace(product, nbytes=share))


def _trips(eqn) -> int | None:
    """Returns the trip count of a loop in the form of fori_loop (counter < constant, from a constant), else None."""
    condition, consts = eqn.params["cond_jaxpr"], eqn.params["cond_nconsts"]
    body_consts = eqn.params["body_nconsts"]
    if len(condition.eqns) != 1 or condition.eqns[0].primitive.name != "lt":
        return None
    known = dict(zip(condition.jaxpr.invars, (*eqn.invars[:consts], *eqn.invars[consts + body_consts :]), strict=True))
    start, end = (known.get(var, var) if isinstance(var, core.Var) else var for var in condition.eqns[0].invars)
    if not all(isinstance(value, core.Literal) for value in (start, end)):
        return None
    return max(0, int(end.val) - int(start.val))
