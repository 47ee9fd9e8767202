"""Formats a plan as one page of text, and several plans as a table."""

import textwrap

from train.planning.targets import GIB, Target

# Tokens per parameter at which a given budget of FLOPs reaches the lowest loss (Hoffmann et al., arXiv:2203.15556).
CHINCHILLA = 20

_ASSUMED = (
    "Rates: published peaks (train/planning/targets.py). Nothing is fitted; a measured step is slower.",
    "Compute: each matmul at the peak rate, dims padded to {tile}; at the memory's rate if its bytes take longer.",
    "Memory: bytes that non-matmul ops of the compiled program move, one instruction after the other.",
    "Collectives: bytes over the links of a group, at the rate of a ring; hidden if the compiler's "
    "schedule has matmuls between start and end, else exposed.",
    "Step: the longer of compute + memory and hidden collectives, plus exposed ones. No input, no checkpoints.",
    "MFU: model FLOPs (6 per weight and token, half of causal attention) over the chips' peak, without recomputation.",
)


def tokens_per_second(found: dict) -> float:
    return found["tokens"] / found["times"]["step"]


def mfu(found: dict, target: Target) -> float:
    return found["model_flops"] / found["times"]["step"] / (target.chip.flops * target.devices)


def verdict(found: dict) -> str:
    """Returns 'needs 19.3 of 15.75 GiB' or 'fits: ...'; '' if no compiler was there to tell."""
    memory = found["memory"]
    if "out_of_memory" in found:
        needed = found["out_of_memory"]["needed"]
        return f"needs {needed / GIB:.1f} of {memory['limit'] / GIB:.2f} GiB" if needed else "does not fit"
    if "peak" not in memory or not memory["limit"]:
        return ""
    return f"fits: {memory['peak'] / memory['limit']:.0%} of {memory['limit'] / GIB:.2f} GiB"


def page(found: dict, target: Target, title: str, remat: str, tokens: float = 0.0) -> str:
    """Returns a plan as text.

    Args:
      found: the figures that launch/plans/child.py wrote.
      target: the chips.
      title: names the config.
      remat: config.model.remat.
      tokens: tokens to train on; 0 means 20 per parameter (Chinchilla).
    """
    axes = " ".join(f"{name}={size}" for name, size in found["mesh"].items() if size > 1) or "data=1"
    trained = "" if found["trained"] == found["parameters"] else f", of which {found['trained']:,} train"
    lines = [
        f"Plan of {title}",
        "",
        f"  target        {target}: {target.devices} chip{'s' * (target.devices > 1)} ({target.chip.device_kind})",
        f"  mesh          {axes}",
        f"  parameters    {found['parameters']:,}{trained}",
        f"  global batch  {found['tokens']:,} tokens per step, {found['tokens'] / target.devices:,.0f} per chip",
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
        lines += ["  So peak memory and collectives are unknown, and the time is that of the matmuls alone."]
        lines += ["  pip install --no-deps -r launch/plans/requirements.txt brings the compilers."]
    lines += [f"note: {note}" for note in found["notes"]]
    return "\n".join(lines)


def table(rows: list[tuple[str, str, dict]], target: Target) -> str:
    """Returns a table of the plans that --search tried, as (mesh, remat, found) in their order."""
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
    lines = ["Memory per chip", line("parameters", memory["parameters"]), line("optimizer", memory["optimizer"])]
    if memory.get("companions"):
        lines.append(line("companions", memory["companions"], "frozen models beside the one that trains"))
    if "peak" in memory:
        lines.append(
            line("activations", memory["peak"] - memory["arguments"], "peak minus parameters, optimizer, batch")
        )
        lines.append(line("peak", memory["peak"], verdict(found)))
    elif "out_of_memory" in found:
        lines.append(f"  out of memory: {verdict(found)}")
    return lines


def _flops(found: dict) -> list[str]:
    executed, model = found["flops"]["executed"], found["model_flops"]
    return [
        "FLOPs per step",
        f"  model         {model / 1e12:12,.3f} TFLOP  6 per weight and token, half of causal attention",
        f"  executed      {executed / 1e12:12,.3f} TFLOP  {executed / model:.2f} x model: recomputed, masked",
        f"  per chip      {found['flops']['a_chip'] / 1e12:12,.3f} TFLOP",
    ]


def _talks(talks: list[dict]) -> list[str]:
    lines = ["Collectives per step, of one chip", f"  {'kind':<20} {'over':<14} {'count':>7} {'sent':>12} {'time':>11}"]
    for talk in talks:
        sent, over = talk["nbytes"] / 1e6, ",".join(talk["axes"])
        time = f"{1e3 * talk['seconds']:>8,.2f} ms  {'hidden behind compute' if talk['hidden'] else 'exposed'}"
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
        line("matmuls", times["compute"]),
        line("memory", times["memory"], "non-matmul ops" if known == "memory" else known),
        line("collectives", times["hidden"], f"behind compute: {hides}" if known == "memory" else known),
        line("", times["waited"], "exposed" if known == "memory" else known),
        line("step", found["times"]["step"]),
        f"  tokens/s      {rate:12,.0f}     {rate / target.devices:,.0f} per chip",
        f"  MFU           {100 * mfu(found, target):12.1f} %",
    ]


def _budget(found: dict, target: Target, tokens: float) -> list[str]:
    budget = tokens or CHINCHILLA * found["parameters"]
    why = "" if tokens else f" ({CHINCHILLA} per parameter, Chinchilla)"
    hours = budget / tokens_per_second(found) / 3600
    return [
        f"Training on {budget / 1e9:,.1f} billion tokens{why}",
        f"  {budget / found['tokens']:,.0f} steps, {hours / 24:,.2f} days, {hours * target.devices:,.0f} chip-hours",
    ]
