"""A real browser, led over its DevTools protocol: opens a page, tells what it complains of and asks for, measures it.

The protocol runs over two pipes of the browser's own (messages end in a zero byte), so that no port and no WebSocket is
needed. One thread reads; whoever waits for an answer or an event has a deadline.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import IO, Any

# The browser reads commands from 3 and answers to 4.
PIPES = 'exec 3<&0 4>&1 </dev/null >/dev/null; exec "$0" "$@"'
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 60.0
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # root in a container has no other way
    "--disable-gpu",
    "--disable-dev-shm-usage",  # /dev/shm of a container is small
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--force-color-profile=srgb",
)


class Browser:
    """One browser with one page. Use `browser()`."""

    def __init__(self, to_browser: IO[bytes], from_browser: IO[bytes]) -> None:
        self._to = to_browser
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._last = 0
        self._session = ""
        self._is_loaded = False
        self.complaints: list[str] = []  # of the page: console, log, exceptions
        self.requests: list[str] = []
        threading.Thread(target=self._read, args=(from_browser,), daemon=True).start()
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def _read(self, from_browser: IO[bytes]) -> None:
        rest = b""
        while chunk := os.read(from_browser.fileno(), 1 << 16):
            *messages, rest = (rest + chunk).split(b"\0")
            for message in messages:
                self._answers.put(json.loads(message))
        self._answers.put({"method": "gone"})

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer of the browser; what it tells meanwhile is noted."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._hear()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result

    def _hear(self) -> dict[str, Any]:
        told = self._answers.get(timeout=PATIENCE_S)
        assert told.get("method") != "gone", "the browser has ended"
        self._note(told.get("method", ""), told.get("params", {}))
        return told

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._is_loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(params))

    def show(self, url: str, width: int, height: int = 900, scheme: str = "light") -> None:
        """Load the page at this size; afterwards its complaints and requests are those of this load."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._is_loaded = False
        self.complaints.clear()
        self.requests.clear()
        answer = self.ask("Page.navigate", url=url)
        assert "errorText" not in answer, (url, answer)
        while not self._is_loaded:  # its event may come before the answer
            self._hear()

    def value(self, expression: str) -> Any:
        """What an expression is worth in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, (expression, answer)
        return answer["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as a PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"])


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    wanted = os.environ.get("DRILLYARD_BROWSER")
    found = next(filter(None, map(shutil.which, [wanted] if wanted else NAMES)), None)
    assert found, "there is no browser: scripts/browser finds or installs one"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = ["sh", "-c", PIPES, found, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield Browser(process.stdin, process.stdout)
            finally:
                process.stdin.close()  # it goes when its pipe does
                try:
                    process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
