"""A real browser without a window, driven over its DevTools pipe: what a page looks like to it, not to us.

The protocol: https://chromedevtools.github.io/devtools-protocol/, as JSON between NUL bytes on descriptors 3 and 4
(``--remote-debugging-pipe``).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
DEADLINE_S = 60.0
CLOSE_S = 10.0


def program() -> str | None:
    """A browser of this host."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One open page. Anything that it complained about, or asked the network for, is in ``complaints`` and ``requests``."""

    def __init__(self, browser: socket.socket) -> None:
        self._browser = browser
        self._number = 0
        self._buffer = b""
        self._session: str | None = None
        self._seen: list[str] = []
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def open(self, path: Path, *, width: int = 1200) -> None:
        """Load a file, and wait until it is."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.resize(width)
        self._seen.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        while "Page.loadEventFired" not in self._seen:
            self._read()

    def resize(self, width: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)

    def dark(self, on: bool) -> None:
        """As for somebody who prefers dark pages, or light ones."""
        wish = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.call("Emulation.setEmulatedMedia", features=[wish])

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def close(self) -> None:
        """End the browser."""
        self._session = None
        self.call("Browser.close")

    def picture(self, path: Path) -> None:
        """The whole page as a PNG file."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """One command, and its answer."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._browser.sendall(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = self._browser.recv(1 << 20)
            assert more, "the browser has ended"
            self._buffer += more
        one, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(one)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        self._seen.append(method)
        if method in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(params)[:500])
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


@contextmanager
def browser() -> Iterator[Page]:
    """A browser of its own, with no memory of earlier ones, that has ended after the block."""
    found = program()
    assert found is not None
    with ExitStack() as stack:
        profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)
        ours.settimeout(DEADLINE_S)
        options = [
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "--headless",
            "--disable-gpu",
            "--no-first-run",
        ]
        if os.geteuid() == 0:
            options += ["--no-sandbox", "--no-zygote"]  # Chromium has no sandbox for root
        moved = f'exec "$@" 3<&{theirs.fileno()} 4>&3'
        child = subprocess.Popen(
            ["bash", "-c", moved, "bash", found, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            process_group=0,
        )
        theirs.close()
        stack.callback(_end, child)
        page = Page(ours)
        yield page
        page.close()


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait for a browser that was closed, which collects its own children; kill any other."""
    try:
        child.wait(timeout=CLOSE_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
