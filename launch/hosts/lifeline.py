"""Prints that process 0 is lost, for a process that can't: jax aborts it from C++ as soon as the coordinator is gone.

    python launch/hosts/lifeline.py HOST PORT MESSAGE     # launch/hosts/processes.py starts it

It holds an idle connection to process 0. If the connection breaks before a byte arrives on stdin (the farewell of the
parent process), it prints MESSAGE to stderr, after jax's own message. It imports only the standard library, so that it
starts quickly.
"""

import io
import select
import socket
import sys
import time
from typing import Any

# If the parent ended without a farewell, wait this long for the connection to break: jax may have aborted the parent
# a moment before we see that process 0 is gone.
_SECONDS = 2.0


def main(host: str, port: str, message: str) -> None:
    # stdin is unbuffered, because select does not see what is in Python's buffers.
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
        print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
