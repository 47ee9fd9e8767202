"""A plan as one page of text, and a table of several."""

import textwrap

from train.planning.targets import GIB, Target

# Hoffmann et al., arXiv:2203.15556: tokens a parameter at which a budget of FLOPs gives the lowest loss.
CHINCHILLA = 20

_ASSUMED = (
    "Rates: published peaks (train/planning/targets.py). Nothing is fitted; a measured step is slower.",
    "Compute: each product at the peak, dims filled up to {tile}; where its bytes take longer, at the memory's rate.",
    "Memory: bytes that the compiled program moves beside its products, one instruction after the other.",
    "Collectives: bytes over the links of a group, at the rate of a ring; hidden where the compiler's "
    "schedule has products between start and end, else waited for.",
    "Step: the longer of compute + memory and hidden collectives, then those waited for. No input, no checkpoints.",
    "MFU: model FLOPs (6 a weight and token, causal attention half) over the chips' peak; recomputation not counted.",
)


def tokens_per_second(found: dict) -> float:
    return found["tokens"] / found["times"]["step"]


def mfu(found: dict, target: Target) -> float:
    return found["model_flops"] / found["times"]["step"] / (target.chip.flops * target.devices)


def verdict(found: dict) -> str:
    """'needs 19.3 of 15.75 GiB' of what does not fit, 'fits', or '' where no compiler said."""
    memory = found["memory"]
    if "out_of_memory" in found:
        needed = found["out_of_memory"]["needed"]
        return f"needs {needed / GIB:.1f} of {memory['limit'] / GIB:.2f} GiB" if needed else "does not fit"
    if "peak" not in memory or not memory["limit"]:
        return ""
    return f"fits: {memory['peak'] / memory['limit']:.0%} of {memory['limit'] / GIB:.2f} GiB"


def page(found: dict, target: Target, title: str, remat: str, tokens: float = 0.0) -> str:
    """
    Args:
      found: what launch/plans/child.py wrote.
      title: what is planned.
      tokens: the budget of the run; 0: Chinchilla's.
    """
    axes = " ".join(f"{name}={size}" for name, size in found["mesh"].items() if size > 1) or "data=1"
    trained = "" if found["trained"] == found["parameters"] else f", of which {found['trained']:,} train"
    lines = [
        f"Plan of {title}",
        "",
        f"  target        {target}: {target.devices} chip{'s' * (target.devices > 1)} ({target.chip.device_kind})",
        f"  mesh          {axes}",
        f"  parameters    {found['parameters']:,}{trained}",
        f"  global batch  {found['tokens']:,} tokens a step, {found['tokens'] / target.devices:,.0f} a chip",
        f"  remat         {remat}",
        *([f"  attention     {', '.join(found['attention']) or 'no fused kernel'}"] if "attention" in found else []),
        "",
        *_memory(found),
        "",
        *_flops(found),
    ]
    if found.get("talks"):
        lines += ["", *_talks(found["talks"])]
    if target.chip.flops and "out_of_memory" not in found:
        lines += ["", *_time(found, target), "", *_budget(found, target, tokens)]
        lines += ["", "Assumptions"]
        for words in _ASSUMED:
            wrapped = textwrap.wrap(words.format(tile=target.chip.tile), 96)
            lines += [f"  {wrapped[0]}", *(f"    {rest}" for rest in wrapped[1:])]
    if found["missing"]:
        lines += ["", f"Missing: {found['missing']}."]
        lines += ["  So neither peak memory nor collectives are known, and the time is that of the products alone."]
        lines += ["  pip install --no-deps -r launch/plans/requirements.txt brings the compilers."]
    lines += [f"note: {note}" for note in found["notes"]]
    return "\n".join(lines)


def table(rows: list[tuple[str, str, dict]], target: Target) -> str:
    """Of (mesh, remat, found), in this order: what --search tried."""
    lines = [f"  {'mesh':<34} {'remat':<6} {'peak GiB':>9} {'step s':>9} {'tokens/s':>12} {'MFU':>7}"]
    for mesh, remat, found in rows:
        if "times" not in found or "out_of_memory" in found:
            words = verdict(found) if "times" in found else found.get("mistake", "the compiler failed")
            lines.append(f"  {mesh:<34} {remat:<6} {words[:100]}")
            continue
        peak = found["memory"].get("peak", 0.0) / GIB
        figures = f"{peak:9.2f} {found['times']['step']:9.3f} {tokens_per_second(found):12,.0f}"
        lines.append(f"  {mesh:<34} {remat:<6} {figures} {mfu(found, target):7.1%}")
    return "\n".join(lines)


def _memory(found: dict) -> list[str]:
    memory = found["memory"]
    line = lambda name, value, words="": f"  {name:<13} {value / GIB:9.2f} GiB  {words}".rstrip()
    lines = ["Memory a chip", line("parameters", memory["parameters"]), line("optimizer", memory["optimizer"])]
    if "peak" in memory:
        lines.append(
            line("activations", memory["peak"] - memory["arguments"], "peak less parameters, optimizer, batch")
        )
        lines.append(line("peak", memory["peak"], verdict(found)))
    elif "out_of_memory" in found:
        lines.append(f"  out of memory: {verdict(found)}")
    return lines


def _flops(found: dict) -> list[str]:
    executed, model = found["flops"]["executed"], found["model_flops"]
    return [
        "FLOPs a step",
        f"  model         {model / 1e12:12,.3f} TFLOP  6 a weight and token, causal attention half",
        f"  executed      {executed / 1e12:12,.3f} TFLOP  {executed / model:.2f} x model: recomputed, masked",
        f"  a chip        {found['flops']['a_chip'] / 1e12:12,.3f} TFLOP",
    ]


def _talks(talks: list[dict]) -> list[str]:
    lines = ["Collectives a step, of one chip", f"  {'kind':<20} {'over':<14} {'count':>7} {'sent':>12} {'time':>11}"]
    for talk in talks:
        sent, over = talk["nbytes"] / 1e6, ",".join(talk["axes"])
        time = f"{1e3 * talk['seconds']:>8,.2f} ms  {'hidden behind compute' if talk['hidden'] else 'waited for'}"
        lines.append(f"  {talk['kind']:<20} {over:<14} {talk['count']:>7,} {sent:>9,.1f} MB {time}")
    return lines


def _time(found: dict, target: Target) -> list[str]:
    times, line = (
        found["times"],
        lambda name, seconds, words="": f"  {name:<13} {1e3 * seconds:12,.2f} ms  {words}".rstrip(),
    )
    busy, rate = times["compute"] + times["memory"], tokens_per_second(found)
    hides = "all hidden" if times["hidden"] <= busy else f"{1e3 * (times['hidden'] - busy):,.2f} ms more than compute"
    known = "memory" if not found["missing"] else "not known"
    return [
        "Time of a step, estimated",
        line("products", times["compute"]),
        line("memory", times["memory"], "what is no product" if known == "memory" else known),
        line("collectives", times["hidden"], f"behind compute: {hides}" if known == "memory" else known),
        line("", times["waited"], "waited for" if known == "memory" else known),
        line("step", found["times"]["step"]),
        f"  tokens/s      {rate:12,.0f}     {rate / target.devices:,.0f} a chip",
        f"  MFU           {100 * mfu(found, target):12.1f} %",
    ]


def _budget(found: dict, target: Target, tokens: float) -> list[str]:
    budget = tokens or CHINCHILLA * found["parameters"]
    why = "" if tokens else f" ({CHINCHILLA} a parameter, Chinchilla)"
    hours = budget / tokens_per_second(found) / 3600
    return [
        f"Training on {budget / 1e9:,.1f} billion tokens{why}",
        f"  {budget / found['tokens']:,.0f} steps, {hours / 24:,.2f} days, {hours * target.devices:,.0f} chip-hours",
    ]
