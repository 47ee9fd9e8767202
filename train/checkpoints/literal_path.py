"""A path for Orbax that is taken literally, whatever characters it has.

Orbax accesses files through etils, which interprets paths. Its `glob` treats the whole path as a pattern: under
/runs/a[b] it finds nothing, and under /runs/a?b it finds the files of /runs/aXb. It also treats paths below /gs, /s3,
/az and /hf as buckets, although these may be local mount points.
"""

import glob
from collections.abc import Iterator
from typing import Any

from etils import epath

_LocalPath: Any = type(epath.Path("/"))


class LiteralPath(_LocalPath):
    """A literal path on a file system. Joining with `/` gives another LiteralPath."""

    _uri_scheme = None

    def glob(self, pattern: str) -> Iterator["LiteralPath"]:
        """Yields the files in this folder that match the pattern."""
        return (self / found for found in glob.glob(pattern, root_dir=str(self)))
