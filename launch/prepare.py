"""Prepare the data of a config once: its corpus, tokenizer and packed rows.

    python -m launch.prepare --config=configs/NAME.py:ARG --data_dir=DIR

Writes array_record files (with TFDS). Training prepares missing data by itself; this program does it beforehand, on a
machine without accelerators.
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.prepare")

from launch.program import runtime

runtime.configure()

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from data.examples import kinds
from data.prepare import Prepared
from launch.program.checking import ConfigError
from launch.run import build, checks, init_from

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file whose .data block says what to prepare. Required."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder for prepared data; finished parts are reused. Required.", required=True
)


def summary(prepared: Prepared) -> str:
    """Returns a table with a line for each source and split, and the facts that all sources share."""
    head = ("source", "split", "documents", "bytes", "tokens", "bytes/token", "rows", "skipped")
    lines = []
    for source in prepared.sources:
        for split in ("train", "validation"):
            counts = [getattr(source, f"{split}_{what}") for what in ("documents", "bytes", "tokens", "rows")]
            documents, size, tokens, rows = (f"{count:,}" for count in counts)
            ratio = f"{counts[1] / counts[2]:.3f}" if counts[2] and source.kind == kinds.TEXT else ""
            skipped = f"{source.bad_lines:,}" if split == "train" else ""
            lines.append((source.spec, split, documents, size, tokens, ratio, rows, skipped))
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    table = []
    for line in (head, *lines):
        cells = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        table.append("  ".join(cells).rstrip())
    counts = [source.train_copies for source in prepared.sources if source.weight]
    # None: prepared by a version that did not count copies.
    copies = "not counted; prepare the data again" if None in counts else f"{sum(counts):,} training documents"
    weights = ", ".join(f"{source.spec} {source.weight:.15g}" for source in prepared.sources)
    return "\n".join(
        [
            *table,
            "",
            f"weights       {weights}",
            f"copies        of held-out documents: {copies} (--config.data.copies says keep or drop)",
            f"vocabulary    {prepared.vocab_size:,} ({prepared.tokenizer_path})",
            f"row length    {prepared.seq_len}",
            f"content hash  {prepared.content_hash}",
            f"folder        {prepared.directory}",
        ]
    )


def main() -> None:
    chosen = config_flags.get_override_values(flags.FLAGS["config"])
    if "data.dir" in chosen:
        raise ConfigError("--data_dir names the folder; leave --config.data.dir out")
    checks.check_read(_CONFIG.value, chosen)
    config, _ = init_from.resolve(_CONFIG.value, None, chosen)
    checks.check(config, None)  # the run's devices may be elsewhere
    with config.unlocked():
        config.data.dir = _DATA_DIR.value
    print(summary(build.data(config, Path(_DATA_DIR.value))))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    runtime.run(main)
