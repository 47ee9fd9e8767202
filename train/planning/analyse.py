"""Analyses a step on a target. The result is plain numbers and text, so it can be sent to another process."""

import collections
import dataclasses
from typing import Any

import jax

from train.planning import compile, estimate, flops, hlo, traffic
from train.planning.collectives import collectives
from train.planning.targets import Target

# (name of an attention kernel, a string that its custom call has in the program).
ATTENTION = (("splash", "splash_"), ("cuDNN", "__cudnn$fmha"))


def analyse(step: jax.stages.Wrapped, state: Any, batch: Any, mesh: Any, target: Target) -> dict:
    """Returns memory, FLOPs, collectives and estimated times of a step, as a dict of plain values.

    Args:
      step: jitted, (state, batch) -> (state, metrics).
      state, batch: abstract arrays with shardings on `mesh`, which must be the current mesh (axes.use_mesh).
      mesh: of compile.mesh. With one of compile.abstract_mesh the step is only traced, and less is known.
      target: the chips.
    """
    chip = target.chip
    traced = step.trace(state, batch)
    work = flops.count(traced.jaxpr, dict(mesh.shape))
    found: dict[str, Any] = {
        "mesh": dict(mesh.shape),
        "memory": {
            "parameters": compile.bytes_per_device(state.model),
            "optimizer": compile.bytes_per_device(state.opt_state),
            "companions": compile.bytes_per_device(state.companions),
            "limit": chip.memory,
        },
        "flops": {"executed": work.total, "a_chip": work.per_device},
        "notes": sorted(set(work.notes)),
    }
    compute = estimate.compute_seconds(work.products, chip) if chip.flops else 0.0
    if isinstance(mesh, jax.sharding.AbstractMesh):
        found["times"] = estimate.Times(compute, 0.0, 0.0, 0.0).found()
        return found
    try:
        compiled = compile.compiled(traced, chip.platform)
    except compile.OutOfMemory as error:
        found["out_of_memory"] = {"needed": error.needed}
        found["memory"]["limit"] = error.limit or chip.memory
        found["times"] = estimate.Times(compute, 0.0, 0.0, 0.0).found()
        return found
    found["memory"] |= {"arguments": compiled.arguments, "peak": compiled.peak}
    if chip.platform == "gpu" and compiled.peak > chip.memory:
        found["out_of_memory"] = {"needed": compiled.peak}
    program = hlo.parse(compiled.text)
    talking = collectives(program, dict(mesh.shape))
    found["collectives"] = dict(collections.Counter(one.kind for one in talking))
    found["attention"] = [name for name, mark in ATTENTION if mark in compiled.text]
    if chip.flops:
        talks = estimate.talks(talking, compile.places(mesh, target), target)
        moved = traffic.other_bytes(program)
        hidden = sum(talk.seconds for talk in talks if talk.hidden)
        waited = sum(talk.seconds for talk in talks if not talk.hidden)
        found["times"] = estimate.Times(compute, moved / chip.memory_bandwidth, hidden, waited).found()
        found["talks"] = [dataclasses.asdict(talk) for talk in talks]
    return found
