"""A judge behind a server that speaks OpenAI's chat protocol: POST URL/chat/completions.

Several questions are under way at a time. Busy servers, errors on their side and lost connections are tried again, with
growing pauses. The key in OPENAI_API_KEY is sent to the server of --judge alone: redirects are refused, because urllib
would send it to the new place too.
"""

import http.client
import json
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from launch.judging.replies import FAILED, UNREADABLE, Key, Reply, parsed
from launch.program.checking import ConfigError

KEY = "OPENAI_API_KEY"
_TIMEOUT = 120.0  # seconds for one request
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try
_LONGEST_PAUSE = 60.0  # of those that a server asks for
_BUSY = (408, 409, 425, 429)  # statuses that another try may change, besides 5xx
_MOST = 1 << 22  # bytes of a response that are read
# What is sent beside the messages. Servers differ: OpenAI's newer models refuse both fields of the first form, which
# others need. The first form that the server accepts is kept.
_FORMS: tuple[Mapping[str, Any], ...] = ({"temperature": 0, "max_tokens": None}, {"max_completion_tokens": None})


class _Refused(Exception):
    """A request that failed. `again`: another try may succeed; `pause`: seconds that the server asks for."""

    def __init__(self, why: str, *, again: bool, status: int = 0, pause: float = 0.0):
        super().__init__(why)
        self.again, self.status, self.pause = again, status, pause


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class ServerJudge:
    """A model behind a server.

    Args:
      url: up to and without /chat/completions.
      model: its name there.
      parallel: how many questions are under way at a time.
      max_tokens: upper limit of a reply's length.
      max_failures: how many questions may stay without a reply.

    Raises:
      ConfigError: it gives no reply to a first question.
    """

    def __init__(self, url: str, model: str, *, parallel: int = 8, max_tokens: int = 256, max_failures: int = 20):
        self._model, self._parallel = model, parallel
        self._url = f"{url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"
        self._max_tokens, self._max_failures = max_tokens, max_failures
        self._open = urllib.request.build_opener(_NoRedirects).open
        self._stop = threading.Event()
        self._form = self._accepted()

    def __call__(self, asked: Iterable[tuple[Key, str]], options: Sequence[str]) -> Iterator[list[tuple[Key, Reply]]]:
        """Yields replies (replies.Judge), as they come.

        Raises:
          ConfigError: too many questions failed.
        """
        asked, failures, under_way = iter(asked), 0, 0
        waiting: queue.SimpleQueue[tuple[Key, str]] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Key, Reply] | Exception] = queue.SimpleQueue()
        self._stop = stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                key, text = waiting.get()
                try:
                    done.put((key, self._reply(text, options)))
                except Exception as error:
                    done.put(error)

        # Daemons, so that a request that hangs does not keep the program from ending.
        for _ in range(self._parallel):
            threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                for question in islice(asked, 2 * self._parallel - under_way):
                    waiting.put(question)
                    under_way += 1
                if not under_way:
                    return
                found = done.get()
                if isinstance(found, Exception):
                    raise found
                key, reply = found
                under_way -= 1
                failures += reply.why == FAILED
                if failures > self._max_failures:
                    raise ConfigError(
                        f"{self._url}: {failures} questions failed; the last one: {reply.text}. The verdicts so far "
                        "are kept, and the same command continues (--max_failures allows more)"
                    )
                yield [(key, reply)]
        finally:
            stop.set()

    def _reply(self, text: str, options: Sequence[str]) -> Reply:
        try:
            said = self._said(text, self._form)
        except _Refused as error:
            return Reply(None, FAILED, str(error))
        weights = parsed(said, options)
        return Reply(weights, "" if weights else UNREADABLE, said)

    def _accepted(self) -> Mapping[str, Any]:
        """Returns the first of _FORMS that the server accepts."""
        for form in _FORMS:
            try:
                self._said("Reply with the letter A and nothing else.", form, connecting=True)
                return form
            except _Refused as error:
                why = error
                if error.status not in (400, 422):
                    break
        hints = {
            0: "is the server up, and --judge its address (http://HOST:PORT/v1)?",
            401: f"set the environment variable {KEY} to its key",
            403: f"set the environment variable {KEY} to its key",
            404: "--judge must end before /chat/completions (often in /v1), and --judge_model be a name that it knows",
        }
        hint = hints.get(why.status, "")
        raise ConfigError(f"--judge {self._url} gives no reply: {why}" + (f"; {hint}" if hint else "")) from None

    def _said(self, text: str, form: Mapping[str, Any], connecting: bool = False) -> str:
        """Returns what the model says to a text, after several tries if need be.

        Raises:
          _Refused: it says nothing; with `connecting`, a server that is not there gets only one try.
        """
        fields = {name: self._max_tokens if value is None else value for name, value in form.items()}
        body = {"model": self._model, "messages": [{"role": "user", "content": text}]} | fields
        for pause in (*_PAUSES, None):
            try:
                return self._post(body)
            except _Refused as error:
                if pause is None or not error.again or (connecting and not error.status):
                    raise
                if self._stop.wait(min(max(pause, error.pause), _LONGEST_PAUSE)):
                    raise
        raise AssertionError("the last try returns or raises")

    def _post(self, body: Mapping[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps(body).encode()
        try:
            with self._open(urllib.request.Request(self._url, data, headers), timeout=_TIMEOUT) as response:
                content = response.read(_MOST)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(_MOST).decode(errors="replace")
            again = error.code in _BUSY or error.code >= 500
            why = f"HTTP {error.code} {error.reason}: {' '.join(said.split())[:300]}"
            raise _Refused(
                why, again=again, status=error.code, pause=_seconds(error.headers.get("Retry-After"))
            ) from None
        except (OSError, http.client.HTTPException) as error:  # also urllib's URLError and timeouts
            reason = getattr(error, "reason", None) or error
            raise _Refused(str(reason) or type(error).__name__, again=True) from None
        try:
            said = json.loads(content)["choices"][0]["message"]["content"]
            return said if isinstance(said, str) else ""  # null if the limit is reached in a thought
        except (ValueError, LookupError, TypeError):
            said = content[:200].decode(errors="replace")
            raise _Refused(f"not a reply of the chat protocol: {said!r}", again=False, status=200) from None


def _seconds(text: str | None) -> float:
    """Returns how long a server asks to wait, if it says so in seconds."""
    try:
        return max(float(text or 0), 0.0)
    except ValueError:
        return 0.0
