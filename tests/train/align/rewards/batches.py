"""Batches to score, and the processes that score them."""

from pathlib import Path

from train.align.rewards.scoring import Item

FILE = str(Path(__file__).with_name("functions.py"))


def items(records):
    return [Item(f"prompt {i}", "x" * i, record) for i, record in enumerate(records)]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(scoring):
    return [process._process.pid for process in scoring._pool._processes]
