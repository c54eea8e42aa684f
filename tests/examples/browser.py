"""A real Chromium without a window, told what to do through its own debugging protocol."""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.conftest import BROWSERS

CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)  # fmt: skip
PORT_FILE = "DevToolsActivePort"  # Chromium writes there which port it took
PATIENCE = 60  # seconds


class Browser:
    """One tab. `requests` are the addresses that its pages asked for."""

    def __init__(self, connection: ClientConnection, session: str):
        self._connection, self._session, self._number = connection, session, 0
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The protocol's answer to one command. Raises AssertionError where it is an error."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params, "sessionId": self._session}
        self._connection.send(json.dumps(command))
        while True:
            message = json.loads(self._connection.recv(PATIENCE))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """What an expression of the page is. Raises AssertionError where it throws."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """What it is once it is neither false nor empty. Raises AssertionError where that does not come."""
        until = time.monotonic() + PATIENCE
        while not (value := self.value(script)):
            assert time.monotonic() < until, f"{script} did not come true: {self.value('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def choose_file(self, selector: str, path: Path) -> None:
        """What a person does who picks a file."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile in that folder; it ends with the block."""
    assert CHROMIUM
    process = subprocess.Popen(
        [CHROMIUM, *QUIET, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with connect(_address(process, profile), max_size=None) as connection:
            yield Browser(connection, _attach(connection))
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _address(process: subprocess.Popen, profile: Path) -> str:
    until = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None and time.monotonic() < until, "Chromium does not start"
        with contextlib.suppress(OSError, ValueError):
            port, path = (profile / PORT_FILE).read_text().split()
            return f"ws://127.0.0.1:{port}{path}"
        time.sleep(0.05)


def _attach(connection: ClientConnection) -> str:
    """The session of the first tab."""

    def ask(number: int, method: str, **params: Any) -> dict[str, Any]:
        connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := json.loads(connection.recv(PATIENCE))).get("id") != number:
            pass
        return message["result"]

    tabs = [tab for tab in ask(-1, "Target.getTargets")["targetInfos"] if tab["type"] == "page"]
    return ask(-2, "Target.attachToTarget", targetId=tabs[0]["targetId"], flatten=True)["sessionId"]
