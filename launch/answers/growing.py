"""Files of JSON lines that a program appends to, and that the same command continues after a kill.

Beside OUTPUT.jsonl lies OUTPUT.about.json: the settings that made it, and at the end what the program counted. Lines
that were made with other settings are never mixed: another command with the same output is refused.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data import files
from launch.program.checking import ConfigError


def about(output: Path) -> Path:
    """Returns the path of the file with the settings of an output."""
    return beside(output, "about.json")


def beside(output: Path, name: str) -> Path:
    """Returns the path of another file of an output: samples.jsonl, about.json -> samples.about.json."""
    return output.with_name(f"{output.name.removesuffix('.jsonl')}.{name}")


def output_of(text: str, flag: str = "--output") -> Path:
    """Returns the path that --output, or another flag, names.

    Raises:
      ConfigError: it is no name of a .jsonl file in a folder that exists.
    """
    path = Path(text)
    if not path.name.endswith(".jsonl") or path.name == ".jsonl":
        raise ConfigError(f"{flag} is {text!r}; name a file that ends in .jsonl")
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: the folder {path.parent} does not exist; create it, or name another one")
    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder; name a file")
    return path


def replace(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines atomically: a reader sees the old file or the whole new one."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8", errors="replace", newline="\n") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


class Growing:
    """A file of JSON lines, locked while it is open, because two writers would mix their lines.

    A line that a kill cut short is removed when the file is opened.

    Args:
      path: the file.
      settings: JSON of everything that its lines depend on.
      output: the file that the user named, which may be another one that is made from these lines.

    Attributes:
      count: number of lines.

    Raises:
      ConfigError: the file exists and was made with other settings, by another program, or is being written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], output: Path):
        self.path, self._about, self._settings = path, about(output), json.loads(json.dumps(settings))
        if path.exists() or output.exists():
            self._check_settings(output)
        else:
            files.replace(self._about, json.dumps({"settings": self._settings}, indent=1, ensure_ascii=False) + "\n")
        try:
            self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        except OSError as error:
            raise ConfigError(f"{path} can't be written ({error.strerror}); use another --output") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):  # others: the file system has no locks
                raise ConfigError(f"another process is writing {path}; wait for it, or use another --output") from None
        end = self.count = 0
        with path.open("rb") as stream:
            for line in stream:
                if line.endswith(b"\n"):
                    end, self.count = end + len(line), self.count + 1
        self._file.truncate(end)
        self._file.seek(end)

    def _check_settings(self, output: Path) -> None:
        try:
            there = json.loads(self._about.read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{output} exists, but {self._about} does not say how it was made, so it can't be continued; use "
                "another --output, or move it away"
            ) from None
        for name in {**there, **self._settings}:
            old, new = there.get(name), self._settings.get(name)
            if old != new:
                raise ConfigError(
                    f"{output} was begun with other settings ({name}: {old!r}, now {new!r}); use another --output, or "
                    f"delete {' and '.join(dict.fromkeys([str(output), str(self.path)]))} to begin again"
                )

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yields the lines that the file had when it was opened, and those appended since."""
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ConfigError(f"{self.path}, line {number} is damaged ({error}); move the file away") from error

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends lines; they are in the file when this returns.

        Raises:
          OSError: the file can't be written; a line that is written in part is removed when the file is next opened.
        """
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        data = memoryview("".join(lines).encode(errors="replace"))
        while data:
            data = data[self._file.write(data) :]
        self.count += len(lines)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Waits until all lines are on disk, and writes a summary beside the settings."""
        os.fsync(self._file.fileno())
        content = {"settings": self._settings, "summary": summary}
        files.replace(self._about, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()
