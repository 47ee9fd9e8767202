"""Chromium by WebDriver's protocol, as far as these tests need it (w3.org/TR/webdriver2)."""

import contextlib
import json
import socket
import subprocess
import time
import urllib.request

_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # these requests stay on this machine
KEYS = {"left": "\ue012", "right": "\ue014"}


class Browser:
    """A window of Chromium."""

    def __init__(self, driver, width, height):
        phone = {"mobileEmulation": {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1.0}}}
        options = {"args": [*_FLAGS, f"--window-size={width},{height}"]} | (phone if width < 600 else {})
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._url = driver
        session = self.call("POST", "session", {"capabilities": {"alwaysMatch": wanted}})
        self._url = f"{driver}/session/{session['sessionId']}"

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}/{path}".rstrip("/"), data, method=method)
        return json.loads(OPEN(request, timeout=60).read())["value"]

    def open(self, url):
        self.call("POST", "url", {"url": url})

    def script(self, text):
        """Returns what a function with this body returns."""
        return self.call("POST", "execute/sync", {"script": text, "args": []})

    def wait(self, condition):
        """Waits until an expression is true."""
        end = time.monotonic() + 30
        while not self.script(f"return !!({condition})"):
            assert time.monotonic() < end, (condition, self.script("return document.body.innerText"))
            time.sleep(0.02)

    def key(self, *keys):
        """Presses keys one after the other."""
        actions = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def tab(self):
        """Opens a new tab, and returns (the old one, the new one) for `switch`."""
        old, new = self.call("GET", "window"), self.call("POST", "window/new", {"type": "tab"})["handle"]
        self.switch(new)
        return old, new

    def switch(self, tab):
        self.call("POST", "window", {"handle": tab})

    def errors(self):
        """Returns what the console has warned of since the last call."""
        return [line["message"] for line in self.call("POST", "se/log", {"type": "browser"})]


@contextlib.contextmanager
def browsing(width, height):
    """Yields a Browser with a window of this size, in pixels."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                OPEN(f"http://127.0.0.1:{port}/status", timeout=5)
                break
            assert time.monotonic() < end, "chromedriver does not start"
            time.sleep(0.05)
        window = Browser(f"http://127.0.0.1:{port}", width, height)
        yield window
        window.call("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()
