"""Files that only grow, and survive a disk that refuses to be written: full, or turned read-only.

What can't be written waits in memory and goes out, in order, before what comes next. So a run goes on, no line is lost
while its process lives, and none stands half in a file for longer than the trouble lasts.
"""

import os
from pathlib import Path

from absl import logging


class AppendedFile:
    """
    Raises:
      OSError: it can't be opened.
    """

    def __init__(self, path: Path):
        self.path, self._waiting, self._refused = path, bytearray(), False
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """What the system takes is there for readers when this returns; what it refuses is said once, and waits."""
        self._waiting += data
        try:
            self._drain()
        except OSError as error:
            if not self._refused:
                logging.error("%s: %s; what belongs there waits in memory, the run goes on", self.path, error.strerror)
            self._refused = True
            return
        if self._refused:
            logging.error("%s can be written again: nothing is missing", self.path)
            self._refused = False

    def _drain(self) -> None:
        while self._waiting:
            written = self._file.write(self._waiting)
            del self._waiting[:written]

    def sync(self) -> None:
        """Wait until all is on disk.

        Raises:
          OSError: it can't be.
        """
        try:
            self._drain()
            os.fsync(self._file.fileno())
        except OSError as error:
            lost = f"{error.strerror}; {len(self._waiting):,} bytes are not written"
            raise OSError(error.errno, lost, str(self.path)) from error

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed
