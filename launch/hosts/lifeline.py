"""Says that process 0 is lost, beside a process that can't: without its coordinator jax aborts it from C++ at once.

    python launch/hosts/lifeline.py HOST PORT LAST_WORDS     # of launch/hosts/processes.py

Holds a connection to process 0 that carries nothing. When it ends before the farewell on stdin, LAST_WORDS go to
stderr, behind what jax has to say. Imports nothing but the standard library: it is there in a moment.
"""

import io
import select
import socket
import sys
import time
from typing import Any

_SECONDS = 2.0  # between the end of this process's parent and that of process 0, where one follows from the other


def main(host: str, port: str, last_words: str) -> None:
    # Without Python's buffers: what they hold, select does not see.
    with socket.create_connection((host, int(port)), timeout=60) as connection, io.FileIO(0) as stdin:
        both: list[Any] = [connection, stdin]
        ready = select.select(both, [], [])[0]
        if connection not in ready:
            farewell = stdin.read(1)
            ready = [] if farewell else select.select([connection], [], [], _SECONDS)[0]
        elif select.select([stdin], [], [], 0)[0] and stdin.read(1):
            return
    if ready:
        time.sleep(0.5)
        print(last_words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
