"""Reward functions that work, fail, hang, crash and return nonsense."""

import ctypes
import decimal
import fractions
import os
import pathlib
import re
import signal
import subprocess
import sys
import time


def length(prompt, completion, columns):
    return len(completion)


def given(prompt, completion, columns):
    """Returns what the record says, also what is no number."""
    return {
        "none": None,
        "nan": float("nan"),
        "inf": -float("inf"),
        "huge": 1e39,
        "text": "1",
        "list": [1],
        "true": True,
        "int": 3,
        "fraction": fractions.Fraction(1, 4),
        "decimal": decimal.Decimal("0.5"),
        "complex": 1j,
    }[columns["value"]]


def fails(prompt, completion, columns):
    what = columns.get("fail")
    if what == "raise":
        return 1 / 0
    if what == "key":
        return columns["anser"]
    if what == "exit":
        sys.exit(3)
    if what == "leave":
        os._exit(3)
    if what == "crash":
        ctypes.string_at(0)
    if what == "memory":
        os.kill(os.getpid(), signal.SIGKILL)  # what the kernel does when memory ends
    if what == "sleep":
        time.sleep(600)
    if what == "lock":
        re.match(r"(a+)+$", "a" * 60 + "b")  # holds Python's lock
    if what == "interrupt":
        raise KeyboardInterrupt
    return 1


def slow(prompt, completion, columns):
    time.sleep(0.1)
    return os.getpid()


def alarm(prompt, completion, columns):
    """Limits its own time by a signal, which works only in a main thread."""

    def late(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        time.sleep(5)
    except TimeoutError:
        return 0.25
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def platforms(prompt, completion, columns):
    print("this must not disturb the protocol")
    print('{"value": 7}')
    return os.environ["JAX_PLATFORMS"] == "cpu"


def child(prompt, completion, columns):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path(columns["file"]).write_text(str(process.pid))
    time.sleep(600)
