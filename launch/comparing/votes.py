"""Votes of people in an SQLite file.

A rater has one vote on a pair: the key of the table refuses a second one, so a reload, a double click or another tab
can't count twice. A vote is on disk before the page shows the next pair.
"""

import sqlite3
import threading
import time
from collections.abc import Collection
from pathlib import Path

from launch.comparing.pairs import TIE, Pair, Verdict
from launch.program.checking import ConfigError

BAD = "both bad"  # a tie, too, that says more
_TABLES = """
CREATE TABLE IF NOT EXISTS votes (
  id INTEGER PRIMARY KEY AUTOINCREMENT, rater TEXT NOT NULL, prompt INTEGER NOT NULL, first TEXT NOT NULL,
  second TEXT NOT NULL, shown TEXT NOT NULL, on_left TEXT NOT NULL, verdict TEXT NOT NULL, time REAL NOT NULL,
  UNIQUE (rater, prompt, first, second, shown));
CREATE TABLE IF NOT EXISTS finished (rater TEXT PRIMARY KEY, time REAL NOT NULL);
"""


class Votes:
    """The file, for any number of threads.

    Raises:
      ConfigError: it can't be opened, or is something else.
    """

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        try:
            self._file = sqlite3.connect(path, timeout=30, check_same_thread=False)
            with self._file:
                self._file.executescript(_TABLES)
        except sqlite3.Error as error:
            raise ConfigError(f"{path} can't be used for votes ({error}); move it away") from error

    def add(self, rater: str, pair: Pair, left: str, verdict: str) -> bool:
        """Stores a vote; returns whether it is the rater's first one on this pair, because others change nothing.

        Args:
          rater: who votes.
          pair: the models.
          left: the name of the model whose answer was shown on the left.
          verdict: the name of the better model, TIE or BAD.
        """
        values = (rater, *pair, left, verdict, time.time())
        with self._lock, self._file:
            columns = "rater, prompt, first, second, shown, on_left, verdict, time"
            done = self._file.execute(f"INSERT OR IGNORE INTO votes ({columns}) VALUES (?,?,?,?,?,?,?,?)", values)
            return done.rowcount == 1

    def undo(self, rater: str, among: Collection[Pair]) -> Pair | None:
        """Takes back the rater's last vote on one of these pairs; returns its pair, or None if there is none left."""
        with self._lock, self._file:
            rows = self._file.execute(
                "SELECT id, prompt, first, second, shown FROM votes WHERE rater = ? ORDER BY id DESC", (rater,)
            )
            for number, *pair in rows.fetchall():
                if Pair(*pair) in among:
                    self._file.execute("DELETE FROM votes WHERE id = ?", (number,))
                    return Pair(*pair)
        return None

    def finish(self, rater: str) -> None:
        """Notes that a rater sees the results."""
        with self._lock, self._file:
            self._file.execute("INSERT OR IGNORE INTO finished VALUES (?, ?)", (rater, time.time()))

    def finished(self, rater: str) -> bool:
        """Returns whether a rater has seen the results."""
        with self._lock:
            return bool(self._file.execute("SELECT 1 FROM finished WHERE rater = ?", (rater,)).fetchone())

    def of(self, rater: str) -> set[Pair]:
        """Returns the pairs that a rater has voted on."""
        return {verdict.pair for verdict in self.verdicts() if verdict.rater == rater}

    def verdicts(self) -> list[Verdict]:
        """Returns all votes; BAD is a tie."""
        with self._lock:
            query = "SELECT prompt, first, second, shown, verdict, rater FROM votes ORDER BY id"
            rows = self._file.execute(query).fetchall()
        return [Verdict(Pair(*pair), TIE if verdict == BAD else verdict, rater) for *pair, verdict, rater in rows]

    def close(self) -> None:
        self._file.close()
