"""Append-only files that survive a disk that cannot be written, because it is full or became read-only.

Data that cannot be written wait in memory, and are written in order once the disk works again. So the run continues, no
line is lost while its process lives, and a half-written line is completed later.
"""

import os
from pathlib import Path

from absl import logging


class AppendedFile:
    """A file opened for appending.

    Raises:
      OSError: it cannot be opened.
    """

    def __init__(self, path: Path):
        self.path, self._waiting, self._refused = path, bytearray(), False
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Appends data. Readers see them when this returns. If the system refuses, they wait in memory, and the first
        refusal is logged."""
        self._waiting += data
        try:
            self._drain()
        except OSError as error:
            if not self._refused:
                logging.error("%s: %s; its lines wait in memory, and the run continues", self.path, error.strerror)
            self._refused = True
            return
        if self._refused:
            logging.error("%s can be written again; no data are missing", self.path)
            self._refused = False

    def _drain(self) -> None:
        while self._waiting:
            written = self._file.write(self._waiting)
            del self._waiting[:written]

    def sync(self) -> None:
        """Waits until all data are on disk.

        Raises:
          OSError: some cannot be written.
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
