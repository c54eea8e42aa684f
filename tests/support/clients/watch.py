"""A process that asks a server and a trivial one in turn: how long the longest answers took tells the two apart from
what the machine itself was busy with.

    python -m tests.support.clients.watch ADDRESS CONTROL

asks ten times a second until its standard input ends, then prints JSON.
"""

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.support.workspace import ROOT, environment

HANG = 60  # seconds after which a question counts as never answered
TRIVIAL = """
import http.server
class Ok(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ok)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Watched(NamedTuple):
    """Seconds of the longest answers, and how often each status came; 0 stands for none."""

    worst: float
    worst_control: float
    statuses: dict[str, int]

    @property
    def fine(self) -> bool:
        """Every question was answered with 200, and within a second of the machine's own doing."""
        return set(self.statuses) == {"200"} and self.worst <= 1 + self.worst_control


@contextlib.contextmanager
def watching(address: str, path: str = "/healthz") -> Iterator[Callable[[], Watched]]:
    """Watch the server at `address` from now on; the function ends the watch and gives what was seen."""
    options = {"cwd": ROOT, "env": environment() | {"PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", TRIVIAL], **options) as control:
        command = [sys.executable, "-m", "tests.support.clients.watch", address + path]
        command += [f"http://127.0.0.1:{control.stdout.readline().strip()}/"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, **options) as watch:
            watch.stdout.readline()  # it has asked once
            try:
                yield lambda: Watched(**json.loads(watch.communicate()[0]))
            finally:
                watch.kill()
                control.kill()


def asked(url: str) -> tuple[float, int]:
    """Seconds and status of one question over a connection of its own."""
    parts, start, status = urlsplit(url), time.perf_counter(), 0
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=HANG)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", parts.path)
        response = connection.getresponse()
        response.read()
        status = response.status
    connection.close()
    return time.perf_counter() - start, status


def main(address: str, control: str) -> None:
    done, worst, worst_control, statuses = threading.Event(), 0.0, 0.0, Counter[str]()
    threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
    while not done.wait(0.1 if statuses else 0):
        taken, status = asked(address)
        worst, worst_control = max(worst, taken), max(worst_control, asked(control)[0])
        statuses[str(status)] += 1
        if statuses.total() == 1:
            print(flush=True)
    print(json.dumps({"worst": worst, "worst_control": worst_control, "statuses": statuses}))


if __name__ == "__main__":
    main(*sys.argv[1:])
