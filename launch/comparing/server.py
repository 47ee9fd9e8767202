"""Serves the page to vote on, to this machine alone.

    GET  /                    the page: two answers side by side, without the names of their models
    GET  /state?rater=NAME    the next pair for a rater, and how far the rater is, as JSON
    POST /vote, /undo         the same, after a vote or its withdrawal
    GET  /results?rater=NAME  the results, for a rater who has voted on everything

Other web sites in the same browser must neither vote nor read answers. So the server listens on 127.0.0.1 only, refuses
requests under other host names (a site may point its own name to 127.0.0.1), and votes that come from another origin.
The page may load nothing from elsewhere (Content-Security-Policy), and shows answers as text, never as HTML.
"""

import contextlib
import json
import sqlite3
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from launch.comparing import page
from launch.comparing.pairs import TIE, Answered, Pair
from launch.comparing.votes import BAD, Votes
from launch.program.checking import ConfigError

_HOSTS = ("127.0.0.1", "localhost")
_SCRIPT = Path(__file__).with_name("voting.js")
_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_LONGEST = 10_000  # bytes of a request's body
_NAME = 60  # characters of a rater's name


class Refused(Exception):
    """A request that is answered with an error; `status` is that of HTTP."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


class Voting:
    """What the page asks for, without HTTP.

    Args:
      given: the prompts with all answers.
      asked: the pairs, in the order in which raters see them.
      votes: the file of votes.
      results: returns the results so far (outcome.outcome), and keeps them.
    """

    def __init__(
        self, given: Sequence[Answered], asked: Sequence[Pair], votes: Votes, results: Callable[[], Mapping[str, Any]]
    ):
        self._given, self._votes, self._results = {one.number: one for one in given}, votes, results
        self._pairs = {pair.digest(): pair for pair in asked}
        self._asked = {*asked}

    def state(self, rater: str, pair: Pair | None = None) -> dict[str, Any]:
        """Returns what the page shows next: `pair`, or the first one without a vote of this rater; and the progress."""
        done = self._votes.of(rater) & self._asked
        if pair is None:
            pair = next((one for one in self._pairs.values() if one not in done), None)
        found: dict[str, Any] = {"done": len(done), "total": len(self._asked), "pair": None}
        if pair is not None:
            one = self._given[pair.prompt]
            left, right = (one.answers[name] for name in self._sides(rater, pair))
            found["pair"] = {"id": pair.digest(), "question": one.question, "left": left, "right": right}
        return found

    def vote(self, rater: str, said: Mapping[str, Any]) -> dict[str, Any]:
        """Stores a vote {"pair": id, "verdict": "left", "right", "tie" or "bad"} unless there is one on this pair."""
        pair = self._pairs.get(str(said.get("pair")))
        if pair is None:
            raise Refused(409, "This pair is no longer compared; reload the page.")
        left, right = self._sides(rater, pair)
        verdicts = {"left": left, "right": right, "tie": TIE, "bad": BAD}
        verdict = str(said.get("verdict"))
        if verdict not in verdicts:
            raise Refused(400, f"A verdict is one of {', '.join(verdicts)}.")
        self._votes.add(rater, pair, left, verdicts[verdict])
        return self.state(rater)

    def undo(self, rater: str) -> dict[str, Any]:
        """Takes back the rater's last vote, and shows its pair again; not after the results, as votes are blind."""
        if self._votes.finished(rater):
            raise Refused(409, "You have seen the results, so your votes stay as they are.")
        return self.state(rater, self._votes.undo(rater, self._asked))

    def results(self, rater: str) -> Mapping[str, Any] | None:
        """Returns the results; None if the rater has not voted on everything yet."""
        if self._asked - self._votes.of(rater):
            return None
        self._votes.finish(rater)
        return self._results()

    def _sides(self, rater: str, pair: Pair) -> tuple[str, str]:
        """Returns the names of the models on the left and on the right: random, and the same after a reload."""
        return pair.names if int(pair.digest(rater), 16) % 2 else pair.names[::-1]


def bound(port: int) -> ThreadingHTTPServer:
    """Returns a server that has the port but answers nothing yet, so that a port in use is found out early.

    Args:
      port: of 127.0.0.1; 0: any free one.

    Raises:
      ConfigError: the port is taken.
    """
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), BaseHTTPRequestHandler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port={port} can't be used ({error}); name another one, or 0 for any free one") from None


def handler(voting: Voting) -> type[BaseHTTPRequestHandler]:
    """Returns the class that answers requests: the server's RequestHandlerClass."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60  # seconds, after which an idle connection ends

        def do_GET(self) -> None:
            with self._answering():
                url = urllib.parse.urlsplit(self.path)
                if url.path == "/":
                    self._send(200, page.voting(), "text/html")
                elif url.path == "/voting.js":
                    self._send(200, _SCRIPT.read_text(encoding="utf-8"), "text/javascript")
                elif url.path == "/state":
                    self._send(200, json.dumps(voting.state(_rater(url.query))), "application/json")
                elif url.path == "/results":
                    found = voting.results(_rater(url.query))
                    if found is None:
                        raise Refused(403, "The results are shown after the last vote; until then, votes are blind.")
                    self._send(200, page.results(found), "text/html")
                else:
                    raise Refused(404, "There is no such page.")

        def do_POST(self) -> None:
            with self._answering():
                said = self._body()
                rater = _named(said.get("rater"))
                if self.path == "/vote":
                    found = voting.vote(rater, said)
                elif self.path == "/undo":
                    found = voting.undo(rater)
                else:
                    raise Refused(404, "There is no such page.")
                self._send(200, json.dumps(found), "application/json")

        @contextlib.contextmanager
        def _answering(self):
            try:
                if urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname not in _HOSTS:
                    raise Refused(403, "Open this page as http://127.0.0.1 or http://localhost.")
                yield
            except Refused as error:
                self.close_connection = True  # the body may not have been read
                self._send(error.status, json.dumps({"error": str(error)}), "application/json")
            except sqlite3.Error as error:  # a full disk
                self._send(
                    500, json.dumps({"error": f"The votes can't be read or written: {error}."}), "application/json"
                )
            except (BrokenPipeError, ConnectionResetError):
                pass  # the browser went away

        def _body(self) -> Mapping[str, Any]:
            if self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
                raise Refused(403, "Votes come from the page of this server alone.")
            if self.headers.get_content_type() != "application/json":
                raise Refused(415, "Send JSON.")
            try:
                length = int(self.headers.get("Content-Length", ""))
                if not 0 <= length <= _LONGEST:
                    raise ValueError
                said = json.loads(self.rfile.read(length))
            except ValueError:
                raise Refused(400, "This is no JSON of a vote.") from None
            if not isinstance(said, dict):
                raise Refused(400, "A vote is an object.")
            return said

        def _send(self, status: int, text: str, kind: str) -> None:
            data = text.encode(errors="replace")
            self.send_response(status)
            for name, value in (
                ("Content-Type", f"{kind}; charset=utf-8"),
                ("Content-Length", str(len(data))),
                ("Content-Security-Policy", _POLICY),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "no-referrer"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass  # a line for each request would hide the address and the results

    return Handler


def _rater(query: str) -> str:
    return _named(urllib.parse.parse_qs(query).get("rater", [""])[0])


def _named(given: Any) -> str:
    name = " ".join(given.split()) if isinstance(given, str) else ""
    if not 0 < len(name) <= _NAME:
        raise Refused(400, f"Give your name, in 1 to {_NAME} characters.")
    return name
