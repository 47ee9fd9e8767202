"""A folder by its own name, for Orbax: etils, through which Orbax reaches files, reads more than names in a path.

Its `glob` takes the whole path for a pattern, so that under /runs/a[b] nothing is found of what was written there, and
under /runs/a?b what lies in /runs/aXb. And to it /gs, /s3, /az and /hf, where buckets may well be mounted, are buckets.
"""

import glob
from collections.abc import Iterator
from typing import Any

from etils import epath

_LocalPath: Any = type(epath.Path("/"))


class LiteralPath(_LocalPath):
    """A path on a file system; what is made from it with `/` is one too."""

    _uri_scheme = None

    def glob(self, pattern: str) -> Iterator["LiteralPath"]:
        """Files inside that the pattern matches."""
        return (self / found for found in glob.glob(pattern, root_dir=str(self)))
