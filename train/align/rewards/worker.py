"""A process that calls reward functions: python -m train.align.rewards.worker DESCRIPTOR (process.py starts it).

It reads lines of JSON from a socket and answers each with one. The first has the specifications; the answer is
{"ready": true} or {"error": text}. Each other is a call, and its answer {"value": number} or {"error", "trace"}.
Functions run in the main thread, so that libraries which limit their time by signals (SIGALRM) work in them.
"""

import contextlib
import json
import math
import os
import signal
import socket
import sys
from typing import Any

from train.align.rewards.reward import Function, RewardError, Settings, listed
from train.align.rewards.table import load
from train.align.rewards.user_file import last_lines
from train.align.sandbox import SandboxError

_LARGEST = 3.4e38  # of float32
# After so many seconds more than a call may take, the kernel ends this process. The parent does it earlier; this is for
# a parent that was killed while a function holds Python's lock, where no thread of this process could look.
_GRACE = 10


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    os.dup2(2, 1)  # what functions print goes to stderr
    # Ctrl-C and a cluster's SIGTERM reach the parent, which ends this process when it is done. Not SIG_IGN, because
    # programs that a function starts would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")  # if memory ends, this process goes before the run does
    with connection.makefile("rwb") as stream:
        first = json.loads(stream.readline())
        settings = Settings(**first["settings"])
        functions: list[Function] = []
        answer: dict[str, Any] = {"ready": True}
        try:
            for spec in first["specs"]:
                functions.append(load(spec, settings))
        except (RewardError, SandboxError) as error:
            answer = {"error": f"reward {spec!r}: {error}"}
        _send(stream, answer)
        for line in stream:
            call = json.loads(line)
            signal.alarm(math.ceil(first["seconds"]) + _GRACE)
            _send(stream, _call(functions[call["function"]], call))
            signal.alarm(0)


def _call(function: Function, call: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": number(function(call["prompt"], call["completion"], call["columns"]))}
    except (RewardError, SandboxError) as error:
        return {"error": str(error), "trace": ""}
    except BaseException as error:  # sys.exit, MemoryError and RecursionError too
        text = f"{type(error).__name__}: {error}".rstrip(": ")
        if isinstance(error, KeyError):
            text += f" (the record has {listed(call['columns'])})"
        return {"error": text, "trace": last_lines(error)}


def number(result: Any) -> float:
    """Returns a reward as a float, or raises a RewardError if it is none."""
    if result is None:
        raise RewardError("returned None instead of a number; does every path end with a return?")
    try:
        # Numbers of numpy, torch and jax have __float__; texts and lists have not.
        value = result.__float__()
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise RewardError(f"returned {result!r:.80} ({type(result).__name__}) instead of a number") from None
    if not abs(value) <= _LARGEST:
        raise RewardError(f"returned {value}, which is not a finite number of float32")
    return value


def _send(stream, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer).encode() + b"\n")
    stream.flush()


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # the parent has gone
        main()
    os._exit(0)  # without waiting for threads that a function may have left behind
