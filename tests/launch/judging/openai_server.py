"""A small server that speaks OpenAI's chat protocol, with a judge and failures that a test chooses."""

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROBE = "Reply with the letter A and nothing else."


class Server:
    """Counts the requests that it gets.

    Attributes:
      url: what --judge names.
      asked: the texts of all questions that got a reply, in the order of their requests.
      headers: those of the last request.
      most: how many requests were under way at once.
    """

    def __init__(self, judge: Callable[[str], str], failing: Callable[[int, dict], tuple[int, dict] | None]):
        self.asked, self.requests, self.most, self.headers = [], 0, 0, {}
        self._under_way, lock, server = 0, threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.requests += 1
                    server.headers, number = dict(self.headers), server.requests
                    server._under_way += 1
                    server.most = max(server.most, server._under_way)
                text = body["messages"][0]["content"]
                failure = failing(number, body)
                if failure is None:
                    if text != PROBE:
                        server.asked.append(text)
                    message = {"role": "assistant", "content": judge(text) if text != PROBE else "A"}
                    failure = 200, {"choices": [{"message": message}]}
                status, content = failure
                with lock:
                    server._under_way -= 1
                if status == 0:
                    self.connection.close()
                    return
                data = json.dumps(content).encode() if not isinstance(content, bytes) else content
                self.send_response(status)
                for name, value in (("Content-Length", str(len(data))), ("Retry-After", "0")):
                    self.send_header(name, value)
                if status == 302:
                    self.send_header("Location", f"{server.url}/elsewhere")
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @contextlib.contextmanager
    def running(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


def serving(judge: Callable[[str], str], failing=lambda number, body: None):
    """Returns a context in which such a server runs.

    Args:
      judge: from a question to a reply.
      failing: from the number of a request and its body to (status, content), or None if it succeeds; status 0 closes
        the connection.
    """
    return Server(judge, failing).running()


def answers(text: str) -> list[str]:
    """Returns the answers in a question, without their quotation marks."""
    found = re.split(r"\nAnswer(?: [AB])?:\n", text)[1:]
    block = lambda part: re.match(r"(?:\| .*\n?)*", part)[0]
    return ["\n".join(line.removeprefix("| ") for line in block(part).splitlines()) for part in found]


def longer(text: str) -> str:
    """A judge that prefers the longer answer, after a moment, so that replies come in another order."""
    first, second = answers(text)
    time.sleep(0.001 * (hash(text) % 5))
    return "A" if len(first) > len(second) else "B"
